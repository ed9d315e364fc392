//! A real nats-server for tests: started on a free port, with JetStream in a directory of its own, killed when dropped.
//!
//! [`Regions`] are two regions whose servers keep their own data; [`three_servers`] is a cluster that replicates its data.
//!
//! It is found by `TIDEGATE_NATS_SERVER`, else on `PATH`, else in `target/tools/bin` of the workspace.

mod cluster;
mod regions;

use std::{
    env, fs,
    io::{BufRead, BufReader},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

pub use cluster::three_servers;
pub use regions::Regions;

/// How long a server may take to be ready.
const READY_LIMIT: Duration = Duration::from_secs(20);

/// A running nats-server, or one that was stopped and can be started again on the same port.
#[derive(Debug)]
pub struct NatsServer {
    directory: PathBuf,
    port: u16,
    /// Whether it has JetStream.
    keeps: bool,
    child: Option<Child>,
}

impl NatsServer {
    /// Starts a server and waits until it is ready.
    ///
    /// # Panics
    /// When there is no nats-server, or it is not ready in time.
    pub fn start() -> NatsServer {
        NatsServer::start_with("", true)
    }

    /// Starts a server with `permissions`, a part of its settings.
    ///
    /// # Panics
    /// When there is no nats-server, or it is not ready in time.
    pub fn start_guarded(permissions: &str) -> NatsServer {
        NatsServer::start_with(permissions, true)
    }

    /// Starts a server without JetStream.
    ///
    /// # Panics
    /// When there is no nats-server, or it is not ready in time.
    pub fn start_without_jetstream() -> NatsServer {
        NatsServer::start_with("", false)
    }

    /// Starts a server with more settings than a port and, where it `keeps` data, JetStream.
    fn start_with(config: &str, keeps: bool) -> NatsServer {
        let name = format!("tidegate-nats-{}-{:08x}", std::process::id(), rand::random::<u32>());
        let directory = env::temp_dir().join(name);
        fs::create_dir_all(&directory).expect("a directory for the server's data");
        fs::write(directory.join("config"), config).expect("the server's settings");
        let mut server = NatsServer { directory, port: lasting_port(), keeps, child: None };
        server.run();
        server
    }

    /// The server's address, the same after a restart.
    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// The server's port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Kills the server (SIGKILL).
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            _ = child.kill();
            _ = child.wait();
        }
    }

    /// Kills the server where it runs, and starts it again with the data that it had.
    pub fn restart(&mut self) {
        self.kill();
        self.run();
    }

    /// Kills the server where it runs, and starts it again with nothing.
    pub fn restart_without_data(&mut self) {
        self.kill();
        _ = fs::remove_dir_all(self.directory.join("jetstream"));
        self.run();
    }

    /// Freezes the server (SIGSTOP): connections stay, nothing is answered.
    pub fn pause(&self) {
        self.signal("STOP");
    }

    /// Lets a frozen server go on.
    pub fn resume(&self) {
        self.signal("CONT");
    }

    fn signal(&self, signal: &str) {
        let Some(child) = &self.child else { return };
        let kill = format!("kill -{signal} {}", child.id());
        let status = Command::new("sh").args(["-c", &kill]).status().expect("a shell");
        assert!(status.success(), "{kill} failed");
    }

    fn run(&mut self) {
        let ports = self.directory.join("ports");
        _ = fs::remove_dir_all(&ports);
        fs::create_dir_all(&ports).expect("a directory for the server's ports");
        let log = fs::File::create(self.directory.join("log")).expect("the server's log");
        let port = self.port.to_string();
        let program = find().expect("a nats-server: set TIDEGATE_NATS_SERVER, or put one on PATH");
        let child = Command::new(&program)
            .args(["-a", "127.0.0.1", "-p", &port, "-c"])
            .arg(self.directory.join("config"))
            .args(self.keeps.then_some("-js"))
            .arg("-sd")
            .arg(&self.directory)
            .arg("--ports_file_dir")
            .arg(&ports)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("the server's log"))
            .stderr(log)
            .spawn()
            .unwrap_or_else(|error| panic!("{} cannot be started: {error}", program.display()));
        self.child = Some(child);
        let deadline = Instant::now() + READY_LIMIT;
        while !self.is_ready(&ports) {
            let log = || fs::read_to_string(self.directory.join("log")).unwrap_or_default();
            assert!(Instant::now() < deadline, "nats-server is not ready:\n{}", log());
            thread::sleep(Duration::from_millis(5));
        }
    }

    fn is_ready(&mut self, ports: &Path) -> bool {
        let pid = self.child.as_ref().map(Child::id).unwrap_or_default();
        let file = ports.join(format!("nats-server_{pid}.ports"));
        let Some(port) = fs::read_to_string(file).ok().and_then(|text| parse_port(&text)) else {
            return false;
        };
        self.port = port;
        // It greets with INFO and says there whether JetStream is on.
        let Ok(stream) = TcpStream::connect(("127.0.0.1", port)) else { return false };
        _ = stream.set_read_timeout(Some(Duration::from_secs(1)));
        let mut line = String::new();
        _ = BufReader::new(stream).read_line(&mut line);
        line.starts_with("INFO ") && (!self.keeps || line.contains("\"jetstream\":true"))
    }
}

impl Drop for NatsServer {
    fn drop(&mut self) {
        self.kill();
        _ = fs::remove_dir_all(&self.directory);
    }
}

/// A free port that stays free while the server on it is down, for as long as this process runs. The system gives it to no
/// connection (it takes those from 32768 up), not even to one that is made to that very port, which would then be connected to
/// itself. A locked file for each port keeps other tests from taking it.
///
/// # Panics
/// When no port is free.
pub fn lasting_port() -> u16 {
    static RESERVED: Mutex<Vec<fs::File>> = Mutex::new(Vec::new());
    let folder = env::temp_dir().join("tidegate-test-ports");
    fs::create_dir_all(&folder).expect("a folder for the locks of ports");
    let reserve = |port: &u16| {
        let file = fs::File::create(folder.join(port.to_string())).ok()?;
        file.try_lock().ok()?;
        TcpListener::bind(("127.0.0.1", *port)).ok()?;
        Some(file)
    };
    let candidates = std::iter::repeat_with(|| rand::random_range(10_000..32_000_u16));
    let found = candidates.take(1000).find_map(|port| Some((port, reserve(&port)?)));
    let (port, lock) = found.expect("a free port");
    RESERVED.lock().unwrap_or_else(PoisonError::into_inner).push(lock);
    port
}

fn parse_port(text: &str) -> Option<u16> {
    let ports: serde_json::Value = serde_json::from_str(text).ok()?;
    ports["nats"][0].as_str()?.rsplit(':').next()?.parse().ok()
}

/// The nats-server that tests use.
pub fn find() -> Option<PathBuf> {
    if let Some(path) = env::var_os("TIDEGATE_NATS_SERVER") {
        return Some(path.into());
    }
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/tools/bin");
    let on_path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&on_path)
        .chain([workspace])
        .map(|directory| directory.join("nats-server"))
        .find(|path| path.is_file())
}
