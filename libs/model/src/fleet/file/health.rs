//! Health checks.

use std::time::Duration;

use super::{
    fields, scalar,
    span::Span,
    tree::{Node, Value},
    walk::{Field, Walk},
};
use crate::{
    fleet::HostPattern,
    health::{HealthCheck, Probe},
};

/// What passes where nothing is said: any success.
const SUCCESS: (u16, u16) = (200, 299);

/// A check, and where it asks for gRPC, so that a cluster that can't answer it is found.
pub(super) struct Health {
    pub check: HealthCheck,
    pub grpc_at: Option<Span>,
}

impl Default for Health {
    fn default() -> Self {
        Health { check: HealthCheck::tcp(), grpc_at: None }
    }
}

pub(super) fn health(walk: &mut Walk, node: &Node, at: Span) -> Option<Health> {
    let default = HealthCheck::tcp();
    let mut fields = walk.record(node, at, &fields::HEALTH)?;
    let path = walk.optional(&mut fields, "path", |w, node, _| w.parsed(node, "a path", request_path));
    let host = walk.optional(&mut fields, "host", |w, node, _| {
        w.parsed(node, "a host", |text| match text.rsplit_once(':') {
            Some((name, port)) if port.parse::<u16>().is_ok() => exact_host(name).map(|_| text.to_owned()),
            _ => exact_host(text),
        })
    });
    let statuses = walk.optional(&mut fields, "expect_status", |w, node, _| statuses(w, node));
    let body = walk.optional(&mut fields, "expect_body", |w, node, _| w.text(node));
    let grpc = walk.optional(&mut fields, "grpc", |w, node, _| {
        if let Value::Scalar { text, plain: true } = &node.value
            && text == "true"
        {
            return Some(String::new());
        }
        w.parsed(node, "true or a service's name", |text| match text {
            "" | "false" => Err("`grpc` is true or the name of a gRPC service".to_owned()),
            name => Ok(name.to_owned()),
        })
    });
    let tcp = walk.optional(&mut fields, "tcp", |w, node, _| match w.boolean(node)? {
        true => Some(()),
        false => {
            let help = Some("leave it out, and give `path` or `grpc`".to_owned());
            w.error(node.span, "`tcp` can only be true", help);
            None
        }
    });
    one_kind(walk, &path, &grpc, &tcp);
    if path.is_absent() {
        for (name, span) in [
            ("host", host.given().map(|(_, span)| span)),
            ("expect_status", statuses.given().map(|(_, span)| span)),
            ("expect_body", body.given().map(|(_, span)| span)),
        ] {
            if let Some(span) = span {
                walk.error(span, format!("`{name}` means nothing without `path`"), None);
            }
        }
    }

    let interval =
        walk.optional(&mut fields, "interval", |w, node, _| w.parsed(node, "a time", probe_interval));
    let timeout =
        walk.optional(&mut fields, "timeout", |w, node, _| w.parsed(node, "a time", scalar::duration));
    if let Some((timeout, span)) = timeout.given() {
        let interval = match &interval {
            Field::Given(interval, _) => Some(*interval),
            Field::Absent => Some(default.interval),
            Field::Wrong => None,
        };
        if let Some(interval) = interval.filter(|interval| timeout > interval) {
            let help = Some(format!("at most {interval:?}, or a longer interval"));
            walk.error(span, format!("a timeout of {timeout:?} is longer than the interval"), help);
        }
    }
    let unhealthy_after = run(walk, &mut fields, "unhealthy_after").unwrap_or(default.unhealthy_after);
    let healthy_after = run(walk, &mut fields, "healthy_after").unwrap_or(default.healthy_after);
    fields.finish();

    let grpc_at = grpc.given().map(|(_, span)| span);
    let probe = match (path.value(), grpc.value()) {
        (Some(path), _) => Probe::Http {
            path,
            host: host.value(),
            expected_status: statuses.value().unwrap_or_else(|| vec![SUCCESS]),
            expected_body: body.value(),
        },
        (None, Some(service)) => Probe::Grpc { service },
        (None, None) => Probe::Tcp,
    };
    let interval = interval.or(default.interval);
    let timeout = timeout.or(default.timeout.min(interval * 4 / 5));
    Some(Health { check: HealthCheck { probe, interval, timeout, unhealthy_after, healthy_after }, grpc_at })
}

/// Refuses a check that asks in two ways.
fn one_kind(walk: &mut Walk, path: &Field<String>, grpc: &Field<String>, tcp: &Field<()>) {
    let mut kinds: Vec<(Span, &str)> = [
        path.given().map(|(_, span)| (span, "path")),
        grpc.given().map(|(_, span)| (span, "grpc")),
        tcp.given().map(|(_, span)| (span, "tcp")),
    ]
    .into_iter()
    .flatten()
    .collect();
    kinds.sort();
    if let [(_, first), (span, second), ..] = kinds.as_slice() {
        let help = Some("a check has one of `path`, `grpc` and `tcp`".to_owned());
        walk.error(*span, format!("a check can't have both `{first}` and `{second}`"), help);
    }
}

fn run(walk: &mut Walk, fields: &mut super::walk::Fields<'_>, name: &'static str) -> Option<u16> {
    let count = walk.optional(fields, name, |w, node, _| w.integer(node, 1..=1000)).value()?;
    u16::try_from(count).ok()
}

fn probe_interval(text: &str) -> Result<Duration, String> {
    let interval = scalar::duration(text)?;
    if interval < Duration::from_millis(10) {
        return Err(format!("{text} is too short: an endpoint is probed at most every 10ms"));
    }
    Ok(interval)
}

/// A request's path: from `/`, with nothing in it that would end a request line.
pub(super) fn request_path(text: &str) -> Result<String, String> {
    if !text.starts_with('/') {
        return Err(format!("{text:?} does not begin with '/'"));
    }
    match text.chars().find(|c| !c.is_ascii_graphic() || *c == '#') {
        Some(bad) => Err(format!("a path can't hold {bad:?}: write it percent-encoded")),
        None => Ok(text.to_owned()),
    }
}

fn exact_host(text: &str) -> Result<String, String> {
    match text.parse::<HostPattern>() {
        Ok(HostPattern::Exact(name)) => Ok(name),
        _ => Err(format!("{text:?} is not a host such as shop.example.com")),
    }
}

fn statuses(walk: &mut Walk, node: &Node) -> Option<Vec<(u16, u16)>> {
    let listed = walk.list(node, |w, node| w.parsed(node, "a status or a range of them", status_range))?;
    if let Value::List(items) = &node.value
        && items.is_empty()
    {
        walk.error(node.span, "no status would pass", None);
        return None;
    }
    Some(listed.into_iter().map(|(range, _)| range).collect())
}

fn status_range(text: &str) -> Result<(u16, u16), String> {
    let wrong = || format!("{text:?} is not a status such as 200 or a range such as 200-299");
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let status = |text: &str| {
        let number = text.trim().parse::<u16>().map_err(|_| wrong())?;
        if (100..=599).contains(&number) { Ok(number) } else { Err(wrong()) }
    };
    let (first, last) = (status(first)?, status(last)?);
    if first > last { Err(wrong()) } else { Ok((first, last)) }
}
