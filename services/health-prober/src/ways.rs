//! The ways to all clusters of a fleet, made anew when the fleet or the files of their TLS change.

use std::{collections::BTreeMap, sync::Arc};

use tidegate_model::{ClusterName, fleet::Fleet};
use tidegate_tls::TlsError;

use crate::probe::Way;

/// The ways to clusters. A cluster whose TLS can't be set up on this machine has none: that our files are missing says
/// nothing of its endpoints, so they are not probed, and what others see of them counts.
#[derive(Debug, Default)]
pub(crate) struct Ways {
    ways: BTreeMap<ClusterName, Arc<Way>>,
    /// Why clusters have no way.
    unusable: BTreeMap<ClusterName, String>,
}

impl Ways {
    pub fn get(&self, cluster: &ClusterName) -> Option<&Arc<Way>> {
        self.ways.get(cluster)
    }

    pub fn unusable(&self) -> &BTreeMap<ClusterName, String> {
        &self.unusable
    }

    /// Makes these the ways to the clusters of `fleet`. What has not changed is kept. Reads files.
    pub fn set(&mut self, fleet: &Fleet) {
        let before = std::mem::take(&mut self.ways);
        let reported = std::mem::take(&mut self.unusable);
        for (name, cluster) in &fleet.clusters {
            if let Some(way) = before.get(name).filter(|way| *way.upstream() == cluster.upstream) {
                self.ways.insert(name.clone(), way.clone());
                continue;
            }
            match Way::new(&cluster.upstream) {
                Ok(way) => drop(self.ways.insert(name.clone(), Arc::new(way))),
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

    /// Renews the TLS of all ways, and logs what is refused. Reads files, so not for a runtime's thread.
    pub fn renew(ways: &[(ClusterName, Arc<Way>)]) {
        for (name, way) in ways {
            for tls in way.renewable() {
                match tls.renew() {
                    Ok(true) => tracing::info!(cluster = %name, "new certificates are in use"),
                    Ok(false) => {}
                    Err(error) => {
                        tracing::warn!(cluster = %name, %error, "new certificates are refused, the old stay in use");
                    }
                }
            }
        }
    }

    /// The ways that have TLS.
    pub fn with_tls(&self) -> Vec<(ClusterName, Arc<Way>)> {
        let with_tls = |(_, way): &(&ClusterName, &Arc<Way>)| way.upstream().tls.is_some();
        self.ways.iter().filter(with_tls).map(|(name, way)| (name.clone(), way.clone())).collect()
    }
}
