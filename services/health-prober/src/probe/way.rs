//! The way to a cluster: its upstream, with TLS made ready.

use std::sync::Arc;

use tidegate_model::fleet::{Upstream, UpstreamProtocol};
use tidegate_tls::{ClientTls, HTTP1, HTTP2, Renewable, Resumption, TlsError};

/// How the endpoints of a cluster are reached. Clones share it.
#[derive(Debug, Clone)]
pub struct Way {
    pub(super) upstream: Upstream,
    /// For what the cluster's protocol says, and for HTTP/2 only.
    pub(super) tls: Option<(Arc<ClientTls>, Arc<ClientTls>)>,
}

impl Way {
    /// The way that `upstream` describes. Sessions are not resumed: each handshake checks the peer's certificate.
    ///
    /// # Errors
    /// The files of its TLS can't be used on this machine.
    pub fn new(upstream: &Upstream) -> Result<Way, TlsError> {
        let load = |alpn: &[&[u8]]| match &upstream.tls {
            Some(tls) => ClientTls::load(tls, alpn, Resumption::Off).map(|tls| Some(Arc::new(tls))),
            None => Ok(None),
        };
        let by_protocol: &[&[u8]] = match upstream.protocol {
            UpstreamProtocol::Auto => &[HTTP2, HTTP1],
            UpstreamProtocol::Http1 => &[HTTP1],
            UpstreamProtocol::Http2 => &[HTTP2],
        };
        Ok(Way { tls: load(by_protocol)?.zip(load(&[HTTP2])?), upstream: upstream.clone() })
    }

    /// What it was made from.
    pub fn upstream(&self) -> &Upstream {
        &self.upstream
    }

    /// What must be renewed from time to time.
    pub fn renewable(&self) -> impl Iterator<Item = Arc<dyn Renewable>> {
        let each = self.tls.iter().flat_map(|(one, other)| [one.clone(), other.clone()]);
        each.map(|tls| tls as Arc<dyn Renewable>)
    }
}
