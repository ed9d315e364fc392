//! What both buses promise.
use std::time::Duration;

use crate::both::{LONG, on_both};
use bytes::Bytes;
use tidegate_bus::{Bus, BusError, TraceContext, bucket::Precondition, report::Reports};
use tidegate_model::{Timestamp, report::Suspicion};

on_both! {
    a_message_reaches_every_subscription_that_covers_it
    a_trace_context_travels_with_a_message
    a_report_is_typed_and_what_is_not_one_is_counted
    a_message_above_the_limit_is_refused
    a_request_is_answered_in_as_many_parts_as_it_takes
    a_request_that_nobody_hears_fails_at_once
    a_slow_subscription_loses_messages_and_delays_nobody
    an_entry_is_replaced_only_at_the_expected_revision
    a_deleted_entry_can_be_created_again
    entries_are_listed_without_deleted_ones
    the_stamp_changes_with_every_write
    a_blob_of_5_mb_comes_back_whole
    of_two_writers_of_a_blob_one_wins
    a_blob_leaves_no_old_parts
    a_reader_of_a_blob_that_is_rewritten_gets_one_or_the_other
}

fn blob(size: usize, seed: u8) -> Bytes {
    (0..size).map(|i| (i as u8).wrapping_mul(31).wrapping_add(seed)).collect()
}

async fn a_message_reaches_every_subscription_that_covers_it(bus: Bus) {
    let mut all = bus.subscribe("t.>").await.unwrap();
    let mut one = bus.subscribe("t.*.b").await.unwrap();

    bus.publish("t.a.c", None, Bytes::from("1")).await.unwrap();
    bus.publish("t.a.b", None, Bytes::from("2")).await.unwrap();

    assert_eq!(all.next().await.unwrap().body, "1");
    assert_eq!(all.next().await.unwrap().body, "2");
    let message = one.next().await.unwrap();
    assert_eq!((message.subject.as_str(), &message.body[..]), ("t.a.b", &b"2"[..]));
    assert!(matches!(bus.publish("t.*", None, Bytes::new()).await, Err(BusError::Subject(_))));
}

async fn a_trace_context_travels_with_a_message(bus: Bus) {
    let mut messages = bus.subscribe("t").await.unwrap();
    let trace = TraceContext::new("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", Some("v=1"));

    bus.publish("t", trace.as_ref(), Bytes::new()).await.unwrap();

    assert_eq!(messages.next().await.unwrap().trace, trace);
}

async fn a_report_is_typed_and_what_is_not_one_is_counted(bus: Bus) {
    let mut reports: Reports<Suspicion> = bus.subscribe_reports("t.>").await.unwrap();
    let suspicion = Suspicion {
        edge: "edge-1".parse().unwrap(),
        region: "eu".parse().unwrap(),
        cluster: "eu-1".parse().unwrap(),
        endpoint: "10.0.0.1:80".parse().unwrap(),
        failure: tidegate_model::observation::Failure::Status(503),
        first_failure_at: Timestamp(7),
    };

    bus.publish("t.x", None, Bytes::from("nonsense")).await.unwrap();
    bus.publish_report("t.x", None, &suspicion).await.unwrap();

    assert_eq!(reports.next().await.unwrap().body, suspicion);
    assert_eq!(reports.unreadable(), 1);
}

async fn a_message_above_the_limit_is_refused(bus: Bus) {
    let too_large = blob(bus.max_body() + 1, 0);
    assert!(matches!(bus.publish("t", None, too_large).await, Err(BusError::TooLarge { .. })));
    bus.publish("t", None, blob(bus.max_body(), 0)).await.unwrap();
}

async fn a_request_is_answered_in_as_many_parts_as_it_takes(bus: Bus) {
    let mut requests = bus.subscribe("t").await.unwrap();
    let (server, answer) = (bus.clone(), blob(5_000_001, 3));
    let body = answer.clone();
    let served = tokio::spawn(async move {
        let request = requests.next().await.unwrap();
        assert_eq!(request.body, "give");
        server.reply(&request, body).await.unwrap();
    });

    assert_eq!(bus.request("t", Bytes::from("give"), LONG).await.unwrap(), answer);
    served.await.unwrap();
}

async fn a_request_that_nobody_hears_fails_at_once(bus: Bus) {
    let answer = bus.request("t", Bytes::new(), Duration::from_secs(3600)).await;
    assert!(matches!(answer, Err(BusError::NoResponder(_))), "{answer:?}");
}

async fn a_slow_subscription_loses_messages_and_delays_nobody(bus: Bus) {
    const SENT: u32 = 20_000;
    let mut slow = bus.subscribe("t").await.unwrap();
    let mut quick = bus.subscribe("t").await.unwrap();
    let read = tokio::spawn(async move {
        for expected in 0..SENT {
            assert_eq!(quick.next().await.unwrap().body, expected.to_be_bytes()[..]);
        }
    });

    for number in 0..SENT {
        bus.publish("t", None, Bytes::copy_from_slice(&number.to_be_bytes())).await.unwrap();
        // On one thread the quick reader needs its turn.
        tokio::task::yield_now().await;
    }
    tokio::time::timeout(LONG, read).await.unwrap().unwrap();

    assert_eq!(
        slow.next().await.unwrap().body,
        0u32.to_be_bytes()[..],
        "the newest are lost, not the oldest"
    );
    assert!(bus.lost_messages() > 0);
}

async fn an_entry_is_replaced_only_at_the_expected_revision(bus: Bus) {
    let bucket = bus.bucket("test");
    assert_eq!(bucket.get("k").await.unwrap(), None);

    let first = bucket.create("k", Bytes::from("1")).await.unwrap();
    assert!(bucket.create("k", Bytes::from("x")).await.unwrap_err().is_conflict());
    let second = bucket.update("k", Bytes::from("2"), first).await.unwrap();
    assert!(second > first);
    assert!(bucket.update("k", Bytes::from("x"), first).await.unwrap_err().is_conflict());

    let entry = bucket.get("k").await.unwrap().unwrap();
    assert_eq!((entry.revision, &entry.value[..]), (second, &b"2"[..]));
}

async fn a_deleted_entry_can_be_created_again(bus: Bus) {
    let bucket = bus.bucket("test");
    bucket.put("k", Bytes::from("1")).await.unwrap();
    bucket.delete("k").await.unwrap();
    bucket.delete("never-there").await.unwrap();

    assert_eq!(bucket.get("k").await.unwrap(), None);
    bucket.create("k", Bytes::from("2")).await.unwrap();
    assert_eq!(bucket.get("k").await.unwrap().unwrap().value, "2");
}

async fn entries_are_listed_without_deleted_ones(bus: Bus) {
    let bucket = bus.bucket("test");
    for key in ["b.2", "a.1", "c"] {
        bucket.put(key, Bytes::from(key)).await.unwrap();
    }
    bucket.delete("c").await.unwrap();

    let keys: Vec<String> = bucket.list().await.unwrap().into_iter().map(|(key, _)| key).collect();
    assert_eq!(keys, ["a.1", "b.2"]);
}

async fn the_stamp_changes_with_every_write(bus: Bus) {
    let bucket = bus.bucket("test");
    bucket.put("k", Bytes::new()).await.unwrap();
    let first = bucket.stamp().await.unwrap();
    assert_eq!(bucket.stamp().await.unwrap(), first);
    bucket.delete("k").await.unwrap();
    assert_ne!(bucket.stamp().await.unwrap(), first);
}

async fn a_blob_of_5_mb_comes_back_whole(bus: Bus) {
    let bucket = bus.bucket("test");
    let written = blob(5_000_001, 1);
    let revision =
        bucket.put_blob("b", Bytes::from("label"), written.clone(), Precondition::Absent).await.unwrap();

    let (head, read) = bucket.get_blob("b").await.unwrap().unwrap();
    assert_eq!((head.revision, &head.label[..], head.size), (revision, &b"label"[..], 5_000_001));
    assert!(read == written);
    assert_eq!(bucket.get_blob("other").await.unwrap(), None);
}

async fn of_two_writers_of_a_blob_one_wins(bus: Bus) {
    let bucket = bus.bucket("test");
    let first = bucket.put_blob("b", Bytes::new(), blob(10, 1), Precondition::Absent).await.unwrap();

    let (one, other) = (blob(600_000, 2), blob(600_000, 3));
    let (a, b) = tokio::join!(
        bucket.put_blob("b", Bytes::new(), one.clone(), Precondition::Revision(first)),
        bucket.put_blob("b", Bytes::new(), other.clone(), Precondition::Revision(first)),
    );

    let winner = match (a, b) {
        (Ok(_), Err(error)) if error.is_conflict() => one,
        (Err(error), Ok(_)) if error.is_conflict() => other,
        both => panic!("{both:?}"),
    };
    assert!(bucket.get_blob("b").await.unwrap().unwrap().1 == winner);
    let lost = bucket.put_blob("b", Bytes::new(), blob(1, 4), Precondition::Absent).await;
    assert!(lost.unwrap_err().is_conflict());
}

async fn a_blob_leaves_no_old_parts(bus: Bus) {
    let bucket = bus.bucket("test");
    let mut precondition = Precondition::Absent;
    for seed in 0..3 {
        precondition = Precondition::Revision(
            bucket.put_blob("b", Bytes::new(), blob(600_000, seed), precondition).await.unwrap(),
        );
    }
    // Three parts and the head.
    assert_eq!(bucket.list().await.unwrap().len(), 4);
}

async fn a_reader_of_a_blob_that_is_rewritten_gets_one_or_the_other(bus: Bus) {
    let bucket = bus.bucket("test");
    let revision = bucket.put_blob("b", Bytes::new(), blob(600_000, 0), Precondition::Absent).await.unwrap();
    let writer = tokio::spawn({
        let bucket = bucket.clone();
        async move {
            let mut precondition = Precondition::Revision(revision);
            for seed in 1..20 {
                let written =
                    bucket.put_blob("b", Bytes::new(), blob(600_000, seed), precondition).await.unwrap();
                precondition = Precondition::Revision(written);
            }
        }
    });

    while !writer.is_finished() {
        let (_, read) = bucket.get_blob("b").await.unwrap().unwrap();
        assert!(read == blob(600_000, read[0]), "parts of two generations in one blob");
        tokio::task::yield_now().await;
    }
    writer.await.unwrap();
}
