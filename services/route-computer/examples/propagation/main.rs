//! The time that a verdict takes to reach every edge of a region, and the time of the bus alone in the same run.
//!
//! `cargo run --release -p tidegate-route-computer --example propagation` starts a nats-server and, each on a connection of its
//! own, replicas of a region's routes (`--edges`) and as many bare subscriptions. In turn, one change of the table is published as
//! its owner does, and the same bytes to the bare subscriptions; a round's time is that of the last one that has it. The example is
//! here, and not with the bus, because the engine makes the changes. `--strict` fails if the limits are exceeded.
//!
//! Unlike real edges, all edges share the cores of one machine, so the work of a replica beside the bus counts once for each edge.
//! The ratio depends on the optimiser: the profile `ci` is at the limit.

mod edges;
mod rounds;
mod verdicts;

use std::{process::ExitCode, sync::Arc, time::Duration};

use anyhow::{Context as _, ensure};
use clap::Parser;
use edges::{Arrivals, Edges};
use rounds::{Measured, Rounds};
use tidegate_bus::{seal::Signer, testing::NatsServer};
use tidegate_model::SigningPublicKey;
use tidegate_service::{files::raise_open_files, shutdown};
use tokio::sync::mpsc;

/// The same as that of an edge.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The limit of the 99th percentile.
const LIMIT: Duration = Duration::from_millis(50);
/// The limit of the median, as a multiple of the bus alone.
const TIMES_LIMIT: f64 = 1.5;

#[derive(Parser)]
struct Arguments {
    /// Edges that follow the table, and bare subscriptions.
    #[arg(long, default_value_t = 1000)]
    edges: usize,
    /// Changes of the table, and messages to the bare subscriptions.
    #[arg(long, default_value_t = 100)]
    rounds: usize,
    /// Threads that the edges are spread over.
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Sign what is published, and check it at each edge.
    #[arg(long)]
    signed: bool,
    /// Fail where the 99th percentile is above 50 ms or the median above 1.5 times the bus's.
    #[arg(long)]
    strict: bool,
}

fn main() -> anyhow::Result<ExitCode> {
    let arguments = Arguments::parse();
    ensure!(arguments.edges > 0 && arguments.rounds > 0 && arguments.threads > 0, "nothing to measure");
    let wanted = 2 * arguments.edges as u64 + 200;
    let files = raise_open_files()?;
    ensure!(
        files >= wanted,
        "{files} open files are too few for {wanted}: raise the hard limit (ulimit -Hn)"
    );
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(run(&arguments))
}

async fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let stop = shutdown::on_signals()?;
    // Killed when it is dropped, so also where something below fails.
    let server = NatsServer::start();
    let (last, arrived) = mpsc::channel(1);
    let arrivals = Arrivals::new(last);
    let signer = arguments.signed.then(|| Arc::new(Signer::ephemeral()));
    let keys: Vec<SigningPublicKey> = signer.iter().map(|signer| signer.public_key()).collect();
    let mut rounds = Rounds::new(&server.url(), arguments.edges, &arrivals, arrived, signer).await?;
    let edges = Edges::start(&server.url(), arguments.edges, arguments.threads, &arrivals, &keys, &stop)?;
    let measured = tokio::select! {
        measured = rounds.run(arguments.rounds) => Some(measured),
        () = stop.cancelled() => None,
    };
    stop.cancel();
    edges.join()?;
    let measured = measured.context("ended by a signal")??;
    Ok(print_result(arguments, &measured, arrivals.repairs()))
}

fn print_result(arguments: &Arguments, measured: &Measured, repairs: usize) -> ExitCode {
    let Arguments { edges, rounds, threads, signed, strict } = arguments;
    let Measured { verdicts, alone, bytes } = measured;
    println!(
        "{edges} edges on {threads} threads, {rounds} {} changes of up to {bytes} bytes, until the last has it",
        if *signed { "signed" } else { "unsigned" }
    );
    for (what, times) in [("verdict", verdicts), ("bus alone", alone)] {
        let [median, p99, most] = [times.median, times.p99, times.most].map(|time| time.as_secs_f64() * 1e3);
        println!("  {what:<10} median {median:6.1} ms  p99 {p99:6.1} ms  at most {most:6.1} ms");
    }
    let times = |verdict: Duration, bus: Duration| verdict.as_secs_f64() / bus.as_secs_f64();
    let of_medians = times(verdicts.median, alone.median);
    println!("  ratio      median {of_medians:6.2}     p99 {:6.2}", times(verdicts.p99, alone.p99));
    if repairs > 0 {
        println!("  {repairs} times an edge had to ask for a snapshot");
    }
    let kept = verdicts.p99 <= LIMIT && of_medians <= TIMES_LIMIT;
    if !kept {
        println!("  the limits ({LIMIT:?} at the 99th percentile, {TIMES_LIMIT} times the bus) are exceeded");
    }
    if kept || !strict { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
