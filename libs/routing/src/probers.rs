//! The probe states of all probers: which probers are stale, and which are distrusted.
//!
//! A prober that sees everything down, in at least two clusters, while another prober sees some of it up, is more likely
//! to be cut off than right. It is distrusted: its probe states don't count. Distrust is a function of the current probe
//! states.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use tidegate_model::{
    ClusterName, ProberName, RegionName, Timestamp,
    health::CheckId,
    observation::{Observation, Target},
};

use crate::{
    probe_state::{ProbeState, Thresholds},
    settings::Damping,
};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct ProberId(usize);

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct TargetId(usize);

/// A prober's name with its region.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ProberKey {
    pub(crate) region: RegionName,
    pub(crate) name: ProberName,
}

#[derive(Debug, Clone)]
struct Prober {
    key: ProberKey,
    heard_at: Timestamp,
    /// No message came from it for too long.
    stale: bool,
    distrusted: bool,
    targets: BTreeSet<TargetId>,
    /// Targets that it sees answering, suppressed or not.
    answering: usize,
    /// Targets that it sees failing, by cluster.
    failing: BTreeMap<ClusterName, usize>,
    /// Of those, the ones that a prober that is not stale sees answering.
    contradicted: usize,
}

impl Prober {
    fn new(key: ProberKey, now: Timestamp) -> Prober {
        Prober {
            key,
            heard_at: now,
            stale: false,
            distrusted: false,
            targets: BTreeSet::new(),
            answering: 0,
            failing: BTreeMap::new(),
            contradicted: 0,
        }
    }

    fn is_implausible(&self) -> bool {
        !self.stale && self.answering == 0 && self.failing.len() >= 2 && self.contradicted > 0
    }
}

/// All probe states of one target.
#[derive(Debug, Clone)]
struct TargetStates {
    target: Target,
    /// In the order of the probers' keys.
    states: Vec<(ProberId, ProbeState)>,
    /// Probers that see it answering and are not stale.
    answering: usize,
}

/// What the probers say about one target.
#[derive(Debug)]
pub(crate) enum Assessment<'a> {
    /// The probe states that count, in the order of the probers' keys.
    ProbeStates(Vec<(&'a ProberKey, &'a ProbeState)>),
    /// Only distrusted probers have a probe state.
    OnlyDistrusted,
    /// No prober has a probe state, or all that have one are stale.
    Absent,
}

/// All probers with their probe states.
#[derive(Debug, Clone, Default)]
pub(crate) struct Probers {
    thresholds: BTreeMap<CheckId, Thresholds>,
    probers: Vec<Prober>,
    by_key: BTreeMap<ProberKey, ProberId>,
    targets: Vec<TargetStates>,
    by_target: BTreeMap<Target, TargetId>,
    /// When each suppression ends.
    suppressions: BTreeSet<(Timestamp, TargetId, ProberId)>,
    /// Targets whose assessment may have changed.
    changed: BTreeSet<TargetId>,
    /// Indexes of removed probers, for reuse.
    free_probers: Vec<ProberId>,
    /// Indexes of targets without a probe state, for reuse.
    free_targets: Vec<TargetId>,
}

impl Probers {
    /// Sets the thresholds of the fleet's checks, and decides the probe states that waited for one of them.
    pub(crate) fn set_thresholds(
        &mut self,
        thresholds: BTreeMap<CheckId, Thresholds>,
        damping: &Damping,
        now: Timestamp,
    ) {
        self.thresholds = thresholds;
        for index in 0..self.targets.len() {
            let TargetStates { target, states, .. } = &self.targets[index];
            let known = self.thresholds.get(&target.check).copied();
            let waiting: Vec<(ProberId, ProbeState)> =
                states.iter().filter(|(_, state)| !state.is_decided()).cloned().collect();
            for (prober, state) in waiting {
                let state = state.decide(known, damping, now);
                self.replace_state(TargetId(index), prober, Some(state));
            }
        }
        self.update_distrust();
    }

    /// Applies changes to a prober's table.
    pub(crate) fn apply_changes(
        &mut self,
        key: ProberKey,
        changes: Vec<(Target, Option<Observation>)>,
        damping: &Damping,
        now: Timestamp,
    ) {
        let prober = self.record_contact(key, now);
        for (target, observation) in changes {
            self.record_observation(prober, target, observation, damping, now);
        }
        self.update_distrust();
    }

    /// Replaces a prober's whole table. After a restart of the prober, targets that the new table lacks keep the probe
    /// state that outlives a restart.
    pub(crate) fn replace_table(
        &mut self,
        key: ProberKey,
        all: Vec<(Target, Observation)>,
        restarted: bool,
        damping: &Damping,
        now: Timestamp,
    ) {
        let prober = self.record_contact(key, now);
        let mut gone = self.probers[prober.0].targets.clone();
        if restarted {
            for target in &gone {
                let state = self.replace_state(*target, prober, None).and_then(ProbeState::suspend);
                if state.is_some() {
                    self.replace_state(*target, prober, state);
                }
            }
        }
        for (target, observation) in all {
            if let Some(known) = self.by_target.get(&target) {
                gone.remove(known);
            }
            self.record_observation(prober, target, Some(observation), damping, now);
        }
        for target in gone {
            if !restarted {
                self.replace_state(target, prober, None);
            }
        }
        self.update_distrust();
    }

    /// Records a prober's heartbeat.
    pub(crate) fn record_heartbeat(&mut self, key: ProberKey, now: Timestamp) {
        self.record_contact(key, now);
        self.update_distrust();
    }

    /// Removes a prober with its probe states.
    pub(crate) fn remove(&mut self, key: &ProberKey) {
        let Some(prober) = self.by_key.remove(key) else { return };
        for target in self.probers[prober.0].targets.clone() {
            self.replace_state(target, prober, None);
        }
        self.set_stale(prober, true);
        self.free_probers.push(prober);
        self.update_distrust();
    }

    /// Advances time: ends suppressions that are over, and marks probers as stale.
    pub(crate) fn advance(&mut self, stale_after: Duration, now: Timestamp) {
        while let Some((until, target, prober)) = self.suppressions.first().copied()
            && until <= now
        {
            let states = &self.targets[target.0].states;
            let state = states.iter().find(|(id, _)| *id == prober).map(|(_, state)| state.clone());
            if let Some(state) = state {
                self.replace_state(target, prober, Some(state.release()));
            }
        }
        for index in 0..self.probers.len() {
            let prober = &self.probers[index];
            if !prober.stale && prober.heard_at.plus(stale_after) <= now {
                self.set_stale(ProberId(index), true);
            }
        }
        self.update_distrust();
    }

    /// The next time at which [`Self::advance`] may change something.
    pub(crate) fn next_deadline(&self, stale_after: Duration) -> Option<Timestamp> {
        let stale = self.probers.iter().filter(|p| !p.stale).map(|p| p.heard_at.plus(stale_after)).min();
        let release = self.suppressions.first().map(|(until, _, _)| *until);
        [stale, release].into_iter().flatten().min()
    }

    /// The cluster and check of each target whose assessment may have changed since the last call.
    pub(crate) fn take_changed(&mut self) -> BTreeSet<(ClusterName, CheckId)> {
        let mut changed = BTreeSet::new();
        for id in std::mem::take(&mut self.changed) {
            let TargetStates { target, states, .. } = &self.targets[id.0];
            changed.insert((target.cluster.clone(), target.check));
            if states.is_empty() && self.by_target.remove(target).is_some() {
                self.free_targets.push(id);
            }
        }
        changed
    }

    /// How many probers are not stale.
    pub(crate) fn live_count(&self) -> usize {
        self.probers.iter().filter(|prober| !prober.stale).count()
    }

    /// What the probers say about `target`.
    pub(crate) fn assess(&self, target: &Target) -> Assessment<'_> {
        let Some(id) = self.by_target.get(target) else { return Assessment::Absent };
        let mut has_distrusted = false;
        let mut states = Vec::new();
        for (prober, state) in &self.targets[id.0].states {
            let prober = &self.probers[prober.0];
            if prober.stale || !state.is_decided() {
                continue;
            }
            if prober.distrusted {
                has_distrusted = true;
            } else {
                states.push((&prober.key, state));
            }
        }
        match (states.is_empty(), has_distrusted) {
            (false, _) => Assessment::ProbeStates(states),
            (true, true) => Assessment::OnlyDistrusted,
            (true, false) => Assessment::Absent,
        }
    }

    /// Records that a message came from a prober, and returns its number.
    fn record_contact(&mut self, key: ProberKey, now: Timestamp) -> ProberId {
        let id = match self.by_key.get(&key) {
            Some(id) => *id,
            None => {
                let free = self.free_probers.pop().map(|id| id.0);
                let id = ProberId(insert(&mut self.probers, free, Prober::new(key.clone(), now)));
                self.by_key.insert(key, id);
                id
            }
        };
        self.probers[id.0].heard_at = now;
        self.set_stale(id, false);
        id
    }

    fn set_stale(&mut self, id: ProberId, stale: bool) {
        if self.probers[id.0].stale == stale {
            return;
        }
        // All states are removed before and inserted after, so that the counts follow.
        let targets = self.probers[id.0].targets.clone();
        let states: Vec<(TargetId, ProbeState)> = targets
            .into_iter()
            .filter_map(|target| self.replace_state(target, id, None).map(|state| (target, state)))
            .collect();
        self.probers[id.0].stale = stale;
        for (target, state) in states {
            self.replace_state(target, id, Some(state));
        }
    }

    fn record_observation(
        &mut self,
        prober: ProberId,
        target: Target,
        observation: Option<Observation>,
        damping: &Damping,
        now: Timestamp,
    ) {
        let thresholds = self.thresholds.get(&target.check).copied();
        let id = match (self.by_target.get(&target), &observation) {
            (Some(id), _) => *id,
            (None, None) => return,
            (None, Some(_)) => {
                let empty = TargetStates { target: target.clone(), states: Vec::new(), answering: 0 };
                let free = self.free_targets.pop().map(|id| id.0);
                let id = TargetId(insert(&mut self.targets, free, empty));
                self.by_target.insert(target, id);
                id
            }
        };
        let Some(observation) = observation else {
            self.replace_state(id, prober, None);
            return;
        };
        let known = self.targets[id.0].states.iter().find(|(p, _)| *p == prober);
        let state = match known.map(|(_, state)| state.clone()) {
            Some(state) => state.observe(observation, thresholds, damping, now),
            None => ProbeState::new(observation, thresholds, damping, now),
        };
        self.replace_state(id, prober, Some(state));
    }

    /// The only place where a probe state changes: keeps all counts right, and returns the state before.
    fn replace_state(
        &mut self,
        id: TargetId,
        prober: ProberId,
        state: Option<ProbeState>,
    ) -> Option<ProbeState> {
        let index = self.targets[id.0]
            .states
            .binary_search_by(|(other, _)| self.probers[other.0].key.cmp(&self.probers[prober.0].key));
        if let (Ok(at), Some(state)) = (index, &state) {
            let before = &mut self.targets[id.0].states[at].1;
            if before == state || (!before.is_decided() && !state.is_decided()) {
                return Some(std::mem::replace(before, state.clone()));
            }
        }
        let before = index.ok().map(|at| self.targets[id.0].states.remove(at).1);
        if let Some(before) = &before {
            self.probers[prober.0].targets.remove(&id);
            if let Some(until) = before.suppressed_until() {
                self.suppressions.remove(&(until, id, prober));
            }
            self.adjust_counts(id, prober, before, -1);
        }
        if let Some(state) = state {
            self.probers[prober.0].targets.insert(id);
            if let Some(until) = state.suppressed_until() {
                self.suppressions.insert((until, id, prober));
            }
            self.adjust_counts(id, prober, &state, 1);
            let (Ok(at) | Err(at)) = index;
            self.targets[id.0].states.insert(at, (prober, state));
        }
        self.changed.insert(id);
        before
    }

    /// Counts a probe state (`by` is 1), or no longer (-1). It is not among the target's states meanwhile.
    fn adjust_counts(&mut self, id: TargetId, prober: ProberId, state: &ProbeState, by: isize) {
        let Probers { probers, targets, .. } = self;
        let (seen, prober) = (&mut targets[id.0], &mut probers[prober.0]);
        match state {
            ProbeState::Undecided { .. } | ProbeState::Suspended { .. } => {}
            ProbeState::Failing { .. } => {
                let failing = prober.failing.entry(seen.target.cluster.clone()).or_default();
                adjust(failing, by);
                if *failing == 0 {
                    prober.failing.remove(&seen.target.cluster);
                }
                if seen.answering > 0 {
                    adjust(&mut prober.contradicted, by);
                }
            }
            ProbeState::Passing { .. } | ProbeState::Suppressed { .. } => {
                adjust(&mut prober.answering, by);
                if prober.stale {
                    return;
                }
                let was_answering = seen.answering > 0;
                adjust(&mut seen.answering, by);
                if was_answering == (seen.answering > 0) {
                    return;
                }
                for (other, state) in &seen.states {
                    if matches!(state, ProbeState::Failing { .. }) {
                        adjust(&mut probers[other.0].contradicted, by);
                    }
                }
            }
        }
    }

    fn update_distrust(&mut self) {
        for prober in &mut self.probers {
            if prober.distrusted != prober.is_implausible() {
                prober.distrusted = !prober.distrusted;
                self.changed.extend(prober.targets.iter().copied());
            }
        }
    }
}

fn adjust(count: &mut usize, by: isize) {
    // What is subtracted was added before.
    *count = count.saturating_add_signed(by);
}

/// Inserts an item at a free index, or at the end, and returns the index.
fn insert<T>(items: &mut Vec<T>, free: Option<usize>, item: T) -> usize {
    match free {
        Some(at) => {
            items[at] = item;
            at
        }
        None => {
            items.push(item);
            items.len() - 1
        }
    }
}

#[cfg(test)]
mod tests;
