//! From protobuf to JSON.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

use super::scalar;
use super::wire::{Malformed, Reader, Wire};
use crate::schema::shape::{finish, zero};
use crate::schema::{Field, FieldType, Type, schema};

/// Messages nest this deep at most; built-in objects stay below 20.
const DEPTH: u32 = 64;

/// Bytes that cannot be read as an object.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum DecodeError {
    /// The envelope's magic is missing.
    #[error("the body does not begin with the bytes of a protobuf object (6b 38 73 00)")]
    Magic,
    /// The bytes are no protobuf message.
    #[error("the protobuf body is malformed at {at}")]
    Malformed {
        /// The type or field at which reading stopped.
        at: String,
    },
    /// The envelope does not say what it holds.
    #[error("the protobuf body names no kind; apiVersion and kind are needed")]
    NoKind,
    /// The envelope holds a kind that the table does not know.
    #[error("no kind {kind:?} is registered for version {api_version:?}")]
    UnknownKind {
        /// The envelope's `apiVersion`.
        api_version: String,
        /// The envelope's `kind`.
        kind: String,
    },
    /// The envelope's content is compressed, or of a type that is only read as JSON.
    #[error("{what} cannot be read from protobuf; send it as application/json")]
    Unsupported {
        /// What it is.
        what: String,
    },
}

fn malformed(at: &str) -> DecodeError {
    DecodeError::Malformed { at: at.to_owned() }
}

/// Reads an enveloped object: its `apiVersion`, its `kind`, and its JSON with both in it.
///
/// # Errors
/// Bytes that are no enveloped object of a known kind.
pub fn decode(bytes: &[u8]) -> Result<(String, String, Value), DecodeError> {
    let rest = bytes.strip_prefix(super::MAGIC.as_slice()).ok_or(DecodeError::Magic)?;
    let envelope = |_: Malformed| malformed("its envelope");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (mut api_version, mut kind, mut raw) = (String::new(), String::new(), &[][..]);
    let (mut encoding, mut content) = (String::new(), String::new());
    let mut reader = Reader::new(rest);
    while let Some(field) = reader.next().map_err(envelope)? {
        match field {
            (1, Wire::Bytes(bytes)) => {
                let mut reader = Reader::new(bytes);
                while let Some(field) = reader.next().map_err(envelope)? {
                    match field {
                        (1, Wire::Bytes(bytes)) => api_version = text(bytes),
                        (2, Wire::Bytes(bytes)) => kind = text(bytes),
                        _ => {}
                    }
                }
            }
            (2, Wire::Bytes(bytes)) => raw = bytes,
            (3, Wire::Bytes(bytes)) => encoding = text(bytes),
            (4, Wire::Bytes(bytes)) => content = text(bytes),
            _ => {}
        }
    }
    if !encoding.is_empty() {
        return Err(DecodeError::Unsupported { what: format!("content encoding {encoding:?}") });
    }
    if content.starts_with("application/json") {
        let value: Value = serde_json::from_slice(raw).map_err(|_| malformed("its JSON"))?;
        return Ok((api_version, kind, value));
    }
    if kind.is_empty() || api_version.is_empty() {
        return Err(DecodeError::NoKind);
    }
    let Some(ty) = schema().kind_of(&api_version, &kind) else {
        return Err(DecodeError::UnknownKind { api_version, kind });
    };
    let mut object = decode_message(ty, raw)?;
    object.insert("apiVersion".to_owned(), Value::String(api_version.clone()));
    object.insert("kind".to_owned(), Value::String(kind.clone()));
    Ok((api_version, kind, Value::Object(object)))
}

/// Reads a bare message of a type, as it stands inside of an envelope.
///
/// # Errors
/// Bytes that are no such message.
pub fn decode_message(ty: &'static Type, bytes: &[u8]) -> Result<Map<String, Value>, DecodeError> {
    message(ty, bytes, DEPTH)
}

fn message(ty: &'static Type, bytes: &[u8], depth: u32) -> Result<Map<String, Value>, DecodeError> {
    if ty.name.starts_with("io.k8s.apiextensions-apiserver.") {
        // Schemas inside of these have unions that only JSON is defined for here.
        return Err(DecodeError::Unsupported { what: ty.go_name().to_owned() });
    }
    let mut map = Map::new();
    read_into(&mut map, ty, bytes, depth)?;
    finish(&mut map, ty);
    Ok(map)
}

/// Reads the fields on the wire; structs that JSON flattens go into the same map.
fn read_into(
    map: &mut Map<String, Value>,
    ty: &'static Type,
    bytes: &[u8],
    depth: u32,
) -> Result<(), DecodeError> {
    let depth = depth.checked_sub(1).ok_or_else(|| malformed(ty.name))?;
    let mut reader = Reader::new(bytes);
    while let Some((number, wire)) = reader.next().map_err(|_| malformed(ty.name))? {
        if let Some(field) = ty.field_by_number(number) {
            read_field(map, field, wire, depth)
                .map_err(|e| name_field(e, || format!("{}.{}", ty.go_name(), field.json)))?;
        } else if let Some(inlined) = ty.inlined().iter().find(|i| i.number == number) {
            let Wire::Bytes(bytes) = wire else { return Err(malformed(ty.name)) };
            read_into(map, inlined.ty, bytes, depth)?;
        }
        // Else: a field of a newer version, which a server of this version does not know.
    }
    Ok(())
}

fn name_field(error: DecodeError, name: impl Fn() -> String) -> DecodeError {
    match error {
        DecodeError::Malformed { at } if at.is_empty() => DecodeError::Malformed { at: name() },
        other => other,
    }
}

fn read_field(
    map: &mut Map<String, Value>,
    field: &'static Field,
    wire: Wire<'_>,
    depth: u32,
) -> Result<(), DecodeError> {
    match field.ty {
        FieldType::List(_) if field.wrapped => {
            map.insert(field.json.to_owned(), value(&field.ty, wire, depth)?);
        }
        FieldType::List(item) => {
            let list = map.entry(field.json).or_insert_with(|| json!([]));
            let Value::Array(list) = list else { return Err(malformed("")) };
            match (item, wire) {
                // Numbers may stand packed behind one another.
                (FieldType::Int32 | FieldType::Int64 | FieldType::Bool, Wire::Bytes(bytes)) => {
                    let mut reader = Reader::new(bytes);
                    while !reader.is_empty() {
                        let number = reader.varint().map_err(|_| malformed(""))?;
                        list.push(value(item, Wire::Varint(number), depth)?);
                    }
                }
                _ => list.push(value(item, wire, depth)?),
            }
        }
        FieldType::Map(item) => {
            let entries = map.entry(field.json).or_insert_with(|| json!({}));
            let (Value::Object(entries), Wire::Bytes(bytes)) = (entries, wire) else {
                return Err(malformed(""));
            };
            let (mut key, mut held) = (String::new(), None);
            let mut reader = Reader::new(bytes);
            while let Some((number, wire)) = reader.next().map_err(|_| malformed(""))? {
                match (number, wire) {
                    (1, Wire::Bytes(bytes)) => key = String::from_utf8_lossy(bytes).into_owned(),
                    (2, wire) => held = Some(value(item, wire, depth)?),
                    _ => {}
                }
            }
            entries.insert(key, held.unwrap_or_else(|| zero(item)));
        }
        ref ty => {
            map.insert(field.json.to_owned(), value(ty, wire, depth)?);
        }
    }
    Ok(())
}

fn value(ty: &'static FieldType, wire: Wire<'_>, depth: u32) -> Result<Value, DecodeError> {
    let bad = || malformed("");
    Ok(match (ty, wire) {
        (FieldType::Bool, Wire::Varint(n)) => Value::Bool(n != 0),
        // Go keeps the low 32 bits.
        (FieldType::Int32, Wire::Varint(n)) => json!(n as i32),
        (FieldType::Int64, Wire::Varint(n)) => json!(n as i64),
        (FieldType::Float64, Wire::Fixed64(bits)) => json!(f64::from_bits(bits)),
        (FieldType::String, Wire::Bytes(b)) => json!(String::from_utf8_lossy(b)),
        (FieldType::Bytes, Wire::Bytes(b)) => json!(STANDARD.encode(b)),
        (FieldType::Message(ty), Wire::Bytes(b)) => Value::Object(message(ty, b, depth)?),
        // A list inside of a map (or a wrapped one) is a message with one repeated field.
        (FieldType::List(item), Wire::Bytes(b)) => {
            let mut list = Vec::new();
            let mut reader = Reader::new(b);
            while let Some((number, wire)) = reader.next().map_err(|_| bad())? {
                if number == 1 {
                    list.push(value(item, wire, depth)?);
                }
            }
            Value::Array(list)
        }
        (_, Wire::Bytes(b)) => special(ty, b)?,
        _ => return Err(bad()),
    })
}

/// Types that are messages of their own on the wire, and plain values in JSON.
fn special(ty: &FieldType, bytes: &[u8]) -> Result<Value, DecodeError> {
    let bad = || malformed("");
    let (mut first, mut second, mut text) = (None, 0u64, &[][..]);
    let mut reader = Reader::new(bytes);
    while let Some(field) = reader.next().map_err(|_| bad())? {
        match field {
            (1, wire) => first = Some(wire),
            (2, Wire::Varint(n)) => second = n,
            (3, Wire::Bytes(bytes)) => text = bytes,
            _ => {}
        }
    }
    let number = match first {
        Some(Wire::Varint(n)) => n as i64,
        _ => 0,
    };
    Ok(match ty {
        FieldType::IntOrString if number == 0 => json!(second as i32),
        FieldType::IntOrString => json!(String::from_utf8_lossy(text)),
        FieldType::Quantity => match first {
            Some(Wire::Bytes(b)) if !b.is_empty() => json!(String::from_utf8_lossy(b)),
            _ => json!("0"),
        },
        FieldType::Time | FieldType::MicroTime if bytes.is_empty() => Value::Null,
        FieldType::Time => json!(scalar::seconds_text(number).ok_or_else(bad)?),
        FieldType::MicroTime => {
            json!(scalar::micros_text(number, second as i32).ok_or_else(bad)?)
        }
        FieldType::Duration => json!(scalar::duration_text(number)),
        FieldType::Raw | FieldType::FieldsV1 => match first {
            Some(Wire::Bytes(b)) if !b.is_empty() => {
                serde_json::from_slice(b).map_err(|_| bad())?
            }
            _ => Value::Null,
        },
        _ => return Err(bad()),
    })
}
