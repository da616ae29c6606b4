//! An external etcd cluster as the store.
