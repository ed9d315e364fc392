//! TLS: identities and certificates for edges, for clusters and for probes, renewed while in use.
//!
//! This crate must not know HTTP, the bus, or the purpose of a connection.
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

/// The ALPN ID of HTTP/1.1.
pub const HTTP1: &[u8] = b"http/1.1";
/// The ALPN ID of HTTP/2.
pub const HTTP2: &[u8] = b"h2";

/// The crypto provider. It is not the process's default, which other code could change.
fn provider() -> std::sync::Arc<rustls::crypto::CryptoProvider> {
    static PROVIDER: std::sync::LazyLock<std::sync::Arc<rustls::crypto::CryptoProvider>> =
        std::sync::LazyLock::new(|| std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider()));
    PROVIDER.clone()
}
