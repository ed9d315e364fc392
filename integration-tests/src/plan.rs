//! What a world is made of, and its fleet file.

use std::{collections::BTreeMap, fmt::Write as _, net::SocketAddr, time::Duration};

/// The host that the fleet's one service answers for.
pub const HOST: &str = "shop.example.com";
/// The name of that service.
pub const SERVICE: &str = "shop";
/// The regions, each with a cluster and an edge of its own: name, location, cluster, edge.
pub const REGIONS: [RegionPlan; 2] = [
    RegionPlan { name: "us-east", location: [38.9, -77.4], cluster: "us-east-1", edge: "edge-us" },
    RegionPlan { name: "eu-west", location: [53.3, -6.3], cluster: "eu-west-1", edge: "edge-eu" },
];
/// The first region: tests load its edge and break its cluster, which is the nearer one.
pub const HOME: RegionPlan = REGIONS[0];
/// The second region, which takes over.
pub const AWAY: RegionPlan = REGIONS[1];
/// Endpoints of each cluster.
pub const ENDPOINTS: usize = 2;

/// A region with its one cluster and its one edge.
#[derive(Debug, Clone, Copy)]
pub struct RegionPlan {
    /// Its name.
    pub name: &'static str,
    /// Latitude and longitude.
    pub location: [f64; 2],
    /// Its cluster.
    pub cluster: &'static str,
    /// Its edge.
    pub edge: &'static str,
}

impl RegionPlan {
    /// The names of its route-computers, when it has so many.
    pub fn computers(&self, count: usize) -> Vec<String> {
        (1..=count).map(|number| format!("computer-{}-{number}", self.name)).collect()
    }

    /// The bus's user of its edge.
    pub fn edge_user(&self) -> String {
        format!("edge-{}", self.edge)
    }

    /// The bus's user of its probers.
    pub fn prober_user(&self) -> String {
        format!("prober-{}", self.name)
    }

    /// The bus's user of its route-computers.
    pub fn computer_user(&self) -> String {
        format!("computer-{}", self.name)
    }

    /// The bus's user of its replicators.
    pub fn replicator_user(&self) -> String {
        format!("replicator-{}", self.name)
    }

    /// The names of its cluster's endpoints.
    pub fn origins(&self) -> Vec<String> {
        ('a'..).take(ENDPOINTS).map(|letter| format!("{}{letter}", self.cluster)).collect()
    }
}

/// What a world is made of. The default is what a test that does not care gets.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Route-computers in each region.
    pub computers: usize,
    /// Probers in each region.
    pub probers: usize,
    /// Over what time a cluster that comes back regains its share.
    pub slow_start: Duration,
    /// How long the second recovery of an endpoint that flaps is suppressed. Doubles with each flap. Zero turns damping off.
    pub first_suppression: Duration,
    /// Workers of each edge.
    pub workers: usize,
    /// Where spans are sent.
    pub otlp_endpoint: Option<String>,
    /// Whether route-computers sign their tables, each with a key of its own.
    pub is_signed: bool,
    /// Whether edges are given those keys by a flag, so that they do not ask the fleet for them.
    pub pins_key: bool,
}

impl Default for Plan {
    fn default() -> Self {
        Plan {
            computers: 1,
            probers: 1,
            slow_start: Duration::ZERO,
            first_suppression: Duration::ZERO,
            workers: 2,
            otlp_endpoint: None,
            is_signed: false,
            pins_key: false,
        }
    }
}

/// The fleet file of a world whose origins are at these addresses.
pub fn fleet(origins: &BTreeMap<String, SocketAddr>) -> String {
    let mut text = "regions:\n".to_owned();
    // Writing to a String does not fail.
    for RegionPlan { name, location: [latitude, longitude], .. } in REGIONS {
        _ = writeln!(text, "  {name}: {{ location: [{latitude}, {longitude}] }}");
    }
    text += "clusters:\n";
    for region in REGIONS {
        let endpoints: Vec<String> =
            region.origins().iter().map(|name| format!("\"{}\"", origins[name])).collect();
        _ = writeln!(
            text,
            "  {}: {{ region: {}, endpoints: [{}] }}",
            region.cluster,
            region.name,
            endpoints.join(", ")
        );
    }
    text += "edges:\n";
    for RegionPlan { name, edge, .. } in REGIONS {
        _ = writeln!(text, "  {edge}: {{ region: {name}, listeners: [http] }}");
    }
    let clusters: Vec<&str> = REGIONS.iter().map(|region| region.cluster).collect();
    _ = writeln!(
        text,
        "listeners:\n  http: {{ bind: \"127.0.0.1:0\", protocol: http }}\n\
         services:\n  {SERVICE}:\n    hosts: [{HOST}]\n    clusters: {{ nearest: [{}] }}\n    \
         health: {{ path: /healthz, interval: 250ms, timeout: 200ms, unhealthy_after: 2, healthy_after: 3 }}",
        clusters.join(", ")
    );
    text
}

#[cfg(test)]
mod tests {
    use tidegate_model::fleet::Fleet;

    use super::*;

    #[test]
    fn the_fleet_file_is_right() {
        let names = REGIONS.iter().flat_map(RegionPlan::origins);
        let origins =
            names.enumerate().map(|(n, name)| (name, SocketAddr::from(([127, 0, 0, 1], 9000 + n as u16))));
        let fleet = Fleet::parse(&fleet(&origins.collect()), "fleet").unwrap();
        assert_eq!((fleet.clusters.len(), fleet.edges.len(), fleet.services.len()), (2, 2, 1));
    }
}
