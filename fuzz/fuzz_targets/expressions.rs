//! Reads arbitrary text as a filter expression: it must not crash, and must give a reason for what it refuses.

#![no_main]

use libfuzzer_sys::fuzz_target;
use tcpinspect::filter::expr::Expression;

fuzz_target!(|text: &str| {
    match Expression::new(text) {
        Ok(expression) => {
            for (_, value) in expression.describe() {
                assert!(!value.is_empty(), "{text:?}");
            }
        }
        Err(failure) => assert!(!format!("{:#}", failure.error).is_empty(), "{text:?}"),
    }
});
