//! A whole process: exit codes, the ports file, signals. The process is this test's own binary, called again.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

use std::{
    fs,
    io::Read,
    process::{Child, Command, ExitCode, Stdio},
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};
use tidegate_bus::Bus;
use tidegate_service::{
    CommonSettings, Context, Description, Settings,
    settings::{AdminSection, LogSection, NatsSection, TelemetrySection},
};

#[derive(Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct TestSettings {
    nats: NatsSection,
    admin: AdminSection,
    log: LogSection,
    telemetry: TelemetrySection,
    fail: bool,
}

impl Settings for TestSettings {
    fn common(&self) -> CommonSettings {
        CommonSettings {
            nats: self.nats.clone(),
            admin: self.admin.clone(),
            log: self.log.clone(),
            telemetry: self.telemetry.clone(),
        }
    }

    fn docs(_: &str) -> Option<&'static str> {
        Some("A setting of the test.")
    }

    fn instance(&self) -> String {
        "test-1".to_owned()
    }
}

/// What the process does: waits for shutdown, or fails.
fn service() -> ExitCode {
    let about = Description { name: "tidegate-test", about: "Is tested.", version: "1.2.3" };
    tidegate_service::main(about, |settings: TestSettings, _: Bus, context: Context| async move {
        if settings.fail {
            anyhow::bail!("it was told to");
        }
        context.admin.started();
        context.shutdown.cancelled().await;
        Ok(())
    })
}

fn start(args: &[&str]) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    // What is set for whoever tests is no setting of the service.
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("TIDEGATE_")) {
        command.env_remove(name);
    }
    command
        .args(args)
        .env("ENTRY_TEST_IS_THE_SERVICE", "1")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

fn end(mut child: Child) -> (Option<i32>, String) {
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    (child.wait().unwrap().code(), said)
}

fn signal(child: &Child, name: &str) {
    let status = Command::new("sh").args(["-c", &format!("kill -{name} {}", child.id())]).status().unwrap();
    assert!(status.success());
}

fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "{what} did not come");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn wrong_settings_end_with_one_line_and_code_2() {
    let (code, said) = end(start(&["--admin-bind", "nowhere"]));
    assert_eq!(code, Some(2));
    assert_eq!(said.trim_end().lines().count(), 1, "{said}");
    assert!(said.starts_with("tidegate-test: ") && said.contains("--admin-bind"), "{said}");
    assert_eq!(end(start(&["--no-such-flag"])).0, Some(2));
}

fn a_failure_ends_with_code_1() {
    let (code, said) = end(start(&["--fail", "true"]));
    assert_eq!(code, Some(1));
    assert!(said.contains("tidegate-test: it was told to"), "{said}");
    assert_eq!(said.matches("it was told to").count(), 1, "{said}");

    let (code, said) = end(start(&["--fail", "true", "--log-format", "json"]));
    assert_eq!(code, Some(1));
    assert_eq!(said.matches("it was told to").count(), 1, "{said}");
    assert!(said.lines().all(|line| line.starts_with('{')), "{said}");
    let (_, said) = end(start(&["--fail", "true", "--log-format", "json", "--log-filter", "off"]));
    assert_eq!(said, "tidegate-test: it was told to\n");
}

fn sigterm_ends_it_well_after_it_has_listened() {
    let file = std::env::temp_dir().join(format!("tidegate-entry-{}.json", std::process::id()));
    let child = start(&["--ports-file", file.to_str().unwrap(), "--log-format", "json"]);
    let address: std::net::SocketAddr = wait_for("the ports file", || {
        let ports: serde_json::Value = serde_json::from_str(&fs::read_to_string(&file).ok()?).ok()?;
        ports["admin"].as_str()?.parse().ok()
    });
    wait_for("readiness", || {
        use std::io::Write;
        let mut stream = std::net::TcpStream::connect(address).ok()?;
        stream.write_all(b"GET /readyz HTTP/1.0\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        answer.contains(" 200 ").then_some(())
    });

    signal(&child, "TERM");

    let (code, said) = end(child);
    fs::remove_file(file).unwrap();
    assert_eq!(code, Some(0), "{said}");
    for line in said.lines() {
        let line: serde_json::Value =
            serde_json::from_str(line).unwrap_or_else(|_| panic!("not JSON: {line}"));
        assert_eq!((&line["service"], &line["instance"]), (&"tidegate-test".into(), &"test-1".into()));
    }
    assert!(said.contains("shutting down") && said.contains("stopped"), "{said}");
}

fn healthcheck_asks_the_service_that_runs_with_the_same_settings() {
    let file = std::env::temp_dir().join(format!("tidegate-healthcheck-{}.json", std::process::id()));
    let child = start(&["--ports-file", file.to_str().unwrap()]);
    let address = wait_for("the ports file", || {
        let ports: serde_json::Value = serde_json::from_str(&fs::read_to_string(&file).ok()?).ok()?;
        Some(ports["admin"].as_str()?.to_owned())
    });
    // As it would be bound in a container: to all addresses.
    let everywhere = address.replace("127.0.0.1", "0.0.0.0");

    wait_for("health", || {
        (end(start(&["healthcheck", "--admin-bind", &everywhere])).0 == Some(0)).then_some(())
    });

    signal(&child, "TERM");
    assert_eq!(end(child).0, Some(0));
    fs::remove_file(file).unwrap();
    let (code, said) = end(start(&["healthcheck", "--admin-bind", &address]));
    assert_eq!(code, Some(1));
    assert!(said.contains("does not respond"), "{said}");
    let (code, said) = end(start(&["healthcheck"]));
    assert_eq!(code, Some(1));
    assert!(said.contains("admin.bind has port 0"), "{said}");
}

fn main() -> ExitCode {
    if std::env::var_os("ENTRY_TEST_IS_THE_SERVICE").is_some() {
        return service();
    }
    let tests: [(&str, fn()); 4] = [
        ("wrong_settings_end_with_one_line_and_code_2", wrong_settings_end_with_one_line_and_code_2),
        ("a_failure_ends_with_code_1", a_failure_ends_with_code_1),
        ("sigterm_ends_it_well_after_it_has_listened", sigterm_ends_it_well_after_it_has_listened),
        (
            "healthcheck_asks_the_service_that_runs_with_the_same_settings",
            healthcheck_asks_the_service_that_runs_with_the_same_settings,
        ),
    ];
    // The part of the test harness's command line that test runners rely on.
    let args: Vec<String> = std::env::args().skip(1).collect();
    let has = |flag: &str| args.iter().any(|arg| arg == flag);
    let filter = args.iter().find(|arg| !arg.starts_with('-') && *arg != "terse");
    let chosen = tests.iter().filter(|(name, _)| filter.is_none_or(|filter| name.contains(filter.as_str())));
    for (name, test) in chosen {
        if has("--list") {
            // There are no ignored ones.
            if !has("--ignored") {
                println!("{name}: test");
            }
        } else if !has("--ignored") {
            test();
            println!("test {name} ... ok");
        }
    }
    ExitCode::SUCCESS
}
