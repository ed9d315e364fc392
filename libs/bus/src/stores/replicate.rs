//! Replication of the fleet file and the overrides between regions whose buses keep their own data.
//!
//! Each region's buckets live on its own servers, so that a region that is cut off keeps them. What an operator writes in
//! one region reaches the others by anti-entropy (Demers et al., "Epidemic algorithms for replicated database
//! maintenance", 1987): the [`Replicator`] of each region publishes a [digest](RegionDigest) of its stores once a second
//! and after each change. A replicator that receives the digest of newer content pulls that content and writes it to its
//! own bus. The newer version wins: for the fleet as a whole, for overrides one by one, where a withdrawn override leaves a
//! tombstone for [`TOMBSTONE_RETENTION`]. So regions agree a second after they can reach each other, whatever was written
//! in each meanwhile.
//!
//! Regions that share one bus see the same buckets and replicate nothing.

use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tidegate_model::{RegionName, Timestamp, overrides::Withdrawal};
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
    fleet::{FleetHead, FleetStore, FleetText, FleetVersion},
    overrides::{OverrideStore, Record},
    report::{Report, Reports},
    subjects,
};

/// The time between two digests of a region.
const DIGEST_INTERVAL: Duration = Duration::from_secs(1);
/// How long another region may take to respond to a pull request.
const PULL_LIMIT: Duration = Duration::from_secs(2);
/// How long the tombstone of a withdrawn override is kept. A region that was cut off for longer may bring the override
/// back.
pub const TOMBSTONE_RETENTION: Duration = Duration::from_secs(30 * 24 * 3600);

/// The digest of what a region's bus holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct RegionDigest {
    /// The version of the fleet file; absent: none was applied.
    pub fleet: Option<FleetVersion>,
    /// The sum of the XXH3 digests of all overrides and tombstones.
    pub overrides: u128,
}

/// A request for another region's content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PullRequest {
    pub fleet: bool,
    /// The revision of the fleet file of the region that asks; 0: it has none. Later ones that are kept come with the fleet.
    pub fleet_after: u64,
    pub overrides: bool,
}

/// The response to a [`PullRequest`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PullResponse {
    pub fleet: Option<(FleetHead, String)>,
    /// The revisions between that of the region that asks and the current one, the latest first, as many as fit.
    pub revisions: Vec<(FleetHead, String)>,
    /// Overrides and tombstones as JSON, one by one: a reader that does not know one can still read the others.
    pub overrides: Vec<Bytes>,
}

impl Wire for RegionDigest {}
impl Wire for PullRequest {}
impl Wire for PullResponse {}

/// Replicates between this region's bus and the others'. Dropping it stops that.
#[derive(Debug)]
pub struct Replicator(Background);

impl Replicator {
    /// Starts to replicate for `region`. Another region's fleet file is accepted only when `is_valid` accepts its text.
    ///
    /// # Errors
    /// When the bus is closed. A bus that is away is no error.
    pub async fn start(
        bus: &Bus,
        region: &RegionName,
        is_valid: fn(&str) -> bool,
    ) -> Result<Replicator, BusError> {
        let requests = bus.subscribe(&subjects::pull(region)).await?;
        let digests = bus.subscribe_reports(subjects::ALL_DIGESTS).await?;
        let fleet_changes = bus.subscribe(subjects::FLEET).await?;
        let override_changes = bus.subscribe(subjects::OVERRIDES).await?;
        let stores = Stores { fleet: FleetStore::new(bus), overrides: OverrideStore::new(bus) };
        let worker = Worker {
            bus: bus.clone(),
            region: region.clone(),
            stores: stores.clone(),
            is_valid,
            own: RegionDigest::default(),
            stamp: None,
            expiry: None,
            settled: BTreeMap::new(),
        };
        // Two tasks, so that two regions that pull from each other don't wait for each other.
        let tasks = Background::default()
            .with(|stop| serve_pulls(bus.clone(), stores, requests, stop))
            .with(|stop| worker.run(digests, fleet_changes, override_changes, stop));
        Ok(Replicator(tasks))
    }

    /// Stops and waits for the end.
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
    async fn load(&self, request: PullRequest) -> Result<PullResponse, BusError> {
        let fleet = if request.fleet { self.fleet.get().await? } else { None };
        let last = fleet.as_ref().map_or(0, |fleet| fleet.head.revision);
        let revisions = match request.fleet {
            true => self.fleet.revisions_between(request.fleet_after, last).await?,
            false => Vec::new(),
        };
        let records = if request.overrides { self.overrides.records().await? } else { Vec::new() };
        let now = clock::now();
        Ok(PullResponse {
            fleet: fleet.map(|fleet| (fleet.head, fleet.text)),
            revisions: revisions.into_iter().map(|fleet| (fleet.head, fleet.text)).collect(),
            overrides: records
                .iter()
                .filter(|(_, record)| is_retained(record, now))
                .map(|(_, record)| record.to_json())
                .collect(),
        })
    }
}

/// Responds to other regions' pull requests.
async fn serve_pulls(bus: Bus, stores: Stores, mut requests: Subscription, stop: CancellationToken) {
    loop {
        let request = tokio::select! {
            () = stop.cancelled() => return,
            request = requests.next() => request,
        };
        let Some(request) = request else { return };
        let served = async {
            let response = stores.load(codec::decode(&request.body)?).await?;
            bus.reply(&request, codec::encode(&response)).await
        };
        if let Err(error) = served.await {
            tracing::debug!(%error, "another region's pull request failed");
        }
    }
}

struct Worker {
    bus: Bus,
    region: RegionName,
    stores: Stores,
    is_valid: fn(&str) -> bool,
    /// The digest of the own bus, as it was last computed.
    own: RegionDigest,
    /// The overrides' stamp then.
    stamp: Option<Stamp>,
    /// When the first tombstone is to be purged.
    expiry: Option<Timestamp>,
    /// The digests of another region and of this one after all of the other's content was pulled. Where they differ
    /// nevertheless (one version of Tidegate reads less than another), nothing is pulled until one of them changes.
    settled: BTreeMap<RegionName, (RegionDigest, RegionDigest)>,
}

impl Worker {
    async fn run(
        mut self,
        mut digests: Reports<RegionDigest>,
        mut fleet_changes: Subscription,
        mut override_changes: Subscription,
        stop: CancellationToken,
    ) {
        let start = Instant::now() + backoff::jitter(DIGEST_INTERVAL);
        let mut tick = tokio::time::interval_at(start, DIGEST_INTERVAL);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let done = tokio::select! {
                () = stop.cancelled() => return,
                _ = tick.tick() => self.publish_digest(true).await,
                change = fleet_changes.next() => if change.is_none() { return } else { self.publish_digest(false).await },
                change = override_changes.next() => if change.is_none() { return } else { self.publish_digest(false).await },
                report = digests.next() => match report {
                    Some(report) => self.pull_newer(report).await,
                    None => return,
                },
            };
            if let Err(error) = done {
                tracing::debug!(region = %self.region, %error, "replication failed for now");
            }
        }
    }

    /// Computes the own digest and publishes it when it has changed or is to be repeated.
    async fn publish_digest(&mut self, repeat: bool) -> Result<(), BusError> {
        let before = self.own;
        self.refresh_digest().await?;
        if repeat || self.own != before {
            self.bus.publish_report(&subjects::digest(&self.region), None, &self.own).await?;
        }
        Ok(())
    }

    /// Computes the own digest where the stores have changed, and purges tombstones whose time is over.
    async fn refresh_digest(&mut self) -> Result<(), BusError> {
        self.own.fleet = self.stores.fleet.version().await?;
        let stamp = self.stores.overrides.stamp().await?;
        let now = clock::now();
        if self.stamp == Some(stamp) && self.expiry.is_none_or(|expiry| now < expiry) {
            return Ok(());
        }
        let mut digest = 0_u128;
        let mut expiry = None;
        for (revision, record) in self.stores.overrides.records().await? {
            if let Record::Withdrawn(tombstone) = &record {
                if !is_retained(&record, now) {
                    self.stores.overrides.purge(tombstone, revision).await?;
                    continue;
                }
                let end = retained_until(tombstone);
                expiry = Some(expiry.map_or(end, |first: Timestamp| first.min(end)));
            }
            digest = digest.wrapping_add(xxh3_128(&record.to_json()));
        }
        self.own.overrides = digest;
        self.expiry = expiry;
        // The stamp was read before the records: what was written meanwhile is seen next time.
        self.stamp = Some(stamp);
        Ok(())
    }

    /// Pulls what another region has and this one lacks.
    async fn pull_newer(&mut self, report: Report<RegionDigest>) -> Result<(), BusError> {
        let Some(other) = subjects::parse_digest(&report.subject) else { return Ok(()) };
        if other == self.region || report.body == self.own {
            return Ok(());
        }
        self.refresh_digest().await?;
        let request = PullRequest {
            fleet: report.body.fleet > self.own.fleet,
            fleet_after: self.own.fleet.map_or(0, |own| own.revision),
            overrides: report.body.overrides != self.own.overrides,
        };
        let nothing = !request.fleet && !request.overrides;
        if nothing || self.settled.get(&other) == Some(&(report.body, self.own)) {
            return Ok(());
        }
        let body = self.bus.request(&subjects::pull(&other), codec::encode(&request), PULL_LIMIT).await?;
        self.store_response(&other, codec::decode(&body)?).await?;
        self.publish_digest(false).await?;
        self.settled.insert(other, (report.body, self.own));
        Ok(())
    }

    async fn store_response(&self, other: &RegionName, response: PullResponse) -> Result<(), BusError> {
        for (head, text) in response.revisions {
            if (self.is_valid)(&text) {
                self.stores.fleet.keep_revision(&FleetText { head, text }).await?;
            }
        }
        if let Some((head, text)) = response.fleet {
            let (revision, author) = (head.revision, head.author.clone());
            if !(self.is_valid)(&text) {
                tracing::error!(from = %other, revision, author, "another region's fleet cannot be read; the one here stays");
            } else if self.stores.fleet.accept(&FleetText { head, text }).await? {
                tracing::info!(from = %other, revision, author, "replicated another region's fleet");
            }
        }
        let now = clock::now();
        for json in &response.overrides {
            let record = match serde_json::from_slice::<Record>(json) {
                Ok(record) => record,
                Err(error) => {
                    tracing::warn!(from = %other, %error, "an override of another region cannot be read");
                    continue;
                }
            };
            if is_retained(&record, now) && self.stores.overrides.accept(&record).await? {
                tracing::info!(from = %other, what = %record.kind(), "replicated another region's override");
            }
        }
        Ok(())
    }
}

fn is_retained(record: &Record, now: Timestamp) -> bool {
    match record {
        Record::Active(_) => true,
        Record::Withdrawn(tombstone) => now < retained_until(tombstone),
    }
}

fn retained_until(tombstone: &Withdrawal) -> Timestamp {
    tombstone.withdrawn_at.plus(TOMBSTONE_RETENTION)
}
