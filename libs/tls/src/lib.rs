//! Identities and certificates: TLS for edges, for what edges forward to, and for probes, renewed while it is in use.
//!
//! This crate must not know HTTP, the bus, or which connection is made why.
#![forbid(unsafe_code)]

mod client;
mod error;
mod files;
mod identity;
mod pem;
mod renewable;
mod server;

pub use self::{
    client::{ClientTls, Resumption},
    error::TlsError,
    renewable::Renewable,
    server::ServerTls,
};

/// ALPN's name of HTTP/1.1.
pub const HTTP1: &[u8] = b"http/1.1";
/// ALPN's name of HTTP/2.
pub const HTTP2: &[u8] = b"h2";

/// The one crypto provider, never taken from the process's default: whoever else sets that must not change ours.
fn provider() -> std::sync::Arc<rustls::crypto::CryptoProvider> {
    static PROVIDER: std::sync::LazyLock<std::sync::Arc<rustls::crypto::CryptoProvider>> =
        std::sync::LazyLock::new(|| std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider()));
    PROVIDER.clone()
}
