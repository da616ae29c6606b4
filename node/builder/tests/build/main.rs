//! Images built from Dockerfiles, in a store of their own, on this machine's kernel. Needs root,
//! overlayfs and a static busybox (`apt install busybox-static`).
//!
//! The program starts itself as launcher: `build launcher DIR CGROUP`. As a test it takes the usual
//! arguments (a filter, `--list`).

mod cache;
mod copy;
mod errors;
mod harness;
mod instructions;
mod run;
mod stages;

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
    if args.get(1).map(String::as_str) == Some("build-that-is-killed") {
        run::build_that_is_killed(args[2].as_ref());
        return;
    }
    let tests: Vec<Test> =
        [instructions::TESTS, copy::TESTS, stages::TESTS, run::TESTS, cache::TESTS, errors::TESTS]
            .concat();
    harness::run_all(&tests);
}
