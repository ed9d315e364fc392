//! Buckets with a copy on each of three servers, and what the loss of one server takes.

use std::time::Duration;

use crate::both::LONG;
use bytes::Bytes;
use tidegate_bus::{
    Bus, NatsSettings,
    lease::{Lease, LeaseSeal, LeaseState},
    subjects,
    testing::{NatsServer, three_servers},
};
use tidegate_model::Epoch;

const BUCKET: &str = "tidegate-fleet";

async fn bus(servers: &[NatsServer], copies: usize) -> Bus {
    let mut settings = NatsSettings::new(servers.iter().map(NatsServer::url), "test");
    settings.bucket_replicas = copies;
    let bus = Bus::connect(settings).await.unwrap();
    assert!(bus.ready(LONG).await);
    bus
}

async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let waited = async {
        while !is_so().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(LONG, waited).await.unwrap_or_else(|_| panic!("not after {LONG:?}: {what}"));
}

#[tokio::test]
async fn a_bucket_that_was_made_with_one_copy_gets_three_and_outlives_every_single_server() {
    // Given a bucket that was made by somebody who wanted one copy.
    let mut servers = three_servers();
    let first = bus(&servers, 1).await.bucket(BUCKET);
    until("the bucket can be made", async || first.put("key", Bytes::from("value")).await.is_ok()).await;

    // When somebody who wants three finds it.
    let bucket = bus(&servers, 3).await.bucket(BUCKET);
    assert_eq!(bucket.get("key").await.unwrap().unwrap().value, "value");

    // Then it can be read and written without any one of the servers.
    for (number, server) in servers.iter_mut().enumerate() {
        let what = format!("the bucket can be written and read with server {number} killed");
        // Copies that are still being made are no copies: the entry must be written with all there.
        until("it can be written with all servers there", async || {
            bucket.put("before", Bytes::from(what.clone())).await.is_ok()
        })
        .await;
        server.kill();
        until(&what, async || {
            bucket.put("key", Bytes::from(what.clone())).await.is_ok()
                && bucket.get("key").await.is_ok_and(|entry| entry.is_some_and(|e| e.value == what))
        })
        .await;
        server.restart();
    }
}

#[tokio::test]
async fn who_leads_a_region_goes_on_without_one_server_of_three() {
    // Given a leader whose lease has three copies.
    let mut servers = three_servers();
    let bucket = bus(&servers, 3).await.bucket(subjects::LEASE_BUCKET);
    until("the lease's bucket can be made", async || bucket.put("other", Bytes::new()).await.is_ok()).await;
    let lease =
        Lease::start(bucket, "us", "a".parse().unwrap(), Duration::from_secs(2), LeaseSeal::default());
    let mut state = lease.state();
    let leads = |state: &LeaseState| matches!(state, LeaseState::Leader { .. });
    tokio::time::timeout(LONG, state.wait_for(leads)).await.unwrap().unwrap();

    for server in &mut servers {
        // When one server is killed, whichever it is.
        server.kill();
        let since = tokio::time::Instant::now();

        // Then it leads, certainly, after more than the lease's duration, in the epoch in which it began.
        until("it leads beyond the last lease's end", async || {
            let state = *lease.state().borrow();
            assert_eq!(state.epoch(), Some(Epoch(1)));
            leads(&state) && since.elapsed() > Duration::from_secs(3)
        })
        .await;
        server.restart();
    }
    lease.stop().await;
}
