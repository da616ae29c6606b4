//! The store in virtual time, by seed: crashes, partitions, torn writes; histories checked.
//!
//! [`check`] holds the checkers. They are pure: a history goes in, the first broken promise comes
//! out. [`history`] is what they read. It is written by simulated clients and by clients of real
//! processes alike.

pub mod check;
pub mod history;
pub mod random;
