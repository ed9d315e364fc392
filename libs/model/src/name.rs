//! Names of things in the fleet. Each is a token that is also safe in a bus subject, a metric label and a path.

use std::{fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Serialize};

/// The longest name, in bytes (the limit of a DNS label, so that a name can become one).
pub const MAX_NAME_LENGTH: usize = 63;

/// Why a string is not a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// The string is empty.
    #[error("a name must not be empty")]
    Empty,
    /// The string is longer than [`MAX_NAME_LENGTH`].
    #[error("a name has at most {MAX_NAME_LENGTH} characters, this one has {0}")]
    TooLong(usize),
    /// The string holds a character that a name must not hold.
    #[error("a name is made of letters, digits, '-' and '_', not {0:?}")]
    Character(char),
}

fn check(text: &str) -> Result<(), NameError> {
    if text.is_empty() {
        return Err(NameError::Empty);
    }
    if let Some(bad) = text.chars().find(|c| !(c.is_ascii_alphanumeric() || matches!(c, '-' | '_'))) {
        return Err(NameError::Character(bad));
    }
    if text.len() > MAX_NAME_LENGTH {
        return Err(NameError::TooLong(text.len()));
    }
    Ok(())
}

macro_rules! names {
    ($($(#[$doc:meta])* $name:ident;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(Arc<str>);

        impl $name {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl TryFrom<String> for $name {
            type Error = NameError;
            fn try_from(text: String) -> Result<Self, NameError> {
                text.parse()
            }
        }
        impl FromStr for $name {
            type Err = NameError;
            fn from_str(text: &str) -> Result<Self, NameError> {
                check(text)?;
                Ok(Self(text.into()))
            }
        }
        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0.to_string()
            }
        }
        impl std::borrow::Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    )*};
}

names! {
    /// A region: a failure domain with its own edges, probers, route-computers and bus servers.
    RegionName;
    /// A workload cluster.
    ClusterName;
    /// An edge proxy instance.
    EdgeName;
    /// A service that edges forward.
    ServiceName;
    /// A listener of an edge.
    ListenerName;
    /// A reachability label: an edge reaches an endpoint directly when both are on the same network.
    NetworkName;
    /// A health-prober instance, unique in its region.
    ProberName;
    /// A route-computer instance, unique in its region: the holder of the region's lease.
    HolderName;
    /// A replicator instance, unique in its region.
    ReplicatorName;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_safe_in_a_bus_subject() {
        assert!("us-east-1".parse::<ClusterName>().is_ok());
        assert_eq!("a.b".parse::<ClusterName>(), Err(NameError::Character('.')));
        assert_eq!("a b".parse::<ClusterName>(), Err(NameError::Character(' ')));
        assert_eq!("".parse::<ClusterName>(), Err(NameError::Empty));
        assert_eq!("x".repeat(64).parse::<ClusterName>(), Err(NameError::TooLong(64)));
    }
}
