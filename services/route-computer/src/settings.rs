//! The route-computer's settings.

use std::{path::PathBuf, time::Duration};

use documented::DocumentedFields;
use serde::{Deserialize, Serialize};
use tidegate_model::{HolderName, RegionName};
use tidegate_routing::Damping;
use tidegate_service::{
    CommonSettings, Settings,
    settings::{AdminSection, LogSection, NatsSection, TelemetrySection, docs_of, duration},
};

/// The route-computer's settings.
#[derive(Debug, Clone, Default, Serialize, Deserialize, DocumentedFields)]
#[serde(default, deny_unknown_fields)]
pub struct RouteComputerSettings {
    /// Who it is and how it decides.
    pub computer: ComputerSection,
    /// How to reach the bus.
    pub nats: NatsSection,
    /// The admin listener.
    pub admin: AdminSection,
    /// The log.
    pub log: LogSection,
    /// Traces and metrics by OTLP.
    pub telemetry: TelemetrySection,
}

/// Who a route-computer is and how it decides.
#[derive(Debug, Clone, Serialize, Deserialize, DocumentedFields)]
#[serde(default, deny_unknown_fields)]
pub struct ComputerSection {
    /// The region whose table it computes.
    pub region: Option<RegionName>,
    /// Its name, which no other route-computer of the region has.
    pub name: Option<HolderName>,
    /// Over what time a cluster that comes back regains its whole share. All of a region need the same.
    #[serde(with = "duration")]
    pub slow_start: Duration,
    /// How endpoints that flap are held out. All of a region need the same.
    pub damping: DampingSection,
    /// The private key with which it signs the region's table and lease, as `tidegate signing-key` makes one. Needed where the
    /// fleet names keys for the region.
    pub signing_key: Option<PathBuf>,
    /// The most requests per second that one edge is believed to be asked for: about what the largest edge can carry. All of a
    /// region need the same.
    pub edge_capacity: u32,
    /// How long it listens after its start, at most, before it seeks to lead: until then it may know less than who leads.
    #[serde(with = "duration")]
    pub warm_up: Duration,
}

impl Default for ComputerSection {
    fn default() -> Self {
        ComputerSection {
            region: None,
            name: None,
            slow_start: Duration::from_secs(30),
            damping: DampingSection::default(),
            signing_key: None,
            edge_capacity: 200_000,
            warm_up: Duration::from_secs(3),
        }
    }
}

/// How an endpoint that flaps is held out: the time doubles with each return, the first of which is never held.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, DocumentedFields)]
#[serde(default, deny_unknown_fields)]
pub struct DampingSection {
    /// How long the second return is held. Zero: nothing is ever held.
    #[serde(with = "duration")]
    pub first_hold: Duration,
    /// The longest hold.
    #[serde(with = "duration")]
    pub longest_hold: Duration,
    /// The time of steady passing that forgives one flap.
    #[serde(with = "duration")]
    pub forgiven_after: Duration,
}

impl Default for DampingSection {
    fn default() -> Self {
        let Damping { first_hold, longest_hold, forgiven_after } = Damping::default();
        DampingSection { first_hold, longest_hold, forgiven_after }
    }
}

impl DampingSection {
    /// As the engine takes it.
    pub fn damping(&self) -> Damping {
        let DampingSection { first_hold, longest_hold, forgiven_after } = *self;
        Damping { first_hold, longest_hold, forgiven_after }
    }
}

impl Settings for RouteComputerSettings {
    fn common(&self) -> CommonSettings {
        CommonSettings {
            nats: self.nats.clone(),
            admin: self.admin.clone(),
            log: self.log.clone(),
            telemetry: self.telemetry.clone(),
        }
    }

    fn instance(&self) -> String {
        let part = |part: Option<String>| part.unwrap_or_else(|| "unnamed".to_owned());
        let region = part(self.computer.region.as_ref().map(ToString::to_string));
        let name = part(self.computer.name.as_ref().map(ToString::to_string));
        format!("{region}/{name}")
    }

    fn docs(key: &str) -> Option<&'static str> {
        docs_of::<ComputerSection>("computer", key)
            .or_else(|| docs_of::<DampingSection>("computer.damping", key))
    }

    fn check(&self) -> Result<(), (String, String)> {
        if self.computer.region.is_none() {
            return Err(("computer.region".into(), "the region whose table it computes is needed".into()));
        }
        if self.computer.name.is_none() {
            let problem = "a name that no other route-computer of the region has is needed";
            return Err(("computer.name".into(), problem.into()));
        }
        Ok(())
    }
}
