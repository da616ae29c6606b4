//! What tests share. Of those that start servers: their [`ports`]. Of those that are programs of
//! their own, because the launcher is started from the same program: which tests are wanted, one
//! after the other, and what they have left behind.

pub mod ports;

use std::path::Path;
use std::time::Instant;

/// The tests that the program's arguments want, which are those of any test program: filters, and
/// `--list`, which prints the names and ends the program.
pub fn chosen<T: Copy>(tests: &[(&'static str, T)]) -> Vec<(&'static str, T)> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if args.iter().any(|arg| arg == "--list") {
        tests.iter().for_each(|(name, _)| println!("{}: test", short(name)));
        std::process::exit(0);
    }
    let filters: Vec<&String> = args.iter().filter(|arg| !arg.starts_with('-')).collect();
    let wanted = |name: &str| {
        filters.is_empty() || filters.iter().any(|filter| name.contains(filter.as_str()))
    };
    tests.iter().filter(|(name, _)| wanted(name)).copied().collect()
}

/// A test's name without that of the program.
fn short(name: &str) -> &str {
    name.split_once("::").map_or(name, |(_, name)| name)
}

/// Runs tests one after the other and ends the program. `run` is told a test's name without that of
/// the program, and says what is wrong.
pub fn run<T>(tests: Vec<(&'static str, T)>, run: impl Fn(&str, T) -> Result<(), String>) -> ! {
    let (mut passed, mut failed) = (0, Vec::new());
    for (name, test) in tests {
        let (name, started) = (short(name), Instant::now());
        match run(name, test) {
            Ok(()) => {
                passed += 1;
                println!("test {name} ... ok ({:.2} s)", started.elapsed().as_secs_f64());
            }
            Err(error) => {
                println!("test {name} ... FAILED: {error}");
                failed.push(name);
            }
        }
    }
    println!("\ntest result: {passed} passed; {} failed {failed:?}", failed.len());
    std::process::exit(i32::from(!failed.is_empty()))
}

/// Mounts below a directory, control groups of a name, and processes whose command line has it.
///
/// # Panics
/// When the kernel does not tell.
pub fn leftovers(dir: &Path, cgroup: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in dhow_kernel::mount::list(dir).unwrap() {
        found.push(format!("mount {}", entry.target.display()));
    }
    for hierarchy in dhow_kernel::cgroup::Layout::detect().unwrap().hierarchies {
        let group = hierarchy.own.join(cgroup);
        if group.exists() {
            found.push(format!("cgroup {}", group.display()));
        }
    }
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Ok(command) = std::fs::read(entry.path().join("cmdline")) else { continue };
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        if command.contains(cgroup) {
            found.push(format!("process {}: {command}", entry.file_name().display()));
        }
    }
    found
}

/// This machine's static busybox.
///
/// # Panics
/// When there is none.
pub fn busybox() -> &'static Path {
    let mut places = ["/bin/busybox", "/usr/bin/busybox"].into_iter().map(Path::new);
    places.find(|path| path.exists()).expect("busybox is missing: apt install busybox-static")
}

/// Makes a directory `bin` with busybox in it, under its own name and those of `applets`.
///
/// # Panics
/// When it cannot be written.
pub fn install_busybox(bin: &Path, applets: &[&str]) {
    std::fs::create_dir_all(bin).unwrap();
    std::fs::copy(busybox(), bin.join("busybox")).unwrap();
    for applet in applets {
        std::os::unix::fs::symlink("busybox", bin.join(applet)).unwrap();
    }
}
