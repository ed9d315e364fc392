//! The `tidegate` command, as people run it on a world's bus.

use std::{
    process::{ExitStatus, Output, Stdio},
    time::Duration,
};

use anyhow::Context as _;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncRead, BufReader, Lines},
    process::{Child, ChildStderr, ChildStdout, Command},
    time::timeout,
};

use crate::{World, binaries};

/// How long a command may take, and how long what one that stays is to say.
const LIMIT: Duration = Duration::from_secs(60);

impl World {
    /// Runs a command to its end, as an operator.
    ///
    /// # Errors
    /// When it cannot be run, or has not ended after a minute.
    pub async fn cli(&self, arguments: &[&str]) -> anyhow::Result<Output> {
        self.cli_as("operator", arguments).await
    }

    /// Runs a command to its end, as any of the bus's users.
    ///
    /// # Errors
    /// When it cannot be run, or has not ended after a minute.
    pub async fn cli_as(&self, user: &str, arguments: &[&str]) -> anyhow::Result<Output> {
        let output = timeout(LIMIT, self.command(user, arguments)?.output()).await;
        Ok(output.with_context(|| format!("tidegate {arguments:?} does not end"))??)
    }

    /// Starts a command that stays, as an operator.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn cli_that_stays(&self, arguments: &[&str]) -> anyhow::Result<Staying> {
        let mut command = self.command("operator", arguments)?;
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let said = BufReader::new(child.stdout.take().context("its output")?).lines();
        let complained = BufReader::new(child.stderr.take().context("its errors")?).lines();
        Ok(Staying { child, said, complained })
    }

    fn command(&self, user: &str, arguments: &[&str]) -> anyhow::Result<Command> {
        let mut command = Command::from(binaries::command("tidegate")?);
        command
            .args(arguments)
            // Not all of its commands have flags for the bus.
            .env("TIDEGATE_NATS__SERVERS", self.nats.url())
            .env("TIDEGATE_NATS__USER", user)
            .env("TIDEGATE_NATS__PASSWORD", user)
            .stdin(Stdio::null())
            .kill_on_drop(true);
        Ok(command)
    }
}

/// A command that stays until it is told to end. Killed when dropped.
#[derive(Debug)]
pub struct Staying {
    child: Child,
    said: Lines<BufReader<ChildStdout>>,
    complained: Lines<BufReader<ChildStderr>>,
}

impl Staying {
    /// The next line of its output that holds `text`.
    ///
    /// # Errors
    /// When none has come after a minute, or its output has ended.
    pub async fn says(&mut self, text: &str) -> anyhow::Result<String> {
        with(&mut self.said, text).await
    }

    /// The next line of its errors that holds `text`.
    ///
    /// # Errors
    /// When none has come after a minute, or they have ended.
    pub async fn complains(&mut self, text: &str) -> anyhow::Result<String> {
        with(&mut self.complained, text).await
    }

    /// Asks it to end (SIGTERM) and waits for that.
    ///
    /// # Errors
    /// When it has not ended after a minute.
    pub async fn terminate(&mut self) -> anyhow::Result<ExitStatus> {
        // The shell's own command: a minimal system has no program of that name.
        let kill = format!("kill -TERM {}", self.child.id().context("it runs")?);
        Command::new("sh").args(["-c", &kill]).status().await?;
        Ok(timeout(LIMIT, self.child.wait()).await.context("it does not end")??)
    }
}

async fn with(lines: &mut Lines<BufReader<impl AsyncRead + Unpin>>, text: &str) -> anyhow::Result<String> {
    let mut others = Vec::new();
    let found = async {
        while let Some(line) = lines.next_line().await? {
            if line.contains(text) {
                return Ok(line);
            }
            others.push(line);
        }
        anyhow::bail!("the output has ended")
    };
    let found = timeout(LIMIT, found).await.unwrap_or_else(|_| Err(anyhow::anyhow!("not after {LIMIT:?}")));
    found.with_context(|| format!("no line with {text:?} after {others:?}"))
}
