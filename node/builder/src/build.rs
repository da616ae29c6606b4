//! From the options to the image: reads what there is, and clears up.

use crate::cache::Cache;
use crate::instruction::Kind;
use crate::pattern::Ignore;
use crate::run::Launcher;
use crate::scratch::{self, Scratch};
use crate::stages::{self, Given, Plan};
use crate::steps::Builder;
use crate::tree::Tree;
use crate::{Error, Event, Options, instruction, syntax};
use dhow_images::{Image, Images, Name};
use rustix::fs::{Mode, OFlags};
use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Arguments that `RUN` sees without an `ARG`, and that do not count for the cache.
const PROXIES: [&str; 5] = ["HTTP_PROXY", "HTTPS_PROXY", "FTP_PROXY", "NO_PROXY", "ALL_PROXY"];

pub(crate) type Report<'a> = &'a mut (dyn FnMut(Event<'_>) + Send);

/// Reads the text of a Dockerfile and picks the stages that its last one needs, without building:
/// how many instructions it has.
///
/// # Errors
/// [`Error::Dockerfile`], as [`build`] has it.
pub fn check(text: &str) -> Result<usize, Error> {
    let file = "Dockerfile";
    let parsed = syntax::parse(file, text)?;
    let escape = parsed.escape;
    let instructions = instruction::understand(parsed)?;
    let count = instructions.len();
    let plan = stages::plan(file, instructions, escape, &Given::new())?;
    plan.needed(plan.target(None)?)?;
    Ok(count)
}

/// Builds an image and gives it its names. Needs root.
///
/// Files are read and written on the calling thread.
///
/// # Errors
/// See [`Error`]. No name changes unless everything succeeded.
pub async fn build(images: &Images, options: &Options, report: Report<'_>) -> Result<Image, Error> {
    for name in &options.names {
        Name::parse(name)?;
    }
    let (file, text, beside) = dockerfile(options)?;
    let given = given(&options.arguments)?;
    let parsed = syntax::parse(&file, &text)?;
    let escape = parsed.escape;
    let instructions = instruction::understand(parsed)?;
    let mut plan = stages::plan(&file, instructions, escape, &given)?;
    plan.run_triggers(|base| triggers(images, base))?;
    let unused = unused(&plan, &given);
    let target = plan.target(options.target.as_deref())?;
    let needed = plan.needed(target)?;
    let context = context(options, &beside)?;

    let mut launcher = Launcher::new(options.runtime.clone());
    // Its layers have no name until the end.
    let _building = images.building()?;
    for dead in scratch::dead(images) {
        launcher.remove_containers(&dead.name()).await?;
    }
    let mut builder = Builder {
        images,
        options,
        report,
        given,
        context: Arc::new(context),
        cache: Cache::open(images, options.no_cache)?,
        scratch: Scratch::new(images)?,
        launcher: &mut launcher,
        done: HashMap::new(),
        number: 0,
        of: needed.iter().map(|at| plan.stages[*at].steps.len() + 1).sum(),
    };
    for name in unused {
        let text = format!("--build-arg {name} is not used: the Dockerfile has no ARG {name}");
        (builder.report)(Event::Warning(&text));
    }
    let image = builder.image(&plan, &needed, target).await;
    drop(builder);
    launcher.close().await;
    image
}

/// The Dockerfile's name for people, its text and the `.dockerignore` file that belongs to it.
fn dockerfile(options: &Options) -> Result<(String, String, PathBuf), Error> {
    let path = options.dockerfile.clone().unwrap_or_else(|| options.context.join("Dockerfile"));
    let text = std::fs::read_to_string(&path).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => Error::Options(format!(
            "there is no {}; write one, or name another one with --file",
            path.display()
        )),
        _ => Error::Io { what: format!("read {}", path.display()), source: e },
    })?;
    let name = path.strip_prefix(&options.context).unwrap_or(&path).display().to_string();
    let mut beside = path.into_os_string();
    beside.push(".dockerignore");
    Ok((name, text, beside.into()))
}

fn given(arguments: &[String]) -> Result<Given, Error> {
    let mut given = Given::new();
    for argument in arguments {
        match argument.split_once('=') {
            Some((name, value)) if !name.is_empty() => {
                given.insert(name.to_owned(), value.to_owned());
            }
            None if !argument.is_empty() => {
                if let Ok(value) = std::env::var(argument) {
                    given.insert(argument.clone(), value);
                }
            }
            _ => {
                return Err(Error::Options(format!(
                    "--build-arg {argument:?}: expected NAME=VALUE or NAME"
                )));
            }
        }
    }
    Ok(given)
}

/// Arguments that no `ARG` asks for.
fn unused(plan: &Plan, given: &Given) -> Vec<String> {
    let mut declared: HashSet<&str> = plan.globals.keys().map(String::as_str).collect();
    for step in plan.stages.iter().flat_map(|stage| &stage.steps) {
        if let Kind::Arg(arguments) = &step.kind {
            declared.extend(arguments.iter().map(|(name, _)| name.as_str()));
        }
    }
    let mut unused: Vec<String> = given
        .keys()
        .filter(|name| !declared.contains(name.as_str()) && !is_proxy(name))
        .cloned()
        .collect();
    unused.sort();
    unused
}

pub(crate) fn is_proxy(name: &str) -> bool {
    PROXIES.iter().any(|proxy| proxy.eq_ignore_ascii_case(name))
}

/// What an image leaves to do for those that are made from it. One that is missing is told of when it
/// is needed.
fn triggers(images: &Images, base: &str) -> Vec<String> {
    let Ok((_, whole)) = images.layers(base) else { return Vec::new() };
    let list = whole.pointer("/config/OnBuild").and_then(serde_json::Value::as_array);
    list.into_iter().flatten().filter_map(|text| text.as_str().map(str::to_owned)).collect()
}

fn context(options: &Options, beside: &Path) -> Result<Tree, Error> {
    let dir = &options.context;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(dir, flags, Mode::empty())
        .map_err(Error::io(format!("open the build context {}", dir.display())))?;
    let mut ignore = Ignore::default();
    for file in [beside, &dir.join(".dockerignore")] {
        match std::fs::read_to_string(file) {
            Ok(text) => {
                ignore = Ignore::parse(&text).map_err(|(line, message)| Error::Dockerfile {
                    file: file.display().to_string(),
                    line,
                    message,
                })?;
                break;
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => {
                return Err(Error::Io { what: format!("read {}", file.display()), source: e });
            }
        }
    }
    Ok(Tree::new(root, format!("the build context {}", dir.display()), ignore, false))
}
