//! One trace tells of a failover, from the first failed request to the last edge.

use std::{collections::HashMap, time::Duration};

use anyhow::Context as _;
use tidegate_bus::clock;
use tidegate_integration_tests::{
    Fault, Plan, World,
    drill::{Detection, Found},
    load::{Load, LoadPlan},
    plan::{HOME, REGIONS, RegionPlan},
    world::until,
};

use crate::{
    collector::{Collector, Received},
    rotel::Rotel,
};

const LIMIT: Duration = Duration::from_secs(30);
/// A thread may be held up so long between what it does and the reading of its clock.
const HELD_UP: Duration = Duration::from_millis(20);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_trace_leads_from_a_suspicion_to_every_edge() -> anyhow::Result<()> {
    is_one_trace(&SUSPECTED).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_load_one_trace_leads_from_a_probe_to_every_edge() -> anyhow::Result<()> {
    is_one_trace(&PROBED).await
}

/// Whether a failover is told of by one trace that goes this way.
async fn is_one_trace(expected: &[&str]) -> anyhow::Result<()> {
    // Given a system that sends its spans to a receiver, under load where somebody is to suspect a cluster.
    let collector = Collector::start().await?;
    let rotel = Rotel::start(&collector).await?;
    let plan = Plan { otlp_endpoint: Some(rotel.endpoint().to_owned()), ..Plan::default() };
    let mut world = World::start(&plan).await?;
    let is_suspected = expected == SUSPECTED;
    let mut load = None;
    if is_suspected {
        let target = world.edge_address(HOME.edge).await?;
        let load = load.insert(Load::start(LoadPlan { target, rate: 200, connections: 10 })?);
        load.answered_since(clock::now(), 200, LIMIT).await?;
    }

    // When a cluster is killed, and that is found by suspicion, or without load by a probe that was due.
    let fault_at = world.inflict(Fault::Kill).await?;
    let detection = world.until_found(Fault::Kill, fault_at, LIMIT).await?;
    let mut signals = detection.found.iter().map(|found| found.signal);
    let is_found_so =
        if is_suspected { signals.any(|by| by == "suspicion") } else { signals.all(|by| by == "probe") };
    assert!(is_found_so, "{detection:?}");
    if let Some(load) = load {
        load.stop().await?;
    }

    // Then there is one trace that leads that way to both edges.
    until("a trace that leads to both edges", LIMIT, async || {
        let whole = |trace: Trace| {
            let leads = |region| {
                // The begin of the world was probed, too.
                trace.way_to(region).is_some_and(|way| names(&way) == expected && way[0].began() >= fault_at)
            };
            REGIONS.iter().all(leads).then_some(())
        };
        Ok(Traces::of(collector.spans()).by_id.into_values().find_map(whole))
    })
    .await?;

    // And the trace that a route-computer's log names beside its verdict is there by its id, and tells all of it.
    for region in REGIONS {
        let found =
            detection.found.iter().find(|found| found.region == region.name).context("it was found")?;
        let id = logged_trace(&world, found)?;
        let trace = until(&format!("the way to {} in trace {id}", region.edge), LIMIT, async || {
            let trace = Traces::of(collector.spans()).by_id.remove(&id);
            Ok(trace.filter(|trace| trace.way_to(&region).is_some()))
        })
        .await?;
        let way = trace.way_to(&region).context("it was there")?;
        assert!(is_suspected || names(&way) == PROBED, "{:?}", names(&way));
        tells_why(&trace, &way, &region);
        adds_up(&trace, &way, &detection, found);

        // And the history leads to it.
        let told =
            String::from_utf8(world.cli(&["events", "--json", "--region", region.name]).await?.stdout)?;
        let of_the_trace: Vec<&str> = told.lines().filter(|line| line.contains(id.as_str())).collect();
        for kind in ["\"decided\"", "\"applied\""] {
            assert!(of_the_trace.iter().any(|line| line.contains(kind)), "no {kind} with {id}: {told}");
        }
    }
    rotel.succeeded();
    world.succeeded();
    Ok(())
}

/// The spans of a failover that was suspected, and of one that a probe found.
const SUSPECTED: [&str; 5] = ["suspicion", "probe after suspicion", "compute", "publish", "apply"];
const PROBED: [&str; 4] = ["probe", "compute", "publish", "apply"];

/// The trace that the region's route-computer names in its log beside the verdict.
fn logged_trace(world: &World, found: &Found) -> anyhow::Result<String> {
    let log = world.computers[&format!("computer-{}-1", found.region)].log();
    let is_verdict = |line: &&str| {
        line.contains(&format!("cluster={}", HOME.cluster)) && line.contains(&format!("{:?}", found.reason))
    };
    let line = log.lines().find(is_verdict).with_context(|| format!("no verdict in {log}"))?;
    let (_, id) = line.split_once("trace_id=").with_context(|| format!("no trace in {line}"))?;
    Ok(id.trim().to_owned())
}

/// What failed, what the prober saw, what was concluded, and who serves by it.
fn tells_why(trace: &Trace, way: &[&Received], region: &RegionPlan) {
    let text = |received: &Received, key: &str| {
        received.attribute(key).unwrap_or_else(|| panic!("{} has no {key}", received.span.name))
    };
    let names = names(way);
    assert!(names == SUSPECTED || names == PROBED, "{names:?}");
    let [.., probe, compute, publish, apply] = way else { panic!("{names:?}") };
    if names == SUSPECTED {
        assert!(REGIONS.iter().any(|region| region.edge == way[0].instance), "{}", way[0].instance);
        assert_eq!(text(way[0], "tidegate.cluster"), HOME.cluster);
        assert!(!text(way[0], "tidegate.reason").is_empty());
    }
    assert_eq!(text(probe, "tidegate.cluster"), HOME.cluster);
    assert!(text(probe, "tidegate.reason").contains("in a row"), "{}", text(probe, "tidegate.reason"));
    assert_eq!(text(compute, "tidegate.region"), region.name);
    assert_eq!(text(apply, "tidegate.edge"), region.edge);
    assert_eq!(apply.instance, region.edge);
    assert_eq!(text(apply, "tidegate.revision"), text(publish, "tidegate.revision"));
    let verdict = trace.child(&compute.span.span_id, "verdict").expect("a computation with a verdict");
    assert_eq!(text(verdict, "tidegate.cluster"), HOME.cluster);
    assert_eq!(text(verdict, "tidegate.signal"), if names == SUSPECTED { "suspicion" } else { "probe" });
    assert!(!text(verdict, "tidegate.reason").is_empty());
    assert!(["down", "path down", "up"].contains(&text(verdict, "tidegate.verdict").as_str()));
}

/// Nothing begins before what it came of, what is within something ends within it, and from the first span to the last it
/// takes no longer than the failover did.
fn adds_up(trace: &Trace, way: &[&Received], detection: &Detection, found: &Found) {
    for pair in way.windows(2) {
        let [parent, child] = pair else { unreachable!("windows of two") };
        assert!(child.began() >= parent.began(), "{} before {}", child.span.name, parent.span.name);
    }
    let compute = way[way.len() - 3];
    let verdict = trace.child(&compute.span.span_id, "verdict").expect("a computation with a verdict");
    assert!(
        compute.began() <= verdict.began() && verdict.ended() <= compute.ended(),
        "not within its computation"
    );
    for received in way {
        assert!(received.began() <= received.ended(), "{} ends before it begins", received.span.name);
    }
    let (first, last) = (way[0], way[way.len() - 1]);
    let first_failure_at = detection.first_failure_at.expect("somebody failed first");
    assert!(first.began().plus(HELD_UP) >= first_failure_at, "{:?} {first_failure_at:?}", first.began());
    let (told, measured) = (last.ended().since(first.began()), found.applied_at.since(detection.fault_at));
    assert!(told <= measured + HELD_UP, "by its trace it took {told:?}, really {measured:?}");
}

fn names<'a>(way: &[&'a Received]) -> Vec<&'a str> {
    way.iter().map(|received| received.span.name.as_str()).collect()
}

/// Spans by trace.
struct Traces {
    by_id: HashMap<String, Trace>,
}

#[derive(Default)]
struct Trace {
    spans: Vec<Received>,
}

impl Traces {
    fn of(spans: Vec<Received>) -> Traces {
        let mut by_id: HashMap<String, Trace> = HashMap::new();
        for received in spans {
            by_id.entry(received.trace_id()).or_default().spans.push(received);
        }
        Traces { by_id }
    }
}

impl Trace {
    /// The spans from a root to an application at the region's edge, when the whole way was received.
    fn way_to(&self, region: &RegionPlan) -> Option<Vec<&Received>> {
        let arrived = self.spans.iter().filter(|r| r.span.name == "apply" && r.instance == region.edge);
        arrived.filter_map(|last| self.way(last)).next()
    }

    fn way<'a>(&'a self, last: &'a Received) -> Option<Vec<&'a Received>> {
        let mut way = vec![last];
        while let Some(first) = way.first()
            && !first.span.parent_span_id.is_empty()
        {
            let parent = self.spans.iter().find(|r| r.span.span_id == first.span.parent_span_id)?;
            way.insert(0, parent);
        }
        Some(way)
    }

    fn child(&self, parent: &[u8], name: &str) -> Option<&Received> {
        self.spans.iter().find(|r| r.span.parent_span_id == parent && r.span.name == name)
    }
}
