//! Whatever is lost, doubled and reordered, a replica equals the latest owner one heartbeat, and where it differs one
//! snapshot, after the last message.

use std::collections::BTreeMap;

use bytes::Bytes;
use proptest::{collection::vec, prelude::*};
use tidegate_bus::table::{Delta, Epochs, Heartbeat, OwnerCore, ReplicaCore, Snapshot, Step, TableChange};
use tidegate_model::{Epoch, Revision};

type Content = BTreeMap<Bytes, Bytes>;

/// What happens, in order.
#[derive(Debug, Clone)]
enum Act {
    /// The owner of an index changes keys.
    Publish(usize, Vec<(u8, Option<u8>)>),
    /// It says a heartbeat.
    Beat(usize),
    /// A new owner begins with what the last one had, or with nothing.
    Succeed { with_content: bool },
    /// The replica, if it wants a snapshot, gets it from the owner of an index.
    Fetch(usize),
}

#[derive(Debug, Clone)]
enum Message {
    Delta(Delta),
    Heartbeat(Heartbeat),
    Snapshot(Snapshot),
}

fn act() -> impl Strategy<Value = Act> {
    let changes = vec((0u8..6, proptest::option::of(0u8..4)), 0..4);
    prop_oneof![
        8 => (any::<usize>(), changes).prop_map(|(owner, changes)| Act::Publish(owner, changes)),
        2 => any::<usize>().prop_map(Act::Beat),
        1 => any::<bool>().prop_map(|with_content| Act::Succeed { with_content }),
        2 => any::<usize>().prop_map(Act::Fetch),
    ]
}

/// What becomes of a message: not delivered, once or twice, and when relative to others.
fn fate() -> impl Strategy<Value = (usize, i32)> {
    (prop_oneof![2 => Just(0usize), 5 => Just(1), 2 => Just(2)], prop_oneof![3 => Just(0i32), 1 => -6..6])
}

fn change((key, value): (u8, Option<u8>)) -> TableChange {
    let bytes = |byte: u8| Bytes::copy_from_slice(&[byte]);
    TableChange { key: bytes(key), value: value.map(bytes) }
}

/// The replica with the content that whoever takes its steps has.
#[derive(Default)]
struct Follower {
    core: ReplicaCore,
    content: Content,
    refused: usize,
    epochs: Vec<Epoch>,
}

impl Follower {
    fn take(&mut self, message: Message) {
        let steps = match message {
            Message::Delta(delta) => self.core.receive_delta(delta),
            Message::Heartbeat(heartbeat) => self.core.receive_heartbeat(heartbeat),
            Message::Snapshot(snapshot) => self.core.receive_snapshot(snapshot),
        };
        for step in steps {
            match step {
                Step::Delta(delta) => {
                    for change in delta.changes {
                        match change.value {
                            Some(value) => _ = self.content.insert(change.key, value),
                            None => _ = self.content.remove(&change.key),
                        }
                    }
                }
                Step::Snapshot(snapshot) => self.content = snapshot.entries.into_iter().collect(),
                Step::Moved(_) => {}
                Step::Refused(_) => self.refused += 1,
            }
        }
        self.epochs.extend(self.core.position().map(|position| position.epoch));
    }
}

fn content(owner: &OwnerCore) -> Content {
    owner.snapshot().entries.into_iter().collect()
}

/// Plays `acts`, with each message's fate, then one heartbeat of the latest owner and, if wanted, one snapshot.
fn play(acts: Vec<Act>, fates: &[(usize, i32)]) -> (Follower, OwnerCore) {
    let mut owners = vec![OwnerCore::new(Epoch(1), Revision(0), [])];
    let mut sent: Vec<Message> = Vec::new();
    for act in acts {
        match act {
            Act::Publish(owner, changes) => {
                let count = owners.len();
                let delta = owners[owner % count].apply(changes.into_iter().map(change), Bytes::new());
                sent.extend(delta.map(Message::Delta));
            }
            Act::Beat(owner) => sent.push(Message::Heartbeat(owners[owner % owners.len()].heartbeat())),
            Act::Succeed { with_content } => {
                let last = owners.last().unwrap();
                let entries = if with_content { content(last) } else { Content::new() };
                let epoch = Epoch(last.position().epoch.0 + 1);
                owners.push(OwnerCore::new(epoch, last.position().revision, entries));
            }
            Act::Fetch(owner) => sent.push(Message::Snapshot(owners[owner % owners.len()].snapshot())),
        }
    }
    let mut delivered: Vec<(i32, Message)> = Vec::new();
    for (index, message) in sent.into_iter().enumerate() {
        let (copies, shift) = fates[index % fates.len()];
        for copy in 0..copies {
            delivered.push((index as i32 + shift * (copy as i32 + 1), message.clone()));
        }
    }
    delivered.sort_by_key(|(at, _)| *at);
    let mut follower = Follower::default();
    delivered.into_iter().for_each(|(_, message)| follower.take(message));
    let latest = owners.pop().unwrap();
    follower.take(Message::Heartbeat(latest.heartbeat()));
    if !follower.core.is_current() {
        follower.take(Message::Snapshot(latest.snapshot()));
    }
    (follower, latest)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    #[test]
    fn a_replica_equals_its_owner_one_heartbeat_after_the_last_message(
        acts in vec(act(), 0..60),
        fates in vec(fate(), 1..40),
    ) {
        let (follower, owner) = play(acts, &fates);

        prop_assert!(follower.core.is_current());
        prop_assert_eq!(follower.core.position(), Some(owner.position()));
        prop_assert_eq!(follower.core.content(), owner.content());
        prop_assert_eq!(follower.content, content(&owner));
        prop_assert!(follower.epochs.is_sorted(), "the replica went back to an older epoch");
    }

    #[test]
    fn without_losses_the_replica_never_needs_a_snapshot(acts in vec(act(), 0..60), late in 0..5i32) {
        // One owner after the other, each with the content of the last, messages at most a few places late.
        let acts = acts.into_iter().filter_map(|act| match act {
            Act::Publish(_, changes) => Some(Act::Publish(0, changes)),
            Act::Beat(_) => Some(Act::Beat(0)),
            Act::Succeed { .. } | Act::Fetch(_) => None,
        });
        let mut follower = Follower::default();
        let mut owner = OwnerCore::new(Epoch(1), Revision(0), []);
        let mut sent = Vec::new();
        for (index, act) in acts.enumerate() {
            let message = match act {
                Act::Publish(_, changes) => {
                    owner.apply(changes.into_iter().map(change), Bytes::new()).map(Message::Delta)
                }
                _ => Some(Message::Heartbeat(owner.heartbeat())),
            };
            let place = index as i32 + if index % 3 == 0 { late } else { 0 };
            sent.extend(message.map(|message| (place, message)));
        }
        sent.sort_by_key(|(place, _)| *place);
        sent.into_iter().for_each(|(_, message)| follower.take(message));
        follower.take(Message::Heartbeat(owner.heartbeat()));

        prop_assert!(follower.core.is_current());
        prop_assert_eq!(follower.content, content(&owner));
    }
}

fn set(key: u8, value: u8) -> TableChange {
    change((key, Some(value)))
}

#[test]
fn a_successor_with_the_same_content_needs_no_snapshot() {
    let mut first = OwnerCore::new(Epoch(1), Revision(0), []);
    let mut follower = Follower::default();
    follower.take(Message::Delta(first.apply([set(1, 1)], Bytes::new()).unwrap()));

    let mut second = OwnerCore::new(Epoch(2), first.position().revision, content(&first));
    follower.take(Message::Delta(second.apply([set(1, 2)], Bytes::new()).unwrap()));

    assert!(follower.core.is_current());
    assert_eq!(follower.content, content(&second));
    follower.take(Message::Delta(first.apply([set(1, 3)], Bytes::new()).unwrap()));
    assert_eq!(follower.refused, 1, "the old owner is refused");
    assert_eq!(follower.content, content(&second));
}

#[test]
fn an_epoch_that_was_only_heard_of_fences_the_older_one() {
    let mut first = OwnerCore::new(Epoch(1), Revision(0), []);
    let second = OwnerCore::new(Epoch(2), Revision(0), [(Bytes::from("x"), Bytes::from("y"))]);
    let mut follower = Follower::default();
    follower.take(Message::Heartbeat(first.heartbeat()));

    follower.take(Message::Heartbeat(second.heartbeat()));
    assert!(!follower.core.is_current());
    follower.take(Message::Delta(first.apply([set(1, 1)], Bytes::new()).unwrap()));

    assert_eq!(follower.refused, 1);
    assert!(follower.content.is_empty());
}

#[test]
fn a_replica_that_has_nothing_takes_even_an_old_snapshot() {
    let mut owner = OwnerCore::new(Epoch(1), Revision(0), []);
    owner.apply([set(1, 1)], Bytes::new()).unwrap();
    let stored = owner.snapshot();
    owner.apply([set(1, 2)], Bytes::new()).unwrap();
    let mut follower = Follower::default();
    follower.take(Message::Heartbeat(owner.heartbeat()));

    follower.take(Message::Snapshot(stored.clone()));

    assert_eq!(follower.content, stored.entries.into_iter().collect::<Content>());
    assert!(!follower.core.is_current(), "and still wants the newer one");
}

#[test]
fn a_seeded_replica_goes_on_from_its_seed() {
    let mut owner = OwnerCore::new(Epoch(3), Revision(5), [(Bytes::from("x"), Bytes::from("y"))]);
    let mut core = ReplicaCore::seeded(Epochs::Counted, &owner.snapshot());
    let steps = core.receive_delta(owner.apply([set(1, 1)], Bytes::new()).unwrap());
    assert!(matches!(steps[..], [Step::Delta(_)]));
    assert!(core.is_current());
}
