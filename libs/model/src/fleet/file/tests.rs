//! The fleet file as a whole; the tests of one idea are beside it.

mod schema_agrees;

use std::time::Duration;

use proptest::prelude::*;

use super::STARTER;
use crate::{
    fleet::{Fleet, Hedge, HostPattern, ListenerProtocol, Preference, SpiffeId, UpstreamProtocol},
    health::Probe,
    unit::Weight,
};

/// The example of the design, grown until each field of the format is somewhere in it.
pub(super) const FULL: &str = include_str!("full.yaml");

fn errors(text: &str) -> Vec<(u32, u32, String, String)> {
    let errors = Fleet::parse(text, "fleet.yaml").expect_err("this file has mistakes");
    errors.iter().map(|e| (e.line, e.column, e.path.clone(), e.problem.clone())).collect()
}

/// The one error of a fleet with two regions to which `more` is added.
fn only_error(more: &str) -> String {
    let base = "regions: { eu: {}, us: {} }\n";
    let text = format!("{base}{more}");
    let errors = Fleet::parse(&text, "fleet.yaml").expect_err("this file has a mistake");
    assert_eq!(errors.iter().len(), 1, "{errors}");
    errors.iter().map(ToString::to_string).collect()
}

fn only_service_error(service: &str) -> String {
    only_error(&format!(
        "clusters:\n  a: {{ region: eu, endpoints: [\"10.0.0.1:80\"] }}\n  b: {{ region: us, endpoints: [\"10.0.0.2:80\"], protocol: http1 }}\nservices:\n  shop: {service}\n"
    ))
}

#[test]
fn a_file_that_is_absurdly_large_is_refused_in_few_words() {
    let regions: String = (0..300_000).map(|number| format!("r{number}: {{}}, ")).collect();
    let text = format!("regions: {{ {regions} }}\n");
    let found = errors(&text);
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].2, "regions");
    assert_eq!(found[0].3, "300000 of them are more than 256, which is the most");

    let clusters: String = (0..300)
        .map(|number| {
            let endpoints: Vec<String> = (1..900).map(|port| format!("\"10.0.0.1:{port}\"")).collect();
            format!("  c{number}: {{ region: eu, endpoints: [{}] }}\n", endpoints.join(", "))
        })
        .collect();
    assert!(
        only_error(&format!("clusters:\n{clusters}"))
            .contains("there are 269700 endpoints, more than 200000")
    );

    let long = format!("regions: {{ eu: {{}} }}\n# {}", "x".repeat(9_000_000));
    assert!(errors(&long)[0].3.starts_with("a fleet file has at most 8388608 bytes"), "{:?}", errors(&long));

    // Many errors on one long line are reported within the length that somebody reads.
    let wrong: String = (0..50_000).map(|number| format!("x{number}: 1, ")).collect();
    let told = Fleet::parse(&format!("{{ {wrong} }}"), "fleet.yaml").unwrap_err().to_string();
    assert!(
        told.len() < 100_000 && told.contains("and 49801 more"),
        "{} {}",
        told.len(),
        &told[told.len() - 200..]
    );
}

#[test]
fn the_full_example_becomes_the_fleet_that_it_describes() {
    let fleet = Fleet::parse(FULL, "full.yaml").unwrap_or_else(|errors| panic!("{errors}"));

    let us = &fleet.clusters["us-east-1"];
    assert_eq!(us.endpoints[1].network.as_str(), "vpc-us");
    assert_eq!(us.endpoints[0].network.as_str(), "internet");
    assert_eq!(us.capacity, Some(2000));
    let identity = us.upstream.tls.as_ref().and_then(|tls| tls.identity.as_ref());
    assert_eq!(identity.map(SpiffeId::as_str), Some("spiffe://example.org/ns/ingress/sa/us-east-1"));
    assert_eq!(fleet.clusters["eu-west-1"].upstream.protocol, UpstreamProtocol::Http2);
    assert_eq!(fleet.clusters["eu-west-1"].upstream.tls, None);
    assert_eq!(fleet.regions["us-east"].latency["eu-west"], Duration::from_millis(80));
    let ListenerProtocol::Https { certificates } = &fleet.listeners["public-https"].protocol else {
        panic!("public-https speaks https");
    };
    assert_eq!(certificates[0].key.to_str(), Some("tls/shop.key"));
    assert_eq!(fleet.listeners["public-https"].limits.head_bytes, 32 * 1024);
    let networks = &fleet.listeners["public-https"].limits.debug_from;
    assert_eq!(networks.iter().map(ToString::to_string).collect::<Vec<_>>(), ["10.0.0.0/8", "2001:db8::/32"]);

    let shop = &fleet.services["shop"];
    assert_eq!(shop.hosts, [HostPattern::Exact("shop.example.com".to_owned())]);
    assert_eq!(shop.max_request_body, Some(10_000_000));
    let Probe::Http { expected_status, .. } = &shop.health.probe else { panic!("shop is asked over HTTP") };
    assert_eq!(expected_status, &[(200, 200), (300, 399)]);
    assert_eq!(shop.default.policy.hedge, Hedge::Auto);
    let api = &shop.routes[0];
    assert_eq!(api.action.policy.timeout, Duration::from_secs(2));
    assert_eq!(api.action.policy.attempts, 2, "what a route doesn't say is as the service has it");
    let Preference::Weighted(weights) = &api.action.clusters else { panic!("the API goes by weight") };
    assert_eq!(weights["eu-west-1"], Weight::new(1).unwrap());
    assert_eq!(shop.routes[1].matches.headers["x-canary"], "true");
    assert_eq!(fleet.services["chat"].health.probe, Probe::Grpc { service: "chat.v1.Chat".to_owned() });
}

#[test]
fn the_starter_parses() {
    let fleet = Fleet::parse(STARTER, "starter.yaml").unwrap_or_else(|errors| panic!("{errors}"));
    assert_eq!(fleet.listeners["http"].bind, "127.0.0.1:8080".parse().unwrap());
    assert_eq!(fleet.clusters.len(), 2);
}

#[test]
fn ten_mistakes_are_ten_errors_with_their_places() {
    let text = r#"regions:
  us-east: { location: [138.9, -77.4] }
  eu-west: { locatoin: [53.3, -6.3] }
clusters:
  us-east-1:
    region: us-eats
    endpoints: ["10.1.0.10:8443", "10.1.0:8443"]
  eu-west-1: { region: eu-west, endpoints: ["10.2.0.10:8443"], capacity: many }
edges:
  edge-1: { region: us-east, listeners: [public] }
listeners:
  public: { bind: "0.0.0.0:443", protocol: https }
services:
  shop:
    hosts: [shop.example.com]
    clusters: [us-east-1, eu-wset-1]
    health: { path: healthz, interval: 100ms, timeout: 200ms }
    timeout: 15
"#;

    let found = errors(text);

    let expected = [
        (2, 24, "regions.us-east.location", "this is not a place on Earth"),
        (3, 14, "regions.eu-west.locatoin", "unknown field \"locatoin\""),
        (6, 13, "clusters.us-east-1.region", "there is no region \"us-eats\""),
        (7, 35, "clusters.us-east-1.endpoints[1]", "\"10.1.0:8443\" is not an address"),
        (8, 74, "clusters.eu-west-1.capacity", "\"many\" is not a whole number"),
        (12, 3, "listeners.public", "a listener for https needs certificates"),
        (16, 27, "services.shop.clusters[1]", "there is no cluster \"eu-wset-1\""),
        (17, 21, "services.shop.health.path", "\"healthz\" does not begin with '/'"),
        (17, 56, "services.shop.health", "a timeout of 200ms is longer than the interval"),
        (18, 14, "services.shop.timeout", "15 has no unit"),
    ];
    assert_eq!(found.len(), expected.len(), "{found:#?}");
    for ((line, column, path, problem), right) in found.iter().zip(expected) {
        assert_eq!((*line, *column, path.as_str()), (right.0, right.1, right.2));
        assert!(problem.starts_with(right.3), "{problem}");
    }
}

#[test]
fn the_report_shows_the_line_and_what_was_meant() {
    let text = "regions:\n  eu-west: {}\nclusters:\n  a: { region: eu-wset, endpoints: [\"a:1\"] }\n";

    let report = Fleet::parse(text, "fleet.yaml").unwrap_err().to_string();

    let expected = r#"error: there is no region "eu-wset"
 --> fleet.yaml:4:16 (clusters.a.region)
  |
4 |   a: { region: eu-wset, endpoints: ["a:1"] }
  |                ^^^^^^^
  = help: did you mean "eu-west"?

1 error in fleet.yaml"#;
    assert_eq!(report, expected);
}

#[test]
fn contradictions_are_refused() {
    let cases = [
        ("{ hosts: [a.b], clusters: [a, a] }", "the cluster a is in this list twice"),
        ("{ hosts: [a.b], clusters: [] }", "there is no cluster in this list"),
        ("{ hosts: [a.b], clusters: { nearest: auto } }", "list them"),
        ("{ hosts: [a.b], clusters: { weights: { a: 0, b: 0 } } }", "send no request anywhere"),
        ("{ hosts: [a.b], clusters: { weights: { a: 1001 } } }", "from 0 to 1000"),
        ("{ hosts: [a.b], clusters: { weights: { c: 1 } } }", "there is no cluster \"c\""),
        ("{ hosts: [a.b], clusters: { nearest: [a], weights: { a: 1 } } }", "not both"),
        ("{ hosts: [a.b, A.B], clusters: [a] }", "the host a.b is in this list twice"),
        (
            "{ hosts: [a.b], clusters: [a], health: { path: /, tcp: true } }",
            "can't have both `path` and `tcp`",
        ),
        ("{ hosts: [a.b], clusters: [a], health: { tcp: false } }", "can only be true"),
        ("{ hosts: [a.b], clusters: [a], health: { expect_body: x } }", "means nothing without `path`"),
        ("{ hosts: [a.b], clusters: [a, b], health: { grpc: true } }", "gRPC needs HTTP/2"),
        ("{ hosts: [a.b], clusters: [a], health: { path: /, expect_status: [299-200] } }", "is not a status"),
        ("{ hosts: [a.b], clusters: [a], retry: { per_try_timeout: 20s } }", "longer than the whole timeout"),
        ("{ hosts: [a.b], clusters: [a], routes: [{ path_prefix: api }] }", "does not begin with '/'"),
        ("{ hosts: [a.b], clusters: [a], routes: [{ path: /a, path_prefix: /a }] }", "not both"),
        ("{ hosts: [a.b], clusters: [a], routes: [{ timeout: 1s }, { path: /a }] }", "takes every request"),
        ("{ hosts: [a.b], clusters: [a], routes: [{ path: /a }, { path: /a }] }", "already"),
        ("{ hosts: [a.b], clusters: [a], routes: [{ methods: [get] }] }", "did you mean \"GET\"?"),
        ("{ hosts: [a.b], clusters: [a], timeout: 1s, timeout: 2s }", "is here twice"),
        ("{ hosts: [a.b], clusters: [a], priority: \"1\" }", "found text in quotes"),
    ];
    for (service, problem) in cases {
        let error = only_service_error(service);
        assert!(error.contains(problem), "{service}: {error}");
    }
    let two = "clusters: { a: { region: eu, endpoints: [\"h:1\"] } }\nservices:\n  x: { hosts: [a.b], clusters: [a] }\n  y: { hosts: [a.b], clusters: [a] }\n";
    assert!(only_error(two).contains("the service x serves the host a.b already"));
}

#[test]
fn contradictions_of_clusters_edges_and_listeners_are_refused() {
    let cases = [
        ("clusters: { a: { region: eu, endpoints: [\"h:1\", { address: \"h:1\", network: n }] } }", "twice"),
        ("clusters: { a: { region: eu, endpoints: [\"h:0\"] } }", "is not an address"),
        (
            "clusters: { a: { region: eu, endpoints: [\"h:1\"], tls: false, identity: \"spiffe://a/b\" } }",
            "can't be without TLS",
        ),
        (
            "clusters: { a: { region: eu, endpoints: [\"h:1\"], tls: } }",
            "expected true or false, found nothing",
        ),
        ("clusters: { a: { region: eu, endpoints: [\"h:1\"] } }\nclusters: {}", "is here twice"),
        ("clusters: { a.b: { region: eu, endpoints: [\"h:1\"] } }", "a name is made of"),
        (
            "listeners: { p: { bind: \"0.0.0.0:80\", protocol: http, certificates: [{ chain: c, key: k }] } }",
            "has no certificates",
        ),
        (
            "listeners: { p: { bind: \"0.0.0.0:80\", protocol: http, underscores_in_headers: keep } }",
            "\"keep\" is not one of drop, refuse, pass",
        ),
        (
            "listeners: { p: { bind: \"0.0.0.0:80\", protocol: http, health_endpoints: yes } }",
            "\"yes\" is not one of on, edge, off",
        ),
        (
            "listeners: { p: { bind: \"0.0.0.0:80\", protocol: http, debug_from: [10.0.0.1/8] } }",
            "10.0.0.0/8 is the network",
        ),
        (
            "listeners: { p: { bind: \"0.0.0.0:80\", protocol: http, debug_from: [] } }",
            "no network in this list",
        ),
        ("listeners: { p: { bind: \"0.0.0.0:80\", protocol: https, certificates: [] } }", "at least one"),
        (
            "listeners: { p: { bind: \"0.0.0.0:80\", protocol: http }, q: { bind: \"0.0.0.0:80\", protocol: http } }\nedges: { e: { region: eu, listeners: [p, q] } }",
            "the listeners p and q both bind 0.0.0.0:80",
        ),
        ("edges: { e: { region: eu, listeners: [p] } }", "this file has no listeners"),
    ];
    for (more, problem) in cases {
        let error = only_error(more);
        assert!(error.contains(problem), "{more}: {error}");
    }
    assert!(errors("regions: { eu: { latency: { eu: 1ms } } }")[0].3.contains("to itself"));
}

#[test]
fn a_mistake_in_a_cluster_does_not_make_its_mentions_wrong() {
    let text = "regions: { eu: {} }\nclusters: { a: { region: eu, endpoints: [\"h\"] } }\nservices: { s: { hosts: [h], clusters: [a] } }";
    assert_eq!(errors(text).len(), 1);
}

#[test]
fn a_syntax_error_has_its_place() {
    let found = errors("regions:\n  eu: {\n    location: [1, 2\nclusters: {}\n");
    assert_eq!(found.len(), 1);
    assert!(found[0].0 >= 3, "{found:?}");
    assert_eq!(errors("")[0].3, "the file is empty");
    assert!(errors("regions: { eu: {} }\n---\nregions: { eu: {} }\n")[0].3.contains("one document"));
}

#[test]
fn aliases_stand_for_what_they_name_and_can_not_explode() {
    let text = "regions: { eu: &r {}, us: *r }\n";
    assert_eq!(Fleet::parse(text, "f").unwrap().regions.len(), 2);

    let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for level in 1..30 {
        let inner = vec![format!("*a{}", level - 1); 10].join(", ");
        bomb.push_str(&format!("a{level}: &a{level} [{inner}]\n"));
    }
    assert!(errors(&bomb)[0].3.contains("too large"));
    assert!(errors("a: &a [*a]")[0].3.contains("alias"));
}

fn arbitrary_damage() -> impl Strategy<Value = String> {
    let edits = prop::collection::vec(
        (any::<prop::sample::Index>(), 0..4u8, "\\PC|[ \n\t:{}\\[\\],\"&*!#|>-]"),
        1..8,
    );
    (prop::sample::select(vec![FULL, STARTER]), edits, any::<prop::sample::Index>()).prop_map(
        |(text, edits, end)| {
            let mut text: Vec<char> = text.chars().collect();
            for (at, what, new) in edits {
                let at = at.index(text.len());
                match what {
                    0 => drop(text.remove(at)),
                    1 => text.splice(at..=at, new.chars()).for_each(drop),
                    2 => text.splice(at..at, new.chars()).for_each(drop),
                    _ => text.truncate(text.len() - at / 8),
                }
                if text.is_empty() {
                    text.push(' ');
                }
            }
            if end.index(4) == 0 {
                text.truncate(end.index(text.len()));
            }
            text.into_iter().collect()
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]

    #[test]
    fn a_damaged_file_is_a_fleet_or_errors_within_it(text in arbitrary_damage()) {
        if let Err(errors) = Fleet::parse(&text, "fleet.yaml") {
            prop_assert!(errors.iter().len() > 0);
            let lines = text.lines().count().max(1) as u32;
            for error in errors.iter() {
                prop_assert!((1..=lines + 1).contains(&error.line), "{error} of {lines} lines");
            }
            prop_assert!(errors.to_string().contains("fleet.yaml"));
        }
    }
}
