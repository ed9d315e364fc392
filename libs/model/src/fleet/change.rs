//! The difference between two fleets by meaning: which regions, clusters, edges, listeners and services are added, removed or
//! changed, and how.

use std::{collections::BTreeMap, fmt, fmt::Write as _};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Action, Cluster, Edge, Fleet, Hedge, Policy, Preference, Region, RouteMatch, Service};

/// A kind of object of a fleet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FleetObject {
    /// A region.
    Region,
    /// A workload cluster.
    Cluster,
    /// An edge.
    Edge,
    /// A listener.
    Listener,
    /// A service.
    Service,
}

/// What happened to an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ObjectChange {
    /// It is new.
    Added,
    /// It is gone.
    Removed,
    /// It is different.
    Changed,
}

/// The change of one object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FleetChange {
    /// Its kind.
    pub object: FleetObject,
    /// Its name.
    pub name: String,
    /// What happened to it.
    pub change: ObjectChange,
    /// What is different, one sentence each; for a new object, what it is. Empty for one that is gone.
    pub details: Vec<String>,
}

/// The changes from `before` to `after`; empty only if the fleets are equal.
pub fn changes(before: &Fleet, after: &Fleet) -> Vec<FleetChange> {
    let mut all = Vec::new();
    compare(FleetObject::Region, &before.regions, &after.regions, region, region_changes, &mut all);
    compare(FleetObject::Cluster, &before.clusters, &after.clusters, cluster, cluster_changes, &mut all);
    compare(FleetObject::Edge, &before.edges, &after.edges, edge, edge_changes, &mut all);
    compare(
        FleetObject::Listener,
        &before.listeners,
        &after.listeners,
        |listener| format!("on {}", listener.bind),
        |before, after, details| fields("", &json(before), &json(after), details),
        &mut all,
    );
    compare(FleetObject::Service, &before.services, &after.services, service, service_changes, &mut all);
    all
}

fn compare<N: Ord + fmt::Display, T: PartialEq>(
    object: FleetObject,
    before: &BTreeMap<N, T>,
    after: &BTreeMap<N, T>,
    describe: impl Fn(&T) -> String,
    differences: impl Fn(&T, &T, &mut Vec<String>),
    all: &mut Vec<FleetChange>,
) {
    let mut add = |name: &N, change, details| {
        all.push(FleetChange { object, name: name.to_string(), change, details });
    };
    for (name, _) in before.iter().filter(|(name, _)| !after.contains_key(name)) {
        add(name, ObjectChange::Removed, Vec::new());
    }
    for (name, after) in after {
        match before.get(name) {
            None => add(name, ObjectChange::Added, vec![describe(after)]),
            Some(before) if before == after => {}
            Some(before) => {
                let mut details = Vec::new();
                differences(before, after, &mut details);
                if details.is_empty() {
                    details.push("it is different".to_owned());
                }
                add(name, ObjectChange::Changed, details);
            }
        }
    }
}

fn count(number: usize, noun: &str) -> String {
    if number == 1 { format!("1 {noun}") } else { format!("{number} {noun}s") }
}

fn region(region: &Region) -> String {
    match region.signing_keys.len() {
        0 => "without signing keys".to_owned(),
        number => format!("with {}", count(number, "signing key")),
    }
}

fn region_changes(before: &Region, after: &Region, details: &mut Vec<String>) {
    fields("location", &json(&before.location), &json(&after.location), details);
    fields("latency", &json(&before.latency), &json(&after.latency), details);
    lists("signing_keys", &before.signing_keys, &after.signing_keys, details);
}

fn cluster(cluster: &Cluster) -> String {
    let capacity =
        cluster.capacity.map_or_else(|| "no capacity limit".to_owned(), |capacity| format!("{capacity}/s"));
    format!("region {}, {}, {capacity}", cluster.region, count(cluster.endpoints.len(), "endpoint"))
}

fn cluster_changes(before: &Cluster, after: &Cluster, details: &mut Vec<String>) {
    value("region", &before.region, &after.region, details);
    let capacity =
        |of: &Cluster| of.capacity.map_or_else(|| "no limit".to_owned(), |capacity| format!("{capacity}/s"));
    value("capacity", &capacity(before), &capacity(after), details);
    let endpoints = |cluster: &Cluster| -> Vec<String> {
        let network =
            |name: &str| if name == super::DEFAULT_NETWORK { String::new() } else { format!(" ({name})") };
        let text = |endpoint: &super::Endpoint| {
            format!("{}{}", endpoint.address, network(endpoint.network.as_str()))
        };
        cluster.endpoints.iter().map(text).collect()
    };
    lists("endpoints", &endpoints(before), &endpoints(after), details);
    fields("", &json(&before.upstream), &json(&after.upstream), details);
}

fn edge(edge: &Edge) -> String {
    format!("region {}, listeners {}", edge.region, list(&edge.listeners))
}

fn edge_changes(before: &Edge, after: &Edge, details: &mut Vec<String>) {
    value("region", &before.region, &after.region, details);
    fields("address", &json(&before.address), &json(&after.address), details);
    lists("listeners", &before.listeners, &after.listeners, details);
    let networks = |edge: &Edge| -> Vec<String> { edge.networks.iter().map(ToString::to_string).collect() };
    lists("networks", &networks(before), &networks(after), details);
}

fn service(service: &Service) -> String {
    let routes = match service.routes.len() {
        0 => String::new(),
        1 => ", 1 route".to_owned(),
        count => format!(", {count} routes"),
    };
    format!("hosts {}; {}{routes}", list(&service.hosts), service.default.clusters)
}

fn service_changes(before: &Service, after: &Service, details: &mut Vec<String>) {
    lists("hosts", &before.hosts, &after.hosts, details);
    action_changes("", &before.default, &after.default, details);
    let mut kept: Vec<usize> = Vec::new();
    for route in &after.routes {
        let mut alike = before.routes.iter().enumerate().filter(|(_, other)| other.matches == route.matches);
        match alike.find(|(at, _)| !kept.contains(at)) {
            Some((at, was)) => {
                kept.push(at);
                action_changes(&format!("route ({}) ", route.matches), &was.action, &route.action, details);
            }
            None => details.push(format!("route ({}) added: {}", route.matches, route.action.clusters)),
        }
    }
    for (at, route) in before.routes.iter().enumerate() {
        if !kept.contains(&at) {
            details.push(format!("route ({}) removed", route.matches));
        }
    }
    if !kept.is_sorted() {
        details.push("routes are in another order".to_owned());
    }
    value("priority", &before.priority, &after.priority, details);
    fields("max_request_body", &json(&before.max_request_body), &json(&after.max_request_body), details);
    fields("health", &json(&before.health), &json(&after.health), details);
}

fn action_changes(prefix: &str, before: &Action, after: &Action, details: &mut Vec<String>) {
    value(&format!("{prefix}clusters"), &before.clusters, &after.clusters, details);
    policy_changes(prefix, &before.policy, &after.policy, details);
}

/// By the names that the fields have in the fleet file.
fn policy_changes(prefix: &str, before: &Policy, after: &Policy, details: &mut Vec<String>) {
    let mut compare = |name: &str, text: &dyn Fn(&Policy) -> String| {
        value(&format!("{prefix}{name}"), &text(before), &text(after), details);
    };
    compare("timeout", &|policy| format!("{:?}", policy.timeout));
    compare("retry.attempts", &|policy| policy.attempts.to_string());
    compare("retry.per_try_timeout", &|policy| {
        policy.per_try_timeout.map_or_else(|| "none".to_owned(), |limit| format!("{limit:?}"))
    });
    compare("retry.hedge_after", &|policy| match policy.hedge {
        Hedge::Auto => "auto".to_owned(),
        Hedge::After(delay) => format!("{delay:?}"),
        Hedge::Off => "off".to_owned(),
    });
    compare("retry.budget", &|policy| format!("{}%", policy.budget_percent));
}

impl fmt::Display for Preference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Preference::Ordered(clusters) => write!(f, "in order {}", list(clusters)),
            Preference::Nearest(clusters) => write!(f, "nearest of {}", list(clusters)),
            Preference::Weighted(weights) => {
                let each: Vec<String> =
                    weights.iter().map(|(name, weight)| format!("{name} {}", weight.get())).collect();
                write!(f, "by weight {}", list(&each))
            }
        }
    }
}

/// The matching requests in words, such as `/api and below, GET or HEAD`.
impl fmt::Display for RouteMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let RouteMatch { path_prefix, path, methods, headers } = self;
        let mut parts = Vec::new();
        parts.extend(path.clone());
        parts.extend(path_prefix.as_ref().map(|prefix| format!("{prefix} and below")));
        if !methods.is_empty() {
            parts.push(methods.join(" or "));
        }
        parts.extend(headers.iter().map(|(name, value)| format!("{name}: {value}")));
        if parts.is_empty() {
            return f.write_str("all requests");
        }
        f.write_str(&parts.join(", "))
    }
}

impl fmt::Display for FleetObject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            FleetObject::Region => "region",
            FleetObject::Cluster => "cluster",
            FleetObject::Edge => "edge",
            FleetObject::Listener => "listener",
            FleetObject::Service => "service",
        })
    }
}

/// The change on one line, such as `~ cluster us-1: capacity 100/s -> 200/s`.
impl fmt::Display for FleetChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = match self.change {
            ObjectChange::Added => '+',
            ObjectChange::Removed => '-',
            ObjectChange::Changed => '~',
        };
        write!(f, "{sign} {} {}", self.object, self.name)?;
        if !self.details.is_empty() {
            write!(f, ": {}", self.details.join("; "))?;
        }
        Ok(())
    }
}

fn list<T: fmt::Display>(items: &[T]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

fn value<T: PartialEq + fmt::Display>(name: &str, before: &T, after: &T, details: &mut Vec<String>) {
    if before != after {
        details.push(format!("{name} {before} -> {after}"));
    }
}

/// The items that a list gained and lost.
fn lists<T: PartialEq + fmt::Display>(name: &str, before: &[T], after: &[T], details: &mut Vec<String>) {
    if before == after {
        return;
    }
    let mut text = name.to_owned();
    // Writing to a String does not fail.
    for item in before.iter().filter(|item| !after.contains(item)) {
        _ = write!(text, " -{item}");
    }
    for item in after.iter().filter(|item| !before.contains(item)) {
        _ = write!(text, " +{item}");
    }
    if text == name {
        text.push_str(" in another order");
    }
    details.push(text);
}

/// The fields in which two JSON values differ, with their path below `path`.
fn fields(path: &str, before: &Value, after: &Value, details: &mut Vec<String>) {
    match (before, after) {
        _ if before == after => {}
        (Value::Object(before), Value::Object(after)) if !is_duration(before) && !is_duration(after) => {
            let keys: std::collections::BTreeSet<&String> = before.keys().chain(after.keys()).collect();
            for key in keys {
                let path = match path {
                    "" => key.clone(),
                    path if path.ends_with(' ') => format!("{path}{key}"),
                    path => format!("{path}.{key}"),
                };
                let side = |side: &serde_json::Map<String, Value>| side.get(key).cloned().unwrap_or_default();
                fields(&path, &side(before), &side(after), details);
            }
        }
        (_, _) => details.push(format!("{path} {} -> {}", text_of(before), text_of(after))),
    }
}

fn is_duration(object: &serde_json::Map<String, Value>) -> bool {
    object.len() == 2 && object.contains_key("secs") && object.contains_key("nanos")
}

/// A JSON value as text: words of enumerations as the fleet file has them.
fn text_of(value: &Value) -> String {
    match value {
        Value::Null => "none".to_owned(),
        Value::String(text) => snake_case(text),
        Value::Object(object) if is_duration(object) => {
            let part = |name: &str| object.get(name).and_then(Value::as_u64).unwrap_or_default();
            format!(
                "{:?}",
                std::time::Duration::new(part("secs"), u32::try_from(part("nanos")).unwrap_or_default())
            )
        }
        Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => value.to_string(),
    }
}

/// `AsReceived` as `as_received`; other texts as they are.
fn snake_case(text: &str) -> String {
    let is_variant = text.starts_with(|first: char| first.is_ascii_uppercase())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric());
    if !is_variant {
        return text.to_owned();
    }
    let mut words = String::new();
    for (at, letter) in text.char_indices() {
        if at > 0 && letter.is_ascii_uppercase() {
            words.push('_');
        }
        words.push(letter.to_ascii_lowercase());
    }
    words
}

fn json(value: &impl Serialize) -> Value {
    // Plain data with string keys only: JSON can always hold it.
    serde_json::to_value(value).unwrap_or_default()
}

/// A bounded summary of the changes from one fleet file to the next, for the history.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ChangeSummary {
    /// The changes, one sentence each.
    pub lines: Vec<String>,
    /// The number of further changes.
    pub more: u32,
}

impl ChangeSummary {
    /// The most lines.
    pub const MOST_LINES: usize = 20;
    /// The most bytes of a line; a longer one is cut.
    pub const MOST_LINE_BYTES: usize = 300;
    /// The most bytes of all lines together.
    pub const MOST_BYTES: usize = 2000;

    /// The summary of these changes.
    pub fn of(changes: &[FleetChange]) -> ChangeSummary {
        let mut summary = ChangeSummary::default();
        let mut bytes = 0;
        for (at, change) in changes.iter().enumerate() {
            let line = cut(&change.to_string(), ChangeSummary::MOST_LINE_BYTES);
            if at == ChangeSummary::MOST_LINES || bytes + line.len() > ChangeSummary::MOST_BYTES {
                summary.more = u32::try_from(changes.len() - at).unwrap_or(u32::MAX);
                break;
            }
            bytes += line.len();
            summary.lines.push(line);
        }
        summary
    }

    /// The summary of what the file `after` changes in the file `before`. A file that cannot be parsed is reported as such.
    pub fn between(before: Option<&str>, after: &str) -> ChangeSummary {
        let sentence = |text: &str| ChangeSummary { lines: vec![text.to_owned()], more: 0 };
        let Ok(after) = Fleet::parse(after, "fleet") else {
            return sentence("a file that this version cannot read");
        };
        let Some(before) = before else {
            return sentence(&format!(
                "the first fleet: {}, {}, {}, {}",
                count(after.regions.len(), "region"),
                count(after.clusters.len(), "cluster"),
                count(after.edges.len(), "edge"),
                count(after.services.len(), "service")
            ));
        };
        match Fleet::parse(before, "fleet") {
            Err(_) => sentence("replaces a file that this version cannot read"),
            Ok(before) if before == after => sentence("only comments or layout"),
            Ok(before) => ChangeSummary::of(&changes(&before, &after)),
        }
    }
}

/// The changes on one line.
impl fmt::Display for ChangeSummary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.lines.join(" | "))?;
        if self.more > 0 {
            write!(f, " | and {} more", self.more)?;
        }
        Ok(())
    }
}

/// A text of at most `most` bytes.
fn cut(text: &str, most: usize) -> String {
    if text.len() <= most {
        return text.to_owned();
    }
    let end = (0..=most - '…'.len_utf8()).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    format!("{}…", &text[..end])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const FLEET: &str = "
regions: { us: {}, eu: {} }
clusters:
  us-1: { region: us, endpoints: [\"127.0.0.1:1\"], capacity: 100 }
  us-2: { region: us, endpoints: [\"127.0.0.1:2\"] }
edges: { e-1: { region: us, listeners: [web] } }
listeners: { web: { bind: \"127.0.0.1:80\", protocol: http } }
services:
  shop:
    hosts: [shop.example.com]
    clusters: { weights: { us-1: 50, us-2: 50 } }
    routes:
      - { path_prefix: /api, clusters: [us-1] }
";

    fn parsed(text: &str) -> Fleet {
        Fleet::parse(text, "fleet").unwrap_or_else(|errors| panic!("{errors}"))
    }

    fn lines(replacements: &[(&str, &str)]) -> Vec<String> {
        let mut text = FLEET.to_owned();
        for (from, to) in replacements {
            assert!(text.contains(from), "{from}");
            text = text.replace(from, to);
        }
        changes(&parsed(FLEET), &parsed(&text)).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn equal_fleets_have_no_changes_whatever_the_layout() {
        assert!(lines(&[("regions:", "# a comment\nregions:")]).is_empty());
    }

    #[test]
    fn shares_capacity_endpoints_and_times_are_named_with_both_values() {
        assert_eq!(
            lines(&[("us-1: 50, us-2: 50", "us-1: 80, us-2: 20")]),
            ["~ service shop: clusters by weight us-1 50, us-2 50 -> by weight us-1 80, us-2 20"]
        );
        assert_eq!(
            lines(&[("capacity: 100", "capacity: 200"), ("127.0.0.1:2", "127.0.0.1:3")]),
            [
                "~ cluster us-1: capacity 100/s -> 200/s",
                "~ cluster us-2: endpoints -127.0.0.1:2 +127.0.0.1:3"
            ]
        );
        assert_eq!(
            lines(&[(
                "hosts: [shop.example.com]",
                "hosts: [shop.example.com]\n    timeout: 20s\n    priority: 3"
            )]),
            // The route has the service's timeout.
            [
                "~ service shop: timeout 15s -> 20s; route (/api and below) timeout 15s -> 20s; priority 0 -> 3"
            ]
        );
    }

    #[test]
    fn new_and_removed_objects_are_named() {
        let added = lines(&[(
            "us-2: { region: us, endpoints: [\"127.0.0.1:2\"] }\n",
            "us-2: { region: us, endpoints: [\"127.0.0.1:2\"] }\n  eu-1: { region: eu, endpoints: [\"127.0.0.1:9\"] }\n",
        )]);
        assert_eq!(added, ["+ cluster eu-1: region eu, 1 endpoint, no capacity limit"]);
        let removed = lines(&[("eu: {} ", "")]);
        assert_eq!(removed, ["- region eu"]);
        let route = lines(&[("path_prefix: /api", "path_prefix: /cart")]);
        assert_eq!(
            route,
            ["~ service shop: route (/cart and below) added: in order us-1; route (/api and below) removed"]
        );
    }

    #[test]
    fn a_summary_is_bounded_and_counts_what_it_leaves_out() {
        let change = |n: usize| FleetChange {
            object: FleetObject::Cluster,
            name: format!("c-{n}"),
            change: ObjectChange::Changed,
            details: vec!["ä".repeat(n)],
        };
        for count in [0, 1, 19, 20, 21, 500] {
            let all: Vec<FleetChange> = (0..count).map(change).collect();
            let summary = ChangeSummary::of(&all);
            assert_eq!(summary.lines.len() + summary.more as usize, count);
            assert!(summary.lines.iter().map(String::len).sum::<usize>() <= ChangeSummary::MOST_BYTES);
            assert!(summary.lines.iter().all(|line| line.len() <= ChangeSummary::MOST_LINE_BYTES));
        }
    }

    #[test]
    fn a_summary_of_texts_tells_what_cannot_be_compared() {
        assert_eq!(
            ChangeSummary::between(None, FLEET).to_string(),
            "the first fleet: 2 regions, 2 clusters, 1 edge, 1 service"
        );
        assert!(ChangeSummary::between(Some("nonsense"), FLEET).to_string().contains("cannot read"));
        assert!(ChangeSummary::between(Some(FLEET), "nonsense").to_string().contains("cannot read"));
        assert_eq!(
            ChangeSummary::between(Some(FLEET), &format!("# new\n{FLEET}")).to_string(),
            "only comments or layout"
        );
    }

    /// One line of the file in one of two forms.
    fn variant() -> impl Strategy<Value = String> {
        let choices = [
            ("region: us, listeners", "region: eu, listeners"),
            ("capacity: 100", "capacity: 101"),
            ("127.0.0.1:1", "127.0.0.1:7"),
            ("hosts: [shop.example.com]", "hosts: [shop.example.com, a.example.com]"),
            ("us-1: 50, us-2: 50", "us-1: 50, us-2: 0"),
            ("path_prefix: /api", "path: /api"),
            ("clusters: [us-1]", "clusters: [us-2, us-1]"),
            ("bind: \"127.0.0.1:80\"", "bind: \"127.0.0.1:81\""),
            ("regions: { us: {}", "regions: { us: { location: [1.0, 2.0] }"),
        ];
        proptest::collection::vec(any::<bool>(), choices.len()).prop_map(move |picked| {
            let chosen = choices.iter().zip(picked).filter(|(_, picked)| *picked);
            chosen.fold(FLEET.to_owned(), |text, ((from, to), _)| text.replace(from, to))
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn there_are_changes_exactly_if_the_fleets_differ(before in variant(), after in variant()) {
            let (before, after) = (parsed(&before), parsed(&after));
            let there = changes(&before, &after);
            prop_assert_eq!(there.is_empty(), before == after);
            prop_assert!(there.iter().all(|change| change.details != ["it is different"]));
            let back = changes(&after, &before);
            prop_assert_eq!(there.len(), back.len());
        }
    }
}
