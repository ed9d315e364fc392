//! Forged messages on the bus, by holders of credentials: no region stops for them.

use std::{collections::BTreeMap, time::Duration};

use anyhow::Context as _;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tidegate_bus::{
    Bus,
    codec::{self, Wire},
    subjects,
    table::{Heartbeat, Position, Summary},
};
use tidegate_integration_tests::{
    Plan, World,
    plan::{HOME, SERVICE},
    world::{ALL, until},
};
use tidegate_model::{EdgeName, Epoch, RegionName, Revision, report::Load};

const LIMIT: Duration = Duration::from_secs(30);

/// A heartbeat as it travels.
#[derive(Serialize, Deserialize)]
enum Forged {
    _Delta,
    Heartbeat(Heartbeat),
}

impl Wire for Forged {}

/// Publishes a heartbeat of this epoch as if by the owner of the home region's routes.
pub async fn forge_heartbeat(bus: &Bus, epoch: u64) -> anyhow::Result<()> {
    let position = Position { epoch: Epoch(epoch), revision: Revision(1) };
    let heartbeat = Heartbeat { position, content: Summary { digest: 1, entries: 1 } };
    let region: RegionName = HOME.name.parse()?;
    Ok(bus.publish(&subjects::routes(&region), None, codec::encode(&Forged::Heartbeat(heartbeat))).await?)
}

/// Waits until the home region's edge serves from elsewhere, and back: so it follows what operators say.
async fn is_followed(world: &mut World) -> anyhow::Result<()> {
    for (command, is_home) in [("drain", false), ("undrain", true)] {
        let output = world.cli(&[command, "cluster", HOME.cluster]).await?;
        anyhow::ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let deadline = tokio::time::Instant::now() + LIMIT;
        loop {
            let (status, origin) = world.ask(HOME.edge).await?;
            anyhow::ensure!(status == 200, "{status}");
            if HOME.origins().contains(&origin) == is_home {
                break;
            }
            anyhow::ensure!(tokio::time::Instant::now() < deadline, "{command} is not followed: {origin}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_impossible_epoch_wedges_no_edge() -> anyhow::Result<()> {
    // Given a system that runs, and somebody who may publish anything.
    let mut world = World::start(&Plan::default()).await?;
    let forger = world.bus(ALL).await?;
    anyhow::ensure!(forger.ready(LIMIT).await);

    // When the owner of the routes is overruled by epochs that cannot be, then the true one is followed on.
    for epoch in [u64::MAX, 1 << 42, 1 << 40] {
        forge_heartbeat(&forger, epoch).await?;
    }
    is_followed(&mut world).await?;

    // When it is overruled by one that can be, then its owner takes a larger one.
    forge_heartbeat(&forger, 1000).await?;
    let deadline = tokio::time::Instant::now() + LIMIT;
    while world.watch.ledger().edge(HOME.edge).is_none_or(|edge| edge.epoch <= Epoch(1000)) {
        anyhow::ensure!(tokio::time::Instant::now() < deadline, "the owner keeps its epoch");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    is_followed(&mut world).await?;

    // And an operator can reset an edge.
    let reset = world.cli(&["edge", "reset", HOME.edge]).await?;
    anyhow::ensure!(reset.status.success(), "{}", String::from_utf8_lossy(&reset.stderr));
    is_followed(&mut world).await?;
    world.succeeded();
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_edge_that_asks_for_a_larger_epoch_changes_no_leader() -> anyhow::Result<()> {
    #[derive(Serialize, Deserialize)]
    struct Request(Epoch);
    impl Wire for Request {}

    // Given a system that runs, and somebody with an edge's credential.
    let mut world = World::start(&Plan::default()).await?;
    let forger = world.bus(&HOME.edge_user()).await?;
    anyhow::ensure!(forger.ready(LIMIT).await);
    let served = |world: &World| world.watch.ledger().edge(HOME.edge).map(|edge| edge.epoch);
    let before = served(&world).context("the edge has reported")?;

    // When they claim to know of a larger epoch, for longer than a leader needs to take one.
    let subject = subjects::snapshot(&subjects::routes(&HOME.name.parse()?));
    let began = tokio::time::Instant::now();
    while began.elapsed() < Duration::from_secs(3) {
        let request = codec::encode(&Request(Epoch(before.0 + Epoch::MAX_STEP / 2)));
        let asked = forger.request(&subject, request, Duration::from_millis(100)).await;
        anyhow::ensure!(asked.is_err(), "no owner of that epoch is there to answer");
    }
    is_followed(&mut world).await?;

    // Then the edge still serves by the same one.
    assert_eq!(served(&world), Some(before));
    world.succeeded();
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reports_of_edges_that_are_not_there_shed_nothing() -> anyhow::Result<()> {
    // Given a system whose clusters have a capacity.
    let mut world = World::start(&Plan::default()).await?;
    world.apply(&world.fleet().replace("endpoints: [", "capacity: 1000, endpoints: [")).await?;
    let forger = world.bus(ALL).await?;
    anyhow::ensure!(forger.ready(LIMIT).await);
    let region: RegionName = HOME.name.parse()?;

    // When edges that the fleet does not have report absurd demand, and some for others.
    let report = |edge: &str| -> anyhow::Result<Load> {
        Ok(Load {
            edge: edge.parse()?,
            region: region.clone(),
            interval_ms: 1,
            demand: BTreeMap::from([(SERVICE.parse()?, vec![u32::MAX; 3])]),
            clusters: BTreeMap::new(),
        })
    };
    for number in 0..5000 {
        let name = format!("nobody-{number}");
        let subject = subjects::load(&region, &name.parse::<EdgeName>()?);
        forger.publish_report(&subject, None, &report(&name)?).await?;
        // Of a true edge, on another's subject.
        forger.publish_report(&subject, None, &report(HOME.edge)?).await?;
    }
    until("they are refused", LIMIT, async || {
        let refused = world.computers_metrics().await?;
        let least = refused
            .iter()
            .map(|metrics| metrics.sum("tidegate_reports_refused_total", &[]))
            .fold(f64::MAX, f64::min);
        Ok((least >= 1000.0).then_some(()))
    })
    .await?;

    // Then nothing is shed, and what is decided is followed.
    is_followed(&mut world).await?;
    let status: Value = serde_json::from_slice(&world.cli(&["status", "--json"]).await?.stdout)?;
    let actions =
        status["regions"][HOME.name]["services"][SERVICE].as_array().context("the service's actions")?;
    assert!(actions.iter().all(|action| action["shed_permille"] == 0), "{actions:?}");
    world.succeeded();
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_resets_an_edge_but_an_operator() -> anyhow::Result<()> {
    let world = World::start(&Plan::default()).await?;
    let subject = subjects::reset(&HOME.name.parse()?, &HOME.edge.parse()?);
    for user in [HOME.edge_user(), HOME.prober_user(), HOME.computer_user(), HOME.replicator_user()] {
        let bus = world.bus(&user).await?;
        anyhow::ensure!(bus.ready(LIMIT).await);
        let asked = bus.request(&subject, Bytes::new(), Duration::from_secs(1)).await;
        assert!(asked.is_err(), "{user}");
    }
    world.succeeded();
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_region_whose_tables_are_signed_follows_no_forger() -> anyhow::Result<()> {
    // Given a region whose fleet names the keys of its route-computers.
    let mut world = World::start(&Plan { is_signed: true, ..Plan::default() }).await?;
    let forger = world.bus(ALL).await?;
    anyhow::ensure!(forger.ready(LIMIT).await);
    is_followed(&mut world).await?;
    // The edge has read the fleet, so it knows the keys.
    let before = until("an unsigned message is refused", LIMIT, async || {
        forge_heartbeat(&forger, 0).await?;
        let metrics = world.edge_metrics(HOME.edge).await?;
        Ok((metrics.sum("tidegate_routes_unsigned_total", &[]) >= 1.0).then_some(metrics))
    })
    .await?;
    let unsigned = before.sum("tidegate_routes_unsigned_total", &[]);

    // When somebody without the key speaks as the owner of its routes, of an epoch that can be.
    for epoch in 1000..1100 {
        forge_heartbeat(&forger, epoch).await?;
    }

    // Then no edge listens: the table is followed on.
    is_followed(&mut world).await?;
    let metrics = until("they are counted", LIMIT, async || {
        let metrics = world.edge_metrics(HOME.edge).await?;
        Ok((metrics.sum("tidegate_routes_unsigned_total", &[]) >= unsigned + 100.0).then_some(metrics))
    })
    .await?;
    // Its epoch may be a larger one: the test's own watch follows without keys, and asks for what it heard of.
    let refused = "tidegate_routes_refused_total";
    assert_eq!(metrics.sum(refused, &[]), before.sum(refused, &[]));

    // And whoever asks is told of it, and of the true table.
    let forging = async {
        for _ in 0..300 {
            forge_heartbeat(&forger, 2000).await?;
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        anyhow::Ok(())
    };
    let (status, forged) = tokio::join!(world.cli(&["status", "--json"]), forging);
    forged?;
    let status: Value = serde_json::from_slice(&status?.stdout)?;
    let region = &status["regions"][HOME.name];
    assert!(region["unsigned"].as_u64() > Some(0), "{region}");
    assert!(region["epoch"].as_u64().is_some_and(|epoch| epoch != 2000), "{region}");
    world.succeeded();
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_edge_that_was_given_keys_keeps_them_whatever_the_fleet_says() -> anyhow::Result<()> {
    // Given edges with pinned keys.
    let mut world = World::start(&Plan { is_signed: true, pins_key: true, ..Plan::default() }).await?;
    let forger = world.bus(ALL).await?;
    anyhow::ensure!(forger.ready(LIMIT).await);

    // When an attacker applies a fleet that names no keys.
    let fleet = world.fleet();
    let key =
        fleet.split("signing_keys: [").nth(1).and_then(|rest| rest.split(']').next()).context("a key")?;
    world.apply(&fleet.replace(&format!("signing_keys: [{key}], "), "")).await?;

    // Then unsigned messages are refused all the same, for longer than edges take to read the fleet again.
    until("forged messages are refused for seconds", LIMIT, async || {
        forge_heartbeat(&forger, 1000).await?;
        let metrics = world.edge_metrics(HOME.edge).await?;
        Ok((metrics.sum("tidegate_routes_unsigned_total", &[]) >= 300.0).then_some(()))
    })
    .await?;
    is_followed(&mut world).await?;
    world.succeeded();
    Ok(())
}
