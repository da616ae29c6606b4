//! A user at a terminal: shell lines that run on a machine, and what they told.

use serde_json::Value;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

/// No line of a test needs longer; one that does has hung.
const LIMIT: &str = "90";

/// What a finished command told.
#[derive(Debug, Clone)]
pub struct Output {
    /// Exit code; 124 when it was ended because it took too long.
    pub code: i32,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

/// Where lines run: a machine's network, a kubeconfig and a directory of its own.
#[derive(Debug, Clone)]
pub struct Shell {
    /// The network namespace.
    pub(crate) netns: String,
    /// The platform's data directory.
    pub data: PathBuf,
    /// Holds the clients.
    pub(crate) bin: PathBuf,
    /// Names the user and the namespace.
    pub kubeconfig: PathBuf,
    /// Working directory, for files of this test.
    pub dir: PathBuf,
    /// The namespace that commands act in.
    pub namespace: String,
}

impl Shell {
    /// A command on this machine, not started yet.
    pub fn command(&self, program: &str) -> Command {
        let path = std::env::var("PATH").unwrap_or_default();
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net=/run/netns/{}", self.netns))
            .arg("--")
            .arg(program)
            .current_dir(&self.dir)
            .env("PATH", format!("{}:{path}", self.bin.display()))
            .env("KUBECONFIG", &self.kubeconfig)
            .env("DHOW_DATA_DIR", &self.data)
            .env("HOME", &self.dir)
            .env("TMPDIR", &self.dir)
            .env("TERM", "xterm")
            .env("NS", &self.namespace)
            .stdin(Stdio::null());
        command
    }

    /// Runs shell lines and tells how it went. `$NS` is the namespace.
    pub fn sh(&self, lines: &str) -> Output {
        self.pipe(lines, "")
    }

    /// As [`Shell::sh`], with `input` on standard input.
    pub fn pipe(&self, lines: &str, input: &str) -> Output {
        let mut command = self.command("timeout");
        command.args(["-k", "5", LIMIT, "sh", "-c", lines]);
        finish(command, input)
    }

    /// Runs shell lines that must succeed; returns their standard output.
    ///
    /// # Panics
    /// When they fail.
    #[track_caller]
    pub fn ok(&self, lines: &str) -> String {
        let output = self.sh(lines);
        assert_eq!(output.code, 0, "must succeed: {lines}\n{output:#?}");
        output.out
    }

    /// As [`Shell::ok`], without the blanks around.
    #[track_caller]
    pub fn word(&self, lines: &str) -> String {
        self.ok(lines).trim().to_owned()
    }

    /// Runs shell lines that must succeed and tell all of `parts`; returns standard output.
    #[track_caller]
    pub fn tells(&self, lines: &str, parts: &[&str]) -> String {
        let out = self.ok(lines);
        for part in parts {
            assert!(out.contains(part), "must tell {part:?}: {lines}\n{out}");
        }
        out
    }

    /// Runs shell lines that must succeed and tell exactly `told`, but for blanks around it.
    #[track_caller]
    pub fn is(&self, lines: &str, told: &str) {
        let out = self.ok(lines);
        assert_eq!(out.trim(), told.trim(), "{lines}");
    }

    /// Runs shell lines that must fail and say all of `parts` on standard error; returns that.
    #[track_caller]
    pub fn fails(&self, lines: &str, parts: &[&str]) -> String {
        let output = self.sh(lines);
        assert!(output.code != 0 && output.code != 124, "must fail: {lines}\n{output:#?}");
        for part in parts {
            assert!(output.err.contains(part), "must say {part:?}: {lines}\n{output:#?}");
        }
        output.err
    }

    /// `kubectl apply` of a manifest that must be taken.
    #[track_caller]
    pub fn apply(&self, manifest: &str) -> String {
        let output = self.pipe("kubectl apply -f -", manifest);
        assert_eq!(output.code, 0, "must be applied: {manifest}\n{output:#?}");
        output.out
    }

    /// `kubectl apply` of a manifest that must be refused, saying all of `parts`.
    #[track_caller]
    pub fn refused(&self, manifest: &str, parts: &[&str]) -> String {
        let output = self.pipe("kubectl apply -f -", manifest);
        assert!(output.code != 0, "must be refused: {manifest}\n{output:#?}");
        for part in parts {
            assert!(output.err.contains(part), "must say {part:?}: {manifest}\n{output:#?}");
        }
        output.err
    }

    /// `kubectl` with these arguments.
    pub fn kubectl(&self, arguments: &[&str]) -> Output {
        let mut command = self.command("kubectl");
        command.args(arguments);
        finish(command, "")
    }

    /// `dhow` with these arguments.
    pub fn dhow(&self, arguments: &[&str]) -> Output {
        let mut command = self.command("dhow");
        command.args(arguments);
        finish(command, "")
    }

    /// `kubectl get WHAT -o json`.
    #[track_caller]
    pub fn json(&self, what: &str) -> Value {
        let out = self.ok(&format!("kubectl get {what} -o json"));
        serde_json::from_str(&out).expect("kubectl prints JSON")
    }

    /// Writes a file of this test.
    pub fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.dir.join(name);
        std::fs::write(&path, text).expect("the test's directory can be written");
        path
    }

    /// Runs shell lines again and again until they tell `told`, but for blanks around it.
    #[track_caller]
    pub fn until(&self, lines: &str, told: &str) {
        let until = Instant::now() + Duration::from_secs(30);
        loop {
            let output = self.sh(lines);
            if output.code == 0 && output.out.trim() == told {
                return;
            }
            assert!(Instant::now() < until, "waited in vain for {told:?}: {lines}\n{output:#?}");
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// Starts shell lines that go on until the value is dropped.
    pub fn spawn(&self, lines: &str) -> Background {
        let mut command = self.command("timeout");
        command.args(["-k", "5", LIMIT, "sh", "-c", lines]);
        Background::start(command, lines)
    }

    /// This shell with another kubeconfig.
    pub fn with_kubeconfig(&self, path: &Path) -> Self {
        Self { kubeconfig: path.to_owned(), ..self.clone() }
    }
}

/// Runs a command to its end with `input` on standard input.
pub(crate) fn finish(mut command: Command, input: &str) -> Output {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the command starts");
    let mut stdin = child.stdin.take().expect("standard input is piped");
    let input = input.to_owned();
    // Beside the reading, or two full pipes would wait for each other. It may end unread.
    let feeding = std::thread::spawn(move || {
        let _ = stdin.write_all(input.as_bytes());
    });
    let output = child.wait_with_output().expect("the command ends");
    let _ = feeding.join();
    Output {
        code: output.status.code().unwrap_or(-1),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// Shell lines that go on beside the test.
pub struct Background {
    child: Child,
    stdin: Option<ChildStdin>,
    told: Arc<(Mutex<String>, Condvar)>,
    lines: String,
}

impl Background {
    fn start(mut command: Command, lines: &str) -> Self {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the command starts");
        let told = Arc::<(Mutex<String>, Condvar)>::default();
        let out: Box<dyn Read + Send> = Box::new(child.stdout.take().expect("piped"));
        let err: Box<dyn Read + Send> = Box::new(child.stderr.take().expect("piped"));
        for stream in [out, err] {
            let told = told.clone();
            std::thread::spawn(move || {
                let mut stream = BufReader::new(stream);
                let mut bytes = Vec::new();
                while stream.read_until(b'\n', &mut bytes).is_ok_and(|n| n > 0) {
                    told.0
                        .lock()
                        .expect("no panic inside")
                        .push_str(&String::from_utf8_lossy(&bytes));
                    told.1.notify_all();
                    bytes.clear();
                }
            });
        }
        let stdin = child.stdin.take();
        Self { child, stdin, told, lines: lines.to_owned() }
    }

    /// Everything told so far, on both outputs, in lines.
    pub fn told(&self) -> String {
        self.told.0.lock().expect("no panic inside").clone()
    }

    /// Waits until a line with `part` was told.
    #[track_caller]
    pub fn wait_for(&self, part: &str) -> String {
        let told = self.told.0.lock().expect("no panic inside");
        let limit = Duration::from_secs(30);
        let (told, timeout) = self
            .told
            .1
            .wait_timeout_while(told, limit, |told| !told.contains(part))
            .expect("no panic inside");
        let (told, late) = (told.clone(), timeout.timed_out());
        let end: String = told.chars().take(2000).collect();
        assert!(!late, "waited in vain for {part:?}: {}\n{end}", self.lines);
        told
    }

    /// Types a line.
    pub fn say(&mut self, line: &str) {
        let stdin = self.stdin.as_mut().expect("still open");
        writeln!(stdin, "{line}").expect("still read");
    }

    /// Ends its input.
    pub fn close(&mut self) {
        self.stdin = None;
    }

    /// Waits for its end; returns the exit code.
    pub fn end(&mut self) -> i32 {
        self.stdin = None;
        self.child.wait().ok().and_then(|s| s.code()).unwrap_or(-1)
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        self.stdin = None;
        if self.child.try_wait().is_ok_and(|ended| ended.is_none()) {
            // `timeout` passes this on to everything that it started.
            let _ = Command::new("kill").arg(self.child.id().to_string()).status();
            let _ = self.child.wait();
        }
    }
}
