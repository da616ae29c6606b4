//! The members' connections to each other: frames over mutual TLS.
