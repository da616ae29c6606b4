//! Who owns which fields: the entries of `metadata.managedFields`.

use super::set::FieldSet;
use crate::status::{Status, StatusCause, StatusDetails};
use crate::time;
use serde_json::{Map, Value, json};

/// Most entries of updates that are kept; older ones are thrown together.
const MOST_UPDATERS: usize = 10;
const OLD_UPDATES: &str = "ancient-changes";

/// How an owner came to its fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Operation {
    Apply,
    Update,
}

/// One entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Manager {
    pub(crate) name: String,
    pub(crate) operation: Operation,
    pub(crate) api_version: String,
    pub(crate) subresource: String,
    /// RFC 3339, or empty.
    pub(crate) time: String,
    pub(crate) fields: FieldSet,
}

impl Manager {
    /// Whether an operation belongs to this entry. Applies of one manager are one entry, whatever
    /// the version.
    pub(crate) fn is(&self, other: &Self) -> bool {
        self.name == other.name
            && self.operation == other.operation
            && self.subresource == other.subresource
            && (self.operation == Operation::Apply || self.api_version == other.api_version)
    }

    fn told(&self) -> String {
        let mut text = format!("{:?}", self.name);
        if !self.subresource.is_empty() {
            text = format!("{text} with subresource {:?}", self.subresource);
        }
        match self.operation {
            Operation::Apply => text,
            // Upstream identifies entries without their time, so that it never tells it.
            Operation::Update => format!("{text} using {}", self.api_version),
        }
    }

    fn decode(entry: &Value) -> Option<Self> {
        let text =
            |field: &str| entry.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
        let operation = match text("operation").as_str() {
            "Apply" => Operation::Apply,
            "Update" => Operation::Update,
            _ => return None,
        };
        Some(Self {
            name: text("manager"),
            operation,
            api_version: text("apiVersion"),
            subresource: text("subresource"),
            time: text("time"),
            fields: FieldSet::from_json(entry.get("fieldsV1").unwrap_or(&Value::Null)),
        })
    }

    fn encode(&self) -> Value {
        let mut entry = json!({
            "manager": self.name,
            "operation": match self.operation {
                Operation::Apply => "Apply",
                Operation::Update => "Update",
            },
            "apiVersion": self.api_version,
            "fieldsType": "FieldsV1",
            "fieldsV1": self.fields.to_json(),
        });
        for (field, value) in [("time", &self.time), ("subresource", &self.subresource)] {
            if !value.is_empty() {
                entry[field] = json!(value);
            }
        }
        entry
    }
}

/// The entries of an object; `None` when one of them cannot be read.
pub(crate) fn decode(object: &Value) -> Option<Vec<Manager>> {
    let entries = object.pointer("/metadata/managedFields").and_then(Value::as_array);
    entries.into_iter().flatten().map(Manager::decode).collect()
}

/// Whether a client asks for all entries to be dropped: `managedFields: [{}]`.
pub(crate) fn is_reset(object: &Value) -> bool {
    let entries = object.pointer("/metadata/managedFields").and_then(Value::as_array);
    entries.is_some_and(|e| e.len() == 1 && e[0].as_object().is_some_and(Map::is_empty))
}

/// The object without its entries.
pub(crate) fn strip(object: &Value) -> Value {
    let mut object = object.clone();
    if let Some(meta) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        meta.remove("managedFields");
    }
    object
}

/// Puts the entries into an object: applies before updates, then by time.
pub(crate) fn encode(object: &mut Value, mut managers: Vec<Manager>) {
    managers.retain(|m| !m.fields.is_empty());
    managers.sort_by_key(|m| {
        let time = time::parse(&m.time).map_or(0, jiff::Timestamp::as_second);
        (m.operation, time, m.name.clone(), m.api_version.clone(), m.subresource.clone())
    });
    let Some(meta) = crate::meta::metadata_mut(object) else { return };
    if managers.is_empty() {
        meta.remove("managedFields");
    } else {
        let entries = managers.iter().map(Manager::encode).collect();
        meta.insert("managedFields".into(), Value::Array(entries));
    }
}

/// Throws the oldest entries of updates together until few enough are left.
pub(crate) fn cap(managers: &mut Vec<Manager>) {
    loop {
        let mut updaters: Vec<usize> =
            (0..managers.len()).filter(|&i| managers[i].operation == Operation::Update).collect();
        if updaters.len() <= MOST_UPDATERS {
            return;
        }
        updaters.sort_by_key(|&i| {
            let time = time::parse(&managers[i].time).map_or(0, jiff::Timestamp::as_second);
            (time, managers[i].name.clone())
        });
        // The two oldest of one version become one.
        let pair = updaters.iter().enumerate().find_map(|(at, &i)| {
            let same = |&&j: &&usize| managers[j].api_version == managers[i].api_version;
            updaters[at + 1..].iter().find(same).map(|&j| (i, j))
        });
        let Some((older, newer)) = pair else { return };
        managers[older] = Manager {
            name: OLD_UPDATES.to_owned(),
            subresource: String::new(),
            time: managers[newer].time.clone(),
            fields: managers[older].fields.union(&managers[newer].fields),
            ..managers[older].clone()
        };
        managers.remove(newer);
    }
}

/// 409 that names every field that others own.
pub(crate) fn conflict(conflicts: &[(Manager, FieldSet)]) -> Status {
    let mut causes = Vec::new();
    let mut lines = Vec::new();
    let mut sorted: Vec<&(Manager, FieldSet)> = conflicts.iter().collect();
    sorted.sort_by_key(|(m, _)| m.told());
    for (manager, fields) in sorted {
        let told = manager.told();
        lines.push(format!("conflicts with {told}:"));
        for path in fields.paths() {
            lines.push(format!("- {path}"));
            causes.push(StatusCause {
                reason: "FieldManagerConflict".into(),
                message: format!("conflict with {told}"),
                field: path,
            });
        }
    }
    let message = match causes.as_slice() {
        [one] => format!("Apply failed with 1 conflict: {}: {}", one.message, one.field),
        many => format!("Apply failed with {} conflicts: {}", many.len(), lines.join("\n")),
    };
    let mut status = Status::new(409, "Conflict", message);
    status.details = Some(Box::new(StatusDetails { causes, ..StatusDetails::default() }));
    status
}
