//! The description of a binary.

/// The name, purpose and version of a binary.
#[derive(Debug, Clone, Copy)]
pub struct Description {
    /// Its name, such as `tidegate-proxy`.
    pub name: &'static str,
    /// What it does, in one sentence.
    pub about: &'static str,
    /// Its version.
    pub version: &'static str,
}
