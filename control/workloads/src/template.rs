//! Pod templates: equality and the hash that names a replica set.

use dhow_objects::hash::stable;
use k8s_openapi::api::core::v1::PodTemplateSpec;

/// The label that tells the pods of one replica set from those of another.
pub const HASH_LABEL: &str = "pod-template-hash";

/// Characters that spell no words (those of upstream's random names).
const ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";

/// The hash of a template: ten characters that are stable for equal templates. `collisions` makes
/// it differ when a name is taken by something else.
pub fn template_hash(template: &PodTemplateSpec, collisions: i32) -> String {
    // Struct fields serialise in a fixed order and maps are sorted: equal templates, equal bytes.
    let bytes = serde_json::to_vec(template).unwrap_or_default();
    let mut hash = stable(bytes.into_iter().chain(collisions.to_le_bytes()));
    (0..10)
        .map(|_| {
            let at = usize::try_from(hash % 27).unwrap_or(0);
            hash /= 27;
            char::from(ALPHABET[at])
        })
        .collect()
}

/// Whether two templates ask for the same pods, whatever their hash labels.
pub(crate) fn equal(a: &PodTemplateSpec, b: &PodTemplateSpec) -> bool {
    let bare = |template: &PodTemplateSpec| {
        let mut template = template.clone();
        if let Some(labels) = template.metadata.as_mut().and_then(|m| m.labels.as_mut()) {
            labels.remove(HASH_LABEL);
        }
        serde_json::to_value(&template).unwrap_or_default()
    };
    bare(a) == bare(b)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::object;
    use serde_json::json;

    fn template(image: &str, hash: Option<&str>) -> PodTemplateSpec {
        let mut labels = json!({"app": "web"});
        if let Some(hash) = hash {
            labels[HASH_LABEL] = json!(hash);
        }
        object(
            json!({"metadata": {"labels": labels}, "spec": {"containers": [{"name": "c", "image": image}]}}),
        )
    }

    #[test]
    fn the_hash_tells_templates_apart_and_nothing_else() {
        let one = template_hash(&template("a:1", None), 0);
        assert_eq!(one, template_hash(&template("a:1", None), 0));
        assert_ne!(one, template_hash(&template("a:2", None), 0));
        assert_ne!(one, template_hash(&template("a:1", None), 1));
        assert_eq!(one.len(), 10);
    }

    #[test]
    fn hash_labels_do_not_make_templates_differ() {
        assert!(equal(&template("a:1", None), &template("a:1", Some("x"))));
        assert!(!equal(&template("a:1", None), &template("a:2", None)));
    }
}
