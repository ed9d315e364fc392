//! The schedule of probes.

use std::{
    cmp::{Ordering, Reverse},
    collections::{BTreeMap, BinaryHeap, HashMap},
    hash::{DefaultHasher, Hash, Hasher},
    sync::Arc,
    time::Duration,
};

use tidegate_model::{
    ClusterName,
    fleet::Address,
    health::HealthCheck,
    observation::{ProbeOutcome, Target},
};

use super::{
    observation::{ObservationChange, ObservationTracker},
    suspicion::{Suspected, Throttle},
    targets::ProbeTargets,
};

/// The limits of a schedule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// The most due probes in flight at once. Suspicions may add a quarter: their probes must not wait behind those of a
    /// region that is gone.
    pub at_once: usize,
    /// One of so many probes of a target uses a new connection, at least 1.
    pub fresh_every: u32,
    /// The least time between two pairs of probes of a target that suspicions trigger.
    pub suspicion_gap: Duration,
    /// The time between the two probes of such a pair.
    pub suspicion_pair: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            at_once: 2000,
            fresh_every: 10,
            suspicion_gap: Duration::from_millis(100),
            suspicion_pair: Duration::from_millis(20),
        }
    }
}

/// A probe to make.
#[derive(Debug, Clone)]
pub struct Job {
    /// The number of its target.
    pub id: JobId,
    /// The target.
    pub target: Target,
    /// The check.
    pub check: Arc<HealthCheck>,
    /// Whether it needs a new connection.
    pub fresh: bool,
    began: Duration,
    suspected: Option<Arc<Suspected>>,
}

/// The number of a target in a [`ProbeSchedule`], which is never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct JobId(u64);

#[derive(Debug)]
struct Entry {
    target: Target,
    check: Arc<HealthCheck>,
    /// Its due times, modulo the interval.
    phase: Duration,
    /// The number of probes, from a start of its own.
    probes: u32,
    tracker: ObservationTracker,
    throttle: Throttle,
}

/// A probe that becomes due.
#[derive(Debug)]
struct Due {
    at: Duration,
    id: JobId,
    suspected: Option<Arc<Suspected>>,
}

impl Ord for Due {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.at, self.id).cmp(&(other.at, other.id))
    }
}

impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Due {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Due {}

/// All targets with the times of their next probes. Times count from the start of the prober, and never decrease.
#[derive(Debug)]
pub struct ProbeSchedule {
    limits: Limits,
    seed: u64,
    entries: HashMap<JobId, Entry>,
    ids: BTreeMap<Target, JobId>,
    next_id: u64,
    regular: BinaryHeap<Reverse<Due>>,
    urgent: BinaryHeap<Reverse<Due>>,
    in_flight: usize,
}

/// The longest time to a target's first probe.
const FIRST_WITHIN: Duration = Duration::from_secs(1);

impl ProbeSchedule {
    /// An empty schedule. Different `seed`s spread the same targets differently, so that probers don't probe in step.
    pub fn new(limits: Limits, seed: u64) -> ProbeSchedule {
        ProbeSchedule {
            limits,
            seed,
            entries: HashMap::new(),
            ids: BTreeMap::new(),
            next_id: 0,
            regular: BinaryHeap::new(),
            urgent: BinaryHeap::new(),
            in_flight: 0,
        }
    }

    /// Replaces the targets. New ones get their first probe within a second or their interval, whichever is less, spread over
    /// that time. Returns the targets that were removed.
    pub fn set_targets(&mut self, targets: &ProbeTargets, now: Duration) -> Vec<(JobId, Target)> {
        let gone: Vec<Target> =
            self.ids.keys().filter(|target| !targets.contains_key(*target)).cloned().collect();
        let mut removed = Vec::with_capacity(gone.len());
        for target in gone {
            if let Some(id) = self.ids.remove(&target) {
                self.entries.remove(&id);
                removed.push((id, target));
            }
        }
        for (target, check) in targets {
            if !self.ids.contains_key(target) {
                self.add(target.clone(), check.clone(), now);
            }
        }
        removed
    }

    fn add(&mut self, target: Target, check: Arc<HealthCheck>, now: Duration) {
        let mut hasher = DefaultHasher::new();
        (self.seed, &target).hash(&mut hasher);
        let hash = hasher.finish();
        let within = |span: Duration| span.mul_f64((hash >> 11) as f64 / (1u64 << 53) as f64);
        let id = JobId(self.next_id);
        self.next_id += 1;
        self.regular.push(Reverse(Due {
            at: now + within(check.interval.min(FIRST_WITHIN)),
            id,
            suspected: None,
        }));
        let throttle = Throttle::new(self.limits.suspicion_gap, check.interval);
        // Otherwise all targets of a fleet would get their new connections in the same interval.
        let probes = (hash % u64::from(self.limits.fresh_every.max(1))) as u32;
        let phase = within(check.interval);
        let entry = Entry {
            target: target.clone(),
            check,
            phase,
            probes,
            tracker: ObservationTracker::default(),
            throttle,
        };
        self.entries.insert(id, entry);
        self.ids.insert(target, id);
    }

    /// Schedules two probes of each target of an endpoint that an edge suspects, as far as the rate limit admits. Returns
    /// whether any was scheduled.
    pub fn schedule_suspected(
        &mut self,
        cluster: &ClusterName,
        endpoint: &Address,
        suspected: Suspected,
        now: Duration,
    ) -> bool {
        let suspected = Arc::new(suspected);
        let first = Target {
            cluster: cluster.clone(),
            endpoint: endpoint.clone(),
            check: tidegate_model::health::CheckId(0),
        };
        let known = self.ids.range(first..).map(|(target, id)| (target, *id));
        let ids: Vec<JobId> = known
            .take_while(|(target, _)| target.cluster == *cluster && target.endpoint == *endpoint)
            .map(|(_, id)| id)
            .collect();
        let mut is_scheduled = false;
        for id in ids {
            if self.entries.get_mut(&id).is_some_and(|entry| entry.throttle.admit(now)) {
                is_scheduled = true;
                for at in [now, now + self.limits.suspicion_pair] {
                    self.urgent.push(Reverse(Due { at, id, suspected: Some(suspected.clone()) }));
                }
            }
        }
        is_scheduled
    }

    /// The next probe to start now, if any. Each one must end with [`ProbeSchedule::finish`] or [`ProbeSchedule::abandon`].
    pub fn next_job(&mut self, now: Duration) -> Option<Job> {
        let most_urgent = self.limits.at_once + self.limits.at_once.div_ceil(4);
        loop {
            let due = if self.in_flight < most_urgent
                && let Some(due) = pop(&mut self.urgent, now)
            {
                due
            } else if self.in_flight < self.limits.at_once {
                pop(&mut self.regular, now)?
            } else {
                return None;
            };
            let Some(entry) = self.entries.get_mut(&due.id) else { continue };
            let Due { id, suspected, .. } = due;
            if suspected.is_none() {
                let at = next_due(entry.phase, entry.check.interval, now);
                self.regular.push(Reverse(Due { at, id, suspected: None }));
            }
            // After a failure or a suspicion, an old connection proves nothing: the listener may be gone.
            let fresh = suspected.is_some()
                || entry.tracker.failed_last()
                || entry.probes.is_multiple_of(self.limits.fresh_every.max(1));
            if suspected.is_none() {
                entry.probes = entry.probes.wrapping_add(1);
            }
            self.in_flight += 1;
            let (target, check) = (entry.target.clone(), entry.check.clone());
            return Some(Job { id, target, check, fresh, began: now, suspected });
        }
    }

    /// The next time at which [`ProbeSchedule::next_job`] may return a probe; absent while all slots are in use.
    pub fn next_deadline(&self) -> Option<Duration> {
        let at = |heap: &BinaryHeap<Reverse<Due>>| heap.peek().map(|Reverse(due)| due.at);
        let most_urgent = self.limits.at_once + self.limits.at_once.div_ceil(4);
        let regular = at(&self.regular).filter(|_| self.in_flight < self.limits.at_once);
        let urgent = at(&self.urgent).filter(|_| self.in_flight < most_urgent);
        [regular, urgent].into_iter().flatten().min()
    }

    /// Records the outcome of a probe. Returns the change of the observation, if any.
    pub fn finish(&mut self, job: Job, outcome: ProbeOutcome) -> Option<ObservationChange> {
        self.in_flight -= 1;
        let entry = self.entries.get_mut(&job.id)?;
        let failed = outcome != ProbeOutcome::Pass;
        let observation = entry.tracker.record_outcome(outcome, job.began, &entry.check)?;
        if failed && job.suspected.is_some() {
            entry.throttle.confirm();
        }
        Some(ObservationChange {
            target: job.target,
            observation,
            suspected: job.suspected.map(Arc::unwrap_or_clone),
            run_began: entry.tracker.run_began(),
            began: job.began,
        })
    }

    /// Ends a job that was not probed.
    pub fn abandon(&mut self) {
        self.in_flight -= 1;
    }

    /// Whether the schedule still has the target.
    pub fn has_target(&self, id: JobId) -> bool {
        self.entries.contains_key(&id)
    }

    /// The number of targets.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is no target.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The number of targets whose last probe failed.
    pub fn failing_count(&self) -> usize {
        self.entries.values().filter(|entry| entry.tracker.failed_last()).count()
    }

    /// The number of targets that have an observation.
    pub fn observed_count(&self) -> usize {
        self.entries.values().filter(|entry| entry.tracker.current().is_some()).count()
    }
}

fn pop(heap: &mut BinaryHeap<Reverse<Due>>, now: Duration) -> Option<Due> {
    let Reverse(first) = heap.peek()?;
    if first.at > now {
        return None;
    }
    heap.pop().map(|Reverse(due)| due)
}

/// The first time after `now` that is `phase` modulo `interval`. Missed probes are not made up for.
fn next_due(phase: Duration, interval: Duration, now: Duration) -> Duration {
    let (phase, interval, now) = (phase.as_nanos(), interval.as_nanos().max(1), now.as_nanos());
    let periods = if now < phase { 0 } else { (now - phase) / interval + 1 };
    Duration::from_nanos(u64::try_from(phase + periods * interval).unwrap_or(u64::MAX))
}
