//! Bodies of messages on the bus, of every type that travels, snapshots among them.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| tidegate_bus::fuzzing::check_body(input));
