//! `ControllerRevision`: a template as it was.

use super::column::{AGE, Column, NAME, number};
use super::{BASE, Kind};
use crate::meta;
use serde_json::{Value, json};

/// `apps/v1 ControllerRevision`.
pub static CONTROLLER_REVISION: Kind = Kind {
    group: "apps",
    kind: "ControllerRevision",
    plural: "controllerrevisions",
    singular: "controllerrevision",
    storage: "apps/controllerrevisions",
    columns: &[
        NAME,
        Column::text("Controller", "Controller of the object", |v, _| json!(controller(v))),
        Column::text("Revision", "Revision of the state that the object holds.", |v, _| {
            json!(number(v, "/revision"))
        }),
        AGE,
    ],
    ..BASE
};

fn controller(revision: &Value) -> String {
    let Some(owner) = meta::controller_of(revision) else { return "<none>".to_owned() };
    let kind = owner.kind.to_lowercase();
    match owner.api_version.split_once('/') {
        Some((group, _)) => format!("{kind}.{group}/{}", owner.name),
        None => format!("{kind}/{}", owner.name),
    }
}
