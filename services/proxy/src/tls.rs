//! TLS configurations for upstream connections, shared by all workers. Only the control side reads their files.

use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
};

use tidegate_model::fleet::{UpstreamProtocol, UpstreamTls};
use tidegate_tls::{ClientTls, HTTP1, HTTP2, Renewable, Resumption};

/// Rounds of [`UpstreamTlsConfigs::renew`] after which an unused configuration is dropped.
const FORGOTTEN_AFTER: u32 = 60;

/// The settings that determine a configuration.
pub type TlsKey = (UpstreamTls, UpstreamProtocol);

/// The configurations that clusters use; each is read from its files once and renewed when they change.
#[derive(Debug, Default)]
pub struct UpstreamTlsConfigs {
    known: Mutex<HashMap<TlsKey, Arc<UpstreamTlsConfig>>>,
}

/// One configuration, available once its files could be read.
#[derive(Default)]
pub struct UpstreamTlsConfig {
    loaded: OnceLock<ClientTls>,
    /// Why it is not available.
    problem: Mutex<String>,
    unused_rounds: AtomicU32,
}

impl UpstreamTlsConfig {
    /// The configuration; nothing while its files are missing or invalid.
    pub fn get(&self) -> Option<&ClientTls> {
        self.loaded.get()
    }

    /// Reads the files unless that has succeeded before. A problem is logged when it is new.
    fn load(&self, (tls, protocol): &TlsKey) {
        if self.loaded.get().is_some() {
            return;
        }
        let alpn: &[&[u8]] = match protocol {
            UpstreamProtocol::Auto => &[HTTP2, HTTP1],
            UpstreamProtocol::Http1 => &[HTTP1],
            UpstreamProtocol::Http2 => &[HTTP2],
        };
        let mut problem = self.problem.lock().unwrap_or_else(PoisonError::into_inner);
        match ClientTls::load(tls, alpn, Resumption::On) {
            Ok(config) => {
                if !problem.is_empty() {
                    tracing::info!(?config, "upstream TLS is available now");
                }
                // If another thread was faster, its configuration is as good.
                _ = self.loaded.set(config);
            }
            Err(error) => {
                let error = error.to_string();
                if *problem != error {
                    tracing::error!(%error, "upstream TLS is unavailable");
                    *problem = error;
                }
            }
        }
    }
}

impl fmt::Debug for UpstreamTlsConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("UpstreamTlsConfig").field(&self.loaded.get()).finish()
    }
}

impl UpstreamTlsConfigs {
    /// The configuration of `key`, whether or not its files were read yet. Never blocks.
    pub fn get(&self, key: &TlsKey) -> Arc<UpstreamTlsConfig> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(config) = known.get(key) {
            return config.clone();
        }
        let config = Arc::<UpstreamTlsConfig>::default();
        known.insert(key.clone(), config.clone());
        config
    }

    /// Reads the files of a configuration before it is used, unless they were read before. Blocks; not for the data
    /// path.
    pub fn prepare(&self, key: &TlsKey) {
        self.get(key).load(key);
    }

    /// Why configurations, or the newest contents of their files, are not in use; unused configurations left out.
    pub fn problems(&self) -> Vec<String> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let used = known.values().filter(|config| Arc::strong_count(config) > 1);
        used.filter_map(|config| match config.get() {
            None => {
                let problem = config.problem.lock().unwrap_or_else(PoisonError::into_inner);
                (!problem.is_empty())
                    .then(|| format!("connections to endpoints with TLS are impossible: {problem}"))
            }
            Some(loaded) => {
                let problem = loaded.problem()?;
                Some(format!("new files for TLS to endpoints are not in use, the old ones are: {problem}"))
            }
        })
        .collect()
    }

    /// Reads changed files, and those that could not be read before. Blocks; not for the data path.
    pub fn renew(&self) {
        let all: Vec<(TlsKey, Arc<UpstreamTlsConfig>)> = {
            let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
            known.retain(|_, config| {
                let unused = if Arc::strong_count(config) > 1 {
                    config.unused_rounds.store(0, Relaxed);
                    0
                } else {
                    config.unused_rounds.fetch_add(1, Relaxed) + 1
                };
                unused < FORGOTTEN_AFTER
            });
            known.iter().map(|(key, config)| (key.clone(), config.clone())).collect()
        };
        for (key, config) in all {
            let Some(loaded) = config.get() else {
                config.load(&key);
                continue;
            };
            match loaded.renew() {
                Ok(true) => tracing::info!(config = ?loaded, "new certificates are in use"),
                Ok(false) => {}
                Err(error) => tracing::warn!(config = ?loaded, %error, "new certificates were rejected"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_cluster_uses_any_more_is_forgotten() {
        let configs = UpstreamTlsConfigs::default();
        let tls = UpstreamTls {
            server_name: None,
            ca: Some("/nowhere/ca.crt".into()),
            identity: None,
            client_certificate: None,
        };
        let key = (tls, UpstreamProtocol::Auto);
        let used = configs.get(&key);
        let known = || configs.known.lock().unwrap().len();
        (0..2 * FORGOTTEN_AFTER).for_each(|_| configs.renew());
        assert_eq!(known(), 1);
        drop(used);
        (0..FORGOTTEN_AFTER).for_each(|_| configs.renew());
        assert_eq!(known(), 0);
    }
}
