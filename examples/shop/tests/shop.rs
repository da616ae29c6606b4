//! The three services together, as processes of this machine.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};

struct Service {
    child: Child,
    output: BufReader<ChildStdout>,
    address: String,
}

impl Service {
    fn start(role: &str, settings: &Path, others: &[(&str, &str)]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_shop"))
            .arg(role)
            .env("SHOP_LISTEN", "127.0.0.1:0")
            .env("SHOP_VERSION", "v7")
            .env("SHOP_SETTINGS", settings)
            .envs(others.iter().copied())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        output.read_line(&mut line).unwrap();
        let (_, address) = line.trim().rsplit_once(' ').unwrap();
        Self { child, output, address: address.to_owned() }
    }

    fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    fn ask(&self, method: &str, path: &str) -> (String, serde_json::Value) {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        write!(stream, "{method} {path} HTTP/1.1\r\nconnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().to_owned();
        (status, serde_json::from_str(body).unwrap_or_default())
    }

    /// Sends SIGTERM and waits for the line that says that it is heard.
    fn terminate(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        let mut line = String::new();
        while !line.contains("leaving") {
            line.clear();
            assert_ne!(self.output.read_line(&mut line).unwrap(), 0, "it left without a word");
        }
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // Either may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn write_settings(dir: &Path, greeting: &str, discount: u8) -> PathBuf {
    let path = dir.join("settings.json");
    let text =
        format!(r#"{{"greeting": "{greeting}", "currency": "EUR", "discount": {discount}}}"#);
    std::fs::write(&path, text).unwrap();
    path
}

#[test]
fn the_front_page_combines_the_others_and_follows_the_settings() {
    let dir = tempfile::tempdir().unwrap();
    let file = write_settings(dir.path(), "Ahoy", 0);
    let catalog = Service::start("catalog", &file, &[]);
    let cart = Service::start("cart", &file, &[("SHOP_CATALOG", &catalog.url())]);
    let others = [("SHOP_CATALOG", catalog.url()), ("SHOP_CART", cart.url())];
    let others = others.each_ref().map(|(name, url)| (*name, url.as_str()));
    let web = Service::start("web", &file, &others);

    let (status, page) = web.ask("GET", "/");
    assert_eq!(status, "200", "{page}");
    assert_eq!(page["version"], "v7");
    assert_eq!(page["settings"]["greeting"], "Ahoy");
    assert_eq!(page["catalog"]["items"].as_array().unwrap().len(), 4);
    assert_eq!(page["cart"]["cents"], 4_200);

    assert_eq!(web.ask("POST", "/buy/anchor").0, "200");
    assert_eq!(web.ask("POST", "/buy/whale").0, "404");
    write_settings(dir.path(), "Hello", 50);
    let (_, page) = web.ask("GET", "/");
    assert_eq!(page["settings"]["greeting"], "Hello");
    assert_eq!(page["cart"]["cents"], (4_200 + 8_900) / 2);

    std::fs::write(&file, "{}").unwrap();
    assert_eq!(web.ask("GET", "/").0, "500");
    assert_eq!(web.ask("GET", "/readyz").0, "503");
    assert_eq!(web.ask("GET", "/healthz").0, "200");

    write_settings(dir.path(), "Hello", 0);
    drop(catalog);
    let (status, page) = web.ask("GET", "/");
    assert_eq!(status, "502");
    assert!(page["error"].as_str().unwrap().contains("/items"), "{page}");
}

#[test]
fn a_service_that_is_told_to_leave_loses_no_request() {
    let dir = tempfile::tempdir().unwrap();
    let file = write_settings(dir.path(), "Ahoy", 0);
    let mut catalog = Service::start("catalog", &file, &[]);
    // A request whose head is on its way when the signal comes.
    let mut slow = TcpStream::connect(&catalog.address).unwrap();
    slow.write_all(b"GET /items HTTP/1.1\r\n").unwrap();
    catalog.terminate();

    assert_eq!(catalog.ask("GET", "/readyz").0, "503");
    assert_eq!(catalog.ask("GET", "/items").0, "200");
    slow.write_all(b"\r\n").unwrap();
    let mut answer = String::new();
    slow.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(answer.contains("connection: close"), "{answer}");
    assert!(catalog.child.wait().unwrap().success());
}

#[test]
fn wrong_use_is_told_in_one_line() {
    for args in [&[][..], &["till"]] {
        let output = Command::new(env!("CARGO_BIN_EXE_shop")).args(args).output().unwrap();
        assert!(!output.status.success());
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(text.lines().count(), 1, "{text}");
        assert!(text.contains("web, catalog or cart"), "{text}");
    }
}
