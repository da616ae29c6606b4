//! Label and field selectors.
//!
//! Label selectors follow `k8s.io/apimachinery/pkg/labels` and `meta/v1.LabelSelector`, field
//! selectors `k8s.io/apimachinery/pkg/fields`.

mod field;
mod label;

pub use field::{FieldSelector, FieldTerm};
pub use label::{LabelSelector, Operator, Requirement};
