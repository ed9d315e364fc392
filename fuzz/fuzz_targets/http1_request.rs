//! See `libs/http1/tests/messages/request.rs`, whose check this runs.
#![no_main]

#[path = "../../libs/http1/tests/messages/model.rs"]
#[allow(dead_code, reason = "each target uses a part of it")]
mod model;
#[path = "../../libs/http1/tests/messages/request.rs"]
mod request;

libfuzzer_sys::fuzz_target!(|input: &[u8]| request::check(input));
