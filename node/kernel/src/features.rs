//! What this kernel has to have, and what it lacks.

use std::io;

/// Something that the kernel lacks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing {
    /// The feature, in the kernel's own words.
    pub feature: &'static str,
    /// What does not work without it.
    pub consequence: &'static str,
    /// Nothing works without it.
    pub fatal: bool,
    /// What was tried and what the kernel said.
    pub evidence: String,
}

/// Checks the features that containers stand on. Changes nothing on the machine.
pub fn check() -> Vec<Missing> {
    let mut missing = Vec::new();
    let mut need = |feature, consequence, fatal, result: io::Result<()>| {
        if let Err(error) = result {
            missing.push(Missing { feature, consequence, fatal, evidence: error.to_string() });
        }
    };
    need("overlayfs", "containers have no root file system", true, file_system("overlay"));
    need("overlayfs layers one by one (Linux 6.8)", "images cannot be mounted", true, layers());
    need("tmpfs", "containers have no /dev", true, file_system("tmpfs"));
    need("mount_setattr (Linux 5.12)", "mounts cannot be made read-only", true, mount_setattr());
    for (name, feature) in [
        ("net", "network namespaces"),
        ("pid", "process namespaces"),
        ("ipc", "IPC namespaces"),
        ("uts", "UTS namespaces"),
        ("mnt", "mount namespaces"),
    ] {
        need(
            feature,
            "containers cannot be isolated",
            true,
            path(&format!("/proc/self/ns/{name}")),
        );
    }
    need(
        "cgroup namespaces",
        "containers see the machine's cgroup paths",
        false,
        path("/proc/self/ns/cgroup"),
    );
    need(
        "seccomp filters",
        "containers may use every system call",
        false,
        path("/proc/sys/kernel/seccomp/actions_avail"),
    );
    need("veth", "pods have no network", true, veth());
    let layout = crate::cgroup::Layout::detect();
    for (controller, consequence) in [
        ("memory", "memory limits are not kept"),
        ("cpu", "CPU requests and limits are not kept"),
        ("pids", "limits of the number of processes are not kept"),
    ] {
        let found = match &layout {
            Ok(layout) if layout.has(controller) => Ok(()),
            Ok(_) => {
                Err(io::Error::other(format!("cgroup controller {controller} is not mounted")))
            }
            Err(error) => Err(io::Error::other(error.to_string())),
        };
        need(
            match controller {
                "memory" => "memory cgroups",
                "cpu" => "cpu cgroups",
                _ => "pids cgroups",
            },
            consequence,
            false,
            found,
        );
    }
    missing
}

fn path(path: &str) -> io::Result<()> {
    std::fs::symlink_metadata(path)
        .map(|_| ())
        .map_err(|error| io::Error::new(error.kind(), format!("{path}: {error}")))
}

/// Whether overlayfs takes its lower layers one by one, which lifts the limit of a page for them.
fn layers() -> io::Result<()> {
    let context = rustix::mount::fsopen("overlay", rustix::mount::FsOpenFlags::FSOPEN_CLOEXEC)?;
    Ok(rustix::mount::fsconfig_set_string(&context, "lowerdir+", "/")?)
}

fn file_system(kind: &str) -> io::Result<()> {
    // Opening a context also loads the module where there are modules.
    rustix::mount::fsopen(kind, rustix::mount::FsOpenFlags::FSOPEN_CLOEXEC)
        .map(|_| ())
        .map_err(|error| io::Error::other(format!("fsopen {kind}: {}", io::Error::from(error))))
}

fn mount_setattr() -> io::Result<()> {
    // With an impossible size the call fails with EINVAL where it exists, ENOSYS where it does not.
    // SAFETY: the kernel refuses the size before it reads the (null) structure.
    unsafe {
        libc::syscall(libc::SYS_mount_setattr, -1, c"".as_ptr(), 0, std::ptr::null::<u8>(), 0usize)
    };
    let error = io::Error::last_os_error();
    if error.raw_os_error() == Some(libc::ENOSYS) { Err(error) } else { Ok(()) }
}

fn veth() -> io::Result<()> {
    // A veth pair is made in a namespace that dies with its thread.
    std::thread::spawn(|| {
        // SAFETY: only this fresh thread, which ends here, leaves the namespace.
        unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) }?;
        veth_pair()
    })
    .join()
    .unwrap_or_else(|_| Err(io::Error::other("the check panicked")))
}

/// Asks rtnetlink for a veth pair with names of the kernel's choice (rtnetlink(7)).
fn veth_pair() -> io::Result<()> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType};
    let socket = rustix::net::socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        None,
    )?;
    const NLM_F_REQUEST_ACK_CREATE_EXCL: u16 = 1 | 4 | 0x400 | 0x200;
    const RTM_NEWLINK: u16 = 16;
    const IFLA_LINKINFO: u16 = 18;
    const IFLA_INFO_KIND: u16 = 1;
    let mut message = Vec::new();
    message.extend_from_slice(&0u32.to_ne_bytes());
    message.extend_from_slice(&RTM_NEWLINK.to_ne_bytes());
    message.extend_from_slice(&NLM_F_REQUEST_ACK_CREATE_EXCL.to_ne_bytes());
    message.extend_from_slice(&[0; 8]);
    message.extend_from_slice(&[0; 16]); // struct ifinfomsg
    message.extend_from_slice(&12u16.to_ne_bytes());
    message.extend_from_slice(&IFLA_LINKINFO.to_ne_bytes());
    message.extend_from_slice(&8u16.to_ne_bytes());
    message.extend_from_slice(&IFLA_INFO_KIND.to_ne_bytes());
    message.extend_from_slice(b"veth");
    let length = u32::try_from(message.len()).map_err(io::Error::other)?;
    message[..4].copy_from_slice(&length.to_ne_bytes());
    rustix::net::send(&socket, &message, rustix::net::SendFlags::empty())?;
    let mut answer = [0u8; 512];
    let (length, _) = rustix::net::recv(&socket, &mut answer[..], rustix::net::RecvFlags::empty())?;
    // struct nlmsghdr is 16 bytes; an acknowledgement then holds the negative error number.
    let code = answer
        .get(16..20)
        .filter(|_| length >= 20)
        .and_then(|bytes| <[u8; 4]>::try_from(bytes).ok())
        .map_or(0, i32::from_ne_bytes);
    if code == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(-code)) }
}

#[cfg(test)]
mod tests {
    #[test]
    fn nothing_fatal_is_missing_here() {
        let fatal: Vec<_> = super::check().into_iter().filter(|missing| missing.fatal).collect();
        assert!(fatal.is_empty(), "{fatal:?}");
    }
}
