//! Who the process is: users, groups, capabilities.

use std::io;

/// Numbers and home directory of a user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct User {
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
    pub home: String,
}

/// What a process specification says about its user.
#[derive(Debug, Default)]
pub(super) struct Wanted<'a> {
    pub user: &'a str,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub groups: &'a [u32],
    pub no_image_groups: bool,
    pub must_not_be_root: bool,
}

/// Finds a user in the texts of `/etc/passwd` and `/etc/group`, as container engines do: names are
/// looked up, numbers need no entry.
pub(super) fn resolve(wanted: &Wanted<'_>, passwd: &str, group: &str) -> Result<User, String> {
    let (name, group_name) = match wanted.user.split_once(':') {
        Some((name, group)) => (name, Some(group).filter(|group| !group.is_empty())),
        None => (wanted.user, None),
    };
    let number = wanted.uid.or_else(|| name.parse().ok()).or(name.is_empty().then_some(0));
    // passwd(5): name, password, uid, gid, comment, home, shell.
    let entry = passwd.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        let uid: u32 = fields.get(2)?.parse().ok()?;
        let gid: u32 = fields.get(3)?.parse().ok()?;
        let matches = match (wanted.uid, number) {
            (Some(wanted), _) => uid == wanted,
            // A name that looks like a number is a name first.
            (None, number) => fields[0] == name && !name.is_empty() || Some(uid) == number,
        };
        matches.then(|| (fields[0], uid, gid, fields.get(5).copied().unwrap_or("/")))
    });
    let uid = match (number, entry) {
        (_, Some((_, uid, ..))) => uid,
        (Some(number), None) => number,
        (None, None) => {
            return Err(format!("unable to find user {name}: no matching entries in passwd file"));
        }
    };
    // group(5): name, password, gid, members.
    let groups = || {
        group.lines().filter_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next()?;
            let gid: u32 = fields.nth(1)?.parse().ok()?;
            Some((name, gid, fields.next().unwrap_or_default()))
        })
    };
    let gid = match (wanted.gid, group_name) {
        (Some(gid), _) => gid,
        (None, Some(wanted)) => groups()
            .find(|(name, ..)| *name == wanted)
            .map(|(_, gid, _)| gid)
            .or_else(|| wanted.parse().ok())
            .ok_or_else(|| {
                format!("unable to find group {wanted}: no matching entries in group file")
            })?,
        (None, None) => entry.map_or(0, |(_, _, gid, _)| gid),
    };
    let mut memberships: Vec<u32> = wanted.groups.to_vec();
    if let Some((name, ..)) = entry
        && group_name.is_none()
        && !wanted.no_image_groups
    {
        memberships.extend(
            groups()
                .filter(|(_, _, members)| members.split(',').any(|member| member == name))
                .map(|(_, gid, _)| gid),
        );
    }
    // The primary group too: else a program that is of another group by its set-group-id bit would
    // be out of this one, and past what is closed to it.
    memberships.push(gid);
    memberships.sort_unstable();
    memberships.dedup();
    if wanted.must_not_be_root && uid == 0 {
        return Err("container has runAsNonRoot and image will run as root".to_owned());
    }
    let home = entry.map_or(if uid == 0 { "/root" } else { "/" }, |(.., home)| home);
    Ok(User { uid, gid, groups: memberships, home: home.to_owned() })
}

/// Capabilities in the order of their numbers (capabilities(7)).
const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// All names, for privileged containers.
pub(super) fn all_capabilities() -> Vec<String> {
    NAMES.iter().map(|name| (*name).to_owned()).collect()
}

/// The bit mask of these names.
pub(super) fn mask(names: &[String]) -> Result<u64, String> {
    let mut mask = 0;
    for name in names {
        let plain = name.strip_prefix("CAP_").unwrap_or(name);
        if plain == "ALL" {
            return Ok((1 << NAMES.len()) - 1);
        }
        let number = NAMES
            .iter()
            .position(|known| *known == plain)
            .ok_or_else(|| format!("unknown capability {name:?}"))?;
        mask |= 1 << number;
    }
    Ok(mask)
}

fn check(result: libc::c_long) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn prctl(option: libc::c_int, argument: u64) -> io::Result<()> {
    let zero: u64 = 0;
    // SAFETY: only options that take integers are used here.
    check(unsafe { libc::prctl(option, argument, zero, zero, zero) }.into())
}

/// Takes every capability outside of `mask` from the bounding set: no program that is run later
/// can get it back.
pub(super) fn limit_bounding_set(mask: u64) -> io::Result<()> {
    for number in 0..64 {
        if mask & (1 << number) == 0
            && let Err(error) = prctl(libc::PR_CAPBSET_DROP, number)
        {
            // The kernel knows no more capabilities.
            if error.raw_os_error() == Some(libc::EINVAL) {
                break;
            }
            return Err(error);
        }
    }
    Ok(())
}

/// Forbids gaining privileges by exec, for ever.
pub(super) fn set_no_new_privileges() -> io::Result<()> {
    prctl(libc::PR_SET_NO_NEW_PRIVS, 1)
}

/// Becomes the user. Capabilities survive this step, to be cut to size by [`set_capabilities`].
pub(super) fn switch_user(user: &User) -> io::Result<()> {
    prctl(libc::PR_SET_KEEPCAPS, 1)?;
    // The raw calls: this process has one thread, and the C library's would signal others.
    // SAFETY: setgroups reads `len` numbers that live through the call; the others take integers.
    unsafe {
        check(libc::syscall(libc::SYS_setgroups, user.groups.len(), user.groups.as_ptr()))?;
        check(libc::syscall(libc::SYS_setresgid, user.gid, user.gid, user.gid))?;
        check(libc::syscall(libc::SYS_setresuid, user.uid, user.uid, user.uid))?;
    }
    prctl(libc::PR_SET_KEEPCAPS, 0)
}

/// The permitted set of this process.
fn permitted() -> u64 {
    std::fs::read_to_string("/proc/self/status")
        .ok()
        .and_then(|text| {
            let line = text.lines().find_map(|line| line.strip_prefix("CapPrm:"))?;
            u64::from_str_radix(line.trim(), 16).ok()
        })
        .unwrap_or(u64::MAX)
}

/// What of `mask` this process can give at all (the machine may itself be limited).
pub(super) fn available(mask: u64) -> u64 {
    mask & permitted()
}

/// Sets the effective and permitted sets to `mask` and empties the inheritable and ambient ones,
/// as container engines do: root has them after exec, other users do not.
pub(super) fn set_capabilities(mask: u64) -> io::Result<()> {
    #[repr(C)]
    struct Header {
        version: u32,
        pid: i32,
    }
    #[repr(C)]
    struct Data {
        effective: u32,
        permitted: u32,
        inheritable: u32,
    }
    // Version 3: two words of 32 bits.
    let header = Header { version: 0x2008_0522, pid: 0 };
    let word = |shift: u32| {
        let bits = (mask >> shift) as u32;
        Data { effective: bits, permitted: bits, inheritable: 0 }
    };
    let data = [word(0), word(32)];
    match prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL as u64) {
        Err(error) if error.raw_os_error() != Some(libc::EINVAL) => return Err(error),
        _ => {}
    }
    // SAFETY: both structures have the kernel's layout for this version and outlive the call.
    check(unsafe { libc::syscall(libc::SYS_capset, &raw const header, data.as_ptr()) })
}

/// Gives up everything that a pod's init has no use for, and closes it to those who share its
/// process namespace: only whoever may trace every process may look into one that is not dumpable.
pub(super) fn become_init() -> io::Result<()> {
    prctl(libc::PR_SET_DUMPABLE, 0)?;
    set_no_new_privileges()?;
    limit_bounding_set(0)?;
    set_capabilities(0)
}

/// Shows this text in place of the command line, as far as there is room.
pub(super) fn rename(text: &str) -> io::Result<()> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    // The second field, a name in parentheses, may hold anything; arg_start is the 48th.
    let rest = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let mut fields = rest.split_ascii_whitespace().skip(45).map(str::parse::<usize>);
    let (Some(Ok(start)), Some(Ok(end))) = (fields.next(), fields.next()) else {
        return Err(io::Error::other("/proc/self/stat does not tell where the arguments are"));
    };
    if start == 0 || end <= start {
        return Ok(());
    }
    let room = end - start;
    let shown = &text.as_bytes()[..text.len().min(room - 1)];
    // SAFETY: the kernel says that this is where the arguments of this process are; they are
    // writable, and nothing reads them any more.
    unsafe {
        let place = start as *mut u8;
        std::ptr::write_bytes(place, 0, room);
        std::ptr::copy_nonoverlapping(shown.as_ptr(), place, shown.len());
        // Else zeros follow, where this is not allowed.
        let end = (start + shown.len() + 1) as libc::c_ulong;
        libc::prctl(libc::PR_SET_MM, libc::PR_SET_MM_ARG_END as libc::c_ulong, end, 0, 0);
    }
    let name = std::ffi::CString::new(text)?;
    // SAFETY: the kernel reads a zero-terminated text of at most 16 bytes, which outlives the call.
    check(unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr()) }.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str =
        "root:x:0:0:root:/root:/bin/sh\nweb:x:33:34:web:/var/www:/bin/sh\n1000:x:5:5::/odd:\n";
    const GROUP: &str = "root:x:0:\nweb:x:34:\nlogs:x:40:root,web\nmail:x:41:web\n";

    fn user(text: &str) -> Result<User, String> {
        resolve(&Wanted { user: text, ..Wanted::default() }, PASSWD, GROUP)
    }

    #[test]
    fn names_and_numbers_are_resolved() {
        let web = user("web").unwrap();
        assert_eq!((web.uid, web.gid, web.home.as_str()), (33, 34, "/var/www"));
        assert_eq!(web.groups, [34, 40, 41]);
        assert_eq!(user("33").unwrap(), web);
        let root = user("").unwrap();
        assert_eq!((root.uid, root.gid, root.home.as_str()), (0, 0, "/root"));
        let stranger = user("4242").unwrap();
        assert_eq!((stranger.uid, stranger.gid, stranger.home.as_str()), (4242, 0, "/"));
        let grouped = user("web:logs").unwrap();
        assert_eq!((grouped.uid, grouped.gid, &grouped.groups[..]), (33, 40, &[40][..]));
        assert_eq!(user("7:8").unwrap().gid, 8);
        assert_eq!(user("1000").unwrap().uid, 5);
    }

    #[test]
    fn numbers_of_the_caller_win() {
        let wanted =
            Wanted { user: "web", uid: Some(0), gid: Some(9), groups: &[7], ..Wanted::default() };
        let found = resolve(&wanted, PASSWD, GROUP).unwrap();
        assert_eq!((found.uid, found.gid), (0, 9));
        assert_eq!(found.groups, [7, 9, 40]);
        let wanted = Wanted { no_image_groups: true, ..wanted };
        assert_eq!(resolve(&wanted, PASSWD, GROUP).unwrap().groups, [7, 9]);
    }

    #[test]
    fn what_is_missing_or_forbidden_is_said() {
        assert!(user("nobody").unwrap_err().contains("unable to find user nobody"));
        assert!(user("web:nogroup").unwrap_err().contains("unable to find group nogroup"));
        let wanted = Wanted { must_not_be_root: true, ..Wanted::default() };
        assert!(resolve(&wanted, PASSWD, GROUP).unwrap_err().contains("runAsNonRoot"));
    }

    #[test]
    fn capability_names_become_bits() {
        assert_eq!(mask(&["CHOWN".into(), "CAP_BPF".into()]).unwrap(), 1 | 1 << 39);
        assert!(mask(&["FLY".into()]).unwrap_err().contains("FLY"));
    }
}
