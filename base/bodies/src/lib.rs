//! Bodies of HTTP messages: requests that are read to their end, answers that are given in pieces.

mod pieces;
mod upload;

pub use pieces::{PIECE, Pieces, cut};
pub use upload::{MOST, PATIENCE, Upload};
