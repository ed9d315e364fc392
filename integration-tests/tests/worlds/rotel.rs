//! A real OTLP receiver, rotel, between the services and the tests' own collector, which it hands on to what it has
//! received.

use std::{
    fs::File,
    net::{Ipv4Addr, SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::Context as _;
use tidegate_bus::testing::lasting_port;
use tidegate_integration_tests::{directory::Directory, world::until};

use crate::collector::Collector;

const START_LIMIT: Duration = Duration::from_secs(30);

/// A running receiver; killed when dropped.
pub struct Rotel {
    child: Child,
    endpoint: String,
    directory: Directory,
}

impl Rotel {
    /// Starts one that hands on to `collector`, and waits until it listens.
    pub async fn start(collector: &Collector) -> anyhow::Result<Rotel> {
        let directory = Directory::new()?;
        let [http, grpc] = [(); 2].map(|()| SocketAddr::from((Ipv4Addr::LOCALHOST, lasting_port())));
        let log = directory.path().join("rotel.log");
        let output = File::create(&log)?;
        let child = Command::new(program())
            .args([
                "start",
                "--otlp-http-endpoint",
                &http.to_string(),
                "--otlp-grpc-endpoint",
                &grpc.to_string(),
            ])
            .args(["--exporter", "otlp", "--otlp-exporter-protocol", "http"])
            .args(["--otlp-exporter-endpoint", collector.endpoint()])
            .args(["--batch-timeout", "100ms"])
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .context("rotel cannot be started (tools/fetch rotel)")?;
        let mut rotel = Rotel { child, endpoint: format!("http://{http}"), directory };
        until("rotel listens", START_LIMIT, async || rotel.listens(http, &log)).await?;
        Ok(rotel)
    }

    /// All went well: nobody needs its log.
    pub fn succeeded(&self) {
        self.directory.succeeded();
    }

    fn listens(&mut self, address: SocketAddr, log: &Path) -> anyhow::Result<Option<()>> {
        if let Some(status) = self.child.try_wait()? {
            let log = std::fs::read_to_string(log).unwrap_or_default();
            anyhow::bail!("rotel has ended ({status}):\n{log}");
        }
        Ok(TcpStream::connect(address).is_ok().then_some(()))
    }

    /// Where services send to.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }
}

impl Drop for Rotel {
    fn drop(&mut self) {
        // It may have ended by itself.
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

/// Its binary: what `tools/fetch` has put in place, else what is found by PATH.
fn program() -> PathBuf {
    let fetched = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/tools/use/rotel");
    if fetched.exists() { fetched } else { "rotel".into() }
}
