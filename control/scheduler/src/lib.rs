//! Placement: snapshot in, bindings and per-machine reasons out; pure.
