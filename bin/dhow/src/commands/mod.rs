//! One file per group of commands.

pub mod config;
pub mod containers;
pub mod images;
pub mod objects;
pub mod platform;
pub mod store;
pub mod streams;
