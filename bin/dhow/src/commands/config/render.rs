//! `dhow config render`: files made from templates, checked, put in place in one step, and made again
//! when what they were made from changes.

use super::args::{self, Render};
use super::file;
use super::store::Store;
use super::template::{self, Uses, Values};
use crate::print;
use anyhow::{Context, Result, anyhow, bail};
use dhow_kv::{Backend, WatchEvent, WatchRequest};
use serde::Deserialize;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A file and what it is made from, as a YAML file of `--config` tells it.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Job {
    /// The template; from the directory of the YAML file.
    template: PathBuf,
    /// The file; standard output when there is none.
    dest: Option<PathBuf>,
    /// In octal.
    mode: Option<String>,
    /// The command that looks at the new file.
    check: Option<String>,
    /// The command that tells somebody of it.
    reload: Option<String>,
    #[serde(skip)]
    uses: Uses,
}

impl Job {
    fn mode(&self) -> Result<Option<u32>> {
        self.mode.as_deref().map(args::mode).transpose().map_err(|e| anyhow!(e))
    }
}

/// The jobs that the command line or its directory names.
fn jobs(args: &Render) -> Result<Vec<Job>> {
    if let Some(template) = &args.template {
        return Ok(vec![Job {
            template: template.clone(),
            dest: args.dest.clone(),
            mode: args.mode.map(|mode| format!("{mode:o}")),
            check: args.check.clone(),
            reload: args.reload.clone(),
            uses: Uses::default(),
        }]);
    }
    let dir = args.dir.as_deref().unwrap_or(Path::new("."));
    let entries =
        std::fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))?;
    let mut files: Vec<PathBuf> = entries.flatten().map(|e| e.path()).collect();
    files.retain(|f| f.extension().is_some_and(|e| e == "yaml" || e == "yml"));
    files.sort();
    if files.is_empty() {
        bail!("{} holds no YAML file: each names a template and a dest", dir.display());
    }
    files.iter().map(|path| job(dir, path)).collect()
}

fn job(dir: &Path, path: &Path) -> Result<Job> {
    let name = path.display();
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {name}"))?;
    let mut job: Job =
        crate::files::yaml(&text).map_err(|why| anyhow!("{name} is not understood: {why}"))?;
    job.template = dir.join(&job.template);
    if job.dest.is_none() {
        bail!("{name} names no dest");
    }
    job.mode().with_context(|| format!("mode in {name}"))?;
    Ok(job)
}

/// A path as a word of a shell.
fn quoted(path: &Path) -> String {
    format!("'{}'", path.display().to_string().replace('\'', "'\\''"))
}

/// Runs a shell command; `for_file` stands for `{}` in it.
async fn shell(command: &str, for_file: Option<&Path>) -> Result<()> {
    let line = match for_file {
        // The second and third are how confd writes it.
        Some(path) => ["{{.src}}", "{{ .src }}", "{}"]
            .iter()
            .fold(command.to_owned(), |line, mark| line.replace(mark, &quoted(path))),
        None => command.to_owned(),
    };
    let output = tokio::process::Command::new("sh")
        .args(["-c", &line])
        .stdin(std::process::Stdio::null())
        .output()
        .await
        .with_context(|| format!("cannot run {command:?}"))?;
    if output.status.success() {
        return Ok(());
    }
    let told = [output.stderr, output.stdout].concat();
    let told = String::from_utf8_lossy(&told);
    let told: Vec<&str> = told.lines().map(str::trim).filter(|l| !l.is_empty()).take(5).collect();
    let why = if told.is_empty() { output.status.to_string() } else { told.join("; ") };
    bail!("{command:?} fails: {why}")
}

/// Makes one file. Whether it has changed.
async fn make(job: &mut Job, values: &Arc<Values>) -> Result<bool> {
    let (text, uses) = template::render(&job.template, values);
    job.uses = uses;
    let text = text?;
    let Some(dest) = &job.dest else {
        print!("{text}");
        return Ok(true);
    };
    let mode = job.mode()?;
    if file::is_same(dest, text.as_bytes(), mode) {
        return Ok(false);
    }
    let staged = file::stage(dest, text.as_bytes(), mode)?;
    if let Some(check) = &job.check {
        let checked = shell(check, Some(staged.path())).await;
        checked.with_context(|| format!("{} stays as it is: the check", dest.display()))?;
    }
    staged.commit()?;
    eprintln!("{} is made", dest.display());
    Ok(true)
}

/// Makes files, and then runs the commands of those that have changed, each once. Returns what went
/// wrong; one that fails does not keep the others from being made.
async fn make_all(jobs: &mut [Job], values: &Arc<Values>) -> Vec<anyhow::Error> {
    let (mut failed, mut reloads) = (Vec::new(), Vec::new());
    for job in jobs {
        match make(job, values).await {
            Ok(true) => reloads.extend(job.reload.clone()),
            Ok(false) => {}
            Err(error) => failed.push(error),
        }
    }
    let mut done = BTreeSet::new();
    for reload in reloads {
        if done.insert(reload.clone())
            && let Err(error) = shell(&reload, None).await
        {
            failed.push(error.context("the file is made, but the reload"));
        }
    }
    failed
}

/// All configuration, and its revision.
async fn load(store: &Store) -> Result<(Arc<Values>, i64)> {
    let (found, revision) = store.tree("", 0).await?;
    let values = found.into_iter().map(|kv| (store.path(&kv.key), kv.value));
    Ok((Arc::new(values.collect()), revision))
}

/// `dhow config render`.
pub async fn run(store: &Store, args: Render) -> Result<()> {
    let mut jobs = jobs(&args)?;
    let (values, revision) = load(store).await?;
    let failed = make_all(&mut jobs, &values).await;
    if args.watch {
        tell(&failed);
        return follow(store, jobs, values, revision).await;
    }
    let count = failed.len();
    match failed.into_iter().next() {
        None => Ok(()),
        Some(only) if count == 1 => Err(only),
        Some(first) => Err(first.context(format!("{count} files could not be made; the first"))),
    }
}

fn tell(failed: &[anyhow::Error]) {
    for error in failed {
        eprintln!("dhow: {}", print::error(error));
    }
}

/// Makes files again when keys change that they were made from.
async fn follow(
    store: &Store,
    mut jobs: Vec<Job>,
    mut values: Arc<Values>,
    revision: i64,
) -> Result<()> {
    let span = store.below("")?;
    let request =
        |start_revision| WatchRequest { span: span.clone(), start_revision, prev_kv: false };
    let mut watcher = store.remote.watch(request(revision + 1))?;
    let mut changed = BTreeSet::new();
    loop {
        match watcher.next().await {
            Some(WatchEvent::Events { events, .. }) => {
                // More may be on the way: files are made when all that has happened by now is here.
                if changed.is_empty() {
                    watcher.request_progress();
                }
                let all = Arc::make_mut(&mut values);
                for event in events.iter() {
                    let path = store.path(&event.kv.key);
                    match event.deleted {
                        true => all.remove(&path),
                        false => all.insert(path.clone(), event.kv.value.clone()),
                    };
                    changed.insert(path);
                }
            }
            Some(WatchEvent::Progress(_)) => {
                let changed = std::mem::take(&mut changed);
                for job in &mut jobs {
                    if changed.iter().any(|key| job.uses.concern(key)) {
                        tell(&make_all(std::slice::from_mut(job), &values).await);
                    }
                }
            }
            Some(WatchEvent::Compacted(_)) => {
                let (fresh, revision) = load(store).await?;
                values = fresh;
                changed.clear();
                tell(&make_all(&mut jobs, &values).await);
                watcher = store.remote.watch(request(revision + 1))?;
            }
            None => bail!("the store ended the watch: its log tells why"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(text: &str) -> Arc<Values> {
        Arc::new([("name".to_owned(), text.to_owned().into())].into())
    }

    fn job_in(dir: &Path, check: Option<&str>, reload: Option<&str>) -> Job {
        std::fs::write(dir.join("t.j2"), "name={{ get('name') }}\n").unwrap();
        Job {
            template: dir.join("t.j2"),
            dest: Some(dir.join("it's out")),
            mode: Some("0600".into()),
            check: check.map(str::to_owned),
            reload: reload.map(str::to_owned),
            uses: Uses::default(),
        }
    }

    #[tokio::test]
    async fn a_file_is_made_once_checked_and_told_of() {
        let dir = tempfile::tempdir().unwrap();
        let told = dir.path().join("told");
        let reload = format!("echo told >> {}", told.display());
        let mut job = job_in(dir.path(), Some("grep -q ^name= {}"), Some(&reload));
        assert!(make_all(std::slice::from_mut(&mut job), &values("a")).await.is_empty());
        assert!(make_all(std::slice::from_mut(&mut job), &values("a")).await.is_empty());
        assert_eq!(std::fs::read_to_string(&told).unwrap(), "told\n", "only when changed");
        let dest = job.dest.clone().unwrap();
        assert_eq!(std::fs::read_to_string(&dest).unwrap(), "name=a\n");

        job.check = Some("echo no good >&2; cat {{.src}} >&2; false".into());
        let failed = make_all(std::slice::from_mut(&mut job), &values("b")).await;
        let error = print::error(&failed[0]);
        assert!(error.contains("stays as it is") && error.contains("no good; name=b"), "{error}");
        assert_eq!(std::fs::read_to_string(&dest).unwrap(), "name=a\n");
    }

    #[test]
    fn a_directory_names_several_files() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        write("a.yaml", "template: a.j2\ndest: /tmp/a\nmode: '0640'\ncheck: test -s {}\n");
        write("b.yml", "{template: sub/b.j2, dest: /tmp/b, reload: 'true'}");
        write("a.j2", "x");
        let args = || Render {
            template: None,
            dest: None,
            dir: Some(dir.path().to_owned()),
            mode: None,
            check: None,
            reload: None,
            watch: false,
        };
        let found = jobs(&args()).unwrap();
        assert_eq!(found.len(), 2);
        assert_eq!(found[0].mode().unwrap(), Some(0o640));
        assert_eq!(found[1].template, dir.path().join("sub/b.j2"));
        write("c.yaml", "{template: c.j2, dset: /tmp/c}");
        assert!(print::error(&jobs(&args()).unwrap_err()).contains("c.yaml"));
    }
}
