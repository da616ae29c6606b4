//! What each instruction means: for the configuration, and for the file system.

use crate::build::is_proxy;
use crate::config;
use crate::expand::Expander;
use crate::instruction::{Command, Instruction, Kind, Source, Transfer};
use crate::pattern::{self, Ignore};
use crate::stages::{Base, Plan};
use crate::steps::{Builder, State, Work, open_root};
use crate::syntax::Heredoc;
use crate::tree::Tree;
use crate::{Error, Event, Place, run, transfer};
use serde_json::json;
use std::sync::Arc;

/// How long a command may be in an error.
const COMMAND_SHOWN: usize = 200;

impl Builder<'_> {
    /// Does what an instruction does to the configuration. Returns its text for the history, with
    /// its variables replaced, and what is to be done to the file system.
    pub(crate) fn apply(
        &mut self,
        plan: &Plan,
        at: usize,
        state: &mut State,
        instruction: &Instruction,
    ) -> Result<(String, Work), Error> {
        let place = &instruction.place;
        let before = state.clone();
        let get = |name: &str| before.variable(name);
        let expander = Expander { escape: plan.escape, get: &get };
        let word = |text: &str| expander.word(text).map_err(|e| place.error(e));
        let words = |text: &str| expander.words(text).map_err(|e| place.error(e));
        let said = |rest: String| format!("{} {rest}", place.keyword);
        if let Some(text) = instruction.broken_list() {
            let text = format!(
                "{}:{}: {}: {text} is no JSON list of strings and goes to the shell as it is",
                place.file, place.line, place.keyword
            );
            (self.report)(Event::Warning(&text));
        }
        let config = &mut state.config;
        let mut work = Work::Nothing;
        let text = match &instruction.kind {
            Kind::From { .. } => return Err(place.error("a stage cannot begin inside a stage")),
            Kind::Arg(arguments) => self.arguments(plan, state, place, arguments)?,
            Kind::Env(pairs) | Kind::Label(pairs) => {
                let mut shown = Vec::new();
                for (name, value) in pairs {
                    let (name, value) = (word(name)?, word(value)?);
                    if name.is_empty() || name.contains('=') {
                        return Err(place.error(format!("{name:?} is no name")));
                    }
                    shown.push(format!("{name}={value}"));
                    match instruction.kind {
                        Kind::Env(_) => config.set_variable(&name, &value),
                        _ => config.set_label(&name, &value),
                    }
                }
                said(shown.join(" "))
            }
            Kind::Copy(transfer) => {
                work = self.find(plan, at, &before, place, transfer)?;
                instruction.text.clone()
            }
            Kind::Run { command, heredocs } => {
                work = self.command(&before, command, heredocs);
                match &work {
                    Work::Run { args, .. } => said(args.join(" ")),
                    _ => instruction.text.clone(),
                }
            }
            Kind::Cmd(command) => {
                config.set_cmd(command);
                said(json!(config.words(command)).to_string())
            }
            Kind::Entrypoint(command) => {
                config.set_entrypoint(command);
                said(json!(config.words(command)).to_string())
            }
            Kind::Shell(shell) => {
                config.set_shell(shell);
                said(json!(shell).to_string())
            }
            Kind::Workdir(path) => {
                let path = absolute(&config.directory(), &word(path)?);
                config.set_directory(&path);
                work = Work::Directory(path.clone());
                said(path)
            }
            Kind::User(user) => {
                let user = word(user)?;
                if user.is_empty() {
                    return Err(place.error("the user is empty after its variables were replaced"));
                }
                config.set_user(&user);
                said(user)
            }
            Kind::Expose(text) => {
                let mut shown = Vec::new();
                for text in words(text)? {
                    for port in ports(&text).map_err(|e| place.error(e))? {
                        config.add_port(&port);
                        shown.push(port);
                    }
                }
                said(shown.join(" "))
            }
            Kind::Volume(paths) => {
                let paths = match paths {
                    Command::Exec(paths) => {
                        paths.iter().map(|p| word(p)).collect::<Result<_, _>>()?
                    }
                    Command::Shell(text) => words(text)?,
                };
                for path in &paths {
                    if path.trim().is_empty() {
                        return Err(place.error("the path of a volume is empty"));
                    }
                    config.add_volume(path);
                }
                said(json!(paths).to_string())
            }
            Kind::Stopsignal(signal) => {
                let signal = word(signal)?;
                if !is_signal(&signal) {
                    return Err(place.error(format!(
                        "{signal:?} is no signal; expected a name like SIGTERM or a number from 1 to 64"
                    )));
                }
                config.set_stop_signal(&signal);
                said(signal)
            }
            Kind::Healthcheck(check) => {
                config.set_healthcheck(check);
                instruction.text.clone()
            }
            Kind::Onbuild(trigger) => {
                config.add_trigger(trigger);
                instruction.text.clone()
            }
            Kind::Maintainer(author) => {
                config.set_author(author);
                let text = format!(
                    "{}:{}: MAINTAINER is deprecated; use LABEL org.opencontainers.image.authors",
                    place.file, place.line
                );
                (self.report)(Event::Warning(&text));
                said(author.clone())
            }
        };
        Ok((text, work))
    }

    /// `ARG` in a stage: the value given, else the default, else that of an `ARG` before `FROM`.
    fn arguments(
        &self,
        plan: &Plan,
        state: &mut State,
        place: &Place,
        arguments: &[(String, Option<String>)],
    ) -> Result<String, Error> {
        let mut shown = vec![place.keyword.clone()];
        for (name, default) in arguments {
            let value = match (self.given.get(name), default) {
                (Some(value), _) => Some(value.clone()),
                (None, Some(default)) => {
                    let get = |name: &str| state.variable(name);
                    let expander = Expander { escape: plan.escape, get: &get };
                    Some(expander.word(default).map_err(|e| place.error(e))?)
                }
                (None, None) => plan.globals.get(name).cloned(),
            };
            match value {
                Some(value) => {
                    shown.push(format!("{name}={value}"));
                    state.arguments.push((name.clone(), value));
                }
                None => shown.push(name.clone()),
            }
        }
        Ok(shown.join(" "))
    }

    /// Finds what a `COPY` or `ADD` takes.
    fn find(
        &self,
        plan: &Plan,
        at: usize,
        state: &State,
        place: &Place,
        copy: &Transfer,
    ) -> Result<Work, Error> {
        let get = |name: &str| state.variable(name);
        let expander = Expander { escape: plan.escape, get: &get };
        let word = |text: &str| expander.word(text).map_err(|e| place.error(e));
        let tree = match &copy.from {
            None => self.context.clone(),
            Some(from) => {
                let (name, layers) = match plan.from(at, place, from)? {
                    Base::Stage(stage) => {
                        (format!("stage {from}"), self.done[&stage].layers.clone())
                    }
                    Base::Scratch => (from.clone(), vec![]),
                    Base::Image(image) => {
                        let found = self.images.layers(&image).map_err(|e| {
                            place.error(format!("--from={from} is no stage above, and {e}"))
                        })?;
                        (format!("image {image}"), found.0)
                    }
                };
                let step = self.scratch.step()?;
                let (root, _) = open_root(&layers, &step)?;
                Arc::new(Tree::new(root, name, Ignore::default(), true).made_of(step))
            }
        };
        let target = word(&copy.target)?;
        let mut items = Vec::new();
        for source in &copy.sources {
            match source {
                Source::Path(text) => {
                    items.extend(transfer::find(&tree, place, &word(text)?, copy.add)?);
                }
                Source::Text(heredoc) => {
                    let text = match heredoc.expand {
                        true => expander.document(&heredoc.text).map_err(|e| place.error(e))?,
                        false => heredoc.text.clone(),
                    };
                    items.push(transfer::text(&heredoc.name, text));
                }
            }
        }
        if copy.sources.len() > 1 && !target.ends_with('/') && target != "." {
            return Err(place.error(format!(
                "with several sources the target has to be a directory and end with /; found {target:?}"
            )));
        }
        let mode = match &copy.chmod {
            None => None,
            Some(text) => {
                let text = word(text)?;
                let mode = u32::from_str_radix(&text, 8).ok().filter(|mode| *mode <= 0o7777);
                Some(mode.ok_or_else(|| {
                    place.error(format!("--chmod={text}: expected an octal number like 755"))
                })?)
            }
        };
        let chown = copy.chown.as_deref().map(word).transpose()?;
        let directory = state.config.directory();
        let mut absolute = absolute(&directory, &target);
        let as_directory =
            target.is_empty() || target.ends_with('/') || target.ends_with("/.") || target == ".";
        if as_directory && !absolute.ends_with('/') {
            absolute.push('/');
        }
        Ok(Work::Copy { tree, items, target: absolute, chown, mode })
    }

    /// What a `RUN` executes.
    fn command(&self, state: &State, command: &Command, heredocs: &[Heredoc]) -> Work {
        let mut script = None;
        let mut line = match command {
            Command::Exec(words) => words.join(" "),
            Command::Shell(text) => text.clone(),
        };
        let args = match (command, heredocs) {
            (Command::Shell(text), [only]) if *text == only.word => {
                line = only.text.lines().next().unwrap_or_default().to_owned();
                if only.text.starts_with("#!") {
                    script = Some(only.text.clone());
                    vec![run::SCRIPT.to_owned()]
                } else {
                    state.config.words(&Command::Shell(only.text.clone()))
                }
            }
            (Command::Shell(text), [_, ..]) => {
                // The shell itself knows here-documents.
                let mut whole = text.clone();
                for heredoc in heredocs {
                    whole.push_str(&format!("\n{}{}", heredoc.raw, heredoc.name));
                }
                state.config.words(&Command::Shell(whole))
            }
            (command, _) => state.config.words(command),
        };
        if let Some((end, _)) = line.char_indices().nth(COMMAND_SHOWN) {
            line.truncate(end);
            line.push_str("...");
        }
        let mut env = state.config.env();
        let add = |env: &mut Vec<String>, name: &str, value: &str| {
            if !env.iter().any(|text| text.split_once('=').is_some_and(|(n, _)| n == name)) {
                env.push(format!("{name}={value}"));
            }
        };
        for (name, value) in state.arguments.iter().rev() {
            add(&mut env, name, value);
        }
        add(&mut env, "PATH", config::PATH);
        let mut proxies: Vec<String> = self
            .given
            .iter()
            .filter(|(name, _)| is_proxy(name) && state.variable(name).is_none())
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        proxies.sort();
        Work::Run { args, env, proxies, script, command: line }
    }
}

/// `path` as seen from `directory`.
fn absolute(directory: &str, path: &str) -> String {
    let joined =
        if path.starts_with('/') { path.to_owned() } else { format!("{directory}/{path}") };
    format!("/{}", pattern::clean(&joined))
}

/// Understands `80`, `80/udp` and `8000-8010/tcp`.
fn ports(text: &str) -> Result<Vec<String>, String> {
    let (range, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let protocol = protocol.to_ascii_lowercase();
    let (first, last) = range.split_once('-').unwrap_or((range, range));
    match (first.parse::<u16>(), last.parse::<u16>()) {
        (Ok(first), Ok(last))
            if first > 0
                && first <= last
                && ["tcp", "udp", "sctp"].contains(&protocol.as_str()) =>
        {
            Ok((first..=last).map(|port| format!("{port}/{protocol}")).collect())
        }
        _ => Err(format!(
            "{text:?} is no port; expected one like 8080, 53/udp or 8000-8010 (protocols: tcp, udp, sctp)"
        )),
    }
}

/// Whether the text is a signal's name or number.
fn is_signal(text: &str) -> bool {
    const NAMES: [&str; 31] = [
        "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2",
        "PIPE", "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG",
        "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
    ];
    if let Ok(number) = text.parse::<u32>() {
        return (1..=64).contains(&number);
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let real_time = ["RTMIN", "RTMAX"].iter().any(|base| {
        name.strip_prefix(base).is_some_and(|rest| {
            rest.is_empty()
                || rest.strip_prefix(['+', '-']).is_some_and(|n| n.parse::<u8>().is_ok())
        })
    });
    NAMES.contains(&name) || real_time
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_and_ranges_are_understood() {
        assert_eq!(ports("80").unwrap(), ["80/tcp"]);
        assert_eq!(ports("53/UDP").unwrap(), ["53/udp"]);
        assert_eq!(ports("1-3").unwrap(), ["1/tcp", "2/tcp", "3/tcp"]);
        for bad in ["0", "x", "70000", "3-1", "80/http"] {
            assert!(ports(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn paths_are_joined_to_the_working_directory() {
        assert_eq!(absolute("/a", "b/../c"), "/a/c");
        assert_eq!(absolute("/a", "/x//y/"), "/x/y");
        assert_eq!(absolute("/", "../.."), "/");
    }

    #[test]
    fn signals_have_names_and_numbers() {
        for good in ["SIGTERM", "term", "9", "SIGRTMIN+3"] {
            assert!(is_signal(good), "{good}");
        }
        for bad in ["SIGNOPE", "0", "65", ""] {
            assert!(!is_signal(bad), "{bad}");
        }
    }
}
