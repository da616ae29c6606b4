//! `bench api`: the Kubernetes API of dhow beside Kubernetes' own API server on etcd: single
//! objects, lists in the forms that clients ask for, writes.
//!
//! Both hold the same objects and are asked by wrk over TLS, with a token of a service account that
//! may do everything; both write to disk before they answer. One case after the other, the two
//! servers in turns.

use super::report::{Report, Series};
use super::{Bench, idle, service};
use crate::tools::{self, etcd as etcds};
use crate::upstream::{self, Upstream};
use crate::{platform, sh};
use anyhow::{Context as _, Result, bail};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// Objects that lists show, of about a kilobyte each.
const OBJECTS: usize = 1000;
const SIZE: usize = 600;
/// Where they are, on both.
const NAMESPACE: &str = "bench";
const MAPS: &str = "/api/v1/namespaces/bench/configmaps";

/// What is asked.
struct Case {
    name: &'static str,
    accept: &'static str,
    path: String,
    write: Option<Write>,
}

enum Write {
    Create,
    Patch,
}

fn cases() -> Vec<Case> {
    let read = |name, accept, path: &str| Case { name, accept, path: path.to_owned(), write: None };
    let write = |name, write| Case {
        name,
        accept: "application/json",
        path: MAPS.to_owned(),
        write: Some(write),
    };
    vec![
        read("get", "application/json", &format!("{MAPS}/map-0500")),
        read("list 1000", "application/json", &format!("{MAPS}?labelSelector=shown")),
        read(
            "list 1000 as table",
            "application/json;as=Table;v=v1;g=meta.k8s.io",
            &format!("{MAPS}?labelSelector=shown"),
        ),
        read(
            "list 1000, metadata",
            "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io",
            &format!("{MAPS}?labelSelector=shown"),
        ),
        write("create", Write::Create),
        write("merge patch", Write::Patch),
    ]
}

/// One of the two.
struct Server<'a> {
    name: &'static str,
    url: String,
    token: String,
    /// The network that its generator must be in.
    upstream: Option<&'a Upstream>,
    processes: Vec<PathBuf>,
    folder: &'a Path,
}

/// Runs it.
///
/// # Errors
/// When one of the two does not start, or refuses a request.
pub fn run(rounds: u32) -> Result<()> {
    tools::debian(&["wrk"])?;
    let kubectl = tools::kubectl()?;
    let bench = Bench::new()?;
    let scratch = &bench.scratch;
    let mut upstream = Upstream::start(&etcds::newest()?.etcd, &[], scratch)?;
    let seconds = upstream.ready()?.as_secs_f64();
    bench.platform.up()?;
    let kubeconfig = bench.platform.data.join("kubeconfig");
    let ours = |args: &[&str]| {
        let mut command = Command::new(&kubectl);
        command.arg("--kubeconfig").arg(&kubeconfig).args(args);
        command
    };
    let theirs = |args: &[&str]| upstream.kubectl(args);
    let dhow = Server {
        name: "dhow",
        url: format!("https://{}", bench.platform.listen()),
        token: prepare(&ours)?,
        upstream: None,
        processes: idle::processes(&bench.platform.program, &bench.platform.data)?,
        folder: scratch,
    };
    let peer = Server {
        name: "kube-apiserver",
        url: upstream::URL.to_owned(),
        token: prepare(&theirs)?,
        upstream: Some(&upstream),
        processes: upstream.processes(),
        folder: scratch,
    };
    let servers = [peer, dhow];
    let mut report = Report::new("api");
    for (nth, case) in cases().iter().enumerate() {
        let series = |unit, of: &str| {
            servers.each_ref().map(|s| Series::new(format!("{}: {}{of}", case.name, s.name), unit))
        };
        let (mut rates, mut costs) =
            (series("requests/s", ""), series("us/request", ", processor"));
        for round in 0..rounds as usize {
            for at in [round % 2, 1 - round % 2] {
                let done = servers[at].ask(case, nth * rounds as usize + round)?;
                rates[at].push(done.rate);
                costs[at].push(done.cost);
            }
        }
        let rate = rates[1].over(&rates[0], &format!("{}: rate, dhow / peer", case.name));
        let cost = costs[1].over(&costs[0], &format!("{}: processor, dhow / peer", case.name));
        for series in rates.into_iter().chain(costs).chain([rate, cost]) {
            report.add(series);
        }
    }
    for server in &servers {
        let sizes = server.processes.iter().map(|folder| idle::resident(folder));
        let mut memory = Series::new(format!("RSS behind it: {}", server.name), "MiB");
        memory.push(sizes.sum::<Result<f64>>()?);
        report.add(memory);
    }
    report.note(format!(
        "peer: kube-apiserver and etcd, both newest; ready {seconds:.1} s after its start"
    ));
    report.note("dhow: the whole platform, with its loops, scheduler and agent");
    report.note("load by wrk: one thread, 8 connections, TLS, 1 s a run; processor time of the servers alone");
    drop(servers);
    upstream.stop()?;
    report.finish()
}

/// Makes what all cases need, and an account; gives its token.
fn prepare(kubectl: &impl Fn(&[&str]) -> Command) -> Result<String> {
    sh::output(&mut kubectl(&["create", "namespace", NAMESPACE]))?;
    let text = "x".repeat(SIZE);
    let maps: String = (0..OBJECTS)
        .map(|nth| {
            format!(
                "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: map-{nth:04}, labels: {{shown: a}}}}\n\
                 data: {{key: \"{text}\"}}\n---\n"
            )
        })
        .collect();
    sh::output_with(&mut kubectl(&["create", "-n", NAMESPACE, "-f", "-"]), &maps)?;
    // Kubernetes makes the account `default` in a loop that does not run here.
    sh::output(&mut kubectl(&["create", "serviceaccount", "asking", "-n", NAMESPACE]))?;
    let subject = format!("--serviceaccount={NAMESPACE}:asking");
    let role = "--clusterrole=cluster-admin";
    sh::output(&mut kubectl(&["create", "clusterrolebinding", "asking", role, &subject]))?;
    let token = platform::until(Duration::from_secs(10), || {
        Ok(sh::output(&mut kubectl(&["create", "token", "asking", "-n", NAMESPACE])).ok())
    })?;
    Ok(token.context("no token")?.trim().to_owned())
}

impl Server<'_> {
    /// Asks for a second.
    fn ask(&self, case: &Case, nth: usize) -> Result<service::Load> {
        let script = self.folder.join("ask.lua");
        std::fs::write(&script, self.script(case, nth))?;
        let spent =
            || self.processes.iter().map(|folder| service::spent(folder)).sum::<Result<f64>>();
        let before = spent()?;
        let mut command = match self.upstream {
            Some(upstream) => upstream.space.command("wrk"),
            None => Command::new("wrk"),
        };
        command.args(["-t1", "-c8", "-d1s", "-s"]).arg(&script);
        let told = sh::output(command.arg(format!("{}{}", self.url, case.path)))?;
        if told.contains("Non-2xx") || told.contains("Socket errors") {
            bail!("{} refused some requests of case {}:\n{told}", self.name, case.name);
        }
        service::Load::read(&told, spent()? - before)
    }

    /// What wrk sends: a token, the form that is asked for, and for writes another object or value
    /// each time.
    fn script(&self, case: &Case, nth: usize) -> String {
        let (token, accept) = (&self.token, case.accept);
        let head = format!(
            "wrk.headers['Authorization'] = 'Bearer {token}'\nwrk.headers['Accept'] = '{accept}'\n"
        );
        let each = match case.write {
            None => return head,
            Some(Write::Create) => format!(
                "wrk.headers['Content-Type'] = 'application/json'\n\
                 function request() n = n + 1\n\
                 return wrk.format('POST', nil, nil, '{{\"apiVersion\":\"v1\",\"kind\":\"ConfigMap\",' ..\n\
                 '\"metadata\":{{\"name\":\"made-{nth}-' .. n .. '\"}},\"data\":{{\"key\":\"{}\"}}}}') end\n",
                "x".repeat(SIZE)
            ),
            Some(Write::Patch) => format!(
                "wrk.headers['Content-Type'] = 'application/merge-patch+json'\n\
                 function request() n = n + 1\n\
                 return wrk.format('PATCH', string.format('{MAPS}/map-%04d', n % {OBJECTS}), nil,\n\
                 '{{\"data\":{{\"count\":\"{nth}-' .. n .. '\"}}}}') end\n"
            ),
        };
        format!("{head}n = 0\n{each}")
    }
}
