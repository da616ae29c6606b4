//! Kubernetes' protobuf encoding, to and from the JSON that Go's encoder would show.
//!
//! An object travels in an envelope: the four bytes `k8s\0`, then a `runtime.Unknown` message with
//! the type's `apiVersion` and `kind` and the object's own message. Follows the media type
//! `application/vnd.kubernetes.protobuf` of the Kubernetes API.

mod decode;
mod encode;
pub(super) mod scalar;
mod wire;

pub use decode::{DecodeError, decode, decode_message};
pub use encode::{EncodeError, encode, encode_message, encode_watch_event};

/// The first bytes of an enveloped object.
pub const MAGIC: &[u8; 4] = b"k8s\0";
