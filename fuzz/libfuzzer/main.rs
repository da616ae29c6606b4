//! libFuzzer's way to the target that this program is named after.

#![no_main]

use dhow_fuzz::Target;
use libfuzzer_sys::fuzz_target;
use std::cell::RefCell;

thread_local! {
    static TARGET: RefCell<Box<dyn Target>> = RefCell::new(
        dhow_fuzz::target(env!("CARGO_BIN_NAME")).expect("the target is made"),
    );
}

fuzz_target!(|bytes: &[u8]| {
    let done = TARGET.with_borrow_mut(|target| target.take(bytes));
    if let Err(wrong) = done {
        panic!("{wrong}");
    }
});
