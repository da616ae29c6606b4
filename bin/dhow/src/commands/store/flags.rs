//! Reads flags as Go's flag package does, `ETCD_*` variables, and etcd's configuration file.

use super::table::{Effect, Flag, GROUPS, Kind, find};
use anyhow::{Context, Result, anyhow, bail};
use dhow_peers::Address;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::time::Duration;

/// Wrong usage of the command line.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Usage {
    /// A flag is wrong.
    #[error("{0}")]
    Flag(String),
    /// Something follows that is no flag.
    #[error("{0:?} is not a valid flag")]
    Extra(String),
}

/// What was given, by flag; whatever was not has its default.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Values {
    given: BTreeMap<&'static str, String>,
}

impl Values {
    /// Reads a command line: `-flag value`, `--flag=value`, `--switch`.
    ///
    /// # Errors
    /// [`Usage`], in the words of Go's flag package.
    pub fn parse(arguments: &[String]) -> Result<Self, Usage> {
        let mut values = Self::default();
        let mut arguments = arguments.iter();
        while let Some(argument) = arguments.next() {
            let Some(text) = argument.strip_prefix('-').filter(|text| !text.is_empty()) else {
                return Err(Usage::Extra(argument.clone()));
            };
            let text = text.strip_prefix('-').unwrap_or(text);
            if text.is_empty() {
                // The end of the flags, after which etcd takes nothing.
                match arguments.next() {
                    Some(more) => return Err(Usage::Extra(more.clone())),
                    None => break,
                }
            }
            if text.starts_with(['-', '=']) {
                return Err(Usage::Flag(format!("bad flag syntax: {argument}")));
            }
            let (name, value) = match text.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (text, None),
            };
            let Some(flag) = find(name) else {
                return Err(Usage::Flag(format!("flag provided but not defined: -{name}")));
            };
            let value = match value {
                Some(value) => value,
                None if flag.kind == Kind::Bool => "true".to_owned(),
                None => arguments
                    .next()
                    .ok_or_else(|| Usage::Flag(format!("flag needs an argument: -{name}")))?
                    .clone(),
            };
            let value = check(flag, &value).map_err(|why| {
                let boolean = if flag.kind == Kind::Bool { "boolean value" } else { "value" };
                Usage::Flag(format!("invalid {boolean} {value:?} for flag -{name}: {why}"))
            })?;
            values.given.insert(flag.name, value);
        }
        Ok(values)
    }

    /// Adds what `ETCD_*` variables say. Returns notes for the log: variables that mean nothing.
    ///
    /// # Errors
    /// When a value is wrong or no text, or a variable and a flag say different things.
    pub fn environment(
        &mut self,
        variables: impl Iterator<Item = (OsString, OsString)>,
    ) -> Result<Vec<String>> {
        let mut notes = Vec::new();
        for (key, value) in variables {
            // The variables of others may be anything.
            let Some(key) = key.to_str() else { continue };
            let Some(name) = key.strip_prefix("ETCD_") else { continue };
            let name = name.to_ascii_lowercase().replace('_', "-");
            let Some(flag) = find(&name).filter(|flag| flag.name != "version") else {
                notes.push(format!("unrecognized environment variable {key}"));
                continue;
            };
            let value = value
                .to_str()
                .with_context(|| format!("invalid value {value:?} for {key}: it is no text"))?;
            if value.is_empty() {
                continue;
            }
            if self.given.contains_key(flag.name) {
                bail!(
                    "conflicting environment variable {key} is shadowed by corresponding command-line flag (either unset environment variable or disable flag)"
                );
            }
            let value = check(flag, value)
                .map_err(|why| anyhow!("invalid value {value:?} for {key}: {why}"))?;
            self.given.insert(flag.name, value);
        }
        Ok(notes)
    }

    /// Reads etcd's configuration file, in place of everything else.
    ///
    /// # Errors
    /// When it is no YAML, or a name or value in it is not known.
    pub fn file(text: &str) -> Result<Self> {
        let tree: serde_json::Value =
            serde_saphyr::from_str(text).context("the configuration file is no YAML")?;
        let mut values = Self::default();
        let tree = match tree {
            serde_json::Value::Object(tree) => tree,
            serde_json::Value::Null => return Ok(values),
            _ => bail!("the configuration file must map names of flags to values"),
        };
        for (name, value) in tree {
            let prefix = match name.as_str() {
                "client-transport-security" => Some(""),
                "peer-transport-security" => Some("peer-"),
                _ => None,
            };
            match (prefix, value) {
                (Some(prefix), serde_json::Value::Object(section)) => {
                    for (key, value) in section {
                        // In the file these have other names than on the command line.
                        let name = match (prefix, key.as_str()) {
                            ("", "client-cert-auth" | "trusted-ca-file" | "auto-tls") => key,
                            ("", "allowed-hostnames") => "client-cert-allowed-hostname".into(),
                            ("peer-", "allowed-cns" | "allowed-cn") => {
                                "peer-cert-allowed-cn".into()
                            }
                            ("peer-", "allowed-hostnames" | "allowed-hostname") => {
                                "peer-cert-allowed-hostname".into()
                            }
                            _ => format!("{prefix}{key}"),
                        };
                        values.take(&name, &value)?;
                    }
                }
                (Some(_), serde_json::Value::Null) => {}
                (Some(_), _) => bail!("invalid {name}: it must map names to values"),
                (None, value) => values.take(&name, &value)?,
            }
        }
        Ok(values)
    }

    fn take(&mut self, name: &str, value: &serde_json::Value) -> Result<()> {
        use serde_json::Value;
        let flag = find(name)
            .with_context(|| format!("{name} in the configuration file is not a known flag"))?;
        let text = match value {
            Value::Null => return Ok(()),
            Value::String(text) => text.clone(),
            // etcd's file gives durations in nanoseconds.
            Value::Number(number) if flag.kind == Kind::Duration => format!("{number}ns"),
            Value::Number(_) | Value::Bool(_) => value.to_string(),
            Value::Array(items) => {
                let plain =
                    |item: &Value| item.as_str().map_or_else(|| item.to_string(), Into::into);
                items.iter().map(plain).collect::<Vec<String>>().join(",")
            }
            Value::Object(_) => bail!("{name} in the configuration file must be a plain value"),
        };
        if text.is_empty() {
            return Ok(());
        }
        let text = check(flag, &text).map_err(|why| {
            anyhow!("invalid value {text:?} for {name} in the configuration file: {why}")
        })?;
        self.given.insert(flag.name, text);
        Ok(())
    }

    /// Whether a flag was given.
    pub fn is_given(&self, name: &str) -> bool {
        self.given.contains_key(name)
    }

    /// A flag's value.
    pub fn text(&self, name: &str) -> &str {
        match self.given.get(name) {
            Some(value) => value,
            None => find(name).map_or("", |flag| flag.default),
        }
    }

    /// A switch.
    pub fn bool(&self, name: &str) -> bool {
        self.text(name) == "true"
    }

    /// A number. What does not fit was refused when it was read.
    pub fn number<T: std::str::FromStr + Default>(&self, name: &str) -> T {
        self.text(name).parse().unwrap_or_default()
    }

    /// A duration.
    pub fn duration(&self, name: &str) -> Duration {
        duration(self.text(name)).unwrap_or_default()
    }

    /// A list.
    pub fn list(&self, name: &str) -> Vec<String> {
        let items = self.text(name).split(',').map(str::trim).filter(|item| !item.is_empty());
        items.map(str::to_owned).collect()
    }

    /// URLs, each once, in order.
    pub fn urls(&self, name: &str) -> Vec<Address> {
        let mut urls: Vec<Address> =
            self.list(name).iter().filter_map(|url| url.parse().ok()).collect();
        let mut seen = std::collections::HashSet::new();
        urls.retain(|url| seen.insert(url.clone()));
        urls
    }

    /// What to say of flags that have no effect.
    pub fn idle(&self) -> Vec<String> {
        let said = |(name, value): (&&str, &String)| match find(name)?.effect {
            Effect::Idle(why) if value != find(name)?.default => {
                // etcd has words for these.
                let words = if why.starts_with("is ") { " " } else { " has no effect: " };
                Some(format!("--{name}{words}{why}"))
            }
            _ => None,
        };
        self.given.iter().filter_map(said).collect()
    }

    /// Refuses flags that ask for what does not exist.
    ///
    /// # Errors
    /// The first of them, and what to do instead.
    pub fn refuse(&self) -> Result<()> {
        for (name, value) in &self.given {
            if let Some(Flag { effect: Effect::Refused(instead), .. }) = find(name)
                && !value.is_empty()
                && value != "off"
            {
                bail!("--{name} is not supported: {instead}");
            }
        }
        Ok(())
    }
}

/// Whether a text is a value for a flag; returns it in its plain form.
pub fn check(flag: &Flag, text: &str) -> Result<String, String> {
    let number = |fine: bool| if fine { Ok(text.to_owned()) } else { Err("parse error".into()) };
    match flag.kind {
        Kind::Text | Kind::List => Ok(text.to_owned()),
        Kind::Bool => match text {
            "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok("true".into()),
            "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok("false".into()),
            _ => Err("parse error".into()),
        },
        Kind::Uint => number(text.parse::<u64>().is_ok()),
        Kind::Int => number(text.parse::<i64>().is_ok()),
        Kind::Duration => number(duration(text).is_some()),
        Kind::Choice(choices) if choices.contains(&text) => Ok(text.to_owned()),
        Kind::Choice(choices) => {
            let named: Vec<&str> = choices.iter().copied().filter(|c| !c.is_empty()).collect();
            Err(format!("invalid value {text:?}, it must be one of {}", named.join(", ")))
        }
        Kind::Urls => {
            for url in text.split(',').map(str::trim).filter(|url| !url.is_empty()) {
                url.parse::<Address>().map_err(|error| error.to_string())?;
            }
            Ok(text.to_owned())
        }
    }
}

/// A duration as Go writes it; negative ones are none.
pub fn duration(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    let mut nanoseconds = 0.0;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let amount: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let letters = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        nanoseconds += amount
            * match &rest[..letters] {
                "ns" => 1.0,
                "us" | "µs" | "μs" => 1e3,
                "ms" => 1e6,
                "s" => 1e9,
                "m" => 6e10,
                "h" => 3.6e12,
                _ => return None,
            };
        rest = &rest[letters..];
    }
    (nanoseconds < 9e18).then(|| Duration::from_nanos(nanoseconds as u64))
}

/// What `--help` prints.
pub fn help(program: &str) -> String {
    let mut text = format!(
        "Runs the store alone: an etcd v3 server that takes etcd's flags.\n\n\
         Usage: {program} [FLAGS]\n       \
         {program} snapshot restore FILE --data-dir DIR [FLAGS]\n\n\
         Flags are written -flag or --flag, values --flag=value or --flag value. Each can be given as a\n\
         variable, for example ETCD_DATA_DIR for --data-dir, or in a YAML file (--config-file).\n"
    );
    for (group, flags) in GROUPS {
        let _ = writeln!(text, "\n{group}:");
        if group.starts_with("Accepted") {
            // Names are enough here; the log says why when one is used.
            let names: Vec<String> = flags.iter().map(|f| format!("--{}", f.name)).collect();
            let mut line = String::new();
            for name in names {
                if line.len() + name.len() > 96 {
                    let _ = writeln!(text, " {line}");
                    line.clear();
                }
                let _ = write!(line, " {name}");
            }
            let _ = writeln!(text, " {line}");
            continue;
        }
        for flag in flags {
            let (Effect::Works(help) | Effect::Idle(help) | Effect::Refused(help)) = flag.effect;
            let value = match flag.kind {
                Kind::Bool => String::new(),
                Kind::Choice(of) => {
                    let of: Vec<&str> = of.iter().copied().filter(|c| !c.is_empty()).collect();
                    format!(" {}", of.join("|"))
                }
                Kind::Uint | Kind::Int => " N".into(),
                Kind::Duration => " TIME".into(),
                Kind::Urls => " URL,...".into(),
                Kind::List => " TEXT,...".into(),
                Kind::Text if flag.name.ends_with("-file") => " FILE".into(),
                Kind::Text if flag.name.ends_with("-dir") => " DIR".into(),
                Kind::Text => " TEXT".into(),
            };
            let _ = writeln!(text, "  --{}{value}", flag.name);
            let default = match flag.default {
                "" | "false" => String::new(),
                default => format!(" (default: {default})"),
            };
            let _ = writeln!(text, "      {help}{default}");
        }
    }
    let _ = write!(
        text,
        "\nExample: {program} --name n1 --data-dir /var/lib/store \\\n           \
         --listen-client-urls http://127.0.0.1:2379 --advertise-client-urls http://127.0.0.1:2379\n"
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Values, Usage> {
        Values::parse(&line.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn all_of_gos_spellings_are_read() {
        let values = parse(
            "-name a --data-dir=d --auto-tls --strict-reconfig-check=false -max-txn-ops 9 \
             --watch-progress-notify-interval 1m30s --initial-cluster a=http://x:1,b=http://y:2",
        )
        .unwrap();
        assert_eq!((values.text("name"), values.text("data-dir")), ("a", "d"));
        assert!(values.bool("auto-tls") && !values.bool("strict-reconfig-check"));
        assert_eq!(values.number::<usize>("max-txn-ops"), 9);
        assert_eq!(values.duration("watch-progress-notify-interval"), Duration::from_secs(90));
        assert_eq!(values.text("initial-cluster"), "a=http://x:1,b=http://y:2");
        // A default.
        assert_eq!(values.text("initial-cluster-token"), "etcd-cluster");
        // The last of several counts.
        assert_eq!(parse("--name a --name b").unwrap().text("name"), "b");
    }

    #[test]
    fn wrong_usage_is_told_as_go_tells_it() {
        for (line, told) in [
            ("--bogus", "flag provided but not defined: -bogus"),
            ("--name", "flag needs an argument: -name"),
            (
                "--pre-vote=maybe",
                r#"invalid boolean value "maybe" for flag -pre-vote: parse error"#,
            ),
            ("--max-txn-ops x", r#"invalid value "x" for flag -max-txn-ops: parse error"#),
            ("server", r#""server" is not a valid flag"#),
            ("-- server", r#""server" is not a valid flag"#),
            ("---name", "bad flag syntax: ---name"),
            ("--=x", "bad flag syntax: --=x"),
        ] {
            assert_eq!(parse(line).unwrap_err().to_string(), told, "{line}");
        }
        let url = parse("--listen-client-urls localhost:1").unwrap_err().to_string();
        assert!(url.contains("no scheme"), "{url}");
        let state = parse("--initial-cluster-state old").unwrap_err().to_string();
        assert!(state.contains("one of new, existing"), "{state}");
    }

    #[test]
    fn variables_fill_in_and_conflicts_are_refused() {
        let variables = |list: &[(&str, &str)]| {
            let list: Vec<(OsString, OsString)> =
                list.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect();
            list.into_iter()
        };
        let mut values = parse("--name a").unwrap();
        let notes = values
            .environment(variables(&[
                ("ETCD_DATA_DIR", "d"),
                ("ETCD_EXPERIMENTAL_WATCH_PROGRESS_NOTIFY_INTERVAL", "1s"),
                ("ETCD_NONSENSE", "1"),
                ("ETCD_INITIAL_CLUSTER", ""),
                ("HOME", "/"),
            ]))
            .unwrap();
        assert_eq!(values.text("data-dir"), "d");
        assert_eq!(values.duration("watch-progress-notify-interval"), Duration::from_secs(1));
        assert!(!values.is_given("initial-cluster"));
        assert_eq!(notes, ["unrecognized environment variable ETCD_NONSENSE"]);
        let conflict = values.environment(variables(&[("ETCD_NAME", "b")])).unwrap_err();
        assert!(conflict.to_string().contains("shadowed"), "{conflict}");
        let wrong = values.environment(variables(&[("ETCD_AUTO_TLS", "x")])).unwrap_err();
        assert!(wrong.to_string().contains("ETCD_AUTO_TLS"), "{wrong}");
    }

    #[test]
    fn variables_that_are_no_text_are_refused_only_when_they_are_ours() {
        use std::os::unix::ffi::OsStringExt as _;
        let odd = || OsString::from_vec(vec![b'/', 0xff]);
        let mut values = Values::default();
        let others = [("HOME".into(), odd()), (odd(), "x".into())];
        assert_eq!(values.environment(others.into_iter()).unwrap(), [""; 0]);
        assert_eq!(values, Values::default());
        let own = [("ETCD_DATA_DIR".into(), odd())];
        let refused = values.environment(own.into_iter()).unwrap_err();
        assert!(refused.to_string().contains("ETCD_DATA_DIR"), "{refused}");
    }

    #[test]
    fn a_configuration_file_has_the_same_names() {
        let values = Values::file(
            "name: a\nheartbeat-interval: 50\nlisten-client-urls: http://127.0.0.1:1\n\
             watch-progress-notify-interval: 600000000000\nlog-outputs: [stderr, x.log]\n\
             cipher-suites: []\nstrict-reconfig-check: false\nwal-dir:\n\
             client-transport-security:\n  cert-file: c.pem\n  client-cert-auth: true\n\
             peer-transport-security:\n  cert-file: p.pem\n  auto-tls: true\n  allowed-cns: [m1, m2]\n",
        )
        .unwrap();
        assert_eq!(values.text("name"), "a");
        assert_eq!(values.number::<u64>("heartbeat-interval"), 50);
        assert_eq!(values.duration("watch-progress-notify-interval"), Duration::from_secs(600));
        assert_eq!(values.list("log-outputs"), ["stderr", "x.log"]);
        assert_eq!(values.text("cert-file"), "c.pem");
        assert_eq!(values.text("peer-cert-file"), "p.pem");
        assert!(values.bool("client-cert-auth") && values.bool("peer-auto-tls"));
        assert_eq!(values.list("peer-cert-allowed-cn"), ["m1", "m2"]);
        let unknown = Values::file("nam: a").unwrap_err().to_string();
        assert!(unknown.contains("nam"), "{unknown}");
        assert_eq!(Values::file("").unwrap(), Values::default());
    }

    #[test]
    fn durations_are_gos() {
        for (text, milliseconds) in [
            ("0", 0),
            ("100ms", 100),
            ("1.5s", 1500),
            ("1h30m", 5_400_000),
            ("+2m", 120_000),
            ("1000us", 1),
        ] {
            assert_eq!(duration(text), Some(Duration::from_millis(milliseconds)), "{text}");
        }
        for text in ["", "5", "-1s", "1x", "s", "1 s", "."] {
            assert_eq!(duration(text), None, "{text}");
        }
    }

    #[test]
    fn idle_flags_are_told_of_and_impossible_ones_refused() {
        let values = parse("--snapshot-count 5 --pre-vote=true --enable-v2").unwrap();
        let told = values.idle();
        assert_eq!(told.len(), 2, "{told:?}");
        assert!(told.iter().any(|t| t.contains("--snapshot-count")));
        assert!(values.refuse().is_ok());
        assert!(parse("--proxy=off").unwrap().refuse().is_ok());
        let refused = parse("--discovery http://x").unwrap().refuse().unwrap_err().to_string();
        assert!(refused.contains("--initial-cluster"), "{refused}");
    }

    #[test]
    fn help_names_every_flag_and_an_example() {
        let help = help("dhow store");
        for flag in GROUPS.iter().flat_map(|(_, flags)| *flags) {
            assert!(help.contains(&format!("--{}", flag.name)), "{}", flag.name);
        }
        assert!(help.contains("Example: dhow store"));
        assert!(help.lines().all(|line| line.len() <= 110));
    }
}
