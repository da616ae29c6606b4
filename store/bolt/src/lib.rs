//! bbolt files, written in bulk and read back: etcd's snapshots.
