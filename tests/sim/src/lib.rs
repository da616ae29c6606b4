//! The store in virtual time, by seed: crashes, partitions, torn writes; histories checked.
