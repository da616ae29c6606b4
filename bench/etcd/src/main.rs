//! The load generator and the floor of the etcd benches.
fn main() {}
