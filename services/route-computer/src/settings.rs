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
    /// Its name, unique among the route-computers of the region.
    pub name: Option<HolderName>,
    /// The region whose table it computes.
    pub region: Option<RegionName>,
    /// How it decides.
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

/// How a route-computer decides.
#[derive(Debug, Clone, Serialize, Deserialize, DocumentedFields)]
#[serde(default, deny_unknown_fields)]
pub struct ComputerSection {
    /// The time in which a cluster that recovered regains its whole share. All route-computers of a region must have the same.
    #[serde(with = "duration")]
    pub slow_start: Duration,
    /// Flap damping: how long endpoints that flap are suppressed. All route-computers of a region must have the same values.
    pub damping: DampingSection,
    /// The file of the private key that signs the region's table and lease, made by `tidegate signing-key`. Required if the
    /// fleet names keys for the region.
    pub signing_key: Option<PathBuf>,
    /// The most requests per second that one edge can plausibly report: about what the largest edge can carry. All
    /// route-computers of a region must have the same.
    pub edge_capacity: u32,
    /// The longest time that it collects observations after its start before it seeks to lead. Until then it may know less
    /// than the leader.
    #[serde(with = "duration")]
    pub warm_up: Duration,
}

impl Default for ComputerSection {
    fn default() -> Self {
        ComputerSection {
            slow_start: Duration::from_secs(30),
            damping: DampingSection::default(),
            signing_key: None,
            edge_capacity: 200_000,
            warm_up: Duration::from_secs(3),
        }
    }
}

/// Flap damping: how long an endpoint that flaps is suppressed. The time doubles with each flap, and the first recovery is
/// never suppressed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, DocumentedFields)]
#[serde(default, deny_unknown_fields)]
pub struct DampingSection {
    /// How long the second recovery is suppressed. Zero turns damping off.
    #[serde(with = "duration")]
    pub first_suppression: Duration,
    /// The longest suppression.
    #[serde(with = "duration")]
    pub longest_suppression: Duration,
    /// The time of uninterrupted passing that forgives one flap.
    #[serde(with = "duration")]
    pub forgiven_after: Duration,
}

impl Default for DampingSection {
    fn default() -> Self {
        let Damping { first_suppression, longest_suppression, forgiven_after } = Damping::default();
        DampingSection { first_suppression, longest_suppression, forgiven_after }
    }
}

impl DampingSection {
    /// The damping of the engine.
    pub fn damping(&self) -> Damping {
        let DampingSection { first_suppression, longest_suppression, forgiven_after } = *self;
        Damping { first_suppression, longest_suppression, forgiven_after }
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
        let region = part(self.region.as_ref().map(ToString::to_string));
        let name = part(self.name.as_ref().map(ToString::to_string));
        format!("{region}/{name}")
    }

    fn docs(key: &str) -> Option<&'static str> {
        docs_of::<RouteComputerSettings>("", key)
            .or_else(|| docs_of::<ComputerSection>("computer", key))
            .or_else(|| docs_of::<DampingSection>("computer.damping", key))
    }

    fn check(&self) -> Result<(), (String, String)> {
        if self.region.is_none() {
            return Err(("region".into(), "the region whose table it computes is required".into()));
        }
        if self.name.is_none() {
            let problem = "a name that no other route-computer of the region has is required";
            return Err(("name".into(), problem.into()));
        }
        Ok(())
    }
}
