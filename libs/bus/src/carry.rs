//! Carries the fleet file and the overrides between regions whose buses keep their own data.
//!
//! Each region's buckets live on its own servers, so that a region that is cut off keeps them. What an operator writes
//! in one region reaches the others by **carriers**, which replicators run: each says once a second, and at
//! once after a change, what its bus holds, as an order of the fleet file and a digest of the overrides. Who hears of
//! something newer asks for it and writes it to its own bus. Newer wins: of the fleet as a whole, of the overrides one by
//! one, where one that was taken back leaves a mark for [`MARKS_KEPT`]. So regions agree a second after they can hear
//! each other, whatever was written where meanwhile.
//!
//! Where regions share one bus there is nothing to carry: all see the same.

use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tidegate_model::{RegionName, Timestamp};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use xxhash_rust::xxh3::xxh3_128;

use crate::{
    Bus, BusError, Subscription,
    background::Background,
    backoff,
    bucket::Stamp,
    clock,
    codec::{self, Wire},
    fleet::{FleetHead, FleetMark, FleetStore, FleetText},
    overrides::{OverrideStore, Record, TakenBack},
    report::{Report, Reports},
    subjects,
};

/// How often a carrier says what its bus holds.
const EVERY: Duration = Duration::from_secs(1);
/// How long another region may take to answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(2);
/// How long the mark of an override that was taken back is kept. A region that was cut off for longer may bring the
/// override back.
pub const MARKS_KEPT: Duration = Duration::from_secs(30 * 24 * 3600);

/// What a region's bus holds, in short.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Holdings {
    /// The fleet file; absent: none was applied.
    pub fleet: Option<FleetMark>,
    /// The sum of the XXH3 digests of all overrides and marks.
    pub overrides: u128,
}

/// What is asked of another region.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Wish {
    pub fleet: bool,
    pub overrides: bool,
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Carried {
    pub fleet: Option<(FleetHead, String)>,
    /// Overrides and marks as JSON: one that a reader does not know takes nothing from the others.
    pub overrides: Vec<Bytes>,
}

impl Wire for Holdings {}
impl Wire for Wish {}
impl Wire for Carried {}

/// Carries between this region's bus and the others'. Dropping it ends that.
#[derive(Debug)]
pub struct Carrier(Background);

impl Carrier {
    /// Begins to carry for `region`. A fleet file from another region is taken only when `is_valid` says so of its text.
    ///
    /// # Errors
    /// When the bus is closed. That it is away is no error.
    pub async fn start(
        bus: &Bus,
        region: &RegionName,
        is_valid: fn(&str) -> bool,
    ) -> Result<Carrier, BusError> {
        let requests = bus.subscribe(&subjects::carry_request(region)).await?;
        let heard = bus.subscribe_reports(subjects::ALL_CARRY).await?;
        let fleet_nudges = bus.subscribe(subjects::FLEET).await?;
        let override_nudges = bus.subscribe(subjects::OVERRIDES).await?;
        let stores = Stores { fleet: FleetStore::new(bus), overrides: OverrideStore::new(bus) };
        let worker = Worker {
            bus: bus.clone(),
            region: region.clone(),
            stores: stores.clone(),
            is_valid,
            own: Holdings::default(),
            stamp: None,
            expiry: None,
            settled: BTreeMap::new(),
        };
        // Apart, so that two carriers that ask each other don't wait for each other.
        let tasks = Background::default()
            .with(|stop| answer(bus.clone(), stores, requests, stop))
            .with(|stop| worker.run(heard, fleet_nudges, override_nudges, stop));
        Ok(Carrier(tasks))
    }

    /// Ends it and waits for the end.
    pub async fn stop(self) {
        self.0.stop().await;
    }
}

#[derive(Debug, Clone)]
struct Stores {
    fleet: FleetStore,
    overrides: OverrideStore,
}

impl Stores {
    async fn load(&self, wish: Wish) -> Result<Carried, BusError> {
        let fleet = if wish.fleet { self.fleet.get().await? } else { None };
        let records = if wish.overrides { self.overrides.records().await? } else { Vec::new() };
        let now = clock::now();
        Ok(Carried {
            fleet: fleet.map(|fleet| (fleet.head, fleet.text)),
            overrides: records
                .iter()
                .filter(|(_, record)| is_kept(record, now))
                .map(|(_, record)| record.to_json())
                .collect(),
        })
    }
}

/// Answers other regions.
async fn answer(bus: Bus, stores: Stores, mut requests: Subscription, stop: CancellationToken) {
    loop {
        let request = tokio::select! {
            () = stop.cancelled() => return,
            request = requests.next() => request,
        };
        let Some(request) = request else { return };
        let answered = async {
            let load = stores.load(codec::decode(&request.body)?).await?;
            bus.reply(&request, codec::encode(&load)).await
        };
        if let Err(error) = answered.await {
            tracing::debug!(%error, "another region was not answered");
        }
    }
}

struct Worker {
    bus: Bus,
    region: RegionName,
    stores: Stores,
    is_valid: fn(&str) -> bool,
    /// What the own bus holds, as it was last looked at.
    own: Holdings,
    /// The overrides' stamp then.
    stamp: Option<Stamp>,
    /// When the first of their marks is no longer kept.
    expiry: Option<Timestamp>,
    /// What another region held, and this one, when all that was there had been taken over. That they differ nevertheless
    /// (a version reads less than another) calls for nothing until one of them changes.
    settled: BTreeMap<RegionName, (Holdings, Holdings)>,
}

impl Worker {
    async fn run(
        mut self,
        mut heard: Reports<Holdings>,
        mut fleet_nudges: Subscription,
        mut override_nudges: Subscription,
        stop: CancellationToken,
    ) {
        let mut tick = tokio::time::interval_at(Instant::now() + backoff::jitter(EVERY), EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let done = tokio::select! {
                () = stop.cancelled() => return,
                _ = tick.tick() => self.look_and_say(true).await,
                nudge = fleet_nudges.next() => if nudge.is_none() { return } else { self.look_and_say(false).await },
                nudge = override_nudges.next() => if nudge.is_none() { return } else { self.look_and_say(false).await },
                report = heard.next() => match report {
                    Some(report) => self.compare(report).await,
                    None => return,
                },
            };
            if let Err(error) = done {
                tracing::debug!(region = %self.region, %error, "nothing was carried");
            }
        }
    }

    /// Looks at the own bus and says what it holds, when that has changed or is to be repeated.
    async fn look_and_say(&mut self, repeat: bool) -> Result<(), BusError> {
        let before = self.own;
        self.look().await?;
        if repeat || self.own != before {
            self.bus.publish_report(&subjects::carry(&self.region), None, &self.own).await?;
        }
        Ok(())
    }

    async fn look(&mut self) -> Result<(), BusError> {
        self.own.fleet = self.stores.fleet.mark().await?;
        let stamp = self.stores.overrides.stamp().await?;
        let now = clock::now();
        if self.stamp == Some(stamp) && self.expiry.is_none_or(|expiry| now < expiry) {
            return Ok(());
        }
        let mut digest = 0_u128;
        let mut expiry = None;
        for (revision, record) in self.stores.overrides.records().await? {
            if let Record::TakenBack(mark) = &record {
                if !is_kept(&record, now) {
                    self.stores.overrides.forget(mark, revision).await?;
                    continue;
                }
                let end = kept_until(mark);
                expiry = Some(expiry.map_or(end, |first: Timestamp| first.min(end)));
            }
            digest = digest.wrapping_add(xxh3_128(&record.to_json()));
        }
        self.own.overrides = digest;
        self.expiry = expiry;
        // Read before the records: what was written meanwhile is seen next time.
        self.stamp = Some(stamp);
        Ok(())
    }

    /// Fetches what another region has and this one has not.
    async fn compare(&mut self, report: Report<Holdings>) -> Result<(), BusError> {
        let Some(other) = subjects::parse_carry(&report.subject) else { return Ok(()) };
        if other == self.region || report.body == self.own {
            return Ok(());
        }
        self.look().await?;
        let wish = Wish {
            fleet: report.body.fleet > self.own.fleet,
            overrides: report.body.overrides != self.own.overrides,
        };
        let nothing = !wish.fleet && !wish.overrides;
        if nothing || self.settled.get(&other) == Some(&(report.body, self.own)) {
            return Ok(());
        }
        let body =
            self.bus.request(&subjects::carry_request(&other), codec::encode(&wish), ANSWER_LIMIT).await?;
        self.take(&other, codec::decode(&body)?).await?;
        self.look_and_say(false).await?;
        self.settled.insert(other, (report.body, self.own));
        Ok(())
    }

    async fn take(&self, other: &RegionName, carried: Carried) -> Result<(), BusError> {
        if let Some((head, text)) = carried.fleet {
            let (revision, author) = (head.revision, head.author.clone());
            if !(self.is_valid)(&text) {
                tracing::error!(from = %other, revision, author, "another region's fleet cannot be read; the one here stays");
            } else if self.stores.fleet.accept(&FleetText { head, text }).await? {
                tracing::info!(from = %other, revision, author, "took over another region's fleet");
            }
        }
        let now = clock::now();
        for json in &carried.overrides {
            let record = match serde_json::from_slice::<Record>(json) {
                Ok(record) => record,
                Err(error) => {
                    tracing::warn!(from = %other, %error, "an override of another region cannot be read");
                    continue;
                }
            };
            if is_kept(&record, now) && self.stores.overrides.accept(&record).await? {
                tracing::info!(from = %other, what = %record.kind(), "took over another region's override");
            }
        }
        Ok(())
    }
}

fn is_kept(record: &Record, now: Timestamp) -> bool {
    match record {
        Record::Standing(_) => true,
        Record::TakenBack(mark) => now < kept_until(mark),
    }
}

fn kept_until(mark: &TakenBack) -> Timestamp {
    mark.taken_back_at.plus(MARKS_KEPT)
}
