//! Services, and where their requests go.

use std::collections::BTreeMap;

use super::{
    fields,
    health::{Health, health},
    preference::preference,
    routes, scalar,
    span::Span,
    tree::Node,
    walk::Walk,
};
use crate::{
    ClusterName, ServiceName,
    fleet::{Cluster, HostPattern, Policy, Service, UpstreamProtocol},
};

/// What is known of earlier services.
#[derive(Default)]
pub(super) struct Seen {
    hosts: BTreeMap<HostPattern, ServiceName>,
    /// Where a service asks for gRPC health.
    grpc_at: BTreeMap<ServiceName, Span>,
}

impl Seen {
    /// Where each service with a gRPC health check asks for it.
    pub fn grpc_at(&self) -> &BTreeMap<ServiceName, Span> {
        &self.grpc_at
    }
}

pub(super) fn service(
    walk: &mut Walk,
    node: &Node,
    name: &ServiceName,
    at: Span,
    clusters: &BTreeMap<ClusterName, Cluster>,
    seen: &mut Seen,
) -> Option<Service> {
    let mut fields = walk.record(node, at, &fields::SERVICE)?;
    let hosts = walk.required(&mut fields, "hosts", |w, node, _| hosts(w, node, name, seen)).value();
    let preference = walk.required(&mut fields, "clusters", |w, node, _| preference(w, node)).value();
    let Health { check, grpc_at } = walk.optional(&mut fields, "health", health).or_default();
    let retry = walk.optional(&mut fields, "retry", routes::retry).or_default();
    let timeout =
        walk.optional(&mut fields, "timeout", |w, node, _| w.parsed(node, "a time", scalar::duration));
    let priority = walk
        .optional(&mut fields, "priority", |w, node, _| w.integer(node, 0..=255))
        .value()
        .and_then(|number| u8::try_from(number).ok())
        .unwrap_or(0);
    let max_request_body = walk
        .optional(&mut fields, "max_request_body", |w, node, _| w.parsed(node, "a size", scalar::size))
        .value();
    let policy = routes::policy(walk, &Policy::default(), &retry, &timeout);
    let routes = walk
        .optional(&mut fields, "routes", |w, node, _| routes::routes(w, node, preference.as_ref(), &policy))
        .or_default();
    fields.finish();

    let service = Service {
        hosts: hosts?,
        health: check,
        priority,
        max_request_body,
        default: crate::fleet::Action { clusters: preference?, policy },
        routes,
    };
    if let Some(span) = grpc_at {
        seen.grpc_at.insert(name.clone(), span);
        refuse_grpc_over_http1(walk, span, &service, clusters);
    }
    Some(service)
}

fn refuse_grpc_over_http1(
    walk: &mut Walk,
    span: Span,
    service: &Service,
    clusters: &BTreeMap<ClusterName, Cluster>,
) {
    let http1 = |name: &&ClusterName| {
        clusters.get(*name).is_some_and(|cluster| cluster.upstream.protocol == UpstreamProtocol::Http1)
    };
    if let Some(name) = service.actions().flat_map(|action| action.clusters.clusters()).find(http1) {
        let help = Some("`protocol: http2` there, or another check here".to_owned());
        walk.error(span, format!("gRPC needs HTTP/2, and the cluster {name} has `protocol: http1`"), help);
    }
}

fn hosts(walk: &mut Walk, node: &Node, service: &ServiceName, seen: &mut Seen) -> Option<Vec<HostPattern>> {
    let listed = walk.set(node, "host", |w, node| w.parsed(node, "a host", str::parse::<HostPattern>))?;
    for (host, at) in &listed {
        let other = seen.hosts.entry(host.clone()).or_insert_with(|| service.clone());
        if other != service {
            walk.error_at(*at, format!("the service {other} serves the host {host} already"), None);
        }
    }
    Some(listed.into_iter().map(|(host, _)| host).collect())
}
