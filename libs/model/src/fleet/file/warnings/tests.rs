use crate::fleet::{Fleet, STARTER, UpstreamProtocol};

/// Two regions with a cluster each, one edge and one service, without a warning.
const QUIET: &str = "regions:
  eu: { location: [53.3, -6.3] }
  us: { location: [38.9, -77.4] }
clusters:
  a: { region: eu, endpoints: [\"10.0.0.1:80\"] }
  b: { region: us, endpoints: [\"10.0.0.2:80\"] }
edges: { e: { region: eu, listeners: [http] } }
listeners: { http: { bind: \"0.0.0.0:80\", protocol: http } }
services:
  s: { hosts: [\"*\"], clusters: { nearest: [a, b] }, health: { path: / } }
";

fn warned(text: &str) -> Vec<(u32, u32, String, String)> {
    let fleet = Fleet::parse(text, "fleet.yaml").unwrap_or_else(|errors| panic!("{errors}"));
    let warnings = fleet.warnings(text, "fleet.yaml");
    warnings.iter().map(|w| (w.line, w.column, w.path.clone(), w.problem.clone())).collect()
}

/// The only warning, after `old` was replaced in the quiet file: its line, field and text.
#[track_caller]
fn only(old: &str, new: &str) -> (u32, String, String) {
    let text = QUIET.replacen(old, new, 1);
    assert_ne!(text, QUIET, "{old} is not in the file");
    let found = warned(&text);
    let [(line, _, path, problem)] = &found[..] else { panic!("{found:#?}") };
    (*line, path.clone(), problem.clone())
}

#[track_caller]
fn assert_warned(old: &str, new: &str, (line, path, part): (u32, &str, &str)) {
    let (at, field, problem) = only(old, new);
    assert_eq!((at, field.as_str()), (line, path), "{problem}");
    assert!(problem.contains(part), "{problem}");
}

#[test]
fn a_good_file_has_no_warnings() {
    assert_eq!(warned(QUIET), []);
}

#[test]
fn the_files_that_the_project_offers_have_no_warnings() {
    for (name, text) in [
        ("init", STARTER),
        ("compose", include_str!("../../../../../../deploy/fleet.yaml")),
        ("k8s, one region", include_str!("../../../../../../k8s/fleets/one-region/fleet.yaml")),
        ("k8s, two regions", include_str!("../../../../../../k8s/fleets/two-regions/fleet.yaml")),
    ] {
        assert_eq!(warned(text), [], "{name}");
    }
}

#[test]
fn what_nothing_uses_is_reported() {
    assert_warned(
        "edges:",
        "  c: { region: us, endpoints: [\"10.0.0.3:80\"] }\nedges:",
        (7, "clusters.c", "no service uses this cluster"),
    );
    assert_warned(
        "listeners: {",
        "listeners: { other: { bind: \"0.0.0.0:81\", protocol: http },",
        (8, "listeners.other", "no edge has this listener"),
    );
    assert_warned(
        "\"10.0.0.2:80\"",
        "\"10.0.0.2:80\", { address: \"10.0.0.3:80\", network: vpc }",
        (6, "clusters.b.endpoints[1]", "no edge is on the network vpc"),
    );
    let without_edge = QUIET.replace("edges: { e: { region: eu, listeners: [http] } }\n", "");
    let paths: Vec<String> = warned(&without_edge).into_iter().map(|(_, _, path, _)| path).collect();
    assert_eq!(paths, ["listeners.http", "services"]);
}

#[test]
fn a_service_with_one_cluster_or_one_endpoint_is_reported_once() {
    let one = QUIET
        .replace("{ nearest: [a, b] }", "[a]")
        .replace("clusters: [a],", "clusters: [a], routes: [{ path: /x }],");
    let found = warned(&one);
    let paths: Vec<&str> = found.iter().map(|(_, _, path, _)| path.as_str()).collect();
    assert_eq!(paths, ["clusters.b", "services.s.clusters"]);
    assert!(found[1].3.contains("with one endpoint"), "{found:?}");
    assert_warned(
        "health: { path: / }",
        "health: { path: / }, routes: [{ path: /x, clusters: [b] }]",
        (10, "services.s.routes[0].clusters", "b is the only cluster"),
    );
}

#[test]
fn a_check_that_is_only_a_connection_is_reported_unless_it_is_written() {
    assert_warned(", health: { path: / }", "", (10, "services.s.health", "only a TCP connection"));
    assert_warned("{ path: / }", "{ interval: 1s }", (10, "services.s.health", "only a TCP connection"));
    assert_eq!(warned(&QUIET.replace("{ path: / }", "{ tcp: true }")), []);
    assert_eq!(warned(&QUIET.replace("{ path: / }", "{ grpc: true }")), []);
}

#[test]
fn capacity_on_some_clusters_only_is_reported() {
    assert_warned(
        "endpoints: [\"10.0.0.1:80\"]",
        "endpoints: [\"10.0.0.1:80\"], capacity: 10",
        (6, "clusters.b", "this cluster has no capacity, and a of the same service s has one"),
    );
    assert_eq!(warned(&QUIET.replace(":80\"]", ":80\"], capacity: 10")), []);
}

#[test]
fn limits_that_never_apply_are_reported() {
    assert_warned(
        "health:",
        "retry: { per_try_timeout: 5s }, routes: [{ path: /x, timeout: 2s }], health:",
        (10, "services.s.routes[0].timeout", "per_try_timeout of 5s is above the timeout of 2s"),
    );
    assert_warned(
        "health:",
        "timeout: 1s, retry: { hedge_after: 1s }, health:",
        (10, "services.s.retry.hedge_after", "nothing is ever hedged"),
    );
}

#[test]
fn a_region_without_a_location_matters_where_the_nearest_is_asked_for() {
    let located = "us: { location: [38.9, -77.4] }";
    assert_warned(located, "us: {}", (3, "regions.us", "no location"));
    let configured = QUIET.replace(located, "us: { latency: { eu: 40ms } }");
    assert_eq!(warned(&configured), []);
    let ordered = QUIET.replace(located, "us: {}").replace("{ nearest: [a, b] }", "[a, b]");
    assert_eq!(warned(&ordered), []);
}

#[test]
fn a_warning_shows_its_line_and_what_would_be_right() {
    let text = QUIET.replace("us: { location: [38.9, -77.4] }", "us: {}");
    let fleet = Fleet::parse(&text, "fleet.yaml").unwrap();
    let report = fleet.warnings(&text, "fleet.yaml").to_string();
    let expected =
        "warning: this region has no location, so the service s can't tell what is nearest to or from it
 --> fleet.yaml:3:3 (regions.us)
  |
3 |   us: {}
  |   ^^
  = help: location: [latitude, longitude], or `latency` to the other regions

1 warning in fleet.yaml";
    assert_eq!(report, expected);
}

#[test]
fn clear_text_clusters_of_grpc_services_are_http2() {
    let fleet = Fleet::parse(&QUIET.replace("{ path: / }", "{ grpc: true }"), "f").unwrap();
    let protocols: Vec<_> = fleet.clusters.values().map(|cluster| cluster.upstream.protocol).collect();
    assert_eq!(protocols, [UpstreamProtocol::Http2; 2]);

    let with_tls =
        QUIET.replace("{ path: / }", "{ grpc: true }").replacen(":80\"] }", ":80\"], tls: true }", 1);
    let fleet = Fleet::parse(&with_tls, "f").unwrap();
    assert_eq!(fleet.clusters["a"].upstream.protocol, UpstreamProtocol::Auto, "ALPN selects it");
}

#[test]
fn a_clear_text_cluster_of_grpc_and_other_services_names_its_protocol() {
    let other = "  t: { hosts: [t.test], clusters: [b, a], health: { path: / } }\n";
    let text = QUIET.replace("{ path: / }", "{ grpc: true }") + other;
    let errors = Fleet::parse(&text, "f").unwrap_err();
    let found: Vec<_> = errors.iter().map(|e| (e.line, e.path.as_str(), e.help.clone().unwrap())).collect();
    let [(10, "services.s.health.grpc", help)] = &found[..] else { panic!("{found:?}") };
    assert!(help.contains("`protocol: http2` at clusters.a"), "{help}");

    let named = text.replace(":80\"] }", ":80\"], protocol: http2 }");
    assert!(Fleet::parse(&named, "f").is_ok());
}
