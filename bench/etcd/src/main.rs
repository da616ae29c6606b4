//! The load generator and the floor of the etcd benches.
//!
//! `cargo xtask bench etcd` runs it; each subcommand prints one line of JSON.

mod diff;
mod fill;
mod floor;
mod histogram;
mod load;
mod process;
mod start;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// Load for servers of etcd's protocol, and the bare server that they are measured against.
#[derive(Debug, Parser)]
#[command(name = "bench-etcd", max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Put one kind of load on a server and print rates, latencies and the server's CPU time
    Load(load::Options),
    /// Write many keys
    Fill(fill::Options),
    /// Serve the protocol with nothing behind it
    Floor(floor::Options),
    /// Start a server, tell how long it took to the first put, and stop it
    Start(start::Options),
    /// Send the same random requests to two servers and compare the answers
    Diff(diff::Options),
}

#[tokio::main]
async fn main() -> ExitCode {
    let done = match Cli::parse().task {
        Task::Load(options) => load::run(options).await,
        Task::Fill(options) => fill::run(&options).await,
        Task::Floor(options) => floor::run(&options).await,
        Task::Start(options) => start::run(&options).await,
        Task::Diff(options) => diff::run(&options).await,
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
