//! Reads JSON while watching for fields that stand twice or that the type does not have, in the
//! order of the document.

use std::fmt::{self, Write as _};

use serde::de::{self, DeserializeSeed, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use crate::schema::{FieldType, Type};

/// An object that was read against its type.
#[derive(Debug, Clone, PartialEq)]
pub struct Read {
    /// The object, unknown fields included; of fields that stand twice, the last one counts.
    pub value: Value,
    /// `duplicate field "spec.a"`, `unknown field "spec.b"`, in the order of the document: the
    /// warnings of `fieldValidation=Warn`.
    pub warnings: Vec<String>,
    /// Messages of values of wrong types, see [`super::Report::wrong`].
    pub wrong: Vec<String>,
}

impl Read {
    /// The error that `fieldValidation=Strict` answers, when there are warnings.
    pub fn strict_error(&self) -> Option<String> {
        let all = self.warnings.join(", ");
        (!all.is_empty()).then(|| format!("strict decoding error: {all}"))
    }
}

/// Reads an object of a known type.
///
/// # Errors
/// Text that is no single JSON value.
pub fn read(bytes: &[u8], ty: &'static Type) -> Result<Read, serde_json::Error> {
    let mut found = Found::default();
    let value = parse(bytes, &mut found, Context::Object(ty))?;
    let wrong = super::check(&value, ty).wrong;
    let warnings = found
        .marks
        .into_iter()
        .map(|(path, unknown)| {
            format!("{} field {path:?}", if unknown { "unknown" } else { "duplicate" })
        })
        .collect();
    Ok(Read { value, warnings, wrong })
}

/// Parses JSON of any shape and names the fields that stand twice, by their paths.
///
/// # Errors
/// Text that is no single JSON value.
pub fn parse_json(bytes: &[u8]) -> Result<(Value, Vec<String>), serde_json::Error> {
    let mut found = Found::default();
    let value = parse(bytes, &mut found, Context::Any)?;
    Ok((value, found.marks.into_iter().map(|(path, _)| path).collect()))
}

fn parse(bytes: &[u8], found: &mut Found, context: Context) -> Result<Value, serde_json::Error> {
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let value = Tracked { found, context }.deserialize(&mut reader)?;
    reader.end()?;
    Ok(value)
}

#[derive(Default)]
struct Found {
    path: String,
    /// Paths, and whether the field is unknown (else it stands twice).
    marks: Vec<(String, bool)>,
}

/// What is known of the value that comes next.
#[derive(Clone, Copy)]
enum Context {
    /// No type: only duplicates are of interest.
    Any,
    /// Inside of an unknown field: nothing is of interest.
    Skip,
    Object(&'static Type),
    Value(&'static FieldType),
}

impl Context {
    fn of(ty: &'static FieldType) -> Context {
        match ty {
            FieldType::Message(ty) => Context::Object(ty),
            FieldType::List(_) | FieldType::Map(_) => Context::Value(ty),
            // Raw values keep their bytes in Go, and nobody looks inside.
            _ => Context::Skip,
        }
    }

    fn item(self) -> Context {
        match self {
            Context::Value(FieldType::List(item)) => Context::of(item),
            Context::Any => Context::Any,
            _ => Context::Skip,
        }
    }
}

struct Tracked<'a> {
    found: &'a mut Found,
    context: Context,
}

impl<'de> DeserializeSeed<'de> for Tracked<'_> {
    type Value = Value;

    fn deserialize<D: de::Deserializer<'de>>(self, reader: D) -> Result<Value, D::Error> {
        reader.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Tracked<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Number::from_f64(value).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let Tracked { found, context } = self;
        let mut list = Vec::new();
        let length = found.path.len();
        loop {
            // Writing to a string does not fail.
            let _ = write!(found.path, "[{}]", list.len());
            let item = items.next_element_seed(Tracked { found, context: context.item() });
            found.path.truncate(length);
            match item? {
                Some(item) => list.push(item),
                None => return Ok(Value::Array(list)),
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let Tracked { found, context } = self;
        let mut map = Map::new();
        let length = found.path.len();
        while let Some(key) = entries.next_key::<String>()? {
            if length > 0 {
                found.path.push('.');
            }
            found.path.push_str(&key);
            let (known, inner) = match context {
                Context::Any => (true, Context::Any),
                Context::Skip => (true, Context::Skip),
                Context::Object(ty) => match ty.field(&key) {
                    Some(field) => (true, Context::of(&field.ty)),
                    None => (false, Context::Skip),
                },
                Context::Value(FieldType::Map(item)) => (true, Context::of(item)),
                Context::Value(_) => (true, Context::Skip),
            };
            let again = map.contains_key(&key);
            // An unknown field is told once, however often it stands.
            if !known && !again {
                found.marks.push((found.path.clone(), true));
            } else if known && again && !matches!(context, Context::Skip) {
                found.marks.push((found.path.clone(), false));
            }
            let value = entries.next_value_seed(Tracked { found, context: inner });
            found.path.truncate(length);
            map.insert(key, value?);
        }
        Ok(Value::Object(map))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::schema;

    #[test]
    fn marks_stand_in_the_order_of_the_document() {
        let ty = schema().kind("", "v1", "Service").unwrap();
        let body = br#"{"spec":{"ports":[{"port":80,"port":81,"x":1,"x":2}],"a":{"b":1,"b":2}},
                        "metadata":{"labels":{"a":"1","a":"2"}}}"#;
        let read = read(body, ty).unwrap();
        assert_eq!(
            read.strict_error().unwrap(),
            "strict decoding error: duplicate field \"spec.ports[0].port\", unknown field \
             \"spec.ports[0].x\", unknown field \"spec.a\", duplicate field \"metadata.labels.a\""
        );
        assert_eq!(read.value["spec"]["ports"][0]["port"], 81);
        assert!(read.wrong.is_empty());
    }

    #[test]
    fn text_after_the_value_is_refused() {
        assert!(parse_json(b"{} {}").is_err());
        assert!(parse_json(b"{").is_err());
    }
}
