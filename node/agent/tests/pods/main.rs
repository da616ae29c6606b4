//! Pods, driven through a feed as the control plane offers it, on this machine's kernel. Needs root,
//! overlayfs, nftables, `unshare`, and a static busybox (`apt install busybox-static`).
//!
//! The program starts itself as launcher: `pods launcher DIR CGROUP`. As a test it takes the usual
//! arguments (filters, `--list`). It runs in network and mount namespaces of its own.

mod admission;
mod config;
mod faults;
mod feed;
mod lab;
mod lifecycle;
mod probes;
mod restart;
mod streams;

use lab::Test;

fn main() {
    let args: Vec<String> = std::env::args().collect();
    if args.get(1).map(String::as_str) == Some("launcher") {
        if let Err(error) = dhow_runtime::launcher_main(args[2].as_ref(), &args[3]) {
            eprintln!("{error}");
            std::process::exit(1);
        }
        return;
    }
    let tests: Vec<Test> = [
        admission::TESTS,
        lifecycle::TESTS,
        config::TESTS,
        faults::TESTS,
        probes::TESTS,
        restart::TESTS,
        streams::TESTS,
    ]
    .concat();
    let tests = dhow_harness::chosen(&tests);
    if std::env::var_os("DHOW_TEST_INSIDE").is_none() {
        let status = std::process::Command::new("unshare")
            .args(["--net", "--mount", "--propagation", "private", "--"])
            .args(&args)
            .env("DHOW_TEST_INSIDE", "1")
            .status()
            .expect("unshare (util-linux) has to be installed");
        std::process::exit(status.code().unwrap_or(1));
    }
    lab::run_all(tests);
}
