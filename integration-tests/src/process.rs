//! A child process: its log and its addresses in files, killed when dropped.

use std::{
    collections::BTreeMap,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};

use anyhow::Context as _;
use tokio::time::Instant;

use crate::binaries;

/// How often a condition on files and processes is looked at.
pub(crate) const LOOK_EVERY: Duration = Duration::from_millis(5);

/// A child process that can be killed, frozen and started again.
#[derive(Debug)]
pub struct Process {
    name: String,
    program: String,
    arguments: Vec<String>,
    log: PathBuf,
    ports: PathBuf,
    child: Option<Child>,
}

impl Process {
    /// Starts the binary `program` as `name`, with its log and ports file in `directory`.
    ///
    /// # Errors
    /// When it is not there or cannot be started.
    pub fn start(
        program: &str,
        name: &str,
        directory: &Path,
        arguments: Vec<String>,
    ) -> anyhow::Result<Process> {
        let mut process = Process {
            name: name.to_owned(),
            program: program.to_owned(),
            arguments,
            log: directory.join(format!("{name}.log")),
            ports: directory.join(format!("{name}.ports.json")),
            child: None,
        };
        process.run()?;
        Ok(process)
    }

    /// Starts another with the same arguments, as a person does by mistake.
    ///
    /// # Errors
    /// As for [`Process::start`].
    pub fn double(&self) -> anyhow::Result<Process> {
        let directory = self.log.parent().context("a log is in a directory")?;
        Process::start(&self.program, &format!("{}.double", self.name), directory, self.arguments.clone())
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Starts it again, with the same arguments. Its log goes on.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn restart(&mut self) -> anyhow::Result<()> {
        self.kill();
        self.run()
    }

    /// Sends SIGKILL and returns at once; [`Process::reap`] waits for the end.
    pub fn send_kill(&mut self) {
        if let Some(child) = &mut self.child {
            // It may have ended by itself.
            _ = child.kill();
        }
    }

    /// Waits for a killed process to be gone.
    pub fn reap(&mut self) {
        if let Some(mut child) = self.child.take() {
            _ = child.wait();
        }
    }

    /// Kills it (SIGKILL) and waits until it is gone.
    pub fn kill(&mut self) {
        self.send_kill();
        self.reap();
    }

    /// Freezes it (SIGSTOP): its connections stay, nothing is answered.
    pub fn freeze(&self) {
        signal("STOP", &[self]);
    }

    /// Lets a frozen process go on (SIGCONT).
    pub fn thaw(&self) {
        signal("CONT", &[self]);
    }

    /// Asks it to end (SIGTERM) and waits for that.
    ///
    /// # Errors
    /// When it does not run, or has not ended after `limit`.
    pub async fn terminate(&mut self, limit: Duration) -> anyhow::Result<ExitStatus> {
        signal("TERM", &[self]);
        self.ended(limit).await
    }

    /// Asks it to end as Ctrl-C does (SIGINT); [`Process::ended`] waits for that.
    pub fn interrupt(&self) {
        signal("INT", &[self]);
    }

    /// Waits until it has ended by itself.
    ///
    /// # Errors
    /// When it does not run, or has not ended after `limit`.
    pub async fn ended(&mut self, limit: Duration) -> anyhow::Result<ExitStatus> {
        let deadline = Instant::now() + limit;
        loop {
            let child = self.child.as_mut().with_context(|| format!("{} does not run", self.name))?;
            if let Some(status) = child.try_wait()? {
                self.child = None;
                return Ok(status);
            }
            anyhow::ensure!(Instant::now() < deadline, "{} has not ended after {limit:?}", self.name);
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Waits until it says that it listens on all of `listeners`, and returns their addresses.
    ///
    /// # Errors
    /// When it has ended, or does not listen after `limit`.
    pub async fn addresses(
        &mut self,
        listeners: &[&str],
        limit: Duration,
    ) -> anyhow::Result<Vec<SocketAddr>> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(addresses) = self.noted_addresses(listeners) {
                return Ok(addresses);
            }
            if let Some(child) = &mut self.child
                && let Some(status) = child.try_wait()?
            {
                anyhow::bail!("{} has ended ({status}):\n{}", self.name, self.log_tail());
            }
            anyhow::ensure!(
                Instant::now() < deadline,
                "{} does not listen on {listeners:?} after {limit:?}:\n{}",
                self.name,
                self.log_tail()
            );
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Its log so far.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// The last lines of its log.
    pub fn log_tail(&self) -> String {
        let text = self.log();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }

    fn noted_addresses(&self, listeners: &[&str]) -> Option<Vec<SocketAddr>> {
        let text = fs::read(&self.ports).ok()?;
        let all: BTreeMap<String, SocketAddr> = serde_json::from_slice(&text).ok()?;
        listeners.iter().map(|name| all.get(*name).copied()).collect()
    }

    fn run(&mut self) -> anyhow::Result<()> {
        _ = fs::remove_file(&self.ports);
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.log)
            .with_context(|| format!("{} cannot be written", self.log.display()))?;
        let child = binaries::command(&self.program)?
            .args(&self.arguments)
            .arg("--ports-file")
            .arg(&self.ports)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("{} cannot be started", self.program))?;
        self.child = Some(child);
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Sends a signal to those of `processes` that run, all at once.
pub fn signal(signal: &str, processes: &[&Process]) {
    let ids: Vec<String> =
        processes.iter().filter_map(|process| Some(process.child.as_ref()?.id().to_string())).collect();
    if ids.is_empty() {
        return;
    }
    let kill = format!("kill -{signal} {}", ids.join(" "));
    let sent = Command::new("sh").args(["-c", &kill]).status();
    assert!(sent.is_ok_and(|status| status.success()), "{kill} failed");
}
