//! Quantities with a range.

use serde::{Deserialize, Serialize};

/// A relative share: 0 to 1000. Zero takes no traffic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u16", into = "u16")]
pub struct Weight(u16);

impl Weight {
    /// The largest weight.
    pub const MAX: Weight = Weight(1000);

    /// The weight `value`, or nothing when it is above 1000.
    pub fn new(value: u16) -> Option<Weight> {
        (value <= Self::MAX.0).then_some(Weight(value))
    }

    /// The weight as a number, 0 to 1000.
    pub fn get(self) -> u16 {
        self.0
    }
}

impl TryFrom<u16> for Weight {
    type Error = String;
    fn try_from(value: u16) -> Result<Self, String> {
        Weight::new(value).ok_or_else(|| format!("a weight is 0 to 1000, not {value}"))
    }
}

impl From<Weight> for u16 {
    fn from(weight: Weight) -> u16 {
        weight.0
    }
}

/// A location on Earth in millionths of a degree, so that equal locations are equal bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Location {
    /// Millionths of a degree, -90,000,000 to 90,000,000; north is positive.
    latitude: i32,
    /// Millionths of a degree, -180,000,000 to 180,000,000; east is positive.
    longitude: i32,
}

impl Location {
    /// The location at `latitude` and `longitude` in degrees, or nothing when one is out of range or not a number.
    pub fn from_degrees(latitude: f64, longitude: f64) -> Option<Location> {
        let inside = (-90.0..=90.0).contains(&latitude) && (-180.0..=180.0).contains(&longitude);
        inside.then(|| Location {
            latitude: (latitude * 1e6).round() as i32,
            longitude: (longitude * 1e6).round() as i32,
        })
    }

    /// The great-circle distance to `other` in metres, rounded (haversine on a sphere of radius 6,371,000 m).
    pub fn distance_metres(self, other: Location) -> u32 {
        let radians = |millionths: i32| (f64::from(millionths) / 1e6).to_radians();
        let (lat1, lat2) = (radians(self.latitude), radians(other.latitude));
        let half_lat = (lat2 - lat1) / 2.0;
        let half_lon = radians(other.longitude) / 2.0 - radians(self.longitude) / 2.0;
        let a = half_lat.sin().powi(2) + lat1.cos() * lat2.cos() * half_lon.sin().powi(2);
        (2.0 * 6_371_000.0 * a.sqrt().min(1.0).asin()).round() as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distance_from_dublin_to_ashburn_is_about_5500_km() {
        let dublin = Location::from_degrees(53.3, -6.3).unwrap();
        let ashburn = Location::from_degrees(38.9, -77.4).unwrap();
        let km = dublin.distance_metres(ashburn) / 1000;
        assert!((5400..5550).contains(&km), "{km}");
    }

    #[test]
    fn locations_outside_the_globe_are_refused() {
        assert_eq!(Location::from_degrees(91.0, 0.0), None);
        assert_eq!(Location::from_degrees(f64::NAN, 0.0), None);
    }
}
