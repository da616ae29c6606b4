//! Kinds: each a row of data that everything generic about the API reads.
//!
//! A row carries the names of a kind, what may be done with it, its columns, defaults, rules and
//! what clients may not set. Rows are `pub static`; one file per kind (or family of kinds).

mod check;
mod column;
mod component_status;
mod config_map;
mod controller_revision;
mod daemon_set;
mod deployment;
mod endpoint_slice;
mod endpoints;
mod event;
mod fill;
mod lease;
mod namespace;
mod node;
mod pod;
mod prepare;
mod rbac;
mod replica_set;
mod replication_controller;
mod scale;
mod secret;
mod service;
mod service_account;
mod workload;

pub use column::Column;
pub use component_status::COMPONENT_STATUS;
pub use config_map::CONFIG_MAP;
pub use controller_revision::CONTROLLER_REVISION;
pub use daemon_set::DAEMON_SET;
pub use deployment::DEPLOYMENT;
pub use endpoint_slice::ENDPOINT_SLICE;
pub use endpoints::ENDPOINTS;
pub use event::{EVENT, EVENTS_EVENT, name as event_name};
pub use lease::LEASE;
pub use namespace::NAMESPACE;
pub use node::NODE;
pub use pod::{POD, qos_class};
pub use prepare::{Generation, Prepare, StatusOnCreate};
pub use rbac::{CLUSTER_ROLE, CLUSTER_ROLE_BINDING, ROLE, ROLE_BINDING};
pub use replica_set::REPLICA_SET;
pub use replication_controller::REPLICATION_CONTROLLER;
pub use scale::{scale_into, scale_of};
pub use secret::SECRET;
pub use service::{SERVICE, is_external_service};
pub use service_account::SERVICE_ACCOUNT;

use crate::schema::shape::normalise;
use crate::schema::{Type, schema};
use crate::status::StatusCause;
use serde_json::Value;

/// Something below an object with a path of its own, for example `pods/log`.
#[derive(Debug)]
pub struct Subresource {
    /// Last element of the path: `status`, `scale`, `log`...
    pub name: &'static str,
    /// Group of the kind that is exchanged; may differ from the parent's.
    pub group: &'static str,
    /// Version of the kind that is exchanged.
    pub version: &'static str,
    /// Kind that is exchanged, for example `Scale`.
    pub kind: &'static str,
    /// Verbs, as discovery tells them.
    pub verbs: &'static [&'static str],
    /// How the part of the object is written that this path alone may change, if there is one.
    pub part: Option<&'static Part>,
}

impl Subresource {
    /// One whose kind has version `v1`, and which has no part of its own.
    pub(crate) const fn new(
        name: &'static str,
        group: &'static str,
        kind: &'static str,
        verbs: &'static [&'static str],
    ) -> Self {
        Self { name, group, version: "v1", kind, verbs, part: None }
    }
}

/// A part of an object that only a path of its own may change, for example `pods/resize`.
#[derive(Debug)]
pub struct Part {
    /// Puts everything else back as it was; the second is the object as stored.
    pub keep: fn(&mut Value, &Value),
    /// Rules of the object as a whole and of this change.
    pub validate: fn(&Value, &Value) -> Vec<StatusCause>,
}

/// How the name of a kind's objects must look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NameRule {
    /// DNS-1123 subdomain, at most 253 characters: most kinds.
    Subdomain,
    /// DNS-1123 label, at most 63 characters: namespaces and services.
    Label,
    /// Any path segment (not `.`, `..`, no `/` or `%`): the kinds of RBAC.
    PathSegment,
}

/// A field by which lists and watches can be filtered.
#[derive(Debug)]
pub struct SelectableField {
    /// What clients write, for example `spec.nodeName`.
    pub label: &'static str,
    /// Where it stands in the stored object, dotted.
    pub path: &'static str,
    /// What a missing value reads as.
    pub absent: &'static str,
}

/// Rewrites an object in place.
pub type Rewrite = fn(&mut Value);

/// Checks a new object, against the old one on updates.
pub type Validate = fn(&Value, Option<&Value>) -> Vec<StatusCause>;

/// One kind of object.
#[derive(Debug)]
pub struct Kind {
    /// API group, empty for the legacy group.
    pub group: &'static str,
    /// API version, for example `v1`.
    pub version: &'static str,
    /// Kind, for example `Pod`.
    pub kind: &'static str,
    /// Plural resource name, for example `pods`.
    pub plural: &'static str,
    /// Singular resource name.
    pub singular: &'static str,
    /// Short names, for example `po`.
    pub short_names: &'static [&'static str],
    /// Categories, for example `all`.
    pub categories: &'static [&'static str],
    /// Whether objects live in namespaces.
    pub namespaced: bool,
    /// Verbs, as discovery tells them.
    pub verbs: &'static [&'static str],
    /// What every caller is warned of, when the kind is on its way out.
    pub deprecated: Option<&'static str>,
    /// Nothing of it is stored: the API looks at what it shows when it is asked.
    pub observed: bool,
    /// Whether an update of an object that is not there makes it.
    pub create_on_update: bool,
    /// What lies below an object.
    pub subresources: &'static [Subresource],
    /// `GROUP/PLURAL` under which objects are stored (`core` for the legacy group). Two rows with
    /// the same value are two views of the same objects.
    pub storage: &'static str,
    /// From the stored form to this row's form; `None` when they are the same.
    pub from_storage: Option<Rewrite>,
    /// From this row's form to the stored form; `None` when they are the same.
    pub to_storage: Option<Rewrite>,
    /// How names must look.
    pub name_rule: NameRule,
    /// Fields that selectors may name, besides `metadata.name` and `metadata.namespace`.
    pub fields: &'static [SelectableField],
    /// Columns of the server-side table; the first is `Name`.
    pub columns: &'static [Column],
    /// Fills in what was left out, as upstream does. Idempotent.
    pub default: Rewrite,
    /// Rules of the kind besides those of the schema and of metadata (see
    /// [`Kind::validate_all`]), after defaulting.
    pub validate: Validate,
    /// What an author is warned of although it is taken, when an object is new or, with the old
    /// one, changed.
    pub warnings: fn(&Value, Option<&Value>) -> Vec<String>,
    /// What clients may not set.
    pub prepare: Prepare,
    /// Seconds that a deleted object is given to end when the request does not say; `None` for
    /// kinds that vanish at once.
    pub graceful: Option<fn(&Value) -> i64>,
}

/// The usual verbs of stored kinds.
pub const VERBS: &[&str] =
    &["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];

/// What a proxy lets through: every method of HTTP.
pub(crate) const PROXY_VERBS: &[&str] = &["create", "delete", "get", "patch", "update"];

pub(crate) const STATUS_VERBS: &[&str] = &["get", "patch", "update"];

fn leave(_: &mut Value) {}

fn nothing(_: &Value, _: Option<&Value>) -> Vec<String> {
    Vec::new()
}

fn accept(_: &Value, _: Option<&Value>) -> Vec<StatusCause> {
    Vec::new()
}

/// What most rows have in common; rows name the rest.
pub(crate) const BASE: Kind = Kind {
    group: "",
    version: "v1",
    kind: "",
    plural: "",
    singular: "",
    short_names: &[],
    categories: &[],
    namespaced: true,
    verbs: VERBS,
    deprecated: None,
    observed: false,
    create_on_update: false,
    subresources: &[],
    storage: "",
    from_storage: None,
    to_storage: None,
    name_rule: NameRule::Subdomain,
    fields: &[],
    columns: column::NAME_AND_AGE,
    default: leave,
    validate: accept,
    warnings: nothing,
    prepare: Prepare::NOTHING,
    graceful: None,
};

impl Kind {
    /// `v1` or `apps/v1`, as `apiVersion` says it.
    #[must_use]
    pub fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.to_owned()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }

    /// The type in the schema.
    #[must_use]
    pub fn schema_type(&self) -> Option<&'static Type> {
        schema().kind(self.group, self.version, self.kind)
    }

    /// Brings an object into the form that Go's structs give it and fills in the defaults: to
    /// call on everything that a client sends.
    pub fn complete(&self, object: &mut Value) {
        if let Some(ty) = self.schema_type() {
            normalise(object, ty);
        }
        (self.default)(object);
    }

    /// The subresource of this name.
    #[must_use]
    pub fn subresource(&self, name: &str) -> Option<&'static Subresource> {
        self.subresources.iter().find(|s| s.name == name)
    }

    /// Whether `status` is written by itself.
    #[must_use]
    pub fn has_status(&self) -> bool {
        self.subresource("status").is_some()
    }
}

static ALL: &[&Kind] = &[
    &COMPONENT_STATUS,
    &CONFIG_MAP,
    &ENDPOINTS,
    &EVENT,
    &NAMESPACE,
    &NODE,
    &POD,
    &REPLICATION_CONTROLLER,
    &SECRET,
    &SERVICE,
    &SERVICE_ACCOUNT,
    &CONTROLLER_REVISION,
    &DAEMON_SET,
    &DEPLOYMENT,
    &REPLICA_SET,
    &LEASE,
    &ENDPOINT_SLICE,
    &EVENTS_EVENT,
    &CLUSTER_ROLE_BINDING,
    &CLUSTER_ROLE,
    &ROLE_BINDING,
    &ROLE,
];

/// Every kind, the legacy group first.
#[must_use]
pub fn all() -> &'static [&'static Kind] {
    ALL
}

/// The kind behind a path: group (empty for the legacy group), version, plural.
#[must_use]
pub fn find(group: &str, version: &str, plural: &str) -> Option<&'static Kind> {
    ALL.iter().copied().find(|k| k.plural == plural && k.group == group && k.version == version)
}

/// The kind that an object says it is.
#[must_use]
pub fn by_kind(group: &str, version: &str, kind: &str) -> Option<&'static Kind> {
    ALL.iter().copied().find(|k| k.kind == kind && k.group == group && k.version == version)
}

#[cfg(test)]
mod tests;
