//! The history: published events are read again, in order, over NATS and in process.

use std::time::Duration;

use crate::both::{LONG, on_both, over_nats};
use tidegate_bus::{
    Bus, TraceContext, clock,
    history::{HistoryKeeper, HistoryReader},
    testing::NatsServer,
};
use tidegate_model::{
    RegionName, Timestamp,
    event::{Event, EventKind},
    fleet::ChangeSummary,
};

on_both! {
    events_are_read_in_order_with_their_traces_and_then_those_that_follow
    only_events_of_the_region_that_was_asked_for_are_read
    only_events_since_the_time_that_was_asked_for_are_read
    of_an_empty_history_there_is_nothing_to_wait_for
}

fn event(region: &str, revision: u64) -> Event {
    let kind = EventKind::Fleet {
        revision,
        author: "ann".to_owned(),
        reason: String::new(),
        changes: ChangeSummary::default(),
    };
    Event { region: region.parse().unwrap(), at: clock::now(), kind }
}

async fn publish(bus: &Bus, event: &Event, trace: Option<&TraceContext>) {
    bus.publish_event("test", trace, event).await.unwrap();
}

async fn opened(bus: &Bus, since: Timestamp, region: Option<&RegionName>) -> HistoryReader {
    let opening = async {
        loop {
            match bus.read_history(since, region).await {
                Ok(reader) => return reader,
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    };
    tokio::time::timeout(LONG, opening).await.unwrap()
}

async fn revision(reader: &mut HistoryReader) -> (u64, Option<TraceContext>) {
    let kept = tokio::time::timeout(LONG, reader.next()).await.unwrap().unwrap().unwrap();
    match kept.event.kind {
        EventKind::Fleet { revision, .. } => (revision, kept.trace),
        other => panic!("{other:?}"),
    }
}

async fn events_are_read_in_order_with_their_traces_and_then_those_that_follow(bus: Bus) {
    let keeper = HistoryKeeper::start(&bus);
    let mut following = opened(&bus, Timestamp(0), None).await;
    let trace = TraceContext::new("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", None);
    for number in 1..=3 {
        publish(&bus, &event("us-east", number), trace.as_ref().filter(|_| number == 2)).await;
    }
    for number in 1..=3 {
        assert_eq!(revision(&mut following).await, (number, trace.clone().filter(|_| number == 2)));
    }

    let mut later = opened(&bus, Timestamp(0), None).await;
    for number in 1..=3 {
        let kept = later.next_stored().await.unwrap().unwrap();
        assert_eq!(kept.event.kind, event("us-east", number).kind);
    }
    assert!(later.next_stored().await.unwrap().is_none(), "all was read");
    publish(&bus, &event("us-east", 4), None).await;
    assert_eq!(revision(&mut later).await.0, 4);
    keeper.stop().await;
}

async fn only_events_of_the_region_that_was_asked_for_are_read(bus: Bus) {
    let keeper = HistoryKeeper::start(&bus);
    let region = "eu-west".parse().unwrap();
    let mut reader = opened(&bus, Timestamp(0), Some(&region)).await;
    publish(&bus, &event("us-east", 1), None).await;
    publish(&bus, &event("eu-west", 2), None).await;
    assert_eq!(revision(&mut reader).await.0, 2);
    keeper.stop().await;
}

async fn only_events_since_the_time_that_was_asked_for_are_read(bus: Bus) {
    let keeper = HistoryKeeper::start(&bus);
    let mut all = opened(&bus, Timestamp(0), None).await;
    publish(&bus, &event("us-east", 1), None).await;
    assert_eq!(revision(&mut all).await.0, 1);

    // It was kept by a clock of this machine, so it is older than this.
    let since = clock::now().plus(Duration::from_micros(1));
    while clock::now() <= since {
        std::hint::spin_loop();
    }
    publish(&bus, &event("us-east", 2), None).await;
    assert_eq!(revision(&mut all).await.0, 2);
    assert_eq!(revision(&mut opened(&bus, since, None).await).await.0, 2);
    keeper.stop().await;
}

async fn of_an_empty_history_there_is_nothing_to_wait_for(bus: Bus) {
    let keeper = HistoryKeeper::start(&bus);
    let mut reader = opened(&bus, Timestamp(0), None).await;
    assert!(tokio::time::timeout(LONG, reader.next_stored()).await.unwrap().unwrap().is_none());
    keeper.stop().await;
}

#[tokio::test]
async fn events_are_kept_again_after_the_server_lost_its_data() {
    let mut server = NatsServer::start();
    let bus = over_nats(&server).await;
    let keeper = HistoryKeeper::start(&bus);
    let mut before = opened(&bus, Timestamp(0), None).await;
    publish(&bus, &event("us-east", 1), None).await;
    assert_eq!(revision(&mut before).await.0, 1);

    server.kill();
    let mut state = bus.watch_state();
    tokio::time::timeout(LONG, state.wait_for(|state| !state.connected())).await.unwrap().unwrap();
    assert!(bus.publish_event("somebody", None, &event("us-east", 2)).await.is_err());
    assert_eq!(bus.dropped_events(), 1);
    server.restart_without_data();
    assert!(bus.ready(LONG).await);

    let mut after = opened(&bus, Timestamp(0), None).await;
    publish(&bus, &event("us-east", 2), None).await;
    assert_eq!(revision(&mut after).await.0, 2);
    keeper.stop().await;
}

/// The next event's revision, however often the bus is away before it comes.
async fn revision_at_last(reader: &mut HistoryReader) -> u64 {
    let reading = async {
        loop {
            match reader.next().await {
                Ok(Some(kept)) => break kept.event.kind,
                Ok(None) => panic!("the bus has closed"),
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    };
    match tokio::time::timeout(LONG, reading).await.unwrap() {
        EventKind::Fleet { revision, .. } => revision,
        other => panic!("{other:?}"),
    }
}

async fn who_follows_goes_on_after(restart: impl FnOnce(&mut NatsServer)) {
    let mut server = NatsServer::start();
    let bus = over_nats(&server).await;
    let keeper = HistoryKeeper::start(&bus);
    let mut following = opened(&bus, Timestamp(0), None).await;
    for number in 1..=3 {
        publish(&bus, &event("us-east", number), None).await;
        assert_eq!(revision(&mut following).await.0, number);
    }

    server.kill();
    let away = tokio::time::timeout(LONG, following.next()).await.unwrap();
    assert!(away.is_err(), "a follower gets an error while the bus is away: {away:?}");
    restart(&mut server);
    assert!(bus.ready(LONG).await);
    // Until events are stored again.
    opened(&bus, Timestamp(0), None).await;

    for number in 4..=5 {
        publish(&bus, &event("us-east", number), None).await;
        assert_eq!(revision_at_last(&mut following).await, number);
    }
    keeper.stop().await;
}

#[tokio::test]
async fn who_follows_goes_on_after_the_server_came_back() {
    who_follows_goes_on_after(NatsServer::restart).await;
}

#[tokio::test]
async fn who_follows_goes_on_after_the_server_came_back_without_its_data() {
    who_follows_goes_on_after(NatsServer::restart_without_data).await;
}

#[tokio::test]
async fn what_nobody_keeps_cannot_be_read_and_says_so() {
    let server = NatsServer::start();
    let bus = over_nats(&server).await;
    let error = bus.read_history(Timestamp(0), None).await.unwrap_err().to_string();
    assert!(error.ends_with("(lookup of the history)"), "{error}");
}

#[tokio::test]
async fn what_a_newer_version_published_is_skipped_and_counted() {
    let bus = Bus::in_process();
    let newer = bytes::Bytes::from_static(&[0xff, 0xff, 1]);
    bus.publish("tidegate.v1.event.us-east.test", None, newer).await.unwrap();
    publish(&bus, &event("us-east", 2), None).await;
    let mut reader = opened(&bus, Timestamp(0), None).await;
    assert_eq!(revision(&mut reader).await.0, 2);
    assert_eq!(reader.unreadable(), 1);
}
