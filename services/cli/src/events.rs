//! `tidegate events`.

mod json;
mod text;

use std::{collections::BTreeMap, time::Duration};

use anyhow::Context as _;
use tidegate_bus::{clock, history::Kept};
use tidegate_model::{RegionName, Timestamp, event::EventKind};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use crate::say::{say, say_line};
use crate::{arguments::BusOptions, link};

/// Tells what happened in the last `since`, and with `follow` what happens until interrupted.
pub async fn events(
    follow: bool,
    since: Duration,
    region: Option<&RegionName>,
    json: bool,
    options: &BusOptions,
) -> anyhow::Result<()> {
    let bus = link::connect(options).await?;
    let since =
        Timestamp(clock::now().0.saturating_sub(u64::try_from(since.as_micros()).unwrap_or(u64::MAX)));
    let mut reader = bus
        .read_history(since, region)
        .await
        .context("no events can be read (route-computers keep them from their first start on)")?;
    let tell = |kept: &Kept| {
        if json { say_line(json::line(kept)) } else { say(text::paragraph(kept)) }
    };
    let mut kept = Vec::new();
    loop {
        let next = tokio::time::timeout(options.timeout, reader.next_kept());
        match next.await.context("the history stopped in the middle")?? {
            Some(event) => kept.push(event),
            None => break,
        }
    }
    if kept.is_empty() && !json {
        say_line("nothing happened in this time")?;
    }
    for event in gather(kept) {
        tell(&event)?;
    }
    if reader.unreadable() > 0 {
        eprintln!("tidegate: {} events are of a newer version and were left out", reader.unreadable());
    }
    if !follow {
        return Ok(());
    }
    while let Some(event) = reader.next().await? {
        tell(&event)?;
    }
    anyhow::bail!("the bus has closed")
}

/// Brings each edge's word to the decision that it speaks of; else the order stays.
fn gather(events: Vec<Kept>) -> Vec<Kept> {
    let table = |kept: &Kept| match &kept.event.kind {
        EventKind::Applied { epoch, revision, .. } => Some((kept.event.region.clone(), *epoch, *revision)),
        EventKind::Decided(decided) => Some((kept.event.region.clone(), decided.epoch, decided.revision)),
        EventKind::Leads { .. } | EventKind::Fleet { .. } => None,
    };
    let decisions: BTreeMap<_, usize> = events
        .iter()
        .enumerate()
        .filter(|(_, kept)| matches!(kept.event.kind, EventKind::Decided(_)))
        .filter_map(|(place, kept)| Some((table(kept)?, place)))
        .collect();
    let mut placed: Vec<(usize, Kept)> = events
        .into_iter()
        .enumerate()
        .map(|(place, kept)| {
            (table(&kept).and_then(|table| decisions.get(&table).copied()).unwrap_or(place), kept)
        })
        .collect();
    placed.sort_by_key(|(place, kept)| (*place, matches!(kept.event.kind, EventKind::Applied { .. })));
    placed.into_iter().map(|(_, kept)| kept).collect()
}

/// A time as RFC 3339 has it, in UTC, to the millisecond.
fn moment(at: Timestamp) -> String {
    let millis = i128::from(at.0 / 1000);
    OffsetDateTime::from_unix_timestamp_nanos(millis * 1_000_000)
        .ok()
        .and_then(|at| at.format(&Rfc3339).ok())
        .unwrap_or_else(|| format!("{millis} ms"))
}

/// The id of the trace that shows an event.
fn trace_id(kept: &Kept) -> Option<&str> {
    kept.trace.as_ref()?.traceparent.split('-').nth(1)
}

#[cfg(test)]
mod tests;
