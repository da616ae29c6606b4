//! `cargo xtask demo`: the main job, on real input, from source to a service that heals.
//!
//! It uses nothing but `dhow` and HTTP, on a data directory, addresses and names of its own. Each
//! step says what it saw; the first one that fails ends the demo with the platform's log.

mod http;
mod traffic;

use crate::platform::{Platform, until};
use crate::{dist, sh, workspace};
use anyhow::{Context as _, Result, bail};
use serde_json::Value;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::{Duration, Instant};
use traffic::Traffic;

/// How long anything may take to become ready.
const LIMIT: Duration = Duration::from_secs(60);
/// The namespace of the sample application.
const SHOP: &str = "shop";

/// What the demo may be told.
#[derive(Debug, Default, clap::Args)]
pub struct Options {
    /// Remove every trace at the end, also when a step fails
    #[arg(long)]
    pub purge: bool,
    /// The platform's data directory (default: demo, in Cargo's target directory)
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
}

struct Demo {
    platform: Platform,
    /// Holds the images' build context.
    context: PathBuf,
    steps: Vec<(&'static str, f64, String)>,
}

/// Runs it.
///
/// # Errors
/// At the first step that fails: the error names the step.
pub fn run(options: &Options) -> Result<()> {
    sh::must_be_root("cargo xtask demo")?;
    let data = match &options.data_dir {
        Some(dir) => std::path::absolute(dir)?,
        None => std::path::absolute(workspace::target().join("demo"))?,
    };
    let mut demo = Demo {
        platform: Platform::demo(data),
        context: workspace::target().join("demo-images"),
        steps: Vec::new(),
    };
    let done = demo.all();
    if done.is_err() && demo.platform.data.exists() {
        println!("\nthe end of {}:", demo.platform.data.join("dhow.log").display());
        println!("{}", demo.platform.log_tail(40));
        if let Ok(pods) = demo.platform.dhow(&["get", "pods", "-A"]) {
            println!("\n{pods}");
        }
    }
    demo.table();
    let data = demo.platform.data.display();
    let program = demo.platform.program.display();
    if options.purge {
        let start = Instant::now();
        let purged = demo.platform.purge();
        println!("{:<40} {:>6.2} s", "removed every trace", start.elapsed().as_secs_f64());
        return done.and(purged.context("demo: cleaning up"));
    }
    if demo.platform.data.exists() {
        println!(
            "\nto explore:   eval \"$({program} env --data-dir {data})\" && kubectl -n {SHOP} get all"
        );
        println!("to clean up:  {program} down --purge --data-dir {data}");
    }
    done
}

impl Demo {
    fn all(&mut self) -> Result<()> {
        self.step("build the programs", Self::build)?;
        self.step("start the platform", Self::start)?;
        self.step("build four images from Dockerfiles", Self::images)?;
        self.step("apply the manifests", Self::apply)?;
        self.step("wait until everything is ready", Self::ready)?;
        self.step("shop through the service", Self::shop)?;
        self.step("scale web from 2 to 4", Self::scale)?;
        self.step("roll out v2 while requests flow", Self::roll_out)?;
        self.step("kill a container, see it healed", Self::heal)?;
        self.step("change a setting, see it arrive", Self::setting)?;
        println!("\n{}", self.platform.dhow(&["status"])?.trim_end());
        Ok(())
    }

    fn step(&mut self, name: &'static str, work: fn(&Self) -> Result<String>) -> Result<()> {
        println!("\n> {name}");
        let start = Instant::now();
        let done = work(self);
        let seconds = start.elapsed().as_secs_f64();
        let told = match &done {
            Ok(told) => told.clone(),
            Err(_) => "FAILED".to_owned(),
        };
        println!("  {told} ({seconds:.2} s)");
        self.steps.push((name, seconds, told));
        done.map(drop).with_context(|| format!("demo: step '{name}' failed"))
    }

    fn table(&self) {
        println!("\n{:<40} {:>8}  WHAT", "STEP", "SECONDS");
        for (name, seconds, told) in &self.steps {
            println!("{name:<40} {seconds:>8.2}  {told}");
        }
        let sum: f64 = self.steps.iter().map(|(_, seconds, _)| seconds).sum();
        println!("{:<40} {sum:>8.2}\n", "all");
    }

    fn build(&self) -> Result<String> {
        dist::build_for_tasks()?;
        let path = workspace::dhow();
        let size = std::fs::metadata(&path)
            .with_context(|| format!("cannot find {}", path.display()))?
            .len();
        Ok(format!("dhow has {:.1} MB", size as f64 / 1e6))
    }

    fn start(&self) -> Result<String> {
        let data = &self.platform.data;
        if data.exists() {
            // Only an earlier demo's: anything else without a configuration is not touched.
            if !data.join("config.json").exists() && data.read_dir()?.next().is_some() {
                bail!(
                    "{} exists and is no data directory; name another with --data-dir",
                    data.display()
                );
            }
            println!("  removing an earlier demo in {}", data.display());
            self.platform.purge()?;
        }
        let start = Instant::now();
        self.platform.up()?;
        Ok(format!("answers after {:.2} s", start.elapsed().as_secs_f64()))
    }

    fn images(&self) -> Result<String> {
        std::fs::create_dir_all(&self.context)?;
        std::fs::copy(workspace::release("shop"), self.context.join("shop"))
            .context("cannot copy the shop's program")?;
        let versions = [("web", "v1"), ("catalog", "v1"), ("cart", "v1"), ("web", "v2")];
        for (service, version) in versions {
            let file = workspace::root().join(format!("examples/shop/{service}/Dockerfile"));
            let mut command = self.platform.command(&["image", "build"]);
            command.args(["-t", &format!("shop/{service}:{version}")]);
            command.args(["--build-arg", &format!("VERSION={version}")]);
            sh::output(command.arg("-f").arg(file).arg(&self.context))?;
        }
        Ok(versions.map(|(service, version)| format!("shop/{service}:{version}")).join(" "))
    }

    fn apply(&self) -> Result<String> {
        let folder = workspace::root().join("examples/shop/manifests");
        let mut command = self.platform.command(&["apply", "-f"]);
        let told = sh::output(command.arg(folder))?;
        Ok(format!("{} objects", told.lines().count()))
    }

    fn ready(&self) -> Result<String> {
        for name in ["catalog", "cart", "web"] {
            self.platform.rolled_out(SHOP, name, LIMIT)?;
        }
        Ok("catalog 2, cart 1, web 2".to_owned())
    }

    fn shop(&self) -> Result<String> {
        let address = self.service()?;
        // The addresses of ready pods reach the rules a moment after the pods' own status.
        let mut last = None;
        let page = until(Duration::from_secs(5), || match http::ask("GET", address, "/") {
            Ok(page) => Ok(Some(page)),
            Err(error) => {
                last = Some(error);
                Ok(None)
            }
        })?;
        let page = match (page, last) {
            (Some(page), _) => page,
            (None, Some(error)) => return Err(error),
            (None, None) => bail!("http://{address}/ was never asked"),
        };
        println!("  GET http://{address}/");
        println!("{}", indent(&serde_json::to_string_pretty(&page)?));
        let cart = http::ask("POST", address, "/buy/anchor")?;
        println!("  POST http://{address}/buy/anchor\n{}", indent(&cart.to_string()));
        let node = self.node_port()?;
        let again = http::ask("GET", node, "/").context("through the node port")?;
        if again["cart"]["cents"].as_u64() <= page["cart"]["cents"].as_u64() {
            bail!("the anchor is not in the cart: {}", again["cart"]);
        }
        Ok(format!("{} answered at {address} and at {node}", text(&page["pod"])))
    }

    fn scale(&self) -> Result<String> {
        self.apply_web(4, "v1")?;
        self.platform.rolled_out(SHOP, "web", LIMIT)?;
        let address = self.service()?;
        let mut pods = std::collections::BTreeSet::new();
        // The newest endpoints may be a moment behind; every pod must get its share.
        until(LIMIT, || {
            pods.insert(text(&http::ask("GET", address, "/")?["pod"]));
            Ok((pods.len() == 4).then_some(()))
        })?
        .with_context(|| format!("only {} of 4 pods ever answered: {pods:?}", pods.len()))?;
        Ok("all four pods answer".to_owned())
    }

    fn roll_out(&self) -> Result<String> {
        let address = self.service()?;
        let traffic = Traffic::start(address);
        let rolled = self
            .apply_web(4, "v2")
            .and_then(|()| self.platform.rolled_out(SHOP, "web", LIMIT))
            // Pods that leave answer until they are gone; the demo watches them to their end.
            .and_then(|()| self.only_replicas("web", 4));
        let tally = traffic.stop();
        rolled?;
        if let Some(first) = tally.failures.first() {
            bail!(
                "{} of {} requests failed, the first: {first}",
                tally.failures.len(),
                tally.failures.len() + tally.answered()
            );
        }
        if !tally.versions.contains_key("v2") {
            bail!("v2 never answered: {:?}", tally.versions);
        }
        let by_version: Vec<String> =
            tally.versions.iter().map(|(version, count)| format!("{count} by {version}")).collect();
        Ok(format!("{} requests, none failed: {}", tally.answered(), by_version.join(", ")))
    }

    fn heal(&self) -> Result<String> {
        let restarts = |pod: &Value| {
            pod["status"]["containerStatuses"][0]["restartCount"].as_i64().unwrap_or_default()
        };
        let pods = self.platform.pods(SHOP, "catalog")?;
        let pod = pods.first().context("there is no catalog pod")?;
        let name = text(&pod["metadata"]["name"]);
        let process = process_of(&name)?;
        println!("  killing process {} of pod {name}", process.as_raw_nonzero());
        rustix::process::kill_process(process, rustix::process::Signal::KILL)
            .with_context(|| format!("cannot kill process {}", process.as_raw_nonzero()))?;
        let start = Instant::now();
        until(LIMIT, || {
            let now = self.platform.get(SHOP, "pod", &name)?;
            let ready = now["status"]["containerStatuses"][0]["ready"] == true;
            Ok((ready && restarts(&now) > restarts(pod)).then_some(()))
        })?
        .with_context(|| format!("pod {name} is not ready again"))?;
        let seconds = start.elapsed().as_secs_f64();
        http::ask("GET", self.service()?, "/")?;
        Ok(format!("{name} is ready again after {seconds:.2} s"))
    }

    fn setting(&self) -> Result<String> {
        let address = self.service()?;
        let old = self.manifest("10-settings.yaml")?;
        let new = replaced(&old, "Welcome aboard", "Fair winds")?;
        self.platform.apply(&replaced(&new, "\"discount\": 0", "\"discount\": 10")?)?;
        let start = Instant::now();
        let page = until(Duration::from_secs(120), || {
            let page = http::ask("GET", address, "/")?;
            // Each pod has its own copy: catalog's prices and web's greeting have both to follow.
            let arrived = page["settings"]["greeting"] == "Fair winds"
                && page["catalog"]["items"][0]["cents"] == 8_010;
            Ok(arrived.then_some(page))
        })?
        .context("the new greeting and prices never arrived")?;
        Ok(format!(
            "{} after {:.2} s, no restart",
            page["settings"]["greeting"],
            start.elapsed().as_secs_f64()
        ))
    }

    fn manifest(&self, name: &str) -> Result<String> {
        let path = workspace::root().join("examples/shop/manifests").join(name);
        std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
    }

    /// Applies web's manifest with another number of replicas and another version.
    fn apply_web(&self, replicas: u32, version: &str) -> Result<()> {
        let text = self.manifest("22-web.yaml")?;
        let text = replaced(&text, "replicas: 2", &format!("replicas: {replicas}"))?;
        self.platform.apply(&replaced(&text, "shop/web:v1", &format!("shop/web:{version}"))?)
    }

    /// Waits until a Deployment's pods are those it wants, and those that left are gone.
    fn only_replicas(&self, app: &str, wanted: usize) -> Result<()> {
        until(LIMIT, || {
            let list = self.platform.dhow(&["get", "pods", "-n", SHOP, "-o", "json"])?;
            let list: Value = serde_json::from_str(&list)?;
            let pods = list["items"].as_array().into_iter().flatten();
            let count = pods.filter(|pod| pod["metadata"]["labels"]["app"] == app).count();
            Ok((count == wanted).then_some(()))
        })?
        .with_context(|| format!("old pods of {app} do not go"))
    }

    fn service(&self) -> Result<SocketAddr> {
        let service = self.platform.get(SHOP, "service", "web")?;
        let address: IpAddr =
            text(&service["spec"]["clusterIP"]).parse().context("service web has no ClusterIP")?;
        Ok(SocketAddr::new(address, 80))
    }

    fn node_port(&self) -> Result<SocketAddr> {
        let service = self.platform.get(SHOP, "service", "web")?;
        let port = service["spec"]["ports"][0]["nodePort"].as_u64().context("no node port")?;
        let pods = self.platform.pods(SHOP, "web")?;
        let pod = pods.first().context("there is no web pod")?;
        let host = text(&pod["status"]["hostIP"]);
        let host: IpAddr = host.parse().with_context(|| format!("{host:?} is no address"))?;
        Ok(SocketAddr::new(host, u16::try_from(port)?))
    }
}

/// The process that runs in a pod: the one whose environment says so.
fn process_of(pod: &str) -> Result<rustix::process::Pid> {
    let wanted = format!("POD_NAME={pod}");
    for entry in std::fs::read_dir("/proc")? {
        let entry = entry?;
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        // A process may end while we look at it.
        let Ok(environment) = std::fs::read(entry.path().join("environ")) else { continue };
        if environment.split(|byte| *byte == 0).any(|setting| setting == wanted.as_bytes()) {
            return rustix::process::Pid::from_raw(pid).context("process 0 is nobody's");
        }
    }
    bail!("no process runs for pod {pod}")
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// `text` with `old` replaced, which must be there: a manifest that changed must not go unnoticed.
fn replaced(text: &str, old: &str, new: &str) -> Result<String> {
    if !text.contains(old) {
        bail!("the sample's manifests do not say {old:?} any more; adapt xtask/src/demo");
    }
    Ok(text.replace(old, new))
}

fn indent(text: &str) -> String {
    text.lines().map(|line| format!("    {line}")).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_manifests_say_what_the_demo_changes() {
        let demo = Demo {
            platform: Platform::demo(PathBuf::new()),
            context: PathBuf::new(),
            steps: Vec::new(),
        };
        let web = demo.manifest("22-web.yaml").unwrap();
        replaced(&web, "replicas: 2", "").unwrap();
        replaced(&web, "shop/web:v1", "").unwrap();
        let settings = demo.manifest("10-settings.yaml").unwrap();
        replaced(&settings, "Welcome aboard", "").unwrap();
        replaced(&settings, "\"discount\": 0", "").unwrap();
    }
}
