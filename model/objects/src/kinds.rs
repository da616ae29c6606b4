//! Kinds: each a row of data (contract; owned by the patch helper, grows into a folder).
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
}
