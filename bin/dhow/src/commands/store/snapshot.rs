//! `dhow store snapshot restore`: a new data directory from a snapshot of a store or of etcd.

use std::process::ExitCode;

/// Runs `snapshot ARGUMENTS`.
pub fn main(program: &str, _arguments: &[String]) -> ExitCode {
    eprintln!("{program}: snapshot is not implemented yet");
    ExitCode::FAILURE
}
