//! `tidegate events`.

mod json;
mod moment;
mod text;

pub use moment::moment;

use std::{collections::BTreeMap, time::Duration};

use anyhow::Context as _;
use tidegate_bus::{BusError, clock, history::StoredEvent};
use tidegate_model::{Epoch, RegionName, Revision, Timestamp, event::EventKind};

use crate::say::{say, say_line};
use crate::{
    arguments::BusOptions,
    fleet::{self, known},
    link::{self, BusRetry},
};

/// Prints the events of the last `since`, and with `follow` new ones until interrupted, however often the bus is away.
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
    let mut reader = match bus.read_history(since, region).await {
        Err(BusError::History { reason, .. }) if reason.contains("stream not found") => {
            anyhow::bail!("no event was stored yet: replicators store them from their first start on")
        }
        read => read.context("no events can be read")?,
    };
    let mut above = None;
    let mut print = |stored: &StoredEvent| {
        if json {
            return say_line(json::line(stored));
        }
        let printed = say(text::paragraph(stored, above.is_some() && above == table(stored)));
        above = table(stored);
        printed
    };
    let mut past = Vec::new();
    loop {
        let next = tokio::time::timeout(options.timeout, reader.next_stored());
        match next.await.context("the history stopped in the middle")?? {
            Some(event) => past.push(event),
            None => break,
        }
    }
    if let Some(region) = region
        && past.is_empty()
        && let Ok(fleet) = fleet::read(&bus).await
    {
        known("region", region.as_str(), fleet.regions.keys())?;
    }
    if past.is_empty() && !json {
        say_line("no events in this time")?;
    }
    for event in gather(past) {
        print(&event)?;
    }
    let mut skipped = 0;
    let mut report_skipped = |count: u64| {
        if count > skipped {
            eprintln!("tidegate: {} events are of a newer version and were skipped", count - skipped);
            skipped = count;
        }
    };
    report_skipped(reader.unreadable());
    if !follow {
        return Ok(());
    }
    let mut retry = BusRetry::default();
    loop {
        match reader.next().await {
            Ok(Some(event)) => {
                retry.succeeded();
                report_skipped(reader.unreadable());
                print(&event)?;
            }
            Ok(None) => anyhow::bail!("the bus has closed"),
            Err(error) => retry.wait(&error).await,
        }
    }
}

/// The table version that an event is about.
fn table(stored: &StoredEvent) -> Option<(RegionName, Epoch, Revision)> {
    match &stored.event.kind {
        EventKind::Applied { epoch, revision, .. } => Some((stored.event.region.clone(), *epoch, *revision)),
        EventKind::Decided(decided) => Some((stored.event.region.clone(), decided.epoch, decided.revision)),
        EventKind::Leads { .. }
        | EventKind::Fleet { .. }
        | EventKind::FleetRefused { .. }
        | EventKind::ProblemBegan { .. }
        | EventKind::ProblemEnded { .. } => None,
    }
}

/// Moves each edge's event behind the decision that it applied; otherwise keeps the order.
fn gather(events: Vec<StoredEvent>) -> Vec<StoredEvent> {
    let decisions: BTreeMap<_, usize> = events
        .iter()
        .enumerate()
        .filter(|(_, stored)| matches!(stored.event.kind, EventKind::Decided(_)))
        .filter_map(|(index, stored)| Some((table(stored)?, index)))
        .collect();
    let mut placed: Vec<(usize, StoredEvent)> = events
        .into_iter()
        .enumerate()
        .map(|(index, stored)| {
            (table(&stored).and_then(|table| decisions.get(&table).copied()).unwrap_or(index), stored)
        })
        .collect();
    placed.sort_by_key(|(index, stored)| (*index, matches!(stored.event.kind, EventKind::Applied { .. })));
    placed.into_iter().map(|(_, stored)| stored).collect()
}

#[cfg(test)]
mod tests;
