//! The schedule in virtual time.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tidegate_model::{
    Timestamp,
    health::HealthCheck,
    observation::{Failure, ProbeOutcome, Target},
};

use super::{Job, Limits, ObservationChange, ProbeSchedule, ProbeTargets, Suspected};

const MS: Duration = Duration::from_millis(1);

fn target(number: usize) -> Target {
    let check = HealthCheck::tcp();
    Target {
        cluster: "a".parse().unwrap(),
        endpoint: format!("10.0.{}.{}:80", number / 250, number % 250 + 1).parse().unwrap(),
        check: check.id(),
    }
}

fn targets(count: usize, interval: Duration) -> ProbeTargets {
    let check = Arc::new(HealthCheck { interval, ..HealthCheck::tcp() });
    (0..count).map(|number| (target(number), check.clone())).collect()
}

fn suspicion() -> Suspected {
    Suspected { first_failure_at: Timestamp(7), trace: None }
}

/// A world in which each probe ends with `outcome` after `takes`.
struct World {
    schedule: ProbeSchedule,
    now: Duration,
    takes: Duration,
    outcome: fn(&Job) -> ProbeOutcome,
    running: BTreeMap<(Duration, u64), Job>,
    started: Vec<(Duration, Job)>,
    changes: Vec<(Duration, ObservationChange)>,
    most_at_once: usize,
}

impl World {
    fn new(limits: Limits, targets: &ProbeTargets) -> World {
        let mut schedule = ProbeSchedule::new(limits, 1);
        schedule.set_targets(targets, Duration::ZERO);
        World {
            schedule,
            now: Duration::ZERO,
            takes: MS,
            outcome: |_| ProbeOutcome::Pass,
            running: BTreeMap::new(),
            started: Vec::new(),
            changes: Vec::new(),
            most_at_once: 0,
        }
    }

    fn start_due(&mut self) {
        while let Some(job) = self.schedule.next_job(self.now) {
            self.started.push((self.now, job.clone()));
            self.running.insert((self.now + self.takes, self.started.len() as u64), job);
            self.most_at_once = self.most_at_once.max(self.running.len());
        }
    }

    fn run_until(&mut self, end: Duration) {
        loop {
            self.start_due();
            let ends = self.running.keys().next().map(|(at, _)| *at);
            let next = [ends, self.schedule.next_deadline()].into_iter().flatten().min();
            match next {
                Some(at) if at <= end => self.now = self.now.max(at),
                _ => break,
            }
            while let Some(entry) = self.running.first_entry()
                && entry.key().0 <= self.now
            {
                let job = entry.remove();
                let outcome = (self.outcome)(&job);
                self.changes.extend(self.schedule.finish(job, outcome).map(|change| (self.now, change)));
            }
        }
        self.now = end;
    }
}

#[test]
fn each_target_is_probed_once_an_interval_and_they_are_spread_over_it() {
    let mut world = World::new(Limits::default(), &targets(1000, 250 * MS));

    world.run_until(250 * MS);
    world.started.clear();
    world.run_until(1250 * MS);

    let mut per_target: BTreeMap<&Target, u32> = BTreeMap::new();
    let mut per_slice = [0; 10];
    for (at, job) in &world.started {
        *per_target.entry(&job.target).or_default() += 1;
        per_slice[(at.as_millis() % 250 / 25) as usize] += 1;
    }
    assert_eq!(per_target.len(), 1000);
    assert!(per_target.values().all(|count| *count == 4), "{per_target:?}");
    assert!(
        per_slice.iter().all(|count| (300..500).contains(count)),
        "a tenth of an interval: {per_slice:?}"
    );
}

#[test]
fn targets_with_a_long_interval_are_observed_soon_and_spread_after_that() {
    let mut world = World::new(Limits::default(), &targets(100, Duration::from_secs(60)));

    world.run_until(Duration::from_secs(1));
    assert_eq!(world.schedule.observed_count(), 100);
    world.started.clear();
    world.run_until(Duration::from_secs(61));

    let early = world.started.iter().filter(|(at, _)| *at < Duration::from_secs(31)).count();
    assert!((30..70).contains(&early), "half of them in the first half: {early}");
}

#[test]
fn two_probers_do_not_probe_in_step() {
    let first_probe = |seed| {
        let mut schedule = ProbeSchedule::new(Limits::default(), seed);
        schedule.set_targets(&targets(1, 250 * MS), Duration::ZERO);
        schedule.next_deadline().unwrap()
    };
    assert_ne!(first_probe(1), first_probe(2));
}

#[test]
fn a_steady_endpoint_changes_nothing() {
    let mut world = World::new(Limits::default(), &targets(10, 250 * MS));
    world.run_until(Duration::from_secs(2));
    world.changes.clear();
    world.run_until(Duration::from_secs(10));
    assert_eq!(world.changes, []);
}

#[test]
fn at_most_so_many_probes_are_in_flight_and_none_is_forgotten() {
    let limits = Limits { at_once: 8, ..Limits::default() };
    let mut world = World::new(limits, &targets(100, 250 * MS));
    world.takes = 200 * MS;
    world.outcome = |_| ProbeOutcome::Fail(Failure::NoResponse);

    world.run_until(Duration::from_secs(5));

    assert_eq!(world.most_at_once, 8);
    assert_eq!(world.schedule.observed_count(), 100, "each had its turn");
}

#[test]
fn a_suspicion_triggers_two_probes_at_once() {
    let mut world = World::new(Limits::default(), &targets(2, Duration::from_secs(10)));
    world.run_until(Duration::from_secs(2));
    world.started.clear();
    world.outcome = |_| ProbeOutcome::Fail(Failure::ConnectRefused);
    let suspect = target(1);

    assert!(world.schedule.schedule_suspected(&suspect.cluster, &suspect.endpoint, suspicion(), world.now));
    world.changes.clear();
    world.run_until(2050 * MS);

    let at: Vec<Duration> = world.started.iter().map(|(at, _)| *at).collect();
    assert_eq!(at, [2000 * MS, 2020 * MS]);
    assert!(world.started.iter().all(|(_, job)| job.target == suspect && job.fresh));
    let streaks: Vec<u16> = world.changes.iter().map(|(_, change)| change.observation.streak).collect();
    assert_eq!(streaks, [1, 2], "enough for the default `unhealthy_after`");
    let (at, last) = &world.changes[1];
    assert_eq!((*at, last.run_began), (2021 * MS, 2000 * MS));
    assert_eq!(last.suspected, Some(suspicion()));
}

#[test]
fn false_suspicions_trigger_probes_ever_more_rarely() {
    let mut world = World::new(Limits::default(), &targets(1, 1000 * MS));
    world.run_until(Duration::from_secs(2));
    let suspect = target(0);

    let mut looks = 0;
    for _ in 0..400 {
        looks += u32::from(world.schedule.schedule_suspected(
            &suspect.cluster,
            &suspect.endpoint,
            suspicion(),
            world.now,
        ));
        world.run_until(world.now + 10 * MS);
    }

    // At 0, 0.2, 0.6, 1.4, 2.4 and 3.4 s.
    assert_eq!(looks, 6);
}

#[test]
fn suspicions_do_not_wait_behind_probes_that_hang() {
    let limits = Limits { at_once: 4, ..Limits::default() };
    let mut world = World::new(limits, &targets(100, 250 * MS));
    world.takes = Duration::from_secs(3600);
    world.run_until(Duration::from_secs(1));
    assert_eq!(world.running.len(), 4);
    world.started.clear();

    let suspect = target(50);
    world.schedule.schedule_suspected(&suspect.cluster, &suspect.endpoint, suspicion(), world.now);
    world.start_due();

    assert_eq!(world.started.len(), 1);
    assert_eq!(world.started[0].1.target, suspect);
}

#[test]
fn every_tenth_probe_is_fresh_and_so_are_those_after_a_failure() {
    let mut world = World::new(Limits::default(), &targets(1, 250 * MS));
    world.run_until(Duration::from_secs(10));
    let fresh: Vec<usize> =
        world.started.iter().enumerate().filter(|(_, (_, job))| job.fresh).map(|(index, _)| index).collect();
    assert_eq!(fresh.len(), 4, "of 40");
    assert!(fresh.windows(2).all(|pair| pair[1] - pair[0] == 10), "{fresh:?}");

    // A listener that is gone while an old connection still works: each fresh probe fails.
    world.outcome =
        |job| if job.fresh { ProbeOutcome::Fail(Failure::ConnectRefused) } else { ProbeOutcome::Pass };
    world.changes.clear();
    world.run_until(Duration::from_secs(14));
    let last = &world.changes.last().unwrap().1.observation;
    assert_eq!((last.outcome == ProbeOutcome::Pass, last.streak), (false, 3), "it is noticed and stays so");
}

#[test]
fn new_connections_are_spread_over_time() {
    let mut world = World::new(Limits::default(), &targets(1000, 250 * MS));
    world.run_until(Duration::from_secs(1));
    world.started.clear();

    world.run_until(1250 * MS);

    let fresh = world.started.iter().filter(|(_, job)| job.fresh).count();
    assert!((60..150).contains(&fresh), "about a tenth in one interval: {fresh} of {}", world.started.len());
}

#[test]
fn what_is_removed_is_no_longer_probed_and_its_outcome_ignored() {
    let mut world = World::new(Limits::default(), &targets(2, 250 * MS));
    world.run_until(Duration::from_secs(1));
    world.takes = 100 * MS;
    let (kept, gone) = (targets(1, 250 * MS), target(1));

    world.run_until(1250 * MS);
    let removed = world.schedule.set_targets(&kept, world.now);
    world.started.clear();
    world.outcome = |_| ProbeOutcome::Fail(Failure::Reset);
    world.changes.clear();
    world.run_until(Duration::from_secs(3));

    assert_eq!(
        removed.into_iter().map(|(_, target)| target).collect::<Vec<_>>(),
        std::slice::from_ref(&gone)
    );
    assert!(world.started.iter().all(|(_, job)| job.target != gone));
    assert!(world.changes.iter().all(|(_, change)| change.target != gone));
}

#[test]
fn a_pause_of_the_process_is_not_made_up_for() {
    let mut world = World::new(Limits::default(), &targets(1, 250 * MS));
    world.run_until(Duration::from_secs(1));
    world.started.clear();

    world.now = Duration::from_secs(60);
    world.run_until(Duration::from_secs(60));

    assert!(world.started.len() <= 2, "{}", world.started.len());
}
