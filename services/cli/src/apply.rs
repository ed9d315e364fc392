//! `tidegate apply`, and the writing of a fleet file for other commands.

use std::{path::Path, time::Duration};

use serde_json::json;
use tidegate_bus::{
    Bus,
    fleet::{FleetHead, FleetStore, FleetText, FleetWrite, FleetWritten},
};
use tidegate_model::fleet::{Fleet, FleetChange, changes};
use tidegate_routing::Hypothesis;
use tidegate_service::shutdown;

use crate::{
    arguments::{ApplyOptions, BusOptions, GuardOptions, WithheldChange, WrongArgument},
    author::author,
    check,
    drain::one_line,
    effect::{Effects, percent, regions_with_edges},
    events::moment,
    followed::Followed,
    guard::objections,
    link::{self, BusRetry},
    say::{say, say_line},
    words::format_count,
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
        guard: options.guard,
    };
    if options.dry_run {
        return dry_run(file, &change, &link, options.json, bus.timeout).await;
    }
    match change.write(&link, bus.timeout).await? {
        FleetWritten::Unchanged(head) => say_line(format_args!(
            "{} is already applied, as revision {}: nothing was written",
            check::name_of(file),
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
    /// What it may do without confirmation.
    pub guard: GuardOptions,
}

/// What a change would do.
struct Preview {
    changes: Vec<FleetChange>,
    /// The effect on traffic; absent where no fleet was applied before, or that one cannot be read.
    effects: Option<Effects>,
    /// What asks for confirmation.
    objections: Vec<String>,
}

impl Change {
    /// Writes the file, unless it is already applied. What cannot be computed before is reported and keeps nobody from it.
    ///
    /// # Errors
    /// [`WithheldChange`] when another revision than the expected one is there, or it needs confirmation; else when the bus
    /// is away.
    pub async fn write(&self, bus: &Bus, limit: Duration) -> anyhow::Result<FleetWritten> {
        let store = FleetStore::new(bus);
        for _ in 0..WRITE_ATTEMPTS {
            let current = store.get().await?;
            let revision = current.as_ref().map_or(0, |fleet| fleet.head.revision);
            if let Some(expected) = self.expected.filter(|expected| *expected != revision) {
                return Err(superseded(expected, current.as_ref().map(|fleet| &fleet.head)).into());
            }
            if let Some(FleetText { head, .. }) = current.as_ref().filter(|fleet| fleet.text == self.text) {
                return Ok(FleetWritten::Unchanged(head.clone()));
            }
            if !self.guard.yes {
                let preview = self.preview(bus, current.as_ref(), limit).await?;
                for (region, why) in preview.effects.iter().flat_map(|effects| &effects.unknown) {
                    eprintln!("tidegate: the effect on {region} could not be computed: {why}");
                }
                if !preview.objections.is_empty() {
                    return Err(needs_confirmation(&preview.objections).into());
                }
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
            "gave up after {WRITE_ATTEMPTS} attempts: each time somebody else applied a fleet file first"
        )
    }

    /// What it would do to the current fleet.
    async fn preview(
        &self,
        bus: &Bus,
        current: Option<&FleetText>,
        limit: Duration,
    ) -> anyhow::Result<Preview> {
        let before = match current.map(|current| Fleet::parse(&current.text, "fleet")) {
            Some(Ok(before)) => before,
            // A file of another version is replaced as it is.
            Some(Err(_)) => {
                let objection = "the fleet on the bus cannot be read by this version of tidegate, so what would change is unknown";
                let objections = vec![objection.to_owned()];
                return Ok(Preview { changes: Vec::new(), effects: None, objections });
            }
            None => {
                let changes = changes(&Fleet::default(), &self.fleet);
                return Ok(Preview { changes, effects: None, objections: Vec::new() });
            }
        };
        let changes = changes(&before, &self.fleet);
        let effects = match changes.is_empty() {
            // Comments move nothing.
            true => Effects::default(),
            false => {
                let hypothesis = Hypothesis { fleet: Some(self.text.clone()), ..Hypothesis::default() };
                Effects::compute(bus, regions_with_edges(&before, &[]), &hypothesis, limit).await?
            }
        };
        let objections = objections(&before, &self.fleet, &effects, self.guard.max_moved);
        Ok(Preview { changes, effects: Some(effects), objections })
    }
}

fn needs_confirmation(objections: &[String]) -> WithheldChange {
    WithheldChange(format!(
        "nothing was applied, since it needs confirmation:\n    {}\n--yes applies it all the same, --dry-run shows the whole effect",
        objections.join("\n    ")
    ))
}

/// Prints what a change would do.
async fn dry_run(file: &Path, change: &Change, bus: &Bus, json: bool, limit: Duration) -> anyhow::Result<()> {
    let current = FleetStore::new(bus).get().await?;
    let revision = current.as_ref().map_or(0, |fleet| fleet.head.revision);
    let preview = change.preview(bus, current.as_ref(), limit).await?;
    let Preview { changes, effects, objections } = &preview;
    if json {
        say_line(json!({
            "revision": revision,
            "changes": changes,
            "effect": effects.as_ref().map(Effects::json),
            "objections": objections,
        }))?;
    } else if current.as_ref().is_some_and(|fleet| fleet.text == change.text) {
        say_line(format_args!("{} is already applied, as revision {revision}", check::name_of(file)))?;
    } else {
        let what = match revision {
            0 => "would be the first fleet".to_owned(),
            revision => format!("would replace revision {revision}"),
        };
        say_line(format_args!("{} {what}; nothing was written", check::name_of(file)))?;
        for line in changes {
            say_line(format_args!("    {line}"))?;
        }
        match (effects, &current) {
            (Some(effects), _) => {
                say(effects.text())?;
                say_line(format_args!("{} % of all traffic would move", percent(effects.moved_permille())))?;
            }
            (None, None) => say_line("no fleet was applied yet, so no traffic would move")?,
            (None, Some(_)) => {
                say_line("the fleet on the bus cannot be read by this version: its effect is unknown")?;
            }
        }
    }
    if let Some(expected) = change.expected.filter(|expected| *expected != revision) {
        return Err(superseded(expected, current.as_ref().map(|fleet| &fleet.head)).into());
    }
    if !objections.is_empty() && !change.guard.yes {
        return Err(WithheldChange(format!(
            "it would need confirmation (--yes):\n    {}",
            objections.join("\n    ")
        ))
        .into());
    }
    let all_known = effects.as_ref().is_none_or(|effects| effects.unknown.is_empty());
    anyhow::ensure!(all_known, "not all could be computed");
    Ok(())
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
    if check::is_standard_input(file) {
        return Err(WrongArgument("standard input cannot be watched: name a file".to_owned()).into());
    }
    if options.guard.yes {
        return Err(WrongArgument("--watch asks for no confirmation: leave --yes out".to_owned()).into());
    }
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
                        say_line(format_args!("{} is already applied", check::name_of(file)))?;
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
        "applied {} as revision {}: {}, {}",
        check::name_of(file),
        head.revision,
        format_count(fleet.clusters.len(), "cluster"),
        format_count(fleet.services.len(), "service")
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
