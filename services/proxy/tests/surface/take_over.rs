//! Two processes of one edge on one host: the second refuses to start, unless it takes over.

use std::{
    fs::{self, File},
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command},
    sync::atomic::{AtomicU32, Ordering},
};

use crate::harness::{
    edge::{Edge, Start},
    eventually,
    fleet::FleetFile,
    origin::Origin,
    peer::Peer,
};

const GET: &str = "GET / HTTP/1.1\r\nHost: site.test\r\n\r\n";

/// A folder with the table that an edge has saved; removed when dropped.
struct State(PathBuf);

impl State {
    /// The table of an edge that forwards to `origin` and listens on `address`.
    fn saved(origin: &Origin, address: SocketAddr) -> State {
        let state = State::empty();
        let start = Start { state_dir: Some(state.0.clone()), ..Start::default() };
        let mut edge = Edge::start_with(&FleetFile::of(&[origin.address()]), start);
        eventually("the table is saved", || state.table().exists());
        edge.stop();
        let table = fs::read_to_string(state.table()).unwrap();
        fs::write(state.table(), table.replace("127.0.0.1:0", &address.to_string())).unwrap();
        state
    }

    fn empty() -> State {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let folder = std::env::temp_dir().join(format!("tidegate-take-over-{}-{count}", std::process::id()));
        _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).unwrap();
        State(folder)
    }

    fn copy(&self) -> State {
        let copy = State::empty();
        fs::copy(self.table(), copy.table()).unwrap();
        copy
    }

    fn table(&self) -> PathBuf {
        self.0.join("edge-1.routes.json")
    }
}

impl Drop for State {
    fn drop(&mut self) {
        _ = fs::remove_dir_all(&self.0);
    }
}

/// A process of the edge, without a bus. Killed when dropped.
struct EdgeProcess {
    child: Child,
    files: State,
}

impl EdgeProcess {
    fn start(state: &State, more: &[&str]) -> EdgeProcess {
        let files = State::empty();
        let log = File::create(files.0.join("log")).unwrap();
        let path = |path: &Path| path.to_str().unwrap().to_owned();
        let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate-proxy"));
        for (variable, _) in std::env::vars_os() {
            // Those of whoever runs the tests are not its settings.
            if variable.to_string_lossy().starts_with("TIDEGATE_") {
                command.env_remove(variable);
            }
        }
        let child = command
            .args(["--name", "edge-1", "--region", "here", "--proxy-workers", "2"])
            .args(["--nats-servers", "nats://127.0.0.1:1", "--admin-bind", "127.0.0.1:0"])
            .args(["--proxy-state-dir", &path(&state.0), "--ports-file", &path(&files.0.join("ports"))])
            .args(more)
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        EdgeProcess { child, files }
    }

    fn log(&self) -> String {
        fs::read_to_string(self.files.0.join("log")).unwrap()
    }

    fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    fn wait_until_it_listens(&mut self) {
        let ports = self.files.0.join("ports");
        eventually("it listens", || {
            assert!(!self.has_ended(), "{}", self.log());
            fs::read_to_string(&ports).is_ok_and(|ports| ports.contains("\"web\""))
        });
    }

    /// Waits until it has ended with an error, and returns its log.
    fn refusal(&mut self) -> String {
        eventually("it refuses to start", || self.has_ended());
        assert!(!self.child.wait().unwrap().success());
        self.log()
    }

    fn stop(&mut self) {
        let kill = format!("kill -TERM {}", self.child.id());
        assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
        eventually("it ends", || self.has_ended());
        assert!(self.child.wait().unwrap().success(), "{}", self.log());
    }
}

impl Drop for EdgeProcess {
    fn drop(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

/// An address that nothing listens on, outside of the range of ports that the system gives to clients.
fn free_address() -> SocketAddr {
    let candidates = std::iter::repeat_with(|| rand::random_range(10_000..32_000_u16));
    let mut addresses = candidates.map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
    addresses.find(|address| TcpListener::bind(address).is_ok()).unwrap()
}

#[test]
fn a_second_process_with_the_same_state_directory_refuses_to_start() {
    let origin = Origin::named("a");
    let state = State::saved(&origin, free_address());
    let mut first = EdgeProcess::start(&state, &[]);
    first.wait_until_it_listens();

    let refusal = EdgeProcess::start(&state, &[]).refusal();

    let holder = format!("edge edge-1 already runs on this host: process {} holds", first.child.id());
    assert!(refusal.contains(&holder), "{refusal}");
    assert!(!first.has_ended());
}

#[test]
fn a_second_process_with_another_state_directory_refuses_to_start() {
    let origin = Origin::named("a");
    let address = free_address();
    let state = State::saved(&origin, address);
    let mut first = EdgeProcess::start(&state, &[]);
    first.wait_until_it_listens();

    let refusal = EdgeProcess::start(&state.copy(), &[]).refusal();

    let holder = format!("{address} is held by another edge, process {} (tidegate-proxy)", first.child.id());
    assert!(refusal.contains(&holder), "{refusal}");
    assert!(!first.has_ended());
}

#[test]
fn of_two_processes_that_start_at_once_one_serves() {
    let origin = Origin::named("a");
    let state = State::saved(&origin, free_address());
    let other = state.copy();
    let mut processes = [EdgeProcess::start(&state, &[]), EdgeProcess::start(&other, &[])];

    eventually("one refuses to start", || processes.iter_mut().any(EdgeProcess::has_ended));

    let [first, second] = &mut processes;
    let (winner, loser) = if first.has_ended() { (second, first) } else { (first, second) };
    assert!(loser.refusal().contains(&format!("process {}", winner.child.id())), "{}", loser.log());
    winner.wait_until_it_listens();
}

#[test]
fn a_process_that_takes_over_serves_beside_the_old_one_until_that_has_drained() {
    let origin = Origin::named("a");
    let address = free_address();
    let state = State::saved(&origin, address);
    let mut old = EdgeProcess::start(&state, &[]);
    old.wait_until_it_listens();
    let mut early = Peer::connect(address);
    assert_eq!(early.ask(GET).text(), "a");

    let mut new = EdgeProcess::start(&state, &["--take-over", "true"]);
    new.wait_until_it_listens();

    for _ in 0..20 {
        assert_eq!(Peer::connect(address).ask(GET).text(), "a");
    }
    old.stop();
    for _ in 0..20 {
        assert_eq!(Peer::connect(address).ask(GET).text(), "a");
    }
    // The new one then holds the lock. (Whoever tries before could get it first.)
    let id = new.child.id().to_string();
    eventually("the new one holds the lock", || {
        fs::read_to_string(state.0.join("edge-1.lock")).is_ok_and(|holder| holder.trim() == id)
    });
    let refusal = EdgeProcess::start(&state, &[]).refusal();
    assert!(refusal.contains(&format!("process {id} holds")), "{refusal}");
}
