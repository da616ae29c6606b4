//! Runs the door over an empty store in memory, for trying clients by hand: prints a kubeconfig's
//! path and serves until its standard input ends.

#[path = "../tests/common/mod.rs"]
mod common;

#[tokio::main]
async fn main() {
    let platform = common::Platform::start().await;
    platform.running_pod("web", &["main"]).await;
    println!("{}", platform.kubeconfig("kubernetes-admin").display());
    let mut line = String::new();
    while std::io::stdin().read_line(&mut line).is_ok_and(|read| read > 0) {}
}
