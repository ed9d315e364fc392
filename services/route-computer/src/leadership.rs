//! Leadership: the holder of the region's lease owns and publishes its table for one epoch.

use std::sync::Arc;

use anyhow::Context as _;
use tidegate_bus::{
    Bus, TraceContext, codec,
    lease::{LEASE_DURATION, Lease, LeaseSeal, LeaseState},
    seal::Signer,
    subjects::{self, LEASE_BUCKET, ROUTES_BUCKET},
    table::{Owner, OwnerOptions, Published, SnapshotStore},
};
use tidegate_model::{
    Epoch, HolderName, RegionName, Revision,
    routes::{RouteCause, RouteEntry, RouteKey},
};
use tidegate_routing::{Changes, Engine};
use tokio::sync::watch;

/// The first revision of an epoch: the table at the start of the leadership.
const FIRST: Revision = Revision(1);

/// A candidate for the leadership of the region.
pub struct Leadership {
    bus: Bus,
    region: RegionName,
    lease: Lease,
    state: watch::Receiver<LeaseState>,
    owner: Option<(Epoch, Owner<RouteKey, RouteEntry>)>,
    signer: Option<Arc<Signer>>,
}

impl Leadership {
    /// Starts to seek the region's lease.
    pub fn seek(bus: &Bus, region: &RegionName, holder: HolderName, seal: LeaseSeal) -> Leadership {
        let signer = seal.signer.clone();
        let lease = Lease::start(bus.bucket(LEASE_BUCKET), region.as_str(), holder, LEASE_DURATION, seal);
        let state = lease.state();
        Leadership { bus: bus.clone(), region: region.clone(), lease, state, owner: None, signer }
    }

    /// Waits until the lease's state has changed.
    ///
    /// # Errors
    /// The lease's task has ended, which is a defect.
    pub async fn changed(&mut self) -> anyhow::Result<()> {
        self.state.changed().await.context("the lease is no longer sought")
    }

    /// Makes the ownership of the table follow the lease. Returns the epoch if it just became the leader.
    ///
    /// # Errors
    /// The bus is closed.
    pub async fn follow_lease(&mut self, engine: &Engine) -> anyhow::Result<Option<Epoch>> {
        let state = *self.state.borrow_and_update();
        if let Some((epoch, owner)) = &self.owner {
            if state.epoch() == Some(*epoch) {
                return Ok(None);
            }
            tracing::warn!(region = %self.region, %epoch, superseded_by = ?owner.superseded_by(), "no longer leads the region");
        }
        if let Some((_, owner)) = self.owner.take() {
            owner.stop().await;
        }
        if let Some(epoch) = state.epoch() {
            tracing::info!(region = %self.region, %epoch, entries = engine.table().len(), "leads the region");
            let store = SnapshotStore {
                bucket: self.bus.bucket(ROUTES_BUCKET),
                key: subjects::routes_key(&self.region),
            };
            let signer = self.signer.clone();
            let options = OwnerOptions { store: Some(store), signer, ..OwnerOptions::default() };
            let entries: Vec<_> = engine.table().iter().map(|(k, v)| (k.clone(), v.clone())).collect();
            let subject = subjects::routes(&self.region);
            let owner = Owner::start(self.bus.clone(), &subject, epoch, FIRST, entries, options).await?;
            self.owner = Some((epoch, owner));
        }
        Ok(state.epoch())
    }

    /// Publishes changes, if it leads.
    pub async fn publish(
        &mut self,
        changes: Changes,
        cause: &RouteCause,
        trace: Option<&TraceContext>,
    ) -> Option<Published> {
        let (_, owner) = self.owner.as_mut()?;
        owner.publish(changes.entries, codec::encode(cause), trace).await
    }

    /// Observes an epoch that is in use, which the lease must exceed.
    pub fn observe_epoch(&self, epoch: Epoch) {
        self.lease.observe_epoch(epoch);
    }

    /// Reports the epoch above its own that the owner found in its bucket, if any.
    pub fn report_superseding_epoch(&self) {
        if let Some(epoch) = self.owner.as_ref().and_then(|(_, owner)| owner.superseded_by()) {
            self.lease.observe_epoch(epoch);
        }
    }

    /// Whether it certainly holds the lease: not while the lease cannot be renewed because the bus is unreachable.
    pub fn is_certain(&self) -> bool {
        self.owner.is_some() && matches!(*self.state.borrow(), LeaseState::Leader { .. })
    }

    /// The position of the table, if it leads.
    pub fn position(&self) -> Option<(Epoch, Revision)> {
        let (epoch, owner) = self.owner.as_ref()?;
        Some((*epoch, owner.position().revision))
    }

    /// Releases the lease, so that another can lead at once.
    pub async fn stop(self) {
        if let Some((_, owner)) = self.owner {
            owner.stop().await;
        }
        self.lease.stop().await;
    }
}
