//! From JSON to protobuf, with the bytes that Go's generated marshallers would write.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value};

use super::scalar;
use super::wire::{put_bytes, put_fixed64, put_number};
use crate::quantity::Quantity;
use crate::schema::{Field, FieldType, Type};

/// JSON that does not fit its type.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{type_name}.{field} cannot be encoded: expected {expected}")]
pub struct EncodeError {
    /// The Go type that declares the field.
    pub type_name: &'static str,
    /// The field's JSON name.
    pub field: &'static str,
    /// What the field holds.
    pub expected: &'static str,
}

/// Encodes an object in its envelope. Its `apiVersion` and `kind` come from the object, and if they
/// are missing, from the first name under which the type is served. Fields that the type does not
/// have are left out.
///
/// # Errors
/// A value that does not fit its type.
pub fn encode(object: &Value, ty: &'static Type) -> Result<Vec<u8>, EncodeError> {
    let named = |key: &str| object.get(key).and_then(Value::as_str).map(str::to_owned);
    let first = ty.gvks.first();
    let api_version = named("apiVersion").or_else(|| first.map(|g| g.api_version()));
    let kind = named("kind").or_else(|| first.map(|g| g.kind.to_owned()));

    let mut meta = Vec::new();
    put_bytes(&mut meta, 1, api_version.unwrap_or_default().as_bytes());
    put_bytes(&mut meta, 2, kind.unwrap_or_default().as_bytes());
    let mut out = super::MAGIC.to_vec();
    put_bytes(&mut out, 1, &meta);
    put_bytes(&mut out, 2, &encode_message(object, ty)?);
    put_bytes(&mut out, 3, b"");
    put_bytes(&mut out, 4, b"");
    Ok(out)
}

/// Encodes a bare message, as it stands inside of an envelope.
///
/// # Errors
/// A value that does not fit its type.
pub fn encode_message(object: &Value, ty: &'static Type) -> Result<Vec<u8>, EncodeError> {
    let mut out = Vec::new();
    let empty = Map::new();
    message(&mut out, object.as_object().unwrap_or(&empty), ty)?;
    Ok(out)
}

/// One frame of a watch in protobuf (`;stream=watch`): the length as four bytes, big endian, then a
/// `WatchEvent` whose object is enveloped.
pub fn encode_watch_event(event: &str, enveloped: &[u8]) -> Vec<u8> {
    let mut raw = Vec::with_capacity(enveloped.len() + 8);
    put_bytes(&mut raw, 1, enveloped);
    let mut body = Vec::with_capacity(raw.len() + 24);
    put_bytes(&mut body, 1, event.as_bytes());
    put_bytes(&mut body, 2, &raw);
    let mut frame = (body.len() as u32).to_be_bytes().to_vec();
    frame.append(&mut body);
    frame
}

/// Writes the fields in ascending order of their numbers, like the generated Go code.
fn message(
    out: &mut Vec<u8>,
    object: &Map<String, Value>,
    ty: &'static Type,
) -> Result<(), EncodeError> {
    enum Part {
        Own(&'static Field),
        Inlined(&'static Type),
    }
    let own = ty
        .fields()
        .iter()
        .filter(|f| f.inlined_in == 0 && f.number != 0)
        .map(|f| (f.number, Part::Own(f)));
    let inlined = ty.inlined().iter().map(|i| (i.number, Part::Inlined(i.ty)));
    let mut parts: Vec<(u32, Part)> = own.chain(inlined).collect();
    parts.sort_unstable_by_key(|(number, _)| *number);
    for (number, part) in parts {
        match part {
            Part::Inlined(inner) => {
                let mut nested = Vec::new();
                message(&mut nested, object, inner)?;
                put_bytes(out, number, &nested);
            }
            Part::Own(field) => {
                let value = object.get(field.json).filter(|v| !v.is_null());
                put_field(out, field, value).map_err(|expected| match expected {
                    Misfit::Here(expected) => {
                        EncodeError { type_name: ty.go_name(), field: field.json, expected }
                    }
                    Misfit::Inside(error) => error,
                })?;
            }
        }
    }
    Ok(())
}

/// A value that does not fit: in this field, or in a field of a nested message.
enum Misfit {
    Here(&'static str),
    Inside(EncodeError),
}

impl From<EncodeError> for Misfit {
    fn from(error: EncodeError) -> Self {
        Misfit::Inside(error)
    }
}

fn put_field(
    out: &mut Vec<u8>,
    field: &'static Field,
    value: Option<&Value>,
) -> Result<(), Misfit> {
    match (field.ty, value) {
        (FieldType::List(item), Some(Value::Array(list))) if field.wrapped => {
            put_bytes(out, field.number, &wrapped(item, list)?);
        }
        (FieldType::List(item), Some(Value::Array(list))) => {
            for value in list {
                put(out, field.number, item, Some(value))?;
            }
        }
        (FieldType::List(_), Some(_)) => return Err(Misfit::Here("a list")),
        (FieldType::Map(item), Some(Value::Object(map))) => {
            for (key, value) in map {
                let mut entry = Vec::new();
                put_bytes(&mut entry, 1, key.as_bytes());
                put(&mut entry, 2, item, Some(value))?;
                put_bytes(out, field.number, &entry);
            }
        }
        (FieldType::Map(_), Some(_)) => return Err(Misfit::Here("an object")),
        (FieldType::List(_) | FieldType::Map(_) | FieldType::Bytes, None) => {}
        (_, None) if field.pointer => {}
        (_, value) => put(out, field.number, &field.ty, value)?,
    }
    Ok(())
}

fn wrapped(item: &'static FieldType, list: &[Value]) -> Result<Vec<u8>, Misfit> {
    let mut nested = Vec::new();
    for value in list {
        put(&mut nested, 1, item, Some(value))?;
    }
    Ok(nested)
}

/// Writes one value; `None` writes Go's zero value, as generated code does outside of pointers.
fn put(
    out: &mut Vec<u8>,
    number: u32,
    ty: &'static FieldType,
    value: Option<&Value>,
) -> Result<(), Misfit> {
    let value = value.filter(|v| !v.is_null());
    let text = |expected| match value {
        None => Ok(""),
        Some(value) => value.as_str().ok_or(Misfit::Here(expected)),
    };
    match ty {
        FieldType::Bool => {
            let bit = value.map_or(Some(false), Value::as_bool).ok_or(Misfit::Here("a boolean"))?;
            put_number(out, number, u64::from(bit));
        }
        FieldType::Int32 | FieldType::Int64 => {
            let n = value.map_or(Some(0), integer).ok_or(Misfit::Here("an integer"))?;
            put_number(out, number, n as u64);
        }
        FieldType::Float64 => {
            let n = value.map_or(Some(0.0), Value::as_f64).ok_or(Misfit::Here("a number"))?;
            put_fixed64(out, number, n.to_bits());
        }
        FieldType::String => put_bytes(out, number, text("a string")?.as_bytes()),
        FieldType::Bytes => {
            let bytes = STANDARD.decode(text("base64")?).map_err(|_| Misfit::Here("base64"))?;
            put_bytes(out, number, &bytes);
        }
        FieldType::IntOrString => {
            let mut nested = Vec::new();
            let (kind, n, text) = match value {
                None => (0, 0, ""),
                Some(Value::String(text)) => (1, 0, text.as_str()),
                Some(v) => (0, integer(v).ok_or(Misfit::Here("an integer or a string"))?, ""),
            };
            put_number(&mut nested, 1, kind);
            put_number(&mut nested, 2, n as u64);
            put_bytes(&mut nested, 3, text.as_bytes());
            put_bytes(out, number, &nested);
        }
        FieldType::Quantity => {
            let text = match value {
                None => "0".to_owned(),
                Some(value) => {
                    Quantity::from_json(value).map_err(|_| Misfit::Here("a quantity"))?.to_string()
                }
            };
            let mut nested = Vec::new();
            put_bytes(&mut nested, 1, text.as_bytes());
            put_bytes(out, number, &nested);
        }
        FieldType::Time | FieldType::MicroTime => {
            let mut nested = Vec::new();
            if value.is_some() {
                let (seconds, nanos) = scalar::parse_time(text("an RFC 3339 time")?)
                    .ok_or(Misfit::Here("an RFC 3339 time"))?;
                let nanos = if matches!(ty, FieldType::Time) { 0 } else { nanos / 1_000 * 1_000 };
                put_number(&mut nested, 1, seconds as u64);
                put_number(&mut nested, 2, nanos as u64);
            }
            put_bytes(out, number, &nested);
        }
        FieldType::Duration => {
            let nanos = match value {
                None => 0,
                Some(_) => scalar::parse_duration(text("a duration")?)
                    .ok_or(Misfit::Here("a duration such as 1h30m"))?,
            };
            let mut nested = Vec::new();
            put_number(&mut nested, 1, nanos as u64);
            put_bytes(out, number, &nested);
        }
        FieldType::Raw | FieldType::FieldsV1 => {
            let mut nested = Vec::new();
            if let Some(value) = value {
                put_bytes(&mut nested, 1, value.to_string().as_bytes());
            }
            put_bytes(out, number, &nested);
        }
        FieldType::Message(inner) => {
            let empty = Map::new();
            let object = match value {
                None => &empty,
                Some(value) => value.as_object().ok_or(Misfit::Here("an object"))?,
            };
            let mut nested = Vec::new();
            message(&mut nested, object, inner)?;
            put_bytes(out, number, &nested);
        }
        FieldType::List(item) => {
            let list = match value {
                None => &[][..],
                Some(value) => value.as_array().ok_or(Misfit::Here("a list"))?,
            };
            put_bytes(out, number, &wrapped(item, list)?);
        }
        FieldType::Map(_) => return Err(Misfit::Here("no map inside of a list or a map")),
    }
    Ok(())
}

/// A whole number, also when JSON writes it with a fraction of zero.
fn integer(value: &Value) -> Option<i64> {
    value.as_i64().or_else(|| value.as_u64().map(|n| n as i64)).or_else(|| {
        let n = value.as_f64()?;
        (n.fract() == 0.0 && n.abs() < 9e15).then_some(n as i64)
    })
}
