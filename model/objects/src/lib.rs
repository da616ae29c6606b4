//! What users asked for: kinds, names, defaults, validation, selectors, patches, schemas.
//!
//! No behaviour and no input or output: a kind is a row of data, and everything generic about the
//! API reads that row.

pub mod apply;
pub mod hash;
pub mod kinds;
pub mod meta;
pub mod names;
pub mod patch;
pub mod quantity;
pub mod schema;
pub mod selectors;
pub mod status;
pub mod time;

pub use status::{Status, StatusCause, StatusDetails};
