//! Any text as a `config.json`.
#![no_main]

use gristmill_convert::spec_from_config;
use gristmill_fuzz::budget;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    // A layer count is a number of a few digits: up to 4096 layers of a kilobyte each.
    budget::within(data.len() + (64 << 10), 128, || {
        let Ok(spec) = spec_from_config(data) else { return };
        spec.validate().expect("an imported description is valid");
        assert!(spec.parameter_count() > 0);
        let json = serde_json::to_vec(&spec).expect("a description is JSON");
        let again: gristmill_formats::model::ModelSpec =
            serde_json::from_slice(&json).expect("and reads back");
        assert_eq!(again, spec);
    });
});
