//! One fresh store and context per test, and proof that nothing is left of a build.

use dhow_builder::{Error, Event, Options};
use dhow_images::{Image, Images};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

pub type Test = (&'static str, fn(&World));

/// Lists tests as `tests![name, ...]`.
#[macro_export]
macro_rules! tests {
    ($($name:ident),* $(,)?) => {
        pub const TESTS: &[$crate::harness::Test] = &[
            $((concat!(module_path!(), "::", stringify!($name)), $name)),*
        ];
    };
}

pub struct World {
    pub dir: PathBuf,
    pub images: Images,
    pub cgroup: String,
}

/// What a build said.
#[derive(Debug, Default)]
pub struct Said {
    pub steps: Vec<String>,
    pub output: String,
    pub warnings: Vec<String>,
}

impl Said {
    pub fn ran(&self) -> Vec<&str> {
        self.steps
            .iter()
            .filter(|s| !s.ends_with("(cached)") && !s.starts_with("FROM"))
            .map(String::as_str)
            .collect()
    }
}

impl World {
    pub fn new(name: &str) -> Self {
        let cgroup = format!("dhow-test-{}-{name}", std::process::id());
        Self::at(&std::env::temp_dir().join(&cgroup), &cgroup)
    }

    pub fn at(dir: &Path, cgroup: &str) -> Self {
        std::fs::create_dir_all(dir.join("context")).unwrap();
        let images = Images::open(&dir.join("images")).unwrap();
        Self { dir: dir.to_path_buf(), images, cgroup: cgroup.to_owned() }
    }

    /// Writes a file of the context.
    pub fn write(&self, path: &str, text: impl AsRef<[u8]>) -> PathBuf {
        let path = self.dir.join("context").join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
        path
    }

    pub fn options(&self) -> Options {
        let (stopper, stop) = tokio::sync::watch::channel(false);
        drop(stopper);
        Options {
            context: self.dir.join("context"),
            dockerfile: None,
            names: vec!["test".into()],
            arguments: vec![],
            target: None,
            no_cache: false,
            runtime: dhow_runtime::Config {
                dir: self.dir.join("run"),
                binary: std::env::current_exe().unwrap(),
                cgroup: self.cgroup.clone(),
            },
            stop,
        }
    }

    /// Builds with all that there is to say about it.
    pub fn build_with(&self, options: &Options) -> (Result<Image, Error>, Said) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let mut said = Said::default();
        let mut output = Vec::new();
        let mut report = |event: Event<'_>| match event {
            Event::Step { text, cached, .. } => {
                said.steps.push(format!("{text}{}", if cached { " (cached)" } else { "" }));
            }
            Event::Output(bytes) => output.extend_from_slice(bytes),
            Event::Warning(text) => said.warnings.push(text.to_owned()),
        };
        let built = runtime.block_on(dhow_builder::build(&self.images, options, &mut report));
        said.output = String::from_utf8_lossy(&output).into_owned();
        (built, said)
    }

    pub fn build(&self, dockerfile: &str) -> Image {
        self.write("Dockerfile", dockerfile);
        let (built, said) = self.build_with(&self.options());
        built.unwrap_or_else(|e| panic!("{e}\n{said:#?}"))
    }

    pub fn refused(&self, dockerfile: &str) -> String {
        self.write("Dockerfile", dockerfile);
        self.build_with(&self.options()).0.unwrap_err().to_string()
    }

    /// An image `box` with a shell and some users.
    pub fn base(&self) {
        let context = self.dir.join("base");
        for dir in ["etc", "tmp"] {
            std::fs::create_dir_all(context.join(dir)).unwrap();
        }
        let applets = [
            "sh", "cat", "echo", "id", "ls", "mkdir", "rm", "env", "test", "stat", "sleep",
            "touch", "chmod", "pwd", "mv", "grep", "wc", "ip",
        ];
        dhow_harness::install_busybox(&context.join("bin"), &applets);
        std::fs::write(
            context.join("etc/passwd"),
            "root:x:0:0::/:/bin/sh\nweb:x:33:34::/tmp:/bin/sh\n",
        )
        .unwrap();
        std::fs::write(context.join("etc/group"), "root:x:0:\nweb:x:34:\nlogs:x:40:\n").unwrap();
        std::fs::write(context.join("Dockerfile"), "FROM scratch\nCOPY . /\nCMD [\"/bin/sh\"]\n")
            .unwrap();
        std::fs::write(context.join(".dockerignore"), "Dockerfile\n.dockerignore\n").unwrap();
        let options = Options { context, names: vec!["box".into()], ..self.options() };
        self.build_with(&options).0.unwrap();
    }

    /// Shows the root file system of an image.
    pub fn look<T>(&self, image: &Image, look: impl FnOnce(&Path) -> T) -> T {
        let dirs = ["upper", "work"].map(|name| self.dir.join("look").join(name));
        dirs.iter().for_each(|dir| std::fs::create_dir_all(dir).unwrap());
        let root = dhow_kernel::mount::overlay(&image.layers, &dirs[0], &dirs[1], "test").unwrap();
        let seen = look(Path::new(&format!("/proc/self/fd/{}", root.as_raw_fd())));
        drop(root);
        std::fs::remove_dir_all(self.dir.join("look")).unwrap();
        seen
    }

    pub fn text(&self, image: &Image, path: &str) -> String {
        self.look(image, |root| std::fs::read_to_string(root.join(path)))
            .unwrap_or_else(|e| panic!("{path}: {e}"))
    }

    /// All paths below a directory of the image, sorted; directories end with a slash.
    pub fn paths(&self, image: &Image, below: &str) -> Vec<String> {
        fn walk(dir: &Path, prefix: &str, found: &mut Vec<String>) {
            let mut entries: Vec<_> = std::fs::read_dir(dir).unwrap().map(Result::unwrap).collect();
            entries.sort_by_key(std::fs::DirEntry::file_name);
            for entry in entries {
                let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
                if entry.file_type().unwrap().is_dir() {
                    found.push(format!("{name}/"));
                    walk(&entry.path(), &format!("{name}/"), found);
                } else {
                    found.push(name);
                }
            }
        }
        self.look(image, |root| {
            let mut found = Vec::new();
            walk(&root.join(below), "", &mut found);
            found
        })
    }

    /// The whole configuration of an image.
    pub fn config(&self, image: &Image) -> serde_json::Value {
        self.images.layers(&image.id).unwrap().1
    }

    /// What a build may have left.
    fn leftovers(&self) -> Vec<String> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir(self.dir.join("images/tmp")).unwrap() {
            found.push(format!("file {}", entry.unwrap().path().display()));
        }
        found.extend(dhow_harness::leftovers(&self.dir, &self.cgroup));
        if self.dir.join("run/launcher.sock").exists() {
            found.push("launcher.sock".into());
        }
        found
    }

    fn tear_down(&self) -> Vec<String> {
        // The launcher answers just before it ends.
        let end = Instant::now() + Duration::from_secs(20);
        loop {
            let found = self.leftovers();
            if found.is_empty() {
                std::fs::remove_dir_all(&self.dir).unwrap();
                return found;
            }
            if Instant::now() > end {
                return found;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

pub fn run_all(tests: &[Test]) -> ! {
    dhow_harness::run(dhow_harness::chosen(tests), |name, test| {
        let world = World::new(&name.replace("::", "-"));
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| test(&world)));
        let left = world.tear_down();
        match result {
            Err(_) => Err("see above".to_owned()),
            Ok(()) if !left.is_empty() => Err(format!("left behind: {left:#?}")),
            Ok(()) => Ok(()),
        }
    })
}
