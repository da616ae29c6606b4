//! What a bench found, as a table and as JSON.

use crate::workspace;
use anyhow::{Context as _, Result};
use serde_json::{Value, json};

/// Measured values of one case.
#[derive(Debug, Clone)]
pub struct Series {
    name: String,
    unit: &'static str,
    values: Vec<f64>,
}

impl Series {
    /// A case without values yet.
    pub fn new(name: impl Into<String>, unit: &'static str) -> Self {
        Self { name: name.into(), unit, values: Vec::new() }
    }

    /// Adds the value of one run.
    pub fn push(&mut self, value: f64) {
        self.values.push(value);
    }

    /// The middle value; of an even number of values the mean of the two in the middle.
    pub fn median(&self) -> f64 {
        let mut sorted = self.values.clone();
        sorted.sort_by(f64::total_cmp);
        let middle = sorted.len() / 2;
        match sorted.len() {
            0 => f64::NAN,
            n if n % 2 == 1 => sorted[middle],
            _ => f64::midpoint(sorted[middle - 1], sorted[middle]),
        }
    }

    /// How many times the values of `other`, round by round: what disturbs a round hits both.
    pub fn over(&self, other: &Self, name: &str) -> Self {
        let values = self.values.iter().zip(&other.values).map(|(own, other)| own / other);
        Self { name: name.to_owned(), unit: "times", values: values.collect() }
    }

    /// The least value, the median and the greatest one.
    pub fn spread(&self) -> (f64, f64, f64) {
        (self.min(), self.median(), self.max())
    }

    fn min(&self) -> f64 {
        self.values.iter().copied().fold(f64::NAN, f64::min)
    }

    fn max(&self) -> f64 {
        self.values.iter().copied().fold(f64::NAN, f64::max)
    }
}

/// What one bench found.
#[derive(Debug)]
pub struct Report {
    name: &'static str,
    series: Vec<Series>,
    verdicts: Vec<(String, f64, String, bool)>,
    notes: Vec<String>,
}

impl Report {
    /// An empty report of bench `name`.
    pub fn new(name: &'static str) -> Self {
        Self { name, series: Vec::new(), verdicts: Vec::new(), notes: Vec::new() }
    }

    /// Adds a case.
    pub fn add(&mut self, series: Series) {
        self.series.push(series);
    }

    /// Adds a comparison or sum: what it is, its value, the bar in words, whether it is reached.
    pub fn verdict(&mut self, what: impl Into<String>, value: f64, bar: &str, reached: bool) {
        self.verdicts.push((what.into(), value, bar.to_owned(), reached));
    }

    /// Adds a remark.
    pub fn note(&mut self, text: impl Into<String>) {
        self.notes.push(text.into());
    }

    /// Prints the table and writes `bench/NAME.json` in Cargo's target directory.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn finish(&self) -> Result<()> {
        self.print_series(|_| true);
        self.close()
    }

    /// As [`Report::finish`], for a bench that has printed the series of its cases itself: only
    /// series of which `also` is true are printed.
    ///
    /// # Errors
    /// As [`Report::finish`].
    pub fn finish_with(&self, also: impl Fn(&str) -> bool) -> Result<()> {
        self.print_series(also);
        self.close()
    }

    fn print_series(&self, wanted: impl Fn(&str) -> bool) {
        println!("\n{:<44} {:>4} {:>10} {:>10} {:>10}", self.name, "RUNS", "MIN", "MEDIAN", "MAX");
        for s in self.series.iter().filter(|s| wanted(&s.name)) {
            println!(
                "{:<44} {:>4} {:>10.2} {:>10.2} {:>10.2}  {}",
                s.name,
                s.values.len(),
                s.min(),
                s.median(),
                s.max(),
                s.unit
            );
        }
    }

    fn close(&self) -> Result<()> {
        for (what, value, bar, reached) in &self.verdicts {
            let verdict = if *reached { "reached" } else { "MISSED" };
            println!("{what:<44} {value:>15.2}   bar: {bar}: {verdict}");
        }
        if let Ok(load) = std::fs::read_to_string("/proc/loadavg") {
            let load = load.split(' ').next().unwrap_or_default();
            println!("  load of the machine in the last minute: {load}");
        }
        for note in &self.notes {
            println!("  {note}");
        }
        let folder = workspace::target().join("bench");
        std::fs::create_dir_all(&folder)
            .with_context(|| format!("cannot make {}", folder.display()))?;
        let path = folder.join(format!("{}.json", self.name));
        std::fs::write(&path, serde_json::to_vec_pretty(&self.json())?)
            .with_context(|| format!("cannot write {}", path.display()))?;
        println!("  also in {}", path.display());
        Ok(())
    }

    fn json(&self) -> Value {
        let series: Vec<Value> = self
            .series
            .iter()
            .map(|s| {
                json!({
                    "case": s.name, "unit": s.unit, "runs": s.values,
                    "min": s.min(), "median": s.median(), "max": s.max(),
                })
            })
            .collect();
        let verdicts: Vec<Value> = self
            .verdicts
            .iter()
            .map(|(what, value, bar, reached)| {
                json!({"what": what, "value": value, "bar": bar, "reached": reached})
            })
            .collect();
        json!({"bench": self.name, "series": series, "verdicts": verdicts, "notes": self.notes})
    }
}

#[cfg(test)]
mod tests {
    use super::Series;

    #[test]
    fn the_median_is_the_middle() {
        let mut series = Series::new("x", "ms");
        assert!(series.median().is_nan());
        for value in [9.0, 1.0, 5.0] {
            series.push(value);
        }
        assert_eq!((series.min(), series.median(), series.max()), (1.0, 5.0, 9.0));
        series.push(7.0);
        assert_eq!(series.median(), 6.0);
        let mut half = Series::new("y", "ms");
        for value in [18.0, 2.0, 10.0, 14.0] {
            half.push(value);
        }
        assert_eq!(half.over(&series, "y / x").values, [2.0; 4]);
    }
}
