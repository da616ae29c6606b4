//! Facts about processes, and signals to them.

use std::io;

/// A process's state letter and start time (clock ticks since boot), which together with its number
/// identify it for the life of the machine. `None` if there is no such process.
pub fn identity(pid: u32) -> Option<(char, u64)> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The program's name is in parentheses and may hold anything.
    let rest = &stat[stat.rfind(')')? + 2..];
    let mut fields = rest.split(' ');
    let state = fields.next()?.chars().next()?;
    // Field 22 of proc(5); the state is field 3.
    let start = fields.nth(18)?.parse().ok()?;
    Some((state, start))
}

/// Sends a signal to one process. Fine if it is gone.
///
/// # Errors
/// When the signal number is not one, or the process may not be signalled.
pub fn signal(pid: u32, signal: i32) -> io::Result<()> {
    let Ok(pid) = i32::try_from(pid) else {
        return Ok(());
    };
    if pid <= 1 {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a process to be signalled"));
    }
    // SAFETY: kill takes two integers and touches no memory.
    if unsafe { libc::kill(pid, signal) } == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    if error.raw_os_error() == Some(libc::ESRCH) { Ok(()) } else { Err(error) }
}

/// The machine's boot identifier: changes at every boot.
pub fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .map(|text| text.trim().to_owned())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_an_identity() {
        let (state, start) = identity(std::process::id()).unwrap();
        assert!(matches!(state, 'R' | 'S'), "{state}");
        assert!(start > 0);
        assert_eq!(identity(0), None);
    }

    #[test]
    fn init_is_never_signalled() {
        assert!(signal(1, 0).is_err());
        assert!(signal(0, 0).is_err());
    }
}
