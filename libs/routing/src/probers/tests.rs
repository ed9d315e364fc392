use tidegate_model::{
    health::HealthCheck,
    observation::{Failure, ProbeOutcome},
};

use super::*;

fn key(region: &str, name: &str) -> ProberKey {
    ProberKey { region: region.parse().unwrap(), name: name.parse().unwrap() }
}

fn target(cluster: &str) -> Target {
    Target {
        cluster: cluster.parse().unwrap(),
        endpoint: "10.0.0.1:80".parse().unwrap(),
        check: HealthCheck::tcp().id(),
    }
}

fn probers() -> Probers {
    let check = HealthCheck::tcp();
    let mut probers = Probers::default();
    probers.set_thresholds(
        BTreeMap::from([(check.id(), Thresholds::of(&check))]),
        &Damping::default(),
        Timestamp(0),
    );
    probers
}

fn report(probers: &mut Probers, prober: &ProberKey, cluster: &str, outcome: ProbeOutcome) {
    let observation = Observation { outcome, streak: 3 };
    probers.apply_changes(
        prober.clone(),
        vec![(target(cluster), Some(observation))],
        &Damping::default(),
        Timestamp(0),
    );
}

fn fail() -> ProbeOutcome {
    ProbeOutcome::Fail(Failure::ConnectTimeout)
}

fn states(probers: &Probers, cluster: &str) -> Option<usize> {
    match probers.assess(&target(cluster)) {
        Assessment::ProbeStates(states) => Some(states.len()),
        Assessment::OnlyDistrusted => Some(0),
        Assessment::Absent => None,
    }
}

#[test]
fn a_prober_that_alone_sees_everything_down_is_distrusted_until_it_sees_something_up() {
    let mut probers = probers();
    let (here, there) = (key("us", "p"), key("eu", "p"));
    report(&mut probers, &there, "a", ProbeOutcome::Pass);
    report(&mut probers, &here, "a", fail());
    assert_eq!(states(&probers, "a"), Some(2), "one failing cluster is no reason for distrust");
    report(&mut probers, &here, "b", fail());
    assert_eq!((states(&probers, "a"), states(&probers, "b")), (Some(1), Some(0)));
    report(&mut probers, &here, "c", ProbeOutcome::Pass);
    assert_eq!((states(&probers, "a"), states(&probers, "b")), (Some(2), Some(1)));
}

#[test]
fn a_prober_whose_probe_states_others_share_is_trusted() {
    let mut probers = probers();
    for prober in [key("us", "p"), key("eu", "p")] {
        report(&mut probers, &prober, "a", fail());
        report(&mut probers, &prober, "b", fail());
    }
    assert_eq!((states(&probers, "a"), states(&probers, "b")), (Some(2), Some(2)));
}

#[test]
fn distrust_ends_when_the_prober_that_contradicts_becomes_stale() {
    let mut probers = probers();
    let (here, there) = (key("us", "p"), key("eu", "p"));
    report(&mut probers, &there, "a", ProbeOutcome::Pass);
    report(&mut probers, &here, "a", fail());
    report(&mut probers, &here, "b", fail());
    let later = Timestamp(2_000_000);
    probers.record_heartbeat(here, later);
    probers.advance(Duration::from_secs(1), later);
    assert_eq!((states(&probers, "a"), states(&probers, "b")), (Some(1), Some(1)));
}

#[test]
fn a_whole_table_replaces_the_one_before_and_keeps_the_history_of_probe_states() {
    let mut probers = probers();
    let prober = key("us", "p");
    report(&mut probers, &prober, "a", fail());
    report(&mut probers, &prober, "b", ProbeOutcome::Pass);
    let passed_once = Observation { outcome: ProbeOutcome::Pass, streak: 1 };
    probers.replace_table(prober, vec![(target("a"), passed_once)], false, &Damping::default(), Timestamp(0));
    assert_eq!(states(&probers, "b"), None);
    let Assessment::ProbeStates(states) = probers.assess(&target("a")) else { panic!("no probe states") };
    assert!(matches!(states[0].1, ProbeState::Failing { .. }), "one pass is not a recovery");
}

#[test]
fn probers_and_targets_that_come_and_go_leave_nothing_behind() {
    let mut probers = probers();
    report(&mut probers, &key("us", "stays"), "stays", ProbeOutcome::Pass);
    for round in 0..100 {
        let prober = key("us", &format!("p{round}"));
        report(&mut probers, &prober, "stays", fail());
        report(&mut probers, &prober, &format!("c{round}"), fail());
        probers.remove(&prober);
        assert!(probers.take_changed().iter().any(|(cluster, _)| cluster.as_str() == format!("c{round}")));
        assert_eq!(states(&probers, &format!("c{round}")), None);
    }
    assert_eq!((probers.probers.len(), probers.by_key.len()), (2, 1));
    assert_eq!((probers.targets.len(), probers.by_target.len()), (2, 1));
    assert_eq!(states(&probers, "stays"), Some(1));
}
