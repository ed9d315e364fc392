//! What a real OTLP receiver has of requests and of metrics.

use std::{collections::BTreeSet, time::Duration};

use anyhow::Context as _;
use bytes::Bytes;
use http::{Request, header};
use http_body_util::Full;
use tidegate_integration_tests::{
    Fault, Plan, World, client,
    metrics::Metrics,
    plan::{AWAY, HOME, HOST, SERVICE},
    world::{START_LIMIT, until},
};

use crate::{
    collector::{Collector, Received},
    requests::{self, server, tries, whole},
    rotel::Rotel,
};

const LIMIT: Duration = Duration::from_secs(30);
/// A client's span, as its `traceparent` says it.
const CLIENT_SPAN: &str = "b7ad6b7169203331";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_fails_over_is_told_of_try_by_try() -> anyhow::Result<()> {
    // Given a system that sends its spans to a receiver.
    let (collector, rotel, mut world) = observed_world().await?;

    // When requests come that their client does not record, and then the nearer cluster is lost under one that it records.
    let quiet: Vec<String> = (0..50).map(|n| format!("{:032x}", 0xdead_0000_u64 + n)).collect();
    for id in &quiet {
        assert_eq!(ask(&mut world, HOME.edge, id, false).await?, 200);
    }
    world.inflict(Fault::Kill).await?;
    let recorded = format!("{:032x}", 0xbeef_u64);
    assert_eq!(ask(&mut world, HOME.edge, &recorded, true).await?, 200);

    // Then that one is a span of the edge with one for each try.
    let spans = whole(&collector, &recorded).await?;
    let server = server(&spans);
    assert_eq!(server.parent_id(), CLIENT_SPAN);
    assert_eq!((server.instance.as_str(), server.span.name.as_str()), (HOME.edge, "GET"));
    for (key, value) in [
        ("tidegate.service", SERVICE),
        ("tidegate.cluster", AWAY.cluster),
        ("http.response.status_code", "200"),
        ("http.request.method", "GET"),
    ] {
        assert_eq!(server.attribute(key).as_deref(), Some(value), "{key}");
    }
    let tries = tries(&spans);
    let told = |received: &Received, key: &str| received.attribute(key).unwrap_or_default();
    let clusters: Vec<String> = tries.iter().map(|received| told(received, "tidegate.cluster")).collect();
    assert_eq!(clusters.first().map(String::as_str), Some(HOME.cluster), "{clusters:?}");
    assert_eq!(clusters.last().map(String::as_str), Some(AWAY.cluster), "{clusters:?}");
    for (place, one) in tries.iter().enumerate() {
        let cluster = if told(one, "tidegate.cluster") == HOME.cluster { HOME } else { AWAY };
        let endpoint = told(one, "tidegate.endpoint");
        let is_of_it = |name: &String| world.origins[name].address().to_string() == endpoint;
        assert!(cluster.origins().iter().any(is_of_it), "{endpoint}");
        assert_eq!(told(one, "tidegate.tier"), if cluster.cluster == HOME.cluster { "0" } else { "1" });
        assert_eq!(told(one, "tidegate.attempt"), (place + 1).to_string());
        assert_eq!(told(one, "tidegate.reason"), if place == 0 { "first" } else { "retry" });
        let is_last = place + 1 == tries.len();
        assert_eq!(told(one, "error.type").is_empty(), is_last, "{:?}", one.span);
        assert_eq!(told(one, "http.response.status_code"), if is_last { "200" } else { "" });
        let (outer, inner) = (&server.span, &one.span);
        assert!(outer.start_time_unix_nano <= inner.start_time_unix_nano, "{inner:?} in {outer:?}");
        assert!(inner.end_time_unix_nano <= outer.end_time_unix_nano, "{inner:?} in {outer:?}");
    }

    // When another cluster is lost under a request that its client does not record, then it is told of all the same.
    world.mend(Fault::Kill).await?;
    world.until_well(LIMIT).await?;
    for name in AWAY.origins() {
        world.origins.get_mut(&name).expect("the plan has it").process.kill();
    }
    let saved = format!("{:032x}", 0xcafe_u64);
    assert_eq!(ask(&mut world, AWAY.edge, &saved, false).await?, 200);
    let spans = whole(&collector, &saved).await?;
    assert_eq!(requests::server(&spans).attribute("tidegate.cluster").as_deref(), Some(HOME.cluster));
    assert!(requests::tries(&spans).len() > 1);

    // And of those that nothing happened to there is nothing.
    let all = collector.spans();
    assert!(!all.iter().any(|received| quiet.contains(&received.trace_id())));
    rotel.succeeded();
    world.succeeded();
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_receiver_has_the_metrics_that_prometheus_reads() -> anyhow::Result<()> {
    // Given a system that sends its metrics to a receiver.
    let (collector, rotel, mut world) = observed_world().await?;
    assert_eq!(world.ask(HOME.edge).await?.0, 200);

    // When it has sent them, then of each process there are those that the process shows itself.
    let World { probers, computers, edges, .. } = &mut world;
    for process in probers.values_mut().chain(computers.values_mut()).chain(edges.values_mut()) {
        let admin = process.addresses(&["admin"], START_LIMIT).await?[0];
        let name = process.name().to_owned();
        let mut differ = BTreeSet::new();
        let same = until(&format!("the metrics of {name} are the same in both"), LIMIT, async || {
            let shown = Metrics::read(admin).await?;
            let shown: BTreeSet<String> = shown.names().into_iter().map(str::to_owned).collect();
            // Prometheus takes no dots, and has the unit in the name.
            // A route-computer's name is preceded by its region.
            let is_it = |instance: &str| instance.rsplit('/').next() == Some(name.as_str());
            let sent = collector.metrics().into_iter().find(|(instance, _)| is_it(instance));
            let sent = sent.unwrap_or_default().1.into_iter().map(|name| {
                if name.contains('.') { format!("{}_seconds", name.replace('.', "_")) } else { name }
            });
            differ = shown.symmetric_difference(&sent.collect()).cloned().collect();
            Ok(differ.is_empty().then_some(()))
        })
        .await;
        same.with_context(|| format!("{differ:?} are not"))?;
    }
    rotel.succeeded();
    world.succeeded();
    Ok(())
}

async fn observed_world() -> anyhow::Result<(Collector, Rotel, World)> {
    let collector = Collector::start().await?;
    let rotel = Rotel::start(&collector).await?;
    let plan = Plan { otlp_endpoint: Some(rotel.endpoint().to_owned()), ..Plan::default() };
    let world = World::start(&plan).await?;
    Ok((collector, rotel, world))
}

/// The status of a GET through `edge` that is part of the trace `id`.
async fn ask(world: &mut World, edge: &str, id: &str, is_recorded: bool) -> anyhow::Result<u16> {
    let address = world.edge_address(edge).await?;
    let flags = if is_recorded { "01" } else { "00" };
    let request = Request::get("/")
        .header(header::HOST, HOST)
        .header(header::CONNECTION, "close")
        .header("traceparent", format!("00-{id}-{CLIENT_SPAN}-{flags}"))
        .body(Full::<Bytes>::default())?;
    Ok(client::send(address, request).await?.status().as_u16())
}
