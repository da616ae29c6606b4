//! The configuration of the image that grows.

use crate::instruction::{Command, Healthcheck};
use serde_json::{Map, Value, json};

/// What images without a `PATH` get.
pub(crate) const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A whole OCI image configuration. What a base image has and nobody here knows is kept.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Config {
    whole: Map<String, Value>,
    /// `CMD` was given in this stage, so that `ENTRYPOINT` leaves it.
    cmd_is_own: bool,
}

impl Config {
    /// An image of nothing.
    pub(crate) fn scratch() -> Self {
        let mut config = Self { whole: Map::new(), cmd_is_own: false };
        config.set("Env", json!([format!("PATH={PATH}")]));
        config.set("WorkingDir", json!("/"));
        config
    }

    /// Goes on from a base image, whose triggers have become steps.
    pub(crate) fn from_base(base: Value) -> Self {
        let whole = match base {
            Value::Object(whole) => whole,
            _ => Map::new(),
        };
        let mut config = Self { whole, cmd_is_own: false };
        // What the base's builder noted about itself does not hold for the new image.
        for own in ["id", "parent", "container", "container_config", "docker_version", "rootfs"] {
            config.whole.remove(own);
        }
        config.remove("OnBuild");
        // Commands find their programs by it, and `ENV PATH=/x:$PATH` is to add to it.
        if config.variable("PATH").is_none() {
            config.set_variable("PATH", PATH);
        }
        config
    }

    /// The same for a stage that begins here.
    pub(crate) fn inherited(&self) -> Self {
        let mut config = Self { whole: self.whole.clone(), cmd_is_own: false };
        config.remove("OnBuild");
        config
    }

    fn get(&self, key: &str) -> Option<&Value> {
        self.whole.get("config")?.get(key)
    }

    fn set(&mut self, key: &str, value: Value) {
        let config = self.whole.entry("config").or_insert_with(|| json!({}));
        if !config.is_object() {
            // Docker writes null where it means nothing.
            *config = json!({});
        }
        config[key] = value;
    }

    fn remove(&mut self, key: &str) {
        if let Some(Value::Object(config)) = self.whole.get_mut("config") {
            config.remove(key);
        }
    }

    fn strings(&self, key: &str) -> Vec<String> {
        let list = self.get(key).and_then(Value::as_array);
        list.into_iter().flatten().filter_map(|v| v.as_str().map(str::to_owned)).collect()
    }

    fn text(&self, key: &str) -> String {
        self.get(key).and_then(Value::as_str).unwrap_or_default().to_owned()
    }

    /// Adds to a table like `Labels`.
    fn insert(&mut self, key: &str, name: &str, value: Value) {
        let mut table = self.get(key).filter(|v| v.is_object()).cloned().unwrap_or(json!({}));
        table[name] = value;
        self.set(key, table);
    }

    /// `NAME=value`, in order.
    pub(crate) fn env(&self) -> Vec<String> {
        self.strings("Env")
    }

    pub(crate) fn variable(&self, name: &str) -> Option<String> {
        let find = |text: &String| {
            text.strip_prefix(name).and_then(|rest| rest.strip_prefix('=')).map(str::to_owned)
        };
        self.env().iter().find_map(find)
    }

    pub(crate) fn set_variable(&mut self, name: &str, value: &str) {
        let mut env = self.env();
        let text = format!("{name}={value}");
        let same = |other: &&mut String| other.split_once('=').is_some_and(|(n, _)| n == name);
        match env.iter_mut().find(same) {
            Some(old) => *old = text,
            None => env.push(text),
        }
        self.set("Env", json!(env));
    }

    pub(crate) fn user(&self) -> String {
        self.text("User")
    }

    pub(crate) fn set_user(&mut self, user: &str) {
        self.set("User", json!(user));
    }

    /// Absolute.
    pub(crate) fn directory(&self) -> String {
        let directory = self.text("WorkingDir");
        if directory.is_empty() { "/".into() } else { directory }
    }

    pub(crate) fn set_directory(&mut self, directory: &str) {
        self.set("WorkingDir", json!(directory));
    }

    /// What commands in shell form are given to.
    pub(crate) fn shell(&self) -> Vec<String> {
        let shell = self.strings("Shell");
        if shell.is_empty() { vec!["/bin/sh".into(), "-c".into()] } else { shell }
    }

    pub(crate) fn set_shell(&mut self, shell: &[String]) {
        self.set("Shell", json!(shell));
    }

    /// The command as a list.
    pub(crate) fn words(&self, command: &Command) -> Vec<String> {
        match command {
            Command::Exec(words) => words.clone(),
            Command::Shell(text) => {
                let mut words = self.shell();
                words.push(text.clone());
                words
            }
        }
    }

    pub(crate) fn set_cmd(&mut self, command: &Command) {
        let words = match command {
            // `CMD` alone takes the base's command away.
            Command::Shell(text) if text.is_empty() => vec![],
            command => self.words(command),
        };
        self.set("Cmd", json!(words));
        self.cmd_is_own = true;
    }

    /// A base's command was meant for the base's entry point: it goes.
    pub(crate) fn set_entrypoint(&mut self, command: &Command) {
        let words = self.words(command);
        self.set("Entrypoint", json!(words));
        if !self.cmd_is_own {
            self.remove("Cmd");
        }
    }

    pub(crate) fn set_label(&mut self, name: &str, value: &str) {
        self.insert("Labels", name, json!(value));
    }

    pub(crate) fn add_port(&mut self, port: &str) {
        self.insert("ExposedPorts", port, json!({}));
    }

    pub(crate) fn add_volume(&mut self, path: &str) {
        self.insert("Volumes", path, json!({}));
    }

    pub(crate) fn set_stop_signal(&mut self, signal: &str) {
        self.set("StopSignal", json!(signal));
    }

    pub(crate) fn set_author(&mut self, author: &str) {
        self.whole.insert("author".into(), json!(author));
    }

    /// Kept for engines that check health this way; dhow's own probes are Kubernetes'.
    pub(crate) fn set_healthcheck(&mut self, check: &Healthcheck) {
        let test = match &check.command {
            None => json!(["NONE"]),
            Some(Command::Shell(text)) => json!(["CMD-SHELL", text]),
            Some(Command::Exec(words)) => {
                json!(std::iter::once(&"CMD".to_owned()).chain(words).collect::<Vec<_>>())
            }
        };
        let mut value = json!({"Test": test});
        for (key, number) in [
            ("Interval", check.interval),
            ("Timeout", check.timeout),
            ("StartPeriod", check.start_period),
            ("StartInterval", check.start_interval),
            ("Retries", check.retries),
        ] {
            if number > 0 {
                value[key] = json!(number);
            }
        }
        self.set("Healthcheck", value);
    }

    /// Leaves an instruction for images made from this one.
    pub(crate) fn add_trigger(&mut self, text: &str) {
        let mut triggers = self.strings("OnBuild");
        triggers.push(text.to_owned());
        self.set("OnBuild", json!(triggers));
    }

    /// Notes a step.
    pub(crate) fn add_history(&mut self, created: &str, text: &str, layer: bool) {
        let mut step = json!({"created": created, "created_by": text, "comment": "dhow"});
        if !layer {
            step["empty_layer"] = json!(true);
        }
        let history = self.whole.entry("history").or_insert_with(|| json!([]));
        match history {
            Value::Array(steps) => steps.push(step),
            other => *other = json!([step]),
        }
        self.whole.insert("created".into(), json!(created));
    }

    /// The configuration for the store, which adds the layers.
    pub(crate) fn finish(&self) -> Value {
        let mut whole = self.whole.clone();
        for (key, value) in [("architecture", architecture()), ("os", "linux")] {
            whole.entry(key).or_insert_with(|| json!(value));
        }
        Value::Object(whole)
    }
}

/// This machine's architecture as OCI names it.
pub(crate) fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exec(words: &[&str]) -> Command {
        Command::Exec(words.iter().map(|w| (*w).to_owned()).collect())
    }

    #[test]
    fn an_entry_point_takes_the_bases_command_away_but_not_the_stages() {
        let base = json!({"config": {"Cmd": ["old"], "Custom": 1, "Env": ["PATH=/p"]}});
        let mut config = Config::from_base(base.clone());
        config.set_entrypoint(&exec(&["e"]));
        assert_eq!(
            config.finish()["config"],
            json!({"Custom": 1, "Entrypoint": ["e"], "Env": ["PATH=/p"]})
        );
        let mut config = Config::from_base(base);
        config.set_cmd(&exec(&["c"]));
        config.set_entrypoint(&exec(&["e"]));
        assert_eq!(config.finish()["config"]["Cmd"], json!(["c"]));
        let mut later = config.inherited();
        later.set_entrypoint(&exec(&["f"]));
        assert_eq!(later.finish()["config"].get("Cmd"), None);
    }

    #[test]
    fn a_base_of_nulls_is_taken() {
        let mut config = Config::from_base(json!({"config": null, "history": null}));
        config.set_variable("A", "1");
        config.set_variable("A", "2");
        config.add_history("2026-01-02T03:04:05Z", "ENV A=2", false);
        let found = config.finish();
        assert_eq!(found["config"]["Env"], json!([format!("PATH={PATH}"), "A=2"]));
        assert_eq!(found["history"][0]["empty_layer"], json!(true));
        assert_eq!(found["created"], json!("2026-01-02T03:04:05Z"));
        assert_eq!(found["os"], json!("linux"));
    }

    #[test]
    fn shell_form_uses_the_shell() {
        let mut config = Config::scratch();
        config.set_cmd(&Command::Shell("a b".into()));
        assert_eq!(config.finish()["config"]["Cmd"], json!(["/bin/sh", "-c", "a b"]));
        config.set_shell(&["bash".into(), "-ec".into()]);
        config.set_entrypoint(&Command::Shell("c".into()));
        assert_eq!(config.finish()["config"]["Entrypoint"], json!(["bash", "-ec", "c"]));
    }
}
