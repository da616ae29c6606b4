//! The Kubernetes API, translated to state and back.
