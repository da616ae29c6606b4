//! Tables, JSON and YAML for people.

use anyhow::Result;
use clap::ValueEnum;
use serde_json::Value;

/// How data is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Output {
    /// Columns for people
    #[default]
    Table,
    /// JSON
    Json,
    /// YAML
    Yaml,
}

/// Prints rows in columns, the first row being the heads.
pub fn table(rows: &[Vec<String>]) {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter().filter_map(|r| r.get(column)).map(|c| c.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            line.push_str(&format!("{cell:<width$}   "));
        }
        println!("{}", line.trim_end());
    }
}

/// Prints a value as JSON or YAML.
///
/// # Errors
/// When it cannot be written as YAML.
pub fn value(value: &Value, output: Output) -> Result<()> {
    match output {
        Output::Yaml => print!("{}", serde_saphyr::to_string(value)?),
        Output::Json | Output::Table => println!("{}", serde_json::to_string_pretty(value)?),
    }
    Ok(())
}

/// A size with a decimal unit, as Docker prints it.
pub fn bytes(size: u64) -> String {
    let units = ["B", "kB", "MB", "GB", "TB"];
    let mut amount = size as f64;
    let mut unit = 0;
    while amount >= 1000.0 && unit + 1 < units.len() {
        amount /= 1000.0;
        unit += 1;
    }
    match unit {
        0 => format!("{size}B"),
        _ => format!("{amount:.1}{}", units[unit]),
    }
}

/// A path as one word of a POSIX shell, whatever its name.
pub fn quoted(path: &std::path::Path) -> String {
    let text = path.display().to_string();
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:@%,=".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        return text;
    }
    // Nothing but its own kind ends a single quote.
    format!("'{}'", text.replace('\'', "'\\''"))
}

/// An error with its causes on one line. Many errors tell their cause themselves: it is not told
/// twice.
pub fn error(error: &anyhow::Error) -> String {
    let mut line = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !line.ends_with(&cause) {
            line.push_str(": ");
            line.push_str(&cause);
        }
    }
    line
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_cause_is_told_once() {
        let cause = std::io::Error::other("disk on fire");
        let error =
            anyhow::Error::new(cause).context("read x: disk on fire").context("cannot load");
        assert_eq!(super::error(&error), "cannot load: read x: disk on fire");
    }

    #[test]
    fn paths_are_one_word_of_a_shell() {
        let quoted = |text: &str| super::quoted(std::path::Path::new(text));
        assert_eq!(quoted("/var/lib/dhow"), "/var/lib/dhow");
        for name in ["/tmp/it's", "/tmp/a b", "/tmp/$(reboot)", "/tmp/\"x\"\\", "/tmp/~"] {
            let line = format!("printf %s {}", quoted(name));
            let output = std::process::Command::new("sh").args(["-c", &line]).output();
            assert_eq!(String::from_utf8_lossy(&output.unwrap().stdout), name);
        }
    }

    #[test]
    fn sizes_read_like_dockers() {
        assert_eq!(super::bytes(999), "999B");
        assert_eq!(super::bytes(1_234_000), "1.2MB");
    }
}
