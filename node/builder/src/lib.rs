//! Dockerfile to image.
//!
//! [`build`] reads a Dockerfile ([`syntax`], [`instruction`]), picks the stages that the target
//! needs, and works through their steps: each one either changes the configuration, or makes a layer
//! in a scratch overlay that is then moved into the image store. Nothing is mounted where others see
//! it: the overlays are detached mounts that end with this process. A step whose inputs were seen
//! before takes its layer from the [`cache`].
//!
//! Follows the Dockerfile reference of Docker and, where that is silent, what BuildKit does.

mod apply;
mod build;
mod cache;
mod config;
mod copy;
mod expand;
mod instruction;
mod pattern;
mod run;
mod scratch;
mod stages;
mod steps;
mod syntax;
mod transfer;
mod tree;
mod users;

pub use build::{build, check};

use std::path::PathBuf;
use tokio::sync::watch;

/// What to build.
#[derive(Debug, Clone)]
pub struct Options {
    /// The directory from which `COPY` and `ADD` take files.
    pub context: PathBuf,
    /// The Dockerfile; `None` for `Dockerfile` in the context.
    pub dockerfile: Option<PathBuf>,
    /// Names for the image; may be empty.
    pub names: Vec<String>,
    /// Values for `ARG`: `NAME=VALUE`, or `NAME` alone for the value of this process's environment.
    pub arguments: Vec<String>,
    /// The stage to stop at, by name or number; `None` for the last one.
    pub target: Option<String>,
    /// Run every step anew (the results are remembered all the same).
    pub no_cache: bool,
    /// The container runtime for `RUN`; a launcher is started if none runs there, and ended again.
    pub runtime: dhow_runtime::Config,
    /// Turns true when the build shall stop.
    pub stop: watch::Receiver<bool>,
}

/// What happens during a build, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event<'a> {
    /// A step begins (or was found in the cache).
    Step {
        /// Counted from 1.
        number: usize,
        /// Steps in all.
        of: usize,
        /// The instruction on one line.
        text: &'a str,
        /// Its result was known.
        cached: bool,
    },
    /// A command wrote this, as it came.
    Output(&'a [u8]),
    /// Something worth knowing that is no error.
    Warning(&'a str),
}

/// Why a build failed. Nothing is left of it but the layers of the steps before.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Something is wrong with the Dockerfile, or with what a line of it asks for.
    #[error("{file}:{line}: {message}")]
    Dockerfile {
        /// The Dockerfile.
        file: String,
        /// Line, counted from 1.
        line: usize,
        /// What is wrong, and what was expected.
        message: String,
    },
    /// A command of `RUN` failed.
    #[error("{file}:{line}: RUN: {command:?} failed with {}", how(*.code, *.signal))]
    Failed {
        /// The Dockerfile.
        file: String,
        /// Line, counted from 1.
        line: usize,
        /// The command.
        command: String,
        /// Its exit code.
        code: i32,
        /// The signal that ended it; 0 for none.
        signal: i32,
    },
    /// The options make no sense.
    #[error("{0}")]
    Options(String),
    /// The build was told to stop.
    #[error("the build was stopped; no image was made")]
    Stopped,
    /// The image store failed.
    #[error(transparent)]
    Images(#[from] dhow_images::Error),
    /// The container runtime failed.
    #[error(transparent)]
    Runtime(#[from] dhow_runtime::Error),
    /// Input or output failed.
    #[error("{what}: {source}")]
    Io {
        /// What was being done.
        what: String,
        /// What the kernel said.
        source: std::io::Error,
    },
}

fn how(code: i32, signal: i32) -> String {
    match signal {
        0 => format!("exit code {code}"),
        signal => format!("signal {signal}"),
    }
}

impl Error {
    /// For `map_err`: an input or output error while doing `what`.
    fn io<E: Into<std::io::Error>>(what: impl Into<String>) -> impl FnOnce(E) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source: source.into() }
    }
}

/// A line of a Dockerfile, for errors.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Place {
    file: String,
    line: usize,
    /// The instruction, for example `COPY`.
    keyword: String,
}

impl Place {
    fn error(&self, message: impl std::fmt::Display) -> Error {
        let message = format!("{}: {message}", self.keyword);
        Error::Dockerfile { file: self.file.clone(), line: self.line, message }
    }

    /// The place in front of an error that does not name one.
    fn wrap(&self, error: Error) -> Error {
        match error {
            Error::Dockerfile { .. } | Error::Failed { .. } | Error::Stopped => error,
            other => self.error(other),
        }
    }
}

/// The candidate that is spelled most like `word`, if any is close.
fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let limit = match word.chars().count() {
        0..=1 => 0,
        2..=3 => 1,
        length => (length / 3).max(2),
    };
    candidates
        .into_iter()
        .map(|candidate| {
            let close = candidate.starts_with(word) || word.starts_with(candidate);
            (if close && !candidate.is_empty() { 1 } else { distance(word, candidate) }, candidate)
        })
        .filter(|(distance, _)| *distance <= limit)
        .min()
        .map(|(_, candidate)| candidate)
}

/// Edits (insert, delete, replace) between two words.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut corner = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let replaced = corner + usize::from(x != *y);
            corner = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(corner + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_word_is_found_and_far_ones_are_not() {
        let words = ["COPY", "CMD", "ENTRYPOINT", "WORKDIR"];
        assert_eq!(nearest("COYP", words), Some("COPY"));
        assert_eq!(nearest("ENTRYPIONT", words), Some("ENTRYPOINT"));
        assert_eq!(nearest("BANANA", words), None);
        assert_eq!(nearest("app.bin", ["app", "lib"]), Some("app"));
    }
}
