//! Nobody can do on the bus what another is for, by the permissions that are deployed. That each can do what it is for, all other
//! tests show: their servers have the same.

use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use tidegate_bus::{
    BusError, Subscription, codec,
    fleet::FleetStore,
    subjects::{self, FLEET_BUCKET, LEASE_BUCKET, OVERRIDES_BUCKET, ROUTES_BUCKET},
};
use tidegate_integration_tests::{
    Plan, World,
    plan::{AWAY, HOME},
    world::{ALL, START_LIMIT},
};
use tidegate_model::{ClusterName, EdgeName, ProberName, RegionName};

/// A message that somebody may try to publish.
fn forgeries() -> anyhow::Result<Vec<String>> {
    let cluster: ClusterName = HOME.cluster.parse()?;
    let mut all = vec![subjects::FLEET.to_owned(), subjects::OVERRIDES.to_owned()];
    for plan in [HOME, AWAY] {
        let region: RegionName = plan.name.parse()?;
        let prober: ProberName = format!("prober-{}-1", plan.name).parse()?;
        all.extend([
            subjects::routes(&region),
            subjects::probe(&region, &prober),
            subjects::digest(&region),
            subjects::explain(&region),
            subjects::what_if(&region),
            subjects::event(&region, "computer-1"),
        ]);
        for edge in [HOME.edge, AWAY.edge] {
            let edge: EdgeName = edge.parse()?;
            all.extend([
                subjects::load(&region, &edge),
                subjects::applied(&region, &edge),
                subjects::suspect(&region, &edge, &cluster),
                subjects::reset(&region, &edge),
                subjects::event(&region, edge.as_str()),
                subjects::claim("edge", &region, edge.as_str()),
            ]);
        }
        for kind in ["health-prober", "route-computer"] {
            all.push(subjects::claim(kind, &region, "somebody"));
        }
    }
    Ok(all)
}

/// What of it a user may publish: of the table in docs/threat-model.md.
fn permitted(user: &str, subject: &str) -> bool {
    let subject = subject.strip_prefix("tidegate.v1.").unwrap_or(subject);
    let begins = |kinds: &[&str]| kinds.iter().any(|kind| subject.starts_with(kind));
    if user == HOME.edge_user() {
        let own = format!("{}.{}", HOME.name, HOME.edge);
        return begins(&["load.", "applied.", "suspect.", "event.", "claim.edge."]) && subject.contains(&own);
    }
    let of_region = subject.contains(HOME.name);
    if user == HOME.prober_user() {
        of_region && begins(&["probe.", "claim.health-prober."])
    } else if user == HOME.computer_user() {
        of_region && begins(&["routes.", "event.", "claim.route-computer."])
    } else if user == HOME.replicator_user() {
        begins(&["fleet", "overrides"]) || (of_region && begins(&["digest."]))
    } else {
        begins(&["fleet", "overrides", "reset.", "explain.", "what-if."])
    }
}

fn users() -> [String; 5] {
    [
        HOME.edge_user(),
        HOME.prober_user(),
        HOME.computer_user(),
        HOME.replicator_user(),
        "operator".to_owned(),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_user_is_heard_about_itself_only() -> anyhow::Result<()> {
    // Given somebody who hears everything, beginning with itself.
    let world = World::start_without_fleet(&Plan::default()).await?;
    let all = world.bus(ALL).await?;
    anyhow::ensure!(all.ready(START_LIMIT).await);
    let mut heard = all.subscribe("tidegate.v1.>").await?;
    let mine = Bytes::from_static(b"begin");
    all.publish("tidegate.v1.begin", None, mine.clone()).await?;
    next_of(&mut heard, &mine).await?;

    for user in users() {
        // When a user tries each message of each other,
        let bus = world.bus(&user).await?;
        anyhow::ensure!(bus.ready(START_LIMIT).await);
        let said = Bytes::from(format!("{user} was here"));
        let tried = forgeries()?;
        for subject in &tried {
            bus.publish(subject, None, said.clone()).await?;
        }

        // then only what is its own is heard.
        let expected: Vec<&String> = tried.iter().filter(|subject| permitted(&user, subject)).collect();
        assert!(!expected.is_empty() && expected.len() < tried.len(), "{user}");
        for subject in expected {
            assert_eq!(&next_of(&mut heard, &said).await?, subject, "{user}");
        }
        all.publish("tidegate.v1.end", None, said.clone()).await?;
        let ended = next_of(&mut heard, &said).await?;
        assert_eq!(ended, "tidegate.v1.end", "{user}");
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
async fn nobody_reads_responses_to_anothers_requests() -> anyhow::Result<()> {
    // Given users who listen where another's responses go, and where all do.
    let world = World::start_without_fleet(&Plan::default()).await?;
    let mut listening = Vec::new();
    for user in users() {
        let bus = world.bus(&user).await?;
        anyhow::ensure!(bus.ready(START_LIMIT).await);
        for pattern in ["_INBOX.>", "_INBOX.tidegate.>", &format!("_INBOX.tidegate.{}.>", AWAY.edge_user())] {
            listening.push((user.clone(), bus.subscribe(pattern).await?));
        }
    }

    // When that one asks, and is answered.
    let asks = world.bus(&AWAY.edge_user()).await?;
    anyhow::ensure!(asks.ready(START_LIMIT).await);
    let all = world.bus(ALL).await?;
    let table = subjects::snapshot(&subjects::routes(&AWAY.name.parse()?));
    let mut requests = all.subscribe(&table).await?;
    anyhow::ensure!(all.ready(START_LIMIT).await);
    let (answered, ()) = tokio::join!(asks.request(&table, Bytes::new(), START_LIMIT), async {
        // Route-computers listen there, too, and take an empty request for none.
        let request = requests.next().await.expect("the request");
        all.reply(&request, Bytes::from_static(b"secret")).await.expect("it may answer");
    });
    assert_eq!(answered?, Bytes::from_static(b"secret"));

    // Then none of them has heard it.
    for (user, mut subscription) in listening {
        let heard = tokio::time::timeout(Duration::from_millis(100), async {
            while let Some(message) = subscription.next().await {
                assert_ne!(message.body, Bytes::from_static(b"secret"), "{user}");
            }
        });
        _ = heard.await;
    }
    world.succeeded();
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_writes_what_another_decides_and_all_are_told_why() -> anyhow::Result<()> {
    // Given a system that runs by a fleet file.
    let world = World::start(&Plan::default()).await?;
    let status = world.cli(&["status", "--json"]).await?.stdout;
    let status: serde_json::Value = serde_json::from_slice(&status)?;
    let revision = &status["fleet"]["revision"];

    // When users write to buckets that are not theirs, then they are refused, with the server's reason.
    let refused = async |user: String, bucket: &str, key: &str| {
        let bus = world.bus(&user).await?;
        anyhow::ensure!(bus.ready(START_LIMIT).await);
        match bus.bucket(bucket).put(key, Bytes::from_static(b"mine")).await {
            Err(BusError::Refused { reason, .. }) => {
                assert!(reason.to_lowercase().contains("permissions violation"), "{reason}");
                anyhow::Ok(())
            }
            other => panic!("{user} in {bucket}: {other:?}"),
        }
    };
    tokio::try_join!(
        refused(HOME.edge_user(), LEASE_BUCKET, HOME.name),
        refused(HOME.edge_user(), ROUTES_BUCKET, HOME.name),
        refused(HOME.prober_user(), OVERRIDES_BUCKET, HOME.name),
        refused("operator".to_owned(), LEASE_BUCKET, HOME.name),
        refused(HOME.replicator_user(), LEASE_BUCKET, HOME.name),
        refused(HOME.computer_user(), FLEET_BUCKET, "fleet"),
        refused(HOME.computer_user(), OVERRIDES_BUCKET, HOME.name),
        refused(HOME.computer_user(), ROUTES_BUCKET, AWAY.name),
        refused(HOME.computer_user(), LEASE_BUCKET, AWAY.name),
    )?;

    // When an edge's user applies a fleet file, then it is told that it may not, and nothing has changed.
    let file = world.write("another.yaml", &(world.fleet() + "# another\n"))?;
    for user in [HOME.edge_user(), HOME.computer_user()] {
        let refused = world.cli_as(&user, &["apply", &file]).await?;
        assert_eq!(refused.status.code(), Some(1), "{user}");
        let said = String::from_utf8(refused.stderr)?;
        assert!(said.contains("has no permission") && said.contains("tidegate-fleet"), "{user}: {said}");
    }
    let after = world.cli(&["status", "--json"]).await?.stdout;
    let after: serde_json::Value = serde_json::from_slice(&after)?;
    assert_eq!(&after["fleet"]["revision"], revision);

    // When nobody has the right password, then it is told that nobody is let in.
    let unknown = world.cli_as("nobody", &["status", "--timeout", "1s"]).await?;
    assert_eq!(unknown.status.code(), Some(1));
    let said = String::from_utf8(unknown.stderr)?;
    assert!(said.contains("refuses user nobody, or its password"), "{said}");

    // When an edge's user asks for the status, then edges that it may not hear are not called missing.
    let partial = world.cli_as(&HOME.edge_user(), &["status"]).await?;
    assert_eq!(partial.status.code(), Some(1));
    let said = String::from_utf8(partial.stdout)?;
    assert!(said.contains("no permission to hear which edges report") && !said.contains("missing"), "{said}");
    world.succeeded();
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_route_computers_credential_brings_no_fleet_from_another_region() -> anyhow::Result<()> {
    // Given a system that runs by a fleet file, and somebody with the credential of another region's route-computers.
    let world = World::start(&Plan::default()).await?;
    let operator = world.bus("operator").await?;
    anyhow::ensure!(operator.ready(START_LIMIT).await);
    let store = FleetStore::new(&operator);
    let before = store.get().await?.context("the fleet")?;
    let forger = world.bus(&AWAY.computer_user()).await?;
    anyhow::ensure!(forger.ready(START_LIMIT).await);
    let region: RegionName = AWAY.name.parse()?;
    let mut asked = forger.subscribe(&subjects::pull(&region)).await?;
    let all = world.bus(ALL).await?;
    anyhow::ensure!(all.ready(START_LIMIT).await);

    // When replicators hear that it has a newer fleet: it cannot say so, but somebody else may.
    let newer = tidegate_bus::replicate::RegionDigest {
        fleet: Some(tidegate_bus::fleet::FleetVersion { revision: u64::MAX, digest: 1 }),
        overrides: 0,
    };
    let said = codec::encode(&newer);
    forger.publish(&subjects::digest(&region), None, said.clone()).await?;
    all.publish(&subjects::digest(&region), None, said).await?;

    // Then it is not asked, so it cannot answer.
    let request = tokio::time::timeout(Duration::from_secs(3), asked.next()).await;
    assert!(request.is_err(), "it hears requests for the fleet: {request:?}");
    assert_eq!(store.get().await?.context("the fleet")?, before);
    world.succeeded();
    Ok(())
}
