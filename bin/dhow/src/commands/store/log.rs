//! Log lines in etcd's form, so that what reads etcd's logs reads these.
//!
//! A line is a JSON object with `level`, `ts`, `caller` and `msg` before its fields; on a terminal
//! (unless the program is called etcd), and with `--log-format=console`, it is text for people.

use super::flags::Values;
use anyhow::{Context, Result, bail};
use std::fmt::{self, Write as _};
use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::sync::{Arc, Mutex, PoisonError};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, MakeWriter};
use tracing_subscriber::registry::LookupSpan;

/// Starts the log as the flags say. What is started as `etcd` (`program` says so) is read by what
/// reads etcd's logs, also on a terminal; people get text.
///
/// # Errors
/// When a level is not known or a file cannot be opened.
pub fn start(program: &str, values: &Values) -> Result<()> {
    let level = match values.text("log-level") {
        _ if values.bool("debug") => "debug",
        level @ ("debug" | "info" | "warn" | "error") => level,
        "panic" | "dpanic" | "fatal" => "error",
        other => {
            bail!("unrecognized level: {other:?}; --log-level must be debug, info, warn or error")
        }
    };
    let outputs = Outputs::open(&values.list("log-outputs"))?;
    let people = match values.is_given("log-format") {
        true => values.text("log-format") == "console",
        false => outputs.terminal && !super::is_etcd(program),
    };
    // What the libraries below say of themselves is for those who look for it.
    let filter = EnvFilter::try_from_env("DHOW_LOG")
        .unwrap_or_else(|_| EnvFilter::new(format!("{level},hyper=warn,rustls=warn")));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(outputs.clone());
    if people {
        builder.with_ansi(outputs.terminal).init();
    } else {
        builder.event_format(Json).init();
    }
    Ok(())
}

/// Where lines go.
#[derive(Clone)]
struct Outputs {
    targets: Arc<Vec<Target>>,
    terminal: bool,
}

enum Target {
    Stderr,
    Stdout,
    File(Mutex<File>),
}

impl Outputs {
    fn open(names: &[String]) -> Result<Self> {
        let mut targets = Vec::new();
        for name in names {
            targets.push(match name.as_str() {
                // The journal reads standard error.
                "default" | "stderr" | "systemd/journal" => Target::Stderr,
                "stdout" => Target::Stdout,
                path => {
                    let file = File::options().create(true).append(true).open(path);
                    let file = file.with_context(|| {
                        format!("cannot open {path} for --log-outputs: choose a file that can be written")
                    })?;
                    Target::File(Mutex::new(file))
                }
            });
        }
        let terminal = targets.iter().all(|target| match target {
            Target::Stderr => io::stderr().is_terminal(),
            Target::Stdout => io::stdout().is_terminal(),
            Target::File(_) => false,
        });
        Ok(Self { targets: Arc::new(targets), terminal })
    }
}

impl<'a> MakeWriter<'a> for Outputs {
    type Writer = Self;
    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

impl Write for Outputs {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        for target in self.targets.iter() {
            // A full disk or a closed pipe must not stop the store.
            let _ = match target {
                Target::Stderr => io::stderr().write_all(line),
                Target::Stdout => io::stdout().write_all(line),
                Target::File(file) => {
                    file.lock().unwrap_or_else(PoisonError::into_inner).write_all(line)
                }
            };
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// etcd's form.
struct Json;

impl<S, N> FormatEvent<S, N> for Json
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut out: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let level = match *event.metadata().level() {
            Level::ERROR => "error",
            Level::WARN => "warn",
            Level::INFO => "info",
            Level::DEBUG | Level::TRACE => "debug",
        };
        write!(out, r#"{{"level":"{level}","ts":""#)?;
        SystemTime.format_time(&mut out)?;
        let mut fields = Fields::default();
        event.record(&mut fields);
        let caller = text(event.metadata().target());
        writeln!(out, r#"","caller":{caller},"msg":{}{}}}"#, text(&fields.message), fields.rest)
    }
}

#[derive(Default)]
struct Fields {
    message: String,
    rest: String,
}

impl Fields {
    fn add(&mut self, field: &Field, value: &str) {
        let _ = write!(self.rest, ",{}:{value}", text(&field.name().replace('_', "-")));
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            self.message = format!("{value:?}");
        } else {
            self.add(field, &text(&format!("{value:?}")));
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            value.clone_into(&mut self.message);
        } else {
            self.add(field, &text(value));
        }
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.add(field, &value.to_string());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.add(field, &value.to_string());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.add(field, &value.to_string());
    }
}

/// A JSON text.
fn text(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_one_object_in_etcds_form() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log").display().to_string();
        let outputs = Outputs::open(std::slice::from_ref(&path)).unwrap();
        let subscriber = tracing_subscriber::fmt().event_format(Json).with_writer(outputs).finish();
        tracing::subscriber::with_default(subscriber, || {
            tracing::warn!(data_dir = "a\"b", count = 3, fine = true, "it's {}", "so");
        });
        let written = std::fs::read_to_string(path).unwrap();
        let line: serde_json::Value = serde_json::from_str(written.trim_end()).unwrap();
        assert_eq!(line["level"], "warn");
        assert_eq!(line["msg"], "it's so");
        assert_eq!(line["data-dir"], "a\"b");
        assert_eq!((&line["count"], &line["fine"]), (&3.into(), &true.into()));
        assert!(line["ts"].as_str().unwrap().ends_with('Z'));
        assert!(written.ends_with('\n') && written.lines().count() == 1);
    }

    #[test]
    fn unknown_levels_and_unwritable_files_are_refused() {
        let values = Values::parse(&["--log-level=loud".into()]).unwrap();
        assert!(start("etcd", &values).unwrap_err().to_string().contains("unrecognized level"));
        assert!(Outputs::open(&["/nowhere/at/all".into()]).is_err());
    }
}
