//! The store in virtual time, by seed: crashes, partitions, torn writes; histories checked.
//!
//! [`check`] holds the checkers. They are pure: a history goes in, the first broken promise comes
//! out. [`history`] is what they read. It is written by simulated clients and by clients of real
//! processes alike. [`run`] is one simulation: [`world`] holds the members, [`clients`] use them,
//! [`users`] are asked for their names, [`operator`] changes the members, [`nemesis`] makes the trouble.

pub mod check;
pub mod clients;
pub mod history;
pub mod nemesis;
pub mod operator;
pub mod random;
pub mod run;
pub mod users;
pub mod world;
