//! Netlink for the pod network: links, addresses, routes, nf_tables and connection tracking.
//!
//! Messages are encoded here rather than with a library because owners must stand in the kernel as
//! readable comments (rule and element user data), and because a batch of unrelated messages in one
//! `sendmsg` is what makes attaching a pod cheap. Everything is synchronous: the kernel has handled
//! a netlink request when `sendmsg` returns, so there is nothing to wait for.

pub mod conntrack;
pub mod namespace;
pub mod nft;
pub mod route;
mod socket;
pub mod watch;
pub mod wire;

pub use socket::{Family, Reply, Socket};
pub use wire::Batch;

/// Why the kernel refused a message.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{what}: {}{}", rustix::io::Errno::from_raw_os_error(*.errno), .detail.as_ref().map(|d| format!(" ({d})")).unwrap_or_default())]
pub struct Error {
    /// What was being done, on which object.
    pub what: String,
    /// The kernel's error number.
    pub errno: i32,
    /// The kernel's own words (extended acknowledgement), if it gave any.
    pub detail: Option<String>,
}

impl Error {
    /// An error from a system call.
    pub fn new(what: impl Into<String>, errno: rustix::io::Errno) -> Self {
        Self { what: what.into(), errno: errno.raw_os_error(), detail: None }
    }

    /// Whether the kernel gave this error number.
    pub fn is(&self, errno: rustix::io::Errno) -> bool {
        self.errno == errno.raw_os_error()
    }
}
