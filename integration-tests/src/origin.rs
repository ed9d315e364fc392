//! An endpoint of a workload cluster: `tidegate origin` on a port that it keeps.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    time::Duration,
};

use tidegate_bus::testing::lasting_port;

use crate::{client, process::Process};

/// How long an origin may take to listen.
const START_LIMIT: Duration = Duration::from_secs(20);

/// A running origin.
#[derive(Debug)]
pub struct Origin {
    /// The process, to be killed and frozen.
    pub process: Process,
    address: SocketAddr,
}

impl Origin {
    /// Starts an origin that answers with `name`.
    ///
    /// # Errors
    /// When it does not come to listen.
    pub async fn start(name: &str, directory: &Path) -> anyhow::Result<Origin> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, lasting_port()));
        let arguments = ["origin", "--name", name, "--listen", &address.to_string()].map(str::to_owned);
        let mut process = Process::start("tidegate", name, directory, arguments.into())?;
        process.addresses(&["origin"], START_LIMIT).await?;
        Ok(Origin { process, address })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        self.process.name()
    }

    /// Its address, the same after a restart.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Makes it answer 503 to everything.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn fail(&self) -> anyhow::Result<()> {
        self.control("/control/fail").await
    }

    /// Takes [`Origin::fail`] back.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn recover(&self) -> anyhow::Result<()> {
        self.control("/control/recover").await
    }

    async fn control(&self, path: &str) -> anyhow::Result<()> {
        let answer = client::post(self.address, "origin", path, "").await?;
        anyhow::ensure!(answer.status() == 204, "{path} answered {}", answer.status());
        Ok(())
    }
}
