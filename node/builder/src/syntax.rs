//! The lines of a Dockerfile: directives, comments, continuation lines, flags, here-documents.
//!
//! Gives one [`Node`] per instruction; what its words mean is [`crate::instruction`]'s business.

use crate::{Error, Place, expand, nearest};

/// All instructions, for suggestions.
pub(crate) const KEYWORDS: [&str; 18] = [
    "ADD",
    "ARG",
    "CMD",
    "COPY",
    "ENTRYPOINT",
    "ENV",
    "EXPOSE",
    "FROM",
    "HEALTHCHECK",
    "LABEL",
    "MAINTAINER",
    "ONBUILD",
    "RUN",
    "SHELL",
    "STOPSIGNAL",
    "USER",
    "VOLUME",
    "WORKDIR",
];

/// `--name=value` after an instruction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Flag {
    pub(crate) name: String,
    pub(crate) value: Option<String>,
}

/// The text after `<<NAME`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Heredoc {
    /// The word in its place, for example `<<-'EOF'`.
    pub(crate) word: String,
    /// The delimiter.
    pub(crate) name: String,
    /// Variables are replaced: the delimiter was not quoted.
    pub(crate) expand: bool,
    /// The lines, each with its newline; without leading tabs if it was `<<-`.
    pub(crate) text: String,
    /// The lines as they stand in the file.
    pub(crate) raw: String,
}

/// One instruction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Node {
    pub(crate) place: Place,
    pub(crate) flags: Vec<Flag>,
    /// Everything after the flags, continuation lines joined.
    pub(crate) rest: String,
    pub(crate) heredocs: Vec<Heredoc>,
}

/// A Dockerfile, split.
#[derive(Debug)]
pub(crate) struct File {
    pub(crate) nodes: Vec<Node>,
    /// The escape character: `\` or a backtick.
    pub(crate) escape: char,
}

/// Splits the text of `file`.
pub(crate) fn parse(file: &str, text: &str) -> Result<File, Error> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let lines: Vec<&str> = text.lines().collect();
    let (escape, mut at) = directives(file, &lines)?;
    let mut nodes = Vec::new();
    while at < lines.len() {
        let first = at;
        let start = lines[at].trim_start();
        at += 1;
        if start.is_empty() || start.starts_with('#') {
            continue;
        }
        let (mut whole, mut more) = continued(start, escape);
        while more && at < lines.len() {
            let line = lines[at];
            at += 1;
            let content = line.trim_start();
            // Comments and empty lines do not end a continued instruction.
            if content.is_empty() || content.starts_with('#') {
                continue;
            }
            let (text, again) = continued(line, escape);
            whole.push_str(&text);
            more = again;
        }
        nodes.push(node(file, first + 1, whole.trim_end(), escape, &lines, &mut at)?);
    }
    if nodes.is_empty() {
        return Err(Error::Dockerfile {
            file: file.into(),
            line: 1,
            message: "the file has no instructions; expected FROM".into(),
        });
    }
    Ok(File { nodes, escape })
}

/// Parser directives: the escape character, and the first line after them.
fn directives(file: &str, lines: &[&str]) -> Result<(char, usize), Error> {
    let mut escape = None;
    for (at, line) in lines.iter().enumerate() {
        let directive = line.trim().strip_prefix('#').and_then(|l| l.split_once('='));
        let Some((name, value)) = directive.map(|(name, value)| (name.trim(), value.trim())) else {
            return Ok((escape.unwrap_or('\\'), at));
        };
        let error =
            |message: String| Error::Dockerfile { file: file.into(), line: at + 1, message };
        match name.to_ascii_lowercase().as_str() {
            "escape" if escape.is_some() => {
                return Err(error("escape: the directive may be given only once".into()));
            }
            "escape" => {
                escape = Some(match value {
                    "\\" => '\\',
                    "`" => '`',
                    other => {
                        return Err(error(format!("escape: expected \\ or `, found {other:?}")));
                    }
                });
            }
            "syntax" | "check" => {}
            _ => return Ok((escape.unwrap_or('\\'), at)),
        }
    }
    Ok((escape.unwrap_or('\\'), lines.len()))
}

/// The line without its continuation mark, and whether it had one.
fn continued(line: &str, escape: char) -> (String, bool) {
    let trimmed = line.trim_end_matches([' ', '\t', '\r']);
    match trimmed.strip_suffix(escape) {
        // An escaped escape character is no continuation.
        Some(text) if !text.ends_with(escape) => (text.to_owned(), true),
        _ => (line.to_owned(), false),
    }
}

fn node(
    file: &str,
    line: usize,
    text: &str,
    escape: char,
    lines: &[&str],
    at: &mut usize,
) -> Result<Node, Error> {
    let (word, rest) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
    let keyword = word.to_ascii_uppercase();
    if !KEYWORDS.contains(&keyword.as_str()) {
        let hint = match nearest(&keyword, KEYWORDS) {
            Some(close) => format!("did you mean {close}?"),
            None => format!("expected one of {}", KEYWORDS.join(", ")),
        };
        return Err(Error::Dockerfile {
            file: file.into(),
            line,
            message: format!("unknown instruction {word}; {hint}"),
        });
    }
    let place = Place { file: file.into(), line, keyword };
    let mut rest = rest.trim_start();
    let mut flags = Vec::new();
    if matches!(place.keyword.as_str(), "ADD" | "COPY" | "FROM" | "HEALTHCHECK" | "RUN") {
        while rest.starts_with("--") {
            let (word, after) = expand::first_word(rest, escape);
            rest = after.trim_start();
            if word == "--" {
                break;
            }
            let word = expand::unquote(&word, escape).map_err(|e| place.error(e))?;
            let (name, value) = match word[2..].split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (&word[2..], None),
            };
            flags.push(Flag { name: name.to_owned(), value });
        }
    }
    let mut heredocs = Vec::new();
    let json = rest.starts_with('[') && serde_json::from_str::<Vec<String>>(rest).is_ok();
    if matches!(place.keyword.as_str(), "ADD" | "COPY" | "RUN") && !json {
        for word in expand::raw_words(rest, escape) {
            if let Some(opening) = opening(&word, escape) {
                heredocs.push(heredoc(&place, opening, word, lines, at)?);
            }
        }
    }
    Ok(Node { place, flags, rest: rest.to_owned(), heredocs })
}

/// The beginning of a here-document.
struct Opening {
    name: String,
    expand: bool,
    tabs: bool,
}

/// Understands `<<NAME`, `<<-NAME`, `<<"NAME"` and `3<<NAME`.
fn opening(word: &str, escape: char) -> Option<Opening> {
    let name = word.trim_start_matches(|c: char| c.is_ascii_digit()).strip_prefix("<<")?;
    let (name, tabs) = match name.strip_prefix('-') {
        Some(name) => (name, true),
        None => (name, false),
    };
    if name.is_empty() || name.contains('<') {
        return None;
    }
    let plain = expand::unquote(name, escape).ok().filter(|plain| !plain.is_empty())?;
    Some(Opening { expand: !name.contains(['"', '\'']), name: plain, tabs })
}

fn heredoc(
    place: &Place,
    opening: Opening,
    word: String,
    lines: &[&str],
    at: &mut usize,
) -> Result<Heredoc, Error> {
    let (mut text, mut raw) = (String::new(), String::new());
    let Opening { name, expand, tabs } = opening;
    while let Some(line) = lines.get(*at) {
        *at += 1;
        let content = if tabs { line.trim_start_matches('\t') } else { line };
        if content == name {
            return Ok(Heredoc { word, name, expand, text, raw });
        }
        text.push_str(content);
        text.push('\n');
        raw.push_str(line);
        raw.push('\n');
    }
    Err(place
        .error(format!("the here-document {word} does not end; expected a line {name:?} after it")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes(text: &str) -> Vec<(usize, String, String)> {
        let parsed = parse("Dockerfile", text).unwrap();
        parsed.nodes.into_iter().map(|n| (n.place.line, n.place.keyword, n.rest)).collect()
    }

    fn refused(text: &str) -> String {
        parse("Dockerfile", text).unwrap_err().to_string()
    }

    #[test]
    fn lines_are_continued_across_comments_and_empty_lines() {
        let found = nodes("FROM x\nRUN a \\\n  # why\n\n  b \\ \n\tc\nrun d");
        assert_eq!(found[1], (2, "RUN".into(), "a   b \tc".into()));
        assert_eq!(found[2], (7, "RUN".into(), "d".into()));
    }

    #[test]
    fn an_escaped_escape_ends_the_line() {
        assert_eq!(nodes("RUN a\\\\\nCMD b").len(), 2);
    }

    #[test]
    fn the_escape_directive_changes_the_continuation() {
        let found = nodes("# syntax=docker/dockerfile:1\n# escape=`\nRUN a `\n b\nRUN c\\\nCMD d");
        assert_eq!(found.len(), 3);
        assert_eq!(found[0].2, "a  b");
        assert!(refused("# escape=x\nFROM a").contains("Dockerfile:1: escape: expected \\ or `"));
        // A comment ends the directives.
        assert_eq!(nodes("# hello\n# escape=`\nRUN a \\\n b")[0].2, "a  b");
    }

    #[test]
    fn flags_stand_before_the_words() {
        let node = &parse("f", "COPY --from=x --chown=\"a b\" --link src dst").unwrap().nodes[0];
        assert_eq!(node.rest, "src dst");
        assert_eq!(node.flags[1], Flag { name: "chown".into(), value: Some("a b".into()) });
        assert_eq!(node.flags[2], Flag { name: "link".into(), value: None });
    }

    #[test]
    fn here_documents_are_taken_wherever_they_open() {
        let text = "RUN cat <<-'A' > /x && cat 3<<B\n\tone\n\tA\n  two\nB\nCMD x";
        let parsed = parse("f", text).unwrap();
        assert_eq!(parsed.nodes.len(), 2);
        let [a, b] = &parsed.nodes[0].heredocs[..] else { panic!("{parsed:?}") };
        assert_eq!((a.text.as_str(), a.expand, a.raw.as_str()), ("one\n", false, "\tone\n"));
        assert_eq!((b.text.as_str(), b.expand), ("  two\n", true));
        assert!(refused("RUN <<EOF\nx").contains("expected a line \"EOF\""));
        assert!(parse("f", "RUN echo \"<<EOF\" $((1<<2))").unwrap().nodes[0].heredocs.is_empty());
    }

    #[test]
    fn unknown_instructions_get_a_suggestion() {
        assert_eq!(
            refused("FROM x\n\nCOYP a b"),
            "Dockerfile:3: unknown instruction COYP; did you mean COPY?"
        );
        assert!(refused("FROM x\nBANANA").contains("expected one of ADD, ARG"));
        assert!(refused("# nothing\n").contains("expected FROM"));
    }
}
