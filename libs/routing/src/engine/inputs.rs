//! The effects of each event, and of time.

use std::{collections::BTreeMap, sync::Arc};

use tidegate_model::{
    ClusterName, Timestamp,
    fleet::Fleet,
    health::CheckId,
    observation::ObservationCause,
    overrides::{OverrideSet, Withdrawal},
    routes::Cause,
};

use super::{Engine, Work};
use crate::{event::RouteEvent, fleet_index::FleetIndex, overrides::Overrides, probers::ProberKey, ramp};

impl Engine {
    /// Advances time to `self.now`.
    pub(super) fn advance_time(&mut self, work: &mut Work) {
        let now = self.now;
        let mut time_matters = false;
        self.probers.advance(self.settings.prober_stale_after, now);
        self.add_changed_pairs(None, work);
        while let Some(end) = self.overrides.next_deadline().filter(|end| *end <= now) {
            self.replace_overrides(self.overrides.without_expired(end), &BTreeMap::new(), end, work);
            time_matters = true;
        }
        while let Some((at, cluster)) = self.ramps.first().cloned()
            && at <= now
        {
            self.add_services_of(&cluster, work);
            self.schedule_ramp(&cluster);
            time_matters = true;
        }
        self.demand.expire_reports(&self.settings, self.index.as_ref(), now);
        work.demand = self.demand.measure(&self.settings, now);
        if !work.demand.is_empty() {
            work.causes.push(Cause::Load);
        }
        if time_matters {
            work.causes.push(Cause::Time);
        }
    }

    /// Applies one event.
    pub(super) fn apply_event(&mut self, event: RouteEvent, work: &mut Work) {
        let (now, damping) = (self.now, self.settings.damping);
        match event {
            RouteEvent::Fleet(fleet) => self.set_fleet(fleet, work),
            RouteEvent::Observations { region, prober, changes, cause } => {
                self.probers.apply_changes(ProberKey { region, name: prober }, changes, &damping, now);
                self.add_changed_pairs(cause.as_ref(), work);
            }
            RouteEvent::ObservationsReset { region, prober, all, restarted, cause } => {
                let key = ProberKey { region, name: prober };
                self.probers.replace_table(key, all, restarted, &damping, now);
                self.add_changed_pairs(cause.as_ref(), work);
            }
            RouteEvent::ProberHeartbeat { region, prober } => {
                self.probers.record_heartbeat(ProberKey { region, name: prober }, now);
                self.add_changed_pairs(None, work);
            }
            RouteEvent::ProberGone { region, prober } => {
                self.probers.remove(&ProberKey { region, name: prober });
                self.add_changed_pairs(None, work);
            }
            RouteEvent::Load(load) => {
                self.demand.record_report(&load, &self.settings, self.index.as_ref(), now);
            }
            RouteEvent::Overrides(all) => self.set_overrides(all, work),
            RouteEvent::Tick => {}
        }
    }

    fn set_fleet(&mut self, fleet: Arc<Fleet>, work: &mut Work) {
        if self.index.as_ref().is_some_and(|index| index.fleet == fleet) {
            return;
        }
        let index = FleetIndex::new(fleet, &self.settings.region);
        self.probers.set_thresholds(index.thresholds(), &self.settings.damping, self.now);
        // All pairs are recomputed anyway.
        self.probers.take_changed();
        self.demand.reindex(self.index.as_ref(), &index, self.now);
        self.index = Some(index);
        work.everything = true;
        work.causes.push(Cause::Fleet);
    }

    fn set_overrides(&mut self, all: OverrideSet, work: &mut Work) {
        let now = self.now;
        let after = Overrides::in_force(all.active.into_values(), now);
        self.replace_overrides(after, &all.withdrawn, now, work);
    }

    pub(super) fn replace_overrides(
        &mut self,
        after: Overrides,
        withdrawn: &BTreeMap<String, Withdrawal>,
        now: Timestamp,
        work: &mut Work,
    ) {
        let changes = self.overrides.changes_to(&after, withdrawn);
        let before = std::mem::replace(&mut self.overrides, after);
        work.causes.extend(changes.sentences.into_iter().map(Cause::Override));
        work.edges.extend(changes.edges);
        let Some(index) = &self.index else { return };
        for service in &changes.services {
            work.services.extend(index.service_id(service));
            work.forces = true;
        }
        let changed: Vec<ClusterName> = index
            .clusters()
            .map(|(_, cluster)| cluster)
            .filter(|cluster| {
                changes.clusters.contains(&cluster.name)
                    || changes.regions.contains(index.region(cluster.region))
            })
            .map(|cluster| cluster.name.clone())
            .collect();
        for cluster in changed {
            let region = &self.index.as_ref().map(|index| index.fleet.clusters[&cluster].region.clone());
            let drained = |overrides: &Overrides| {
                region.as_ref().is_some_and(|region| overrides.drain_of(&cluster, region).is_some())
            };
            if drained(&before) && !drained(&self.overrides) {
                self.drain_ended.insert(cluster.clone(), now);
            }
            self.add_services_of(&cluster, work);
            self.schedule_ramp(&cluster);
        }
    }

    fn add_changed_pairs(&mut self, cause: Option<&ObservationCause>, work: &mut Work) {
        for pair in self.probers.take_changed() {
            work.pairs.insert(pair, cause.cloned());
        }
    }

    fn add_services_of(&self, cluster: &ClusterName, work: &mut Work) {
        for (_, services) in self.users.range(all_checks(cluster)) {
            work.services.extend(services);
        }
    }

    /// Schedules the next step of a cluster's slow start.
    pub(super) fn schedule_ramp(&mut self, cluster: &ClusterName) {
        let (now, slow_start) = (self.now, self.settings.slow_start);
        let step = |since: Timestamp| ramp::next_step(since, slow_start, now);
        let drain_ended = self.drain_ended.get(cluster).copied();
        if drain_ended.is_some_and(|since| step(since).is_none()) {
            self.drain_ended.remove(cluster);
        }
        let recoveries = self.health.range(all_checks(cluster)).flat_map(|(_, health)| health.recoveries());
        let next = recoveries.chain(drain_ended).filter_map(step).min();
        if let Some(before) = self.ramp_of.remove(cluster) {
            self.ramps.remove(&(before, cluster.clone()));
        }
        if let Some(next) = next {
            self.ramp_of.insert(cluster.clone(), next);
            self.ramps.insert((next, cluster.clone()));
        }
    }
}

/// All pairs of a cluster.
pub(super) fn all_checks(cluster: &ClusterName) -> std::ops::RangeInclusive<(ClusterName, CheckId)> {
    (cluster.clone(), CheckId(0))..=(cluster.clone(), CheckId(u64::MAX))
}
