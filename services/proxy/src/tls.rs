//! TLS configurations towards clusters, shared by all workers.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use tidegate_model::fleet::{UpstreamProtocol, UpstreamTls};
use tidegate_tls::{ClientTls, HTTP1, HTTP2, Renewable, Resumption};

/// The configurations that clusters use; each is read from its files once and renewed when they change.
#[derive(Debug, Default)]
pub struct UpstreamTlsConfigs {
    known: Mutex<HashMap<(UpstreamTls, UpstreamProtocol), Arc<ClientTls>>>,
}

impl UpstreamTlsConfigs {
    /// The configuration for `tls`; nothing, and an error in the log, when its files cannot be used.
    pub fn get(&self, tls: &UpstreamTls, protocol: UpstreamProtocol) -> Option<Arc<ClientTls>> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (tls.clone(), protocol);
        if let Some(config) = known.get(&key) {
            return Some(config.clone());
        }
        let alpn: &[&[u8]] = match protocol {
            UpstreamProtocol::Auto => &[HTTP2, HTTP1],
            UpstreamProtocol::Http1 => &[HTTP1],
            UpstreamProtocol::Http2 => &[HTTP2],
        };
        match ClientTls::load(tls, alpn, Resumption::On) {
            Ok(config) => {
                let config = Arc::new(config);
                known.insert(key, config.clone());
                Some(config)
            }
            Err(error) => {
                tracing::error!(%error, "TLS towards a cluster cannot be used");
                None
            }
        }
    }

    /// Reads changed files anew. Blocks; call it away from the data path.
    pub fn renew(&self) {
        let all: Vec<Arc<ClientTls>> =
            self.known.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect();
        for config in all {
            match config.renew() {
                Ok(true) => tracing::info!(?config, "new certificates are in use"),
                Ok(false) => {}
                Err(error) => tracing::warn!(?config, %error, "new certificates are refused"),
            }
        }
    }
}
