//! bench.

pub fn run() {}
