//! Shapes derived facts into the bytes of the table.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::io::Write as _;

use anyhow::{Context as _, ensure};
use serde::Deserialize;

const MAGIC: &[u8; 8] = b"dhowkt01";
const RECORD: char = '\u{1e}';
const UNIT: char = '\u{1f}';

/// A Go package, as `derive.go` prints it.
#[derive(Debug, Deserialize)]
pub struct Package {
    /// Its types.
    pub types: Vec<Type>,
}

/// A Go struct.
#[derive(Debug, Deserialize)]
pub struct Type {
    name: String,
    flags: String,
    gvks: Option<Vec<String>>,
    doc: String,
    fields: Option<Vec<Field>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Field {
    json: String,
    number: u32,
    inline: bool,
    r#type: String,
    flags: String,
    keys: Option<Vec<String>>,
    merge_key: String,
    default: String,
    r#enum: Option<Vec<String>>,
    go_type: String,
    doc: String,
}

/// Makes the table.
///
/// # Errors
/// A field of a type that the table does not hold, or a text that would break its lines.
pub fn encode(packages: &[Package]) -> anyhow::Result<Vec<u8>> {
    let numbers: HashMap<&str, usize> = packages
        .iter()
        .flat_map(|p| &p.types)
        .enumerate()
        .map(|(number, ty)| (ty.name.as_str(), number))
        .collect();

    let mut index = String::new();
    let mut chunks = Vec::new();
    for package in packages {
        let (mut fields, mut docs) = (String::new(), String::new());
        for ty in &package.types {
            docs.push_str(&ty.doc);
            for field in ty.fields.iter().flatten() {
                write_field(&mut fields, field, &numbers)
                    .with_context(|| format!("{}.{}", ty.name, field.json))?;
                if !field.inline {
                    docs.push(UNIT);
                    docs.push_str(&field.doc);
                }
            }
            fields.push(RECORD);
            docs.push(RECORD);
        }
        let (fields, docs) = (deflate(&fields)?, deflate(&docs)?);
        let at = chunks.len();
        let docs_at = at + fields.len();
        writeln!(index, "P\t{at}\t{}\t{docs_at}\t{}", fields.len(), docs.len())?;
        chunks.extend_from_slice(&fields);
        chunks.extend_from_slice(&docs);
        for ty in &package.types {
            write!(index, "T\t{}\t{}", ty.name, ty.flags)?;
            for gvk in ty.gvks.iter().flatten() {
                write!(index, "\t{gvk}")?;
            }
            index.push('\n');
        }
    }

    let index = deflate(&index)?;
    let mut bytes = MAGIC.to_vec();
    bytes.extend_from_slice(&u32::try_from(index.len())?.to_le_bytes());
    bytes.extend_from_slice(&index);
    bytes.extend_from_slice(&chunks);
    Ok(bytes)
}

fn write_field(
    out: &mut String,
    field: &Field,
    numbers: &HashMap<&str, usize>,
) -> anyhow::Result<()> {
    let ty = shorten(&field.r#type, numbers)?;
    if field.inline {
        let inner = ty.trim_start_matches('m');
        writeln!(out, "+\t{}\t{inner}", field.number)?;
        return Ok(());
    }
    let words = |list: &Option<Vec<String>>| -> anyhow::Result<String> {
        let list = list.as_deref().unwrap_or_default();
        ensure!(list.iter().all(|w| !w.contains(',')), "a comma in {list:?}");
        // An enumeration may have the empty string, which joins to a leading comma; the value is
        // optional then in any case.
        Ok(list.join(","))
    };
    let line = format!(
        "{}\t{}\t{ty}\t{}\t{}\t{}\t{}\t{}\t{}",
        field.json,
        field.number,
        field.flags,
        words(&field.keys)?,
        field.merge_key,
        field.default,
        words(&field.r#enum)?,
        if field.go_type == plain_go_type(&field.r#type) { "" } else { &field.go_type },
    );
    ensure!(!line.contains(['\n', RECORD]), "a line break in {line:?}");
    writeln!(out, "{}", line.trim_end_matches('\t'))?;
    Ok(())
}

/// Replaces a message's name by its number.
fn shorten(ty: &str, numbers: &HashMap<&str, usize>) -> anyhow::Result<String> {
    let (prefix, name) = match ty.split_once('m') {
        Some((prefix, name)) if prefix.chars().all(|c| c == '[' || c == '{') => (prefix, name),
        _ => return Ok(ty.to_owned()),
    };
    let name = name.trim_end_matches(';');
    let number = numbers.get(name).with_context(|| format!("no type {name}"))?;
    Ok(format!("{prefix}m{number}"))
}

/// The Go type that a reader of the table assumes; `Field::go_type` states the same rule.
fn plain_go_type(ty: &str) -> String {
    let (code, rest) = ty.split_at(1);
    match code {
        "s" => "string".to_owned(),
        "b" => "bool".to_owned(),
        "i" => "int32".to_owned(),
        "l" => "int64".to_owned(),
        "d" => "float64".to_owned(),
        "y" => "[]uint8".to_owned(),
        "I" => "intstr.IntOrString".to_owned(),
        "Q" => "resource.Quantity".to_owned(),
        "T" => "v1.Time".to_owned(),
        "U" => "v1.MicroTime".to_owned(),
        "D" => "v1.Duration".to_owned(),
        "F" => "v1.FieldsV1".to_owned(),
        "R" => "runtime.RawExtension".to_owned(),
        "[" => format!("[]{}", plain_go_type(rest)),
        "{" => format!("map[string]{}", plain_go_type(rest)),
        _ => {
            let mut parts = rest.trim_end_matches(';').rsplit('.');
            let name = parts.next().unwrap_or_default();
            format!("{}.{name}", parts.next().unwrap_or_default())
        }
    }
}

fn deflate(text: &str) -> anyhow::Result<Vec<u8>> {
    let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(text.as_bytes())?;
    Ok(encoder.finish()?)
}
