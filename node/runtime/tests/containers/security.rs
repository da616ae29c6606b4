//! security.

crate::tests![];
