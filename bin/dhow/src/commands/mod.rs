//! One file per group of commands.

pub mod containers;
pub mod images;
pub mod objects;
pub mod platform;
pub mod streams;
