//! Where requests go: routes, shares, shedding, and what outside balancers are told.

use std::collections::BTreeMap;

use tidegate_model::verdict::Verdict;

use crate::harness::{edge::Edge, fleet::FleetFile, origin::Origin, peer::Peer};

fn ask(edge: &Edge, line: &str, fields: &str) -> String {
    let request = format!("{line} HTTP/1.1\r\nHost: site.test\r\n{fields}\r\n");
    Peer::connect(edge.address()).ask(request).text().to_owned()
}

#[test]
fn routes_choose_by_path_method_and_header_in_order() {
    let [a, b, c, d] = ["a", "b", "c", "d"].map(Origin::named);
    let fleet = FleetFile::new()
        .cluster("a", &[a.address()], "")
        .cluster("b", &[b.address()], "")
        .cluster("c", &[c.address()], "")
        .cluster("d", &[d.address()], "")
        .prefer("[a]")
        .routes(
            "{ path: /api/exact, clusters: [c] }, { path_prefix: /api, clusters: [b] }, \
             { methods: [DELETE], clusters: [c] }, { headers: { x-tenant: gold }, clusters: [d] }",
        );
    let edge = Edge::start(&fleet);
    for (line, fields, goes_to) in [
        ("GET /", "", "a"),
        ("GET /api", "", "b"),
        ("GET /api/", "", "b"),
        ("GET /api/x?y", "", "b"),
        ("GET /api?y", "", "b"),
        ("GET /apis", "", "a"),
        ("GET /api/exact", "", "c"),
        ("GET /api/exact?q", "", "c"),
        ("GET /api/exactly", "", "b"),
        ("DELETE /", "", "c"),
        ("GET /", "X-Tenant: gold\r\n", "d"),
        ("GET /", "X-Tenant: golden\r\n", "a"),
    ] {
        assert_eq!(ask(&edge, line, fields), goes_to, "{line} {fields}");
    }
}

#[test]
fn shares_are_kept() {
    let [a, b] = ["a", "b"].map(Origin::named);
    let fleet = FleetFile::new()
        .cluster("a", &[a.address()], "")
        .cluster("b", &[b.address()], "")
        .prefer("{ weights: { a: 3, b: 1 } }");
    let edge = Edge::start(&fleet);
    let mut client = Peer::connect(edge.address());
    let mut counts = BTreeMap::<String, u32>::new();
    for _ in 0..2000 {
        let answer = client.ask("GET / HTTP/1.1\r\nHost: site.test\r\n\r\n");
        *counts.entry(answer.text().to_owned()).or_default() += 1;
    }
    // Seven standard deviations of 2,000 draws of one quarter: 7 · √(2000 · 3/16) = 136.
    assert!((364..=636).contains(&counts["b"]), "{counts:?}");
}

#[test]
fn what_nobody_has_room_for_is_shed_with_retry_after() {
    let origin = Origin::named("a");
    let mut edge = Edge::start(&FleetFile::of(&[origin.address()]));
    edge.tiers(|tiers| tiers.actions[0].shed_permille = 1000);
    let get = "GET / HTTP/1.1\r\nHost: site.test\r\n\r\n";
    let mut client = Peer::connect(edge.address());
    let answer = client.ask(get);
    assert_eq!((answer.status(), answer.field("retry-after")), (503, Some("1")));
    assert_eq!((origin.seen().count(), edge.metric("tidegate_service_shed_total")), (0, 1.0));
    edge.tiers(|tiers| tiers.actions[0].shed_permille = 0);
    assert_eq!(client.ask(get).status(), 200);
}

#[test]
fn balancers_are_told_whether_a_service_is_served_and_from_where() {
    let [near, far] = ["near", "far"].map(Origin::named);
    let fleet = FleetFile::new().cluster_in("here", "near", &[near.address()], "").cluster_in(
        "there",
        "far",
        &[far.address()],
        "",
    );
    let mut edge = Edge::start(&fleet);
    let ask = |edge: &Edge, question: &str| {
        let request =
            format!("GET /.well-known/tidegate/health{question} HTTP/1.1\r\nHost: anything\r\n\r\n");
        Peer::connect(edge.address()).ask(request).status()
    };
    edge.health("near", &[(near.address(), Verdict::Up, false)]);
    edge.health("far", &[(far.address(), Verdict::Up, false)]);
    assert_eq!((ask(&edge, ""), ask(&edge, "/site"), ask(&edge, "/site?scope=local")), (200, 200, 200));
    assert_eq!(
        (ask(&edge, "/none"), ask(&edge, "/site?scope=other")),
        (503, 400),
        "names are not to be found by trying"
    );
    // As when `near` is drained: it is up, and only there for when nothing else is.
    edge.tiers(|tiers| tiers.actions[0].tiers.reverse());
    assert_eq!((ask(&edge, "/site?scope=any"), ask(&edge, "/site?scope=local")), (200, 503));
    edge.tiers(|tiers| tiers.actions[0].tiers.reverse());
    assert_eq!(ask(&edge, "/site?scope=local"), 200);
    edge.health("near", &[(near.address(), Verdict::Down, false)]);
    assert_eq!((ask(&edge, "/site?scope=any"), ask(&edge, "/site?scope=local")), (200, 503));
    edge.health("far", &[(far.address(), Verdict::PathDown, false)]);
    assert_eq!((ask(&edge, "/site"), ask(&edge, "")), (503, 200));
    assert_eq!(near.seen().count() + far.seen().count(), 0, "these questions are never forwarded");
}

#[test]
fn a_change_of_the_table_moves_new_requests() {
    let [a, b] = ["a", "b"].map(Origin::named);
    let fleet = FleetFile::new().cluster("a", &[a.address()], "").cluster("b", &[b.address()], "");
    let mut edge = Edge::start(&fleet);
    assert_eq!(ask(&edge, "GET /", ""), "a");
    edge.tiers(|tiers| tiers.actions[0].tiers.reverse());
    assert_eq!(ask(&edge, "GET /", ""), "b");
}
