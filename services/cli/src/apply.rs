//! `tidegate apply`, and the writing of a fleet file for other commands.

use std::{path::Path, time::Duration};

use tidegate_bus::{
    Bus,
    fleet::{FleetHead, FleetStore, FleetText, FleetWrite, FleetWritten},
};
use tidegate_model::fleet::Fleet;
use tidegate_service::shutdown;

use crate::{
    arguments::{ApplyOptions, BusOptions, WithheldChange},
    author::author,
    check,
    drain::one_line,
    events::moment,
    followed::Followed,
    link::{self, BusRetry},
    say::{say, say_line},
};

/// The attempts of a write that loses against concurrent ones.
const WRITE_ATTEMPTS: u32 = 5;

/// Checks a fleet file and writes it to the bus. An invalid file changes nothing.
pub async fn apply(file: &Path, options: ApplyOptions, bus: &BusOptions) -> anyhow::Result<()> {
    let (text, fleet) = check::read(file)?;
    let link = link::connect(bus).await?;
    let change = Change {
        text,
        fleet,
        author: one_line(&author(options.author, bus)),
        reason: one_line(&options.reason),
        expected: options.expect_revision,
    };
    match change.write(&link).await? {
        FleetWritten::Unchanged(head) => say_line(format_args!(
            "{} is already applied, as revision {}: nothing was written",
            file.display(),
            head.revision
        )),
        FleetWritten::Applied(head) => say_applied(file, &head, &change.fleet),
        FleetWritten::Superseded(_) => unreachable!("an unexpected revision is an error of Change::write"),
    }
}

/// A fleet file that is to be applied.
pub struct Change {
    /// Its text.
    pub text: String,
    /// The fleet in it.
    pub fleet: Fleet,
    /// Who applies it.
    pub author: String,
    /// Why.
    pub reason: String,
    /// The revision that it must replace, if any.
    pub expected: Option<u64>,
}

impl Change {
    /// Writes the file, unless it is already applied.
    ///
    /// # Errors
    /// [`WithheldChange`] when another revision than the expected one is there; else when the bus is away.
    pub async fn write(&self, bus: &Bus) -> anyhow::Result<FleetWritten> {
        let store = FleetStore::new(bus);
        for _ in 0..WRITE_ATTEMPTS {
            let current = store.get().await?;
            let revision = current.as_ref().map_or(0, |fleet| fleet.head.revision);
            if let Some(expected) = self.expected.filter(|expected| *expected != revision) {
                return Err(superseded(expected, current.as_ref().map(|fleet| &fleet.head)).into());
            }
            if let Some(FleetText { head, .. }) = current.filter(|fleet| fleet.text == self.text) {
                return Ok(FleetWritten::Unchanged(head));
            }
            let write = FleetWrite {
                text: self.text.clone(),
                author: self.author.clone(),
                reason: self.reason.clone(),
                expected: Some(revision),
            };
            match store.apply(&write).await? {
                // What was checked above was checked against a file that has been replaced.
                FleetWritten::Superseded(_) => {}
                written => return Ok(written),
            }
        }
        anyhow::bail!(
            "others apply fleet files all the time: none of {WRITE_ATTEMPTS} attempts was the first"
        )
    }
}

fn superseded(expected: u64, there: Option<&FleetHead>) -> WithheldChange {
    WithheldChange(match there {
        None => format!(
            "no fleet was applied yet, so there is no revision {expected} to replace (--expect-revision 0 expects that)"
        ),
        Some(head) => format!(
            "the fleet is at revision {}, applied by {} at {}, not at {expected} (--expect-revision): nothing was applied; \
             `tidegate fleet diff {expected}` shows what has changed since",
            head.revision,
            head.author,
            moment(head.at)
        ),
    })
}

/// Applies the file and then each change of it, until interrupted. Waits for the bus. An invalid content is reported and
/// changes nothing, but the first one must be valid. A content that is already applied is not written again.
pub async fn watch(file: &Path, options: ApplyOptions, bus: &BusOptions) -> anyhow::Result<()> {
    let (mut text, mut fleet) = check::read(file)?;
    let stop = shutdown::on_signals()?;
    let link = link::open(bus).await?;
    let (author, reason) = (one_line(&author(options.author, bus)), one_line(&options.reason));
    let mut followed = Followed::new(file, text.clone());
    let mut applied = false;
    loop {
        let write =
            FleetWrite { text: text.clone(), author: author.clone(), reason: reason.clone(), expected: None };
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            written = write_in_the_end(&link, &write, bus.timeout), if !applied => {
                applied = true;
                match written {
                    FleetWritten::Applied(head) => say_applied(file, &head, &fleet)?,
                    FleetWritten::Unchanged(_) | FleetWritten::Superseded(_) => {
                        say_line(format_args!("{} is already applied", file.display()))?;
                    }
                }
            }
            // A change while the bus is away replaces the content that could not be written.
            next = followed.fleet() => {
                (text, fleet) = next;
                applied = false;
            }
        }
    }
}

/// Writes the fleet, however long the bus is away, which is reported after `at_first`.
async fn write_in_the_end(bus: &Bus, write: &FleetWrite, at_first: Duration) -> FleetWritten {
    // A connection that is still being made is not reported.
    bus.ready(at_first).await;
    let store = FleetStore::new(bus);
    let mut retry = BusRetry::default();
    loop {
        match store.apply(write).await {
            Ok(written) => return written,
            Err(error) => retry.wait(&error).await,
        }
    }
}

fn say_applied(file: &Path, head: &FleetHead, fleet: &Fleet) -> anyhow::Result<()> {
    say_line(format_args!(
        "applied {} as revision {}: {} clusters, {} services",
        file.display(),
        head.revision,
        fleet.clusters.len(),
        fleet.services.len()
    ))?;
    say_changes(head)
}

/// Prints what a revision changed, indented.
pub fn say_changes(head: &FleetHead) -> anyhow::Result<()> {
    for line in &head.changes.lines {
        say(format_args!("    {line}\n"))?;
    }
    if head.changes.more > 0 {
        say(format_args!("    and {} more\n", head.changes.more))?;
    }
    Ok(())
}
