//! See `services/proxy/tests/surface/translation.rs`, whose check this runs.
#![no_main]

#[path = "../../services/proxy/tests/surface/translation.rs"]
mod translation;

libfuzzer_sys::fuzz_target!(|input: &[u8]| translation::check(input));
