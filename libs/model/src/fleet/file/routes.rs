//! Routes and retry policies.

use std::{collections::BTreeMap, time::Duration};

use super::{
    fields,
    health::request_path,
    preference::preference,
    scalar,
    span::Span,
    suggestion::did_you_mean,
    tree::Node,
    walk::{Field, Walk},
};
use crate::fleet::{Action, Hedge, Policy, Preference, Route, RouteMatch};

/// What a `retry` gives; what it doesn't is inherited.
#[derive(Default)]
pub(super) struct Retry {
    attempts: Option<u8>,
    per_try_timeout: Option<(Duration, Span)>,
    hedge: Option<Hedge>,
    budget_percent: Option<u8>,
}

pub(super) fn retry(walk: &mut Walk, node: &Node, at: Span) -> Option<Retry> {
    let mut fields = walk.record(node, at, &fields::RETRY)?;
    let attempts = walk
        .optional(&mut fields, "attempts", |w, node, _| w.integer(node, 0..=10))
        .value()
        .and_then(|count| u8::try_from(count).ok());
    let per_try_timeout = walk
        .optional(&mut fields, "per_try_timeout", |w, node, _| w.parsed(node, "a time", scalar::duration));
    let hedge = walk
        .optional(&mut fields, "hedge_after", |w, node, _| {
            w.parsed(node, "auto, off or a time", |text| match text {
                "auto" => Ok(Hedge::Auto),
                "off" => Ok(Hedge::Off),
                time => scalar::duration(time)
                    .map(Hedge::After)
                    .map_err(|_| format!("{time:?} is not auto, off or a time such as 50ms")),
            })
        })
        .value();
    let budget_percent =
        walk.optional(&mut fields, "budget", |w, node, _| w.parsed(node, "a share", scalar::percent)).value();
    fields.finish();
    let per_try_timeout = per_try_timeout.given().map(|(time, span)| (*time, span));
    Some(Retry { attempts, per_try_timeout, hedge, budget_percent })
}

/// `base`, with what `retry` and `timeout` give in its place.
pub(super) fn policy(walk: &mut Walk, base: &Policy, retry: &Retry, timeout: &Field<Duration>) -> Policy {
    let given = timeout.given().map(|(time, _)| *time);
    let whole = given.unwrap_or(base.timeout);
    // A timeout that could not be read would only make a second, false error.
    let comparable = given.is_some() || timeout.is_absent();
    if let Some((per_try, span)) = retry.per_try_timeout
        && comparable
        && per_try > whole
    {
        let help = Some(format!("at most the whole timeout of {whole:?}"));
        walk.error(span, format!("one attempt of {per_try:?} is longer than the whole timeout"), help);
    }
    Policy {
        timeout: whole,
        attempts: retry.attempts.unwrap_or(base.attempts),
        per_try_timeout: retry.per_try_timeout.map(|(time, _)| time).or(base.per_try_timeout),
        hedge: retry.hedge.unwrap_or(base.hedge),
        budget_percent: retry.budget_percent.unwrap_or(base.budget_percent),
    }
}

/// The routes of a service whose own clusters and policy are `preference` and `base`.
pub(super) fn routes(
    walk: &mut Walk,
    node: &Node,
    preference: Option<&Preference>,
    base: &Policy,
) -> Option<Vec<Route>> {
    let listed = walk.list(node, |w, node| route(w, node, preference, base))?;
    for (index, (Read { matches, route }, at)) in listed.iter().enumerate() {
        if *matches == RouteMatch::default() && route.is_some() && index + 1 < listed.len() {
            let help = Some("give it a path, methods or headers, or put it last".to_owned());
            walk.error_at(*at, "this route takes every request, so those after it never get one", help);
        }
        if let Some((_, earlier)) = listed[..index].iter().find(|(earlier, _)| earlier.matches == *matches) {
            let line = earlier.span.line;
            walk.error_at(
                *at,
                format!("the route on line {line} takes exactly these requests already"),
                None,
            );
        }
    }
    Some(listed.into_iter().filter_map(|(read, _)| read.route).collect())
}

/// A route as far as it could be read.
struct Read {
    matches: RouteMatch,
    /// Absent when a mistake in it, or in the service's own clusters, leaves nothing to do with its requests.
    route: Option<Route>,
}

fn route(walk: &mut Walk, node: &Node, inherited: Option<&Preference>, base: &Policy) -> Option<Read> {
    let mut fields = walk.record(node, node.span, &fields::ROUTE)?;
    let path_prefix =
        walk.optional(&mut fields, "path_prefix", |w, node, _| w.parsed(node, "a path", plain_path));
    let path = walk.optional(&mut fields, "path", |w, node, _| w.parsed(node, "a path", plain_path));
    if let (Some(_), Some((_, span))) = (path_prefix.given(), path.given()) {
        walk.error(span, "a route has `path` or `path_prefix`, not both", None);
    }
    let methods = walk.optional(&mut fields, "methods", |w, node, _| {
        let listed = w.set(node, "method", |w, node| w.parsed(node, "a method", method))?;
        Some(listed.into_iter().map(|(method, _)| method).collect())
    });
    let headers = walk.optional(&mut fields, "headers", |w, node, _| headers(w, node));
    let clusters = walk.optional(&mut fields, "clusters", |w, node, _| preference(w, node));
    let timeout =
        walk.optional(&mut fields, "timeout", |w, node, _| w.parsed(node, "a time", scalar::duration));
    let retry = walk.optional(&mut fields, "retry", retry).or_default();
    fields.finish();
    let policy = policy(walk, base, &retry, &timeout);

    let unread = [
        matches!(path_prefix, Field::Wrong),
        matches!(path, Field::Wrong),
        matches!(methods, Field::Wrong),
        matches!(headers, Field::Wrong),
    ];
    if unread.contains(&true) {
        return None;
    }
    let matches = RouteMatch {
        path_prefix: path_prefix.value(),
        path: path.value(),
        methods: methods.or_default(),
        headers: headers.or_default(),
    };
    let clusters = match clusters {
        Field::Given(clusters, _) => Some(clusters),
        Field::Absent => inherited.cloned(),
        Field::Wrong => None,
    };
    let route =
        clusters.map(|clusters| Route { matches: matches.clone(), action: Action { clusters, policy } });
    Some(Read { matches, route })
}

/// A path without a query: routes don't look at it.
fn plain_path(text: &str) -> Result<String, String> {
    if text.contains('?') {
        return Err("routes look at the path only, not at the query".to_owned());
    }
    request_path(text)
}

fn is_token(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b))
}

fn method(text: &str) -> Result<String, String> {
    const COMMON: &[&str] = &["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "CONNECT", "TRACE"];
    if !is_token(text) {
        return Err(format!("{text:?} is not a method such as GET"));
    }
    if COMMON.contains(&text) || text.bytes().all(|b| !b.is_ascii_lowercase()) {
        return Ok(text.to_owned());
    }
    let help = did_you_mean(text, COMMON).unwrap_or_else(|| "methods are in capitals".to_owned());
    Err(format!("{text:?} is not a method: {help}"))
}

fn headers(walk: &mut Walk, node: &Node) -> Option<BTreeMap<String, String>> {
    let given: BTreeMap<HeaderName, String> = walk.map(node, |w, node, _, _| {
        w.parsed(node, "text", |text| {
            // A value never has blanks around it once it was parsed, so such a route would match nothing.
            let right = text.bytes().all(|b| b == b'\t' || (b' '..=b'~').contains(&b)) && text.trim() == text;
            if right { Ok(text.to_owned()) } else { Err(format!("{text:?} can't be the value of a header")) }
        })
    })?;
    Some(given.into_iter().map(|(name, value)| (name.0, value)).collect())
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct HeaderName(String);

impl std::str::FromStr for HeaderName {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        if is_token(text) {
            Ok(HeaderName(text.to_ascii_lowercase()))
        } else {
            Err(format!("{text:?} is not the name of a header"))
        }
    }
}
