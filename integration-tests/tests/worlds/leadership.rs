//! Two route-computers in a region: one leads, the other takes over, and nobody listens to the past.

use std::time::Duration;

use tidegate_bus::{
    subjects,
    table::{Owner, OwnerOptions},
};
use tidegate_integration_tests::{
    Fault, Plan, World,
    plan::{HOME, REGIONS},
    world::until,
};
use tidegate_model::{
    Epoch, Revision,
    routes::{RouteEntry, RouteKey},
};

const LIMIT: Duration = Duration::from_secs(30);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_route_computer_takes_over_from_a_frozen_one() -> anyhow::Result<()> {
    // Given a region with two route-computers.
    let mut world = World::start(&Plan { computers: 2, ..Plan::default() }).await?;
    let first = leader(&mut world).await?;
    let before = served_epoch(&world);

    // When the one that leads freezes.
    world.computers[&first].freeze();
    let what = "the edge serves by a later epoch";
    world.watch.until(what, LIMIT, |l| l.edge(HOME.edge).filter(|e| e.epoch > before).map(|_| ())).await?;

    // Then the other decides,
    let fault_at = world.inflict(Fault::Kill).await?;
    world.until_found(Fault::Kill, fault_at, LIMIT).await?;
    world.mend(Fault::Kill).await?;
    world.until_well(LIMIT).await?;

    // and when the first wakes, it finds that it no longer leads, and is not listened to.
    world.computers[&first].thaw();
    until("the one that woke does not lead", LIMIT, async || {
        Ok((world.computer_status(&first).await?["leads"] == false).then_some(()))
    })
    .await?;
    world.until_well_again(LIMIT).await?;
    let ledger = world.watch.ledger();
    for region in REGIONS {
        let epochs: Vec<Epoch> =
            ledger.applied.iter().filter(|a| a.edge.as_str() == region.edge).map(|a| a.epoch).collect();
        assert!(epochs.is_sorted(), "an edge went back: {epochs:?}");
    }
    assert!(ledger.edge(HOME.edge).is_some_and(|edge| edge.epoch > before));
    world.succeeded();
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_whose_key_is_withdrawn_gives_the_lease_to_one_whose_key_counts() -> anyhow::Result<()> {
    // Given a region with two route-computers, each with a key that the fleet names.
    let mut world = World::start(&Plan { computers: 2, is_signed: true, ..Plan::default() }).await?;
    let first = leader(&mut world).await?;
    let before = served_epoch(&world);

    // When the fleet no longer names the key of the one that leads.
    let withdrawn_at = std::time::Instant::now();
    world.apply(&world.fleet_without_key(&first)).await?;

    // Then the other takes over, and the edge serves by its tables.
    let what = "the edge serves by a later epoch";
    world.watch.until(what, LIMIT, |l| l.edge(HOME.edge).filter(|e| e.epoch > before).map(|_| ())).await?;
    println!("another leads, and its table is served, after {:?}", withdrawn_at.elapsed());
    until("the first does not lead", LIMIT, async || {
        Ok((world.computer_status(&first).await?["leads"] == false).then_some(()))
    })
    .await?;
    let second = leader(&mut world).await?;
    assert_ne!(first, second);
    let fault_at = world.inflict(Fault::Kill).await?;
    world.until_found(Fault::Kill, fault_at, LIMIT).await?;
    world.mend(Fault::Kill).await?;
    world.until_well_again(LIMIT).await?;

    // When it names it again, then it may lead again once the other is gone.
    world.apply(&world.fleet()).await?;
    if let Some(computer) = world.computers.get_mut(&second) {
        computer.kill();
    }
    until("the first leads", LIMIT, async || {
        Ok((world.computer_status(&first).await?["leads"] == true).then_some(()))
    })
    .await?;
    world.succeeded();
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_of_an_older_epoch_is_refused() -> anyhow::Result<()> {
    // Given a system that serves by some epoch.
    let mut world = World::start(&Plan::default()).await?;
    let before = served_epoch(&world);

    // When somebody publishes an empty table as the owner of the epoch before.
    let bus = world.bus(&HOME.computer_user()).await?;
    let older = Epoch(before.0 - 1);
    let subject = subjects::routes(&HOME.name.parse()?);
    let no_entries: [(RouteKey, RouteEntry); 0] = [];
    let options = OwnerOptions::default();
    let owner = Owner::start(bus, &subject, older, Revision(u64::MAX / 2), no_entries, options).await?;

    // Then the edge refuses it and says so, and serves on.
    let what = "the edge has refused a table";
    let refused = |l: &tidegate_integration_tests::ledger::Ledger| {
        l.edge(HOME.edge).filter(|edge| edge.refused_old_epochs > 0).cloned()
    };
    let edge = world.watch.until(what, LIMIT, refused).await?;
    assert!(edge.epoch >= before, "{edge:?}");
    owner.stop().await;
    let (status, origin) = world.ask(HOME.edge).await?;
    assert_eq!(status, 200);
    assert!(HOME.origins().contains(&origin), "{origin}");
    world.succeeded();
    Ok(())
}

fn served_epoch(world: &World) -> Epoch {
    world.watch.ledger().edge(HOME.edge).expect("a world that is well has heard it").epoch
}

/// The home region's route-computer that leads.
async fn leader(world: &mut World) -> anyhow::Result<String> {
    let names: Vec<String> =
        world.computers.keys().filter(|name| name.contains(HOME.name)).cloned().collect();
    until("one of them leads", LIMIT, async || {
        for name in &names {
            if world.computer_status(name).await?["leads"] == true {
                return Ok(Some(name.clone()));
            }
        }
        Ok(None)
    })
    .await
}
