//! Compiles the protos with protox, so that no protoc is needed.

use prost::Message as _;
use std::path::Path;

const PROTOS: [&str; 6] = [
    "mvccpb/kv.proto",
    "authpb/auth.proto",
    "etcdserverpb/rpc.proto",
    "v3electionpb/election.proto",
    "v3lockpb/lock.proto",
    "grpc/health/v1/health.proto",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(PROTOS, ["proto"])?;
    // Whoever reads the descriptors at run time needs no comments.
    let mut bare = descriptors.clone();
    for file in &mut bare.file {
        file.source_code_info = None;
    }
    let out = std::env::var("OUT_DIR")?;
    std::fs::write(Path::new(&out).join("etcd.descriptors"), bare.encode_to_vec())?;
    tonic_prost_build::configure().bytes(".").compile_fds(descriptors)?;
    Ok(())
}
