//! Templates: minijinja with functions that read configuration, and a record of what they read.

use super::tree;
use anyhow::{Result, anyhow};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Serde, Value};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, UndefinedBehavior};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

/// All configuration by path, of one revision.
pub type Values = BTreeMap<String, Bytes>;

/// What a template has read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Uses {
    keys: BTreeSet<String>,
    /// Folders whose every change matters.
    folders: BTreeSet<String>,
}

impl Uses {
    /// Whether a change of `key` may change the file.
    pub fn concern(&self, key: &str) -> bool {
        let within = |folder: &String| {
            folder.is_empty()
                || key.strip_prefix(folder.as_str()).is_some_and(|rest| rest.starts_with('/'))
        };
        self.keys.contains(key) || self.folders.iter().any(within)
    }
}

fn error(detail: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, detail.into())
}

/// What the functions read from, and write down.
#[derive(Clone)]
struct Reader {
    values: Arc<Values>,
    uses: Arc<Mutex<Uses>>,
}

impl Reader {
    fn note(&self, what: impl FnOnce(&mut Uses)) {
        what(&mut self.uses.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn path(text: &str) -> Result<String, Error> {
        super::store::normal(text).map_err(|e| error(e.to_string()))
    }

    /// A key's value, when there is one.
    fn value(&self, path: &str) -> Result<Option<String>, Error> {
        let path = Self::path(path)?;
        self.note(|uses| {
            uses.keys.insert(path.clone());
        });
        let Some(value) = self.values.get(&path) else { return Ok(None) };
        let text = std::str::from_utf8(value).map_err(|_| error(format!("{path} is no text")))?;
        Ok(Some(text.to_owned()))
    }

    /// The keys below a folder, by their paths from there.
    fn below(&self, folder: &str) -> Result<Vec<(String, Bytes)>, Error> {
        let folder = Self::path(folder)?;
        self.note(|uses| {
            uses.folders.insert(folder.clone());
        });
        let start = if folder.is_empty() { String::new() } else { format!("{folder}/") };
        let from = self.values.range(start.clone()..);
        Ok(from
            .map_while(|(key, value)| Some((key.strip_prefix(&start)?.to_owned(), value.clone())))
            .collect())
    }
}

/// An environment with the functions of this program.
fn environment(reader: &Reader) -> Result<Environment<'static>, Error> {
    let mut env = Environment::new();
    env.set_undefined_behavior(UndefinedBehavior::Strict);
    // The file ends as its template does.
    env.set_syntax(SyntaxConfig::builder().keep_trailing_newline(true).build()?);
    // Configuration files are no HTML, whatever their name.
    env.set_auto_escape_callback(|_| AutoEscape::None);
    let own = reader.clone();
    env.add_function("get", move |path: &str| {
        own.value(path)?.ok_or_else(|| {
            error(format!("there is no {path}: put it, or use getv({path:?}, default)"))
        })
    });
    let own = reader.clone();
    env.add_function("getv", move |path: &str, default: Option<Value>| {
        match (own.value(path)?, default) {
            (Some(value), _) => Ok(Value::from(value)),
            (None, Some(default)) => Ok(default),
            (None, None) => Err(error(format!("there is no {path}, and getv has no default"))),
        }
    });
    let own = reader.clone();
    env.add_function("exists", move |path: &str| {
        Ok::<_, Error>(own.value(path)?.is_some() || !own.below(path)?.is_empty())
    });
    let own = reader.clone();
    env.add_function("ls", move |folder: &str| {
        let names = own.below(folder)?.into_iter();
        let names = names.map(|(path, _)| path.split('/').next().unwrap_or_default().to_owned());
        Ok::<_, Error>(names.collect::<BTreeSet<String>>().into_iter().collect::<Vec<_>>())
    });
    let own = reader.clone();
    env.add_function("gets", move |folder: &str| {
        let all = own.below(folder)?.into_iter().map(|(path, value)| {
            let value = super::store::text(&value);
            let name = path.rsplit('/').next().unwrap_or_default().to_owned();
            BTreeMap::from([("path", path), ("name", name), ("value", value)])
        });
        Ok::<_, Error>(Value::from(Serde(all.collect::<Vec<_>>())))
    });
    let own = reader.clone();
    env.add_function("tree", move |folder: &str| {
        let all = own.below(folder)?.into_iter().collect();
        let text = tree::write(&all, super::args::Format::Json);
        parse(&text.map_err(|e| error(e.to_string()))?)
    });
    env.add_function("json", |text: &str| parse(text));
    env.add_function("env", |name: &str, default: Option<Value>| {
        match (std::env::var(name), default) {
            (Ok(value), _) => Ok(Value::from(value)),
            (Err(_), Some(default)) => Ok(default),
            (Err(_), None) => Err(error(format!("the variable {name} is not set"))),
        }
    });
    env.add_filter("b64encode", |text: &str| STANDARD.encode(text));
    env.add_filter("b64decode", |text: &str| {
        let bytes = STANDARD.decode(text.trim()).map_err(|e| error(e.to_string()))?;
        String::from_utf8(bytes).map_err(|_| error("what it decodes to is no text"))
    });
    Ok(env)
}

fn parse(text: &str) -> Result<Value, Error> {
    let value: serde_json::Value =
        serde_json::from_str(text).map_err(|e| error(format!("this is no JSON: {e}")))?;
    Ok(Value::from(Serde(value)))
}

/// The text that a template makes of the values, and what it has read up to its end or its failure.
/// Templates that it includes are looked for beside it.
pub fn render(path: &Path, values: &Arc<Values>) -> (Result<String>, Uses) {
    let reader = Reader { values: values.clone(), uses: Arc::default() };
    let text = make(path, &reader);
    let uses = reader.uses.lock().unwrap_or_else(PoisonError::into_inner).clone();
    (text, uses)
}

fn make(path: &Path, reader: &Reader) -> Result<String> {
    let name = path
        .file_name()
        .and_then(|n| n.to_str())
        .ok_or_else(|| anyhow!("{} is no template's name", path.display()))?;
    let source = std::fs::read_to_string(path)
        .map_err(|e| anyhow!("cannot read template {}: {e}", path.display()))?;
    let mut env = environment(reader)?;
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    env.set_loader(minijinja::path_loader(dir));
    let made = env
        .add_template_owned(name.to_owned(), source)
        .and_then(|()| env.get_template(name)?.render(()));
    made.map_err(|e| anyhow!("{}", line(path, &e)))
}

/// A template's error in one line: which template, which line, what.
fn line(path: &Path, error: &Error) -> String {
    let own = path.file_name().and_then(|n| n.to_str());
    let name = match error.name() {
        Some(name) if Some(name) != own => name.to_owned(),
        _ => path.display().to_string(),
    };
    let what = match error.detail() {
        Some(detail) => detail.to_owned(),
        None => error.kind().to_string(),
    };
    match error.line() {
        Some(number) => format!("template {name}, line {number}: {what}"),
        None => format!("template {name}: {what}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values() -> Arc<Values> {
        let all = [
            ("shop/db/host", "db1"),
            ("shop/db/port", "5432"),
            ("shop/web/a/port", "80"),
            ("shop/web/b/port", "81"),
            ("shop/extra", r#"{"list": [1, 2]}"#),
            ("title", "A & B"),
        ];
        Arc::new(all.into_iter().map(|(k, v)| (k.to_owned(), Bytes::from(v))).collect())
    }

    fn render_text(text: &str) -> (Result<String>, Uses) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.html");
        std::fs::write(&path, text).unwrap();
        std::fs::write(dir.path().join("part.txt"), "part {{ get('title') }}").unwrap();
        render(&path, &values())
    }

    fn made(text: &str) -> String {
        render_text(text).0.unwrap()
    }

    fn wrong(text: &str) -> String {
        render_text(text).0.unwrap_err().to_string()
    }

    #[test]
    fn templates_read_configuration() {
        assert_eq!(made("{{ get('shop/db/host') }}:{{ get('/shop/db/port') }}\n"), "db1:5432\n");
        assert_eq!(made("{{ getv('no', 'x') }}{{ getv('shop/db/port', 1) }}"), "x5432");
        assert_eq!(made("{% for s in ls('shop/web') %}{{ s }} {% endfor %}"), "a b ");
        assert_eq!(
            made("{% for s in gets('shop/web') %}{{ s.path }}={{ s.value }};{% endfor %}"),
            "a/port=80;b/port=81;"
        );
        assert_eq!(made("{{ tree('shop').db.host }} {{ tree('shop/web')['b'].port }}"), "db1 81");
        assert_eq!(
            made("{{ exists('shop/db') }} {{ exists('title') }} {{ exists('x') }}"),
            "True True False"
        );
        assert_eq!(made("{{ json(get('shop/extra')).list[1] }}"), "2");
        assert_eq!(
            made("{{ get('title') }}{% include 'part.txt' %}"),
            "A & Bpart A & B",
            "no HTML"
        );
        assert_eq!(made("{{ 'ahoy' | b64encode }} {{ 'YWhveQ==' | b64decode }}"), "YWhveQ== ahoy");
        assert_eq!(made("{{ env('DHOW_NO_SUCH', 'd') }}"), "d");
        assert_eq!(made("{{ tree('shop/db') | tojson }}"), r#"{"host": "db1", "port": "5432"}"#);
    }

    #[test]
    fn errors_name_the_template_and_the_line() {
        let told = wrong("one\ntwo {{ get('shop/none') }}");
        assert!(told.contains("a.html, line 2: there is no shop/none"), "{told}");
        let told = wrong("one\n{% if %}");
        assert!(told.contains("a.html, line 2: "), "{told}");
        let told = wrong("{{ undefined_thing }}");
        assert!(told.contains("line 1"), "{told}");
        assert!(!told.contains('\n'));
        let told = render(Path::new("/none/x.j2"), &values()).0.unwrap_err().to_string();
        assert!(told.contains("/none/x.j2"), "{told}");
    }

    #[test]
    fn what_was_read_is_known_even_of_a_template_that_failed() {
        let (text, uses) =
            render_text("{{ get('shop/db/host') }}{{ ls('shop/web') }}{{ get('later') }}");
        assert!(text.is_err());
        for key in ["shop/db/host", "shop/web/c/port", "later"] {
            assert!(uses.concern(key), "{key}");
        }
        for key in ["shop/db/port", "shop/webs/a", "title"] {
            assert!(!uses.concern(key), "{key}");
        }
    }
}
