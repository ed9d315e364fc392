//! Warnings: what is valid in a fleet file and probably not meant.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use super::{
    error::FleetProblem,
    span::Span,
    tree::{Node, Value},
};
use crate::{
    ClusterName, NetworkName, RegionName, ServiceName,
    fleet::{Action, Fleet, Hedge, Preference, Service},
    health::Probe,
};

/// All warnings about `fleet`, which was read from the tree `root`.
pub(super) fn warnings(fleet: &Fleet, root: &Node) -> Vec<FleetProblem> {
    let mut found = Warnings { root, found: Vec::new() };
    unused(fleet, &mut found);
    lacking_capacity(fleet, &mut found);
    for (name, service) in &fleet.services {
        lonely(fleet, name, service, &mut found);
        unchecked(name, service, &mut found);
        endless_attempts(name, service, &mut found);
    }
    unlocated(fleet, &mut found);
    found.found
}

struct Warnings<'a> {
    root: &'a Node,
    found: Vec<FleetProblem>,
}

impl Warnings<'_> {
    /// Adds a warning about the field `path`, or about the nearest field above it that the file has.
    fn add(&mut self, path: &str, problem: impl Into<String>, help: impl Into<String>) {
        let span = span_of(self.root, path);
        self.found.push(FleetProblem::new(span, path, problem.into(), Some(help.into())));
    }

    /// Whether the file has the field `path`.
    fn has(&self, path: &str) -> bool {
        let mut node = self.root;
        steps(path).all(|step| match child(node, step) {
            Some((below, _)) => {
                node = below;
                true
            }
            None => false,
        })
    }
}

/// The steps of a path: `services`, `shop`, `routes`, `[0]`. Names have neither dots nor brackets.
fn steps(path: &str) -> impl Iterator<Item = &str> {
    path.split('.').flat_map(|part| {
        let (name, index) = part.split_at(part.find('[').unwrap_or(part.len()));
        [name, index].into_iter().filter(|step| !step.is_empty())
    })
}

/// The node one step below, and the position that stands for it.
fn child<'t>(node: &'t Node, step: &str) -> Option<(&'t Node, Span)> {
    match &node.value {
        Value::Map(entries) => {
            let entry = entries.iter().find(|entry| entry.key == step)?;
            // A map may go over many lines, its name is on one.
            let is_map = matches!(entry.value.value, Value::Map(_) | Value::Null);
            Some((&entry.value, if is_map { entry.key_span } else { entry.value.span }))
        }
        Value::List(items) => {
            let index: usize = step.strip_prefix('[')?.strip_suffix(']')?.parse().ok()?;
            items.get(index).map(|item| (item, item.span))
        }
        Value::Scalar { .. } | Value::Null => None,
    }
}

fn span_of(root: &Node, path: &str) -> Span {
    let (mut node, mut span) = (root, root.span);
    for step in steps(path) {
        let Some((below, at)) = child(node, step) else { break };
        (node, span) = (below, at);
    }
    span
}

/// The actions of a service, each with the path of its clusters.
fn actions<'a>(name: &'a ServiceName, service: &'a Service) -> impl Iterator<Item = (String, &'a Action)> {
    let routes = service.routes.iter().enumerate();
    let routes =
        routes.map(move |(index, route)| (format!("services.{name}.routes[{index}]"), &route.action));
    std::iter::once((format!("services.{name}"), &service.default)).chain(routes)
}

/// Clusters, listeners and networks that nothing uses, and a fleet without an edge.
fn unused(fleet: &Fleet, found: &mut Warnings<'_>) {
    let used: BTreeSet<&ClusterName> = fleet.services.values().flat_map(Service::clusters).collect();
    for name in fleet.clusters.keys().filter(|name| !used.contains(name)) {
        let help = format!("name it in the `clusters` of a service, or leave {name} out");
        found.add(&format!("clusters.{name}"), "no service uses this cluster, so it is not probed", help);
    }
    let opened: BTreeSet<_> = fleet.edges.values().flat_map(|edge| &edge.listeners).collect();
    for name in fleet.listeners.keys().filter(|name| !opened.contains(name)) {
        let help = format!("name it in the `listeners` of an edge, or leave {name} out");
        found.add(&format!("listeners.{name}"), "no edge has this listener", help);
    }
    if fleet.edges.is_empty() && !fleet.services.is_empty() {
        let help = "edges: { edge-1: { region: …, listeners: […] } }";
        found.add("services", "the fleet has services and no edge that would serve them", help);
        return;
    }
    let reached: BTreeSet<&NetworkName> = fleet.edges.values().flat_map(|edge| &edge.networks).collect();
    for name in used {
        let Some(cluster) = fleet.clusters.get(name) else { continue };
        for (index, endpoint) in cluster.endpoints.iter().enumerate() {
            if !reached.contains(&endpoint.network) {
                let network = &endpoint.network;
                found.add(
                    &format!("clusters.{name}.endpoints[{index}]"),
                    format!(
                        "no edge is on the network {network}, so no edge sends requests to this endpoint"
                    ),
                    format!("name {network} in the `networks` of an edge"),
                );
            }
        }
    }
}

/// Services that nothing can take over from.
fn lonely(fleet: &Fleet, name: &ServiceName, service: &Service, found: &mut Warnings<'_>) {
    let mut reported: Vec<&Preference> = Vec::new();
    for (path, action) in actions(name, service) {
        let clusters = action.clusters.clusters();
        let [only] = clusters[..] else { continue };
        // A route that inherits its clusters is not worth a second warning.
        if reported.contains(&&action.clusters) {
            continue;
        }
        reported.push(&action.clusters);
        let endpoints = fleet.clusters.get(only).map_or(0, |cluster| cluster.endpoints.len());
        let problem = if endpoints == 1 {
            format!("{only} is the only cluster, with one endpoint: when that fails, nothing answers")
        } else {
            format!("{only} is the only cluster: when it fails, nothing answers")
        };
        found.add(
            &format!("{path}.clusters"),
            problem,
            "a second cluster, best in another region, to fail over to",
        );
    }
}

/// A service whose health check the file does not give.
fn unchecked(name: &ServiceName, service: &Service, found: &mut Warnings<'_>) {
    let path = format!("services.{name}.health");
    if service.health.probe == Probe::Tcp && !found.has(&format!("{path}.tcp")) {
        found.add(
            &path,
            "the health check is only a TCP connection: an endpoint that answers every request with an error stays up",
            "health: { path: /healthz }, or { tcp: true } if a connection is enough",
        );
    }
}

/// Clusters without a capacity beside others that have one.
fn lacking_capacity(fleet: &Fleet, found: &mut Warnings<'_>) {
    let mut beside: BTreeMap<&ClusterName, (&ServiceName, &ClusterName)> = BTreeMap::new();
    for (name, service) in &fleet.services {
        for action in service.actions() {
            let capacity =
                |cluster: &ClusterName| fleet.clusters.get(cluster).and_then(|known| known.capacity);
            let (known, unknown): (Vec<_>, Vec<_>) =
                action.clusters.clusters().into_iter().partition(|cluster| capacity(cluster).is_some());
            if let Some(first) = known.first() {
                unknown.into_iter().for_each(|cluster| _ = beside.entry(cluster).or_insert((name, *first)));
            }
        }
    }
    for (cluster, (service, other)) in beside {
        found.add(
            &format!("clusters.{cluster}"),
            format!(
                "this cluster has no capacity, and {other} of the same service {service} has one: whatever the others \
                 can't take comes here without a limit"
            ),
            "capacity: the requests per second that it can take, at all clusters of a service or at none",
        );
    }
}

/// Limits on attempts that never apply, because the whole request ends before.
fn endless_attempts(name: &ServiceName, service: &Service, found: &mut Warnings<'_>) {
    for (path, Action { policy, .. }) in actions(name, service) {
        let whole = policy.timeout;
        // The parser refuses it where both are given together; a route may inherit one of them.
        if let Some(per_try) = policy.per_try_timeout.filter(|per_try| *per_try > whole) {
            found.add(
                &format!("{path}.timeout"),
                format!("the inherited per_try_timeout of {per_try:?} is above the timeout of {whole:?}, so it never applies"),
                format!("retry: {{ per_try_timeout: {} }} for this route", written(whole / 2)),
            );
        }
        if let Hedge::After(delay) = policy.hedge
            && delay >= whole
        {
            found.add(
                &format!("{path}.retry.hedge_after"),
                format!("hedge_after of {delay:?} is not below the timeout of {whole:?}, so nothing is ever hedged"),
                format!("hedge_after: {}, auto or off", written(whole / 2)),
            );
        }
    }
}

/// A duration in the form of the file.
fn written(time: Duration) -> String {
    format!("{}ms", time.as_millis())
}

/// Regions whose distance from an edge is unknown, where requests go to the nearest cluster.
fn unlocated(fleet: &Fleet, found: &mut Warnings<'_>) {
    let edges: BTreeSet<&RegionName> = fleet.edges.values().map(|edge| &edge.region).collect();
    let mut unknown: BTreeMap<&RegionName, &ServiceName> = BTreeMap::new();
    for (name, service) in &fleet.services {
        for action in service.actions() {
            let Preference::Nearest(listed) = &action.clusters else { continue };
            let regions: BTreeSet<&RegionName> = listed
                .iter()
                .filter_map(|cluster| fleet.clusters.get(cluster))
                .map(|known| &known.region)
                .collect();
            if regions.len() < 2 {
                continue;
            }
            for (edge, region) in
                edges.iter().flat_map(|edge| regions.iter().map(move |region| (*edge, *region)))
            {
                for lacking in without_distance(fleet, edge, region) {
                    unknown.entry(lacking).or_insert(name);
                }
            }
        }
    }
    for (region, service) in unknown {
        found.add(
            &format!("regions.{region}"),
            format!("this region has no location, so the service {service} can't tell what is nearest to or from it"),
            "location: [latitude, longitude], or `latency` to the other regions",
        );
    }
}

/// The regions without a location, if the proximity of two is unknown for that reason.
fn without_distance<'a>(fleet: &'a Fleet, from: &'a RegionName, to: &'a RegionName) -> Vec<&'a RegionName> {
    let region = |name: &RegionName| fleet.regions.get(name);
    let has_latency = |from: &RegionName, to: &RegionName| {
        region(from).is_some_and(|region| region.latency.contains_key(to))
    };
    if from == to || has_latency(from, to) || has_latency(to, from) {
        return Vec::new();
    }
    let is_unlocated = |name: &&RegionName| region(name).is_none_or(|region| region.location.is_none());
    [from, to].into_iter().filter(is_unlocated).collect()
}

#[cfg(test)]
mod tests;
