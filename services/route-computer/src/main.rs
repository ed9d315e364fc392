//! The `route-computer` binary.
fn main() {}
