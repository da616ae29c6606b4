//! The repository's own tasks: `cargo xtask TASK`.

mod bench;
mod conformance;
mod demo;
mod dist;
mod fuzz;
mod gen_kinds;
mod platform;
mod sh;
mod simulate;
mod space;
mod test;
mod tidy;
mod tools;
mod upstream;
mod vm;
mod workspace;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// The repository's own tasks.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Check the floors, the files' form and limits, and the formatting
    #[command(after_help = "Example: cargo xtask tidy")]
    Tidy,
    /// Build the release binary, print its size, check that it is static and small
    #[command(after_help = "Example: cargo xtask dist")]
    Dist,
    /// Run every test, install what that needs, print one summary line (needs root)
    #[command(after_help = "Example: cargo xtask test --quick")]
    Test {
        /// Leave out the release build, the end-to-end tests and the demo
        #[arg(long)]
        quick: bool,
    },
    /// Show the platform at work: build, start, deploy the shop, scale, roll out, heal (needs root)
    #[command(after_help = "Example: cargo xtask demo && eval \"$(dhow env --data-dir DIR)\"")]
    Demo(demo::Options),
    /// Measure side by side with peers, print ratios, write target/bench/*.json (needs root)
    #[command(after_help = "Example: cargo xtask bench run --rounds 11")]
    Bench(bench::Options),
    /// Turn etcd's own suites, clients and data files on the store (needs root, Go and PyPI)
    #[command(after_help = "Example: cargo xtask conformance etcd --part debian --filter Lease")]
    Conformance(conformance::Options),
    /// Give bad input to everything that reads bytes
    #[command(after_help = "Example: cargo xtask fuzz recovery --coverage --seconds 300")]
    Fuzz(fuzz::Fuzz),
    /// Try the store under simulated crashes and partitions, by seed
    #[command(subcommand)]
    Simulate(simulate::Simulate),
    /// Check limits of containers on a virtual machine with pure cgroup v2 (needs root and Debian)
    #[command(after_help = "Example: cargo xtask vm")]
    Vm,
    /// Derive the table of API types from the published Go modules (needs Go)
    #[command(after_help = "Example: cargo xtask gen-kinds")]
    GenKinds {
        /// Also have the Go library answer the cases of the schema's tests
        #[arg(long)]
        goldens: bool,
    },
    /// Run a command several times and print the milliseconds of each as JSON
    #[command(hide = true)]
    Measure {
        /// How often
        times: u32,
        /// The command and its arguments
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
        command: Vec<String>,
    },
}

fn main() -> ExitCode {
    let done = match Cli::parse().task {
        Task::Tidy => tidy::run(),
        Task::Dist => dist::run(),
        Task::Test { quick } => test::run(quick),
        Task::Demo(options) => demo::run(&options),
        Task::Bench(options) => bench::run(&options),
        Task::Fuzz(options) => fuzz::run(&options),
        Task::Simulate(what) => simulate::run(&what),
        Task::Conformance(options) => conformance::run(&options),
        Task::Vm => vm::run(),
        Task::GenKinds { goldens: _ } => gen_kinds::run(),
        Task::Measure { times, command } => bench::measure(times, &command),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
