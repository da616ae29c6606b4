//! The steps of the stages, one after another: looked up in the cache, or done.

use crate::build::Report;
use crate::cache::{self, Cache};
use crate::config::Config;
use crate::copy::Writer;
use crate::instruction::Instruction;
use crate::run::{self, Launcher};
use crate::scratch::{Scratch, Step};
use crate::stages::{Base, Given, Plan};
use crate::transfer::{self, Item};
use crate::tree::Tree;
use crate::{Error, Event, Options, Place, pattern, users};
use dhow_images::{Image, Images, Layer, digest};
use rustix::fs::{Mode, OFlags};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What a stage has become so far.
#[derive(Debug, Clone)]
pub(crate) struct State {
    /// Bottom first.
    pub(crate) layers: Vec<Layer>,
    pub(crate) config: Config,
    /// Stands for all steps so far.
    pub(crate) key: String,
    /// `ARG`s in scope.
    pub(crate) arguments: Vec<(String, String)>,
}

impl State {
    pub(crate) fn variable(&self, name: &str) -> Option<String> {
        self.config.variable(name).or_else(|| {
            let argument = self.arguments.iter().rev().find(|(known, _)| known == name);
            argument.map(|(_, value)| value.clone())
        })
    }

    fn chain(&self) -> &str {
        self.layers.last().map_or("", |layer| layer.chain.as_str())
    }

    /// Topmost first.
    fn directories(&self) -> Vec<PathBuf> {
        self.layers.iter().rev().map(|layer| layer.directory.clone()).collect()
    }
}

/// What a step does to the file system.
pub(crate) enum Work {
    Nothing,
    Directory(String),
    Copy {
        tree: Arc<Tree>,
        items: Vec<Item>,
        target: String,
        chown: Option<String>,
        mode: Option<u32>,
    },
    Run {
        args: Vec<String>,
        env: Vec<String>,
        /// Environment that does not count for the cache.
        proxies: Vec<String>,
        script: Option<String>,
        /// For errors.
        command: String,
    },
}

pub(crate) struct Builder<'a> {
    pub(crate) images: &'a Images,
    pub(crate) options: &'a Options,
    pub(crate) report: Report<'a>,
    pub(crate) given: Given,
    pub(crate) context: Arc<Tree>,
    pub(crate) cache: Cache,
    pub(crate) scratch: Scratch,
    pub(crate) launcher: &'a mut Launcher,
    /// Stages that are complete.
    pub(crate) done: HashMap<usize, State>,
    /// Steps so far, and in all.
    pub(crate) number: usize,
    pub(crate) of: usize,
}

impl Builder<'_> {
    pub(crate) async fn image(
        &mut self,
        plan: &Plan,
        needed: &[usize],
        target: usize,
    ) -> Result<Image, Error> {
        for at in needed {
            let state = self.stage(plan, *at).await?;
            self.done.insert(*at, state);
        }
        let state = &self.done[&target];
        if let Some(gone) = state.layers.iter().find(|layer| !layer.directory.is_dir()) {
            return Err(Error::Options(format!(
                "layer {} was deleted while the image was built (by 'dhow image rm'?); build it again",
                gone.diff_id
            )));
        }
        let mut names = self.options.names.clone();
        names.dedup();
        let image = self.images.add_image(state.config.finish(), &state.layers, &names)?;
        self.cache.prune();
        Ok(image)
    }

    fn step_line(&mut self, text: &str, cached: bool) {
        self.number += 1;
        (self.report)(Event::Step { number: self.number, of: self.of, text, cached });
    }

    fn check_stopped(&self) -> Result<(), Error> {
        if *self.options.stop.borrow() { Err(Error::Stopped) } else { Ok(()) }
    }

    async fn stage(&mut self, plan: &Plan, at: usize) -> Result<State, Error> {
        let stage = &plan.stages[at];
        self.check_stopped()?;
        self.step_line(&stage.text, false);
        let mut state = match &stage.base {
            Base::Scratch => State {
                layers: vec![],
                config: Config::scratch(),
                key: digest::of(b"scratch"),
                arguments: vec![],
            },
            Base::Stage(base) => {
                let base = &self.done[base];
                State { config: base.config.inherited(), arguments: vec![], ..base.clone() }
            }
            Base::Image(name) => {
                let (layers, whole) = self.images.layers(name).map_err(|e| stage.place.error(e))?;
                let key = digest::of(whole.to_string().as_bytes());
                State { layers, config: Config::from_base(whole), key, arguments: vec![] }
            }
        };
        for instruction in &stage.steps {
            // Lets the caller's other tasks, which may want to stop the build, have their turn.
            tokio::task::yield_now().await;
            self.check_stopped()?;
            self.step(plan, at, &mut state, instruction)
                .await
                .map_err(|e| instruction.place.wrap(e))?;
        }
        Ok(state)
    }

    async fn step(
        &mut self,
        plan: &Plan,
        at: usize,
        state: &mut State,
        instruction: &Instruction,
    ) -> Result<(), Error> {
        let place = &instruction.place;
        let (text, work) = self.apply(plan, at, state, instruction)?;
        let identity = match &work {
            Work::Nothing => json!(["set", state.key, text]),
            Work::Directory(path) => {
                json!(["directory", state.chain(), path, state.config.user()])
            }
            Work::Copy { items, target, chown, mode, .. } => {
                let sources: Vec<Value> = items
                    .iter()
                    .map(|item| {
                        let kind = match item.content {
                            transfer::Content::Entries(_) => "entries",
                            transfer::Content::Text(_) => "text",
                            transfer::Content::Archive(_) => "archive",
                        };
                        json!([kind, item.name.to_string_lossy(), item.digest])
                    })
                    .collect();
                json!(["copy", state.chain(), sources, target, chown, mode])
            }
            Work::Run { args, env, script, .. } => {
                let (user, directory) = (state.config.user(), state.config.directory());
                json!(["run", state.chain(), args, env, script, user, directory])
            }
        };
        let key = digest::of(identity.to_string().as_bytes());
        let known = self.cache.get(&key);
        self.step_line(&instruction.text, known.is_some());
        let entry = match known {
            Some(entry) => entry,
            None => {
                let layer = self.work(state, place, work).await?;
                let entry = cache::Entry { created: jiff::Timestamp::now().to_string(), layer };
                self.cache.put(&key, &entry)?;
                entry
            }
        };
        state.config.add_history(&entry.created, &text, entry.layer.is_some());
        state.layers.extend(entry.layer);
        state.key = digest::of(format!("{} {key}", state.key).as_bytes());
        Ok(())
    }

    /// Does the work; returns the layer that it made.
    async fn work(
        &mut self,
        state: &State,
        place: &Place,
        work: Work,
    ) -> Result<Option<Layer>, Error> {
        match work {
            Work::Nothing => Ok(None),
            Work::Directory(path) => {
                let step = self.scratch.step()?;
                let (root, upper) = open_root(&state.layers, &step)?;
                let mut writer = Writer::new(&root);
                // As Docker has it: the user that works in it owns it. One that the image does not
                // know is told of when something is to be run as it.
                writer.owner = users::resolve(&root, &state.config.user()).ok().or(writer.owner);
                let made = writer
                    .directory(Path::new(&pattern::clean(&path)))
                    .map_err(|e| place.error(e))?;
                drop(root);
                made.then(|| self.images.add_layer(&upper, &state.layers))
                    .transpose()
                    .map_err(Into::into)
            }
            Work::Copy { tree, items, target, chown, mode } => {
                let step = self.scratch.step()?;
                let aside = step.make("aside", 0o755)?;
                let (root, upper) = open_root(&state.layers, &step)?;
                let mut writer = Writer::new(&root);
                if tree.owned {
                    // Files keep their owner when they come from an image, not from the machine.
                    writer.owner = None;
                }
                if let Some(chown) = chown {
                    let owner = users::resolve(&root, &chown)
                        .map_err(|e| place.error(format!("--chown={chown}: {e}")))?;
                    writer.owner = Some(owner);
                    writer.archive_owner = Some(owner);
                }
                writer.mode = mode;
                writer.copy(&tree, &items, &target, &aside).map_err(|e| {
                    place.error(format!("copying from {} to {target}: {e}", tree.name))
                })?;
                drop(root);
                Ok(Some(self.images.add_layer(&upper, &state.layers)?))
            }
            Work::Run { args, mut env, proxies, script, command } => {
                env.extend(proxies);
                self.run(state, place, args, env, script, command).await.map(Some)
            }
        }
    }

    async fn run(
        &mut self,
        state: &State,
        place: &Place,
        args: Vec<String>,
        env: Vec<String>,
        script: Option<String>,
        command: String,
    ) -> Result<Layer, Error> {
        let step = self.scratch.step()?;
        let upper = upper(&state.layers, &step)?;
        let mut lower = state.directories();
        if lower.is_empty() {
            lower.push(step.make("empty", 0o755)?);
        }
        let script = match script {
            None => None,
            Some(text) => {
                let path = step.dir().join("script");
                std::fs::write(&path, text)
                    .and_then(|()| {
                        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755))
                    })
                    .map_err(Error::io(format!("write {}", path.display())))?;
                Some(path)
            }
        };
        let program = args[0].clone();
        let job = run::Job {
            id: format!("{}-{}", self.scratch.name(), self.number),
            lower,
            writable: step.dir().to_path_buf(),
            args,
            env,
            directory: state.config.directory(),
            user: state.config.user(),
            script,
        };
        let runtime = self.launcher.runtime().await?;
        let report = &mut self.report;
        let mut output = |bytes: &[u8]| {
            if !bytes.is_empty() {
                report(Event::Output(bytes));
            }
        };
        let exit = run::run(&runtime, job, &self.options.stop, &mut output).await;
        let exit = exit.map_err(|e| match e {
            Error::Runtime(dhow_runtime::Error::CannotStart { step, cause, .. }) => {
                let advice = match step.as_str() {
                    "exec" => format!(" (is {program} in the image?)"),
                    _ => String::new(),
                };
                place.error(format!("{command:?} cannot start: {step}: {cause}{advice}"))
            }
            e => e,
        })?;
        if exit.oom {
            return Err(place.error(format!("{command:?} was ended: the machine is out of memory")));
        }
        if exit.code != 0 {
            return Err(Error::Failed {
                file: place.file.clone(),
                line: place.line,
                command,
                code: exit.code,
                signal: exit.signal,
            });
        }
        Ok(self.images.add_layer(&upper, &state.layers)?)
    }
}

/// The directory that takes the changes; it looks like the root of the layers below.
fn upper(layers: &[Layer], step: &Step) -> Result<PathBuf, Error> {
    let like = layers.last().and_then(|layer| layer.directory.metadata().ok());
    let upper = step.make("upper", like.as_ref().map_or(0o755, |m| m.mode() & 0o7777))?;
    if let Some(like) = like {
        std::os::unix::fs::chown(&upper, Some(like.uid()), Some(like.gid()))
            .map_err(Error::io(format!("change the owner of {}", upper.display())))?;
    }
    Ok(upper)
}

/// The root that the layers make, writable, and the directory that takes the changes. The mount is
/// seen by nobody and ends when the root is closed.
pub(crate) fn open_root(layers: &[Layer], step: &Step) -> Result<(OwnedFd, PathBuf), Error> {
    let upper = upper(layers, step)?;
    let root = if layers.is_empty() {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::open(&upper, flags, Mode::empty())
            .map_err(Error::io(format!("open {}", upper.display())))?
    } else {
        let work = step.make("work", 0o755)?;
        let lower: Vec<PathBuf> =
            layers.iter().rev().map(|layer| layer.directory.clone()).collect();
        dhow_kernel::mount::overlay(&lower, &upper, &work, "dhow:build")
            .map_err(Error::io("mount the layers (building needs root)"))?
    };
    Ok((root, upper))
}
