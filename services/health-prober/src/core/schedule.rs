//! When each target is probed.

use std::{
    cmp::{Ordering, Reverse},
    collections::{BTreeMap, BinaryHeap, HashMap},
    hash::{DefaultHasher, Hash, Hasher},
    sync::Arc,
    time::Duration,
};

use tidegate_bus::TraceContext;
use tidegate_model::{
    ClusterName, Timestamp,
    fleet::Address,
    health::HealthCheck,
    observation::{ProbeOutcome, Target},
};

use super::{
    observing::{Change, Observing},
    suspicion::Throttle,
    wanted::Wanted,
};

/// How much is probed at once and how often.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Probes under way at once because they are due. Suspicions may add a quarter: they must not wait behind a
    /// region that is gone.
    pub at_once: usize,
    /// Every how many probes of a target one has a connection of its own, at least 1.
    pub fresh_every: u32,
    /// The least time between two looks at a target because of suspicions.
    pub suspicion_gap: Duration,
    /// The time between the two probes of one such look.
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

/// Why a prober looks before a probe is due.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Suspected {
    /// When the first real request failed.
    pub first_failure_at: Timestamp,
    /// The trace of the suspicion.
    pub trace: Option<TraceContext>,
}

/// A probe to make.
#[derive(Debug, Clone)]
pub struct Job {
    /// Its number, to be given back with the outcome.
    pub id: JobId,
    /// What to probe.
    pub target: Target,
    /// How.
    pub check: Arc<HealthCheck>,
    /// Whether it must have a connection of its own.
    pub fresh: bool,
    began: Duration,
    suspected: Option<Arc<Suspected>>,
}

/// The number of a target in a [`Schedule`]: the same until the target is removed, and never another one's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct JobId(u64);

#[derive(Debug)]
struct Entry {
    target: Target,
    check: Arc<HealthCheck>,
    /// When it is due, modulo the interval.
    phase: Duration,
    /// Counts from a number of its own.
    probes: u32,
    observing: Observing,
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

/// All targets, and when each is probed next. Times are those since the prober's start, and never run backwards.
#[derive(Debug)]
pub struct Schedule {
    limits: Limits,
    seed: u64,
    entries: HashMap<JobId, Entry>,
    ids: BTreeMap<Target, JobId>,
    next_id: u64,
    regular: BinaryHeap<Reverse<Due>>,
    urgent: BinaryHeap<Reverse<Due>>,
    under_way: usize,
}

/// The longest time to a target's first probe: nothing is known of it until then.
const FIRST_WITHIN: Duration = Duration::from_secs(1);

impl Schedule {
    /// An empty schedule. Different `seed`s spread the same targets differently, so that two probers don't probe in
    /// step.
    pub fn new(limits: Limits, seed: u64) -> Schedule {
        Schedule {
            limits,
            seed,
            entries: HashMap::new(),
            ids: BTreeMap::new(),
            next_id: 0,
            regular: BinaryHeap::new(),
            urgent: BinaryHeap::new(),
            under_way: 0,
        }
    }

    /// Makes the targets those of `wanted`. What is new gets its first probe within a second or its interval, whichever
    /// is less, at a time of its own. Returns what was removed.
    pub fn set_targets(&mut self, wanted: &Wanted, now: Duration) -> Vec<(JobId, Target)> {
        let gone: Vec<Target> =
            self.ids.keys().filter(|target| !wanted.contains_key(*target)).cloned().collect();
        let mut removed = Vec::with_capacity(gone.len());
        for target in gone {
            if let Some(id) = self.ids.remove(&target) {
                self.entries.remove(&id);
                removed.push((id, target));
            }
        }
        for (target, check) in wanted {
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
        // Or else all targets of a fleet would have their new connections in the same interval.
        let probes = (hash % u64::from(self.limits.fresh_every.max(1))) as u32;
        let phase = within(check.interval);
        let entry =
            Entry { target: target.clone(), check, phase, probes, observing: Observing::default(), throttle };
        self.entries.insert(id, entry);
        self.ids.insert(target, id);
    }

    /// An edge suspects an endpoint: each of its targets is looked at with two probes, unless one was so just before.
    /// Says whether any is.
    pub fn suspect(
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
        let targets = self.ids.range(first..).map(|(target, id)| (target, *id));
        let ids: Vec<JobId> = targets
            .take_while(|(target, _)| target.cluster == *cluster && target.endpoint == *endpoint)
            .map(|(_, id)| id)
            .collect();
        let mut looks = false;
        for id in ids {
            if self.entries.get_mut(&id).is_some_and(|entry| entry.throttle.admit(now)) {
                looks = true;
                for at in [now, now + self.limits.suspicion_pair] {
                    self.urgent.push(Reverse(Due { at, id, suspected: Some(suspected.clone()) }));
                }
            }
        }
        looks
    }

    /// The next probe to begin now, if any. Each one must be given back to [`Schedule::finished`].
    pub fn next(&mut self, now: Duration) -> Option<Job> {
        let most_urgent = self.limits.at_once + self.limits.at_once.div_ceil(4);
        loop {
            let due = if self.under_way < most_urgent
                && let Some(due) = pop(&mut self.urgent, now)
            {
                due
            } else if self.under_way < self.limits.at_once {
                pop(&mut self.regular, now)?
            } else {
                return None;
            };
            let Some(entry) = self.entries.get_mut(&due.id) else { continue };
            let Due { id, suspected, .. } = due;
            if suspected.is_none() {
                let at = following(entry.phase, entry.check.interval, now);
                self.regular.push(Reverse(Due { at, id, suspected: None }));
            }
            // After a failure, and for a suspicion, an old connection proves nothing: the listener may be what is gone.
            let fresh = suspected.is_some()
                || entry.observing.failed_last()
                || entry.probes.is_multiple_of(self.limits.fresh_every.max(1));
            if suspected.is_none() {
                entry.probes = entry.probes.wrapping_add(1);
            }
            self.under_way += 1;
            let (target, check) = (entry.target.clone(), entry.check.clone());
            return Some(Job { id, target, check, fresh, began: now, suspected });
        }
    }

    /// When [`Schedule::next`] may have something next, as far as is known now. Nothing while it waits for probes to
    /// finish.
    pub fn wake_at(&self) -> Option<Duration> {
        let at = |heap: &BinaryHeap<Reverse<Due>>| heap.peek().map(|Reverse(due)| due.at);
        let most_urgent = self.limits.at_once + self.limits.at_once.div_ceil(4);
        let regular = at(&self.regular).filter(|_| self.under_way < self.limits.at_once);
        let urgent = at(&self.urgent).filter(|_| self.under_way < most_urgent);
        [regular, urgent].into_iter().flatten().min()
    }

    /// Takes the outcome of a probe. Returns the change of the observation, if it changed.
    pub fn finished(&mut self, job: Job, outcome: ProbeOutcome) -> Option<Change> {
        self.under_way -= 1;
        let entry = self.entries.get_mut(&job.id)?;
        let failed = outcome != ProbeOutcome::Pass;
        let observation = entry.observing.count(outcome, job.began, &entry.check)?;
        if failed && job.suspected.is_some() {
            entry.throttle.confirm();
        }
        Some(Change {
            target: job.target,
            observation,
            suspected: job.suspected.map(Arc::unwrap_or_clone),
            run_began: entry.observing.run_began(),
            began: job.began,
        })
    }

    /// Takes back a job that was not probed.
    pub fn abandoned(&mut self) {
        self.under_way -= 1;
    }

    /// Whether the target is still one.
    pub fn has(&self, id: JobId) -> bool {
        self.entries.contains_key(&id)
    }

    /// How many targets there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is no target.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// How many targets' last probe failed.
    pub fn failing(&self) -> usize {
        self.entries.values().filter(|entry| entry.observing.failed_last()).count()
    }

    /// How many targets were probed at all.
    pub fn observed(&self) -> usize {
        self.entries.values().filter(|entry| entry.observing.current().is_some()).count()
    }
}

fn pop(heap: &mut BinaryHeap<Reverse<Due>>, now: Duration) -> Option<Due> {
    let Reverse(first) = heap.peek()?;
    if first.at > now {
        return None;
    }
    heap.pop().map(|Reverse(due)| due)
}

/// The first time after `now` that is `phase` modulo `interval`: what was missed is left out, not made up for.
fn following(phase: Duration, interval: Duration, now: Duration) -> Duration {
    let (phase, interval, now) = (phase.as_nanos(), interval.as_nanos().max(1), now.as_nanos());
    let periods = if now < phase { 0 } else { (now - phase) / interval + 1 };
    Duration::from_nanos(u64::try_from(phase + periods * interval).unwrap_or(u64::MAX))
}
