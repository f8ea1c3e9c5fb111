//! The figures: collected by size, metric and subject, checked to be complete, and printed as tables.
//!
//! A cell is `least / median / most`. A ratio is taken within each repeat, between the medians of that repeat, and then the
//! least, median and most of the ratios are shown.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

/// What is measured. The order is that of the tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Metric {
    /// From the start to the first connection.
    LoadSeconds,
    /// CPU time of the load.
    LoadCpuSeconds,
    /// Highest memory up to the end of the load.
    LoadPeakMib,
    /// Memory after the load.
    LoadedMib,
    /// Listing all rules with the system's tool.
    ListSeconds,
    /// From the PATCH to the first connection to the new endpoint.
    ChangeMillis,
    /// From the PATCH to the API server's answer.
    ChangeAnswerMillis,
    /// CPU time of a change.
    ChangeCpuMillis,
    /// From the PATCH that adds an endpoint to the first connection to it.
    AdditionMillis,
    /// CPU time of that.
    AdditionCpuMillis,
    /// Highest memory of all.
    PeakMib,
    /// Memory after the changes.
    ChangedMib,
    /// The median time of `connect`.
    ConnectMedianMicros,
    /// The time of `connect` that one in a hundred exceeds.
    ConnectSlowMicros,
    /// Connections a second.
    ConnectionsPerSecond,
}

/// All figures of one run.
#[derive(Debug)]
pub struct Measured {
    what: &'static str,
    subjects: Vec<String>,
    endpoints: usize,
    metrics: &'static [Metric],
    /// By size, metric and subject: the values of each repeat.
    values: BTreeMap<(u32, Metric, String), Vec<Vec<f64>>>,
}

/// Least, median and most.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Spread {
    least: f64,
    median: f64,
    most: f64,
}

// === impl Metric ===

impl Metric {
    /// The metrics of `sync`.
    pub const SYNC: &[Self] = &[
        Self::LoadSeconds,
        Self::LoadCpuSeconds,
        Self::LoadPeakMib,
        Self::LoadedMib,
        Self::ListSeconds,
        Self::ChangeMillis,
        Self::ChangeAnswerMillis,
        Self::ChangeCpuMillis,
        Self::AdditionMillis,
        Self::AdditionCpuMillis,
        Self::PeakMib,
        Self::ChangedMib,
    ];
    /// The metrics of `path`.
    pub const PATH: &[Self] = &[
        Self::ConnectMedianMicros,
        Self::ConnectSlowMicros,
        Self::ConnectionsPerSecond,
    ];

    fn title(self) -> &'static str {
        match self {
            Self::LoadSeconds => "cold load, s",
            Self::LoadCpuSeconds => "  its CPU time, s",
            Self::LoadPeakMib => "  highest memory, MiB",
            Self::LoadedMib => "  memory after it, MiB",
            Self::ListSeconds => "listing the rules, s",
            Self::ChangeMillis => "one endpoint replaced, ms",
            Self::ChangeAnswerMillis => "  of it the API server's answer, ms",
            Self::ChangeCpuMillis => "  its CPU time, ms",
            Self::AdditionMillis => "one endpoint more, ms",
            Self::AdditionCpuMillis => "  its CPU time, ms",
            Self::PeakMib => "  highest memory of all, MiB",
            Self::ChangedMib => "  memory after the changes, MiB",
            Self::ConnectMedianMicros => "connect, median, us",
            Self::ConnectSlowMicros => "connect, 99th per cent, us",
            Self::ConnectionsPerSecond => "connections a second",
        }
    }

    /// The title without its unit.
    fn name(self) -> &'static str {
        let title = self.title();
        title.rsplit_once(", ").map_or(title, |(name, _)| name)
    }

    /// Whether a ratio between subjects says something about them.
    fn is_compared(self) -> bool {
        self != Self::ChangeAnswerMillis
    }

    fn key(self) -> String {
        format!("{self:?}")
    }
}

// === impl Measured ===

impl Measured {
    /// No figures yet. Ratios are to the first of `subjects`.
    pub fn new(what: &'static str, subjects: &[&str], endpoints: usize, metrics: &'static [Metric]) -> Self {
        Self {
            what,
            subjects: subjects.iter().map(|&name| name.to_owned()).collect(),
            endpoints,
            metrics,
            values: BTreeMap::new(),
        }
    }

    /// Adds the values of one repeat.
    pub fn record(&mut self, size: u32, metric: Metric, subject: &str, values: Vec<f64>) {
        self.values
            .entry((size, metric, subject.to_owned()))
            .or_default()
            .push(values);
    }

    /// Checks that every cell of every table was measured.
    ///
    /// # Errors
    /// Names the first cell that holds nothing, or something that no clock or counter says.
    pub fn complete(&self) -> Result<()> {
        let sizes = self.sizes();
        ensure!(!sizes.is_empty(), "nothing was measured");
        for size in sizes {
            for metric in self.metrics {
                for subject in &self.subjects {
                    let repeats = self.repeats(size, *metric, subject);
                    let good =
                        |values: &Vec<f64>| !values.is_empty() && values.iter().all(|v| v.is_finite() && *v > 0.0);
                    ensure!(
                        !repeats.is_empty() && repeats.iter().all(good),
                        "{:?} of {subject} at {size} Services was not measured: {repeats:?}",
                        metric.title().trim()
                    );
                }
            }
        }
        Ok(())
    }

    /// Prints the tables.
    pub fn print(&self) {
        let sizes = self.sizes();
        for size in &sizes {
            println!(
                "\n{size} Services x {} endpoints; least / median / most",
                self.endpoints
            );
            print_table(&self.subject_rows(*size));
        }
        if let [small, .., large] = sizes[..] {
            println!("\nthe same from {small} to {large} Services: how many times as much, by the medians");
            print_table(&self.growth_rows(small, large));
        }
    }

    /// Writes every single value.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write(&self, file: &Path) -> Result<()> {
        let cell = |((size, metric, subject), repeats): (&(u32, Metric, String), &Vec<Vec<f64>>)| -> Value {
            json!({ "services": size, "metric": metric.key(), "subject": subject, "repeats": repeats })
        };
        let cells: Vec<Value> = self.values.iter().map(cell).collect();
        let page = json!({ "bench": self.what, "endpoints": self.endpoints, "values": cells });
        std::fs::write(file, serde_json::to_vec_pretty(&page)?)
            .with_context(|| format!("cannot write {}", file.display()))
    }

    fn sizes(&self) -> Vec<u32> {
        let mut sizes: Vec<u32> = self.values.keys().map(|(size, ..)| *size).collect();
        sizes.dedup();
        sizes
    }

    fn repeats(&self, size: u32, metric: Metric, subject: &str) -> &[Vec<f64>] {
        self.values
            .get(&(size, metric, subject.to_owned()))
            .map_or(&[], Vec::as_slice)
    }

    fn spread(&self, size: u32, metric: Metric, subject: &str) -> Option<Spread> {
        Spread::of(self.repeats(size, metric, subject).iter().flatten().copied())
    }

    fn subject_rows(&self, size: u32) -> Vec<Vec<String>> {
        let Some((first, others)) = self.subjects.split_first() else {
            return Vec::new();
        };
        let mut head = vec![String::new()];
        head.extend(self.subjects.iter().cloned());
        head.extend(others.iter().map(|other| format!("{other} : {first}")));
        let mut rows = vec![head];
        for metric in self.metrics {
            let mut row = vec![metric.title().to_owned()];
            row.extend(
                self.subjects
                    .iter()
                    .map(|subject| show(self.spread(size, *metric, subject))),
            );
            for other in others {
                let ratios = self.ratios(size, *metric, other, first);
                row.push(if metric.is_compared() {
                    show(Spread::of(ratios))
                } else {
                    String::new()
                });
            }
            rows.push(row);
        }
        rows
    }

    /// How many times as much `subject` needs as `base`, in each repeat.
    fn ratios(&self, size: u32, metric: Metric, subject: &str, base: &str) -> Vec<f64> {
        let medians = |name: &str| -> Vec<f64> {
            let repeats = self.repeats(size, metric, name).iter();
            repeats
                .filter_map(|values| Some(Spread::of(values.iter().copied())?.median))
                .collect()
        };
        medians(subject)
            .iter()
            .zip(medians(base))
            .map(|(subject, base)| subject / base)
            .collect()
    }

    fn growth_rows(&self, small: u32, large: u32) -> Vec<Vec<String>> {
        let mut head = vec![String::new()];
        head.extend(self.subjects.iter().cloned());
        let mut rows = vec![head];
        for metric in self.metrics.iter().filter(|metric| metric.is_compared()) {
            let mut row = vec![metric.name().to_owned()];
            for subject in &self.subjects {
                let at = |size| self.spread(size, *metric, subject).map(|spread| spread.median);
                row.push(
                    at(large)
                        .zip(at(small))
                        .map_or_else(String::new, |(large, small)| number(large / small)),
                );
            }
            rows.push(row);
        }
        rows
    }
}

// === impl Spread ===

impl Spread {
    /// `None` of no values. The median of an even number of values is the mean of the middle two.
    fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let middle = |at: usize| values.get(at).copied();
        let half = values.len() / 2;
        let upper = middle(half)?;
        let lower = if values.len().is_multiple_of(2) {
            middle(half - 1)?
        } else {
            upper
        };
        Some(Self {
            least: middle(0)?,
            median: f64::midpoint(lower, upper),
            most: middle(values.len() - 1)?,
        })
    }
}

fn show(spread: Option<Spread>) -> String {
    spread.map_or_else(String::new, |Spread { least, median, most }| {
        [least, median, most].map(number).join(" / ")
    })
}

/// Three digits that mean something.
fn number(value: f64) -> String {
    match value {
        v if v >= 99.95 => format!("{v:.0}"),
        v if v >= 9.995 => format!("{v:.1}"),
        v if v >= 0.9995 => format!("{v:.2}"),
        v => format!("{v:.3}"),
    }
}

fn print_table(rows: &[Vec<String>]) {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter()
            .filter_map(|row| row.get(column))
            .map(|cell| cell.chars().count())
            .max()
    };
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    for row in rows {
        let mut line = String::new();
        for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
            line += &if column == 0 {
                format!("{cell:width$}")
            } else {
                format!("   {cell:>width$}")
            };
        }
        println!("{}", line.trim_end());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured() -> Measured {
        let mut measured = Measured::new("path", &["a", "b"], 5, &[Metric::ConnectMedianMicros]);
        for (a, b) in [(1.0, 4.0), (2.0, 4.0), (2.0, 20.0)] {
            measured.record(10, Metric::ConnectMedianMicros, "a", vec![a]);
            measured.record(10, Metric::ConnectMedianMicros, "b", vec![b, b, 1000.0]);
        }
        measured
    }

    #[test]
    fn ratios_are_taken_within_a_repeat() {
        let rows = measured().subject_rows(10);
        assert_eq!(rows[0], ["", "a", "b", "b : a"]);
        assert_eq!(rows[1][1], "1.00 / 2.00 / 2.00");
        assert_eq!(rows[1][3], "2.00 / 4.00 / 10.0");
    }

    #[test]
    fn a_cell_that_was_not_measured_is_named() {
        let mut measured = measured();
        assert!(measured.complete().is_ok());
        measured.record(10, Metric::ConnectMedianMicros, "b", vec![0.0]);
        let error = measured.complete().unwrap_err().to_string();
        assert!(
            error.contains("connect, median, us") && error.contains("of b at 10"),
            "{error}"
        );
    }

    #[test]
    fn numbers_have_three_digits() {
        let check = |value, expect: &str| assert_eq!(number(value), expect);
        check(0.0123, "0.012");
        check(1.0, "1.00");
        check(47.96, "48.0");
        check(99.96, "100");
        check(12_345.6, "12346");
    }
}
