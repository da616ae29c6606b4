//! streams.

crate::tests![];
