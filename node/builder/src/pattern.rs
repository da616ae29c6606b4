//! File name patterns: Go's `filepath.Match` with `**`, and the rules of `.dockerignore`.

/// A compiled pattern over slash-separated relative paths.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pattern(Vec<Token>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    Char(char),
    /// `?`: one character but a slash.
    One,
    /// `*`: any characters but a slash.
    Some,
    /// `**`: any characters.
    All,
    /// `**/`: nothing, or directories.
    Directories,
    /// `[...]`.
    Class {
        negated: bool,
        ranges: Vec<(char, char)>,
    },
}

impl Pattern {
    /// Compiles a pattern.
    pub(crate) fn new(text: &str) -> Result<Self, String> {
        let mut tokens = Vec::new();
        let mut chars = text.chars().peekable();
        let bad = |why: &str| format!("the pattern {text:?} is invalid: {why}");
        while let Some(c) = chars.next() {
            tokens.push(match c {
                '?' => Token::One,
                '*' if chars.next_if_eq(&'*').is_some() => {
                    if chars.next_if_eq(&'/').is_some() {
                        Token::Directories
                    } else {
                        Token::All
                    }
                }
                '*' => Token::Some,
                '\\' => Token::Char(chars.next().ok_or_else(|| bad("it ends with \\"))?),
                '[' => {
                    let negated = chars.next_if_eq(&'^').is_some();
                    let mut ranges = Vec::new();
                    let mut one = || -> Result<char, String> {
                        match chars.next().ok_or_else(|| bad("a [ is not closed"))? {
                            '\\' => chars.next().ok_or_else(|| bad("a [ is not closed")),
                            c => Ok(c),
                        }
                    };
                    let mut first = one()?;
                    loop {
                        if first == ']' {
                            if ranges.is_empty() {
                                return Err(bad("[] is empty"));
                            }
                            break;
                        }
                        let mut next = one()?;
                        let mut last = first;
                        if next == '-' {
                            last = one()?;
                            next = one()?;
                        }
                        ranges.push((first, last));
                        first = next;
                    }
                    Token::Class { negated, ranges }
                }
                c => Token::Char(c),
            });
        }
        Ok(Self(tokens))
    }

    /// Whether the text has characters that mean something in a pattern.
    pub(crate) fn is_pattern(text: &str) -> bool {
        text.contains(['*', '?', '[', '\\'])
    }

    /// Whether the whole path matches.
    pub(crate) fn matches(&self, path: &str) -> bool {
        let path: Vec<char> = path.chars().collect();
        // reached[i]: the tokens so far can have taken exactly path[..i].
        let mut reached = vec![false; path.len() + 1];
        reached[0] = true;
        for token in &self.0 {
            let mut next = vec![false; path.len() + 1];
            for at in 0..=path.len() {
                if !reached[at] {
                    continue;
                }
                let here = path.get(at);
                match token {
                    Token::Char(c) if here == Some(c) => next[at + 1] = true,
                    Token::One if here.is_some_and(|c| *c != '/') => next[at + 1] = true,
                    Token::Class { negated, ranges } => {
                        let fits = |c: &char| ranges.iter().any(|(a, b)| (a..=b).contains(&c));
                        if here.is_some_and(|c| *c != '/' && fits(c) != *negated) {
                            next[at + 1] = true;
                        }
                    }
                    Token::Some => {
                        let end = path[at..].iter().position(|c| *c == '/');
                        let end = end.map_or(path.len(), |end| at + end);
                        next[at..=end].fill(true);
                    }
                    Token::All => next[at..].fill(true),
                    Token::Directories => {
                        next[at] = true;
                        for (slash, c) in path.iter().enumerate().skip(at) {
                            next[slash + 1] |= *c == '/';
                        }
                    }
                    _ => {}
                }
            }
            reached = next;
        }
        reached[path.len()]
    }
}

/// The rules of a `.dockerignore` file.
#[derive(Debug, Clone, Default)]
pub(crate) struct Ignore {
    /// In order: the pattern, and whether it takes back (`!`).
    rules: Vec<(Pattern, bool)>,
}

impl Ignore {
    /// Reads the file's text. Errors begin with the line's number.
    pub(crate) fn parse(text: &str) -> Result<Self, (usize, String)> {
        let mut rules = Vec::new();
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        for (at, line) in text.lines().enumerate() {
            if line.starts_with('#') {
                continue;
            }
            let line = line.trim();
            let (line, back) = match line.strip_prefix('!') {
                Some(line) => (line.trim(), true),
                None => (line, false),
            };
            if line.is_empty() {
                if back {
                    return Err((at + 1, "expected a pattern after !".into()));
                }
                continue;
            }
            let clean = clean(line);
            if !clean.is_empty() {
                rules.push((Pattern::new(&clean).map_err(|e| (at + 1, e))?, back));
            }
        }
        Ok(Self { rules })
    }

    /// Whether the path, or a directory that it is in, is left out. The last rule that fits wins.
    pub(crate) fn ignores(&self, path: &str) -> bool {
        if path.is_empty() {
            return false;
        }
        let mut ignored = false;
        for (pattern, back) in &self.rules {
            if ignored != *back {
                continue;
            }
            let prefixes = path.match_indices('/').map(|(at, _)| &path[..at]);
            if prefixes.chain([path]).any(|prefix| pattern.matches(prefix)) {
                ignored = !back;
            }
        }
        ignored
    }

    /// Whether something below an ignored directory may still be wanted.
    pub(crate) fn takes_back(&self) -> bool {
        self.rules.iter().any(|(_, back)| *back)
    }
}

/// The path without `.`, `..`, double and outer slashes.
pub(crate) fn clean(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    parts.join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_as_documented() {
        for (pattern, path, expected) in [
            ("*.go", "a.go", true),
            ("*.go", "d/a.go", false),
            ("**/*.go", "a.go", true),
            ("**/*.go", "d/e/a.go", true),
            ("d/**", "d/e/a.go", true),
            ("d/**", "d", false),
            ("d/**/x", "d/x", true),
            ("d/**/x", "d/a/b/x", true),
            ("d/**/x", "dx", false),
            ("hom?.txt", "home.txt", true),
            ("hom?", "hom/", false),
            ("[a-c^]x", "bx", true),
            ("[^a-c]x", "bx", false),
            ("[^a-c]x", "dx", true),
            ("arr\\[0].txt", "arr[0].txt", true),
            ("", "", true),
            ("*a*a*a*a*a*b", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", false),
        ] {
            assert_eq!(Pattern::new(pattern).unwrap().matches(path), expected, "{pattern} {path}");
        }
        assert!(Pattern::new("[a").is_err());
        assert!(Pattern::new("a\\").is_err());
        assert!(Pattern::new("[]").is_err());
    }

    #[test]
    fn the_last_rule_that_fits_wins() {
        let ignore =
            Ignore::parse("# c\n/target/\n*.md\n!README*\nREADME-secret.md\n**/tmp\n").unwrap();
        for (path, expected) in [
            ("target", true),
            ("target/debug/x", true),
            ("src/target", false),
            ("a.md", true),
            ("d/a.md", false),
            ("README.md", false),
            ("README-secret.md", true),
            ("a/b/tmp/c", true),
            ("", false),
        ] {
            assert_eq!(ignore.ignores(path), expected, "{path}");
        }
        assert!(ignore.takes_back());
        assert_eq!(Ignore::parse("a\n[b\n").unwrap_err().0, 2);
    }

    #[test]
    fn everything_may_be_ignored_but_some() {
        let ignore = Ignore::parse("*\n!src\n!go.*\nsrc/gen\n").unwrap();
        assert!(ignore.ignores("x/y"));
        assert!(!ignore.ignores("src/main.go"));
        assert!(ignore.ignores("src/gen/a"));
        assert!(!ignore.ignores("go.mod"));
    }
}
