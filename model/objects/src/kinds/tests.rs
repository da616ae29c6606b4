//! Tests of the rows.

use super::*;

#[test]
fn rows_are_found() {
    assert_eq!(find("", "v1", "pods").unwrap().kind, "Pod");
    assert_eq!(by_kind("apps", "v1", "Deployment").unwrap().plural, "deployments");
    assert_eq!(by_api_version("v1", "Event").unwrap().group, "");
    assert_eq!(by_api_version("events.k8s.io/v1", "Event").unwrap().storage, "core/events");
    assert!(find("apps", "v1beta1", "deployments").is_none());
}

#[test]
fn rows_are_whole() {
    for kind in all() {
        assert!(!kind.plural.is_empty() && !kind.singular.is_empty(), "{}", kind.kind);
        assert!(!kind.storage.is_empty(), "{}", kind.kind);
        assert!(kind.columns.iter().any(|c| c.format == "name"), "{}", kind.kind);
        assert_eq!(kind.from_storage.is_some(), kind.to_storage.is_some());
    }
}
