//! `dhow image ...`: works on the data directory itself, so it needs no running platform.

use crate::cli::{ImageCommand, Target};
use crate::config::Config;
use crate::print::{self, Output};
use anyhow::{Context, Result};
use dhow_images::{Images, Name};
use std::fs::File;
use std::path::{Path, PathBuf};

fn store(target: &Target) -> Result<Images> {
    Ok(Images::open(&images_dir(&target.data_dir))?)
}

/// Where the images of a data directory lie.
pub fn images_dir(data: &Path) -> PathBuf {
    data.join("images")
}

/// Runs one command.
///
/// # Errors
/// As the image store and the builder say.
pub async fn run(command: ImageCommand) -> Result<()> {
    match command {
        ImageCommand::Build { target, tag, file, build_arg, stage, no_cache, dir } => {
            build(&target, tag, file, build_arg, stage, no_cache, &dir).await
        }
        ImageCommand::Load { target, input } => {
            let images = store(&target)?;
            let loaded = match input {
                Some(path) => {
                    let mut file = File::open(&path)
                        .with_context(|| format!("cannot open {}", path.display()))?;
                    images
                        .load(&mut file)
                        .with_context(|| format!("cannot load {}", path.display()))?
                }
                None => images.load(&mut std::io::stdin()).context("cannot load what was read")?,
            };
            for image in loaded {
                match image.names.first() {
                    Some(_) => {
                        image.names.iter().for_each(|n| println!("loaded {}", Name::familiar(n)))
                    }
                    None => println!("loaded {}", image.id),
                }
            }
            Ok(())
        }
        ImageCommand::Save { target, output, image } => {
            let images = store(&target)?;
            match output {
                Some(path) => {
                    // A name that is not known leaves no file.
                    images.get(&image)?;
                    let mut file = File::create(&path)
                        .with_context(|| format!("cannot make {}", path.display()))?;
                    images.save(&image, &mut file)?;
                }
                None => images.save(&image, &mut std::io::stdout().lock())?,
            }
            Ok(())
        }
        ImageCommand::Ls { target, output } => list(&store(&target)?, output),
        ImageCommand::Tag { target, image, name } => Ok(store(&target)?.tag(&image, &name)?),
        ImageCommand::Rm { target, images } => {
            let store = store(&target)?;
            let in_use = layers_in_use(&target.data_dir).await;
            for image in images {
                for line in store.remove(&image, &in_use)? {
                    println!("{line}");
                }
            }
            Ok(())
        }
    }
}

/// The top layers under running containers, as the launcher knows them; none when it is not there.
async fn layers_in_use(data: &Path) -> Vec<PathBuf> {
    let Ok(config) = Config::read(data) else { return Vec::new() };
    let Ok(Some(runtime)) = crate::runtime::connect(data, &config).await else { return Vec::new() };
    let containers = runtime.containers().await.unwrap_or_default();
    containers
        .into_iter()
        .filter_map(|c| match c.spec.rootfs {
            dhow_runtime::Rootfs::Overlay { lower, .. } => Some(lower),
            dhow_runtime::Rootfs::Directory(_) => None,
        })
        .flatten()
        .collect()
}

fn list(images: &Images, output: Output) -> Result<()> {
    let images = images.list()?;
    if output != Output::Table {
        let rows: Vec<_> = images
            .iter()
            .map(|i| {
                serde_json::json!({
                    "id": i.id, "digest": i.digest, "names": i.names, "size": i.size, "created": i.created,
                })
            })
            .collect();
        return print::value(&serde_json::Value::Array(rows), output);
    }
    let mut rows = vec![["NAME", "ID", "SIZE", "CREATED"].map(str::to_owned).to_vec()];
    for image in images {
        let id = image.id.trim_start_matches("sha256:")[..12].to_owned();
        let size = print::bytes(image.size);
        let names = if image.names.is_empty() { vec!["<none>".to_owned()] } else { image.names };
        for name in names {
            let created = image.created.clone();
            rows.push(vec![Name::familiar(&name).to_owned(), id.clone(), size.clone(), created]);
        }
    }
    print::table(&rows);
    Ok(())
}

async fn build(
    target: &Target,
    tags: Vec<String>,
    file: Option<PathBuf>,
    arguments: Vec<String>,
    stage: Option<String>,
    no_cache: bool,
    dir: &Path,
) -> Result<()> {
    use dhow_builder::Event;
    use std::io::Write;
    use tokio::signal::unix::{SignalKind, signal};
    // The launcher lives elsewhere: it needs absolute paths.
    let data = std::path::absolute(&target.data_dir)?;
    let images = Images::open(&images_dir(&data))?;
    // Commands run under the platform's launcher, or under one of their own if there is none.
    let cgroup = match Config::read(&data) {
        Ok(config) => config.cgroup,
        Err(_) => format!("dhow-build-{}", std::process::id()),
    };
    let binary = std::env::current_exe().context("cannot tell this program's path")?;
    let (stopper, stop) = tokio::sync::watch::channel(false);
    let (mut interrupt, mut terminate) =
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    tokio::spawn(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        stopper.send_replace(true);
        // Keeps the channel open.
        stopper.closed().await;
    });
    let options = dhow_builder::Options {
        context: dir.to_path_buf(),
        dockerfile: file,
        names: tags,
        arguments,
        target: stage,
        no_cache,
        runtime: dhow_runtime::Config { dir: crate::runtime::dir(&data), binary, cgroup },
        stop,
    };
    let mut report = |event: Event<'_>| match event {
        Event::Step { number, of, text, cached } => {
            let cached = if cached { " (cached)" } else { "" };
            eprintln!("STEP {number}/{of}: {text}{cached}");
        }
        // Nobody is left to be told when standard error is closed.
        Event::Output(bytes) => drop(std::io::stderr().write_all(bytes)),
        Event::Warning(text) => eprintln!("warning: {text}"),
    };
    let image = dhow_builder::build(&images, &options, &mut report).await?;
    for name in &options.names {
        let full = Name::parse(name)?.tagged();
        println!("built {} ({})", Name::familiar(&full), image.id);
    }
    Ok(())
}
