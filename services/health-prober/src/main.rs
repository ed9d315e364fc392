//! The `health-prober` binary.
fn main() {}
