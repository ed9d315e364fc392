//! The fleet can be read, compared and taken back, and each change has an author, a reason and what it changed.

use std::{process::Output, time::Duration};

use serde_json::Value;
use tidegate_bus::testing::NatsServer;
use tidegate_integration_tests::{
    Plan, World, binaries,
    directory::Directory,
    plan::{AWAY, HOME},
    world::until,
};
use tokio::process::Command;

const LIMIT: Duration = Duration::from_secs(30);
const FLEET: &str = "# what it is for
regions: { us: {}, eu: {} }
clusters:
  us-1: { region: us, endpoints: [\"127.0.0.1:1\"], capacity: 100 }
  eu-1: { region: eu, endpoints: [\"127.0.0.1:2\"] }
edges: { e-1: { region: us, listeners: [web] } }
listeners: { web: { bind: \"127.0.0.1:0\", protocol: http } }
services: { shop: { hosts: [\"*\"], clusters: { weights: { us-1: 50, eu-1: 50 } } } }
";

/// A bus on which nothing runs, and a folder for files.
struct Bench {
    nats: NatsServer,
    directory: Directory,
}

impl Bench {
    fn start() -> anyhow::Result<Bench> {
        Ok(Bench { nats: NatsServer::start(), directory: Directory::new()? })
    }

    fn write(&self, text: &str) -> anyhow::Result<String> {
        let file = self.directory.path().join("fleet.yaml");
        std::fs::write(&file, text)?;
        Ok(file.display().to_string())
    }

    /// Runs a command as `ann`.
    async fn run(&self, arguments: &[&str]) -> anyhow::Result<Output> {
        let mut command = Command::from(binaries::command("tidegate")?);
        command.args(arguments).env("TIDEGATE_NATS__SERVERS", self.nats.url()).env("USER", "ann");
        Ok(command.output().await?)
    }

    async fn succeeds(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let output = self.run(arguments).await?;
        anyhow::ensure!(output.status.success(), "{arguments:?}: {output:?}");
        Ok(String::from_utf8(output.stdout)?)
    }

    /// Runs a command that must end with `code`, and returns what it complains of.
    async fn fails(&self, code: i32, arguments: &[&str]) -> anyhow::Result<String> {
        let output = self.run(arguments).await?;
        anyhow::ensure!(output.status.code() == Some(code), "{arguments:?}: {output:?}");
        Ok(String::from_utf8(output.stderr)?)
    }

    /// The revisions, the latest first.
    async fn revisions(&self) -> anyhow::Result<Vec<Value>> {
        let lines = self.succeeds(&["fleet", "history", "--json"]).await?;
        lines.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
    }
}

#[tokio::test]
async fn what_was_applied_is_read_compared_and_taken_back() -> anyhow::Result<()> {
    // Given a fleet file that was applied, and then one with other shares.
    let bench = Bench::start()?;
    let missing = bench.fails(1, &["fleet", "get"]).await?;
    assert!(missing.contains("no fleet was applied"), "{missing}");
    bench.succeeds(&["apply", &bench.write(FLEET)?, "--reason", "the first"]).await?;
    let changed = FLEET.replace("us-1: 50, eu-1: 50", "us-1: 80, eu-1: 20");
    let file = bench.write(&changed)?;
    let ahead = bench.succeeds(&["fleet", "diff", "--file", &file]).await?;
    let applied =
        bench.succeeds(&["apply", &file, "--reason", "us-1 has more machines", "--author", "bob"]).await?;

    // When they are read and compared, then both are there, with what differs by meaning.
    let line = "~ service shop: clusters by weight eu-1 50, us-1 50 -> by weight eu-1 20, us-1 80";
    for said in [&ahead, &applied] {
        assert!(said.contains(line), "{said}");
    }
    let revisions = bench.revisions().await?;
    let number = |index: usize| revisions[index]["revision"].to_string();
    assert_eq!(revisions.len(), 2);
    assert_eq!((&revisions[0]["author"], &revisions[1]["author"]), (&"bob".into(), &"ann".into()));
    assert_eq!(revisions[0]["reason"], "us-1 has more machines");
    assert_eq!(revisions[0]["changes"][0], line);
    assert_eq!(bench.succeeds(&["fleet", "get"]).await?, changed);
    assert_eq!(bench.succeeds(&["fleet", "get", "--revision", &number(1)]).await?, FLEET);
    let printed = bench.succeeds(&["fleet", "history"]).await?;
    assert!(printed.contains("by bob: us-1 has more machines") && printed.contains(line), "{printed}");
    for arguments in
        [&["fleet", "diff"][..], &["fleet", "diff", &number(1)], &["fleet", "diff", &number(1), &number(0)]]
    {
        let said = bench.succeeds(arguments).await?;
        assert!(said.contains(line), "{arguments:?}: {said}");
    }
    let json = bench.succeeds(&["fleet", "diff", "--json"]).await?;
    let json: Value = serde_json::from_str(&json)?;
    assert_eq!(
        (&json["changes"][0]["object"], &json["changes"][0]["name"]),
        (&"service".into(), &"shop".into())
    );

    // When the first is taken back, then it is the fleet again, as a new revision with its own author and reason.
    bench.succeeds(&["fleet", "rollback", &number(1), "--reason", "too much", "--author", "eve"]).await?;
    assert_eq!(bench.succeeds(&["fleet", "get"]).await?, FLEET);
    let revisions = bench.revisions().await?;
    assert_eq!(revisions.len(), 3);
    assert_eq!(revisions[0]["author"], "eve");
    assert_eq!(revisions[0]["reason"], format!("rollback to revision {}: too much", number(1)));

    // When a revision is not kept, then it is a wrong argument, and what there is is said.
    for arguments in [
        &["fleet", "get", "--revision", "7"][..],
        &["fleet", "diff", "7"],
        &["fleet", "rollback", "7", "--reason", "x"],
    ] {
        let said = bench.fails(2, arguments).await?;
        assert!(said.contains("revision 7 is not kept") && said.contains(&number(1)), "{said}");
    }
    bench.directory.succeeded();
    Ok(())
}

#[tokio::test]
async fn an_unchanged_file_is_no_new_revision_and_who_was_second_is_told() -> anyhow::Result<()> {
    // Given a fleet that two operators read.
    let bench = Bench::start()?;
    let file = bench.write(FLEET)?;
    bench.succeeds(&["apply", &file, "--expect-revision", "0"]).await?;
    let read = bench.revisions().await?[0]["revision"].to_string();

    // When the same file is applied again, then nothing is written.
    let again = bench.succeeds(&["apply", &file]).await?;
    assert!(again.contains("already applied"), "{again}");
    assert_eq!(bench.revisions().await?.len(), 1);

    // When both change it, then the second is told that the first was there, and how to see what it did.
    let mine = bench.write(&FLEET.replace("capacity: 100", "capacity: 200"))?;
    bench.succeeds(&["apply", &mine, "--expect-revision", &read, "--author", "bob"]).await?;
    let other = bench.write(&FLEET.replace("capacity: 100", "capacity: 300"))?;
    let said = bench.fails(3, &["apply", &other, "--expect-revision", &read]).await?;
    assert!(
        said.contains("applied by bob") && said.contains(&format!("tidegate fleet diff {read}")),
        "{said}"
    );
    assert_eq!(bench.revisions().await?.len(), 2);

    // Comments are a revision of their own, since the file is kept as it was applied.
    let commented = bench.write(&format!("{}# a note\n", FLEET.replace("capacity: 100", "capacity: 200")))?;
    let said = bench.succeeds(&["apply", &commented]).await?;
    assert!(said.contains("only comments or layout"), "{said}");
    bench.directory.succeeded();
    Ok(())
}

#[tokio::test]
async fn without_route_computers_a_file_is_applied_and_its_effect_is_reported_as_unknown()
-> anyhow::Result<()> {
    // Given a bus without a fleet and without route-computers.
    let bench = Bench::start()?;
    let file = bench.write(FLEET)?;

    // When the first file is tried, then there is nothing that could move.
    let tried = bench.succeeds(&["apply", &file, "--dry-run"]).await?;
    assert!(tried.contains("+ service shop") && tried.contains("no traffic would move"), "{tried}");
    bench.succeeds(&["apply", &file]).await?;

    // When the next one is tried, then what is unknown is reported, and it can be applied all the same.
    let file = bench.write(&FLEET.replace("capacity: 100", "capacity: 200"))?;
    let tried = bench.run(&["apply", &file, "--dry-run"]).await?;
    assert_eq!(tried.status.code(), Some(1), "{tried:?}");
    let said = String::from_utf8(tried.stdout)?;
    assert!(
        said.contains("~ cluster us-1") && said.contains("no route-computer runs for region us"),
        "{said}"
    );
    let applied = bench.run(&["apply", &file]).await?;
    assert!(applied.status.success(), "{applied:?}");
    assert!(String::from_utf8(applied.stderr)?.contains("could not be computed: no route-computer runs"));

    // Nor is a file too large for it that is larger than a message.
    let comments = "# a comment of many\n".repeat(60_000);
    let file = bench.write(&format!("{}{comments}", FLEET.replace("capacity: 100", "capacity: 300")))?;
    let applied = bench.run(&["apply", &file]).await?;
    assert!(applied.status.success(), "{applied:?}");
    assert!(String::from_utf8(applied.stderr)?.contains("than a message on the bus may be"));

    // What asks for confirmation by the file alone still does.
    let file = bench
        .write(&FLEET.replace("  shop:", "  cart:").replace("services: { shop:", "services: { cart:"))?;
    let said = bench.fails(3, &["apply", &file]).await?;
    assert!(said.contains("the service shop would no longer be served"), "{said}");
    let said = bench.fails(3, &["apply", &file, "--dry-run", "--expect-revision", "7"]).await?;
    assert!(said.contains("not at 7"), "{said}");
    bench.directory.succeeded();
    Ok(())
}

#[tokio::test]
async fn a_change_without_a_users_name_has_the_buss_user_or_the_hosts_as_its_author() -> anyhow::Result<()> {
    let bench = Bench::start()?;
    let mut names = Vec::new();
    for (index, user) in [None, Some("operator")].into_iter().enumerate() {
        let file = bench.write(&format!("{FLEET}# {index}\n"))?;
        let mut command = Command::from(binaries::command("tidegate")?);
        command
            .args(["apply", &file, "--nats-servers", &bench.nats.url()])
            .env_remove("USER")
            .env_remove("LOGNAME");
        if let Some(user) = user {
            command.args(["--nats-user", user, "--nats-password", user]);
        }
        let output = command.output().await?;
        anyhow::ensure!(output.status.success(), "{output:?}");
        names.push(bench.revisions().await?[0]["author"].as_str().unwrap_or_default().to_owned());
    }
    assert!(names[0].contains('@') && !names[0].contains("unknown"), "{names:?}");
    assert_eq!(names[1], "operator");
    bench.directory.succeeded();
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_tell_who_changed_the_fleet_and_who_withdrew_a_drain() -> anyhow::Result<()> {
    // Given a system that is well.
    let world = World::start(&Plan::default()).await?;

    // When one operator changes the fleet and drains a cluster, and another one withdraws that.
    let changed = world.fleet().replace(
        &format!("nearest: [{}, {}]", HOME.cluster, AWAY.cluster),
        &format!("weights: {{ {}: 50, {}: 50 }}", HOME.cluster, AWAY.cluster),
    );
    let file = world.write("changed.yaml", &changed)?;
    let commands: [&[&str]; 3] = [
        &["apply", &file, "--author", "ann", "--reason", "a trial"],
        &["drain", "cluster", HOME.cluster, "--author", "ann", "--reason", "upgrade"],
        &["undrain", "cluster", HOME.cluster, "--author", "bob", "--reason", "upgraded"],
    ];
    for arguments in commands {
        let output = world.cli(arguments).await?;
        anyhow::ensure!(output.status.success(), "{arguments:?}: {output:?}");
        // Overrides that come and go between two looks are no event.
        let what = format!("what {arguments:?} did is an event");
        let expected = match arguments[0] {
            "apply" => "applied by ann: a trial",
            "drain" => "override: drain of cluster us-east-1 by ann: upgrade",
            _ => "withdrawn by bob: upgraded",
        };
        until(&what, LIMIT, async || {
            let said = String::from_utf8(world.cli(&["events"]).await?.stdout)?;
            Ok(said.contains(expected).then_some(()))
        })
        .await?;
    }

    // Then the event of the fleet says what changed.
    let said = String::from_utf8(world.cli(&["events"]).await?.stdout)?;
    assert!(said.contains("~ service shop: clusters nearest of us-east-1, eu-west-1 -> by weight"), "{said}");
    world.succeeded();
    Ok(())
}
