//! etcd's gRPC services and JSON gateway over the store.
