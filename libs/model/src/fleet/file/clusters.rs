//! Clusters: where they are and how they are spoken to.

use std::{path::PathBuf, time::Duration};

use super::{
    edges::certificate,
    fields, scalar,
    span::Span,
    tree::{Node, Value},
    walk::Walk,
};
use crate::{
    ClusterName, NetworkName,
    fleet::{
        Address, Cluster, DEFAULT_NETWORK, Endpoint, HostPattern, SpiffeId, Upstream, UpstreamProtocol,
        UpstreamTls,
    },
};

/// Below what common origins close an idle connection after (Node.js and Apache httpd: 5 s).
const IDLE_TIMEOUT: Duration = Duration::from_secs(4);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
const MAX_REQUESTS: u32 = 10_000;

pub(super) fn cluster(walk: &mut Walk, node: &Node, _: &ClusterName, at: Span) -> Option<Cluster> {
    let mut fields = walk.record(node, at, &fields::CLUSTER)?;
    let region = walk
        .required(&mut fields, "region", |w, node, _| w.reference(node, "region", |names| &names.regions))
        .value();
    let endpoints = walk.required(&mut fields, "endpoints", |w, node, _| endpoints(w, node)).value();
    let protocol = walk
        .optional(&mut fields, "protocol", |w, node, _| {
            w.word(
                node,
                &[
                    ("auto", UpstreamProtocol::Auto),
                    ("http1", UpstreamProtocol::Http1),
                    ("http2", UpstreamProtocol::Http2),
                ],
            )
        })
        .or(UpstreamProtocol::Auto);
    let tls = walk.optional(&mut fields, "tls", |w, node, _| tls(w, node));
    let identity = walk
        .optional(&mut fields, "identity", |w, node, _| {
            w.parsed(node, "a SPIFFE ID", |text| SpiffeId::try_from(text.to_owned()))
        })
        .value();
    if let (Some((None, span)), Some(_)) = (tls.given(), &identity) {
        let help = Some("an identity is proved by a certificate: leave `tls: false` out".to_owned());
        walk.error(span, "a cluster with an identity can't be without TLS", help);
    }
    let tls = match (tls.value().flatten(), identity) {
        (Some(tls), identity) => Some(UpstreamTls { identity, ..tls }),
        (None, Some(identity)) => Some(UpstreamTls {
            server_name: None,
            ca: None,
            identity: Some(identity),
            client_certificate: None,
        }),
        (None, None) => None,
    };
    let idle_timeout = walk
        .optional(&mut fields, "idle_timeout", |w, node, _| w.parsed(node, "a time", scalar::duration))
        .or(IDLE_TIMEOUT);
    let connect_timeout = walk
        .optional(&mut fields, "connect_timeout", |w, node, _| w.parsed(node, "a time", scalar::duration))
        .or(CONNECT_TIMEOUT);
    let max_requests =
        walk.optional(&mut fields, "max_requests", |w, node, _| count(w, node)).or(MAX_REQUESTS);
    let capacity = walk.optional(&mut fields, "capacity", |w, node, _| count(w, node)).value();
    fields.finish();
    let upstream = Upstream { protocol, tls, idle_timeout, connect_timeout, max_requests };
    Some(Cluster { region: region?, endpoints: endpoints?, upstream, capacity })
}

fn count(walk: &mut Walk, node: &Node) -> Option<u32> {
    walk.integer(node, 1..=u64::from(u32::MAX)).and_then(|number| u32::try_from(number).ok())
}

fn endpoints(walk: &mut Walk, node: &Node) -> Option<Vec<Endpoint>> {
    // An address is an endpoint once, whatever its network: it is the key of observations.
    let mut networks = Vec::new();
    let addresses = walk.set(node, "endpoint", |w, node| {
        let (address, network) = endpoint(w, node)?;
        networks.push(network);
        Some(address)
    })?;
    Some(
        addresses
            .into_iter()
            .zip(networks)
            .map(|((address, _), network)| Endpoint { address, network })
            .collect(),
    )
}

fn endpoint(walk: &mut Walk, node: &Node) -> Option<(Address, NetworkName)> {
    let network: Option<NetworkName> = DEFAULT_NETWORK.parse().ok();
    let Value::Map(_) = &node.value else {
        let address = walk.parsed(node, "an address or a map with one", str::parse::<Address>)?;
        return Some((address, network?));
    };
    let mut fields = walk.record(node, node.span, &fields::ENDPOINT)?;
    let address = walk
        .required(&mut fields, "address", |w, node, _| w.parsed(node, "an address", str::parse::<Address>))
        .value();
    let network = walk
        .optional(&mut fields, "network", |w, node, _| w.parsed(node, "a network", str::parse::<NetworkName>))
        .value()
        .or(network);
    fields.finish();
    Some((address?, network?))
}

/// `true`, `false` (nothing inside) or a map.
fn tls(walk: &mut Walk, node: &Node) -> Option<Option<UpstreamTls>> {
    let bare = UpstreamTls { server_name: None, ca: None, identity: None, client_certificate: None };
    if let Value::Scalar { .. } | Value::Null = &node.value {
        return walk.boolean(node).map(|on| on.then_some(bare));
    }
    let mut fields = walk.record(node, node.span, &fields::TLS)?;
    let server_name = walk
        .optional(&mut fields, "server_name", |w, node, _| {
            w.parsed(node, "a host name", |text| match text.parse::<HostPattern>() {
                Ok(HostPattern::Exact(name)) => Ok(name),
                _ => Err(format!("{text:?} is not a host name such as gateway.example.com")),
            })
        })
        .value();
    let ca = walk.optional(&mut fields, "ca", |w, node, _| w.text(node)).value().map(PathBuf::from);
    let client_certificate =
        walk.optional(&mut fields, "client_certificate", |w, node, _| certificate(w, node)).value();
    fields.finish();
    Some(Some(UpstreamTls { server_name, ca, client_certificate, ..bare }))
}
