//! libFuzzer around the target that the environment names. It reads the command line itself.
#![no_main]

use std::sync::OnceLock;

use fuzz::{TARGETS, Target, VARIABLE};
use libfuzzer_sys::fuzz_target;

static TARGET: OnceLock<&Target> = OnceLock::new();

fuzz_target!(|data: &[u8]| {
    let target = TARGET.get_or_init(|| {
        let name = std::env::var(VARIABLE).unwrap_or_default();
        let target = TARGETS.iter().find(|target| target.name == name);
        target.unwrap_or_else(|| panic!("{VARIABLE} names no target: {name:?}"))
    });
    (target.run)(data);
});
