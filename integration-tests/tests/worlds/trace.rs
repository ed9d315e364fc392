//! One trace tells of a failover, from the first failed request to the last edge.

use std::{collections::HashMap, time::Duration};

use tidegate_bus::clock;
use tidegate_integration_tests::{
    Fault, Plan, World,
    load::{Load, LoadPlan},
    plan::{AWAY, HOME, RegionPlan},
    world::until,
};

use crate::collector::{Collector, Received, attribute};

const LIMIT: Duration = Duration::from_secs(30);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_trace_leads_from_a_suspicion_to_every_edge() -> anyhow::Result<()> {
    // Given load on a system that sends its spans to a collector.
    let collector = Collector::start().await?;
    let plan = Plan { otlp_endpoint: Some(collector.endpoint().to_owned()), ..Plan::default() };
    let mut world = World::start(&plan).await?;
    let target = world.edge_address(HOME.edge).await?;
    let load = Load::start(LoadPlan { target, rate: 200, connections: 10 })?;
    load.answered_since(clock::now(), 200, LIMIT).await?;

    // When a cluster is killed, and that is found by suspicion.
    let fault_at = world.inflict(Fault::Kill).await?;
    let found = world.until_found(Fault::Kill, fault_at, LIMIT).await?;
    assert!(found.found.iter().any(|found| found.signal == "suspicion"), "{found:?}");
    load.stop().await?;

    // Then there is one trace that leads from an edge's suspicion to both edges.
    let whole = until("a trace that leads to both edges", LIMIT, async || {
        let traces = Traces::of(collector.spans());
        Ok(traces
            .by_id
            .into_values()
            .find(|trace| [HOME, AWAY].iter().all(|region| trace.way_to(region).is_some())))
    })
    .await?;
    for region in [HOME, AWAY] {
        let way = whole.way_to(&region).expect("it was there");
        let names: Vec<&str> = way.iter().map(|received| received.span.name.as_str()).collect();
        assert_eq!(names, ["suspicion", "probe after suspicion", "compute", "publish", "apply"]);

        // With the reasons: what failed, what the prober saw, what was concluded.
        let text = |place: usize, key: &str| {
            let span = &way[place].span;
            attribute(&span.attributes, key).unwrap_or_else(|| panic!("{} has no {key}", span.name))
        };
        assert_eq!(way[0].instance, HOME.edge);
        assert_eq!(text(0, "tidegate.cluster"), HOME.cluster);
        assert!(!text(0, "tidegate.reason").is_empty());
        assert!(text(1, "reason").contains("in a row"), "{}", text(1, "reason"));
        assert_eq!(text(2, "tidegate.region"), region.name);
        assert_eq!(text(4, "tidegate.edge"), region.edge);
        assert_eq!(text(4, "tidegate.revision"), text(3, "tidegate.revision"));
        let verdict = whole.child(&way[2].span.span_id, "verdict").expect("a computation with a verdict");
        let verdict = |key| attribute(&verdict.span.attributes, key).unwrap_or_default();
        assert_eq!(verdict("tidegate.cluster"), HOME.cluster);
        assert_eq!(verdict("tidegate.signal"), "suspicion");
        assert!(!verdict("tidegate.reason").is_empty());
        assert!(["down", "path down", "up"].contains(&verdict("tidegate.verdict").as_str()));

        // And in the order of time.
        let starts: Vec<u64> = way.iter().map(|received| received.span.start_time_unix_nano).collect();
        assert!(starts.is_sorted(), "{starts:?}");

        // And the history leads to the trace.
        let told = world.cli(&["events", "--json", "--region", region.name]).await?;
        let told = String::from_utf8(told.stdout)?;
        let id: String = way[0].span.trace_id.iter().map(|byte| format!("{byte:02x}")).collect();
        let of_the_trace: Vec<&str> = told.lines().filter(|line| line.contains(&id)).collect();
        for kind in ["\"decided\"", "\"applied\""] {
            assert!(of_the_trace.iter().any(|line| line.contains(kind)), "no {kind} with {id}: {told}");
        }
    }
    Ok(())
}

/// Spans by trace.
struct Traces {
    by_id: HashMap<Vec<u8>, Trace>,
}

#[derive(Default)]
struct Trace {
    spans: Vec<Received>,
}

impl Traces {
    fn of(spans: Vec<Received>) -> Traces {
        let mut by_id: HashMap<Vec<u8>, Trace> = HashMap::new();
        for received in spans {
            by_id.entry(received.span.trace_id.clone()).or_default().spans.push(received);
        }
        Traces { by_id }
    }
}

impl Trace {
    /// The spans from a root to an application at the region's edge, when the whole way was received.
    fn way_to(&self, region: &RegionPlan) -> Option<Vec<&Received>> {
        let arrived = self.spans.iter().filter(|r| r.span.name == "apply" && r.instance == region.edge);
        arrived.filter_map(|last| self.way(last)).find(|way| way[0].span.name == "suspicion")
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
