//! Which devices a group of version 2 may use: a program that the kernel asks at each opening and
//! each making of a node (`BPF_PROG_TYPE_CGROUP_DEVICE`, numbers from `linux/bpf.h`).
//!
//! It allows what OCI runtimes allow: making any node, and using null, zero, full, random, urandom,
//! tty, console, ptmx and the terminals behind it.

use rustix::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::io;
use std::path::Path;

const PROG_LOAD: libc::c_int = 5;
const PROG_ATTACH: libc::c_int = 8;
const TYPE_CGROUP_DEVICE: u32 = 15;
const ATTACH_DEVICE: u32 = 6;
/// Beside programs of others (systemd's, say): all must allow.
const ALLOW_MULTI: u32 = 2;

/// One instruction: operation, registers (source in the high half), offset, number.
#[derive(Clone, Copy)]
#[repr(C)]
struct Step {
    code: u8,
    registers: u8,
    offset: i16,
    number: i32,
}

const fn load(to: u8, offset: i16) -> Step {
    // A 32-bit word of the context, which the first register points at.
    Step { code: 0x61, registers: 0x10 | to, offset, number: 0 }
}
const fn copy(to: u8, from: u8) -> Step {
    Step { code: 0xbf, registers: from << 4 | to, offset: 0, number: 0 }
}
const fn set(to: u8, number: i32) -> Step {
    Step { code: 0xb7, registers: to, offset: 0, number }
}
const fn shift_right(at: u8, number: i32) -> Step {
    Step { code: 0x77, registers: at, offset: 0, number }
}
const fn and(at: u8, number: i32) -> Step {
    Step { code: 0x57, registers: at, offset: 0, number }
}
/// Skips so many steps if the register holds the number.
const fn skip_if(at: u8, number: i32, steps: i16) -> Step {
    Step { code: 0x15, registers: at, offset: steps, number }
}
const fn skip_unless(at: u8, number: i32, steps: i16) -> Step {
    Step { code: 0x55, registers: at, offset: steps, number }
}
const EXIT: Step = Step { code: 0x95, registers: 0, offset: 0, number: 0 };

/// `struct bpf_cgroup_dev_ctx`: access and type in one word, major, minor.
const PROGRAM: [Step; 23] = [
    load(2, 0),
    copy(3, 2),
    shift_right(3, 16),
    and(2, 0xffff),
    load(4, 4),
    load(5, 8),
    // BPF_DEVCG_ACC_MKNOD alone.
    skip_if(3, 1, 14),
    // BPF_DEVCG_DEV_CHAR.
    skip_unless(2, 2, 11),
    // Terminals.
    skip_if(4, 136, 12),
    skip_unless(4, 1, 5),
    skip_if(5, 3, 10),
    skip_if(5, 5, 9),
    skip_if(5, 7, 8),
    skip_if(5, 8, 7),
    skip_if(5, 9, 6),
    skip_unless(4, 5, 3),
    skip_if(5, 0, 4),
    skip_if(5, 1, 3),
    skip_if(5, 2, 2),
    set(0, 0),
    EXIT,
    set(0, 1),
    EXIT,
];

/// The program, loaded.
#[derive(Debug)]
pub(super) struct Program(OwnedFd);

impl Program {
    /// Hands the program to the kernel.
    pub(super) fn load() -> io::Result<Self> {
        #[repr(C)]
        struct Load {
            kind: u32,
            count: u32,
            steps: u64,
            licence: u64,
            log_level: u32,
            log_size: u32,
            log: u64,
        }
        let attributes = Load {
            kind: TYPE_CGROUP_DEVICE,
            count: PROGRAM.len() as u32,
            steps: PROGRAM.as_ptr() as u64,
            licence: c"Apache-2.0".as_ptr() as u64,
            log_level: 0,
            log_size: 0,
            log: 0,
        };
        let fd = bpf(PROG_LOAD, &attributes)?;
        // SAFETY: the kernel has made a new descriptor, which nobody else owns.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Has the kernel ask it for the processes of this group and of those below.
    pub(super) fn attach(&self, group: &Path) -> io::Result<()> {
        #[repr(C)]
        struct Attach {
            group: u32,
            program: u32,
            kind: u32,
            flags: u32,
        }
        let group = std::fs::File::open(group)?;
        let attributes = Attach {
            group: group.as_raw_fd() as u32,
            program: self.0.as_raw_fd() as u32,
            kind: ATTACH_DEVICE,
            flags: ALLOW_MULTI,
        };
        bpf(PROG_ATTACH, &attributes).map(drop)
    }
}

fn bpf<T>(command: libc::c_int, attributes: &T) -> io::Result<libc::c_int> {
    let (address, size) = (std::ptr::from_ref(attributes), size_of::<T>());
    // SAFETY: the kernel reads `size` bytes of attributes, and what they point at lives through the
    // call; nothing is written but the log, which is not asked for.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, address, size) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as libc::c_int) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the program answers, by a small machine of the instructions that it uses.
    fn allows(access: u32, kind: u32, major: u32, minor: u32) -> bool {
        let context = [access << 16 | kind, major, minor];
        let (mut registers, mut at) = ([0u64; 11], 0usize);
        loop {
            let Step { code, registers: pair, offset, number } = PROGRAM[at];
            let (to, from) = (usize::from(pair & 0xf), usize::from(pair >> 4));
            let skip = usize::try_from(offset).unwrap();
            at += 1;
            match code {
                0x61 => registers[to] = u64::from(context[skip / 4]),
                0xbf => registers[to] = registers[from],
                0xb7 => registers[to] = number as u64,
                0x77 => registers[to] >>= number,
                0x57 => registers[to] &= number as u64,
                0x15 if registers[to] == number as u64 => at += skip,
                0x55 if registers[to] != number as u64 => at += skip,
                0x15 | 0x55 => {}
                0x95 => return registers[0] == 1,
                other => panic!("instruction {other:#x}"),
            }
        }
    }

    #[test]
    fn the_usual_devices_may_be_used_and_any_may_be_made() {
        let (block, char) = (1, 2);
        let (make, read, write) = (1, 2, 4);
        for (major, minor) in
            [(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 1), (5, 2), (136, 0), (136, 77)]
        {
            assert!(allows(read | write, char, major, minor), "{major}:{minor}");
            assert!(!allows(read, block, major, minor), "{major}:{minor}");
        }
        for (major, minor) in [(1, 1), (1, 2), (1, 11), (5, 3), (10, 232), (4, 0)] {
            assert!(!allows(read, char, major, minor), "{major}:{minor}");
            assert!(!allows(make | read, char, major, minor), "{major}:{minor}");
            assert!(allows(make, char, major, minor), "{major}:{minor}");
        }
        assert!(allows(make, block, 8, 0) && !allows(read, block, 8, 0));
    }

    #[test]
    fn the_kernel_takes_it() {
        Program::load().expect("CAP_BPF and CONFIG_CGROUP_BPF");
    }
}
