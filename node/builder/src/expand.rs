//! Words: quotes, escapes and variables, as the Dockerfile reference has them.

/// How deep `${a:-${b:-...}}` may go: each level takes some of the stack.
const DEPTH: usize = 200;

/// Replaces variables and removes quotes.
pub(crate) struct Expander<'a> {
    /// The escape character.
    pub(crate) escape: char,
    /// Looks a variable up.
    pub(crate) get: &'a dyn Fn(&str) -> Option<String>,
}

type Chars<'t> = std::iter::Peekable<std::str::Chars<'t>>;

impl Expander<'_> {
    /// The word with its variables replaced and its quotes removed.
    pub(crate) fn word(&self, text: &str) -> Result<String, String> {
        let mut out = Vec::new();
        self.run(&mut text.chars().peekable(), None, 0, &mut out)?;
        Ok(out.into_iter().map(|(c, _)| c).collect())
    }

    /// The words that the text yields when it is split at spaces after its variables were replaced.
    pub(crate) fn words(&self, text: &str) -> Result<Vec<String>, String> {
        let mut out = Vec::new();
        self.run(&mut text.chars().peekable(), None, 0, &mut out)?;
        let mut words = Vec::new();
        for word in out.split(|(c, quoted)| c.is_whitespace() && !quoted) {
            if !word.is_empty() {
                words.push(word.iter().map(|(c, _)| *c).collect());
            }
        }
        Ok(words)
    }

    /// A here-document: variables and escapes, but quotes stay.
    pub(crate) fn document(&self, text: &str) -> Result<String, String> {
        let mut out = Vec::new();
        let mut chars = text.chars().peekable();
        while let Some(c) = chars.next() {
            match c {
                '$' => self.dollar(&mut chars, false, 0, &mut out)?,
                c if c == self.escape => match chars.peek() {
                    Some(&next) if next == '$' || next == self.escape => {
                        chars.next();
                        out.push((next, true));
                    }
                    _ => out.push((c, true)),
                },
                c => out.push((c, true)),
            }
        }
        Ok(out.into_iter().map(|(c, _)| c).collect())
    }

    /// Works until `end` (which is consumed) or the end of the text, inside of `depth` variables.
    /// Each character comes with whether it was quoted.
    fn run(
        &self,
        chars: &mut Chars<'_>,
        end: Option<char>,
        depth: usize,
        out: &mut Vec<(char, bool)>,
    ) -> Result<(), String> {
        while let Some(c) = chars.next() {
            if Some(c) == end {
                return Ok(());
            }
            match c {
                '\'' => loop {
                    match chars.next() {
                        Some('\'') => break,
                        Some(c) => out.push((c, true)),
                        None => return Err("a single quote ' is not closed".into()),
                    }
                },
                '"' => self.quoted(chars, depth, out)?,
                '$' => self.dollar(chars, false, depth, out)?,
                c if c == self.escape => {
                    if let Some(c) = chars.next() {
                        out.push((c, true));
                    }
                }
                c => out.push((c, false)),
            }
        }
        match end {
            Some(end) => Err(format!("a variable is not closed; expected {end:?}")),
            None => Ok(()),
        }
    }

    /// Inside double quotes.
    fn quoted(
        &self,
        chars: &mut Chars<'_>,
        depth: usize,
        out: &mut Vec<(char, bool)>,
    ) -> Result<(), String> {
        loop {
            match chars.next() {
                Some('"') => return Ok(()),
                Some('$') => self.dollar(chars, true, depth, out)?,
                Some(c) if c == self.escape => match chars.next() {
                    Some(next) if next == '"' || next == '$' || next == self.escape => {
                        out.push((next, true));
                    }
                    Some(next) => out.extend([(c, true), (next, true)]),
                    None => return Err("a double quote \" is not closed".into()),
                },
                Some(c) => out.push((c, true)),
                None => return Err("a double quote \" is not closed".into()),
            }
        }
    }

    /// After a `$`.
    fn dollar(
        &self,
        chars: &mut Chars<'_>,
        quoted: bool,
        depth: usize,
        out: &mut Vec<(char, bool)>,
    ) -> Result<(), String> {
        let mut put = |text: &str| out.extend(text.chars().map(|c| (c, quoted)));
        if chars.peek() != Some(&'{') {
            let name = name(chars);
            match name.is_empty() {
                true => put("$"),
                false => put(&(self.get)(&name).unwrap_or_default()),
            }
            return Ok(());
        }
        chars.next();
        let name = name(chars);
        if name.is_empty() {
            return Err("expected a variable's name after ${".into());
        }
        let value = (self.get)(&name);
        let unclosed = || format!("${{{name} is not closed; expected '}}'");
        let mut operator = chars.next().ok_or_else(unclosed)?;
        // With a colon, an empty value counts as none.
        let mut present = value.is_some();
        if operator == ':' {
            present = value.as_ref().is_some_and(|v| !v.is_empty());
            operator = chars.next().ok_or_else(unclosed)?;
            if !matches!(operator, '-' | '+' | '?') {
                return Err(format!(
                    "${{{name}:{operator}}} is not known; expected ':-', ':+' or ':?'"
                ));
            }
        }
        if operator == '}' {
            put(&value.unwrap_or_default());
            return Ok(());
        }
        if depth == DEPTH {
            return Err(format!("variables are nested more than {DEPTH} deep at ${{{name}"));
        }
        let mut word = Vec::new();
        self.run(chars, Some('}'), depth + 1, &mut word)
            .map_err(|e| if e.contains("variable is not closed") { unclosed() } else { e })?;
        let word: String = word.into_iter().map(|(c, _)| c).collect();
        match operator {
            '-' if present => put(&value.unwrap_or_default()),
            '-' => put(&word),
            '+' if present => put(&word),
            '+' => {}
            '?' if present => put(&value.unwrap_or_default()),
            '?' => {
                return Err(format!(
                    "{name}: {}",
                    if word.is_empty() { "is not set" } else { &word }
                ));
            }
            '#' | '%' | '/' => {
                return Err(format!(
                    "${{{name}{operator}...}} is not implemented; use :-, :+ or :?"
                ));
            }
            other => {
                return Err(format!(
                    "${{{name}{other}...}} is not known; expected ':-', ':+' or ':?'"
                ));
            }
        }
        Ok(())
    }
}

/// A variable's name, or the digits of a positional parameter.
fn name(chars: &mut Chars<'_>) -> String {
    let mut name = String::new();
    let digits = chars.peek().is_some_and(char::is_ascii_digit);
    while let Some(&c) = chars.peek() {
        let fits = if digits { c.is_ascii_digit() } else { c.is_ascii_alphanumeric() || c == '_' };
        if !fits {
            break;
        }
        name.push(c);
        chars.next();
    }
    name
}

/// The text without quotes and escapes; variables stay.
pub(crate) fn unquote(text: &str, escape: char) -> Result<String, String> {
    let mut out = String::new();
    let mut chars = text.chars();
    let mut quote = None;
    while let Some(c) = chars.next() {
        match (quote, c) {
            (Some(q), c) if c == q => quote = None,
            (None, '\'' | '"') => quote = Some(c),
            (None | Some('"'), c) if c == escape => match chars.next() {
                Some(next) if quote.is_none() || next == '"' || next == escape => out.push(next),
                Some(next) => out.extend([c, next]),
                None => {}
            },
            (_, c) => out.push(c),
        }
    }
    match quote {
        Some(quote) => Err(format!("a quote {quote} is not closed")),
        None => Ok(out),
    }
}

/// The first word with its quotes and escapes, and the rest.
pub(crate) fn first_word(text: &str, escape: char) -> (String, &str) {
    let mut quote = None;
    let mut skip = false;
    for (at, c) in text.char_indices() {
        match (quote, c) {
            _ if skip => skip = false,
            (Some('\''), '\'') | (Some('"'), '"') => quote = None,
            (Some('\''), _) => {}
            (_, c) if c == escape => skip = true,
            (None, '\'' | '"') => quote = Some(c),
            (None, c) if c.is_whitespace() => return (text[..at].to_owned(), &text[at..]),
            _ => {}
        }
    }
    (text.to_owned(), "")
}

/// All words with their quotes and escapes.
pub(crate) fn raw_words(text: &str, escape: char) -> Vec<String> {
    let mut words = Vec::new();
    let mut rest = text.trim();
    while !rest.is_empty() {
        let (word, after) = first_word(rest, escape);
        words.push(word);
        rest = after.trim_start();
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    fn get(name: &str) -> Option<String> {
        match name {
            "a" => Some("one two".into()),
            "e" => Some(String::new()),
            "n" => Some("7".into()),
            _ => None,
        }
    }

    fn word(text: &str) -> Result<String, String> {
        Expander { escape: '\\', get: &get }.word(text)
    }

    #[test]
    fn variables_are_replaced_with_their_defaults() {
        for (text, expected) in [
            ("$n/x", "7/x"),
            ("${n}x$", "7x$"),
            ("$nx", ""),
            ("${none:-d}", "d"),
            ("${e:-d}", "d"),
            ("${e-d}", ""),
            ("${n:+yes}", "yes"),
            ("${e:+yes}", ""),
            ("${e+yes}", "yes"),
            ("${none:-${n}-\"q r\"}", "7-q r"),
            ("\\$n", "$n"),
            ("'$n'", "$n"),
            ("\"$n \\\"\\x\"", "7 \"\\x"),
            ("a\\ b", "a b"),
            ("$1.", "."),
        ] {
            assert_eq!(word(text).as_deref(), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_does_not_end_is_refused() {
        for (text, expected) in [
            ("${n", "${n is not closed"),
            ("${n:-x", "${n is not closed"),
            ("'a", "single quote"),
            ("\"a", "double quote"),
            ("${none:?tell me}", "none: tell me"),
            ("${n:=x}", "expected ':-'"),
        ] {
            let error = word(text).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }

    #[test]
    fn variables_in_variables_do_not_exhaust_the_stack() {
        let nested = |depth| format!("{}x{}", "${none:-".repeat(depth), "}".repeat(depth));
        assert_eq!(word(&nested(DEPTH)).as_deref(), Ok("x"));
        for depth in [DEPTH + 1, 200_000] {
            let error = word(&nested(depth)).unwrap_err();
            assert!(error.contains("nested more than 200 deep"), "{error}");
            assert!(error.len() < 100, "{error}");
        }
        let quoted = "\"${none:-".repeat(200_000);
        assert!(word(&quoted).unwrap_err().contains("nested more than 200 deep"));
    }

    #[test]
    fn words_split_after_replacement_unless_quoted() {
        let expander = Expander { escape: '\\', get: &get };
        assert_eq!(expander.words("$a \"$a\" x").unwrap(), ["one", "two", "one two", "x"]);
    }

    #[test]
    fn raw_words_keep_their_quotes() {
        assert_eq!(raw_words("a=\"b c\" d\\ e 'f g'h", '\\'), ["a=\"b c\"", "d\\ e", "'f g'h"]);
        assert_eq!(unquote("'a b'c\\ \"d\\\"\"", '\\').unwrap(), "a bc d\"");
    }
}
