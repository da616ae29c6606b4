//! The dhow program: flags, configuration and the wiring of roles; no logic.

mod call;
mod chronicle;
mod cli;
mod client;
mod commands;
mod config;
mod datastore;
mod etcd;
mod files;
mod join;
mod kubernetes_service;
mod member;
mod pki;
mod print;
mod renewal;
mod roles;
mod runtime;
mod servers;
mod token;
mod undo;

use anyhow::Result;
use clap::{CommandFactory, Parser};
use cli::{Cli, Command};
use commands::{config as configuration, containers, images, objects, platform, store};
use rustix::event::{PollFd, PollFlags, Timespec};
use std::io::IsTerminal;
use std::process::ExitCode;

fn main() -> ExitCode {
    // Before anything starts a thread: the launcher clones itself.
    let mut arguments = std::env::args_os();
    if arguments.nth(1).is_some_and(|a| a == "launcher")
        && let (Some(dir), Some(cgroup)) = (arguments.next(), arguments.next())
    {
        return match dhow_runtime::launcher_main(dir.as_ref(), &cgroup.to_string_lossy()) {
            Ok(()) => ExitCode::SUCCESS,
            Err(e) => fail(&e.into()),
        };
    }
    // etcd's flags are Go's and not clap's; a link named `etcd` makes this program one.
    let words: Vec<String> =
        std::env::args_os().map(|word| word.to_string_lossy().into_owned()).collect();
    match words.as_slice() {
        [name, flags @ ..] if store::is_etcd(name) => return store::main("etcd", flags),
        [_, command, flags @ ..] if command == "store" => return store::main("dhow store", flags),
        _ => {}
    }
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(told) => return misused(&told),
    };
    let platform = matches!(cli.command, Command::Up { .. } | Command::Join { .. });
    if !platform {
        end_with_the_reader();
    }
    log(platform);
    let threads = if platform {
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()
    } else {
        tokio::runtime::Builder::new_current_thread().enable_all().build()
    };
    let outcome = match threads {
        Ok(threads) => {
            if platform {
                // While there is one, work that blocks waits for a thread when the machine has no
                // number left for a new one. Without one, asking for it is a panic.
                threads.spawn_blocking(|| {
                    loop {
                        std::thread::park();
                    }
                });
            }
            let outcome = threads.block_on(run(cli.command));
            // A read of the terminal may still be in flight; nobody waits for it.
            threads.shutdown_background();
            outcome
        }
        Err(e) => Err(e.into()),
    };
    match outcome {
        Ok(code) => ExitCode::from(u8::try_from(code.clamp(0, 255)).unwrap_or(1)),
        Err(e) => fail(&e),
    }
}

/// What the shell tells of a program that wrote into a pipe without a reader: 128 and `SIGPIPE`.
const NOBODY_READS: u8 = 141;

/// Whether standard output is a pipe whose reader has gone, as that of `dhow ps | head -1` does.
fn nobody_reads() -> bool {
    let out = rustix::stdio::stdout();
    let mut asked = [PollFd::new(&out, PollFlags::empty())];
    rustix::event::poll(&mut asked, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).is_ok()
        && asked[0].revents().contains(PollFlags::ERR)
}

/// Makes a print that nobody reads end this process without a word instead of a panic's.
fn end_with_the_reader() {
    let tell = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if nobody_reads() {
            std::process::exit(NOBODY_READS.into());
        }
        tell(panic);
    }));
}

/// Prints help and versions as they were asked for, and in one line what was wrong with the command
/// line.
fn misused(told: &clap::Error) -> ExitCode {
    let help = clap::error::ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand;
    if !told.use_stderr() || told.kind() == help {
        let _ = told.print();
        return ExitCode::from(u8::try_from(told.exit_code()).unwrap_or(2));
    }
    // The first paragraph says what is wrong; what follows is found by --help.
    let text = told.render().to_string();
    let what = text.split("\n\n").next().unwrap_or_default().trim_start_matches("error: ");
    let what = what.split_whitespace().collect::<Vec<_>>().join(" ");
    let (mut command, mut path) = (Cli::command(), "dhow".to_owned());
    for word in std::env::args().skip(1) {
        let Some(next) = command.find_subcommand(&word).cloned() else { break };
        command = next;
        path = format!("{path} {word}");
    }
    eprintln!("dhow: {what}; see '{path} --help'");
    ExitCode::from(2)
}

fn fail(error: &anyhow::Error) -> ExitCode {
    let broken = |cause: &(dyn std::error::Error + 'static)| {
        cause
            .downcast_ref::<std::io::Error>()
            .is_some_and(|e| e.kind() == std::io::ErrorKind::BrokenPipe)
    };
    if error.chain().any(broken) && nobody_reads() {
        return ExitCode::from(NOBODY_READS);
    }
    eprintln!("dhow: {}", print::error(error));
    ExitCode::FAILURE
}

/// One line per change of state on standard error; commands other than `up` and `join` say only what
/// is wrong.
fn log(platform: bool) {
    let default = if platform { "info" } else { "error" };
    let filter = tracing_subscriber::EnvFilter::try_from_env("DHOW_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(default));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
}

async fn run(command: Command) -> Result<i32> {
    match command {
        Command::Up { target, flags: _, detach: true } => {
            platform::detached(&target.data_dir, false)?;
        }
        Command::Up { target, flags, detach: false } => {
            platform::foreground(&target.data_dir, &platform::Begin::Up(&flags)).await?;
        }
        Command::Join { target, request: _, detach: true } => {
            platform::detached(&target.data_dir, true)?;
        }
        Command::Join { target, request, detach: false } => {
            platform::foreground(&target.data_dir, &platform::Begin::Join(&request)).await?;
        }
        Command::Token { target } => platform::token(&target)?,
        Command::Down { target, purge } => platform::down(&target.data_dir, purge).await?,
        Command::Env { target } => platform::env(&target)?,
        Command::Status { target, output } => platform::status(&target, output).await?,
        Command::Run(run) => return containers::run(run).await,
        Command::Ps { target, all, output } => containers::ps(&target, all, output).await?,
        Command::Logs { target, follow, tail, namespace, name } => {
            containers::logs(&target, &namespace, &name, follow, tail).await?;
        }
        Command::Exec { target, interactive, tty, namespace, name, command } => {
            return containers::exec(&target, &namespace, &name, &command, interactive, tty).await;
        }
        Command::Rm { target, force, namespace, names } => {
            containers::rm(&target, &namespace, &names, force).await?;
        }
        Command::Apply { target, filename, namespace } => {
            objects::apply(&target, &filename, &namespace).await?;
        }
        Command::Get { target, all_namespaces, namespace, output, resource, name } => {
            let namespace = (!all_namespaces).then_some(namespace.as_str());
            objects::get(&target, namespace, &resource, name.as_deref(), output).await?;
        }
        Command::Describe { target, namespace, resource, name } => {
            objects::describe(&target, &namespace, &resource, name.as_deref()).await?;
        }
        Command::Delete { target, namespace, resource, name } => {
            objects::delete(&target, &namespace, &resource, name.as_deref()).await?;
        }
        Command::Config { place, command } => configuration::run(&place, command).await?,
        Command::Image { command } => images::run(command).await?,
        // Taken before clap read the command line.
        Command::Store { .. } => {}
        Command::Completion { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "dhow", &mut std::io::stdout());
        }
    }
    Ok(0)
}
