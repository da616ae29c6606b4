//! The shape of every built-in type: one table, and what is generic over it.
//!
//! The table is derived by `cargo xtask gen-kinds` from the published Go modules (`k8s.io/api`,
//! `k8s.io/apimachinery`) and is embedded compressed. Only a small index is parsed on first use; the
//! fields of a type are parsed when somebody asks for them, and documentation is inflated only for
//! as long as a [`Docs`] value lives. A process that serves ten kinds pays for ten kinds.

pub mod openapi;
pub mod protobuf;
pub mod shape;
pub mod strict;
mod table;

use std::sync::OnceLock;

pub use table::{Docs, TableError};

/// A group, version and kind under which a type is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Gvk {
    /// API group, empty for the legacy group.
    pub group: &'static str,
    /// API version, for example `v1`.
    pub version: &'static str,
    /// Kind, for example `Pod`.
    pub kind: &'static str,
}

impl Gvk {
    /// The `apiVersion` of objects of this kind: `v1`, `apps/v1`.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.to_owned()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }
}

/// The table of all types.
#[derive(Debug)]
pub struct Schema {
    pub(crate) types: &'static [Type],
    /// Type indexes by full name.
    pub(crate) by_name: Vec<u16>,
    /// Every served kind with the index of its type, sorted.
    pub(crate) kinds: Vec<(Gvk, u16)>,
}

impl Schema {
    /// The type with this OpenAPI name, for example `io.k8s.api.core.v1.Pod`.
    pub fn type_named(&self, name: &str) -> Option<&'static Type> {
        let types = self.types;
        self.by_name
            .binary_search_by(|&i| types[usize::from(i)].name.cmp(name))
            .ok()
            .map(|at| &types[usize::from(self.by_name[at])])
    }

    /// The type served as this group, version and kind. The group is empty for `v1`.
    pub fn kind(&self, group: &str, version: &str, kind: &str) -> Option<&'static Type> {
        let types = self.types;
        self.kinds
            .binary_search_by(|(gvk, _)| {
                (gvk.group, gvk.version, gvk.kind).cmp(&(group, version, kind))
            })
            .ok()
            .map(|at| &types[usize::from(self.kinds[at].1)])
    }

    /// The type of objects that carry this `apiVersion` and `kind`.
    pub fn kind_of(&self, api_version: &str, kind: &str) -> Option<&'static Type> {
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        self.kind(group, version, kind)
    }

    /// Every group, version and kind with its type, sorted.
    pub fn kinds(&self) -> impl Iterator<Item = (Gvk, &'static Type)> + '_ {
        let types = self.types;
        self.kinds.iter().map(move |(gvk, i)| (*gvk, &types[usize::from(*i)]))
    }

    /// Every type, in the table's order.
    pub fn types(&self) -> &'static [Type] {
        self.types
    }
}

/// A Go struct of the API.
#[derive(Debug)]
pub struct Type {
    /// OpenAPI name, for example `io.k8s.api.core.v1.Pod`.
    pub name: &'static str,
    /// Every group, version and kind under which the type is served, empty for parts of objects.
    pub gvks: &'static [Gvk],
    /// Whether an applier owns the whole struct or nothing of it (`+structType=atomic`).
    pub atomic: bool,
    pub(crate) package: &'static table::Package,
    /// Position within the package.
    pub(crate) position: usize,
    pub(crate) body: OnceLock<table::Body>,
}

impl Type {
    /// Own and inlined fields, flattened as JSON shows them, in Go's order.
    pub fn fields(&'static self) -> &'static [Field] {
        &self.body().fields
    }

    /// The field with this JSON name (binary search).
    pub fn field(&'static self, json: &str) -> Option<&'static Field> {
        let body = self.body();
        body.by_json
            .binary_search_by(|&i| body.fields[usize::from(i)].json.cmp(json))
            .ok()
            .map(|at| &body.fields[usize::from(body.by_json[at])])
    }

    /// The type's own field with this protobuf number; inlined structs are messages of their own,
    /// see [`Type::inlined`].
    pub fn field_by_number(&'static self, number: u32) -> Option<&'static Field> {
        self.fields().iter().find(|f| f.inlined_in == 0 && f.number == number)
    }

    /// Structs that JSON flattens into this one, and protobuf nests under a field number.
    pub fn inlined(&'static self) -> &'static [Inlined] {
        &self.body().inlined
    }

    /// The Go name of the type: the last part of [`Type::name`].
    pub fn go_name(&self) -> &'static str {
        self.name.rsplit_once('.').map_or(self.name, |(_, last)| last)
    }

    fn body(&'static self) -> &'static table::Body {
        self.body.get_or_init(|| table::parse_body(self))
    }
}

/// A struct that is embedded in another one with `json:",inline"`.
#[derive(Debug, Clone, Copy)]
pub struct Inlined {
    /// Field number of the nested message in protobuf.
    pub number: u32,
    /// The embedded struct.
    pub ty: &'static Type,
}

/// One field as JSON shows it.
#[derive(Debug)]
pub struct Field {
    /// JSON name.
    pub json: &'static str,
    /// Protobuf field number within the struct that declares it; 0 when protobuf does not carry it
    /// (`apiVersion` and `kind`, which travel in the envelope).
    pub number: u32,
    /// Protobuf number of the inlined struct that brings this field; 0 for a field of one's own.
    pub inlined_in: u32,
    /// What the field holds.
    pub ty: FieldType,
    /// Whether OpenAPI lists the field as required.
    pub required: bool,
    /// Whether Go holds the field through a pointer, so that absent and zero differ.
    pub pointer: bool,
    /// Whether Go leaves an empty value out (`omitempty`; never leaves out a struct).
    pub omitempty: bool,
    /// Whether Go leaves a zero struct out (`omitzero`).
    pub omitzero: bool,
    /// Whether protobuf wraps the list in a message of its own.
    pub wrapped: bool,
    /// How server-side apply merges the list; [`ListKind::Atomic`] also for what is no list.
    pub list: ListKind,
    /// Whether upstream states the list's kind; OpenAPI shows `x-kubernetes-list-type` only then.
    pub list_stated: bool,
    /// For [`ListKind::Map`], the keys that identify an item.
    pub keys: &'static [&'static str],
    /// Whether a strategic merge patch merges the list (or map) instead of replacing it.
    pub merge: bool,
    /// The key by which a strategic merge patch merges items of the list.
    pub merge_key: Option<&'static str>,
    /// Whether a strategic merge patch clears the keys that it does not name (`retainKeys`).
    pub retain_keys: bool,
    /// Whether a strategic merge patch replaces the value whole (`replace`).
    pub replace: bool,
    /// Whether the field is marked so that an applier owns the whole map or struct or nothing of
    /// it. Its type may be so by itself: [`Type::atomic`].
    pub atomic: bool,
    /// Whether the field is marked as granular although its type is atomic.
    pub granular: bool,
    /// The default as JSON: what upstream documents, or Go's zero value (`""`, `0`, `false`, `{}`)
    /// for a field that is always there. Server-side apply completes list keys with it.
    pub default: Option<&'static str>,
    /// The values of an enumeration, sorted; empty when the field is none.
    pub enum_values: &'static [&'static str],
    /// The Go type where [`Field::ty`] does not tell it, for example `v1.Protocol`.
    pub(crate) named_go_type: Option<&'static str>,
}

impl Field {
    /// The field's Go type without its pointer, as Go's reflection prints it: `int32`,
    /// `v1.PodSpec`, `[]v1.Container`, `map[string]string`.
    pub fn go_type(&self) -> String {
        self.named_go_type.map_or_else(|| self.ty.go_type(), str::to_owned)
    }
}

/// How server-side apply merges a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ListKind {
    /// One owner for the whole list.
    #[default]
    Atomic,
    /// Unique scalars, each with its owners.
    Set,
    /// Items identified by [`Field::keys`].
    Map,
}

/// What a field holds.
#[derive(Debug, Clone, Copy)]
pub enum FieldType {
    /// A boolean.
    Bool,
    /// A signed number of 32 bits.
    Int32,
    /// A signed number of 64 bits.
    Int64,
    /// A floating point number of 64 bits.
    Float64,
    /// A string.
    String,
    /// Bytes, base64 in JSON.
    Bytes,
    /// A number of 32 bits, or a string.
    IntOrString,
    /// An amount such as `100m` or `1Gi`; JSON may also give a plain number.
    Quantity,
    /// An instant in seconds, RFC 3339; null when unset.
    Time,
    /// An instant in microseconds, RFC 3339; null when unset.
    MicroTime,
    /// A duration such as `1h30m0s`.
    Duration,
    /// Any JSON.
    Raw,
    /// The field set of a managed fields entry: a JSON object.
    FieldsV1,
    /// A struct.
    Message(&'static Type),
    /// A list.
    List(&'static FieldType),
    /// A map with string keys.
    Map(&'static FieldType),
}

impl FieldType {
    /// The struct behind this type: of the field itself, of a list's items or of a map's values.
    pub fn message(&self) -> Option<&'static Type> {
        match self {
            FieldType::Message(ty) => Some(ty),
            FieldType::List(inner) | FieldType::Map(inner) => inner.message(),
            _ => None,
        }
    }

    fn go_type(&self) -> String {
        match self {
            FieldType::Bool => "bool".to_owned(),
            FieldType::Int32 => "int32".to_owned(),
            FieldType::Int64 => "int64".to_owned(),
            FieldType::Float64 => "float64".to_owned(),
            FieldType::String => "string".to_owned(),
            FieldType::Bytes => "[]uint8".to_owned(),
            FieldType::IntOrString => "intstr.IntOrString".to_owned(),
            FieldType::Quantity => "resource.Quantity".to_owned(),
            FieldType::Time => "v1.Time".to_owned(),
            FieldType::MicroTime => "v1.MicroTime".to_owned(),
            FieldType::Duration => "v1.Duration".to_owned(),
            FieldType::Raw => "runtime.RawExtension".to_owned(),
            FieldType::FieldsV1 => "v1.FieldsV1".to_owned(),
            FieldType::Message(ty) => {
                let mut parts = ty.name.rsplit('.');
                let name = parts.next().unwrap_or_default();
                format!("{}.{name}", parts.next().unwrap_or_default())
            }
            FieldType::List(item) => format!("[]{}", item.go_type()),
            FieldType::Map(item) => format!("map[string]{}", item.go_type()),
        }
    }
}

static TABLE: &[u8] = include_bytes!("../../data/kinds.table");

/// A text that changes with the embedded table: its length, and a sum over its last bytes, which
/// hold the checksum of its last chunk.
fn table_mark() -> String {
    let last = TABLE.iter().rev().take(64);
    let sum = last.fold(0_u64, |sum, byte| (sum * 31 + u64::from(*byte)) % 1_000_003);
    format!("{}-{sum}", TABLE.len())
}

/// The table, parsed on first use.
pub fn schema() -> &'static Schema {
    static SCHEMA: OnceLock<Schema> = OnceLock::new();
    SCHEMA.get_or_init(|| {
        Schema::parse(TABLE).expect(
            "the embedded table is checked by `cargo xtask gen-kinds` and by a test of this crate",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_embedded_table_is_whole() {
        let types = schema().types();
        assert!(types.len() > 1200);
        for ty in types {
            assert!(schema().type_named(ty.name).is_some_and(|found| std::ptr::eq(found, ty)));
            for field in ty.fields() {
                assert!(ty.field(field.json).is_some(), "{}.{}", ty.name, field.json);
                if let Some(default) = field.default {
                    serde_json::from_str::<serde_json::Value>(default).expect("defaults are JSON");
                }
            }
        }
        for (gvk, ty) in schema().kinds() {
            assert!(std::ptr::eq(schema().kind(gvk.group, gvk.version, gvk.kind).unwrap(), ty));
            assert!(std::ptr::eq(schema().kind_of(&gvk.api_version(), gvk.kind).unwrap(), ty));
        }
    }

    #[test]
    fn facts_of_well_known_fields() {
        let spec = schema().type_named("io.k8s.api.core.v1.PodSpec").unwrap();
        let containers = spec.field("containers").unwrap();
        assert_eq!(containers.number, 2);
        assert_eq!((containers.list, containers.keys), (ListKind::Map, &["name"][..]));
        assert_eq!((containers.merge, containers.merge_key), (true, Some("name")));
        assert!(containers.required && !containers.pointer);
        assert_eq!(
            spec.field("restartPolicy").unwrap().enum_values,
            ["Always", "Never", "OnFailure"]
        );

        let port = schema().type_named("io.k8s.api.core.v1.ContainerPort").unwrap();
        assert_eq!(port.field("protocol").unwrap().default, Some("\"TCP\""));
        let volume = schema().type_named("io.k8s.api.core.v1.Volume").unwrap();
        assert_eq!(volume.inlined()[0].number, 2);
        assert_eq!(volume.field("emptyDir").unwrap().inlined_in, 2);
        let deployment = schema().kind("apps", "v1", "Deployment").unwrap();
        assert_eq!(deployment.go_name(), "Deployment");
        let strategy = deployment.field("spec").unwrap().ty.message().unwrap().field("strategy");
        assert!(strategy.unwrap().retain_keys);
        let volume = schema().type_named("io.k8s.api.core.v1.PersistentVolumeSpec").unwrap();
        assert!(volume.field("claimRef").unwrap().ty.message().unwrap().atomic);
        assert!(volume.field("claimRef").unwrap().granular);
        let budget = schema().type_named("io.k8s.api.policy.v1.PodDisruptionBudgetSpec").unwrap();
        assert!(budget.field("selector").unwrap().replace);
        assert!(
            schema()
                .type_named("io.k8s.apimachinery.pkg.apis.meta.v1.LabelSelector")
                .unwrap()
                .atomic
        );
    }

    #[test]
    fn kinds_that_are_never_stored_are_there_too() {
        for (api_version, kind) in [
            ("v1", "DeleteOptions"),
            ("v1", "Status"),
            ("v1", "Binding"),
            ("v1", "ListOptions"),
            ("authentication.k8s.io/v1", "TokenRequest"),
            ("authentication.k8s.io/v1", "TokenReview"),
            ("authentication.k8s.io/v1", "SelfSubjectReview"),
            ("authorization.k8s.io/v1", "SelfSubjectAccessReview"),
            ("authorization.k8s.io/v1", "SelfSubjectRulesReview"),
            ("autoscaling/v1", "Scale"),
            ("policy/v1", "Eviction"),
            ("policy/v1", "DeleteOptions"),
            ("meta.k8s.io/v1", "Table"),
            ("apiextensions.k8s.io/v1", "CustomResourceDefinition"),
        ] {
            assert!(schema().kind_of(api_version, kind).is_some(), "{api_version} {kind}");
        }
    }

    #[test]
    fn documentation_stands_beside_fields() {
        let volume = schema().type_named("io.k8s.api.core.v1.Volume").unwrap();
        let mut docs = Docs::new();
        assert!(docs.of_type(volume).starts_with("Volume represents a named volume"));
        let texts = docs.of_fields(volume);
        assert_eq!(texts.len(), volume.fields().len());
        let at = volume.fields().iter().position(|f| f.json == "hostPath").unwrap();
        assert!(texts[at].starts_with("hostPath represents"), "{}", texts[at]);
    }
}
