//! The dhow program.
fn main() {}
