//! What a forger can do to a table: nothing where it is signed, and nothing for good where it is not.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tidegate_bus::{
    Bus, clock,
    codec::{self, Wire},
    lease::{Lease, LeaseSeal, LeaseState},
    seal::{Signer, Trust},
    subjects,
    table::{
        Epochs, Heartbeat, Owner, OwnerOptions, Position, Replica, ReplicaOptions, Replicas, Summary,
        TableUpdate, Update,
    },
};
use tidegate_model::{Epoch, Revision};
use tokio::sync::mpsc::Receiver;

use crate::both::{LONG, on_both};

on_both! {
    an_epoch_that_cannot_be_is_refused_and_the_table_followed_on
    an_epoch_in_a_request_for_a_snapshot_drives_no_owner_away
    what_no_trusted_key_signed_is_refused_and_the_signed_table_followed_on
    keys_are_changed_while_the_table_is_followed
    a_stored_snapshot_that_was_not_signed_is_not_believed
    a_replica_that_was_reset_follows_an_owner_of_an_older_epoch
    a_lease_that_nobody_signed_is_nobodys
    somebody_who_writes_the_lease_without_a_key_keeps_no_region_without_a_leader
    an_earlier_holders_entry_that_is_written_again_keeps_no_region_without_a_leader
    an_epoch_from_the_future_stops_no_table_whose_epochs_are_times
    an_owner_whose_epoch_is_a_time_learns_of_a_later_owner_but_not_of_one_from_the_future
    a_request_for_a_snapshot_leads_no_owner_to_a_larger_epoch
    a_replica_that_does_not_know_whether_there_are_keys_believes_nothing_until_it_does
    invented_tables_keep_out_no_real_one
    a_signed_epoch_is_followed_however_far_it_is_from_the_last_one
    an_epoch_that_was_believed_before_there_were_keys_refuses_no_signed_table
    the_first_keys_of_one_of_many_tables_clear_its_fence
}

const SUBJECT: &str = "tidegate.v1.routes.eu";

/// A heartbeat as it travels.
#[derive(Serialize, Deserialize)]
enum Forged {
    _Delta,
    Heartbeat(Heartbeat),
}

impl Wire for Forged {}

fn heartbeat(epoch: u64) -> Bytes {
    let position = Position { epoch: Epoch(epoch), revision: Revision(1) };
    codec::encode(&Forged::Heartbeat(Heartbeat { position, content: Summary { digest: 1, entries: 1 } }))
}

async fn own(bus: &Bus, epoch: u64, value: &str, signer: Option<&Arc<Signer>>) -> Owner<String, String> {
    let short = Duration::from_millis(50);
    let options = OwnerOptions { heartbeat: short, signer: signer.cloned(), ..OwnerOptions::default() };
    let entries = [("key".to_owned(), value.to_owned())];
    Owner::start(bus.clone(), SUBJECT, Epoch(epoch), Revision(1), entries, options).await.unwrap()
}

async fn follow(bus: &Bus, trust: &Trust) -> (Replica, Receiver<Update<String, String>>) {
    let options =
        ReplicaOptions { trust: trust.clone(), epochs: Epochs::Counted, ..ReplicaOptions::default() };
    Replica::start(bus.clone(), SUBJECT, options).await.unwrap()
}

async fn set(owner: &mut Owner<String, String>, value: &str) {
    owner
        .publish([("key".to_owned(), Some(value.to_owned()))], Bytes::new(), None)
        .await
        .unwrap()
        .sent
        .unwrap();
}

/// Waits until the replica has this value.
async fn until(updates: &mut Receiver<Update<String, String>>, wanted: &str) {
    let reached = async {
        loop {
            let value = match updates.recv().await.unwrap() {
                Update::Snapshot { entries, .. } => entries.into_iter().next().map(|(_, value)| value),
                Update::Delta { changes, .. } => changes.into_iter().next().and_then(|(_, value)| value),
                Update::Heartbeat { .. } | Update::Refused { .. } => None,
            };
            if value.as_deref() == Some(wanted) {
                return;
            }
        }
    };
    tokio::time::timeout(LONG, reached).await.unwrap_or_else(|_| panic!("{wanted} does not come"));
}

async fn an_epoch_that_cannot_be_is_refused_and_the_table_followed_on(bus: Bus) {
    let mut owner = own(&bus, 7, "first", None).await;
    let (_replica, mut updates) = follow(&bus, &Trust::new()).await;
    until(&mut updates, "first").await;

    for epoch in [u64::MAX, (1 << 42) + 1, 7 + (1 << 20) + 1] {
        bus.publish(SUBJECT, None, heartbeat(epoch)).await.unwrap();
    }
    set(&mut owner, "second").await;

    until(&mut updates, "second").await;
}

async fn an_epoch_in_a_request_for_a_snapshot_drives_no_owner_away(bus: Bus) {
    #[derive(Serialize, Deserialize)]
    struct Request(Epoch);
    impl Wire for Request {}
    let owner = own(&bus, 7, "first", None).await;
    for epoch in [u64::MAX, 1 << 42] {
        let request = codec::encode(&Request(Epoch(epoch)));
        bus.request(&subjects::snapshot(SUBJECT), request, LONG).await.unwrap();
    }
    assert_eq!(owner.superseded_by(), None);
}

async fn what_no_trusted_key_signed_is_refused_and_the_signed_table_followed_on(bus: Bus) {
    let (signer, stranger) = (Arc::new(Signer::ephemeral()), Arc::new(Signer::ephemeral()));
    let trust = Trust::new();
    trust.set(&[signer.public_key()]);
    let mut owner = own(&bus, 7, "first", Some(&signer)).await;
    let (replica, mut updates) = follow(&bus, &trust).await;
    until(&mut updates, "first").await;

    // Whoever publishes without the key is not heard, whatever epoch it says.
    let _unsigned = own(&bus, 9, "unsigned", None).await;
    let _stranger = own(&bus, 9, "by a stranger", Some(&stranger)).await;
    bus.publish(SUBJECT, None, heartbeat(8)).await.unwrap();
    let elsewhere = signer.seal(tidegate_bus::seal::Purpose::Message, "tidegate.v1.routes.us", &heartbeat(8));
    bus.publish(SUBJECT, None, elsewhere).await.unwrap();
    set(&mut owner, "second").await;

    until(&mut updates, "second").await;
    let refused = async {
        while replica.stats().untrusted.load(Relaxed) < 4 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(LONG, refused).await.unwrap();
}

async fn keys_are_changed_while_the_table_is_followed(bus: Bus) {
    let (old, new) = (Arc::new(Signer::ephemeral()), Arc::new(Signer::ephemeral()));
    let trust = Trust::new();
    trust.set(&[old.public_key()]);
    let owner = own(&bus, 7, "first", Some(&old)).await;
    let (_replica, mut updates) = follow(&bus, &trust).await;
    until(&mut updates, "first").await;

    owner.stop().await;
    let mut owner = own(&bus, 8, "first", Some(&new)).await;
    // What cannot be believed yet is a reason to look for other keys.
    tokio::time::timeout(LONG, trust.recheck_needed()).await.unwrap();
    trust.set(&[old.public_key(), new.public_key()]);
    set(&mut owner, "second").await;

    until(&mut updates, "second").await;
}

async fn a_stored_snapshot_that_was_not_signed_is_not_believed(bus: Bus) {
    use tidegate_bus::table::SnapshotStore;
    let store = SnapshotStore { bucket: bus.bucket(subjects::ROUTES_BUCKET), key: "eu".to_owned() };
    let options = OwnerOptions { store: Some(store.clone()), ..OwnerOptions::default() };
    let entries = [("key".to_owned(), "forged".to_owned())];
    let forger = Owner::start(bus.clone(), SUBJECT, Epoch(3), Revision(1), entries, options).await.unwrap();
    forger.stop().await;
    let signer = Arc::new(Signer::ephemeral());
    let trust = Trust::new();
    trust.set(&[signer.public_key()]);
    let options = ReplicaOptions { store: Some(store), trust: trust.clone(), ..ReplicaOptions::default() };
    let (_replica, mut updates) =
        Replica::start::<String, String>(bus.clone(), SUBJECT, options).await.unwrap();
    tokio::time::timeout(LONG, trust.recheck_needed()).await.unwrap();

    let _owner = own(&bus, 3, "true", Some(&signer)).await;

    let first = tokio::time::timeout(LONG, updates.recv()).await.unwrap().unwrap();
    let Update::Snapshot { entries, .. } = first else { panic!("{first:?}") };
    assert_eq!(entries, [("key".to_owned(), "true".to_owned())]);
}

async fn a_replica_that_was_reset_follows_an_owner_of_an_older_epoch(bus: Bus) {
    let mut owner = own(&bus, 7, "first", None).await;
    let (replica, mut updates) = follow(&bus, &Trust::new()).await;
    until(&mut updates, "first").await;
    bus.publish(SUBJECT, None, heartbeat(1000)).await.unwrap();
    let refused = async { while !matches!(updates.recv().await.unwrap(), Update::Refused { .. }) {} };
    tokio::time::timeout(LONG, refused).await.expect("the true owner is refused now");

    replica.reset();
    set(&mut owner, "second").await;

    until(&mut updates, "second").await;
}

async fn a_lease_that_nobody_signed_is_nobodys(bus: Bus) {
    let bucket = bus.bucket(subjects::LEASE_BUCKET);
    let forged = r#"{"holder":"forger","instance":1,"epoch":4000,"beat":1}"#;
    bucket.put("eu", Bytes::from(forged)).await.unwrap();
    let signer = Arc::new(Signer::ephemeral());
    let trust = Trust::new();
    trust.set(&[signer.public_key()]);
    let seal = LeaseSeal { signer: Some(signer), trust };
    let lease = Lease::start(bucket, "eu", "a".parse().unwrap(), Duration::from_millis(400), seal);

    let mut state = lease.state();
    let led =
        tokio::time::timeout(LONG, state.wait_for(|state| state.epoch().is_some())).await.unwrap().unwrap();

    // Its epoch is not that of the forger, plus one.
    assert_eq!(*led, LeaseState::Leader { epoch: Epoch(1) });
}

async fn somebody_who_writes_the_lease_without_a_key_keeps_no_region_without_a_leader(bus: Bus) {
    // Given somebody who replaces the entry again and again.
    let bucket = bus.bucket(subjects::LEASE_BUCKET);
    let forger = {
        let bucket = bucket.clone();
        tokio::spawn(async move {
            for beat in 0.. {
                let forged = format!(r#"{{"holder":"forger","instance":1,"epoch":4000,"beat":{beat}}}"#);
                _ = bucket.put("eu", Bytes::from(forged)).await;
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        })
    };
    let signer = Arc::new(Signer::ephemeral());
    let trust = Trust::new();
    trust.set(&[signer.public_key()]);
    let seal = LeaseSeal { signer: Some(signer), trust };
    let lease = Lease::start(bucket, "eu", "a".parse().unwrap(), Duration::from_millis(800), seal);

    // Then its candidate leads for all that, and goes on to.
    let mut state = lease.state();
    let led = state.wait_for(|state| state.epoch().is_some());
    tokio::time::timeout(LONG, led).await.unwrap().unwrap();
    let began = tokio::time::Instant::now();
    let mut led = 0_u32;
    let mut looks = 0_u32;
    while began.elapsed() < Duration::from_secs(3) {
        led += u32::from(state.borrow_and_update().epoch().is_some());
        looks += 1;
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(led * 10 > looks * 9, "it led {led} times of {looks}");
    forger.abort();
}

async fn an_earlier_holders_entry_that_is_written_again_keeps_no_region_without_a_leader(bus: Bus) {
    // Given a holder that has gone, whose signed entry somebody kept, and two candidates after it.
    let bucket = bus.bucket(subjects::LEASE_BUCKET);
    let signer = Arc::new(Signer::ephemeral());
    let trust = Trust::new();
    trust.set(&[signer.public_key()]);
    let seal = LeaseSeal { signer: Some(signer), trust };
    let seek = |name: &str| {
        let (bucket, holder) = (bucket.clone(), name.parse().unwrap());
        Lease::start(bucket, "eu", holder, Duration::from_millis(800), seal.clone())
    };
    let earlier = seek("a");
    let mut state = earlier.state();
    let led = state.wait_for(|state| state.epoch().is_some());
    tokio::time::timeout(LONG, led).await.unwrap().unwrap();
    let kept = bucket.get("eu").await.unwrap().unwrap().value;
    earlier.stop().await;
    let leases = [seek("b"), seek("c")];
    let states = leases.each_ref().map(Lease::state);
    let somebody_leads = || states.iter().any(|state| state.borrow().epoch().is_some());
    let led = async {
        while !somebody_leads() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(LONG, led).await.unwrap();

    // When that entry is written more often than a lease ends, then one of them leads on.
    let began = tokio::time::Instant::now();
    let (mut led, mut looks, mut written) = (0_u32, 0_u32, 0);
    while began.elapsed() < Duration::from_secs(4) {
        if began.elapsed() >= written * Duration::from_millis(400) {
            written += 1;
            bucket.put("eu", kept.clone()).await.unwrap();
        }
        led += u32::from(somebody_leads());
        looks += 1;
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(led * 10 > looks * 9, "somebody led {led} times of {looks}");
}

async fn a_replica_that_does_not_know_whether_there_are_keys_believes_nothing_until_it_does(bus: Bus) {
    // Given an owner that signs, a forger, and a replica that does not know yet whom to believe.
    let signer = Arc::new(Signer::ephemeral());
    let trust = Trust::undecided();
    let forged = own(&bus, 9, "forged", None).await;
    let (replica, mut updates) = follow(&bus, &trust).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(updates.try_recv().is_err(), "nothing was believed");
    forged.stop().await;
    assert_eq!(replica.stats().deltas.load(Relaxed) + replica.stats().snapshots.load(Relaxed), 0);

    // When it learns of a key, then it follows who has it.
    let _owner = own(&bus, 7, "signed", Some(&signer)).await;
    trust.set(&[signer.public_key()]);
    until(&mut updates, "signed").await;
}

async fn invented_tables_keep_out_no_real_one(bus: Bus) {
    // Given somebody who invents more probers than are followed, in a region and in others, and goes on to.
    let silence = Duration::from_secs(60);
    let (_replicas, mut updates) =
        Replicas::start::<String, String>(bus.clone(), subjects::ALL_PROBES, silence).await.unwrap();
    let forger = {
        let bus = bus.clone();
        tokio::spawn(async move {
            for number in 0.. {
                let region = if number % 2 == 0 { "eu".to_owned() } else { format!("r-{}", number % 97) };
                let subject = format!("tidegate.v1.probe.{region}.invented-{number}");
                _ = bus.publish(&subject, None, heartbeat(1000)).await;
                if number > 10_000 {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            }
        })
    };
    tokio::time::sleep(Duration::from_secs(1)).await;

    // When a real one begins, then it is followed, and kept.
    let real = subjects::probe(&"eu".parse().unwrap(), &"real".parse().unwrap());
    let options = OwnerOptions { heartbeat: Duration::from_millis(50), ..OwnerOptions::default() };
    let entries = [("key".to_owned(), "seen".to_owned())];
    let mut owner: Owner<String, String> =
        Owner::start(bus.clone(), &real, Epoch(2000), Revision(1), entries, options).await.unwrap();
    let mut is_followed = async |wanted: &str| {
        let followed = async {
            while let Some(update) = updates.recv().await {
                let TableUpdate::Update(subject, update) = update else { continue };
                let has = match update {
                    Update::Snapshot { entries, .. } => entries.iter().any(|(_, value)| value == wanted),
                    Update::Delta { changes, .. } => {
                        changes.iter().any(|(_, value)| value.as_deref() == Some(wanted))
                    }
                    Update::Heartbeat { .. } | Update::Refused { .. } => false,
                };
                if subject == real && has {
                    return;
                }
            }
        };
        tokio::time::timeout(LONG, followed).await.unwrap_or_else(|_| panic!("{wanted} is not heard"));
    };
    is_followed("seen").await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    set(&mut owner, "seen later").await;
    is_followed("seen later").await;
    forger.abort();
}

async fn a_request_for_a_snapshot_leads_no_owner_to_a_larger_epoch(bus: Bus) {
    #[derive(Serialize, Deserialize)]
    struct Request(Epoch);
    impl Wire for Request {}
    // Given an owner, and somebody who may ask for its table.
    let owner = own(&bus, 7, "first", None).await;
    let ask = async |epoch: u64, limit| {
        bus.request(&subjects::snapshot(SUBJECT), codec::encode(&Request(Epoch(epoch))), limit).await
    };

    // When they claim to know of later epochs that can be, then it leaves the answer to a later owner.
    for epoch in [8, 7 + Epoch::MAX_STEP / 2, 7 + Epoch::MAX_STEP] {
        assert!(ask(epoch, Duration::from_millis(100)).await.is_err());
    }

    // And that is all: it takes none of them for an owner's, and answers others.
    ask(7, LONG).await.unwrap();
    assert_eq!(owner.superseded_by(), None);
}

async fn a_signed_epoch_is_followed_however_far_it_is_from_the_last_one(bus: Bus) {
    let signer = Arc::new(Signer::ephemeral());
    let trust = Trust::new();
    trust.set(&[signer.public_key()]);
    let owner = own(&bus, 7, "first", Some(&signer)).await;
    let (_replica, mut updates) = follow(&bus, &trust).await;
    until(&mut updates, "first").await;

    owner.stop().await;
    let _owner = own(&bus, 7 + 3 * Epoch::MAX_STEP, "second", Some(&signer)).await;

    until(&mut updates, "second").await;
}

async fn an_epoch_that_was_believed_before_there_were_keys_refuses_no_signed_table(bus: Bus) {
    // Given a replica that has no keys yet, and believes an epoch that somebody invented.
    let trust = Trust::new();
    let (_replica, mut updates) = follow(&bus, &trust).await;
    let forger = own(&bus, 1 << 40, "forged", None).await;
    until(&mut updates, "forged").await;
    forger.stop().await;

    // When it learns the keys.
    let signer = Arc::new(Signer::ephemeral());
    trust.set(&[signer.public_key()]);
    let mut owner = own(&bus, 7, "first", Some(&signer)).await;
    until(&mut updates, "first").await;
    set(&mut owner, "second").await;

    // Then it follows the signed table, whatever it refuses.
    until(&mut updates, "second").await;
}

async fn the_first_keys_of_one_of_many_tables_clear_its_fence(bus: Bus) {
    // Given replicas of many tables, one of which has a trust of its own, without keys yet, and an epoch that somebody invented.
    let trust = Trust::new();
    let trusts = [(SUBJECT.to_owned(), trust.clone())].into();
    let (_replicas, mut updates) =
        Replicas::start_with_trust::<String, String>(bus.clone(), subjects::ALL_ROUTES, LONG, trusts)
            .await
            .unwrap();
    let mut is_followed = async |wanted: &str| {
        let followed = async {
            while let Some(update) = updates.recv().await {
                let TableUpdate::Update(_, Update::Snapshot { entries, .. }) = update else { continue };
                if entries.iter().any(|(_, value)| value == wanted) {
                    return;
                }
            }
        };
        tokio::time::timeout(LONG, followed).await.unwrap_or_else(|_| panic!("{wanted} is not heard"));
    };
    let forger = own(&bus, 1 << 40, "forged", None).await;
    is_followed("forged").await;
    forger.stop().await;

    // When that one gets keys, then the signed table is followed, whatever its epoch is.
    let signer = Arc::new(Signer::ephemeral());
    trust.set(&[signer.public_key()]);
    let _owner = own(&bus, 7, "signed", Some(&signer)).await;
    is_followed("signed").await;
}

const PROBES: &str = "tidegate.v1.probe.eu.p";

async fn own_timed(bus: &Bus, epoch: Epoch) -> Owner<String, String> {
    let options = OwnerOptions {
        heartbeat: Duration::from_millis(50),
        epochs: Epochs::Timed,
        ..OwnerOptions::default()
    };
    let entries = [("key".to_owned(), "first".to_owned())];
    Owner::start(bus.clone(), PROBES, epoch, Revision(1), entries, options).await.unwrap()
}

/// The epoch of an owner that begins so long after the present.
fn epoch_in(later: Duration) -> Epoch {
    Epoch(clock::unix_millis() + later.as_millis() as u64)
}

async fn an_epoch_from_the_future_stops_no_table_whose_epochs_are_times(bus: Bus) {
    let mut owner = own_timed(&bus, epoch_in(Duration::ZERO)).await;
    let options = ReplicaOptions { epochs: Epochs::Timed, ..ReplicaOptions::default() };
    let (replica, mut updates) =
        Replica::start::<String, String>(bus.clone(), PROBES, options).await.unwrap();
    until(&mut updates, "first").await;

    for epoch in [Epoch(u64::MAX), Epoch::MAX, epoch_in(2 * Epoch::MAX_AHEAD)] {
        bus.publish(PROBES, None, heartbeat(epoch.0)).await.unwrap();
    }
    set(&mut owner, "second").await;

    // As a delta: nothing had to be fetched.
    until(&mut updates, "second").await;
    assert_eq!(replica.stats().deltas.load(Relaxed), 1);
    assert_eq!(replica.stats().refused.load(Relaxed), 3);
}

async fn an_owner_whose_epoch_is_a_time_learns_of_a_later_owner_but_not_of_one_from_the_future(bus: Bus) {
    #[derive(Serialize, Deserialize)]
    struct Request(Epoch);
    impl Wire for Request {}
    let day = Duration::from_secs(86_400);
    let owner = own_timed(&bus, Epoch(epoch_in(Duration::ZERO).0 - day.as_millis() as u64)).await;
    let ask = async |epoch: Epoch, limit| {
        bus.request(&subjects::snapshot(PROBES), codec::encode(&Request(epoch)), limit).await
    };

    ask(epoch_in(2 * Epoch::MAX_AHEAD), LONG).await.unwrap();
    assert_eq!(owner.superseded_by(), None);

    let later = epoch_in(Duration::ZERO);
    _ = ask(later, Duration::from_millis(100)).await;
    let learned = async {
        while owner.superseded_by() != Some(later) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(LONG, learned).await.unwrap();
}
