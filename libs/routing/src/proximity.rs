//! The proximity of regions.

use std::fmt;

use serde::{Deserialize, Serialize};
use tidegate_model::{RegionName, fleet::Fleet};

/// The proximity of two regions. The nearest is the smallest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Proximity {
    /// The one-way latency, configured or estimated, in microseconds; the largest number if nothing is known.
    pub latency_us: u64,
    /// The source of the latency.
    pub basis: ProximityBasis,
}

/// The source of a proximity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProximityBasis {
    /// Both are the same region.
    SameRegion,
    /// The latency in the fleet file.
    Latency,
    /// The great-circle distance.
    Distance,
    /// Nothing is known.
    Unknown,
}

/// Metres of great-circle distance per microsecond of one-way latency: light in fibre goes 200 m, and fibre is about
/// twice as long as the great circle. It matters only if some latencies are configured and others are not.
const METRES_PER_US: u64 = 100;

impl Proximity {
    /// The proximity of region `to` to region `from`. A latency that is configured for one direction counts for both.
    pub(crate) fn between(fleet: &Fleet, from: &RegionName, to: &RegionName) -> Proximity {
        if from == to {
            return Proximity { latency_us: 0, basis: ProximityBasis::SameRegion };
        }
        let (here, there) = (fleet.regions.get(from), fleet.regions.get(to));
        let latency = here
            .and_then(|region| region.latency.get(to))
            .or_else(|| there.and_then(|region| region.latency.get(from)));
        if let Some(latency) = latency {
            let latency_us = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
            return Proximity { latency_us, basis: ProximityBasis::Latency };
        }
        let location = here.and_then(|region| region.location).zip(there.and_then(|region| region.location));
        match location {
            Some((here, there)) => Proximity {
                latency_us: u64::from(here.distance_metres(there)) / METRES_PER_US,
                basis: ProximityBasis::Distance,
            },
            None => Proximity { latency_us: u64::MAX, basis: ProximityBasis::Unknown },
        }
    }
}

impl fmt::Display for Proximity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.basis {
            ProximityBasis::SameRegion => f.write_str("same region"),
            ProximityBasis::Latency => write!(f, "{:.1} ms", self.latency_us as f64 / 1e3),
            ProximityBasis::Distance => write!(f, "{} km", self.latency_us * METRES_PER_US / 1000),
            ProximityBasis::Unknown => f.write_str("distance unknown"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tidegate_model::{fleet::Region, unit::Location};

    use super::*;

    #[test]
    fn a_configured_latency_takes_precedence_over_distance_in_both_directions() {
        let name = |name: &str| name.parse::<RegionName>().unwrap();
        let region = |latitude, longitude| Region {
            location: Location::from_degrees(latitude, longitude),
            ..Region::default()
        };
        let mut fleet = Fleet::default();
        fleet.regions.insert(name("ashburn"), region(38.9, -77.4));
        fleet.regions.insert(name("dublin"), region(53.3, -6.3));
        fleet.regions.insert(name("nowhere"), Region::default());
        let between = |fleet: &Fleet, from: &str, to: &str| Proximity::between(fleet, &name(from), &name(to));

        assert_eq!(between(&fleet, "dublin", "dublin").to_string(), "same region");
        assert_eq!(between(&fleet, "dublin", "ashburn").basis, ProximityBasis::Distance);
        assert_eq!(between(&fleet, "dublin", "ashburn").to_string(), "5464 km");
        assert_eq!(between(&fleet, "dublin", "nowhere").to_string(), "distance unknown");

        let latency = Duration::from_micros(34_500);
        fleet.regions.get_mut("dublin").unwrap().latency.insert(name("ashburn"), latency);
        assert_eq!(between(&fleet, "dublin", "ashburn").to_string(), "34.5 ms");
        assert_eq!(between(&fleet, "ashburn", "dublin").latency_us, 34_500);
    }
}
