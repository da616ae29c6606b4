//! `dhow config`: application configuration in the store, its history, and files made from it.

mod args;
mod file;
mod history;
mod render;
mod store;
mod template;
mod tree;
mod values;
mod written;

pub use args::{ConfigCommand, Place};

use anyhow::Result;

/// Runs one of the commands.
///
/// # Errors
/// One line that says what is wrong and what to do.
pub async fn run(place: &Place, command: ConfigCommand) -> Result<()> {
    use ConfigCommand as C;
    let store = store::Store::open(place).await?;
    match command {
        C::Put { path, value, file, create, if_revision } => {
            let seen = if create { Some(0) } else { if_revision };
            values::put(&store, &path, value, file.as_deref(), seen).await
        }
        C::Get { path, revision, output } => values::get(&store, &path, revision, output).await,
        C::Ls { path, values, output } => values::ls(&store, &path, values, output).await,
        C::Rm { recursive, paths } => values::rm(&store, &paths, recursive).await,
        C::Watch { path, from, exec, output } => {
            values::watch(&store, &path, from, exec.as_deref(), output).await
        }
        C::Render(args) => render::run(&store, args).await,
        C::Import { file, to, format, prune, dry_run } => {
            tree::import(&store, &file, &to, format, prune, dry_run).await
        }
        C::Export { path, format, revision } => tree::export(&store, &path, format, revision).await,
        C::Log { path, output } => history::log(&store, &path, output).await,
        C::Diff { path, from, to } => history::diff(&store, &path, from, to).await,
        C::Undo { path, to } => history::undo(&store, &path, to).await,
    }
}
