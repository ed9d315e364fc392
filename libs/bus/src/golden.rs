//! Golden files: what each version wrote of each type that travels is read back as the same value.
//!
//! `tests/golden/v<N>/<type>.bin` are never changed. After raising the schema version, `WRITE_GOLDEN=1 cargo test -p
//! tidegate-bus golden` writes those of the new version that are missing.

use std::{collections::BTreeMap, env, fmt::Debug, fs, path::Path, time::Duration};

use bytes::Bytes;
use tidegate_model::{
    Epoch, Revision, Timestamp,
    event::{Decided, Destination, Event, EventKind, Move},
    fleet::{
        Address, CertificateFiles, ChangeSummary, Endpoint, EscapedSlashPolicy, HealthEndpoints, Hedge,
        HostPattern, Listener, ListenerLimits, ListenerProtocol, Policy, RouteMatch, SpiffeId,
        UnderscorePolicy, Upstream, UpstreamProtocol, UpstreamTls,
    },
    health::CheckId,
    observation::{Failure, Observation, ObservationCause, ProbeOutcome, Signal, Target},
    overrides::{Override, OverrideKind},
    report::{Applied, ClusterLoad, Load, Suspicion},
    routes::{
        ActionTiers, Cause, ClusterEntry, EdgeEntry, EndpointHealth, HealthEntry, RouteCause, RouteEntry,
        RouteKey, ServiceEntry, Tier, TiersEntry,
    },
    verdict::Verdict,
};

use crate::{
    claims::{IdentityClaim, Problem},
    codec::{OLDEST_VERSION, SCHEMA_VERSION, Wire, decode, encode},
    fleet::{FleetHead, FleetVersion},
    replicate::{PullRequest, PullResponse, RegionDigest},
    table::{Delta, Heartbeat, Position, Provenance, Snapshot, Summary, TableChange},
};

/// Checks a value against its files. Where an older version could not express it, a check of its own for that version expects
/// what `read_older` makes of the file.
fn check<T: Wire + PartialEq + Debug>(name: &str, value: &T) {
    for version in OLDEST_VERSION..=SCHEMA_VERSION {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/v{version}/{name}.bin"));
        if version == SCHEMA_VERSION && env::var_os("WRITE_GOLDEN").is_some() && !file.exists() {
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(&file, encode(value)).unwrap();
        }
        let written = fs::read(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        assert_eq!(&decode::<T>(&written).unwrap(), value, "{} is read as something else", file.display());
        if version == SCHEMA_VERSION {
            assert_eq!(encode(value), written, "{name} is written differently: raise SCHEMA_VERSION");
        }
    }
}

fn name<T: std::str::FromStr<Err: Debug>>(text: &str) -> T {
    text.parse().unwrap()
}

fn endpoints() -> Vec<Endpoint> {
    ["10.1.0.10:8443", "[2001:db8::1]:443", "gateway.example.com:443"]
        .map(|address| Endpoint { address: name(address), network: name("internet") })
        .into()
}

fn change_summary() -> ChangeSummary {
    ChangeSummary { lines: vec!["~ cluster us-1: capacity 100/s -> 200/s".to_owned()], more: 2 }
}

fn fleet_head() -> FleetHead {
    let (author, reason) = ("ann".to_owned(), "more machines".to_owned());
    FleetHead { revision: 7, author, at: Timestamp(1), reason, changes: change_summary() }
}

fn certificate() -> CertificateFiles {
    CertificateFiles { chain: "tls/shop.crt".into(), key: "tls/shop.key".into() }
}

#[test]
fn golden_replication() {
    let version = FleetVersion { revision: 1_700_000_000_000, digest: 1 << 100 };
    check("region_digest", &RegionDigest { fleet: Some(version), overrides: u128::MAX });
    check("pull_request", &PullRequest { fleet: true, fleet_after: 7, overrides: false });
    let head = fleet_head();
    let overrides = vec![Bytes::from("{}")];
    let fleet = (head, "regions: {}".to_owned());
    check("pull_response", &PullResponse { fleet: Some(fleet.clone()), revisions: vec![fleet], overrides });
}

#[test]
fn golden_observations() {
    let target = Target { cluster: name("us-east-1"), endpoint: name("10.1.0.10:8443"), check: CheckId(7) };
    check("target", &target);
    check("observation_pass", &Observation { outcome: ProbeOutcome::Pass, streak: 3 });
    let failures = [
        Failure::ConnectRefused,
        Failure::ConnectTimeout,
        Failure::ConnectError,
        Failure::Tls,
        Failure::Reset,
        Failure::NoResponse,
        Failure::Status(503),
        Failure::BadResponse,
    ];
    let failed = |failure| Observation { outcome: ProbeOutcome::Fail(failure), streak: 2 };
    check("observations_failed", &failures.map(failed).to_vec());
    let cause = |signal| ObservationCause { signal, probed_at: Timestamp(1), observed_at: Timestamp(2) };
    check("observation_cause_schedule", &cause(Signal::Schedule));
    check("observation_cause_suspicion", &cause(Signal::Suspicion { first_failure_at: Timestamp(u64::MAX) }));
}

#[test]
fn golden_route_keys() {
    let keys = vec![
        RouteKey::Edge(name("edge-us-1")),
        RouteKey::Cluster(name("us-east-1")),
        RouteKey::Health(name("us-east-1"), CheckId(u64::MAX)),
        RouteKey::Service(name("shop")),
        RouteKey::Tiers(name("shop")),
    ];
    check("route_keys", &keys);
}

#[test]
fn golden_route_entries() {
    let listener = |protocol| Listener {
        bind: "0.0.0.0:443".parse().unwrap(),
        protocol,
        limits: ListenerLimits {
            underscores_in_headers: UnderscorePolicy::Refuse,
            escaped_slashes: EscapedSlashPolicy::Refuse,
            health_endpoints: HealthEndpoints::Edge,
            debug_from: vec!["10.0.0.0/8".parse().unwrap(), "2001:db8::/32".parse().unwrap()],
            ..ListenerLimits::default()
        },
    };
    let https = ListenerProtocol::Https { certificates: vec![certificate()] };
    check(
        "route_entry_edge",
        &RouteEntry::Edge(EdgeEntry {
            address: Some("203.0.113.10".parse().unwrap()),
            listeners: vec![
                (name("public-http"), listener(ListenerProtocol::Http)),
                (name("public-https"), listener(https)),
            ],
            networks: vec![name("internet"), name("vpc-us")],
            drain: Some("maintenance".to_owned()),
        }),
    );
    let tls = UpstreamTls {
        server_name: Some("gateway".to_owned()),
        ca: Some("tls/ca.crt".into()),
        identity: Some(SpiffeId::try_from("spiffe://example.org/ns/ingress".to_owned()).unwrap()),
        client_certificate: Some(certificate()),
    };
    check(
        "route_entry_cluster",
        &RouteEntry::Cluster(ClusterEntry {
            region: name("us-east"),
            endpoints: endpoints(),
            upstream: Upstream {
                protocol: UpstreamProtocol::Http2,
                tls: Some(tls),
                idle_timeout: Duration::from_secs(30),
                connect_timeout: Duration::from_millis(250),
                max_requests: 1024,
            },
        }),
    );
    let verdicts = [Verdict::Up, Verdict::PathDown, Verdict::Down];
    let addresses: Vec<Address> = endpoints().into_iter().map(|endpoint| endpoint.address).collect();
    check(
        "route_entry_health",
        &RouteEntry::Health(HealthEntry {
            verdict: Verdict::Unknown,
            reason: "nobody looked".to_owned(),
            endpoints: addresses
                .into_iter()
                .zip(verdicts)
                .map(|(address, verdict)| EndpointHealth {
                    address,
                    verdict,
                    unreachable: verdict == Verdict::Down,
                })
                .collect(),
        }),
    );
    let matches = RouteMatch {
        path_prefix: Some("/api".to_owned()),
        path: None,
        methods: vec!["GET".to_owned()],
        headers: BTreeMap::from([("x-version".to_owned(), "2".to_owned())]),
    };
    let policy = Policy {
        timeout: Duration::from_secs(2),
        attempts: 1,
        per_try_timeout: Some(Duration::from_secs(1)),
        hedge: Hedge::After(Duration::from_millis(80)),
        budget_percent: 10,
    };
    check(
        "route_entry_service",
        &RouteEntry::Service(ServiceEntry {
            hosts: vec![HostPattern::Any, name("shop.example.com"), name("*.example.com")],
            check: CheckId(7),
            max_request_body: Some(1 << 40),
            default_policy: Policy::default(),
            routes: vec![
                (matches, policy.clone()),
                (RouteMatch::default(), Policy { hedge: Hedge::Off, ..policy }),
            ],
        }),
    );
    let tier = |cluster, share| Tier { shares: vec![(name(cluster), share)] };
    check(
        "route_entry_tiers",
        &RouteEntry::Tiers(TiersEntry {
            actions: vec![ActionTiers {
                tiers: vec![tier("us-east-1", 1000), tier("eu-west-1", 0)],
                shed_permille: 250,
                fail_open: true,
                reason: "everything seems down".to_owned(),
            }],
        }),
    );
}

#[test]
fn golden_route_cause() {
    let health = |signal, probed_at| Cause::Health {
        cluster: name("us-east-1"),
        verdict: Verdict::Down,
        reason: "2 of 2 endpoints down".to_owned(),
        signal,
        probed_at,
    };
    let causes = vec![
        health(Some(Signal::Suspicion { first_failure_at: Timestamp(1) }), Some(Timestamp(2))),
        health(None, None),
        Cause::Override("drain of cluster us-east-1".to_owned()),
        Cause::Fleet,
        Cause::Load,
        Cause::Time,
    ];
    check("route_cause", &RouteCause { causes, input_at: Timestamp(3), decided_at: Timestamp(4) });
}

#[test]
fn golden_reports() {
    let (edge, region): (tidegate_model::EdgeName, tidegate_model::RegionName) =
        (name("edge-1"), name("us-east"));
    check(
        "applied",
        &Applied {
            edge: edge.clone(),
            region: region.clone(),
            epoch: Epoch(5),
            fence: Epoch(6),
            revision: Revision(300),
            received_at: Timestamp(1),
            applied_at: Timestamp(2),
            reported_at: Timestamp(3),
            refused_unsigned: 2,
            behind_since: Some(Timestamp(4)),
            refused_old_epochs: 4,
            draining: true,
        },
    );
    let load = ClusterLoad { attempts: 1000, failures: 2, p95_us: 70_000 };
    check(
        "load",
        &Load {
            edge: edge.clone(),
            region: region.clone(),
            interval_ms: 1000,
            demand: BTreeMap::from([(name("shop"), vec![1234, 5])]),
            clusters: BTreeMap::from([(name("us-east-1"), load)]),
        },
    );
    check(
        "identity_claim",
        &IdentityClaim {
            instance: 7,
            host: "host-1".to_owned(),
            process: 300,
            since: Timestamp(1),
            problems: vec![Problem {
                check: "listeners".to_owned(),
                reason: "the port is taken".to_owned(),
                since: Timestamp(2),
                is_blocking: true,
            }],
        },
    );
    check(
        "suspicion",
        &Suspicion {
            edge,
            region,
            cluster: name("us-east-1"),
            endpoint: name("10.1.0.10:8443"),
            failure: Failure::NoResponse,
            first_failure_at: Timestamp(1),
        },
    );
}

#[test]
fn golden_events() {
    let moved = Move {
        service: name("shop"),
        route: 1,
        before: Destination { shares: vec![(name("us-east-1"), 1000)], ..Destination::default() },
        after: Destination { shares: vec![(name("eu-west-1"), 1000)], shed_permille: 250, fail_open: true },
        reason: "us-east-1 is down".to_owned(),
    };
    let cause = RouteCause { causes: vec![Cause::Fleet], input_at: Timestamp(3), decided_at: Timestamp(4) };
    let (epoch, revision) = (Epoch(5), Revision(300));
    let kinds = [
        EventKind::Leads { holder: name("computer-1"), epoch },
        EventKind::Fleet {
            revision: 7,
            author: "ann".to_owned(),
            reason: "more machines".to_owned(),
            changes: change_summary(),
        },
        EventKind::FleetRefused { revision: 8, error: "fleet.yaml:1:1: wrong".to_owned() },
        EventKind::Decided(Decided { epoch, revision, cause, moves: vec![moved], more_moves: 2 }),
        EventKind::Applied {
            edge: name("edge-1"),
            epoch,
            revision,
            decided_at: Timestamp(4),
            received_at: Timestamp(5),
        },
        EventKind::ProblemBegan {
            process: "edge edge-1".to_owned(),
            check: "listeners".to_owned(),
            reason: "the port is taken".to_owned(),
        },
        EventKind::ProblemEnded {
            process: "edge edge-1".to_owned(),
            check: "listeners".to_owned(),
            since: Timestamp(6),
        },
    ];
    check("events", &kinds.map(|kind| Event { region: name("us-east"), at: Timestamp(6), kind }).to_vec());
}

#[test]
fn golden_overrides() {
    let kinds = [
        OverrideKind::DrainCluster(name("us-east-1")),
        OverrideKind::DrainEdge(name("edge-1")),
        OverrideKind::EvacuateRegion(name("us-east")),
        OverrideKind::ForceRoute { service: name("shop"), cluster: name("eu-west-1") },
    ];
    let entry = |kind| Override {
        kind,
        author: "ann".to_owned(),
        reason: "upgrade".to_owned(),
        created_at: Timestamp(1),
        expires_at: Some(Timestamp(2)),
    };
    check("overrides", &kinds.map(entry).to_vec());
}

#[test]
fn golden_table_messages() {
    let position = Position { epoch: Epoch(5), revision: Revision(300) };
    let content = Summary { digest: u128::MAX - 1, entries: 2 };
    check("position", &position);
    check("heartbeat", &Heartbeat { position, content });
    let change =
        |value: Option<&'static str>| TableChange { key: Bytes::from("k"), value: value.map(Bytes::from) };
    check(
        "delta",
        &Delta {
            position,
            before: Summary::default(),
            after: content,
            changes: vec![change(Some("v")), change(None)],
            meta: Bytes::from("meta"),
            provenance: Provenance::default(),
        },
    );
    let entries = vec![(Bytes::from("a"), Bytes::from("1")), (Bytes::from("b"), Bytes::new())];
    check("snapshot", &Snapshot { position, entries, provenance: Provenance::default() });
    check("fleet_head", &fleet_head());
}
