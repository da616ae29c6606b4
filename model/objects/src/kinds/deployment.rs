//! `Deployment`: replicas that roll from one template to the next.

use super::column::{AGE, Column, NAME, containers, number, selector};
use super::fill::{object_at, set};
use super::pod::defaults;
use super::replica_set::SCALE;
use super::{BASE, Kind, Prepare, STATUS_VERBS, Subresource};
use serde_json::{Value, json};

/// `apps/v1 Deployment`.
pub static DEPLOYMENT: Kind = Kind {
    group: "apps",
    kind: "Deployment",
    plural: "deployments",
    singular: "deployment",
    short_names: &["deploy"],
    categories: &["all"],
    storage: "apps/deployments",
    subresources: &[
        SCALE,
        Subresource {
            name: "status",
            group: "apps",
            version: "v1",
            kind: "Deployment",
            verbs: STATUS_VERBS,
        },
    ],
    columns: &[
        NAME,
        Column::text("Ready", "Number of the pod with ready state", |v, _| {
            json!(format!("{}/{}", number(v, "/status/readyReplicas"), number(v, "/spec/replicas")))
        }),
        Column::text("Up-to-date", "Replicas that run the newest template.", |v, _| {
            json!(number(v, "/status/updatedReplicas"))
        }),
        Column::text("Available", "Replicas that have been ready for long enough.", |v, _| {
            json!(number(v, "/status/availableReplicas"))
        }),
        AGE,
        Column::text("Containers", "Names of each container in the template.", |v, _| {
            containers(v, "/spec/template/spec/containers", "/name")
        })
        .wide(),
        Column::text("Images", "Images referenced by each container in the template.", |v, _| {
            containers(v, "/spec/template/spec/containers", "/image")
        })
        .wide(),
        Column::text("Selector", "Which pods belong to it.", |v, _| selector(v)).wide(),
    ],
    default,
    prepare: Prepare::SPEC_AND_STATUS,
    ..BASE
};

fn default(deployment: &mut Value) {
    defaults::spec(deployment, &["spec", "template", "spec"]);
    let Some(spec) = object_at(deployment, &["spec"]) else { return };
    set(spec, "replicas", json!(1));
    set(spec, "revisionHistoryLimit", json!(10));
    set(spec, "progressDeadlineSeconds", json!(600));
    let Some(strategy) = object_at(deployment, &["spec", "strategy"]) else { return };
    set(strategy, "type", json!("RollingUpdate"));
    if strategy["type"] == "RollingUpdate"
        && let Some(rolling) = object_at(deployment, &["spec", "strategy", "rollingUpdate"])
    {
        set(rolling, "maxUnavailable", json!("25%"));
        set(rolling, "maxSurge", json!("25%"));
    }
}
