//! From the first step to the image.

use crate::cache::{self, Cache};
use crate::config::Config;
use crate::copy::Writer;
use crate::expand::Expander;
use crate::instruction::{Command, Instruction, Kind, Source, Transfer};
use crate::pattern::{self, Ignore};
use crate::run::{self, Launcher};
use crate::scratch::{self, Scratch, Step};
use crate::stages::{self, Base, Given, Plan};
use crate::syntax::Heredoc;
use crate::transfer::{self, Item};
use crate::tree::Tree;
use crate::{Error, Event, Options, Place, config, instruction, syntax, users};
use dhow_images::{Image, Images, Layer, Name, digest};
use rustix::fs::{Mode, OFlags};
use serde_json::{Value, json};
use std::collections::{HashMap, HashSet};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Arguments that `RUN` sees without an `ARG`, and that do not count for the cache.
const PROXIES: [&str; 5] = ["HTTP_PROXY", "HTTPS_PROXY", "FTP_PROXY", "NO_PROXY", "ALL_PROXY"];

/// How long a command may be in an error.
const COMMAND_SHOWN: usize = 200;

type Report<'a> = &'a mut (dyn FnMut(Event<'_>) + Send);

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
    let unused = unused(&instructions, &given);
    let plan = stages::plan(&file, instructions, escape, &given)?;
    let target = plan.target(options.target.as_deref())?;
    let needed = plan.needed(target)?;
    let context = context(options, &beside)?;

    let mut launcher = Launcher::new(options.runtime.clone());
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
fn unused(instructions: &[Instruction], given: &Given) -> Vec<String> {
    let mut declared = HashSet::new();
    for instruction in instructions {
        if let Kind::Arg(arguments) = &instruction.kind {
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

fn is_proxy(name: &str) -> bool {
    PROXIES.iter().any(|proxy| proxy.eq_ignore_ascii_case(name))
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

/// What a stage has become so far.
#[derive(Debug, Clone)]
struct State {
    /// Bottom first.
    layers: Vec<Layer>,
    config: Config,
    /// Stands for all steps so far.
    key: String,
    /// `ARG`s in scope.
    arguments: Vec<(String, String)>,
}

impl State {
    fn variable(&self, name: &str) -> Option<String> {
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
enum Work {
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

struct Builder<'a> {
    images: &'a Images,
    options: &'a Options,
    report: Report<'a>,
    given: Given,
    context: Arc<Tree>,
    cache: Cache,
    scratch: Scratch,
    launcher: &'a mut Launcher,
    /// Stages that are complete.
    done: HashMap<usize, State>,
    /// Steps so far, and in all.
    number: usize,
    of: usize,
}

impl Builder<'_> {
    async fn image(
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
                let config = Config::from_base(whole);
                if let Some(trigger) = config.triggers().first() {
                    return Err(stage.place.error(format!(
                        "image {name} wants ONBUILD {trigger:?} to be run, which is not implemented"
                    )));
                }
                State { layers, config, key, arguments: vec![] }
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
            Work::Directory(path) => json!(["directory", state.chain(), path]),
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

    /// Does what an instruction does to the configuration. Returns its text for the history, with
    /// its variables replaced, and what is to be done to the file system.
    fn apply(
        &mut self,
        plan: &Plan,
        at: usize,
        state: &mut State,
        instruction: &Instruction,
    ) -> Result<(String, Work), Error> {
        let place = &instruction.place;
        let before = state.clone();
        let get = |name: &str| before.variable(name);
        let expander = Expander { escape: plan.escape, get: &get };
        let word = |text: &str| expander.word(text).map_err(|e| place.error(e));
        let words = |text: &str| expander.words(text).map_err(|e| place.error(e));
        let said = |rest: String| format!("{} {rest}", place.keyword);
        let config = &mut state.config;
        let mut work = Work::Nothing;
        let text = match &instruction.kind {
            Kind::From { .. } => return Err(place.error("a stage cannot begin inside a stage")),
            Kind::Arg(arguments) => self.arguments(plan, state, place, arguments)?,
            Kind::Env(pairs) | Kind::Label(pairs) => {
                let mut shown = Vec::new();
                for (name, value) in pairs {
                    let (name, value) = (word(name)?, word(value)?);
                    if name.is_empty() || name.contains('=') {
                        return Err(place.error(format!("{name:?} is no name")));
                    }
                    shown.push(format!("{name}={value}"));
                    match instruction.kind {
                        Kind::Env(_) => config.set_variable(&name, &value),
                        _ => config.set_label(&name, &value),
                    }
                }
                said(shown.join(" "))
            }
            Kind::Copy(transfer) => {
                work = self.find(plan, at, &before, place, transfer)?;
                instruction.text.clone()
            }
            Kind::Run { command, heredocs } => {
                work = self.command(&before, command, heredocs);
                match &work {
                    Work::Run { args, .. } => said(args.join(" ")),
                    _ => instruction.text.clone(),
                }
            }
            Kind::Cmd(command) => {
                config.set_cmd(command);
                said(json!(config.words(command)).to_string())
            }
            Kind::Entrypoint(command) => {
                config.set_entrypoint(command);
                said(json!(config.words(command)).to_string())
            }
            Kind::Shell(shell) => {
                config.set_shell(shell);
                said(json!(shell).to_string())
            }
            Kind::Workdir(path) => {
                let path = absolute(&config.directory(), &word(path)?);
                config.set_directory(&path);
                work = Work::Directory(path.clone());
                said(path)
            }
            Kind::User(user) => {
                let user = word(user)?;
                if user.is_empty() {
                    return Err(place.error("the user is empty after its variables were replaced"));
                }
                config.set_user(&user);
                said(user)
            }
            Kind::Expose(text) => {
                let mut shown = Vec::new();
                for text in words(text)? {
                    for port in ports(&text).map_err(|e| place.error(e))? {
                        config.add_port(&port);
                        shown.push(port);
                    }
                }
                said(shown.join(" "))
            }
            Kind::Volume(paths) => {
                let paths = match paths {
                    Command::Exec(paths) => {
                        paths.iter().map(|p| word(p)).collect::<Result<_, _>>()?
                    }
                    Command::Shell(text) => words(text)?,
                };
                for path in &paths {
                    if path.trim().is_empty() {
                        return Err(place.error("the path of a volume is empty"));
                    }
                    config.add_volume(path);
                }
                said(json!(paths).to_string())
            }
            Kind::Stopsignal(signal) => {
                let signal = word(signal)?;
                if !is_signal(&signal) {
                    return Err(place.error(format!(
                        "{signal:?} is no signal; expected a name like SIGTERM or a number from 1 to 64"
                    )));
                }
                config.set_stop_signal(&signal);
                said(signal)
            }
            Kind::Healthcheck(check) => {
                config.set_healthcheck(check);
                instruction.text.clone()
            }
            Kind::Maintainer(author) => {
                config.set_author(author);
                let text = format!(
                    "{}:{}: MAINTAINER is deprecated; use LABEL org.opencontainers.image.authors",
                    place.file, place.line
                );
                (self.report)(Event::Warning(&text));
                said(author.clone())
            }
        };
        Ok((text, work))
    }

    /// `ARG` in a stage: the value given, else the default, else that of an `ARG` before `FROM`.
    fn arguments(
        &self,
        plan: &Plan,
        state: &mut State,
        place: &Place,
        arguments: &[(String, Option<String>)],
    ) -> Result<String, Error> {
        let mut shown = vec![place.keyword.clone()];
        for (name, default) in arguments {
            let value = match (self.given.get(name), default) {
                (Some(value), _) => Some(value.clone()),
                (None, Some(default)) => {
                    let get = |name: &str| state.variable(name);
                    let expander = Expander { escape: plan.escape, get: &get };
                    Some(expander.word(default).map_err(|e| place.error(e))?)
                }
                (None, None) => plan.globals.get(name).cloned(),
            };
            match value {
                Some(value) => {
                    shown.push(format!("{name}={value}"));
                    state.arguments.push((name.clone(), value));
                }
                None => shown.push(name.clone()),
            }
        }
        Ok(shown.join(" "))
    }

    /// Finds what a `COPY` or `ADD` takes.
    fn find(
        &self,
        plan: &Plan,
        at: usize,
        state: &State,
        place: &Place,
        copy: &Transfer,
    ) -> Result<Work, Error> {
        let get = |name: &str| state.variable(name);
        let expander = Expander { escape: plan.escape, get: &get };
        let word = |text: &str| expander.word(text).map_err(|e| place.error(e));
        let tree = match &copy.from {
            None => self.context.clone(),
            Some(from) => {
                let (name, layers) = match plan.from(at, place, from)? {
                    Base::Stage(stage) => {
                        (format!("stage {from}"), self.done[&stage].layers.clone())
                    }
                    Base::Scratch => (from.clone(), vec![]),
                    Base::Image(image) => {
                        let found = self.images.layers(&image).map_err(|e| {
                            place.error(format!("--from={from} is no stage above, and {e}"))
                        })?;
                        (format!("image {image}"), found.0)
                    }
                };
                let step = self.scratch.step()?;
                let (root, _) = open_root(&layers, &step)?;
                Arc::new(Tree::new(root, name, Ignore::default(), true).made_of(step))
            }
        };
        let target = word(&copy.target)?;
        let mut items = Vec::new();
        for source in &copy.sources {
            match source {
                Source::Path(text) => {
                    items.extend(transfer::find(&tree, place, &word(text)?, copy.add)?);
                }
                Source::Text(heredoc) => {
                    let text = match heredoc.expand {
                        true => expander.document(&heredoc.text).map_err(|e| place.error(e))?,
                        false => heredoc.text.clone(),
                    };
                    items.push(transfer::text(&heredoc.name, text));
                }
            }
        }
        if copy.sources.len() > 1 && !target.ends_with('/') && target != "." {
            return Err(place.error(format!(
                "with several sources the target has to be a directory and end with /; found {target:?}"
            )));
        }
        let mode = match &copy.chmod {
            None => None,
            Some(text) => {
                let text = word(text)?;
                let mode = u32::from_str_radix(&text, 8).ok().filter(|mode| *mode <= 0o7777);
                Some(mode.ok_or_else(|| {
                    place.error(format!("--chmod={text}: expected an octal number like 755"))
                })?)
            }
        };
        let chown = copy.chown.as_deref().map(word).transpose()?;
        let directory = state.config.directory();
        let mut absolute = absolute(&directory, &target);
        let as_directory =
            target.is_empty() || target.ends_with('/') || target.ends_with("/.") || target == ".";
        if as_directory && !absolute.ends_with('/') {
            absolute.push('/');
        }
        Ok(Work::Copy { tree, items, target: absolute, chown, mode })
    }

    /// What a `RUN` executes.
    fn command(&self, state: &State, command: &Command, heredocs: &[Heredoc]) -> Work {
        let mut script = None;
        let mut line = match command {
            Command::Exec(words) => words.join(" "),
            Command::Shell(text) => text.clone(),
        };
        let args = match (command, heredocs) {
            (Command::Shell(text), [only]) if *text == only.word => {
                line = only.text.lines().next().unwrap_or_default().to_owned();
                if only.text.starts_with("#!") {
                    script = Some(only.text.clone());
                    vec![run::SCRIPT.to_owned()]
                } else {
                    state.config.words(&Command::Shell(only.text.clone()))
                }
            }
            (Command::Shell(text), [_, ..]) => {
                // The shell itself knows here-documents.
                let mut whole = text.clone();
                for heredoc in heredocs {
                    whole.push_str(&format!("\n{}{}", heredoc.raw, heredoc.name));
                }
                state.config.words(&Command::Shell(whole))
            }
            (command, _) => state.config.words(command),
        };
        if let Some((end, _)) = line.char_indices().nth(COMMAND_SHOWN) {
            line.truncate(end);
            line.push_str("...");
        }
        let mut env = state.config.env();
        let add = |env: &mut Vec<String>, name: &str, value: &str| {
            if !env.iter().any(|text| text.split_once('=').is_some_and(|(n, _)| n == name)) {
                env.push(format!("{name}={value}"));
            }
        };
        for (name, value) in state.arguments.iter().rev() {
            add(&mut env, name, value);
        }
        add(&mut env, "PATH", config::PATH);
        let mut proxies: Vec<String> = self
            .given
            .iter()
            .filter(|(name, _)| is_proxy(name) && state.variable(name).is_none())
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        proxies.sort();
        Work::Run { args, env, proxies, script, command: line }
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
                let made = Writer::new(&root)
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
            Error::Runtime(dhow_runtime::Error::CannotStart { step, cause, .. }) => place.error(
                format!("{command:?} cannot start: {step}: {cause} (is {program} in the image?)"),
            ),
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
fn open_root(layers: &[Layer], step: &Step) -> Result<(OwnedFd, PathBuf), Error> {
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

/// `path` as seen from `directory`.
fn absolute(directory: &str, path: &str) -> String {
    let joined =
        if path.starts_with('/') { path.to_owned() } else { format!("{directory}/{path}") };
    format!("/{}", pattern::clean(&joined))
}

/// Understands `80`, `80/udp` and `8000-8010/tcp`.
fn ports(text: &str) -> Result<Vec<String>, String> {
    let (range, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let protocol = protocol.to_ascii_lowercase();
    let (first, last) = range.split_once('-').unwrap_or((range, range));
    match (first.parse::<u16>(), last.parse::<u16>()) {
        (Ok(first), Ok(last))
            if first > 0
                && first <= last
                && ["tcp", "udp", "sctp"].contains(&protocol.as_str()) =>
        {
            Ok((first..=last).map(|port| format!("{port}/{protocol}")).collect())
        }
        _ => Err(format!(
            "{text:?} is no port; expected one like 8080, 53/udp or 8000-8010 (protocols: tcp, udp, sctp)"
        )),
    }
}

/// Whether the text is a signal's name or number.
fn is_signal(text: &str) -> bool {
    const NAMES: [&str; 31] = [
        "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2",
        "PIPE", "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG",
        "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
    ];
    if let Ok(number) = text.parse::<u32>() {
        return (1..=64).contains(&number);
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let real_time = ["RTMIN", "RTMAX"].iter().any(|base| {
        name.strip_prefix(base).is_some_and(|rest| {
            rest.is_empty()
                || rest.strip_prefix(['+', '-']).is_some_and(|n| n.parse::<u8>().is_ok())
        })
    });
    NAMES.contains(&name) || real_time
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_and_ranges_are_understood() {
        assert_eq!(ports("80").unwrap(), ["80/tcp"]);
        assert_eq!(ports("53/UDP").unwrap(), ["53/udp"]);
        assert_eq!(ports("1-3").unwrap(), ["1/tcp", "2/tcp", "3/tcp"]);
        for bad in ["0", "x", "70000", "3-1", "80/http"] {
            assert!(ports(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn paths_are_joined_to_the_working_directory() {
        assert_eq!(absolute("/a", "b/../c"), "/a/c");
        assert_eq!(absolute("/a", "/x//y/"), "/x/y");
        assert_eq!(absolute("/", "../.."), "/");
    }

    #[test]
    fn signals_have_names_and_numbers() {
        for good in ["SIGTERM", "term", "9", "SIGRTMIN+3"] {
            assert!(is_signal(good), "{good}");
        }
        for bad in ["SIGNOPE", "0", "65", ""] {
            assert!(!is_signal(bad), "{bad}");
        }
    }
}
