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

fn evidence() -> Evidence {
    let check = HealthCheck::tcp();
    let mut evidence = Evidence::default();
    evidence.know(BTreeMap::from([(check.id(), Thresholds::of(&check))]), &Damping::default(), Timestamp(0));
    evidence
}

fn say(evidence: &mut Evidence, prober: &ProberKey, cluster: &str, outcome: ProbeOutcome) {
    let observation = Observation { outcome, streak: 3 };
    evidence.observe(
        prober.clone(),
        vec![(target(cluster), Some(observation))],
        &Damping::default(),
        Timestamp(0),
    );
}

fn fail() -> ProbeOutcome {
    ProbeOutcome::Fail(Failure::ConnectTimeout)
}

fn words(evidence: &Evidence, cluster: &str) -> Option<usize> {
    match evidence.on(&target(cluster)) {
        Testimony::Words(words) => Some(words.len()),
        Testimony::Doubted => Some(0),
        Testimony::Silence => None,
    }
}

#[test]
fn a_prober_that_alone_sees_everything_down_is_doubted_until_it_sees_something_up() {
    let mut evidence = evidence();
    let (here, there) = (key("us", "p"), key("eu", "p"));
    say(&mut evidence, &there, "a", ProbeOutcome::Pass);
    say(&mut evidence, &here, "a", fail());
    assert_eq!(words(&evidence, "a"), Some(2), "one failing cluster is no reason to doubt");
    say(&mut evidence, &here, "b", fail());
    assert_eq!((words(&evidence, "a"), words(&evidence, "b")), (Some(1), Some(0)));
    say(&mut evidence, &here, "c", ProbeOutcome::Pass);
    assert_eq!((words(&evidence, "a"), words(&evidence, "b")), (Some(2), Some(1)));
}

#[test]
fn a_prober_whose_view_others_share_is_believed() {
    let mut evidence = evidence();
    for prober in [key("us", "p"), key("eu", "p")] {
        say(&mut evidence, &prober, "a", fail());
        say(&mut evidence, &prober, "b", fail());
    }
    assert_eq!((words(&evidence, "a"), words(&evidence, "b")), (Some(2), Some(2)));
}

#[test]
fn doubt_ends_when_the_prober_that_contradicts_falls_silent() {
    let mut evidence = evidence();
    let (here, there) = (key("us", "p"), key("eu", "p"));
    say(&mut evidence, &there, "a", ProbeOutcome::Pass);
    say(&mut evidence, &here, "a", fail());
    say(&mut evidence, &here, "b", fail());
    let later = Timestamp(2_000_000);
    evidence.heartbeat(here, later);
    evidence.advance(Duration::from_secs(1), later);
    assert_eq!((words(&evidence, "a"), words(&evidence, "b")), (Some(1), Some(1)));
}

#[test]
fn a_whole_table_replaces_what_was_known_and_keeps_what_words_remember() {
    let mut evidence = evidence();
    let prober = key("us", "p");
    say(&mut evidence, &prober, "a", fail());
    say(&mut evidence, &prober, "b", ProbeOutcome::Pass);
    let passed_once = Observation { outcome: ProbeOutcome::Pass, streak: 1 };
    evidence.observe_all(prober, vec![(target("a"), passed_once)], false, &Damping::default(), Timestamp(0));
    assert_eq!(words(&evidence, "b"), None);
    let Testimony::Words(words) = evidence.on(&target("a")) else { panic!("no words") };
    assert!(matches!(words[0].1, Judgement::Failing { .. }), "one pass is not a recovery");
}

#[test]
fn probers_and_targets_that_come_and_go_leave_nothing_behind() {
    let mut evidence = evidence();
    say(&mut evidence, &key("us", "stays"), "stays", ProbeOutcome::Pass);
    for life in 0..100 {
        let prober = key("us", &format!("p{life}"));
        say(&mut evidence, &prober, "stays", fail());
        say(&mut evidence, &prober, &format!("c{life}"), fail());
        evidence.forget(&prober);
        assert!(evidence.take_touched().iter().any(|(cluster, _)| cluster.as_str() == format!("c{life}")));
        assert_eq!(words(&evidence, &format!("c{life}")), None);
    }
    assert_eq!((evidence.probers.len(), evidence.by_key.len()), (2, 1));
    assert_eq!((evidence.slots.len(), evidence.by_target.len()), (2, 1));
    assert_eq!(words(&evidence, "stays"), Some(1));
}
