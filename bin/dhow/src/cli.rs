//! The command line: every command, its flags and an example each.

use crate::commands::config;
use crate::config::{DEFAULT_DATA_DIR, Flags};
use crate::print::Output;
use clap::{Args, Parser, Subcommand};
use std::path::PathBuf;

/// A microservices platform in one binary.
#[derive(Debug, Parser)]
#[command(name = "dhow", version, propagate_version = true, max_term_width = 100)]
pub struct Cli {
    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

/// Which platform a command talks to.
#[derive(Debug, Clone, Args)]
pub struct Target {
    /// The platform's data directory
    #[arg(long, value_name = "DIR", env = "DHOW_DATA_DIR", default_value = DEFAULT_DATA_DIR)]
    pub data_dir: PathBuf,
}

/// Everything that dhow does.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Start the platform on this machine: control plane and node
    #[command(
        after_help = "Example: dhow up --detach && eval \"$(dhow env)\" && kubectl get nodes"
    )]
    Up {
        #[command(flatten)]
        target: Target,
        #[command(flatten)]
        flags: Flags,
        /// Return when the platform answers and leave it running
        #[arg(long)]
        detach: bool,
    },
    /// Make this machine a server of a platform that runs
    #[command(
        after_help = "Example: dhow join https://10.0.0.1:6443 --token \"$(ssh 10.0.0.1 dhow token)\" --server --detach"
    )]
    Join {
        #[command(flatten)]
        target: Target,
        #[command(flatten)]
        request: crate::join::Request,
        /// Return when the platform answers and leave it running
        #[arg(long)]
        detach: bool,
    },
    /// Print the token that other machines join with: whoever has it can read everything
    #[command(after_help = "Example: dhow token")]
    Token {
        #[command(flatten)]
        target: Target,
    },
    /// Stop the platform and its containers
    #[command(after_help = "Example: dhow down --purge")]
    Down {
        #[command(flatten)]
        target: Target,
        /// Remove every trace: data, links, rules, mounts, control groups
        #[arg(long)]
        purge: bool,
    },
    /// Print shell exports that point clients at the platform
    #[command(after_help = "Example: eval \"$(dhow env)\"")]
    Env {
        #[command(flatten)]
        target: Target,
    },
    /// Show machines, store, workloads and networks on one screen
    #[command(after_help = "Example: dhow status --output json")]
    Status {
        #[command(flatten)]
        target: Target,
        /// How to print
        #[arg(long, short, value_enum, default_value_t)]
        output: Output,
    },
    /// Run one container
    #[command(after_help = "Example: dhow run --rm -it busybox sh")]
    Run(Run),
    /// List containers
    #[command(after_help = "Example: dhow ps --all")]
    Ps {
        #[command(flatten)]
        target: Target,
        /// Also those that have ended
        #[arg(long, short)]
        all: bool,
        /// How to print
        #[arg(long, short, value_enum, default_value_t)]
        output: Output,
    },
    /// Print a container's output
    #[command(after_help = "Example: dhow logs --follow web")]
    Logs {
        #[command(flatten)]
        target: Target,
        /// Keep printing as output appears
        #[arg(long, short)]
        follow: bool,
        /// Only the last so many lines
        #[arg(long, value_name = "N")]
        tail: Option<u64>,
        /// Namespace
        #[arg(long, short, default_value = "default")]
        namespace: String,
        /// The container's name
        name: String,
    },
    /// Run a further command in a container
    #[command(after_help = "Example: dhow exec -it web sh")]
    Exec {
        #[command(flatten)]
        target: Target,
        /// Keep standard input open
        #[arg(long, short)]
        interactive: bool,
        /// Give it a terminal
        #[arg(long, short)]
        tty: bool,
        /// Namespace
        #[arg(long, short, default_value = "default")]
        namespace: String,
        /// The container's name
        name: String,
        /// The command and its arguments
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
        command: Vec<String>,
    },
    /// Remove containers
    #[command(after_help = "Example: dhow rm --force web")]
    Rm {
        #[command(flatten)]
        target: Target,
        /// Kill it if it runs
        #[arg(long, short)]
        force: bool,
        /// Namespace
        #[arg(long, short, default_value = "default")]
        namespace: String,
        /// The containers' names
        #[arg(required = true)]
        names: Vec<String>,
    },
    /// Apply objects from a file (server-side), for machines that have no kubectl
    #[command(after_help = "Example: dhow apply -f shop.yaml")]
    Apply {
        #[command(flatten)]
        target: Target,
        /// File or directory of YAML or JSON; `-` for standard input
        #[arg(long, short, value_name = "FILE", required = true)]
        filename: Vec<PathBuf>,
        /// Namespace for objects that name none
        #[arg(long, short, default_value = "default")]
        namespace: String,
    },
    /// Print objects, for machines that have no kubectl
    #[command(after_help = "Example: dhow get pods -A")]
    Get {
        #[command(flatten)]
        target: Target,
        /// All namespaces
        #[arg(long, short = 'A')]
        all_namespaces: bool,
        /// Namespace
        #[arg(long, short, default_value = "default")]
        namespace: String,
        /// How to print
        #[arg(long, short, value_enum, default_value_t)]
        output: Output,
        /// Resource, for example `pods`, `deploy` or `pod/web`
        resource: String,
        /// Name
        name: Option<String>,
    },
    /// Print an object and what happened to it, for machines that have no kubectl
    #[command(after_help = "Example: dhow describe pod web")]
    Describe {
        #[command(flatten)]
        target: Target,
        /// Namespace
        #[arg(long, short, default_value = "default")]
        namespace: String,
        /// Resource, for example `pod` or `pod/web`
        resource: String,
        /// Name
        name: Option<String>,
    },
    /// Delete objects, for machines that have no kubectl
    #[command(after_help = "Example: dhow delete deployment web")]
    Delete {
        #[command(flatten)]
        target: Target,
        /// Namespace
        #[arg(long, short, default_value = "default")]
        namespace: String,
        /// Resource, for example `pod` or `pod/web`
        resource: String,
        /// Name
        name: Option<String>,
    },
    /// Read and write application configuration, and make files from it
    #[command(after_help = "Example: dhow config put shop/db/host db1.internal")]
    Config {
        #[command(flatten)]
        place: config::Place,
        #[command(subcommand)]
        command: config::ConfigCommand,
    },
    /// Build, load and manage images
    #[command(after_help = "Example: dhow image build -t shop/web:v1 .")]
    Image {
        #[command(subcommand)]
        command: ImageCommand,
    },
    /// Run the store alone, with etcd's own flags
    #[command(
        after_help = "Example: dhow store --name n1 --data-dir /var/lib/store (dhow store --help lists all flags)"
    )]
    Store {
        /// etcd's flags
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        flags: Vec<String>,
    },
    /// Print a shell's completion script
    #[command(after_help = "Example: source <(dhow completion bash)")]
    Completion {
        /// The shell
        shell: clap_complete::Shell,
    },
}

/// What `dhow run` takes.
#[derive(Debug, Args)]
pub struct Run {
    #[command(flatten)]
    pub target: Target,
    /// Remove the container when it has ended
    #[arg(long)]
    pub rm: bool,
    /// Keep standard input open
    #[arg(long, short)]
    pub interactive: bool,
    /// Give it a terminal
    #[arg(long, short)]
    pub tty: bool,
    /// Leave it running and print its name
    #[arg(long, short)]
    pub detach: bool,
    /// Its name (default: made up)
    #[arg(long)]
    pub name: Option<String>,
    /// Namespace
    #[arg(long, short, default_value = "default")]
    pub namespace: String,
    /// Set an environment variable
    #[arg(long, short, value_name = "NAME=VALUE")]
    pub env: Vec<String>,
    /// Publish a port of the machine: HOST:CONTAINER
    #[arg(long, short, value_name = "HOST:CONTAINER")]
    pub publish: Vec<String>,
    /// Bind a path of the machine: HOST:CONTAINER[:ro]
    #[arg(long, short, value_name = "HOST:CONTAINER")]
    pub volume: Vec<String>,
    /// Working directory
    #[arg(long, short, value_name = "DIR")]
    pub workdir: Option<String>,
    /// User or user:group, by number
    #[arg(long, short)]
    pub user: Option<String>,
    /// Replace the image's entry point
    #[arg(long)]
    pub entrypoint: Option<String>,
    /// Most memory, for example 64Mi
    #[arg(long, short, value_name = "QUANTITY")]
    pub memory: Option<String>,
    /// Most processor time, for example 500m
    #[arg(long, value_name = "QUANTITY")]
    pub cpus: Option<String>,
    /// The image
    pub image: String,
    /// The command and its arguments (default: the image's)
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub command: Vec<String>,
}

/// What `dhow image` does.
#[derive(Debug, Subcommand)]
pub enum ImageCommand {
    /// Build an image from a Dockerfile
    #[command(after_help = "Example: dhow image build -t shop/web:v1 ./web")]
    Build {
        #[command(flatten)]
        target: Target,
        /// Name of the image
        #[arg(long, short, value_name = "NAME", required = true)]
        tag: Vec<String>,
        /// The Dockerfile (default: DIR/Dockerfile)
        #[arg(long, short, value_name = "FILE")]
        file: Option<PathBuf>,
        /// Set an ARG of the Dockerfile
        #[arg(long, value_name = "NAME=VALUE")]
        build_arg: Vec<String>,
        /// Stop at this stage
        #[arg(long = "target", value_name = "STAGE")]
        stage: Option<String>,
        /// Run every step anew
        #[arg(long)]
        no_cache: bool,
        /// The build context
        dir: PathBuf,
    },
    /// Load images from a 'docker save' or OCI archive
    #[command(after_help = "Example: docker save busybox | dhow image load")]
    Load {
        #[command(flatten)]
        target: Target,
        /// The archive (default: standard input)
        #[arg(long, short, value_name = "FILE")]
        input: Option<PathBuf>,
    },
    /// Save an image as an archive
    #[command(after_help = "Example: dhow image save -o web.tar shop/web:v1")]
    Save {
        #[command(flatten)]
        target: Target,
        /// The archive (default: standard output)
        #[arg(long, short, value_name = "FILE")]
        output: Option<PathBuf>,
        /// The image
        image: String,
    },
    /// List images
    #[command(after_help = "Example: dhow image ls --output json")]
    Ls {
        #[command(flatten)]
        target: Target,
        /// How to print
        #[arg(long, short, value_enum, default_value_t)]
        output: Output,
    },
    /// Give an image a further name
    #[command(after_help = "Example: dhow image tag shop/web:v1 shop/web:stable")]
    Tag {
        #[command(flatten)]
        target: Target,
        /// The image
        image: String,
        /// Its further name
        name: String,
    },
    /// Remove images
    #[command(after_help = "Example: dhow image rm shop/web:v1")]
    Rm {
        #[command(flatten)]
        target: Target,
        /// The images
        #[arg(required = true)]
        images: Vec<String>,
    },
}
