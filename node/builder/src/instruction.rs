//! What each instruction asks for, checked before anything is built.
//!
//! Variables are not replaced here: their values depend on the stage.

use crate::syntax::{self, File, Flag, Heredoc, Node};
use crate::{Error, Place, expand};

/// One instruction with its place.
#[derive(Debug, Clone)]
pub(crate) struct Instruction {
    pub(crate) place: Place,
    /// The instruction on one line, as written.
    pub(crate) text: String,
    pub(crate) kind: Kind,
}

impl Instruction {
    /// A command or path that begins like a list and is none: most likely a slip.
    pub(crate) fn broken_list(&self) -> Option<&str> {
        let command = match &self.kind {
            Kind::Run { command, .. }
            | Kind::Cmd(command)
            | Kind::Entrypoint(command)
            | Kind::Volume(command)
            | Kind::Healthcheck(Healthcheck { command: Some(command), .. }) => command,
            _ => return None,
        };
        match command {
            Command::Shell(text) if begins_like_a_list(text) => Some(text),
            _ => None,
        }
    }
}

/// Whether a text looks like a list rather than like the shell's command `[`, after which there is a
/// space and no comma behind a quote.
fn begins_like_a_list(text: &str) -> bool {
    let Some(rest) = text.strip_prefix('[') else { return false };
    let quoted = rest.trim_start().starts_with(['"', '\'']);
    quoted && (rest.starts_with(['"', '\'']) || rest.contains("\",") || rest.contains("',"))
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kind {
    From {
        platform: Option<String>,
        image: String,
        name: Option<String>,
    },
    Arg(Vec<(String, Option<String>)>),
    Env(Vec<(String, String)>),
    Label(Vec<(String, String)>),
    Copy(Transfer),
    Run {
        command: Command,
        heredocs: Vec<Heredoc>,
    },
    Cmd(Command),
    Entrypoint(Command),
    Shell(Vec<String>),
    Workdir(String),
    User(String),
    Expose(String),
    Volume(Command),
    Stopsignal(String),
    Healthcheck(Healthcheck),
    Maintainer(String),
    /// Text of an instruction that images made from this one run first.
    Onbuild(String),
}

/// A command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Command {
    /// For the shell.
    Shell(String),
    /// As a list.
    Exec(Vec<String>),
}

/// `COPY` and `ADD`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Transfer {
    /// `ADD`: unpack archives.
    pub(crate) add: bool,
    pub(crate) from: Option<String>,
    pub(crate) chown: Option<String>,
    pub(crate) chmod: Option<String>,
    pub(crate) sources: Vec<Source>,
    pub(crate) target: String,
}

/// One source of a [`Transfer`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Source {
    Path(String),
    Text(Heredoc),
}

/// `HEALTHCHECK`; durations in nanoseconds, 0 when not given.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Healthcheck {
    /// `None` for `HEALTHCHECK NONE`.
    pub(crate) command: Option<Command>,
    pub(crate) interval: u64,
    pub(crate) timeout: u64,
    pub(crate) start_period: u64,
    pub(crate) start_interval: u64,
    pub(crate) retries: u64,
}

/// Understands every instruction of a file.
pub(crate) fn understand(file: File) -> Result<Vec<Instruction>, Error> {
    let escape = file.escape;
    file.nodes
        .into_iter()
        .map(|node| {
            let text = on_one_line(&node);
            let kind = kind(&node, escape).map_err(|message| node.place.error(message))?;
            Ok(Instruction { place: node.place, text, kind })
        })
        .collect()
}

fn on_one_line(node: &Node) -> String {
    let mut text = node.place.keyword.clone();
    for flag in &node.flags {
        text.push_str(&format!(" --{}", flag.name));
        if let Some(value) = &flag.value {
            text.push_str(&format!("={value}"));
        }
    }
    if !node.rest.is_empty() {
        text.push(' ');
        text.push_str(&node.rest.split_whitespace().collect::<Vec<_>>().join(" "));
    }
    text
}

fn kind(node: &Node, escape: char) -> Result<Kind, String> {
    let rest = node.rest.as_str();
    let keyword = node.place.keyword.as_str();
    if rest.is_empty() && keyword != "CMD" {
        return Err(format!("it has no arguments; expected {}", usage(keyword)));
    }
    Ok(match keyword {
        "FROM" => from(node, escape)?,
        "ARG" => Kind::Arg(
            expand::raw_words(rest, escape)
                .into_iter()
                .map(|word| {
                    let (name, value) = match word.split_once('=') {
                        Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
                        None => (word, None),
                    };
                    is_name(&name).then_some((name.clone(), value)).ok_or_else(|| {
                        format!("{name:?} is no name; expected NAME or NAME=DEFAULT")
                    })
                })
                .collect::<Result<_, _>>()?,
        ),
        "ENV" => Kind::Env(pairs(rest, keyword, escape)?),
        "LABEL" => Kind::Label(pairs(rest, keyword, escape)?),
        "COPY" | "ADD" => Kind::Copy(transfer(node, escape)?),
        "RUN" => run(node)?,
        "CMD" => Kind::Cmd(command(rest)),
        "ENTRYPOINT" => Kind::Entrypoint(command(rest)),
        "SHELL" => match command(rest) {
            Command::Exec(words) if !words.is_empty() => Kind::Shell(words),
            _ => return Err("expected a JSON list like [\"/bin/sh\", \"-c\"]".into()),
        },
        "WORKDIR" => Kind::Workdir(rest.into()),
        "USER" => Kind::User(rest.into()),
        "EXPOSE" => Kind::Expose(rest.into()),
        "VOLUME" => Kind::Volume(command(rest)),
        "STOPSIGNAL" => Kind::Stopsignal(rest.into()),
        "HEALTHCHECK" => Kind::Healthcheck(healthcheck(node)?),
        "MAINTAINER" => Kind::Maintainer(rest.into()),
        "ONBUILD" => onbuild(rest)?,
        other => return Err(format!("{other} is not implemented; leave the line out")),
    })
}

fn usage(keyword: &str) -> &'static str {
    match keyword {
        "FROM" => "FROM IMAGE [AS NAME]",
        "ARG" => "NAME or NAME=DEFAULT",
        "ENV" | "LABEL" => "NAME=VALUE ...",
        "COPY" | "ADD" => "SOURCE ... TARGET",
        "EXPOSE" => "PORT[/PROTOCOL] ...",
        "VOLUME" | "WORKDIR" => "a path",
        "USER" => "USER[:GROUP]",
        "STOPSIGNAL" => "a signal like SIGTERM",
        "HEALTHCHECK" => "CMD COMMAND or NONE",
        "ONBUILD" => "an instruction",
        _ => "a command",
    }
}

fn is_name(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

/// A JSON list is a command as it is; anything else is for the shell.
fn command(text: &str) -> Command {
    match text.starts_with('[').then(|| serde_json::from_str(text)) {
        Some(Ok(words)) => Command::Exec(words),
        _ => Command::Shell(text.to_owned()),
    }
}

/// The flags by name, in the order of `known`; each may be given once.
fn flags<'n, const N: usize>(
    node: &'n Node,
    known: [&str; N],
) -> Result<[Option<&'n Flag>; N], String> {
    let mut found = [None; N];
    for flag in &node.flags {
        let Some(at) = known.iter().position(|name| *name == flag.name) else {
            let known: Vec<_> = known.iter().map(|name| format!("--{name}")).collect();
            return Err(format!(
                "the flag --{} is not implemented; known here: {}",
                flag.name,
                if known.is_empty() { "none".to_owned() } else { known.join(", ") }
            ));
        };
        if found[at].replace(flag).is_some() {
            return Err(format!("the flag --{} is given twice", flag.name));
        }
    }
    Ok(found)
}

fn value(flag: Option<&Flag>) -> Result<Option<String>, String> {
    let Some(flag) = flag else { return Ok(None) };
    match &flag.value {
        Some(value) if !value.is_empty() => Ok(Some(value.clone())),
        _ => Err(format!("the flag --{} has no value; expected --{}=VALUE", flag.name, flag.name)),
    }
}

fn from(node: &Node, escape: char) -> Result<Kind, String> {
    let [platform] = flags(node, ["platform"])?;
    let words = expand::raw_words(&node.rest, escape);
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let (image, name) = match words[..] {
        [image] => (image, None),
        [image, as_, name] if as_.eq_ignore_ascii_case("as") => (image, Some(name)),
        _ => return Err(format!("expected {}, found {:?}", usage("FROM"), node.rest)),
    };
    if let Some(name) = name {
        let fits = name.starts_with(|c: char| c.is_ascii_alphabetic())
            && name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
        if !fits {
            return Err(format!(
                "{name:?} is no name for a stage: it starts with a letter and goes on with letters, digits, '-', '_' and '.'"
            ));
        }
    }
    let name = name.map(str::to_lowercase);
    Ok(Kind::From { platform: value(platform)?, image: image.into(), name })
}

/// `NAME=VALUE ...`, or the old form `NAME VALUE`.
fn pairs(rest: &str, keyword: &str, escape: char) -> Result<Vec<(String, String)>, String> {
    let words = expand::raw_words(rest, escape);
    if let Some(first) = words.first()
        && !first.contains('=')
    {
        let value = rest[first.len()..].trim_start();
        if value.is_empty() {
            return Err(format!("{first:?} has no value; expected {}", usage(keyword)));
        }
        return Ok(vec![(first.clone(), value.to_owned())]);
    }
    words
        .into_iter()
        .map(|word| match word.split_once('=') {
            Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
            _ => Err(format!("expected {}, found {word:?}", usage(keyword))),
        })
        .collect()
}

fn transfer(node: &Node, escape: char) -> Result<Transfer, String> {
    let add = node.place.keyword == "ADD";
    let [from, chown, chmod, link] = flags(node, ["from", "chown", "chmod", "link"])?;
    if let (true, Some(_)) = (add, from) {
        return Err("ADD takes no --from; use COPY --from".into());
    }
    // A layer is always made on its own here, so that --link changes nothing.
    let _ = link;
    let mut words = match command(&node.rest) {
        Command::Exec(words) => words,
        // Words keep their quotes until their variables are replaced.
        Command::Shell(text) => expand::raw_words(&text, escape),
    };
    let target = words.pop().unwrap_or_default();
    if words.is_empty() {
        return Err(format!("expected at least one source and a target: {}", usage("COPY")));
    }
    let mut heredocs = node.heredocs.iter();
    let sources = words
        .into_iter()
        .map(|word| {
            match node.heredocs.iter().any(|h| h.word == word).then(|| heredocs.next()).flatten() {
                Some(heredoc) => Source::Text(heredoc.clone()),
                None => Source::Path(word),
            }
        })
        .collect::<Vec<_>>();
    for source in &sources {
        if let Source::Path(path) = source
            && add
            && (path.contains("://") || path.starts_with("git@"))
        {
            return Err(format!(
                "fetching {path} is not implemented; put the file into the build context"
            ));
        }
    }
    Ok(Transfer {
        add,
        from: value(from)?,
        chown: value(chown)?,
        chmod: value(chmod)?,
        sources,
        target,
    })
}

fn run(node: &Node) -> Result<Kind, String> {
    for flag in &node.flags {
        let value = flag.value.as_deref().unwrap_or_default();
        match (flag.name.as_str(), value) {
            // There is no network but loopback in either.
            ("network", "default" | "none") => {}
            ("security", "sandbox") => {}
            (name, _) => {
                return Err(format!(
                    "the flag --{name}={value} is not implemented; known here: --network=none"
                ));
            }
        }
    }
    let command = command(&node.rest);
    if command == Command::Exec(vec![]) {
        return Err("expected a command".into());
    }
    Ok(Kind::Run { command, heredocs: node.heredocs.clone() })
}

fn healthcheck(node: &Node) -> Result<Healthcheck, String> {
    let known = ["interval", "timeout", "start-period", "start-interval", "retries"];
    let [interval, timeout, start_period, start_interval, retries] = flags(node, known)?;
    let (kind, rest) =
        node.rest.split_once(char::is_whitespace).unwrap_or((node.rest.as_str(), ""));
    let command = match kind.to_ascii_uppercase().as_str() {
        "NONE" if rest.trim().is_empty() => None,
        "CMD" if !rest.trim().is_empty() => Some(command(rest.trim())),
        _ => return Err(format!("expected {}, found {:?}", usage("HEALTHCHECK"), node.rest)),
    };
    let time = |flag| match value(flag)? {
        Some(text) => duration(&text).ok_or_else(|| {
            format!("{text:?} is no duration of at least 1ms; expected one like 30s or 1m30s")
        }),
        None => Ok(0),
    };
    let retries = match value(retries)? {
        Some(text) => text.parse().map_err(|_| format!("--retries={text} is no number"))?,
        None => 0,
    };
    Ok(Healthcheck {
        command,
        interval: time(interval)?,
        timeout: time(timeout)?,
        start_period: time(start_period)?,
        start_interval: time(start_interval)?,
        retries,
    })
}

/// A trigger is checked now, and understood when an image is made from this one.
fn onbuild(rest: &str) -> Result<Kind, String> {
    let inner = match syntax::parse("", rest).and_then(understand) {
        Ok(inner) => inner,
        Err(Error::Dockerfile { message, .. }) => return Err(message),
        Err(other) => return Err(other.to_string()),
    };
    match inner.first().map(|inner| inner.place.keyword.as_str()) {
        Some(forbidden @ ("FROM" | "MAINTAINER" | "ONBUILD")) => {
            Err(format!("{forbidden} cannot be left for images made from this one"))
        }
        _ => Ok(Kind::Onbuild(rest.to_owned())),
    }
}

/// The instructions that a base has left for images made from it. They stand where `FROM` does.
pub(crate) fn triggers(texts: &[String], from: &Place) -> Result<Vec<Instruction>, Error> {
    let mut all = Vec::new();
    for text in texts {
        let found = syntax::parse(&from.file, text).and_then(understand).map_err(|error| {
            let message = match error {
                Error::Dockerfile { message, .. } => message,
                other => other.to_string(),
            };
            from.error(format!("the base wants {text:?} to be run: {message}"))
        })?;
        all.extend(found.into_iter().map(|mut instruction| {
            instruction.place.line = from.line;
            instruction.text = format!("ONBUILD {}", instruction.text);
            instruction
        }));
    }
    Ok(all)
}

/// A duration as Go writes them (`1h2m3.5s`), in nanoseconds; at least a millisecond, or zero.
fn duration(text: &str) -> Option<u64> {
    if text == "0" {
        return Some(0);
    }
    let mut rest = text;
    let mut total = 0f64;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let (unit, size) = [
            ("ns", 1.),
            ("us", 1e3),
            ("µs", 1e3),
            ("ms", 1e6),
            ("s", 1e9),
            ("m", 6e10),
            ("h", 3.6e12),
        ]
        .into_iter()
        .find(|(unit, _)| rest.starts_with(unit))?;
        rest = &rest[unit.len()..];
        total += number * size;
    }
    (total == 0. || total >= 1e6).then_some(total as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(text: &str) -> Result<Kind, String> {
        let file = crate::syntax::parse("Dockerfile", text).map_err(|e| e.to_string())?;
        understand(file).map(|mut all| all.remove(0).kind).map_err(|e| e.to_string())
    }

    #[test]
    fn stages_are_named_in_lower_case() {
        let kind = one("FROM --platform=linux/amd64 img:1 AS Build").unwrap();
        let platform = Some("linux/amd64".to_owned());
        let expected = Kind::From { platform, image: "img:1".into(), name: Some("build".into()) };
        assert_eq!(kind, expected);
        assert!(one("FROM a b").unwrap_err().contains("expected FROM IMAGE [AS NAME]"));
        assert!(one("FROM a AS 1b").unwrap_err().contains("no name for a stage"));
    }

    #[test]
    fn variables_have_two_forms() {
        let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        let new = Kind::Env(vec![pair("a", "\"b c\""), pair("d", "e\\ f")]);
        assert_eq!(one("ENV a=\"b c\" d=e\\ f").unwrap(), new);
        assert_eq!(one("ENV a b=c  d").unwrap(), Kind::Env(vec![pair("a", "b=c  d")]));
        assert!(one("ENV a").unwrap_err().contains("\"a\" has no value"));
        assert!(one("ENV a=b c").unwrap_err().contains("found \"c\""));
    }

    #[test]
    fn commands_are_lists_or_for_the_shell() {
        let words = vec!["a".to_owned(), "b c".to_owned()];
        assert_eq!(one("CMD [\"a\", \"b c\"]").unwrap(), Kind::Cmd(Command::Exec(words)));
        let shell = Command::Shell("[ -e x ] && y".into());
        assert_eq!(one("ENTRYPOINT [ -e x ] && y").unwrap(), Kind::Entrypoint(shell));
        assert!(one("SHELL /bin/sh").unwrap_err().contains("expected a JSON list"));
    }

    #[test]
    fn what_was_meant_as_a_list_is_told_from_the_shells_test() {
        let odd = |text: &str| {
            let file = crate::syntax::parse("Dockerfile", text).unwrap();
            understand(file).unwrap()[0].broken_list().is_some()
        };
        for text in [
            r#"CMD ["a","#,
            r#"ENTRYPOINT ["a", 1]"#,
            "RUN ['a', 'b']",
            r#"VOLUME [ "/v", ]"#,
            r#"HEALTHCHECK CMD ["a" "b"]"#,
        ] {
            assert!(odd(text), "{text}");
        }
        for text in [r#"CMD ["a"]"#, r#"RUN [ "$a" = "b" ] && c"#, "RUN [ -e x ]", "CMD a [\"b\","]
        {
            assert!(!odd(text), "{text}");
        }
    }

    #[test]
    fn triggers_are_checked_where_they_are_left() {
        assert_eq!(one("ONBUILD RUN x").unwrap(), Kind::Onbuild("RUN x".into()));
        assert!(one("ONBUILD FROM x").unwrap_err().contains("FROM cannot be left"));
        assert!(one("ONBUILD ONBUILD RUN x").unwrap_err().contains("ONBUILD cannot be left"));
        assert!(one("ONBUILD COYP a b").unwrap_err().contains("did you mean COPY?"));
        assert!(one("ONBUILD ENV A").unwrap_err().contains("has no value"));
    }

    #[test]
    fn health_checks_take_durations() {
        let Kind::Healthcheck(found) =
            one("HEALTHCHECK --interval=1m30s --retries=3 CMD curl x").unwrap()
        else {
            panic!()
        };
        assert_eq!((found.interval, found.retries, found.timeout), (90_000_000_000, 3, 0));
        assert_eq!(found.command, Some(Command::Shell("curl x".into())));
        assert!(one("HEALTHCHECK --interval=x CMD y").unwrap_err().contains("no duration"));
        assert!(one("HEALTHCHECK curl").unwrap_err().contains("CMD COMMAND or NONE"));
    }

    #[test]
    fn what_is_not_implemented_says_so() {
        for text in [
            "ADD https://example.org/x /x",
            "RUN --mount=type=cache,target=/x y",
            "COPY --parents a b",
        ] {
            let error = one(text).unwrap_err();
            assert!(error.contains("not implemented"), "{text}: {error}");
        }
    }

    #[test]
    fn sources_may_be_here_documents() {
        let Kind::Copy(found) = one("COPY <<a b <<c /d/\n1\na\n2\nc").unwrap() else { panic!() };
        let texts: Vec<_> = found
            .sources
            .iter()
            .map(|s| match s {
                Source::Path(path) => path.clone(),
                Source::Text(text) => format!("{}={}", text.name, text.text),
            })
            .collect();
        assert_eq!(texts, ["a=1\n", "b", "c=2\n"]);
        assert!(one("COPY a").unwrap_err().contains("at least one source"));
    }

    proptest::proptest! {
        /// Whatever a file says, it is understood or refused, with a line that it has.
        #[test]
        fn no_text_is_too_odd(parts in proptest::collection::vec(proptest::sample::select(vec![
            "FROM", "RUN", "COPY", "ENV", "ARG", "CMD", "LABEL", "HEALTHCHECK", "SHELL", "ADD", " ",
            " ", " ", "\n", "\n", "\\", "\\\n", "`", "# escape=`\n", "#", "<<EOF", "<<-'A b'",
            "EOF", "\nEOF\n", "ONBUILD ", "--", "--from=", "=", "a", "ä", "$", "${", "}", ":-", ":?", "\"", "'",
            "[", "]", "[\"a\"]", ",", "\t", "\r\n", "/", "*", "CMD x", "AS", "scratch",
        ]), 0..40)) {
            let text: String = parts.concat();
            let get = |_: &str| Some("v".to_owned());
            let expander = crate::expand::Expander { escape: '\\', get: &get };
            let _ = (expander.word(&text), expander.words(&text), expander.document(&text));
            let result = crate::syntax::parse("f", &text).and_then(|file| {
                let escape = file.escape;
                let all = understand(file)?;
                crate::stages::plan("f", all, escape, &Default::default())
            });
            match result {
                Ok(plan) => assert!(plan.target(None).is_ok()),
                Err(Error::Dockerfile { line, .. }) => {
                    assert!((1..=text.lines().count().max(1)).contains(&line));
                }
                Err(other) => panic!("{other}"),
            }
        }
    }
}
