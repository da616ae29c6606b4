//! Unmodified clients: each command of etcdctl in three releases, etcd3gw over JSON, and a program
//! with the Rust crate etcd-client, on a real etcd and on dhow; what they print is compared.

use super::{Against, Outcome, known, logs};
use crate::bench::etcd::{Kind, Programs, Server, ports};
use crate::tools::debian;
use crate::tools::etcd::{self as tools, Etcd};
use crate::{sh, workspace};
use anyhow::{Context as _, Result};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

/// The commands, one a line; how they are read is told there.
const SCRIPT: &str = include_str!("commands.txt");
/// What etcd3gw does.
const GATEWAY: &str = include_str!("gateway.py");
/// A program with etcd-client.
const PACKAGE: &str = "xtask/etcd-client/Cargo.toml";

/// Runs it.
///
/// # Errors
/// When a server does not start. Output that differs is in the outcome.
pub fn run(against: Against, quick: bool) -> Result<Outcome> {
    let start = Instant::now();
    let programs = Programs::get()?;
    let folder = logs("clients", against)?;
    let releases: Vec<(&str, Etcd)> = vec![
        ("3.4", tools::debian_release()?),
        ("3.5", tools::distro()?),
        ("newest", tools::newest()?),
    ];
    // The short run has one release; the commands are the same.
    let skip = if quick { releases.len() - 1 } else { 0 };
    let mut commands = 0;
    let mut problems = Vec::new();
    let mut notes = Vec::new();
    for (release, etcd) in &releases[skip..] {
        let own = match against {
            Against::Dhow => Kind::Dhow,
            Against::Etcd => Kind::Etcd,
        };
        let real = record(&programs, Kind::Etcd, etcd, release, quick)?;
        let own = record(&programs, own, etcd, release, quick)?;
        let mut text = String::new();
        for (step, (real, own)) in real.iter().zip(&own).enumerate() {
            commands += 1;
            if real.told == own.told {
                continue;
            }
            writeln!(text, "## {}\n# etcd:\n{}# here:\n{}", real.line, real.told, own.told)?;
            // A known difference is named by its line's first words.
            let part = format!("clients-{release}");
            let reason = known(&part).find(|(name, _)| *name == real.name);
            match reason {
                Some((name, reason)) => notes.push(format!("{release}: {name} differs: {reason}")),
                None => problems.push(format!("etcdctl {release}, step {step}: {}", real.line)),
            }
        }
        std::fs::write(folder.join(format!("etcdctl-{release}.txt")), text)?;
    }
    for client in [gateway()?, crate_client()?] {
        problems.extend(client.compare(&programs, against, &folder)?);
    }
    Ok(Outcome {
        name: "clients".to_owned(),
        summary: format!(
            "{} of {commands} commands print the same; etcd3gw and etcd-client too unless named; differences in {}",
            commands - problems.len().min(commands),
            folder.display()
        ),
        time: start.elapsed(),
        problems,
        notes,
    })
}

/// One command and what it printed.
struct Step {
    /// For `known.txt`: what stands before the colon.
    name: &'static str,
    line: String,
    told: String,
}

/// Runs the script on a fresh server.
fn record(
    programs: &Programs,
    kind: Kind,
    etcd: &Etcd,
    release: &str,
    quick: bool,
) -> Result<Vec<Step>> {
    let directory = tempfile::tempdir().context("cannot make a temporary directory")?;
    let server = Server::start_on(programs, kind, &directory.path().join("data"), ports())?;
    let second = Server::start_on(programs, kind, &directory.path().join("second"), ports())?;
    let mut lease = String::new();
    let mut steps = Vec::new();
    for line in SCRIPT.lines() {
        let Some((name, rest)) = line.split_once(": ") else { continue };
        if line.starts_with('#') {
            continue;
        }
        // `[3.5 newest]` behind the name: only with these releases; `[slow]`: not in the short run.
        let (name, only) = name.split_once(" [").map_or((name, None), |(n, o)| (n, Some(o)));
        let fits = only.is_none_or(|only| {
            let only = only.trim_end_matches(']');
            (!only.contains("slow") || !quick)
                && (!only.contains(|c: char| c.is_ascii_digit()) && !only.contains("newest")
                    || only.split(' ').any(|word| word == release))
        });
        if !fits {
            continue;
        }
        let (rest, input) = rest.split_once(" << ").unwrap_or((rest, ""));
        let shell = rest
            .replace("$LEASE", &lease)
            .replace("$DIR", &directory.path().display().to_string())
            .replace("$SECOND", &second.endpoint);
        let told = execute(etcd, &server, &shell, &input.replace("\\n", "\n"))?;
        if name == "lease-grant"
            && let Some(id) = told.split_whitespace().nth(1)
        {
            id.clone_into(&mut lease);
        }
        let lease = if lease.is_empty() { "no lease" } else { &lease };
        let told = plain(&told, &[&server.endpoint, &second.endpoint, &server.peer, lease]);
        let told = told.replace(&directory.path().display().to_string(), "DIR");
        steps.push(Step { name, line: rest.to_owned(), told });
    }
    server.stop()?;
    second.stop()?;
    Ok(steps)
}

/// Runs one line; the shell gives it pipes and quotes.
fn execute(etcd: &Etcd, server: &Server, line: &str, input: &str) -> Result<String> {
    let path = std::env::var("PATH").unwrap_or_default();
    let bin = |program: &Path| program.parent().map(PathBuf::from).unwrap_or_default();
    let mut command = Command::new("timeout");
    command.args(["-s", "INT", "100", "sh", "-c", line]);
    command.env("PATH", format!("{}:{path}", bin(&etcd.etcdctl).display()));
    command.env("ETCDCTL_API", "3").env("ETCDCTL_ENDPOINTS", &server.endpoint);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().context("cannot run timeout")?;
    if let Some(mut stdin) = child.stdin.take() {
        use std::io::Write as _;
        // Who does not read its input may have ended already.
        let _ = stdin.write_all(input.as_bytes());
    }
    let done = child.wait_with_output()?;
    let (out, err) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    let code = done.status.code().unwrap_or(-1);
    Ok(format!("{out}{}exit {code}\n", diagnosis(&err)))
}

/// Standard error without the client's own log lines, which carry times.
fn diagnosis(text: &str) -> String {
    let mut plain = String::new();
    for line in text.lines() {
        if !line.starts_with('{') && !line.starts_with("Error: context deadline exceeded") {
            // The oldest release puts the time before its messages.
            let timed = line.starts_with("20") && line.split(' ').nth(2) == Some("C");
            let rest = if timed { line.splitn(3, ' ').nth(2).unwrap_or(line) } else { line };
            plain.push_str(rest);
            plain.push('\n');
        }
    }
    plain
}

/// What cannot be the same is replaced: addresses, identifiers, durations, sizes.
fn plain(text: &str, names: &[&str]) -> String {
    let mut text = text.to_owned();
    for name in names {
        text = text.replace(name, "NAME").replace(name.trim_start_matches("http://"), "NAME");
    }
    let mut plain = String::with_capacity(text.len());
    let mut word = String::new();
    for c in text.chars().chain(['\0']) {
        if c.is_ascii_alphanumeric() || c == '.' || c == 'µ' {
            word.push(c);
            continue;
        }
        plain.push_str(&replaced(&word));
        word.clear();
        if c != '\0' {
            plain.push(c);
        }
    }
    plain
}

fn replaced(word: &str) -> String {
    if let Some(word) = word.strip_suffix('.') {
        return replaced(word) + ".";
    }
    let hex = word.chars().all(|c| c.is_ascii_hexdigit());
    if hex && word.len() >= 12 {
        return "ID".to_owned();
    }
    let number = word.trim_end_matches(|c: char| c.is_ascii_alphabetic() || c == 'µ');
    let unit = &word[number.len()..];
    let duration = ["s", "ms", "µs", "ns"].contains(&unit) && number.contains('.');
    if !number.is_empty() && duration && number.parse::<f64>().is_ok() {
        return "TIME".to_owned();
    }
    word.to_owned()
}

/// What etcd3gw's script does.
fn gateway() -> Result<Client> {
    let mut command = Command::new(tools::etcd3gw()?.join("bin/python"));
    command.args(["-c", GATEWAY]);
    Ok(Client { name: "etcd3gw", command })
}

/// The program that uses the crate etcd-client.
fn crate_client() -> Result<Client> {
    debian(&["protobuf-compiler"])?;
    let mut cargo = Command::new("cargo");
    cargo
        .args(["build", "--quiet", "--locked", "--manifest-path"])
        .arg(workspace::root().join(PACKAGE));
    sh::run(&mut cargo).context("the program with the crate etcd-client does not build")?;
    let program = workspace::target().join(workspace::TARGET).join("debug/etcd-client");
    Ok(Client { name: "etcd-client", command: Command::new(program) })
}

/// A program that takes a server's URL, and says `done` when it went to its end.
struct Client {
    name: &'static str,
    /// Without the URL.
    command: Command,
}

impl Client {
    /// Runs it on both servers: the differences.
    fn compare(&self, programs: &Programs, against: Against, folder: &Path) -> Result<Vec<String>> {
        let name = self.name;
        let own = match against {
            Against::Dhow => Kind::Dhow,
            Against::Etcd => Kind::Etcd,
        };
        let mut told = Vec::new();
        for kind in [Kind::Etcd, own] {
            let directory = tempfile::tempdir().context("cannot make a temporary directory")?;
            let server = Server::start_on(programs, kind, &directory.path().join("data"), ports())?;
            let mut command = Command::new(self.command.get_program());
            command.args(self.command.get_args()).arg(&server.endpoint).stdin(Stdio::null());
            let done = command.output().with_context(|| format!("cannot run {name}"))?;
            let text = [&done.stdout[..], &done.stderr[..]].concat();
            told.push(plain(&String::from_utf8_lossy(&text), &[&server.endpoint]));
            server.stop()?;
        }
        std::fs::write(folder.join(format!("{name}.txt")), told.join("\n=== here\n"))?;
        let mut problems: Vec<String> = told[0]
            .lines()
            .zip(told[1].lines())
            .filter(|(real, own)| real != own)
            .map(|(real, own)| format!("{name}: etcd: {real:?}, here: {own:?}"))
            .collect();
        if told[0].lines().count() != told[1].lines().count() {
            problems.push(format!("{name} did not go as far on both"));
        }
        if !told[0].contains("done") {
            problems.push(format!("{name} failed on a real etcd"));
        }
        Ok(problems)
    }
}
