//! Container logs in the format of the container runtime interface.
//!
//! A line is `TIME STREAM TAG TEXT`; the tag is `F` for a whole line and `P` for a part of one that
//! goes on (longer than 16 KiB, or without an end when the stream ended). Output that the disk does
//! not take is dropped and counted; the container goes on.

use crate::spec::LogSpec;
use std::fs::File;
use std::io::{self, Write};
use std::path::PathBuf;

/// Longest text of one line.
const LONGEST: usize = 16 * 1024;

const STREAMS: [&str; 2] = ["stdout", "stderr"];

/// One container's log.
#[derive(Debug)]
pub(super) struct Log {
    spec: LogSpec,
    file: Option<File>,
    size: u64,
    /// The unfinished line of each stream.
    open: [Vec<u8>; 2],
    /// Bytes of lines that the disk did not take.
    pub dropped: u64,
    failing: bool,
}

impl Log {
    /// Opens the log to append.
    pub fn open(spec: LogSpec) -> io::Result<Self> {
        let mut log = Self {
            spec,
            file: None,
            size: 0,
            open: Default::default(),
            dropped: 0,
            failing: false,
        };
        log.reopen()?;
        Ok(log)
    }

    /// Bytes of the current file.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The part of a stream's last line that is not in the file yet.
    pub fn unfinished(&self, stream: usize) -> &[u8] {
        &self.open[stream]
    }

    fn reopen(&mut self) -> io::Result<()> {
        let file = File::options().append(true).create(true).open(&self.spec.path)?;
        self.size = file.metadata()?.len();
        self.file = Some(file);
        Ok(())
    }

    /// Takes output of a stream (0 stdout, 1 stderr) that was read at `now`.
    pub fn write(&mut self, stream: usize, mut bytes: &[u8], now: i128) {
        let mut batch = Vec::with_capacity(bytes.len() + 128);
        let time = timestamp(now);
        let open = &mut self.open[stream];
        while !bytes.is_empty() {
            let room = LONGEST - open.len();
            match bytes.iter().take(room).position(|byte| *byte == b'\n') {
                Some(end) => {
                    line(&mut batch, &time, stream, 'F', &[open, &bytes[..end]]);
                    open.clear();
                    bytes = &bytes[end + 1..];
                }
                None if bytes.len() >= room => {
                    line(&mut batch, &time, stream, 'P', &[open, &bytes[..room]]);
                    open.clear();
                    bytes = &bytes[room..];
                }
                None => {
                    open.extend_from_slice(bytes);
                    bytes = &[];
                }
            }
        }
        self.put(&batch);
    }

    /// Writes what is left of the stream's last line.
    pub fn finish(&mut self, stream: usize, now: i128) {
        let rest = std::mem::take(&mut self.open[stream]);
        if !rest.is_empty() {
            let mut batch = Vec::new();
            line(&mut batch, &timestamp(now), stream, 'P', &[&rest]);
            self.put(&batch);
        }
    }

    /// Writes lines, rotating wherever the size would be gone over.
    fn put(&mut self, mut batch: &[u8]) {
        while !batch.is_empty() {
            let room = match self.spec.max_size {
                0 => batch.len(),
                max => usize::try_from(max.saturating_sub(self.size)).unwrap_or(usize::MAX),
            };
            let end = |bytes: &[u8]| bytes.iter().rposition(|byte| *byte == b'\n');
            let fitting = match end(&batch[..room.min(batch.len())]) {
                Some(last) => last + 1,
                None if self.size > 0 && self.rotate() => continue,
                // One line that is longer than a whole file, or a file that cannot be rotated.
                None => {
                    batch.iter().position(|byte| *byte == b'\n').map_or(batch.len(), |at| at + 1)
                }
            };
            self.put_piece(&batch[..fitting]);
            batch = &batch[fitting..];
        }
    }

    fn put_piece(&mut self, batch: &[u8]) {
        let length = batch.len() as u64;
        let (written, error) = self.append(batch);
        self.size += written as u64;
        match error {
            None => {
                if std::mem::take(&mut self.failing) {
                    tracing::info!(
                        "log {} is written again; {} bytes were dropped",
                        self.spec.path.display(),
                        self.dropped
                    );
                }
            }
            Some(error) => {
                self.dropped += length - written as u64;
                if !std::mem::replace(&mut self.failing, true) {
                    tracing::warn!(
                        "log {} cannot be written, output is dropped: {error}",
                        self.spec.path.display()
                    );
                }
            }
        }
    }

    /// Writes as many whole lines as the disk takes.
    fn append(&mut self, batch: &[u8]) -> (usize, Option<io::Error>) {
        if let Err(injected) = dhow_fault::point("runtime::log_write") {
            return (0, Some(injected.into()));
        }
        if self.file.is_none()
            && let Err(error) = self.reopen()
        {
            return (0, Some(error));
        }
        let Some(file) = &mut self.file else { return (0, None) };
        let mut written = 0;
        while written < batch.len() {
            match file.write(&batch[written..]) {
                Ok(count) if count > 0 => written += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                failed => {
                    let whole = batch[..written].iter().rposition(|byte| *byte == b'\n');
                    let whole = whole.map_or(0, |end| end + 1);
                    let error = failed.err().unwrap_or_else(|| io::ErrorKind::WriteZero.into());
                    // Lines are whole or absent.
                    if let Err(error) = file.set_len(self.size + whole as u64) {
                        tracing::warn!("log {}: {error}", self.spec.path.display());
                    }
                    return (whole, Some(error));
                }
            }
        }
        (written, None)
    }

    /// Whether a new, empty file is there.
    fn rotate(&mut self) -> bool {
        let path = &self.spec.path;
        let numbered = |number: u32| -> PathBuf {
            let mut name = path.as_os_str().to_owned();
            name.push(format!(".{number}"));
            PathBuf::from(name)
        };
        let last = self.spec.max_files.max(1) - 1;
        let moved = if last == 0 {
            std::fs::remove_file(path)
        } else {
            let _ = std::fs::remove_file(numbered(last));
            for number in (1..last).rev() {
                let _ = std::fs::rename(numbered(number), numbered(number + 1));
            }
            std::fs::rename(path, numbered(1))
        };
        if let Err(error) = moved {
            tracing::warn!("log {} cannot be rotated: {error}", path.display());
            return false;
        }
        self.file = None;
        if let Err(error) = self.reopen() {
            tracing::warn!("log {} cannot be opened: {error}", self.spec.path.display());
            // What was counted belongs to the file that has gone.
            self.size = 0;
        }
        true
    }
}

fn line(batch: &mut Vec<u8>, time: &str, stream: usize, tag: char, parts: &[&[u8]]) {
    batch.extend_from_slice(time.as_bytes());
    batch.push(b' ');
    batch.extend_from_slice(STREAMS[stream].as_bytes());
    batch.push(b' ');
    batch.push(tag as u8);
    batch.push(b' ');
    for part in parts {
        batch.extend_from_slice(part);
    }
    batch.push(b'\n');
}

/// RFC 3339 in UTC with nine decimals, of nanoseconds since the epoch.
pub(super) fn timestamp(nanos: i128) -> String {
    let seconds = i64::try_from(nanos.div_euclid(1_000_000_000)).unwrap_or(0);
    let fraction = nanos.rem_euclid(1_000_000_000);
    let days = seconds.div_euclid(86_400);
    let second = seconds.rem_euclid(86_400);
    // Days are counted from 1 March of year 0 in eras of 400 years, so that leap days come last.
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{fraction:09}Z",
        second / 3600,
        second / 60 % 60,
        second % 60
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i128 = 1_767_323_045_123_456_789;

    /// Faults are armed for the whole process: whoever writes a log does so alone.
    fn alone() -> std::sync::MutexGuard<'static, ()> {
        static ALONE: std::sync::Mutex<()> = std::sync::Mutex::new(());
        ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn log(name: &str, max_size: u64, max_files: u32) -> (Log, PathBuf) {
        let dir = std::env::temp_dir().join(format!("dhow-log-{}-{name}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(&dir).unwrap();
        let path = dir.join("0.log");
        (Log::open(LogSpec { path, max_size, max_files }).unwrap(), dir)
    }

    #[test]
    fn times_are_written_in_utc() {
        assert_eq!(timestamp(NOW), "2026-01-02T03:04:05.123456789Z");
        assert_eq!(timestamp(0), "1970-01-01T00:00:00.000000000Z");
        assert_eq!(timestamp(951_782_400_000_000_000), "2000-02-29T00:00:00.000000000Z");
    }

    #[test]
    fn lines_are_whole_or_marked_as_parts() {
        let _alone = alone();
        let (mut log, dir) = log("parts", 0, 1);
        log.write(0, b"one\ntw", NOW);
        log.write(1, b"err\n", NOW);
        log.write(0, b"o\n", NOW);
        let long = vec![b'x'; LONGEST + 5];
        log.write(0, &long, NOW);
        log.write(0, b"\nend", NOW);
        log.finish(0, NOW);
        let text = std::fs::read_to_string(&log.spec.path).unwrap();
        let lines: Vec<&str> = text.lines().map(|line| &line[31..]).collect();
        assert_eq!(lines[..3], ["stdout F one", "stderr F err", "stdout F two"]);
        assert_eq!(lines[3].len(), "stdout P ".len() + LONGEST);
        assert_eq!(lines[4..], ["stdout F xxxxx", "stdout P end"]);
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn a_full_log_is_rotated_and_the_oldest_goes() {
        let _alone = alone();
        let (mut log, dir) = log("rotate", 100, 3);
        for number in 0..12 {
            log.write(0, format!("line {number}\n").as_bytes(), NOW);
        }
        let mut names: Vec<_> = std::fs::read_dir(&dir)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(names, ["0.log", "0.log.1", "0.log.2"]);
        let text = std::fs::read_to_string(dir.join("0.log")).unwrap();
        assert!(text.ends_with("line 11\n"));
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn a_disk_that_takes_nothing_costs_lines_and_their_number_is_known() {
        let _alone = alone();
        let (mut log, dir) = log("full", 0, 1);
        log.write(0, b"one\n", NOW);
        let full = dhow_fault::Effect::Fail("no space left".into());
        dhow_fault::arm("runtime::log_write", full, 0, 1, std::time::Duration::from_secs(60));
        log.write(0, b"two\n", NOW);
        assert_eq!(log.dropped, "2026-01-02T03:04:05.123456789Z stdout F two\n".len() as u64);
        log.write(0, b"three\n", NOW);
        let text = std::fs::read_to_string(&log.spec.path).unwrap();
        let lines: Vec<&str> = text.lines().map(|line| &line[31..]).collect();
        assert_eq!(lines, ["stdout F one", "stdout F three"]);
        std::fs::remove_dir_all(dir).unwrap();
    }
}
