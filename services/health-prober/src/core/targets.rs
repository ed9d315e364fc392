//! The targets that a fleet has to be probed.

use std::{collections::BTreeMap, sync::Arc};

use tidegate_model::{
    ClusterName, NetworkName,
    fleet::{Endpoint, Fleet},
    health::HealthCheck,
    observation::Target,
};

/// The targets of a fleet, with their checks.
pub type ProbeTargets = BTreeMap<Target, Arc<HealthCheck>>;

/// The targets of a fleet: each endpoint of each cluster that a service uses, by that service's check. Services with equal
/// checks share their targets. Endpoints outside `networks` (unless that is empty) and clusters that are not `usable` are
/// left out.
pub fn probe_targets(
    fleet: &Fleet,
    networks: &[NetworkName],
    usable: impl Fn(&ClusterName) -> bool,
) -> ProbeTargets {
    let mut targets = ProbeTargets::new();
    for service in fleet.services.values() {
        let id = service.health.id();
        let check = Arc::new(service.health.clone());
        for name in service.actions().flat_map(|action| action.clusters.clusters()) {
            let Some(cluster) = fleet.clusters.get(name).filter(|_| usable(name)) else { continue };
            let on_network =
                |endpoint: &&Endpoint| networks.is_empty() || networks.contains(&endpoint.network);
            for endpoint in cluster.endpoints.iter().filter(on_network) {
                let target = Target { cluster: name.clone(), endpoint: endpoint.address.clone(), check: id };
                targets.entry(target).or_insert_with(|| check.clone());
            }
        }
    }
    targets
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_with_equal_checks_share_their_targets() {
        let fleet = Fleet::parse(
            r#"
regions: { eu: {} }
clusters:
  a: { region: eu, endpoints: ["10.0.0.1:80", "10.0.0.2:80"] }
  b: { region: eu, endpoints: [{ address: "10.0.0.3:80", network: vpc }] }
  unused: { region: eu, endpoints: ["10.0.0.4:80"] }
services:
  one: { hosts: [one], clusters: [a], health: { path: / } }
  two: { hosts: [two], clusters: [b], health: { path: / }, routes: [{ path: /x, clusters: [a] }] }
  three: { hosts: [three], clusters: [a] }
"#,
            "fleet.yaml",
        )
        .unwrap();

        let all = probe_targets(&fleet, &[], |_| true);
        let without_a = probe_targets(&fleet, &[], |name| name.as_str() != "a");
        let on_vpc = probe_targets(&fleet, &["vpc".parse().unwrap()], |_| true);

        assert_eq!(all.len(), 5, "two endpoints of a with two checks, one of b with one");
        assert_eq!(without_a.len(), 1);
        assert_eq!(on_vpc.len(), 1);
    }
}
