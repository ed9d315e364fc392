//! Fleet files: each is understood or refused with places that are in it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tidegate_model::fleet::Fleet;

fuzz_target!(|input: &[u8]| {
    let Ok(text) = std::str::from_utf8(input) else { return };
    if let Err(errors) = Fleet::parse(text, "fleet.yaml") {
        let said = errors.to_string();
        assert!(!said.is_empty(), "refused without a reason");
    }
});
