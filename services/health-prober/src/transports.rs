//! The transports to all clusters of a fleet, renewed when the fleet or their TLS files change.

use std::{collections::BTreeMap, sync::Arc};

use tidegate_model::{ClusterName, fleet::Fleet};
use tidegate_tls::TlsError;

use crate::probe::ProbeTransport;

/// The transports to the clusters of a fleet. A cluster whose TLS can't be set up on this machine has none: the missing files
/// are no failure of its endpoints, so they are not probed from here, and other probers' observations count.
#[derive(Debug, Default)]
pub(crate) struct ProbeTransports {
    transports: BTreeMap<ClusterName, Arc<ProbeTransport>>,
    /// The clusters without a transport, with the problem.
    unusable: BTreeMap<ClusterName, String>,
}

impl ProbeTransports {
    pub fn get(&self, cluster: &ClusterName) -> Option<&Arc<ProbeTransport>> {
        self.transports.get(cluster)
    }

    pub fn unusable(&self) -> &BTreeMap<ClusterName, String> {
        &self.unusable
    }

    /// Updates the transports to those of `fleet`. Unchanged ones are kept. Reads files.
    pub fn update(&mut self, fleet: &Fleet) {
        let before = std::mem::take(&mut self.transports);
        let reported = std::mem::take(&mut self.unusable);
        for (name, cluster) in &fleet.clusters {
            if let Some(transport) =
                before.get(name).filter(|transport| *transport.upstream() == cluster.upstream)
            {
                self.transports.insert(name.clone(), transport.clone());
                continue;
            }
            match ProbeTransport::new(&cluster.upstream) {
                Ok(transport) => drop(self.transports.insert(name.clone(), Arc::new(transport))),
                Err(error) => self.report(name, &error, reported.get(name)),
            }
        }
    }

    fn report(&mut self, name: &ClusterName, error: &TlsError, before: Option<&String>) {
        let problem = error.to_string();
        if before != Some(&problem) {
            tracing::warn!(cluster = %name, %error, "the cluster can't be probed from here");
        }
        self.unusable.insert(name.clone(), problem);
    }

    /// Renews the TLS of all transports, and logs certificates that are refused. Reads files, so it must not run on a thread
    /// of the runtime.
    pub fn renew(transports: &[(ClusterName, Arc<ProbeTransport>)]) {
        for (name, transport) in transports {
            for tls in transport.renewable() {
                match tls.renew() {
                    Ok(true) => tracing::info!(cluster = %name, "new certificates are in use"),
                    Ok(false) => {}
                    Err(error) => {
                        tracing::warn!(cluster = %name, %error, "new certificates are refused, the old ones stay in use");
                    }
                }
            }
        }
    }

    /// The transports that have TLS.
    pub fn with_tls(&self) -> Vec<(ClusterName, Arc<ProbeTransport>)> {
        let with_tls =
            |(_, transport): &(&ClusterName, &Arc<ProbeTransport>)| transport.upstream().tls.is_some();
        self.transports
            .iter()
            .filter(with_tls)
            .map(|(name, transport)| (name.clone(), transport.clone()))
            .collect()
    }
}
