//! `dhow store`: the store alone, a drop-in for the etcd program.

mod certificates;
mod compaction;
mod corruption;
mod discovery;
mod flags;
mod gates;
mod log;
mod serve;
mod settings;
mod snapshot;
mod srv;
mod table;

use crate::print;
use flags::{Usage, Values};
use settings::Settings;
use std::process::ExitCode;

/// Whether a program of this name is to act as etcd: the last part of `argv[0]`.
pub fn is_etcd(name: &str) -> bool {
    name.rsplit('/').next() == Some("etcd")
}

/// Runs `PROGRAM ARGUMENTS`; returns when the store has ended.
pub fn main(program: &str, arguments: &[String]) -> ExitCode {
    match arguments.first().map(String::as_str) {
        Some("snapshot") => return snapshot::main(program, &arguments[1..]),
        Some(other @ ("gateway" | "grpc-proxy")) => {
            eprintln!("{program}: {other} is not supported: point clients at the members");
            return ExitCode::from(2);
        }
        _ => {}
    }
    if arguments.iter().any(|a| matches!(a.as_str(), "-h" | "--h" | "-help" | "--help")) {
        print!("{}", flags::help(program));
        return ExitCode::SUCCESS;
    }
    let values = match Values::parse(arguments) {
        Ok(values) => values,
        Err(usage) => {
            eprintln!(
                "{usage}\nUsage:\n\n  {program} [flags]\n    Run the store. See {program} --help.\n"
            );
            return ExitCode::from(match usage {
                Usage::Extra(_) => 1,
                Usage::Flag(_) => 2,
            });
        }
    };
    if values.bool("version") {
        print!("{}", version());
        return ExitCode::SUCCESS;
    }
    match start(program, values) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Standard error has it even when the log goes elsewhere or has not begun.
            eprintln!("{program}: {}", print::error(&error));
            ExitCode::FAILURE
        }
    }
}

/// As `etcd --version`, whose first line is what programs look at.
fn version() -> String {
    format!(
        "etcd Version: {}\nGit SHA: dhow {}\nGo Version: none, this is dhow\nGo OS/Arch: linux/{}\n",
        dhow_door_etcd::Config::default().server_version,
        env!("CARGO_PKG_VERSION"),
        match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        }
    )
}

fn start(program: &str, mut values: Values) -> anyhow::Result<()> {
    use anyhow::Context as _;
    let mut notes = Vec::new();
    let file = match values.text("config-file") {
        "" => std::env::var("ETCD_CONFIG_FILE").unwrap_or_default(),
        path => path.to_owned(),
    };
    if file.is_empty() {
        notes.extend(values.environment(std::env::vars_os())?);
    } else {
        let text = std::fs::read_to_string(&file)
            .with_context(|| format!("cannot read the configuration file {file}"))?;
        values = Values::file(&text).with_context(|| format!("in {file}"))?;
        notes.push(format!(
            "loaded server configuration from {file}, other command line flags and environment variables will be ignored"
        ));
    }
    log::start(program, &values)?;
    notes.extend(values.idle());
    for note in notes {
        tracing::warn!("{note}");
    }
    let settings = Settings::new(&values)?;
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let outcome = runtime.block_on(serve::run(settings));
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    if let Err(error) = &outcome {
        tracing::error!("{}", print::error(error));
    }
    outcome
}
