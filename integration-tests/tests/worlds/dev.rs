//! `tidegate dev`, by the steps that the README shows to try it: everything in one process, without a bus.

use std::{
    convert::Infallible,
    fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Output, Stdio},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tidegate_bus::{clock, testing::lasting_port};
use tidegate_integration_tests::{
    binaries, client,
    directory::Directory,
    load::{Load, LoadPlan, Summary},
    origin::Origin,
    plan::HOST,
    process::Process,
    world::until,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::timeout,
};

const LIMIT: Duration = Duration::from_secs(30);

#[tokio::test]
async fn the_file_to_start_from_is_right_and_is_not_written_over() -> anyhow::Result<()> {
    let directory = Directory::new()?;
    let file = directory.path().join("fleet.yaml");

    let written = tidegate(directory.path(), &["init"]).await?;
    assert!(written.status.success(), "{written:?}");
    let checked = tidegate(directory.path(), &["check", "fleet.yaml", "--strict"]).await?;
    assert!(checked.status.success(), "{checked:?}");
    let said = String::from_utf8(checked.stdout)?;
    assert!(said.contains("fleet.yaml is valid: 1 region, 2 clusters with 2 endpoints"), "{said}");
    assert_eq!(String::from_utf8(checked.stderr)?, "", "no warnings");

    fs::write(&file, "mine")?;
    let refused = tidegate(directory.path(), &["init"]).await?;
    assert_eq!((refused.status.code(), fs::read_to_string(&file)?), (Some(1), "mine".to_owned()));
    assert!(String::from_utf8(refused.stderr)?.contains("--force"));
    assert!(tidegate(directory.path(), &["init", "--force"]).await?.status.success());
    assert_ne!(fs::read_to_string(&file)?, "mine");
    directory.succeeded();
    Ok(())
}

#[tokio::test]
async fn what_is_probably_not_meant_is_a_warning_and_with_strict_an_error() -> anyhow::Result<()> {
    // Given a file that is valid and whose second cluster nothing uses.
    let directory = Directory::new()?;
    assert!(tidegate(directory.path(), &["init"]).await?.status.success());
    let file = directory.path().join("fleet.yaml");
    let text = fs::read_to_string(&file)?.replace("clusters: [green, blue]", "clusters: [green]");
    fs::write(&file, &text)?;

    // When it is checked, with and without --strict.
    let checked = tidegate(directory.path(), &["check", "fleet.yaml"]).await?;
    let strict = tidegate(directory.path(), &["check", "fleet.yaml", "--strict"]).await?;

    // Then both warn of the same, and only the exit codes differ.
    assert_eq!((checked.status.code(), strict.status.code()), (Some(0), Some(2)));
    let warned = String::from_utf8(checked.stderr)?;
    assert_eq!(String::from_utf8(strict.stderr)?, warned);
    let line =
        |start: &str| 1 + text.lines().position(|line| line.trim_start().starts_with(start)).expect(start);
    for (line, text) in
        [(line("blue:"), "(clusters.blue)"), (line("clusters: [green]"), "(services.site.clusters)")]
    {
        let has = |said: &str| said.contains(&format!("fleet.yaml:{line}:")) && said.contains(text);
        assert!(warned.lines().any(has), "{text}:\n{warned}");
    }
    assert!(warned.ends_with("2 warnings in fleet.yaml\n"), "{warned}");
    directory.succeeded();
    Ok(())
}

#[tokio::test]
async fn the_schema_is_json_and_knows_what_the_file_to_start_from_has() -> anyhow::Result<()> {
    let directory = Directory::new()?;
    assert!(tidegate(directory.path(), &["init"]).await?.status.success());

    let printed = tidegate(directory.path(), &["schema"]).await?;

    assert!(printed.status.success(), "{printed:?}");
    let schema: Value = serde_json::from_slice(&printed.stdout)?;
    assert!(schema["$schema"].as_str().is_some_and(|name| name.contains("json-schema.org")), "{schema}");
    let file = fs::read_to_string(directory.path().join("fleet.yaml"))?;
    let fields: Vec<&str> = file
        .lines()
        .filter(|line| line.starts_with(|first: char| first.is_ascii_alphabetic()))
        .filter_map(|line| line.split(':').next())
        .collect();
    assert_eq!(fields, ["regions", "clusters", "edges", "listeners", "services"]);
    for field in fields {
        assert!(schema["properties"][field].is_object(), "no {field} in {schema}");
    }
    directory.succeeded();
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dev_serves_by_its_file_follows_it_and_hides_a_killed_origin() -> anyhow::Result<()> {
    // Given two origins, and a file that names them.
    let directory = Directory::new()?;
    let green = Origin::start("green", directory.path()).await?;
    let mut blue = Origin::start("blue", directory.path()).await?;
    let edge = SocketAddr::from(([127, 0, 0, 1], lasting_port()));
    let (file, fleet) = started_file(directory.path(), green.address(), blue.address(), edge).await?;

    // When it is run, then it listens where the file says, and the first cluster serves.
    let mut dev = dev(directory.path(), &file)?;
    assert_eq!(dev.addresses(&["http"], LIMIT).await?, [edge]);
    is_served_by("green", edge).await?;

    // When the file changes, then that is followed.
    let turned = fleet.replace("clusters: [green, blue]", "clusters: [blue, green]");
    assert_ne!(turned, fleet);
    replace(&file, &turned)?;
    is_served_by("blue", edge).await?;

    // When it breaks, then its place is told, and all stays as it was.
    replace(&file, &turned.replace("services:", "servicess:"))?;
    let line = 1 + turned.lines().position(|line| line.starts_with("services:")).expect("it has services");
    let place = format!("fleet.yaml:{line}:1");
    until("the mistake is told", LIMIT, async || {
        let log = dev.log();
        let all = [&place, "servicess", "the fleet stays as it was"];
        Ok(all.iter().all(|text| log.contains(*text)).then_some(()))
    })
    .await?;
    is_served_by("blue", edge).await?;

    // When an origin is killed under load, then no GET fails.
    let load = Load::start(LoadPlan { target: edge, rate: 200, connections: 10 })?;
    load.answered_since(clock::now(), 200, LIMIT).await?;
    blue.process.kill();
    let killed_at = clock::now();
    load.answered_since(killed_at, 400, LIMIT).await?;
    let records = load.stop().await?;
    let all = Summary::of(&records);
    assert_eq!((all.failed_get, all.slow_get), (0, 0), "{all:?}");
    let since = Summary::of(records.iter().filter(|record| record.due_at > killed_at));
    assert!(since.answers.keys().eq(["green"]), "{since:?}");

    // And an interrupt ends it.
    dev.interrupt();
    assert_eq!(dev.ended(LIMIT).await?.code(), Some(0), "{}", dev.log());
    directory.succeeded();
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_interrupted_dev_ends_the_request_under_way_and_then_itself() -> anyhow::Result<()> {
    // Given a request that an origin takes its time for.
    let directory = Directory::new()?;
    let slow = Slow::start().await?;
    let blue = Origin::start("blue", directory.path()).await?;
    let edge = SocketAddr::from(([127, 0, 0, 1], lasting_port()));
    let (file, _) = started_file(directory.path(), slow.address, blue.address(), edge).await?;
    let mut dev = dev(directory.path(), &file)?;
    is_served_by("slow", edge).await?;
    let request = tokio::spawn(client::post(edge, HOST, Slow::PATH, "an order"));
    timeout(LIMIT, slow.asked.acquire()).await??.forget();

    // When it is interrupted, then it takes no more connections,
    dev.interrupt();
    until("connections are refused", LIMIT, async || {
        let refused = TcpStream::connect(edge).await.err();
        Ok(refused.filter(|error| error.kind() == io::ErrorKind::ConnectionRefused).map(|_| ()))
    })
    .await?;
    assert!(!request.is_finished(), "it waits for its answer");

    // and when the origin answers, so does it, and ends in good order.
    slow.may_answer.add_permits(1);
    let answer = request.await??;
    assert_eq!((answer.status().as_u16(), answer.headers()["x-origin"].to_str()?), (200, "slow"));
    assert_eq!(dev.ended(LIMIT).await?.code(), Some(0), "{}", dev.log());
    directory.succeeded();
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_dev_names_the_first_and_may_take_over_from_it() -> anyhow::Result<()> {
    // Given a dev that serves.
    let directory = Directory::new()?;
    let green = Origin::start("green", directory.path()).await?;
    let edge = SocketAddr::from(([127, 0, 0, 1], lasting_port()));
    let (file, _) = started_file(directory.path(), green.address(), green.address(), edge).await?;
    let mut first = dev(directory.path(), &file)?;
    is_served_by("green", edge).await?;

    // When another one is started, then it ends and says who holds the port.
    let path = file.display().to_string();
    let refused = tidegate(directory.path(), &["dev", &path]).await?;
    let message = String::from_utf8(refused.stderr)?;
    assert!(!refused.status.success());
    assert!(message.contains("held by process") && message.contains("--take-over"), "{message}");

    // When one takes over, then it serves once the first has ended.
    let arguments = ["dev", &path, "--take-over"].map(str::to_owned);
    let mut second = Process::start("tidegate", "second", directory.path(), arguments.into())?;
    second.addresses(&["http"], LIMIT).await?;
    first.interrupt();
    assert_eq!(first.ended(LIMIT).await?.code(), Some(0), "{}", first.log());
    is_served_by("green", edge).await?;
    directory.succeeded();
    Ok(())
}

/// Runs `tidegate` in a folder, to its end.
async fn tidegate(folder: &Path, arguments: &[&str]) -> anyhow::Result<Output> {
    let mut command = tokio::process::Command::from(binaries::command("tidegate")?);
    command.args(arguments).current_dir(folder).stdin(Stdio::null()).kill_on_drop(true);
    Ok(timeout(LIMIT, command.output()).await??)
}

/// Runs `tidegate dev` by a fleet file.
fn dev(folder: &Path, file: &Path) -> anyhow::Result<Process> {
    let arguments = ["dev", "--proxy-workers", "2", &file.display().to_string()];
    Process::start("tidegate", "dev", folder, arguments.map(str::to_owned).into())
}

/// The file that `init` writes, with these addresses in place of its own: other tests may use those.
async fn started_file(
    folder: &Path,
    green: SocketAddr,
    blue: SocketAddr,
    edge: SocketAddr,
) -> anyhow::Result<(PathBuf, String)> {
    let file = folder.join("fleet.yaml");
    let written = tidegate(folder, &["init"]).await?;
    anyhow::ensure!(written.status.success(), "{written:?}");
    let mut fleet = fs::read_to_string(&file)?;
    for (own, instead) in [("127.0.0.1:9001", green), ("127.0.0.1:9002", blue), ("127.0.0.1:8080", edge)] {
        anyhow::ensure!(fleet.contains(own), "no {own} in {fleet}");
        fleet = fleet.replace(own, &instead.to_string());
    }
    replace(&file, &fleet)?;
    Ok((file, fleet))
}

/// Writes a file anew, at once and whole, as an editor does.
fn replace(file: &Path, text: &str) -> anyhow::Result<()> {
    let new = file.with_extension("new");
    fs::write(&new, text)?;
    Ok(fs::rename(new, file)?)
}

/// Waits until a GET is answered by this origin.
async fn is_served_by(origin: &str, edge: SocketAddr) -> anyhow::Result<()> {
    until(&format!("{origin} answers"), LIMIT, async || {
        // It may not listen yet.
        let Ok(answer) = client::get(edge, HOST, "/").await else { return Ok(None) };
        let by = answer.headers().get("x-origin").is_some_and(|name| name == origin);
        Ok((by && answer.status() == 200).then_some(()))
    })
    .await
}

/// An origin that answers probes at once, and one path only when it is let.
struct Slow {
    address: SocketAddr,
    /// A permit for each request of that path.
    asked: Arc<Semaphore>,
    /// Takes a permit for each answer to them.
    may_answer: Arc<Semaphore>,
    serving: tokio::task::JoinHandle<()>,
}

impl Slow {
    const PATH: &str = "/slow";

    async fn start() -> anyhow::Result<Slow> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let (asked, may_answer) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
        let shared = (asked.clone(), may_answer.clone());
        let serving = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let shared = shared.clone();
                connections.spawn(async move {
                    let service = service_fn(move |request| slow_answer(request, shared.clone()));
                    // An edge that ends breaks off its connections.
                    _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        Ok(Slow { address, asked, may_answer, serving })
    }
}

impl Drop for Slow {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn slow_answer(
    request: Request<Incoming>,
    (asked, may_answer): (Arc<Semaphore>, Arc<Semaphore>),
) -> Result<Response<Full<Bytes>>, Infallible> {
    let path = request.uri().path().to_owned();
    // A client that breaks off is none of an origin's business.
    _ = request.into_body().collect().await;
    if path == Slow::PATH {
        asked.add_permits(1);
        if let Ok(permit) = may_answer.acquire().await {
            permit.forget();
        }
    }
    let mut response = Response::new(Full::default());
    response.headers_mut().insert("x-origin", http::HeaderValue::from_static("slow"));
    Ok(response)
}
