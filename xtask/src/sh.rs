//! Running other programs, with errors that say what, where and what to do.

use anyhow::{Context as _, Result, bail};
use std::process::{Command, Stdio};

/// The command as a person would type it.
pub fn line(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
}

/// Runs a command whose output the person sees.
///
/// # Errors
/// When it cannot start or does not end with success.
pub fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| cannot(command))?;
    if !status.success() {
        bail!("{}: {status}; see its output above", line(command));
    }
    Ok(())
}

/// Runs a command and returns what it printed.
///
/// # Errors
/// When it cannot start or does not end with success: with the last lines of its standard error.
pub fn output(command: &mut Command) -> Result<String> {
    let done = command.stdin(Stdio::null()).output().with_context(|| cannot(command))?;
    finish(command, &done)
}

/// As [`output`], with `input` on its standard input.
///
/// # Errors
/// As [`output`].
pub fn output_with(command: &mut Command, input: &str) -> Result<String> {
    use std::io::Write as _;
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| cannot(command))?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin
            .write_all(input.as_bytes())
            .with_context(|| format!("{} does not read", line(command)))?;
    }
    let done = child.wait_with_output()?;
    finish(command, &done)
}

fn cannot(command: &Command) -> String {
    let program = command.get_program().to_string_lossy();
    format!("cannot run {program}: is it installed and on the PATH?")
}

fn finish(command: &Command, done: &std::process::Output) -> Result<String> {
    if !done.status.success() {
        let text = String::from_utf8_lossy(&done.stderr);
        let lines: Vec<&str> = text.trim().lines().collect();
        let tail = lines[lines.len().saturating_sub(12)..].join("\n");
        bail!("{}: {}: {tail}", line(command), done.status);
    }
    Ok(String::from_utf8_lossy(&done.stdout).into_owned())
}

/// Refuses to go on unless this is root.
///
/// # Errors
/// When it is not.
pub fn must_be_root(what: &str) -> Result<()> {
    if rustix::process::geteuid().is_root() {
        return Ok(());
    }
    bail!("{what} needs root, for namespaces, mounts and networks: run it as root")
}
