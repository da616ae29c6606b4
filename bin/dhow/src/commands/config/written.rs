//! JSON and YAML read as they are written: `1.10` stays `1.10` and `no` stays `no`, because the values
//! of a store are texts.

use anyhow::{Context, Result, bail};
use granit_parser::{Event, Parser, ScalarStyle};
use serde_json::value::RawValue;
use std::collections::{BTreeMap, HashMap};

/// References that stand for more than this are an attack or a mistake.
const MOST_NODES: usize = 100_000;

/// A tree of texts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Node {
    /// A value; lists are their JSON.
    Text(String),
    /// Names and what they stand for.
    Folder(Vec<(String, Node)>),
    /// Nothing was given.
    Empty,
}

/// Reads JSON.
///
/// # Errors
/// Where it is none.
pub fn json(text: &str) -> Result<Node> {
    // Of the whole, so that errors tell lines.
    let raw: Box<RawValue> = serde_json::from_str(text)?;
    json_node(raw.get())
}

fn json_node(raw: &str) -> Result<Node> {
    Ok(match raw.as_bytes().first() {
        Some(b'{') => {
            let all: BTreeMap<String, &RawValue> = serde_json::from_str(raw)?;
            let all = all.into_iter().map(|(name, value)| Ok((name, json_node(value.get())?)));
            Node::Folder(all.collect::<Result<_>>()?)
        }
        Some(b'"') => Node::Text(serde_json::from_str(raw)?),
        Some(b'n') => Node::Empty,
        _ => Node::Text(raw.to_owned()),
    })
}

/// Reads one document of YAML.
///
/// # Errors
/// Where it is none.
pub fn yaml(text: &str) -> Result<Node> {
    // Whether it can tell comments depends on features that other crates choose.
    let options = granit_parser::options! { emit_comments: false };
    let mut reader = Reader {
        events: Parser::new_from_str_with_options(text, options),
        anchors: HashMap::new(),
        nodes: 0,
    };
    let mut found = None;
    while let Some(event) = reader.next()? {
        match event {
            Event::StreamStart
            | Event::StreamEnd
            | Event::DocumentStart(..)
            | Event::DocumentEnd => {}
            _ if found.is_some() => bail!("it has several documents: one is expected"),
            event => found = Some(reader.node(event)?),
        }
    }
    let found = found.map(Yaml::tree).transpose()?;
    Ok(found.unwrap_or(Node::Folder(Vec::new())))
}

/// A node of YAML, whose lists are not written yet.
#[derive(Debug, Clone)]
enum Yaml {
    /// A text, and whether it stood there bare.
    Scalar(String, bool),
    List(Vec<Yaml>),
    Map(Vec<(String, Yaml)>),
}

fn is_null(text: &str) -> bool {
    matches!(text, "" | "~" | "null" | "Null" | "NULL")
}

impl Yaml {
    fn count(&self) -> usize {
        match self {
            Self::Scalar(..) => 1,
            Self::List(all) => 1 + all.iter().map(Self::count).sum::<usize>(),
            Self::Map(all) => 1 + all.iter().map(|(_, node)| node.count()).sum::<usize>(),
        }
    }

    fn tree(self) -> Result<Node> {
        Ok(match self {
            Self::Scalar(text, true) if is_null(&text) => Node::Empty,
            Self::Scalar(text, _) => Node::Text(text),
            Self::List(_) => Node::Text(self.json()?),
            Self::Map(all) => {
                let all = all.into_iter().map(|(name, node)| Ok((name, node.tree()?)));
                Node::Folder(all.collect::<Result<_>>()?)
            }
        })
    }

    /// As JSON; what stands bare and is a number, a truth value or null in JSON is one.
    fn json(&self) -> Result<String> {
        let quote = |text: &str| serde_json::to_string(text).context("a text cannot be written");
        Ok(match self {
            Self::Scalar(text, true) if is_null(text) => "null".to_owned(),
            Self::Scalar(text, true) => match serde_json::from_str::<&RawValue>(text) {
                Ok(raw) if !raw.get().starts_with(['"', '{', '[']) => raw.get().to_owned(),
                _ => quote(text)?,
            },
            Self::Scalar(text, false) => quote(text)?,
            Self::List(all) => {
                let all = all.iter().map(Self::json).collect::<Result<Vec<_>>>()?;
                format!("[{}]", all.join(","))
            }
            Self::Map(all) => {
                let pair = |(name, node): &(String, Self)| {
                    Ok(format!("{}:{}", quote(name)?, node.json()?))
                };
                let all = all.iter().map(pair).collect::<Result<Vec<_>>>()?;
                format!("{{{}}}", all.join(","))
            }
        })
    }
}

struct Reader<'t> {
    events: Parser<'t, granit_parser::StrInput<'t>>,
    /// What names stand for.
    anchors: HashMap<usize, Yaml>,
    nodes: usize,
}

impl<'t> Reader<'t> {
    fn next(&mut self) -> Result<Option<Event<'t>>> {
        Ok(self.events.next().transpose()?.map(|(event, _)| event))
    }

    fn more(&mut self) -> Result<Event<'t>> {
        self.next()?.context("it ends too early")
    }

    fn node(&mut self, event: Event<'t>) -> Result<Yaml> {
        let (node, anchor) = match event {
            Event::Scalar(text, style, anchor, tag) => {
                let bare = style == ScalarStyle::Plain && tag.is_none();
                (Yaml::Scalar(text.into_owned(), bare), anchor)
            }
            Event::SequenceStart(_, anchor, _) => {
                let mut all = Vec::new();
                loop {
                    match self.more()? {
                        Event::SequenceEnd => break,
                        event => all.push(self.node(event)?),
                    }
                }
                (Yaml::List(all), anchor)
            }
            Event::MappingStart(_, anchor, _) => (Yaml::Map(self.map()?), anchor),
            Event::Alias(name) => {
                let known = self.anchors.get(&name).context("a reference stands for nothing")?;
                (known.clone(), 0)
            }
            _ => bail!("it cannot be read as a tree"),
        };
        self.nodes += node.count();
        if self.nodes > MOST_NODES * 8 {
            bail!("it stands for more than {MOST_NODES} values");
        }
        if anchor != 0 {
            self.anchors.insert(anchor, node.clone());
        }
        Ok(node)
    }

    fn map(&mut self) -> Result<Vec<(String, Yaml)>> {
        let mut own: Vec<(String, Yaml)> = Vec::new();
        let mut merged: Vec<(String, Yaml)> = Vec::new();
        loop {
            let name = match self.more()? {
                Event::MappingEnd => break,
                event => match self.node(event)? {
                    Yaml::Scalar(name, _) => name,
                    _ => bail!("a name is not a text"),
                },
            };
            let event = self.more()?;
            let value = self.node(event)?;
            if name != "<<" {
                if own.iter().any(|(known, _)| *known == name) {
                    bail!("{name} is given twice");
                }
                own.push((name, value));
                continue;
            }
            for one in if let Yaml::List(all) = value { all } else { vec![value] } {
                match one {
                    Yaml::Map(all) => merged.extend(all),
                    _ => bail!("what << refers to is no map"),
                }
            }
        }
        for (name, value) in merged {
            if !own.iter().any(|(known, _)| *known == name) {
                own.push((name, value));
            }
        }
        Ok(own)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(name: &str, text: &str) -> (String, Node) {
        (name.to_owned(), Node::Text(text.to_owned()))
    }

    #[test]
    fn values_stay_as_they_are_written() {
        let expected = Node::Folder(vec![
            text("a", "1.10"),
            text("b", "true"),
            text("c", r#"[1.50, "x"]"#),
            text("d", "ship \u{1f6a2}"),
            ("e".into(), Node::Empty),
        ]);
        let written =
            r#"{"a": 1.10, "b": true, "c": [1.50, "x"], "d": "ship \ud83d\udea2", "e": null}"#;
        assert_eq!(json(written).unwrap(), expected);
        let written =
            "a: 1.10 # no more\nb: no\nc: 007\nd: 'null'\ne: ~\nf: !!str 1\ng: |\n  x\n  y\n";
        assert_eq!(
            yaml(written).unwrap(),
            Node::Folder(vec![
                text("a", "1.10"),
                text("b", "no"),
                text("c", "007"),
                text("d", "null"),
                ("e".into(), Node::Empty),
                text("f", "1"),
                text("g", "x\ny\n"),
            ])
        );
    }

    #[test]
    fn lists_are_json_and_references_what_they_refer_to() {
        let written = "base: &b {x: 1, y: 2}\nmore:\n  <<: *b\n  y: 3\nlist: [1.50, no, 'true', {k: ~}, *b]\n";
        let Node::Folder(all) = yaml(written).unwrap() else { panic!("a folder") };
        assert_eq!(all[1].1, Node::Folder(vec![text("y", "3"), text("x", "1")]));
        assert_eq!(all[2], text("list", r#"[1.50,"no","true",{"k":null},{"x":1,"y":2}]"#));
        assert_eq!(yaml("").unwrap(), Node::Folder(Vec::new()));
    }

    #[test]
    fn what_is_wrong_is_told_with_its_place() {
        assert!(json("{\n\"a\": }").unwrap_err().to_string().contains("line 2"));
        assert!(yaml("a: 1\nb: [\n").unwrap_err().to_string().contains("line"));
        assert!(yaml("a: 1\na: 2\n").unwrap_err().to_string().contains("a is given twice"));
        assert!(yaml("a: 1\n---\nb: 2\n").unwrap_err().to_string().contains("several"));
        let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for n in 1..9 {
            let last = format!("*a{}", n - 1);
            bomb += &format!("a{n}: &a{n} [{}]\n", vec![last; 10].join(", "));
        }
        assert!(yaml(&bomb).unwrap_err().to_string().contains("stands for more"));
    }
}
