//! The transport to the endpoints of a cluster: its upstream settings with prepared TLS.

use std::sync::Arc;

use tidegate_model::fleet::{Upstream, UpstreamProtocol};
use tidegate_tls::{ClientTls, HTTP1, HTTP2, Renewable, Resumption, TlsError};

/// The transport to the endpoints of a cluster. Clones share its TLS.
#[derive(Debug, Clone)]
pub struct ProbeTransport {
    pub(super) upstream: Upstream,
    /// TLS for the protocols of the cluster, and for HTTP/2 only.
    pub(super) tls: Option<(Arc<ClientTls>, Arc<ClientTls>)>,
}

impl ProbeTransport {
    /// The transport by `upstream`. Sessions are not resumed: each handshake verifies the peer's certificate.
    ///
    /// # Errors
    /// The TLS files can't be used on this machine.
    pub fn new(upstream: &Upstream) -> Result<ProbeTransport, TlsError> {
        let load = |alpn: &[&[u8]]| match &upstream.tls {
            Some(tls) => ClientTls::load(tls, alpn, Resumption::Off).map(|tls| Some(Arc::new(tls))),
            None => Ok(None),
        };
        let by_protocol: &[&[u8]] = match upstream.protocol {
            UpstreamProtocol::Auto => &[HTTP2, HTTP1],
            UpstreamProtocol::Http1 => &[HTTP1],
            UpstreamProtocol::Http2 => &[HTTP2],
        };
        Ok(ProbeTransport { tls: load(by_protocol)?.zip(load(&[HTTP2])?), upstream: upstream.clone() })
    }

    /// The settings that it was built from.
    pub fn upstream(&self) -> &Upstream {
        &self.upstream
    }

    /// The TLS that must be renewed when its files change.
    pub fn renewable(&self) -> impl Iterator<Item = Arc<dyn Renewable>> {
        let each = self.tls.iter().flat_map(|(one, other)| [one.clone(), other.clone()]);
        each.map(|tls| tls as Arc<dyn Renewable>)
    }
}
