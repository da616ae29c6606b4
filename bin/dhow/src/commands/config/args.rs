//! The command line of `dhow config`.

use crate::config::DEFAULT_DATA_DIR;
use crate::print::Output;
use clap::{Args, Subcommand, ValueEnum};
use std::path::PathBuf;

/// Which store holds the configuration.
#[derive(Debug, Clone, Args)]
pub struct Place {
    /// The platform's data directory
    #[arg(long, value_name = "DIR", env = "DHOW_DATA_DIR", default_value = DEFAULT_DATA_DIR, global = true)]
    pub data_dir: PathBuf,
    /// An etcd cluster instead of the platform in the data directory
    #[arg(
        long,
        value_name = "URL,...",
        value_delimiter = ',',
        env = "ETCDCTL_ENDPOINTS",
        global = true
    )]
    pub endpoints: Vec<String>,
    /// Authority that signs the cluster's certificates
    #[arg(long, value_name = "FILE", env = "ETCDCTL_CACERT", global = true)]
    pub cacert: Option<PathBuf>,
    /// Certificate to show to the cluster
    #[arg(long, value_name = "FILE", env = "ETCDCTL_CERT", global = true)]
    pub cert: Option<PathBuf>,
    /// Key of that certificate
    #[arg(long, value_name = "FILE", env = "ETCDCTL_KEY", global = true)]
    pub key: Option<PathBuf>,
    /// User to be to the cluster
    #[arg(
        long = "etcd-user",
        value_name = "NAME:PASSWORD",
        env = "ETCDCTL_USER",
        hide_env_values = true,
        global = true
    )]
    pub user: Option<String>,
    /// Where configuration lies in the store; all paths are below it
    #[arg(
        long,
        value_name = "KEY",
        env = "DHOW_CONFIG_PREFIX",
        default_value = "/config/",
        global = true
    )]
    pub prefix: String,
}

/// How trees are written in files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// A JSON tree
    Json,
    /// A YAML tree
    Yaml,
    /// Lines NAME=value
    Env,
}

/// What `dhow config` does.
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Write a value
    #[command(after_help = "Example: dhow config put shop/db/host db1.internal")]
    Put {
        /// Path of the key, for example shop/db/host
        path: String,
        /// The value (default: standard input)
        value: Option<String>,
        /// Read the value from this file
        #[arg(long, short, value_name = "FILE", conflicts_with = "value")]
        file: Option<PathBuf>,
        /// Only if there is no such key
        #[arg(long, conflicts_with = "if_revision")]
        create: bool,
        /// Only if the key was last written at this revision
        #[arg(long, value_name = "REVISION")]
        if_revision: Option<i64>,
    },
    /// Print a value
    #[command(after_help = "Example: dhow config get shop/db/host")]
    Get {
        /// Path of the key
        path: String,
        /// As it was at this revision of the store
        #[arg(long, value_name = "REVISION", default_value_t = 0, hide_default_value = true)]
        revision: i64,
        /// How to print: the bare value, or with its revisions
        #[arg(long, short, value_enum, default_value_t)]
        output: Output,
    },
    /// List keys
    #[command(after_help = "Example: dhow config ls shop --values")]
    Ls {
        /// Below this path (default: all)
        #[arg(default_value = "")]
        path: String,
        /// With their values
        #[arg(long)]
        values: bool,
        /// How to print
        #[arg(long, short, value_enum, default_value_t)]
        output: Output,
    },
    /// Remove keys
    #[command(after_help = "Example: dhow config rm shop/db/host")]
    Rm {
        /// Also everything below these paths
        #[arg(long, short)]
        recursive: bool,
        /// Paths of the keys
        #[arg(required = true)]
        paths: Vec<String>,
    },
    /// Follow changes as they happen
    #[command(after_help = "Example: dhow config watch shop --exec 'systemctl reload shop'")]
    Watch {
        /// This key and everything below it (default: all)
        #[arg(default_value = "")]
        path: String,
        /// First tell the changes since this revision
        #[arg(long, value_name = "REVISION", default_value_t = 0, hide_default_value = true)]
        from: i64,
        /// Run this command for each change; it finds the change in DHOW_CONFIG_EVENT, _KEY, _VALUE and _REVISION
        #[arg(long, value_name = "COMMAND")]
        exec: Option<String>,
        /// How to print
        #[arg(long, short, value_enum, default_value_t)]
        output: Output,
    },
    /// Make files from templates
    #[command(
        after_help = "Example: dhow config render nginx.conf.j2 /etc/nginx/nginx.conf --check 'nginx -t -c {}' --reload 'nginx -s reload' --watch"
    )]
    Render(Render),
    /// Write a tree of values from a file
    #[command(after_help = "Example: dhow config import settings.yaml --to shop")]
    Import {
        /// The file; `-` for standard input
        file: PathBuf,
        /// Below this path
        #[arg(long, value_name = "PATH", default_value = "")]
        to: String,
        /// How it is written (default: by the file's name)
        #[arg(long, value_enum)]
        format: Option<Format>,
        /// Remove the keys below the path that the file does not have
        #[arg(long)]
        prune: bool,
        /// Only tell what would change
        #[arg(long)]
        dry_run: bool,
    },
    /// Print a tree of values, all of one revision
    #[command(after_help = "Example: dhow config export shop --format yaml > settings.yaml")]
    Export {
        /// Below this path (default: all)
        #[arg(default_value = "")]
        path: String,
        /// How to write it
        #[arg(long, value_enum, default_value = "json")]
        format: Format,
        /// As it was at this revision of the store
        #[arg(long, value_name = "REVISION", default_value_t = 0, hide_default_value = true)]
        revision: i64,
    },
    /// Tell the history of a key
    #[command(after_help = "Example: dhow config log shop/db/host")]
    Log {
        /// Path of the key
        path: String,
        /// How to print
        #[arg(long, short, value_enum, default_value_t)]
        output: Output,
    },
    /// Compare two revisions of a key
    #[command(after_help = "Example: dhow config diff shop/db/host 12 15")]
    Diff {
        /// Path of the key
        path: String,
        /// The older revision of the store (default: before the last change)
        from: Option<i64>,
        /// The newer one (default: now)
        to: Option<i64>,
    },
    /// Write the value again that a key had before its last change
    #[command(after_help = "Example: dhow config undo shop/db/host --to 12")]
    Undo {
        /// Path of the key
        path: String,
        /// The value that it had at this revision of the store
        #[arg(long, value_name = "REVISION")]
        to: Option<i64>,
    },
}

/// What `dhow config render` takes.
#[derive(Debug, Args)]
pub struct Render {
    /// The template
    #[arg(required_unless_present = "dir", conflicts_with = "dir")]
    pub template: Option<PathBuf>,
    /// The file to make (default: standard output)
    pub dest: Option<PathBuf>,
    /// Make all files that the YAML files of this directory name
    #[arg(long = "config", value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// Permissions of the file, in octal (default: as it has, or 0644)
    #[arg(long, value_parser = mode, requires = "dest")]
    pub mode: Option<u32>,
    /// Run this command on the new file first, for which {} stands; when it fails, the old file stays
    #[arg(long, value_name = "COMMAND", requires = "dest")]
    pub check: Option<String>,
    /// Run this command when the file has changed
    #[arg(long, value_name = "COMMAND", requires = "dest")]
    pub reload: Option<String>,
    /// Go on, and make the files again when the keys that they use change
    #[arg(long)]
    pub watch: bool,
}

/// Permissions in octal.
pub fn mode(text: &str) -> Result<u32, String> {
    match u32::from_str_radix(text.trim_start_matches("0o"), 8) {
        Ok(mode) if mode <= 0o7777 => Ok(mode),
        _ => Err(format!("{text:?} is no file mode; write it in octal, for example 0640")),
    }
}
