//! The default seccomp profile: which system calls a container may make.
//!
//! An allow list in the spirit of the container engines' default: what ordinary programs need, minus
//! what reaches around namespaces. Refused calls fail with EPERM; calls newer than the list and
//! `clone3` (whose flags a filter cannot see) fail with ENOSYS, so that C libraries fall back. Some
//! calls are allowed along with the capability that guards them. The filter is assembled here
//! because `seccompiler` knows only one error number per filter.

use libc::c_long;
use std::io;

const EPERM: u32 = libc::EPERM as u32;
const ENOSYS: u32 = libc::ENOSYS as u32;

/// Calls that are always allowed, on every architecture.
const ALLOWED: &[c_long] = &[
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_adjtimex,
    libc::SYS_bind,
    libc::SYS_brk,
    libc::SYS_capget,
    libc::SYS_capset,
    libc::SYS_chdir,
    libc::SYS_clock_adjtime,
    libc::SYS_clock_getres,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_close,
    libc::SYS_close_range,
    libc::SYS_connect,
    libc::SYS_copy_file_range,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_eventfd2,
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_fadvise64,
    libc::SYS_fallocate,
    libc::SYS_fanotify_mark,
    libc::SYS_fchdir,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_fchown,
    libc::SYS_fchownat,
    libc::SYS_fcntl,
    libc::SYS_fdatasync,
    libc::SYS_fgetxattr,
    libc::SYS_flistxattr,
    libc::SYS_flock,
    libc::SYS_fremovexattr,
    libc::SYS_fsetxattr,
    libc::SYS_fstat,
    libc::SYS_fstatfs,
    libc::SYS_fsync,
    libc::SYS_ftruncate,
    libc::SYS_futex,
    libc::SYS_futex_waitv,
    libc::SYS_getcpu,
    libc::SYS_getcwd,
    libc::SYS_getdents64,
    libc::SYS_getegid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getgroups,
    libc::SYS_getitimer,
    libc::SYS_getpeername,
    libc::SYS_getpgid,
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_getpriority,
    libc::SYS_getrandom,
    libc::SYS_getresgid,
    libc::SYS_getresuid,
    libc::SYS_getrlimit,
    libc::SYS_get_robust_list,
    libc::SYS_getrusage,
    libc::SYS_getsid,
    libc::SYS_getsockname,
    libc::SYS_getsockopt,
    libc::SYS_gettid,
    libc::SYS_gettimeofday,
    libc::SYS_getuid,
    libc::SYS_getxattr,
    libc::SYS_inotify_add_watch,
    libc::SYS_inotify_init1,
    libc::SYS_inotify_rm_watch,
    libc::SYS_io_cancel,
    libc::SYS_ioctl,
    libc::SYS_io_destroy,
    libc::SYS_io_getevents,
    libc::SYS_ioprio_get,
    libc::SYS_ioprio_set,
    libc::SYS_io_setup,
    libc::SYS_io_submit,
    libc::SYS_kill,
    libc::SYS_landlock_create_ruleset,
    libc::SYS_landlock_add_rule,
    libc::SYS_landlock_restrict_self,
    libc::SYS_lgetxattr,
    libc::SYS_linkat,
    libc::SYS_listen,
    libc::SYS_listxattr,
    libc::SYS_llistxattr,
    libc::SYS_lremovexattr,
    libc::SYS_lseek,
    libc::SYS_lsetxattr,
    libc::SYS_madvise,
    libc::SYS_membarrier,
    libc::SYS_memfd_create,
    libc::SYS_memfd_secret,
    libc::SYS_mincore,
    libc::SYS_mkdirat,
    libc::SYS_mknodat,
    libc::SYS_mlock,
    libc::SYS_mlock2,
    libc::SYS_mlockall,
    libc::SYS_mmap,
    libc::SYS_mprotect,
    libc::SYS_mq_getsetattr,
    libc::SYS_mq_notify,
    libc::SYS_mq_open,
    libc::SYS_mq_timedreceive,
    libc::SYS_mq_timedsend,
    libc::SYS_mq_unlink,
    libc::SYS_mremap,
    libc::SYS_msgctl,
    libc::SYS_msgget,
    libc::SYS_msgrcv,
    libc::SYS_msgsnd,
    libc::SYS_msync,
    libc::SYS_munlock,
    libc::SYS_munlockall,
    libc::SYS_munmap,
    libc::SYS_name_to_handle_at,
    libc::SYS_nanosleep,
    libc::SYS_newfstatat,
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_pidfd_open,
    libc::SYS_pidfd_send_signal,
    libc::SYS_pipe2,
    libc::SYS_pkey_alloc,
    libc::SYS_pkey_free,
    libc::SYS_pkey_mprotect,
    libc::SYS_ppoll,
    libc::SYS_prctl,
    libc::SYS_pread64,
    libc::SYS_preadv,
    libc::SYS_preadv2,
    libc::SYS_prlimit64,
    libc::SYS_process_mrelease,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_pselect6,
    libc::SYS_ptrace,
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
    libc::SYS_pwritev2,
    libc::SYS_read,
    libc::SYS_readahead,
    libc::SYS_readlinkat,
    libc::SYS_readv,
    libc::SYS_recvfrom,
    libc::SYS_recvmmsg,
    libc::SYS_recvmsg,
    libc::SYS_remap_file_pages,
    libc::SYS_removexattr,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_restart_syscall,
    libc::SYS_rseq,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigpending,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigqueueinfo,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigsuspend,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_rt_tgsigqueueinfo,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_getattr,
    libc::SYS_sched_getparam,
    libc::SYS_sched_get_priority_max,
    libc::SYS_sched_get_priority_min,
    libc::SYS_sched_getscheduler,
    libc::SYS_sched_rr_get_interval,
    libc::SYS_sched_setaffinity,
    libc::SYS_sched_setattr,
    libc::SYS_sched_setparam,
    libc::SYS_sched_setscheduler,
    libc::SYS_sched_yield,
    libc::SYS_seccomp,
    libc::SYS_semctl,
    libc::SYS_semget,
    libc::SYS_semop,
    libc::SYS_semtimedop,
    libc::SYS_sendfile,
    libc::SYS_sendmmsg,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_setfsgid,
    libc::SYS_setfsuid,
    libc::SYS_setgid,
    libc::SYS_setgroups,
    libc::SYS_setitimer,
    libc::SYS_setpgid,
    libc::SYS_setpriority,
    libc::SYS_setregid,
    libc::SYS_setresgid,
    libc::SYS_setresuid,
    libc::SYS_setreuid,
    libc::SYS_setrlimit,
    libc::SYS_set_robust_list,
    libc::SYS_setsid,
    libc::SYS_setsockopt,
    libc::SYS_set_tid_address,
    libc::SYS_setuid,
    libc::SYS_setxattr,
    libc::SYS_shmat,
    libc::SYS_shmctl,
    libc::SYS_shmdt,
    libc::SYS_shmget,
    libc::SYS_shutdown,
    libc::SYS_sigaltstack,
    libc::SYS_signalfd4,
    libc::SYS_socketpair,
    libc::SYS_splice,
    libc::SYS_statfs,
    libc::SYS_statx,
    libc::SYS_symlinkat,
    libc::SYS_sync,
    libc::SYS_sync_file_range,
    libc::SYS_syncfs,
    libc::SYS_sysinfo,
    libc::SYS_tee,
    libc::SYS_tgkill,
    libc::SYS_timer_create,
    libc::SYS_timer_delete,
    libc::SYS_timer_getoverrun,
    libc::SYS_timer_gettime,
    libc::SYS_timer_settime,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_gettime,
    libc::SYS_timerfd_settime,
    libc::SYS_times,
    libc::SYS_tkill,
    libc::SYS_truncate,
    libc::SYS_umask,
    libc::SYS_uname,
    libc::SYS_unlinkat,
    libc::SYS_utimensat,
    libc::SYS_vmsplice,
    libc::SYS_wait4,
    libc::SYS_waitid,
    libc::SYS_write,
    libc::SYS_writev,
    // Since Linux 6.5, the same numbers everywhere: cachestat, fchmodat2, map_shadow_stack,
    // futex_wake, futex_wait, futex_requeue, statmount, listmount, lsm_get_self_attr,
    // lsm_list_modules, mseal, setxattrat, getxattrat, listxattrat, removexattrat.
    451,
    452,
    453,
    454,
    455,
    456,
    457,
    458,
    459,
    461,
    462,
    463,
    464,
    465,
    466,
];

/// The last number of the common table that was considered; later ones answer ENOSYS.
const LAST_KNOWN: u32 = 466;

/// Older calls that newer architectures do not have.
#[cfg(target_arch = "x86_64")]
const ALLOWED_HERE: &[c_long] = &[
    libc::SYS_access,
    libc::SYS_alarm,
    libc::SYS_arch_prctl,
    libc::SYS_chmod,
    libc::SYS_chown,
    libc::SYS_creat,
    libc::SYS_dup2,
    libc::SYS_epoll_create,
    libc::SYS_epoll_wait,
    libc::SYS_eventfd,
    libc::SYS_fork,
    libc::SYS_futimesat,
    libc::SYS_getdents,
    libc::SYS_getpgrp,
    libc::SYS_get_thread_area,
    libc::SYS_inotify_init,
    libc::SYS_lchown,
    libc::SYS_link,
    libc::SYS_lstat,
    libc::SYS_mkdir,
    libc::SYS_mknod,
    libc::SYS_modify_ldt,
    libc::SYS_open,
    libc::SYS_pause,
    libc::SYS_pipe,
    libc::SYS_poll,
    libc::SYS_readlink,
    libc::SYS_rename,
    libc::SYS_rmdir,
    libc::SYS_select,
    libc::SYS_set_thread_area,
    libc::SYS_signalfd,
    libc::SYS_stat,
    libc::SYS_symlink,
    libc::SYS_time,
    libc::SYS_unlink,
    libc::SYS_utime,
    libc::SYS_utimes,
    libc::SYS_vfork,
    // io_pgetevents, and uretprobe, which the kernel makes on behalf of traced programs.
    333,
    335,
];
#[cfg(not(target_arch = "x86_64"))]
const ALLOWED_HERE: &[c_long] = &[
    // io_pgetevents in the table that newer architectures share.
    292,
];

/// Calls that come with a capability.
const WITH_CAPABILITY: &[(&str, &[c_long])] = &[
    (
        "SYS_ADMIN",
        &[
            libc::SYS_bpf,
            libc::SYS_clone,
            libc::SYS_clone3,
            libc::SYS_fanotify_init,
            libc::SYS_fsconfig,
            libc::SYS_fsmount,
            libc::SYS_fsopen,
            libc::SYS_fspick,
            libc::SYS_mount,
            libc::SYS_mount_setattr,
            libc::SYS_move_mount,
            libc::SYS_open_tree,
            libc::SYS_perf_event_open,
            libc::SYS_quotactl,
            libc::SYS_quotactl_fd,
            libc::SYS_setdomainname,
            libc::SYS_sethostname,
            libc::SYS_setns,
            libc::SYS_syslog,
            libc::SYS_umount2,
            libc::SYS_unshare,
        ],
    ),
    ("BPF", &[libc::SYS_bpf]),
    ("DAC_READ_SEARCH", &[libc::SYS_open_by_handle_at]),
    ("PERFMON", &[libc::SYS_perf_event_open]),
    ("SYS_BOOT", &[libc::SYS_reboot]),
    ("SYS_CHROOT", &[libc::SYS_chroot]),
    ("SYS_MODULE", &[libc::SYS_delete_module, libc::SYS_init_module, libc::SYS_finit_module]),
    (
        "SYS_NICE",
        // 450 is set_mempolicy_home_node.
        &[libc::SYS_get_mempolicy, libc::SYS_mbind, libc::SYS_set_mempolicy, 450],
    ),
    ("SYS_PACCT", &[libc::SYS_acct]),
    ("SYS_PTRACE", &[libc::SYS_kcmp, libc::SYS_pidfd_getfd, libc::SYS_process_madvise]),
    #[cfg(target_arch = "x86_64")]
    ("SYS_RAWIO", &[libc::SYS_iopl, libc::SYS_ioperm]),
    ("SYS_TIME", &[libc::SYS_settimeofday, libc::SYS_clock_settime]),
    ("SYS_TTY_CONFIG", &[libc::SYS_vhangup]),
    ("SYSLOG", &[libc::SYS_syslog]),
];

#[cfg(target_arch = "x86_64")]
const AUDIT_ARCH: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const AUDIT_ARCH: u32 = 0xc000_00b7;
#[cfg(target_arch = "riscv64")]
const AUDIT_ARCH: u32 = 0xc000_00f3;

/// The flags of `clone` that make namespaces.
const NAMESPACE_FLAGS: u32 = (libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET) as u32;

/// What `personality` may set: the default, ADDR_NO_RANDOMIZE-free Linux and its 32-bit forms, and
/// the question for the present one.
const PERSONALITIES: [u32; 5] = [0, 8, 0x2_0000, 0x2_0008, 0xffff_ffff];

// Offsets in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCH: u32 = 4;
const ARGUMENT_0: u32 = 16;

const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
const EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
const GREATER: u16 = (libc::BPF_JMP | libc::BPF_JGT | libc::BPF_K) as u16;
const AT_LEAST: u16 = (libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K) as u16;
const ANY_BIT: u16 = (libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K) as u16;
const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;

const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;

const fn refuse(errno: u32) -> u32 {
    libc::SECCOMP_RET_ERRNO | errno
}

/// A filter, ready to be installed.
#[derive(Clone)]
pub(crate) struct Filter(Vec<libc::sock_filter>);

fn op(code: u16, k: u32, jt: u8, jf: u8) -> libc::sock_filter {
    libc::sock_filter { code, jt, jf, k }
}

/// The default profile for a process that holds these capabilities (names without `CAP_`).
pub(crate) fn default_profile(capabilities: &[String]) -> Filter {
    let holds = |name: &str| capabilities.iter().any(|capability| capability == name);
    let mut numbers: Vec<u32> = ALLOWED.iter().chain(ALLOWED_HERE).map(|n| *n as u32).collect();
    for (capability, calls) in WITH_CAPABILITY {
        if holds(capability) {
            numbers.extend(calls.iter().map(|n| *n as u32));
        }
    }
    numbers.sort_unstable();
    numbers.dedup();

    let mut program = vec![
        op(LOAD, ARCH, 0, 0),
        op(EQUAL, AUDIT_ARCH, 1, 0),
        // Another instruction set's numbers mean other calls.
        op(RETURN, refuse(ENOSYS), 0, 0),
        op(LOAD, NUMBER, 0, 0),
    ];
    let mut at = 0;
    while at < numbers.len() {
        let first = numbers[at];
        let mut last = first;
        while at + 1 < numbers.len() && numbers[at + 1] == last + 1 {
            at += 1;
            last = numbers[at];
        }
        at += 1;
        if first == last {
            program.extend([op(EQUAL, first, 0, 1), op(RETURN, ALLOW, 0, 0)]);
        } else {
            program.extend([
                op(AT_LEAST, first, 0, 2),
                op(GREATER, last, 1, 0),
                op(RETURN, ALLOW, 0, 0),
            ]);
        }
    }
    if !holds("SYS_ADMIN") {
        program.extend([
            op(EQUAL, libc::SYS_clone3 as u32, 0, 1),
            op(RETURN, refuse(ENOSYS), 0, 0),
            op(EQUAL, libc::SYS_clone as u32, 0, 4),
            op(LOAD, ARGUMENT_0, 0, 0),
            op(ANY_BIT, NAMESPACE_FLAGS, 1, 0),
            op(RETURN, ALLOW, 0, 0),
            op(RETURN, refuse(EPERM), 0, 0),
        ]);
    }
    // Sockets of every family but that of virtual machines' hosts.
    program.extend([
        op(EQUAL, libc::SYS_socket as u32, 0, 4),
        op(LOAD, ARGUMENT_0, 0, 0),
        op(EQUAL, libc::AF_VSOCK as u32, 1, 0),
        op(RETURN, ALLOW, 0, 0),
        op(RETURN, refuse(EPERM), 0, 0),
    ]);
    let kinds = PERSONALITIES.len() as u8;
    program.extend([
        op(EQUAL, libc::SYS_personality as u32, 0, kinds + 3),
        op(LOAD, ARGUMENT_0, 0, 0),
    ]);
    for (index, kind) in PERSONALITIES.iter().enumerate() {
        program.push(op(EQUAL, *kind, kinds - index as u8, 0));
    }
    program.extend([op(RETURN, refuse(EPERM), 0, 0), op(RETURN, ALLOW, 0, 0)]);
    program.extend([
        op(GREATER, LAST_KNOWN, 0, 1),
        op(RETURN, refuse(ENOSYS), 0, 0),
        op(RETURN, refuse(EPERM), 0, 0),
    ]);
    Filter(program)
}

impl Filter {
    /// Installs the filter for this process, for ever. Needs `CAP_SYS_ADMIN` or no-new-privileges.
    pub fn install(&self) -> io::Result<()> {
        let length = u16::try_from(self.0.len()).map_err(io::Error::other)?;
        let program = libc::sock_fprog { len: length, filter: self.0.as_ptr().cast_mut() };
        // SAFETY: the kernel copies `len` instructions from `filter`, which outlives the call.
        let result = unsafe {
            libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const program)
        };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Interprets a filter as the kernel does.
    fn verdict(filter: &Filter, arch: u32, number: c_long, argument: u32) -> u32 {
        let mut accumulator = 0;
        let mut at = 0;
        loop {
            let op = filter.0[at];
            at += 1;
            let jump = |truth: bool| usize::from(if truth { op.jt } else { op.jf });
            match op.code {
                LOAD => {
                    accumulator = match op.k {
                        NUMBER => number as u32,
                        ARCH => arch,
                        _ => argument,
                    }
                }
                EQUAL => at += jump(accumulator == op.k),
                GREATER => at += jump(accumulator > op.k),
                AT_LEAST => at += jump(accumulator >= op.k),
                ANY_BIT => at += jump(accumulator & op.k != 0),
                RETURN => return op.k,
                code => panic!("{code}"),
            }
        }
    }

    #[test]
    fn ordinary_calls_pass_and_others_fail_with_the_right_number() {
        let filter = default_profile(&[]);
        let at = |number, argument| verdict(&filter, AUDIT_ARCH, number, argument);
        for number in ALLOWED.iter().chain(ALLOWED_HERE) {
            assert_eq!(at(*number, 0), ALLOW, "{number}");
        }
        assert_eq!(at(libc::SYS_mount, 0), refuse(EPERM));
        assert_eq!(at(libc::SYS_io_uring_setup, 0), refuse(EPERM));
        assert_eq!(at(libc::SYS_keyctl, 0), refuse(EPERM));
        assert_eq!(at(libc::SYS_clone3, 0), refuse(ENOSYS));
        assert_eq!(at(9999, 0), refuse(ENOSYS));
        assert_eq!(at(libc::SYS_clone, libc::CLONE_VM as u32), ALLOW);
        assert_eq!(at(libc::SYS_clone, libc::CLONE_NEWUSER as u32), refuse(EPERM));
        assert_eq!(at(libc::SYS_socket, libc::AF_INET as u32), ALLOW);
        assert_eq!(at(libc::SYS_socket, libc::AF_VSOCK as u32), refuse(EPERM));
        for kind in PERSONALITIES {
            assert_eq!(at(libc::SYS_personality, kind), ALLOW);
        }
        assert_eq!(at(libc::SYS_personality, 0x4_0000), refuse(EPERM));
        assert_eq!(verdict(&filter, 0x4000_0003, libc::SYS_read, 0), refuse(ENOSYS));
    }

    #[test]
    fn capabilities_open_their_calls() {
        let filter = default_profile(&["SYS_ADMIN".to_owned(), "SYS_CHROOT".to_owned()]);
        for number in [libc::SYS_mount, libc::SYS_clone3, libc::SYS_clone, libc::SYS_chroot] {
            let verdict = verdict(&filter, AUDIT_ARCH, number, libc::CLONE_NEWUSER as u32);
            assert_eq!(verdict, ALLOW, "{number}");
        }
        assert_eq!(verdict(&filter, AUDIT_ARCH, libc::SYS_reboot, 0), refuse(EPERM));
    }
}
