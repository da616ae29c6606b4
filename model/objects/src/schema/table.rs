//! Reads the embedded table: a small index at once, the fields of a type on first use, documentation
//! only into values that the caller drops.
//!
//! Layout: the magic, the length of the index (u32, little endian), the index, then two chunks for
//! each Go package (fields, documentation), each compressed as zlib. The index names the chunks by
//! offset and length. Inside a chunk, [`RECORD`] ends a type; a line is a field, columns are
//! separated by tabs; in documentation, [`UNIT`] separates the text of the type from those of its
//! own fields. `xtask gen-kinds` writes all this.

use std::collections::HashMap;
use std::io::Read as _;
use std::ops::Range;
use std::sync::OnceLock;

use super::{Field, FieldType, Gvk, Inlined, ListKind, Schema, Type};

/// First bytes of a table.
pub const MAGIC: &[u8; 8] = b"dhowkt01";
/// Ends one type in a chunk.
pub const RECORD: char = '\u{1e}';
/// Ends one text in a documentation chunk.
pub const UNIT: char = '\u{1f}';

/// A table that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    /// The bytes do not begin with the magic of this version.
    #[error("not a table of kinds of this version; run `cargo xtask gen-kinds`")]
    Magic,
    /// A part of the table is damaged.
    #[error("the table of kinds is damaged at {part}; run `cargo xtask gen-kinds`")]
    Damaged {
        /// Which part.
        part: String,
    },
}

fn damaged(part: impl Into<String>) -> TableError {
    TableError::Damaged { part: part.into() }
}

/// One Go package: its compressed chunks, and the fields' chunk once somebody asked for it.
#[derive(Debug)]
pub struct Package {
    fields: &'static [u8],
    docs: &'static [u8],
    /// Index of the package's first type.
    first: usize,
    number: usize,
    text: OnceLock<Vec<&'static str>>,
    types: OnceLock<&'static [Type]>,
}

impl Package {
    fn records(&'static self) -> &'static [&'static str] {
        self.text.get_or_init(|| {
            let text: &'static str =
                Box::leak(inflate(self.fields).unwrap_or_default().into_boxed_str());
            text.split_terminator(RECORD).collect()
        })
    }
}

/// The fields of one type, parsed.
#[derive(Debug, Default)]
pub struct Body {
    pub fields: Vec<Field>,
    pub by_json: Vec<u16>,
    pub inlined: Vec<Inlined>,
}

fn inflate(bytes: &[u8]) -> Option<String> {
    let mut text = String::new();
    flate2::read::ZlibDecoder::new(bytes).read_to_string(&mut text).ok()?;
    text.shrink_to_fit();
    Some(text)
}

impl Schema {
    /// Parses a table as `xtask gen-kinds` writes it.
    ///
    /// The index (some thousand short strings) is leaked: a table lives as long as the process.
    ///
    /// # Errors
    /// Bytes that are no table, of another version, or damaged.
    pub fn parse(bytes: &'static [u8]) -> Result<Schema, TableError> {
        let rest = bytes.strip_prefix(MAGIC.as_slice()).ok_or(TableError::Magic)?;
        let (length, rest) = rest.split_first_chunk::<4>().ok_or_else(|| damaged("its length"))?;
        let length = u32::from_le_bytes(*length) as usize;
        let (index, chunks) = rest.split_at_checked(length).ok_or_else(|| damaged("its index"))?;
        let index: &'static str =
            Box::leak(inflate(index).ok_or_else(|| damaged("its index"))?.into_boxed_str());

        let mut packages = Vec::new();
        let mut headers = Vec::new();
        for line in index.lines() {
            let mut columns = line.split('\t');
            match columns.next() {
                Some("P") => {
                    let mut chunk = || -> Option<&'static [u8]> {
                        let from: usize = columns.next()?.parse().ok()?;
                        let length: usize = columns.next()?.parse().ok()?;
                        chunks.get(from..from.checked_add(length)?)
                    };
                    let (Some(fields), Some(docs)) = (chunk(), chunk()) else {
                        return Err(damaged(line));
                    };
                    packages.push(Package {
                        fields,
                        docs,
                        first: headers.len(),
                        number: packages.len(),
                        text: OnceLock::new(),
                        types: OnceLock::new(),
                    });
                }
                Some("T") => {
                    let (Some(name), Some(flags)) = (columns.next(), columns.next()) else {
                        return Err(damaged(line));
                    };
                    let gvks: Vec<Gvk> = columns.filter_map(parse_gvk).collect();
                    let package = packages.len().checked_sub(1).ok_or_else(|| damaged(line))?;
                    headers.push((name, flags.contains('a'), gvks, package));
                }
                _ => return Err(damaged(line)),
            }
        }

        let packages: &'static [Package] = packages.leak();
        let types: Vec<Type> = headers
            .into_iter()
            .enumerate()
            .map(|(number, (name, atomic, gvks, package))| Type {
                name,
                gvks: gvks.leak(),
                atomic,
                package: &packages[package],
                position: number - packages[package].first,
                body: OnceLock::new(),
            })
            .collect();
        let types: &'static [Type] = types.leak();
        for package in packages {
            // Set once, here: the cell is fresh.
            let _ = package.types.set(types);
        }

        let count = u16::try_from(types.len()).map_err(|_| damaged("its number of types"))?;
        let mut by_name: Vec<u16> = (0..count).collect();
        by_name.sort_unstable_by_key(|&i| types[usize::from(i)].name);
        let mut kinds: Vec<(Gvk, u16)> = (0..count)
            .flat_map(|i| types[usize::from(i)].gvks.iter().map(move |gvk| (*gvk, i)))
            .collect();
        kinds.sort_unstable();
        Ok(Schema { types, by_name, kinds })
    }
}

fn parse_gvk(text: &'static str) -> Option<Gvk> {
    let mut parts = text.split('/');
    Some(Gvk { group: parts.next()?, version: parts.next()?, kind: parts.next()? })
}

/// Parses the fields of a type; a damaged record gives a type without fields, which the tests of
/// the embedded table exclude.
pub fn parse_body(ty: &'static Type) -> Body {
    let package = ty.package;
    let types = package.types.get().copied().unwrap_or_default();
    let record = package.records().get(ty.position).copied().unwrap_or_default();
    let mut body = Body::default();
    for line in record.lines() {
        let columns: Vec<&'static str> = line.split('\t').collect();
        let column = |at: usize| columns.get(at).copied().unwrap_or_default();
        if column(0) == "+" {
            let Some(inner) = column(2).parse().ok().and_then(|i: usize| types.get(i)) else {
                continue;
            };
            let number = column(1).parse().unwrap_or(0);
            if number != 0 {
                body.inlined.push(Inlined { number, ty: inner });
            }
            for field in inner.fields() {
                // Without a number, the struct (TypeMeta) does not travel in protobuf.
                let own = if number == 0 { 0 } else { field.number };
                body.fields.push(Field { number: own, inlined_in: number, ..copy(field) });
            }
            continue;
        }
        if let Some(field) = parse_field(types, column) {
            body.fields.push(field);
        }
    }
    body.fields.shrink_to_fit();
    body.by_json = (0..body.fields.len() as u16).collect();
    body.by_json.sort_unstable_by_key(|&i| body.fields[usize::from(i)].json);
    body
}

/// A field is plain data; it is only not `Copy` so that nobody copies it by accident.
fn copy(field: &Field) -> Field {
    Field { ..*field }
}

fn parse_field(types: &'static [Type], column: impl Fn(usize) -> &'static str) -> Option<Field> {
    let flags = column(3);
    let has = |flag: char| flags.contains(flag);
    let words = |text: &'static str| -> &'static [&'static str] {
        if text.is_empty() { &[] } else { text.split(',').collect::<Vec<_>>().leak() }
    };
    let optional = |text: &'static str| (!text.is_empty()).then_some(text);
    let list = if has('M') {
        ListKind::Map
    } else if has('S') {
        ListKind::Set
    } else {
        ListKind::Atomic
    };
    Some(Field {
        json: column(0),
        number: column(1).parse().ok()?,
        inlined_in: 0,
        ty: parse_type(types, column(2))?,
        required: has('r'),
        pointer: has('p'),
        omitempty: has('o'),
        omitzero: has('z'),
        wrapped: has('w'),
        list,
        list_stated: has('M') || has('S') || has('A'),
        keys: words(column(4)),
        merge: has('m'),
        merge_key: optional(column(5)),
        retain_keys: has('k'),
        replace: has('R'),
        atomic: has('a'),
        granular: has('g'),
        default: optional(column(6)),
        enum_values: words(column(7)),
        named_go_type: optional(column(8)),
    })
}

fn parse_type(types: &'static [Type], text: &str) -> Option<FieldType> {
    let mut chars = text.chars();
    Some(match chars.next()? {
        'b' => FieldType::Bool,
        'i' => FieldType::Int32,
        'l' => FieldType::Int64,
        'd' => FieldType::Float64,
        's' => FieldType::String,
        'y' => FieldType::Bytes,
        'I' => FieldType::IntOrString,
        'Q' => FieldType::Quantity,
        'T' => FieldType::Time,
        'U' => FieldType::MicroTime,
        'D' => FieldType::Duration,
        'R' => FieldType::Raw,
        'F' => FieldType::FieldsV1,
        'm' => FieldType::Message(types.get(chars.as_str().parse::<usize>().ok()?)?),
        '[' => FieldType::List(Box::leak(Box::new(parse_type(types, chars.as_str())?))),
        '{' => FieldType::Map(Box::leak(Box::new(parse_type(types, chars.as_str())?))),
        _ => return None,
    })
}

/// The documentation of types and fields, inflated one package at a time and dropped with the value.
#[derive(Debug, Default)]
pub struct Docs {
    /// By number of the package: the text, and where each type's part of it stands.
    packages: HashMap<usize, (String, Vec<Range<usize>>)>,
}

impl Docs {
    /// Nothing inflated yet.
    pub fn new() -> Self {
        Self::default()
    }

    fn texts(&mut self, ty: &'static Type) -> impl Iterator<Item = &str> {
        let (text, places) = self.packages.entry(ty.package.number).or_insert_with(|| {
            let text = inflate(ty.package.docs).unwrap_or_default();
            let mut at = 0;
            let places = text
                .split_terminator(RECORD)
                .map(|record| {
                    let place = at..at + record.len();
                    at = place.end + RECORD.len_utf8();
                    place
                })
                .collect();
            (text, places)
        });
        let place = places.get(ty.position).cloned().unwrap_or_default();
        text[place].split(UNIT)
    }

    /// What the type is for; empty when upstream says nothing.
    pub fn of_type(&mut self, ty: &'static Type) -> String {
        self.texts(ty).next().unwrap_or_default().to_owned()
    }

    /// What each of [`Type::fields`] is for, in the same order.
    pub fn of_fields(&mut self, ty: &'static Type) -> Vec<String> {
        let own: Vec<String> = self.texts(ty).skip(1).map(str::to_owned).collect();
        let record = ty.package.records().get(ty.position).copied().unwrap_or_default();
        let types = ty.package.types.get().copied().unwrap_or_default();
        let mut own = own.into_iter();
        let mut all = Vec::with_capacity(ty.fields().len());
        for line in record.lines() {
            match line.strip_prefix("+\t") {
                Some(inlined) => {
                    let inner = inlined.split_once('\t').and_then(|(_, i)| i.parse::<usize>().ok());
                    if let Some(inner) = inner.and_then(|i| types.get(i)) {
                        all.extend(self.of_fields(inner));
                    }
                }
                None => all.push(own.next().unwrap_or_default()),
            }
        }
        all
    }
}
