//! `tidegate events`.

mod json;
mod moment;
mod text;

use std::{collections::BTreeMap, time::Duration};

use anyhow::Context as _;
use tidegate_bus::{clock, history::StoredEvent};
use tidegate_model::{Epoch, RegionName, Revision, Timestamp, event::EventKind};

use crate::say::{say, say_line};
use crate::{
    arguments::BusOptions,
    fleet::{self, known},
    link::{self, BusRetry},
};

/// Tells what happened in the last `since`, and with `follow` what happens until interrupted, however often the bus is away.
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
    let mut above = None;
    let mut tell = |kept: &StoredEvent| {
        if json {
            return say_line(json::line(kept));
        }
        let told = say(text::paragraph(kept, above.is_some() && above == table(kept)));
        above = table(kept);
        told
    };
    let mut kept = Vec::new();
    loop {
        let next = tokio::time::timeout(options.timeout, reader.next_stored());
        match next.await.context("the history stopped in the middle")?? {
            Some(event) => kept.push(event),
            None => break,
        }
    }
    if let Some(region) = region
        && kept.is_empty()
        && let Ok(fleet) = fleet::read(&bus).await
    {
        known("region", region.as_str(), fleet.regions.keys())?;
    }
    if kept.is_empty() && !json {
        say_line("nothing happened in this time")?;
    }
    for event in gather(kept) {
        tell(&event)?;
    }
    let mut left_out = 0;
    let mut tell_left_out = |count: u64| {
        if count > left_out {
            eprintln!("tidegate: {} events are of a newer version and are left out", count - left_out);
            left_out = count;
        }
    };
    tell_left_out(reader.unreadable());
    if !follow {
        return Ok(());
    }
    let mut retry = BusRetry::default();
    loop {
        match reader.next().await {
            Ok(Some(event)) => {
                retry.succeeded();
                tell_left_out(reader.unreadable());
                tell(&event)?;
            }
            Ok(None) => anyhow::bail!("the bus has closed"),
            Err(error) => retry.wait(&error).await,
        }
    }
}

/// The table of which an event tells.
fn table(kept: &StoredEvent) -> Option<(RegionName, Epoch, Revision)> {
    match &kept.event.kind {
        EventKind::Applied { epoch, revision, .. } => Some((kept.event.region.clone(), *epoch, *revision)),
        EventKind::Decided(decided) => Some((kept.event.region.clone(), decided.epoch, decided.revision)),
        EventKind::Leads { .. } | EventKind::Fleet { .. } => None,
    }
}

/// Brings each edge's word to the decision that it speaks of; else the order stays.
fn gather(events: Vec<StoredEvent>) -> Vec<StoredEvent> {
    let decisions: BTreeMap<_, usize> = events
        .iter()
        .enumerate()
        .filter(|(_, kept)| matches!(kept.event.kind, EventKind::Decided(_)))
        .filter_map(|(place, kept)| Some((table(kept)?, place)))
        .collect();
    let mut placed: Vec<(usize, StoredEvent)> = events
        .into_iter()
        .enumerate()
        .map(|(place, kept)| {
            (table(&kept).and_then(|table| decisions.get(&table).copied()).unwrap_or(place), kept)
        })
        .collect();
    placed.sort_by_key(|(place, kept)| (*place, matches!(kept.event.kind, EventKind::Applied { .. })));
    placed.into_iter().map(|(_, kept)| kept).collect()
}

#[cfg(test)]
mod tests;
