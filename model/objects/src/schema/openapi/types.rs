//! The schemas of types.

use serde_json::{Map, Value, json};

use crate::schema::{Docs, Field, FieldType, ListKind, Type, schema};

/// Package of the types that every group uses.
pub const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.";

const QUANTITY: &str = "io.k8s.apimachinery.pkg.api.resource.Quantity";
const INT_OR_STRING: &str = "io.k8s.apimachinery.pkg.util.intstr.IntOrString";
const RAW: &str = "io.k8s.apimachinery.pkg.runtime.RawExtension";

/// The types that the fields of a type refer to.
pub fn refers_to(ty: &'static Type) -> impl Iterator<Item = &'static Type> {
    ty.fields().iter().filter_map(move |field| {
        let mut inner = &field.ty;
        while let FieldType::List(item) | FieldType::Map(item) = inner {
            inner = item;
        }
        schema().type_named(&name_of(inner, field, ty)?)
    })
}

/// The name of the type that a value of this kind refers to, if it is not a plain value.
fn name_of(ty: &FieldType, field: &Field, owner: &Type) -> Option<String> {
    Some(match ty {
        FieldType::Message(ty) => ty.name.to_owned(),
        FieldType::IntOrString => INT_OR_STRING.to_owned(),
        FieldType::Quantity => QUANTITY.to_owned(),
        FieldType::Time => format!("{META}Time"),
        FieldType::MicroTime => format!("{META}MicroTime"),
        FieldType::Duration => format!("{META}Duration"),
        FieldType::FieldsV1 => format!("{META}FieldsV1"),
        FieldType::Raw => {
            let go_type = field.go_type();
            let last = go_type.rsplit([']', '.', '*']).next().unwrap_or_default();
            // Unions of JSON schemas are types of the owner's package; one stands in a named map.
            let last = match last {
                "JSONSchemaDependencies" => "JSONSchemaPropsOrStringArray",
                other => other,
            };
            match owner.name.rsplit_once('.') {
                Some((package, _)) if last.starts_with("JSON") => format!("{package}.{last}"),
                _ => RAW.to_owned(),
            }
        }
        _ => return None,
    })
}

/// The schema of a type.
pub fn schema_of(ty: &'static Type, docs: &mut Docs) -> Value {
    let mut out = Map::new();
    let text = docs.of_type(ty);
    if !text.is_empty() {
        out.insert("description".to_owned(), text.into());
    }
    match ty.name.strip_prefix(META) {
        Some("Time" | "MicroTime") => {
            out.insert("type".to_owned(), "string".into());
            out.insert("format".to_owned(), "date-time".into());
        }
        Some("Duration") => {
            out.insert("type".to_owned(), "string".into());
        }
        _ if ty.name == QUANTITY => {
            out.insert("oneOf".to_owned(), json!([{"type": "string"}, {"type": "number"}]));
        }
        _ if ty.name == INT_OR_STRING => {
            out.insert("format".to_owned(), "int-or-string".into());
            out.insert("oneOf".to_owned(), json!([{"type": "integer"}, {"type": "string"}]));
        }
        // Any JSON (and its unions with a schema) has no type.
        _ if ty.go_name().starts_with("JSONSchemaPropsOr") || ty.go_name() == "JSON" => {}
        _ => {
            out.insert("type".to_owned(), "object".into());
        }
    }
    let mut required: Vec<&str> = Vec::new();
    let mut properties = Map::new();
    for (field, text) in ty.fields().iter().zip(docs.of_fields(ty)) {
        properties.insert(field.json.to_owned(), property(field, ty, text));
        if field.required {
            required.push(field.json);
        }
    }
    if !properties.is_empty() {
        out.insert("properties".to_owned(), properties.into());
    }
    if !required.is_empty() {
        out.insert("required".to_owned(), required.into());
    }
    if ty.atomic {
        out.insert("x-kubernetes-map-type".to_owned(), "atomic".into());
    }
    if !ty.gvks.is_empty() {
        out.insert(
            "x-kubernetes-group-version-kind".to_owned(),
            ty.gvks.iter().map(super::gvk_value).collect(),
        );
    }
    out.into()
}

/// The schema of a field.
fn property(field: &Field, owner: &Type, text: String) -> Value {
    let mut out = Map::new();
    if !text.is_empty() {
        out.insert("description".to_owned(), text.into());
    }
    if let Some(default) = field.default.and_then(|text| serde_json::from_str(text).ok()) {
        out.insert("default".to_owned(), default);
    }
    if field.list_stated {
        let kind = match field.list {
            ListKind::Atomic => "atomic",
            ListKind::Set => "set",
            ListKind::Map => "map",
        };
        out.insert("x-kubernetes-list-type".to_owned(), kind.into());
    }
    if !field.keys.is_empty() {
        out.insert("x-kubernetes-list-map-keys".to_owned(), field.keys.into());
    }
    if field.atomic || field.granular {
        let kind = if field.atomic { "atomic" } else { "granular" };
        out.insert("x-kubernetes-map-type".to_owned(), kind.into());
    }
    if let Some(key) = field.merge_key {
        out.insert("x-kubernetes-patch-merge-key".to_owned(), key.into());
    }
    let strategy = match (field.merge, field.retain_keys) {
        (true, true) => Some("merge,retainKeys"),
        (true, false) => Some("merge"),
        (false, true) => Some("retainKeys"),
        (false, false) => field.replace.then_some("replace"),
    };
    if let Some(strategy) = strategy {
        out.insert("x-kubernetes-patch-strategy".to_owned(), strategy.into());
    }
    shape(&mut out, &field.ty, field, owner);
    out.into()
}

/// Adds what a value looks like: its type and format, its items, or a reference.
fn shape(out: &mut Map<String, Value>, ty: &FieldType, field: &Field, owner: &Type) {
    if let Some(name) = name_of(ty, field, owner) {
        let reference = format!("#/components/schemas/{name}");
        if out.is_empty() {
            out.insert("$ref".to_owned(), reference.into());
        } else {
            // A reference may have no siblings.
            out.insert("allOf".to_owned(), json!([{"$ref": reference}]));
        }
        return;
    }
    let (name, format) = match ty {
        FieldType::Bool => ("boolean", None),
        FieldType::Int32 => ("integer", Some("int32")),
        FieldType::Int64 if field.go_type().ends_with("int") => ("integer", Some("int32")),
        FieldType::Int64 => ("integer", Some("int64")),
        FieldType::Float64 => ("number", Some("double")),
        FieldType::Bytes => ("string", Some("byte")),
        FieldType::List(_) => ("array", None),
        FieldType::Map(_) => ("object", None),
        _ => ("string", None),
    };
    out.insert("type".to_owned(), name.into());
    if let Some(format) = format {
        out.insert("format".to_owned(), format.into());
    }
    match ty {
        FieldType::List(item) | FieldType::Map(item) => {
            let mut inner = Map::new();
            shape(&mut inner, item, field, owner);
            let key = if name == "array" { "items" } else { "additionalProperties" };
            out.insert(key.to_owned(), inner.into());
        }
        // Of a list's items and a map's values too.
        FieldType::String if !field.enum_values.is_empty() => {
            out.insert("enum".to_owned(), field.enum_values.into());
        }
        _ => {}
    }
}
