//! Rollout, replicas, endpoints, garbage: pure planning.
