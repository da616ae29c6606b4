//! Reading container logs: CRI log files across rotation, from the end, and as they grow.
//!
//! Each line is `TIME STREAM TAG TEXT`; tag `P` says that the line goes on in the next. A full file
//! `N.log` was renamed to `N.log.1`, that one to `N.log.2`, and so on.

use bytes::{BufMut, Bytes, BytesMut};
use dhow_intents::{LogRequest, StreamError};
use rustix::fs::inotify;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, watch};

/// Size of the pieces that files are read in.
const PIECE: usize = 64 * 1024;

/// One parsed line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line<'a> {
    /// RFC 3339 time as written.
    pub time: &'a str,
    /// `stdout` or `stderr`.
    pub stream: &'a str,
    /// The line goes on in the next.
    pub partial: bool,
    /// The text without its end of line.
    pub text: &'a [u8],
}

/// Parses one line without its end of line; `None` when it is no log line.
pub fn parse(line: &[u8]) -> Option<Line<'_>> {
    let mut parts = line.splitn(4, |b| *b == b' ');
    let time = std::str::from_utf8(parts.next()?).ok()?;
    let stream = std::str::from_utf8(parts.next()?).ok()?;
    let tag = parts.next()?;
    let text = parts.next().unwrap_or_default();
    Some(Line { time, stream, partial: tag == b"P", text })
}

/// The files of one instance that exist, oldest first.
fn files(path: &Path) -> Vec<PathBuf> {
    let mut all: Vec<PathBuf> = (1..)
        .map(|n| {
            let mut name = path.as_os_str().to_owned();
            name.push(format!(".{n}"));
            PathBuf::from(name)
        })
        .take_while(|p| p.exists())
        .collect();
    all.reverse();
    all.push(path.to_owned());
    all
}

/// Where the last `lines` lines begin: which file, and the offset in it.
fn tail(files: &[File], lines: u64) -> io::Result<(usize, u64)> {
    let mut left = lines;
    for (index, file) in files.iter().enumerate().rev() {
        let mut end = file.metadata()?.len();
        let mut last = true;
        let mut piece = vec![0; PIECE];
        if left == 0 {
            return Ok((index, end));
        }
        while end > 0 {
            let start = end.saturating_sub(PIECE as u64);
            let size = usize::try_from(end - start).unwrap_or(PIECE);
            file.read_exact_at(&mut piece[..size], start)?;
            for at in (0..size).rev().filter(|at| piece[*at] == b'\n') {
                // The very last byte ends the last line and begins none.
                if std::mem::replace(&mut last, false) {
                    continue;
                }
                left -= 1;
                if left == 0 {
                    return Ok((index, start + at as u64 + 1));
                }
            }
            end = start;
        }
        if file.metadata()?.len() > 0 {
            left = left.saturating_sub(1);
            if left == 0 {
                return Ok((index, 0));
            }
        }
    }
    Ok((0, 0))
}

/// Turns raw pieces of files into what the caller asked for.
struct Filter {
    request: LogRequest,
    rest: BytesMut,
    left: Option<u64>,
    fresh: bool,
}

impl Filter {
    fn new(request: LogRequest) -> Self {
        let left = request.limit_bytes;
        Self { request, rest: BytesMut::new(), left, fresh: true }
    }

    /// Takes a piece; returns what it gives, of whole lines.
    fn take(&mut self, piece: &[u8]) -> Bytes {
        self.rest.extend_from_slice(piece);
        let mut out = BytesMut::new();
        while let Some(end) = self.rest.iter().position(|b| *b == b'\n') {
            let line = self.rest.split_to(end + 1);
            let Some(line) = parse(&line[..end]) else { continue };
            self.line(&line, &mut out);
        }
        if let Some(left) = &mut self.left {
            out.truncate(usize::try_from(*left).unwrap_or(usize::MAX));
            *left -= out.len() as u64;
        }
        out.freeze()
    }

    fn line(&mut self, line: &Line<'_>, out: &mut BytesMut) {
        let wanted = self.request.stream.as_str();
        if !wanted.is_empty() && wanted != line.stream {
            return;
        }
        if let Some(since) = self.request.since {
            let at = line
                .time
                .parse::<jiff::Timestamp>()
                .map_or(i128::MAX, jiff::Timestamp::as_nanosecond);
            if at < since {
                return;
            }
        }
        if self.request.timestamps && self.fresh {
            out.put_slice(line.time.as_bytes());
            out.put_u8(b' ');
        }
        out.put_slice(line.text);
        if !line.partial {
            out.put_u8(b'\n');
        }
        self.fresh = !line.partial;
    }

    fn full(&self) -> bool {
        self.left == Some(0)
    }
}

/// Delivers a log into a channel. `running` holds true until the instance has ended; with `end` only so
/// many bytes of the newest file are read.
///
/// # Errors
/// When the log does not exist or cannot be read.
pub fn read(
    path: PathBuf,
    request: LogRequest,
    running: watch::Receiver<bool>,
    end: Option<u64>,
) -> Result<mpsc::Receiver<Bytes>, StreamError> {
    let fail = |e: io::Error| StreamError::Failed(format!("read log {}: {e}", path.display()));
    // Before the files are opened, so that nothing that is written meanwhile is missed. An instance
    // that has ended has everything in its log: the launcher writes it before it tells the end.
    let follow = request.follow && *running.borrow();
    let watched = if follow { Some(Watched::new(&path).map_err(fail)?) } else { None };
    let mut opened = Vec::new();
    for file in files(&path) {
        match File::open(&file) {
            Ok(file) => opened.push(file),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(fail(error)),
        }
    }
    let (sender, receiver) = mpsc::channel(16);
    tokio::spawn(async move {
        let mut reader = Reader { path, filter: Filter::new(request), sender, running, end };
        if let Err(error) = reader.run(opened, watched).await {
            tracing::debug!(path = %reader.path.display(), %error, "log reading ended");
        }
    });
    Ok(receiver)
}

struct Reader {
    path: PathBuf,
    filter: Filter,
    sender: mpsc::Sender<Bytes>,
    running: watch::Receiver<bool>,
    /// How much of the newest file is read.
    end: Option<u64>,
}

impl Reader {
    async fn run(&mut self, mut files: Vec<File>, watched: Option<Watched>) -> io::Result<()> {
        if let Some(lines) = self.filter.request.tail_lines {
            let (index, offset) = tail(&files, lines)?;
            files.drain(..index.min(files.len()));
            if let Some(first) = files.first_mut() {
                first.seek(SeekFrom::Start(offset))?;
            }
        }
        let mut current = None;
        let newest = files.len().saturating_sub(1);
        for (number, mut file) in files.into_iter().enumerate() {
            let end = self.end.filter(|_| number == newest);
            if !self.drain(&mut file, end).await? {
                return Ok(());
            }
            current = Some(file);
        }
        let Some(watched) = watched else { return Ok(()) };
        self.follow(current, &watched).await
    }

    async fn follow(&mut self, mut current: Option<File>, watched: &Watched) -> io::Result<()> {
        loop {
            let over = !*self.running.borrow_and_update();
            if current.is_none() {
                current = File::open(&self.path).ok();
            }
            if let Some(file) = &mut current {
                if !self.drain(file, None).await? {
                    return Ok(());
                }
                // Rotated: the rest of the old file is read, the new one begins.
                let named = std::fs::metadata(&self.path).map(|m| m.ino()).ok();
                if named.is_some() && named != Some(file.metadata()?.ino()) {
                    current = None;
                    continue;
                }
            }
            if over {
                return Ok(());
            }
            tokio::select! {
                changed = watched.changed() => changed?,
                // An error says that the instance was forgotten: it has ended.
                ended = self.running.changed() => if ended.is_err() {
                    if let Some(file) = &mut current {
                        self.drain(file, None).await?;
                    }
                    return Ok(());
                },
                () = self.sender.closed() => return Ok(()),
            }
        }
    }

    /// Sends what a file holds from its position on. Returns whether more is wanted.
    async fn drain(&mut self, file: &mut File, end: Option<u64>) -> io::Result<bool> {
        let mut piece = vec![0; PIECE];
        let mut file = file.take(end.unwrap_or(u64::MAX));
        loop {
            let count = file.read(&mut piece)?;
            if count == 0 {
                return Ok(!self.filter.full());
            }
            let out = self.filter.take(&piece[..count]);
            if !out.is_empty() && self.sender.send(out).await.is_err() {
                return Ok(false);
            }
            if self.filter.full() {
                return Ok(false);
            }
        }
    }
}

/// Tells when something is written to, made or renamed in a log's directory.
///
/// The kernel takes some 15 ms to close it, so that is left to a thread that nobody waits for.
struct Watched {
    fd: Option<AsyncFd<OwnedFd>>,
}

impl Drop for Watched {
    fn drop(&mut self) {
        let fd = self.fd.take().map(AsyncFd::into_inner);
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn_blocking(move || drop(fd));
        }
    }
}

impl Watched {
    fn new(path: &Path) -> io::Result<Self> {
        use inotify::{CreateFlags, WatchFlags};
        let dir = path.parent().unwrap_or(Path::new("/"));
        let fd = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        inotify::add_watch(
            &fd,
            dir,
            WatchFlags::MODIFY | WatchFlags::CREATE | WatchFlags::MOVED_TO,
        )?;
        Ok(Self { fd: Some(super::fd::watch(fd)?) })
    }

    async fn changed(&self) -> io::Result<()> {
        // It is there until it is dropped.
        let Some(fd) = &self.fd else { return Ok(()) };
        let mut guard = fd.readable().await?;
        let mut events = [0; 4096];
        // What happened does not matter: the files are looked at anew.
        while rustix::io::read(fd.get_ref(), &mut events).is_ok() {}
        guard.clear_ready();
        Ok(())
    }
}

/// The text of a log's last `lines` lines, of at most `bytes` bytes from their end.
///
/// # Errors
/// When the log cannot be read.
pub fn tail_text(path: &Path, lines: u64, bytes: u64) -> io::Result<String> {
    let mut file = File::open(path)?;
    let (_, offset) = tail(&[file.try_clone()?], lines)?;
    file.seek(SeekFrom::Start(offset))?;
    let mut raw = Vec::new();
    file.read_to_end(&mut raw)?;
    let out = Filter::new(LogRequest::default()).take(&raw);
    let from = out.len().saturating_sub(usize::try_from(bytes).unwrap_or(usize::MAX));
    Ok(String::from_utf8_lossy(&out[from..]).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn log(dir: &Path, name: &str, lines: std::ops::Range<u32>) {
        let mut file = File::create(dir.join(name)).unwrap();
        for n in lines {
            writeln!(file, "2026-01-02T03:04:{:02}.000000000Z stdout F line {n}", n % 60).unwrap();
        }
    }

    async fn collect(path: &Path, request: LogRequest) -> String {
        let (_alive, running) = watch::channel(false);
        let mut receiver = read(path.to_owned(), request, running, None).unwrap();
        let mut all = Vec::new();
        while let Some(piece) = receiver.recv().await {
            all.extend(piece);
        }
        String::from_utf8(all).unwrap()
    }

    #[tokio::test]
    async fn a_log_is_read_across_its_rotated_files() {
        let dir = tempfile::tempdir().unwrap();
        log(dir.path(), "0.log.2", 0..2);
        log(dir.path(), "0.log.1", 2..4);
        log(dir.path(), "0.log", 4..6);
        let path = dir.path().join("0.log");
        let all = collect(&path, LogRequest::default()).await;
        assert_eq!(all, (0..6).map(|n| format!("line {n}\n")).collect::<String>());
        for (lines, expected) in
            [(0, ""), (1, "line 5\n"), (2, "line 4\nline 5\n"), (3, "line 3\nline 4\nline 5\n")]
        {
            let request = LogRequest { tail_lines: Some(lines), ..LogRequest::default() };
            assert_eq!(collect(&path, request).await, expected, "{lines}");
        }
        let request = LogRequest { tail_lines: Some(99), ..LogRequest::default() };
        assert_eq!(collect(&path, request).await, all);
    }

    #[tokio::test]
    async fn since_limit_and_timestamps_shape_the_answer() {
        let dir = tempfile::tempdir().unwrap();
        log(dir.path(), "0.log", 0..3);
        let path = dir.path().join("0.log");
        let since = "2026-01-02T03:04:02Z".parse::<jiff::Timestamp>().unwrap().as_nanosecond();
        let request = LogRequest { since: Some(since), timestamps: true, ..LogRequest::default() };
        assert_eq!(collect(&path, request).await, "2026-01-02T03:04:02.000000000Z line 2\n");
        let request = LogRequest { limit_bytes: Some(9), ..LogRequest::default() };
        assert_eq!(collect(&path, request).await, "line 0\nli");
    }

    #[test]
    fn partial_lines_are_joined() {
        let raw = b"t stdout P ab\nt stdout F c\nt stderr F x\n";
        let mut filter =
            Filter::new(LogRequest { stream: "stdout".into(), ..LogRequest::default() });
        assert_eq!(&filter.take(raw)[..], b"abc\n");
        assert_eq!(
            parse(b"t stdout F "),
            Some(Line { time: "t", stream: "stdout", partial: false, text: b"" })
        );
        assert_eq!(parse(b"nonsense"), None);
    }

    #[tokio::test]
    async fn a_followed_log_delivers_what_is_appended_and_survives_rotation() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        log(dir.path(), "0.log", 0..1);
        let (alive, running) = watch::channel(true);
        let request = LogRequest { follow: true, ..LogRequest::default() };
        let mut receiver = read(path.clone(), request, running, None).unwrap();
        assert_eq!(&receiver.recv().await.unwrap()[..], b"line 0\n");
        let mut file = File::options().append(true).open(&path).unwrap();
        writeln!(file, "t stdout F more").unwrap();
        assert_eq!(&receiver.recv().await.unwrap()[..], b"more\n");
        std::fs::rename(&path, dir.path().join("0.log.1")).unwrap();
        log(dir.path(), "0.log", 7..8);
        assert_eq!(&receiver.recv().await.unwrap()[..], b"line 7\n");
        alive.send(false).unwrap();
        assert_eq!(receiver.recv().await, None);
    }

    #[test]
    fn the_end_of_a_log_as_text() {
        let dir = tempfile::tempdir().unwrap();
        log(dir.path(), "0.log", 0..100);
        let path = dir.path().join("0.log");
        assert_eq!(tail_text(&path, 2, 100).unwrap(), "line 98\nline 99\n");
        assert_eq!(tail_text(&path, 2, 3).unwrap(), "99\n");
    }
}
