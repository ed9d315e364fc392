//! See `libs/http1/tests/messages/chunks.rs`, whose check this runs.
#![no_main]

#[path = "../../libs/http1/tests/messages/model.rs"]
#[allow(dead_code, reason = "each target uses a part of it")]
mod model;
#[path = "../../libs/http1/tests/messages/chunks.rs"]
mod chunks;

libfuzzer_sys::fuzz_target!(|input: &[u8]| chunks::check(input));
