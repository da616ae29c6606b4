//! Label and field selectors (contract; owned by the patch helper).
/// A label selector, parsed.
#[derive(Debug, Clone, Default)]
pub struct LabelSelector {}
/// A field selector, parsed.
#[derive(Debug, Clone, Default)]
pub struct FieldSelector {}
