//! `tidegate fleet`: reads, compares and takes back what was applied.

use anyhow::Context as _;
use serde_json::json;
use std::path::Path;
use tidegate_bus::{
    Bus,
    fleet::{FleetHead, FleetStore, FleetText, FleetWritten},
};
use tidegate_model::fleet::{Fleet, changes};

use crate::{
    apply::{Change, say_changes},
    arguments::{BusOptions, RollbackOptions, WrongArgument},
    author::author,
    check,
    drain::one_line,
    events::moment,
    link,
    say::{say, say_line},
};

const NO_FLEET: &str = "no fleet was applied yet (tidegate apply)";

/// Prints the fleet file as it was applied, or one of the revisions before it.
pub async fn get(revision: Option<u64>, options: &BusOptions) -> anyhow::Result<()> {
    let bus = link::connect(options).await?;
    let fleet = match revision {
        Some(number) => read(&bus, number).await?,
        None => FleetStore::new(&bus).get().await?.context(NO_FLEET)?,
    };
    say(fleet.text)
}

/// Prints what differs by meaning: between two revisions, or between a revision and a file. Without `to` and a file it is
/// compared with the current revision, without `from` the revision before the current one, or before the file, with it.
pub async fn diff(
    from: Option<u64>,
    to: Option<u64>,
    file: Option<&Path>,
    json: bool,
    options: &BusOptions,
) -> anyhow::Result<()> {
    let local = file.map(check::read).transpose()?;
    let bus = link::connect(options).await?;
    let current = FleetStore::new(&bus).get().await?.context(NO_FLEET)?;
    let (after_name, after) = match (local, to) {
        (Some((text, _)), _) => (file.map(check::name_of).unwrap_or_default(), text),
        (None, Some(number)) => named(read(&bus, number).await?),
        (None, None) => named(current.clone()),
    };
    let (before_name, before) = match (from, file) {
        (Some(number), _) => named(read(&bus, number).await?),
        (None, Some(_)) => named(current),
        (None, None) => {
            let heads = FleetStore::new(&bus).revisions().await?;
            let before = heads.iter().find(|head| head.revision < current.head.revision);
            let before = before.ok_or_else(|| {
                WrongArgument(format!(
                    "{} is the only revision that is kept: there is nothing to compare it with",
                    current.head.revision
                ))
            })?;
            named(read(&bus, before.revision).await?)
        }
    };
    let differences = changes(&parse(&before_name, &before)?, &parse(&after_name, &after)?);
    if json {
        return say_line(json!({ "from": before_name, "to": after_name, "changes": differences }));
    }
    say_line(format_args!("from {before_name} to {after_name}:"))?;
    for change in &differences {
        say_line(format_args!("    {change}"))?;
    }
    match (differences.is_empty(), before == after) {
        (true, true) => say_line("    nothing: the files are equal"),
        (true, false) => say_line("    nothing by meaning: only comments or layout differ"),
        (false, _) => Ok(()),
    }
}

/// Prints the revisions that are kept: who applied each, when and why, and what it changed.
pub async fn history(json: bool, options: &BusOptions) -> anyhow::Result<()> {
    let bus = link::connect(options).await?;
    let heads = FleetStore::new(&bus).revisions().await?;
    anyhow::ensure!(!heads.is_empty(), NO_FLEET);
    for head in heads {
        if json {
            say_line(line(&head))?;
            continue;
        }
        let FleetHead { revision, author, at, reason, .. } = &head;
        let why = if reason.is_empty() { String::new() } else { format!(": {reason}") };
        say_line(format_args!("{} revision {revision} by {author}{why}", moment(*at)))?;
        say_changes(&head)?;
    }
    Ok(())
}

fn line(head: &FleetHead) -> serde_json::Value {
    json!({
        "revision": head.revision,
        "author": head.author,
        "at": moment(head.at),
        "at_us": head.at,
        "reason": head.reason,
        "changes": head.changes.lines,
        "more_changes": head.changes.more,
    })
}

/// Applies an earlier revision again, as a new one.
pub async fn rollback(number: u64, options: RollbackOptions, bus: &BusOptions) -> anyhow::Result<()> {
    let link = link::connect(bus).await?;
    let earlier = read(&link, number).await?;
    let name = format!("revision {number}");
    let why = one_line(&options.reason);
    let change = Change {
        fleet: parse(&name, &earlier.text)?,
        text: earlier.text,
        author: one_line(&author(options.author, bus)),
        reason: format!("rollback to revision {number}: {why}"),
        expected: options.expect_revision,
        guard: options.guard,
    };
    match change.write(&link, bus.timeout).await? {
        FleetWritten::Applied(head) => {
            say_line(format_args!("applied {name} again as revision {}", head.revision))?;
            say_changes(&head)
        }
        FleetWritten::Unchanged(head) if head.revision == number => {
            say_line(format_args!("{name} is the current one: nothing was written"))
        }
        FleetWritten::Unchanged(head) => say_line(format_args!(
            "revision {}, the current one, has the same content as {name}: nothing was written",
            head.revision
        )),
        FleetWritten::Superseded(_) => unreachable!("an unexpected revision is an error of Change::write"),
    }
}

async fn read(bus: &Bus, number: u64) -> anyhow::Result<FleetText> {
    let store = FleetStore::new(bus);
    match store.revision(number).await? {
        Some(fleet) => Ok(fleet),
        None => {
            let kept = store.revisions().await?;
            let wrong = match (kept.first(), kept.last()) {
                (Some(last), Some(first)) => format!(
                    "revision {number} is not kept: there are {} from {} to {} (tidegate fleet history)",
                    kept.len(),
                    first.revision,
                    last.revision
                ),
                (_, _) => NO_FLEET.to_owned(),
            };
            Err(WrongArgument(wrong).into())
        }
    }
}

fn named(fleet: FleetText) -> (String, String) {
    (format!("revision {}", fleet.head.revision), fleet.text)
}

fn parse(name: &str, text: &str) -> anyhow::Result<Fleet> {
    Fleet::parse(text, name)
        .map_err(|errors| anyhow::anyhow!("{name} cannot be read by this version of tidegate:\n{errors}"))
}
