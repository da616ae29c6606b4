//! Netlink, nftables, cgroups, mounts, processes behind traits, with a recording double.
