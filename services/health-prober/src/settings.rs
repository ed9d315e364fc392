//! The settings of a health-prober.

use documented::DocumentedFields;
use serde::{Deserialize, Serialize};
use tidegate_model::{NetworkName, ProberName, RegionName};
use tidegate_service::settings::{
    AdminSection, CommonSettings, LogSection, NatsSection, Settings, TelemetrySection, comma_separated,
    docs_of,
};

use crate::core::Limits;

/// The settings of a health-prober.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, DocumentedFields)]
#[serde(default, deny_unknown_fields)]
pub struct ProberSettings {
    /// The region that it probes from.
    pub region: Option<RegionName>,
    /// Its name, unique among the probers of its region.
    pub name: Option<ProberName>,
    /// Its probes.
    pub probes: ProbesSection,
    /// How to reach the bus.
    pub nats: NatsSection,
    /// The admin listener.
    pub admin: AdminSection,
    /// The log.
    pub log: LogSection,
    /// Traces and metrics by OTLP.
    pub telemetry: TelemetrySection,
}

/// The probes of a health-prober.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, DocumentedFields)]
#[serde(default, deny_unknown_fields)]
pub struct ProbesSection {
    /// The most due probes at once. More are due only if many endpoints don't respond.
    pub at_once: usize,
    /// One of so many probes of an endpoint uses a new connection; 1: every probe.
    pub fresh_every: u32,
    /// The networks that this prober can reach; endpoints on others are not probed. Empty: all networks.
    #[serde(deserialize_with = "comma_separated")]
    pub networks: Vec<NetworkName>,
}

impl Default for ProbesSection {
    fn default() -> Self {
        let Limits { at_once, fresh_every, .. } = Limits::default();
        ProbesSection { at_once, fresh_every, networks: Vec::new() }
    }
}

impl ProberSettings {
    /// The limits of the schedule.
    pub fn limits(&self) -> Limits {
        Limits { at_once: self.probes.at_once, fresh_every: self.probes.fresh_every, ..Limits::default() }
    }
}

impl Settings for ProberSettings {
    fn common(&self) -> CommonSettings {
        CommonSettings {
            nats: self.nats.clone(),
            admin: self.admin.clone(),
            log: self.log.clone(),
            telemetry: self.telemetry.clone(),
        }
    }

    fn instance(&self) -> String {
        let (region, name) = (self.region.as_ref(), self.name.as_ref());
        region.zip(name).map(|(region, name)| format!("{region}/{name}")).unwrap_or_default()
    }

    fn docs(key: &str) -> Option<&'static str> {
        docs_of::<ProberSettings>("", key).or_else(|| docs_of::<ProbesSection>("probes", key))
    }

    fn check(&self) -> Result<(), (String, String)> {
        let wrong = |key: &str, right: &str| Err((key.to_owned(), right.to_owned()));
        if self.region.is_none() {
            return wrong("region", "the region of this prober is required, such as eu-west");
        }
        if self.name.is_none() {
            return wrong(
                "name",
                "a name that no other prober of the region has is required, such as prober-1",
            );
        }
        if self.probes.at_once == 0 {
            return wrong("probes.at_once", "at least 1");
        }
        if self.probes.fresh_every == 0 {
            return wrong("probes.fresh_every", "at least 1");
        }
        Ok(())
    }
}
