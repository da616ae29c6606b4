//! sandboxes.

crate::tests![];
