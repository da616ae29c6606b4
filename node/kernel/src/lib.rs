//! Netlink, nftables, cgroups, mounts, processes behind traits, with a recording double.
#![allow(unsafe_code)]

pub mod cgroup;
pub mod features;
pub mod mount;

pub mod netns;
pub mod process;

pub mod net;
