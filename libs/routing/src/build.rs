//! Fleets for tests, with good defaults.

use tidegate_model::{
    fleet::{
        Action, Cluster, Edge, Endpoint, HostPattern, Policy, Preference, Service, Upstream, UpstreamProtocol,
    },
    health::HealthCheck,
};

/// A cluster with two endpoints in 10.`net`.0.0.
pub(crate) fn cluster(region: &str, net: u8, capacity: Option<u32>) -> Cluster {
    let endpoint = |host: u8| Endpoint {
        address: format!("10.{net}.0.{host}:80").parse().unwrap(),
        network: "internet".parse().unwrap(),
    };
    Cluster {
        region: region.parse().unwrap(),
        endpoints: vec![endpoint(1), endpoint(2)],
        upstream: Upstream {
            protocol: UpstreamProtocol::Auto,
            tls: None,
            idle_timeout: std::time::Duration::from_secs(60),
            connect_timeout: std::time::Duration::from_secs(1),
            max_requests: 1000,
        },
        capacity,
    }
}

/// An edge.
pub(crate) fn edge(region: &str) -> Edge {
    Edge {
        region: region.parse().unwrap(),
        address: None,
        listeners: Vec::new(),
        networks: ["internet".parse().unwrap()].into(),
    }
}

/// A service with one action.
pub(crate) fn service(clusters: Preference) -> Service {
    Service {
        hosts: vec![HostPattern::Any],
        health: HealthCheck::tcp(),
        priority: 0,
        max_request_body: None,
        default: Action { clusters, policy: Policy::default() },
        routes: Vec::new(),
    }
}

/// A service that tries clusters in this order.
pub(crate) fn ordered(clusters: &[&str]) -> Service {
    service(Preference::Ordered(clusters.iter().map(|name| name.parse().unwrap()).collect()))
}
