//! The proxy's settings.

use std::{path::PathBuf, time::Duration};

use serde::{Deserialize, Serialize};
use tidegate_model::{EdgeName, RegionName};
use tidegate_service::{
    CommonSettings, Settings,
    settings::{AdminSection, LogSection, NatsSection, TelemetrySection, duration},
};

/// The proxy's settings.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ProxySettings {
    /// Who this edge is.
    pub edge: EdgeSection,
    /// How it works.
    pub proxy: ProxySection,
    /// How to reach the bus.
    pub nats: NatsSection,
    /// The admin listener.
    pub admin: AdminSection,
    /// The log.
    pub log: LogSection,
    /// Traces and metrics by OTLP.
    pub telemetry: TelemetrySection,
}

/// Who an edge is.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EdgeSection {
    /// Its name, as in the fleet file.
    pub name: Option<EdgeName>,
    /// Its region; absent: what the fleet file says, or the last table on disk.
    pub region: Option<RegionName>,
}

/// How a proxy works.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ProxySection {
    /// Workers; 0: one per core.
    pub workers: usize,
    /// Where the last table is kept.
    pub state_dir: PathBuf,
    /// How long a shutdown says "draining" to outside balancers before it accepts no more connections.
    #[serde(with = "duration")]
    pub drain_delay: Duration,
    /// How long connections may take to end after that.
    #[serde(with = "duration")]
    pub drain_limit: Duration,
}

impl Default for ProxySection {
    fn default() -> Self {
        ProxySection {
            workers: 0,
            state_dir: PathBuf::from("/var/lib/tidegate"),
            drain_delay: Duration::ZERO,
            drain_limit: Duration::from_secs(30),
        }
    }
}

impl ProxySection {
    /// The number of workers.
    pub fn worker_count(&self) -> usize {
        match self.workers {
            0 => std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            count => count,
        }
    }
}

impl Settings for ProxySettings {
    fn common(&self) -> CommonSettings {
        CommonSettings {
            nats: self.nats.clone(),
            admin: self.admin.clone(),
            log: self.log.clone(),
            telemetry: self.telemetry.clone(),
        }
    }

    fn instance(&self) -> String {
        self.edge.name.as_ref().map_or_else(|| "unnamed".to_owned(), ToString::to_string)
    }

    fn check(&self) -> Result<(), (String, String)> {
        if self.edge.name.is_none() {
            return Err(("edge.name".to_owned(), "this edge's name in the fleet file is needed".to_owned()));
        }
        Ok(())
    }
}
