//! What each input, and time, touches.

use std::{collections::BTreeMap, sync::Arc};

use tidegate_model::{
    ClusterName, Timestamp, fleet::Fleet, health::CheckId, observation::ObservationCause,
    overrides::Override, routes::Cause,
};

use super::{Engine, Work};
use crate::{atlas::Atlas, event::RouteEvent, evidence::ProberKey, overrides::Overrides, ramp};

impl Engine {
    /// Lets time pass until `self.now`.
    pub(super) fn advance(&mut self, work: &mut Work) {
        let now = self.now;
        let mut time_matters = false;
        self.evidence.advance(self.settings.prober_silent_after, now);
        self.touch_pairs(None, work);
        while let Some(end) = self.overrides.next_deadline().filter(|end| *end <= now) {
            self.override_by(self.overrides.at(end), end, work);
            time_matters = true;
        }
        while let Some((at, cluster)) = self.ramps.first().cloned()
            && at <= now
        {
            self.touch_services_of(&cluster, work);
            self.schedule_ramp(&cluster);
            time_matters = true;
        }
        self.demand.advance(&self.settings, self.atlas.as_ref(), now);
        work.demand = self.demand.take_moved(&self.settings, now);
        if !work.demand.is_empty() {
            work.causes.push(Cause::Load);
        }
        if time_matters {
            work.causes.push(Cause::Time);
        }
    }

    /// Takes one event.
    pub(super) fn take(&mut self, event: RouteEvent, work: &mut Work) {
        let (now, damping) = (self.now, self.settings.damping);
        match event {
            RouteEvent::Fleet(fleet) => self.take_fleet(fleet, work),
            RouteEvent::Observations { region, prober, changes, cause } => {
                self.evidence.observe(ProberKey { region, name: prober }, changes, &damping, now);
                self.touch_pairs(cause.as_ref(), work);
            }
            RouteEvent::ObservationsReset { region, prober, all, begins_anew, cause } => {
                let key = ProberKey { region, name: prober };
                self.evidence.observe_all(key, all, begins_anew, &damping, now);
                self.touch_pairs(cause.as_ref(), work);
            }
            RouteEvent::ProberHeard { region, prober } => {
                self.evidence.heartbeat(ProberKey { region, name: prober }, now);
                self.touch_pairs(None, work);
            }
            RouteEvent::ProberGone { region, prober } => {
                self.evidence.forget(&ProberKey { region, name: prober });
                self.touch_pairs(None, work);
            }
            RouteEvent::Load(load) => self.demand.report(&load, &self.settings, self.atlas.as_ref(), now),
            RouteEvent::Overrides(all) => self.take_overrides(all, work),
            RouteEvent::Tick => {}
        }
    }

    fn take_fleet(&mut self, fleet: Arc<Fleet>, work: &mut Work) {
        if self.atlas.as_ref().is_some_and(|atlas| atlas.fleet == fleet) {
            return;
        }
        let atlas = Atlas::new(fleet, &self.settings.region);
        self.evidence.know(atlas.thresholds(), &self.settings.damping, self.now);
        // All pairs are looked at anyway.
        self.evidence.take_touched();
        self.demand.renumber(self.atlas.as_ref(), &atlas, self.now);
        self.atlas = Some(atlas);
        work.everything = true;
        work.causes.push(Cause::Fleet);
    }

    fn take_overrides(&mut self, all: BTreeMap<String, Override>, work: &mut Work) {
        let now = self.now;
        self.override_by(Overrides::in_force(all.into_values(), now), now, work);
    }

    fn override_by(&mut self, after: Overrides, now: Timestamp, work: &mut Work) {
        let changes = self.overrides.changes(&after);
        let before = std::mem::replace(&mut self.overrides, after);
        work.causes.extend(changes.sentences.into_iter().map(Cause::Override));
        work.edges.extend(changes.edges);
        let Some(atlas) = &self.atlas else { return };
        for service in &changes.services {
            work.services.extend(atlas.service_id(service));
            work.forces = true;
        }
        let touched: Vec<ClusterName> = atlas
            .clusters()
            .filter(|(_, facts)| {
                changes.clusters.contains(&facts.name) || changes.regions.contains(atlas.region(facts.region))
            })
            .map(|(_, facts)| facts.name.clone())
            .collect();
        for cluster in touched {
            let region = &self.atlas.as_ref().map(|atlas| atlas.fleet.clusters[&cluster].region.clone());
            let drained = |overrides: &Overrides| {
                region.as_ref().is_some_and(|region| overrides.drain(&cluster, region).is_some())
            };
            if drained(&before) && !drained(&self.overrides) {
                self.undrained.insert(cluster.clone(), now);
            }
            self.touch_services_of(&cluster, work);
            self.schedule_ramp(&cluster);
        }
    }

    fn touch_pairs(&mut self, cause: Option<&ObservationCause>, work: &mut Work) {
        for pair in self.evidence.take_touched() {
            work.pairs.insert(pair, cause.cloned());
        }
    }

    fn touch_services_of(&self, cluster: &ClusterName, work: &mut Work) {
        for (_, services) in self.users.range(all_checks(cluster)) {
            work.services.extend(services);
        }
    }

    /// Finds when a cluster's slow start goes on.
    pub(super) fn schedule_ramp(&mut self, cluster: &ClusterName) {
        let (now, slow_start) = (self.now, self.settings.slow_start);
        let step = |since: Timestamp| ramp::next_step(since, slow_start, now);
        let undrained = self.undrained.get(cluster).copied();
        if undrained.is_some_and(|since| step(since).is_none()) {
            self.undrained.remove(cluster);
        }
        let recoveries = self.health.range(all_checks(cluster)).flat_map(|(_, health)| health.recoveries());
        let next = recoveries.chain(undrained).filter_map(step).min();
        if let Some(before) = self.ramp_of.remove(cluster) {
            self.ramps.remove(&(before, cluster.clone()));
        }
        if let Some(next) = next {
            self.ramp_of.insert(cluster.clone(), next);
            self.ramps.insert((next, cluster.clone()));
        }
    }
}

/// The range of all pairs of a cluster.
fn all_checks(cluster: &ClusterName) -> std::ops::RangeInclusive<(ClusterName, CheckId)> {
    (cluster.clone(), CheckId(0))..=(cluster.clone(), CheckId(u64::MAX))
}
