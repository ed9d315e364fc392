//! Nobody can do on the bus what another is for, by the permissions that are deployed. That each can do what it is for, all other
//! tests show: their servers have the same.

use anyhow::Context;
use bytes::Bytes;
use tidegate_bus::{
    Bus, BusError, Credentials, NatsSettings, Subscription,
    subjects::{self, LEASE_BUCKET, OVERRIDES_BUCKET, ROUTES_BUCKET},
    testing::NatsServer,
};
use tidegate_integration_tests::{
    Plan, World,
    plan::{AWAY, HOME},
    world::{ALL, START_LIMIT},
};
use tidegate_model::{ClusterName, EdgeName, ProberName, RegionName};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_is_heard_where_another_speaks() -> anyhow::Result<()> {
    // Given somebody who hears everything, beginning with itself.
    let world = World::start_without_fleet(&Plan::default()).await?;
    let all = world.bus(ALL).await?;
    anyhow::ensure!(all.ready(START_LIMIT).await);
    let mut heard = all.subscribe("tidegate.v1.>").await?;
    let mine = Bytes::from_static(b"begin");
    all.publish(subjects::FLEET, None, mine.clone()).await?;
    next_of(&mut heard, &mine).await?;

    let region: RegionName = HOME.name.parse()?;
    let (edge, prober): (EdgeName, ProberName) = ("somebody".parse()?, "somebody".parse()?);
    let cluster: ClusterName = HOME.cluster.parse()?;
    let routes = subjects::routes(&region);
    let probe = subjects::probe(&region, &prober);
    let applied = subjects::applied(&region, &edge);
    let suspicion = subjects::suspect(&region, &edge, &cluster);
    let fleet = subjects::FLEET.to_owned();
    for (user, own, others) in [
        ("edge", &applied, [&routes, &probe, &fleet]),
        ("prober", &probe, [&routes, &applied, &suspicion]),
        ("operator", &fleet, [&routes, &probe, &applied]),
    ] {
        // When a user says what is not its own, and then what is.
        let bus = world.bus(user).await?;
        anyhow::ensure!(bus.ready(START_LIMIT).await);
        let said = Bytes::from(format!("{user} was here"));
        for subject in others.into_iter().chain([own]) {
            bus.publish(subject, None, said.clone()).await?;
        }

        // Then only that is heard.
        assert_eq!(&next_of(&mut heard, &said).await?, own, "{user}");
    }
    world.succeeded();
    Ok(())
}

/// The subject of the next message with this body, among all that services say meanwhile.
async fn next_of(heard: &mut Subscription, body: &Bytes) -> anyhow::Result<String> {
    let next = async {
        loop {
            let message = heard.next().await.context("the bus is closed")?;
            if message.body == body {
                return Ok(message.subject);
            }
        }
    };
    let next = tokio::time::timeout(START_LIMIT, next).await;
    next.with_context(|| format!("{} is not heard", String::from_utf8_lossy(body)))?
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_writes_what_another_decides_and_all_are_told_why() -> anyhow::Result<()> {
    // Given a system that runs by a fleet file.
    let world = World::start(&Plan::default()).await?;
    let status = world.cli(&["status", "--json"]).await?.stdout;
    let status: serde_json::Value = serde_json::from_slice(&status)?;
    let revision = &status["fleet"]["revision"];

    // When users write to buckets that are not theirs, then they are refused, with the server's reason.
    let refused = async |user: &str, bucket: &str| {
        let bus = world.bus(user).await?;
        anyhow::ensure!(bus.ready(START_LIMIT).await);
        match bus.bucket(bucket).put(HOME.name, Bytes::from_static(b"mine")).await {
            Err(BusError::Refused { reason, .. }) => {
                assert!(reason.to_lowercase().contains("permissions violation"), "{reason}");
                anyhow::Ok(())
            }
            other => panic!("{user} in {bucket}: {other:?}"),
        }
    };
    tokio::try_join!(
        refused("edge", LEASE_BUCKET),
        refused("edge", ROUTES_BUCKET),
        refused("prober", OVERRIDES_BUCKET),
        refused("operator", LEASE_BUCKET),
    )?;

    // When an edge's user applies a fleet file, then it is told that it may not, and nothing has changed.
    let file = world.write("another.yaml", &(world.fleet() + "# another\n"))?;
    let refused = world.cli_as("edge", &["apply", &file]).await?;
    assert_eq!(refused.status.code(), Some(1));
    let said = String::from_utf8(refused.stderr)?;
    assert!(said.contains("not permitted") && said.contains("tidegate-fleet"), "{said}");
    let after = world.cli(&["status", "--json"]).await?.stdout;
    let after: serde_json::Value = serde_json::from_slice(&after)?;
    assert_eq!(&after["fleet"]["revision"], revision);

    // When nobody has the right password, then it is told that nobody is let in.
    let unknown = world.cli_as("nobody", &["status", "--timeout", "1s"]).await?;
    assert_eq!(unknown.status.code(), Some(1));
    let said = String::from_utf8(unknown.stderr)?;
    assert!(said.contains("lets this user in"), "{said}");
    world.succeeded();
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_edge_with_a_user_of_its_own_speaks_for_itself_only() -> anyhow::Result<()> {
    // Given a server with the rights that are printed for a fleet.
    let world = World::start_without_fleet(&Plan::default()).await?;
    let file = world.write("fleet.yaml", &world.fleet())?;
    let printed = String::from_utf8(world.cli(&["bus-permissions", &file]).await?.stdout)?;
    let printed = [HOME, AWAY].iter().fold(printed, |text, region| {
        let variable = format!("$NATS_EDGE_{}_PASSWORD", region.edge.replace('-', "_").to_uppercase());
        text.replace(&variable, "own")
    });
    let listener = "users: [ { user: listener, password: listener }";
    let server = NatsServer::start_guarded(&printed.replace("users: [", listener));
    let connect = async |user: &str, password: &str| -> anyhow::Result<Bus> {
        let mut settings = NatsSettings::new([server.url()], "a test");
        settings.credentials = Credentials::Password { user: user.to_owned(), password: password.to_owned() };
        let bus = Bus::connect(settings).await?;
        anyhow::ensure!(bus.ready(START_LIMIT).await, "{user}");
        Ok(bus)
    };
    let mut heard = connect("listener", "listener").await?.subscribe("tidegate.v1.>").await?;
    let (home, away): (RegionName, RegionName) = (HOME.name.parse()?, AWAY.name.parse()?);
    let (own, other): (EdgeName, EdgeName) = (HOME.edge.parse()?, AWAY.edge.parse()?);
    let cluster: ClusterName = HOME.cluster.parse()?;

    // When its edge speaks for another, for another region, and for itself.
    let edge = connect(&format!("edge-{own}"), "own").await?;
    let subjects = |region: &RegionName, edge: &EdgeName| {
        [
            subjects::load(region, edge),
            subjects::applied(region, edge),
            subjects::suspect(region, edge, &cluster),
            subjects::event(region, edge.as_str()),
            subjects::bearer("edge", region, edge.as_str()),
        ]
    };
    let (others, mine) = (subjects(&away, &other), subjects(&home, &own));
    let said = Bytes::from_static(b"said");
    for subject in others.iter().chain(&subjects(&home, &other)).chain(&mine) {
        edge.publish(subject, None, said.clone()).await?;
    }

    // Then only what it says of itself is heard.
    for subject in &mine {
        assert_eq!(&next_of(&mut heard, &said).await?, subject);
    }
    world.succeeded();
    Ok(())
}
