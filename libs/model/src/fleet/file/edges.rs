//! Regions, edges and listeners.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
};

use super::{
    fields, scalar,
    span::Span,
    tree::{Node, Value},
    walk::Walk,
};
use crate::{
    EdgeName, ListenerName, NetworkName, RegionName, SigningPublicKey,
    fleet::{
        CertificateFiles, Cidr, DEFAULT_NETWORK, Edge, EscapedSlashPolicy, HealthEndpoints, Listener,
        ListenerLimits, ListenerProtocol, PathNormalization, Region, UnderscorePolicy,
    },
    unit::Location,
};

pub(super) fn region(walk: &mut Walk, node: &Node, name: &RegionName, at: Span) -> Option<Region> {
    let mut fields = walk.record(node, at, &fields::REGION)?;
    let location = walk.optional(&mut fields, "location", |w, node, _| location(w, node)).value();
    let latency = walk
        .optional(&mut fields, "latency", |w, node, _| {
            w.map(node, |w, node, other: &RegionName, at| {
                if other == name {
                    w.error(at, "a region has no latency to itself", None);
                }
                w.known(other.as_str(), at, "region", |names| &names.regions);
                w.parsed(node, "a time", scalar::duration)
            })
        })
        .or_default();
    let signing_keys = walk
        .optional(&mut fields, "signing_keys", |w, node, _| {
            let listed =
                w.set(node, "key", |w, node| w.parsed(node, "a public key", str::parse::<SigningPublicKey>))?;
            Some(listed.into_iter().map(|(key, _)| key).collect())
        })
        .or_default();
    fields.finish();
    Some(Region { location, latency, signing_keys })
}

fn location(walk: &mut Walk, node: &Node) -> Option<Location> {
    let items = walk.list(node, |w, node| {
        w.parsed(node, "degrees", |text| {
            text.parse::<f64>().map_err(|_| format!("{text:?} is not a number of degrees"))
        })
    })?;
    if let Value::List(written) = &node.value
        && written.len() > items.len()
    {
        return None;
    }
    let place = match items.as_slice() {
        [(latitude, _), (longitude, _)] => Location::from_degrees(*latitude, *longitude),
        _ => None,
    };
    if place.is_none() {
        let help = "latitude from -90 to 90 and longitude from -180 to 180, such as [53.3, -6.3]";
        walk.error(node.span, "this is not a place on Earth", Some(help.to_owned()));
    }
    place
}

pub(super) fn edge(
    walk: &mut Walk,
    node: &Node,
    _: &EdgeName,
    at: Span,
    all: &BTreeMap<ListenerName, Listener>,
) -> Option<Edge> {
    let mut fields = walk.record(node, at, &fields::EDGE)?;
    let region = walk
        .required(&mut fields, "region", |w, node, _| w.reference(node, "region", |names| &names.regions))
        .value();
    let address = walk
        .optional(&mut fields, "address", |w, node, _| {
            w.parsed(node, "an IP address", |text| {
                text.parse::<IpAddr>()
                    .map_err(|_| format!("{text:?} is not an IP address such as 203.0.113.10"))
            })
        })
        .value();
    let listeners = walk
        .required(&mut fields, "listeners", |w, node, _| {
            let listed = w.set(node, "listener", |w, node| {
                w.reference::<ListenerName>(node, "listener", |names| &names.listeners)
            })?;
            let mut bound: BTreeMap<SocketAddr, &ListenerName> = BTreeMap::new();
            for (name, at) in &listed {
                let Some(bind) = all.get(name).map(|listener| listener.bind) else { continue };
                let taken = if bind.port() == 0 { None } else { bound.insert(bind, name) };
                if let Some(other) = taken.filter(|other| *other != name) {
                    w.error_at(*at, format!("the listeners {other} and {name} both bind {bind}"), None);
                }
            }
            Some(listed.into_iter().map(|(name, _)| name).collect())
        })
        .value();
    let networks = walk
        .optional(&mut fields, "networks", |w, node, _| {
            let listed =
                w.set(node, "network", |w, node| w.parsed(node, "a network", str::parse::<NetworkName>))?;
            Some(listed.into_iter().map(|(name, _)| name).collect())
        })
        .value()
        .unwrap_or_else(|| DEFAULT_NETWORK.parse().into_iter().collect());
    fields.finish();
    Some(Edge { region: region?, address, listeners: listeners?, networks })
}

pub(super) fn listener(walk: &mut Walk, node: &Node, _: &ListenerName, at: Span) -> Option<Listener> {
    #[derive(Clone, Copy, PartialEq)]
    enum Spoken {
        Http,
        Https,
    }
    let mut fields = walk.record(node, at, &fields::LISTENER)?;
    let bind = walk
        .required(&mut fields, "bind", |w, node, _| {
            w.parsed(node, "an IP address with a port", |text| {
                text.parse::<SocketAddr>()
                    .map_err(|_| format!("{text:?} is not an IP address with a port such as 0.0.0.0:443"))
            })
        })
        .value();
    let spoken = walk
        .required(&mut fields, "protocol", |w, node, _| {
            w.word(node, &[("http", Spoken::Http), ("https", Spoken::Https)])
        })
        .value();
    let certificates = walk.optional(&mut fields, "certificates", |w, node, _| {
        let listed = w.list(node, certificate)?;
        Some(listed.into_iter().map(|(files, _)| files).collect::<Vec<_>>())
    });
    let limits: ListenerLimits = walk.optional(&mut fields, "limits", limits).or_default();
    let underscores_in_headers = walk
        .optional(&mut fields, "underscores_in_headers", |w, node, _| {
            let words = [
                ("drop", UnderscorePolicy::Drop),
                ("refuse", UnderscorePolicy::Refuse),
                ("pass", UnderscorePolicy::Pass),
            ];
            w.word(node, &words)
        })
        .or_default();
    let health_endpoints = walk
        .optional(&mut fields, "health_endpoints", |w, node, _| {
            let words =
                [("on", HealthEndpoints::On), ("edge", HealthEndpoints::Edge), ("off", HealthEndpoints::Off)];
            w.word(node, &words)
        })
        .or_default();
    let debug_from = walk
        .optional(&mut fields, "debug_from", |w, node, _| {
            let listed = w.set(node, "network", |w, node| w.parsed(node, "a network", str::parse::<Cidr>))?;
            Some(listed.into_iter().map(|(network, _)| network).collect())
        })
        .or_default();
    let path_normalization = walk
        .optional(&mut fields, "path_normalization", |w, node, _| {
            let words =
                [("normalize", PathNormalization::Normalize), ("as_received", PathNormalization::AsReceived)];
            w.word(node, &words)
        })
        .or_default();
    let escaped_slashes = walk.optional(&mut fields, "escaped_slashes", |w, node, _| {
        let words = [
            ("keep", EscapedSlashPolicy::Keep),
            ("refuse", EscapedSlashPolicy::Refuse),
            ("decode", EscapedSlashPolicy::Decode),
        ];
        w.word(node, &words)
    });
    let merge_slashes = walk.optional(&mut fields, "merge_slashes", |w, node, _| w.boolean(node));
    if path_normalization == PathNormalization::AsReceived {
        let given =
            [escaped_slashes.given().map(|(_, span)| span), merge_slashes.given().map(|(_, span)| span)];
        for span in given.into_iter().flatten() {
            walk.error(span, "paths are forwarded as received: this changes nothing", None);
        }
    }
    let limits = ListenerLimits {
        underscores_in_headers,
        path_normalization,
        escaped_slashes: escaped_slashes.or_default(),
        merge_slashes: merge_slashes.value().unwrap_or(true),
        health_endpoints,
        debug_from,
        ..limits
    };
    match (spoken, certificates.given()) {
        (Some(Spoken::Http), Some((_, span))) => {
            let help = Some("`protocol: https` makes use of certificates".to_owned());
            walk.error(span, "a listener for plain http has no certificates", help);
        }
        (Some(Spoken::Https), None) if certificates.is_absent() => {
            let help = Some("certificates: [{ chain: tls/site.crt, key: tls/site.key }]".to_owned());
            walk.error(at, "a listener for https needs certificates", help);
        }
        (Some(Spoken::Https), Some((list, span))) if list.is_empty() => {
            walk.error(span, "a listener for https needs at least one certificate", None);
        }
        _ => {}
    }
    fields.finish();
    let protocol = match spoken? {
        Spoken::Http => ListenerProtocol::Http,
        Spoken::Https => ListenerProtocol::Https { certificates: certificates.value()? },
    };
    Some(Listener { bind: bind?, protocol, limits })
}

fn limits(walk: &mut Walk, node: &Node, at: Span) -> Option<ListenerLimits> {
    let default = ListenerLimits::default();
    let mut fields = walk.record(node, at, &fields::LIMITS)?;
    let head_bytes = walk
        .optional(&mut fields, "head_bytes", |w, node, _| {
            w.parsed(node, "a size", |text| {
                let bytes = scalar::size(text)?;
                match u32::try_from(bytes) {
                    Ok(bytes @ 1024..=16_777_216) => Ok(bytes),
                    _ => Err(format!("{text} is not within 1KiB and 16MiB")),
                }
            })
        })
        .or(default.head_bytes);
    let header_count = walk
        .optional(&mut fields, "header_count", |w, node, _| w.integer(node, 1..=256))
        .value()
        .and_then(|count| u16::try_from(count).ok())
        .unwrap_or(default.header_count);
    let head_timeout = walk
        .optional(&mut fields, "head_timeout", |w, node, _| w.parsed(node, "a time", scalar::duration))
        .or(default.head_timeout);
    let idle_timeout = walk
        .optional(&mut fields, "idle_timeout", |w, node, _| w.parsed(node, "a time", scalar::duration))
        .or(default.idle_timeout);
    let max_connections = walk
        .optional(&mut fields, "max_connections", |w, node, _| w.integer(node, 1..=u64::from(u32::MAX)))
        .value()
        .and_then(|count| u32::try_from(count).ok())
        .unwrap_or(default.max_connections);
    fields.finish();
    Some(ListenerLimits { head_bytes, header_count, head_timeout, idle_timeout, max_connections, ..default })
}

/// A certificate and its key. Paths are kept as written.
pub(super) fn certificate(walk: &mut Walk, node: &Node) -> Option<CertificateFiles> {
    let mut fields = walk.record(node, node.span, &fields::CERTIFICATE)?;
    let chain = walk.required(&mut fields, "chain", |w, node, _| w.text(node)).value();
    let key = walk.required(&mut fields, "key", |w, node, _| w.text(node)).value();
    fields.finish();
    Some(CertificateFiles { chain: PathBuf::from(chain?), key: PathBuf::from(key?) })
}
