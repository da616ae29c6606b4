//! What this API serves: the kinds of `dhow_objects`, and the reviews that are answered and never
//! stored.

use dhow_objects::Status;
use dhow_objects::kinds::{self, Kind};

/// A resource that is asked and answered, never stored.
#[derive(Debug)]
pub struct Review {
    /// API group.
    pub group: &'static str,
    /// API version.
    pub version: &'static str,
    /// Plural resource name.
    pub plural: &'static str,
    /// Kind.
    pub kind: &'static str,
    /// Whether it is asked in a namespace.
    pub namespaced: bool,
}

/// Every review.
pub const REVIEWS: &[Review] = &[
    Review {
        group: "authentication.k8s.io",
        version: "v1",
        plural: "selfsubjectreviews",
        kind: "SelfSubjectReview",
        namespaced: false,
    },
    Review {
        group: "authentication.k8s.io",
        version: "v1",
        plural: "tokenreviews",
        kind: "TokenReview",
        namespaced: false,
    },
    Review {
        group: "authorization.k8s.io",
        version: "v1",
        plural: "localsubjectaccessreviews",
        kind: "LocalSubjectAccessReview",
        namespaced: true,
    },
    Review {
        group: "authorization.k8s.io",
        version: "v1",
        plural: "selfsubjectaccessreviews",
        kind: "SelfSubjectAccessReview",
        namespaced: false,
    },
    Review {
        group: "authorization.k8s.io",
        version: "v1",
        plural: "selfsubjectrulesreviews",
        kind: "SelfSubjectRulesReview",
        namespaced: false,
    },
    Review {
        group: "authorization.k8s.io",
        version: "v1",
        plural: "subjectaccessreviews",
        kind: "SubjectAccessReview",
        namespaced: false,
    },
];

/// What a resource path leads to.
#[derive(Debug, Clone, Copy)]
pub enum Served {
    /// Stored objects.
    Kind(&'static Kind),
    /// A question.
    Review(&'static Review),
}

/// Finds what a group, version and plural lead to.
///
/// # Errors
/// 404 with the text that kubectl prints for unknown types.
pub fn find(group: &str, version: &str, plural: &str) -> Result<Served, Status> {
    if let Some(kind) = kinds::find(group, version, plural) {
        return Ok(Served::Kind(kind));
    }
    REVIEWS
        .iter()
        .find(|r| r.group == group && r.version == version && r.plural == plural)
        .map(Served::Review)
        .ok_or_else(no_such_resource)
}

/// 404: the address leads nowhere.
pub fn no_such_resource() -> Status {
    Status::new(404, "NotFound", "the server could not find the requested resource")
}

/// Every group with its versions, in the order that discovery tells them: the legacy group (an
/// empty name) first.
pub fn groups() -> Vec<(&'static str, Vec<&'static str>)> {
    let mut found: Vec<(&'static str, Vec<&'static str>)> = Vec::new();
    let stored = kinds::all().iter().map(|kind| (kind.group, kind.version));
    let asked = REVIEWS.iter().map(|review| (review.group, review.version));
    for (group, version) in stored.chain(asked) {
        match found.iter_mut().find(|(name, _)| *name == group) {
            Some((_, versions)) if versions.contains(&version) => {}
            Some((_, versions)) => versions.push(version),
            None => found.push((group, vec![version])),
        }
    }
    found.sort_by_key(|(name, _)| !name.is_empty());
    for (_, versions) in &mut found {
        versions.sort_by_key(|version| version_rank(version));
    }
    found
}

/// Orders versions as upstream prefers them: stable before beta before alpha, newest first.
fn version_rank(version: &str) -> (u8, std::cmp::Reverse<u32>, std::cmp::Reverse<u32>) {
    let rest = version.strip_prefix('v').unwrap_or(version);
    let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    let major = rest[..digits].parse().unwrap_or(0);
    let (stability, minor) = match &rest[digits..] {
        "" => (0, 0),
        other => match (other.strip_prefix("beta"), other.strip_prefix("alpha")) {
            (Some(n), _) => (1, n.parse().unwrap_or(0)),
            (_, Some(n)) => (2, n.parse().unwrap_or(0)),
            _ => (3, 0),
        },
    };
    (stability, std::cmp::Reverse(major), std::cmp::Reverse(minor))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stable_versions_come_first() {
        let mut versions = ["v1alpha1", "v1beta2", "v2", "v1", "v1beta10"];
        versions.sort_by_key(|v| version_rank(v));
        assert_eq!(versions, ["v2", "v1", "v1beta10", "v1beta2", "v1alpha1"]);
    }

    #[test]
    fn unknown_resources_say_what_kubectl_expects() {
        let refusal = find("", "v1", "ships").unwrap_err();
        assert_eq!(refusal.message, "the server could not find the requested resource");
    }
}
