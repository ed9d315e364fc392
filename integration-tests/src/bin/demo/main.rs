//! The demo: two regions on one machine, real processes on a real nats-server, and faults that no client notices.
//!
//! It must not judge by anything that an operator could not see: the bus, metrics, and the answers of requests.
#![forbid(unsafe_code)]

mod figures;
mod show;

use std::{process::ExitCode, time::Duration};

use clap::Parser;
use tidegate_bus::clock;
use tidegate_integration_tests::{
    Fault, Plan, World,
    load::{Load, LoadPlan, Record, Summary},
    metrics::Metrics,
    plan::{AWAY, HOME},
};
use tidegate_model::{Timestamp, fleet::parse_duration};

use figures::{Demo, Figures, Tried};
use show::Show;

/// How long a fault may take to be found, and the system to be well again.
const LIMIT: Duration = Duration::from_secs(30);
/// Answers to wait for before, during and after each fault: enough to see who serves.
const ANSWERS: usize = 1500;
/// So long that one sees traffic come back step by step, so short that the demo ends soon.
const SLOW_START: Duration = Duration::from_secs(2);
/// So short that three recoveries within a minute are not suppressed for long.
const FIRST_SUPPRESSION: Duration = Duration::from_millis(500);
/// Requests per second and connections through the first region's edge, and the second's.
const LOADS: [(u32, u32); 2] = [(600, 40), (200, 10)];

/// How long the whole may take, so that it ends within two minutes with what it takes to stop everything.
const WHOLE_LIMIT: &str = "110s";

/// Shows that traffic survives the loss of a cluster.
#[derive(Debug, Parser)]
#[command(name = "demo", version, about)]
struct Arguments {
    /// Print the summary as one JSON object on standard output, and the account on standard error.
    #[arg(long)]
    json: bool,
    /// End after this long, however far it has come, as failed.
    #[arg(long, default_value = WHOLE_LIMIT, value_parser = parse_duration)]
    limit: Duration,
}

#[tokio::main(worker_threads = 2)]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let show = Show::new(arguments.json);
    let demo = tokio::select! {
        demo = run(&show) => demo,
        _ = tokio::signal::ctrl_c() => {
            eprintln!("interrupted");
            return ExitCode::from(130);
        }
        () = tokio::time::sleep(arguments.limit) => {
            eprintln!("demo: not through after {:?}", arguments.limit);
            return ExitCode::FAILURE;
        }
    };
    match demo {
        Ok(demo) => {
            show.summary(&demo);
            if demo.ok { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(error) => {
            eprintln!("demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(show: &Show) -> anyhow::Result<Demo> {
    show.title(
        "Two regions, each with a nearest cluster of two endpoints, an edge, a prober and a route-computer.",
    );
    let plan = Plan { slow_start: SLOW_START, first_suppression: FIRST_SUPPRESSION, ..Plan::default() };
    let mut world = World::start(&plan).await?;
    let ran = drill(show, &mut world).await;
    if ran.as_ref().is_ok_and(|demo| demo.ok) {
        world.succeeded();
    }
    ran
}

async fn drill(show: &Show, world: &mut World) -> anyhow::Result<Demo> {
    let mut loads = Vec::new();
    for (region, (rate, connections)) in [HOME, AWAY].into_iter().zip(LOADS) {
        let target = world.edge_address(region.edge).await?;
        show.line(&format!(
            "{} serves {} on http://{target}: {rate} requests/s over {connections} connections, a quarter POST",
            region.edge, region.name
        ));
        loads.push(Load::start(LoadPlan { target, rate, connections })?);
    }
    let began_at = clock::now();
    settle(show, &loads, began_at).await?;

    let mut faults = Vec::new();
    let mut until = clock::now();
    for fault in Fault::ALL {
        let (figures, ended_at) = one(show, world, &loads, fault).await?;
        faults.push(figures);
        until = ended_at;
    }
    let mut records = Vec::new();
    for load in loads {
        records.extend(load.stop().await?);
    }
    let all = Summary::of(records.iter().filter(|record| record.due_at < until));
    Ok(Demo { ok: all.failed_get == 0, faults })
}

/// Makes one fault, takes it back, and says what it did.
async fn one(
    show: &Show,
    world: &mut World,
    loads: &[Load],
    fault: Fault,
) -> anyhow::Result<(Figures, Timestamp)> {
    show.title(fault.story());
    let before = tried(world).await?;
    let fault_at = world.inflict(fault).await?;
    let detection = world.until_found(fault, fault_at, LIMIT).await?;
    show.detection(&detection);
    settle(show, loads, detection.last_edge_at()).await?;

    let mended_at = clock::now();
    world.mend(fault).await?;
    show.line("undone");
    world.until_well(LIMIT).await?;
    let well_at = clock::now();
    show.line(&format!("all is as before, {:.1} s later", well_at.since(mended_at).as_secs_f64()));
    settle(show, loads, well_at).await?;

    let ended_at = clock::now();
    let summary = Summary::of(&between(loads, fault_at, ended_at));
    let tried = tried(world).await?.since(before);
    show.requests(&summary, tried);
    Ok((Figures::new(&detection, fault, &summary, tried), ended_at))
}

/// Waits for answers to requests that were due from `since` on, and says who gave them.
async fn settle(show: &Show, loads: &[Load], since: Timestamp) -> anyhow::Result<()> {
    for (load, (rate, _)) in loads.iter().zip(LOADS) {
        let answers = ANSWERS * rate as usize / LOADS[0].0 as usize;
        load.answered_since(since, answers, LIMIT).await?;
    }
    let to = clock::now();
    for (load, region) in loads.iter().zip([HOME, AWAY]) {
        show.serving(region.edge, &Summary::of(&load.between(since, to)));
    }
    Ok(())
}

fn between(loads: &[Load], from: Timestamp, to: Timestamp) -> Vec<Record> {
    loads.iter().flat_map(|load| load.between(from, to)).collect()
}

/// Retries and hedges of both edges so far.
async fn tried(world: &mut World) -> anyhow::Result<Tried> {
    let mut tried = Tried::default();
    for region in [HOME, AWAY] {
        let metrics: Metrics = world.edge_metrics(region.edge).await?;
        tried.retried += metrics.sum("tidegate_service_retries_total", &[]) as u64;
        tried.hedged += metrics.sum("tidegate_service_hedges_total", &[]) as u64;
    }
    Ok(tried)
}
