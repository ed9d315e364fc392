//! The demo, as a user runs it.

use std::{
    fs,
    path::Path,
    process::{Output, Stdio},
    time::{Duration, Instant},
};

use serde_json::Value;
use tidegate_integration_tests::{binaries, directory::Directory, world::until};
use tokio::process::Command;

/// Within this it must have ended, whatever happens.
const MOST: Duration = Duration::from_secs(120);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_demo_loses_no_get_and_prints_its_figures_as_json() -> anyhow::Result<()> {
    let directory = Directory::new()?;
    let output = demo(&directory, &["--json"]).await?;

    let account = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{account}");
    assert_eq!(
        account.matches("ms of it to compute, by ").count(),
        10,
        "by each region, of each fault: {account}"
    );
    let figures: Value = serde_json::from_slice(&output.stdout)?;
    assert_eq!(figures["ok"], true, "{account}");
    let faults = figures["faults"].as_array().expect("a list of faults");
    let names: Vec<&str> = faults.iter().filter_map(|fault| fault["fault"].as_str()).collect();
    assert_eq!(names, ["kill", "freeze", "503", "endpoint", "drain"]);
    for fault in faults {
        assert_eq!(
            (&fault["failed_get"], &fault["slow_over_500ms"]),
            (&Value::from(0), &Value::from(0)),
            "{fault}"
        );
        assert!(fault["requests"].as_u64().is_some_and(|requests| requests > 1000), "{fault}");
        for count in ["failed_post", "retried", "hedged"] {
            assert!(fault[count].is_u64(), "{count} in {fault}");
        }
        for time in ["worst_get_ms", "computation_ms", "verdict_to_last_edge_ms", "fault_to_last_edge_ms"] {
            assert!(fault[time].as_f64().is_some_and(|ms| ms > 0.0), "{time} in {fault}");
        }
        // Nobody needs to find what an operator does.
        assert_eq!(fault["first_failure_to_verdict_ms"].is_null(), fault["fault"] == "drain", "{fault}");
    }
    directory.succeeded();
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_demo_that_is_not_through_in_time_ends_as_failed_and_leaves_nothing_running() -> anyhow::Result<()>
{
    // In the midst of the first fault, or before, where the machine is slow.
    let directory = Directory::new()?;
    let output = demo(&directory, &["--json", "--limit", "5s"]).await?;

    let account = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{account}");
    assert!(account.contains("not through after 5s"), "{account}");
    assert!(output.stdout.is_empty(), "{output:?}");
    until("none of its processes is left", Duration::from_secs(10), async || {
        Ok(running(directory.path()).is_empty().then_some(()))
    })
    .await?;
    directory.succeeded();
    Ok(())
}

/// Runs it with all its files in `directory`.
async fn demo(directory: &Directory, arguments: &[&str]) -> anyhow::Result<Output> {
    let began = Instant::now();
    let mut demo = Command::new(binaries::find("demo")?);
    demo.args(arguments).env("TMPDIR", directory.path()).stdin(Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(MOST, demo.output()).await??;
    println!("the demo took {:?}", began.elapsed());
    Ok(output)
}

/// The command lines of processes that were told of files in `directory`.
fn running(directory: &Path) -> Vec<String> {
    let directory = directory.display().to_string();
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let commands = processes.filter_map(|process| fs::read_to_string(process.path().join("cmdline")).ok());
    commands.filter(|command| command.contains(&directory)).collect()
}
