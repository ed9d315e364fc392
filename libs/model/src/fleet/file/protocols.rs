//! The HTTP version towards clusters in clear text, where no ALPN selects it.

use std::collections::{BTreeMap, BTreeSet};

use super::{span::Span, walk::Walk};
use crate::{
    ClusterName, ServiceName,
    fleet::{Cluster, Service, UpstreamProtocol},
};

/// Sets HTTP/2 for clusters with `protocol: auto` and without TLS whose services all have gRPC health checks: such an
/// endpoint speaks HTTP/2 with prior knowledge, and gRPC requests need it. Where another service uses the cluster, too, the
/// file has to name the version. `grpc_at` has the services that ask for gRPC.
pub(super) fn resolve_auto(
    walk: &mut Walk,
    clusters: &mut BTreeMap<ClusterName, Cluster>,
    services: &BTreeMap<ServiceName, Service>,
    grpc_at: &BTreeMap<ServiceName, Span>,
) {
    let is_open = |cluster: &Cluster| {
        cluster.upstream.protocol == UpstreamProtocol::Auto && cluster.upstream.tls.is_none()
    };
    let mut by_grpc: BTreeSet<&ClusterName> = BTreeSet::new();
    for service in grpc_at.keys().filter_map(|name| services.get(name)) {
        let used = service.clusters().into_iter();
        by_grpc.extend(used.filter(|name| clusters.get(*name).is_some_and(is_open)));
    }
    if by_grpc.is_empty() {
        return;
    }
    let mut by_others: BTreeMap<&ClusterName, &ServiceName> = BTreeMap::new();
    for (name, service) in services.iter().filter(|(name, _)| !grpc_at.contains_key(*name)) {
        let used = service.clusters().into_iter().filter(|cluster| by_grpc.contains(cluster));
        used.for_each(|cluster| _ = by_others.entry(cluster).or_insert(name));
    }
    for (name, at) in grpc_at {
        let Some(service) = services.get(name) else { continue };
        let shared = service
            .clusters()
            .into_iter()
            .find_map(|cluster| by_others.get(cluster).map(|other| (cluster, other)));
        if let Some((cluster, other)) = shared {
            let problem = format!(
                "gRPC needs HTTP/2, and the cluster {cluster} has `protocol: auto` and no TLS while the service {other}, \
                 whose health check is not gRPC, uses it, too"
            );
            let help = format!("`protocol: http2` at clusters.{cluster}, or a cluster of its own for each");
            walk.inside("services", |w| {
                w.inside(name.as_str(), |w| {
                    w.inside("health", |w| w.inside("grpc", |w| w.error(*at, problem, Some(help))));
                });
            });
        }
    }
    for name in by_grpc.into_iter().filter(|name| !by_others.contains_key(name)) {
        if let Some(cluster) = clusters.get_mut(name) {
            cluster.upstream.protocol = UpstreamProtocol::Http2;
        }
    }
}
