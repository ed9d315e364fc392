//! The cost of 10,000 endpoints at one probe per second: `cargo bench -p tidegate-health-prober --bench endpoints`.
//!
//! The prober runs here, on one thread, with its bus in process; the endpoints are addresses of 127.0.0.0/8 that one
//! origin in a process of its own serves. Prints one JSON object.
#![allow(clippy::unwrap_used, reason = "a benchmark that can't go on should end loudly")]

use std::{
    env, fs,
    io::{BufRead, BufReader},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use tidegate_bus::{Bus, fleet::FleetStore};
use tidegate_health_prober::{ProberSettings, run};
use tidegate_service::{Context, Registry};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};
use tokio_util::sync::CancellationToken;

const ENDPOINTS: usize = 10_000;
const WARM_UP: Duration = Duration::from_secs(15);
const MEASURED: Duration = Duration::from_secs(20);
/// Makes this program the origin.
const ORIGIN: &str = "TIDEGATE_BENCH_ORIGIN";

fn main() {
    let files = rlimit::increase_nofile_limit(u64::MAX).unwrap();
    assert!(files > ENDPOINTS as u64 + 100, "{files} open files are too few");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    if env::var_os(ORIGIN).is_some() {
        runtime.block_on(origin());
    } else {
        runtime.block_on(prober());
    }
}

/// Responds with 200 to every request, and prints its port.
async fn origin() {
    let listener = TcpListener::bind("0.0.0.0:0").await.unwrap();
    println!("{}", listener.local_addr().unwrap().port());
    while let Ok((mut stream, _)) = listener.accept().await {
        tokio::spawn(async move {
            let mut request = [0; 1024];
            while stream.read(&mut request).await.is_ok_and(|count| count > 0) {
                if stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nok\n").await.is_err() {
                    return;
                }
            }
        });
    }
}

fn fleet(port: &str) -> String {
    let address =
        |number: usize| format!("127.{}.{}.{}", 1 + number / 62_500, number / 250 % 250, number % 250 + 1);
    let clusters: String = (0..ENDPOINTS / 10)
        .map(|cluster| {
            let endpoints: Vec<String> =
                (0..10).map(|index| format!("\"{}:{port}\"", address(cluster * 10 + index))).collect();
            format!("  c{cluster}: {{ region: eu, endpoints: [{}] }}\n", endpoints.join(", "))
        })
        .collect();
    let names: Vec<String> = (0..ENDPOINTS / 10).map(|cluster| format!("c{cluster}")).collect();
    format!(
        "regions: {{ eu: {{}} }}\nclusters:\n{clusters}services:\n  shop: {{ hosts: [shop], clusters: [{}], \
         health: {{ path: /healthz, interval: 1s, timeout: 800ms }} }}\n",
        names.join(", ")
    )
}

/// CPU seconds that this process has used, and those of them in the kernel.
fn cpu() -> (f64, f64) {
    let stat = fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
    // In ticks of 1/100 s, on every Linux that matters here.
    let (user, system): (f64, f64) = (fields[11].parse().unwrap(), fields[12].parse().unwrap());
    ((user + system) / 100.0, system / 100.0)
}

fn resident_mib() -> f64 {
    let statm = fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<f64>().unwrap() * 4096.0 / f64::from(1 << 20)
}

/// The sum of the metric's samples whose labels contain `label`.
fn metric(registry: &Registry, name: &str, label: &str) -> f64 {
    let text = registry.to_text();
    let samples = text.lines().filter(|line| line.starts_with(name) && line.contains(label));
    samples.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}

async fn prober() {
    let mut origin =
        Command::new(env::current_exe().unwrap()).env(ORIGIN, "1").stdout(Stdio::piped()).spawn().unwrap();
    let mut port = String::new();
    BufReader::new(origin.stdout.take().unwrap()).read_line(&mut port).unwrap();

    let bus = Bus::in_process();
    FleetStore::new(&bus).put(&fleet(port.trim()), "bench").await.unwrap();
    let settings = ProberSettings {
        region: Some("eu".parse().unwrap()),
        name: Some("prober-1".parse().unwrap()),
        ..ProberSettings::default()
    };
    let context = Context::embedded("prober-1", CancellationToken::new());
    let (registry, shutdown) = (context.registry.clone(), context.shutdown.clone());
    let measuring = async {
        tokio::time::sleep(WARM_UP).await;
        let counts = || {
            let pass = metric(&registry, "tidegate_probes_total", "\"pass\"");
            (pass, metric(&registry, "tidegate_probes_total", "") - pass)
        };
        let (began, before, (passed, failed)) = (Instant::now(), cpu(), counts());
        tokio::time::sleep(MEASURED).await;
        let (seconds, after, (passed_then, failed_then)) = (began.elapsed().as_secs_f64(), cpu(), counts());
        println!(
            "{{\"endpoints\": {ENDPOINTS}, \"probes_per_second\": {:.0}, \"failed\": {}, \"cpu_per_second\": {:.3}, \
             \"of_it_in_the_kernel\": {:.3}, \"resident_mib\": {:.0}}}",
            (passed_then - passed) / seconds,
            failed_then - failed,
            (after.0 - before.0) / seconds,
            (after.1 - before.1) / seconds,
            resident_mib()
        );
        let text = registry.to_text();
        text.lines()
            .filter(|line| line.starts_with("tidegate_probes_total"))
            .for_each(|line| eprintln!("{line}"));
        shutdown.cancel();
    };
    let (ran, ()) = tokio::join!(run(settings, bus, context), measuring);
    origin.kill().unwrap();
    origin.wait().unwrap();
    ran.unwrap();
}
