//! The demo, as a user runs it.

use std::process::{Command, Stdio};

use serde_json::Value;
use tidegate_integration_tests::binaries;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_demo_loses_no_get_and_prints_its_figures_as_json() -> anyhow::Result<()> {
    let mut demo = Command::new(binaries::find("demo")?);
    demo.arg("--json").stdin(Stdio::null());
    let output = tokio::task::spawn_blocking(move || demo.output()).await??;

    let account = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{account}");
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
        for time in ["worst_get_ms", "verdict_to_last_edge_ms", "fault_to_last_edge_ms"] {
            assert!(fault[time].as_f64().is_some_and(|ms| ms > 0.0), "{time} in {fault}");
        }
        // Nobody needs to find what an operator does.
        assert_eq!(fault["first_failure_to_verdict_ms"].is_null(), fault["fault"] == "drain", "{fault}");
    }
    Ok(())
}
