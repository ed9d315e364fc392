//! The replicator's settings.

use documented::DocumentedFields;
use serde::{Deserialize, Serialize};
use tidegate_model::{RegionName, ReplicatorName};
use tidegate_service::{
    CommonSettings, Settings,
    settings::{AdminSection, LogSection, NatsSection, TelemetrySection, docs_of},
};

/// The replicator's settings.
#[derive(Debug, Clone, Default, Serialize, Deserialize, DocumentedFields)]
#[serde(default, deny_unknown_fields)]
pub struct ReplicatorSettings {
    /// Its name, unique among the replicators of the region; the host's name when absent.
    pub name: Option<ReplicatorName>,
    /// The region whose bus it is on.
    pub region: Option<RegionName>,
    /// How to reach the bus.
    pub nats: NatsSection,
    /// The admin listener.
    pub admin: AdminSection,
    /// The log.
    pub log: LogSection,
    /// Traces and metrics by OTLP.
    pub telemetry: TelemetrySection,
}

impl Settings for ReplicatorSettings {
    fn common(&self) -> CommonSettings {
        CommonSettings {
            nats: self.nats.clone(),
            admin: self.admin.clone(),
            log: self.log.clone(),
            telemetry: self.telemetry.clone(),
        }
    }

    fn instance(&self) -> String {
        self.region.as_ref().map(ToString::to_string).unwrap_or_default()
    }

    fn docs(key: &str) -> Option<&'static str> {
        docs_of::<ReplicatorSettings>("", key)
    }

    fn check(&self) -> Result<(), (String, String)> {
        if self.region.is_none() {
            return Err(("region".into(), "the region whose bus it is on is needed".into()));
        }
        Ok(())
    }
}
