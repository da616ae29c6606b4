//! Containers, driven through the public handle, on this machine's kernel. Needs root, overlayfs and
//! a static busybox (`apt install busybox-static`).
//!
//! The program starts itself as launcher: `containers launcher DIR CGROUP`. As a test it takes the
//! usual arguments (a filter, `--list`, `--nocapture` which is always so).

mod bench;
mod harness;
mod lifecycle;
mod sandboxes;
mod security;
mod streams;
mod versions;

use harness::Test;

fn main() {
    let args: Vec<String> = std::env::args().collect();
    if args.get(1).map(String::as_str) == Some("launcher") {
        if let Err(error) = dhow_runtime::launcher_main(args[2].as_ref(), &args[3]) {
            eprintln!("{error}");
            std::process::exit(1);
        }
        return;
    }
    if args.get(1).map(String::as_str) == Some("bench") {
        bench::run();
        return;
    }
    if args.get(1).map(String::as_str) == Some("client") {
        lifecycle::client_that_is_killed(&args[2]);
        return;
    }
    let tests: Vec<Test> =
        [lifecycle::TESTS, streams::TESTS, security::TESTS, sandboxes::TESTS, versions::TESTS]
            .concat();
    harness::run_all(&tests);
}
