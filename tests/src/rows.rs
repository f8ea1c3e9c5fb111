//! What this project promises, row by row (`rows/*.yaml`), and what shows each of them.
//!
//! A row that is text alone is shown by the scenarios that name it in `covers:`. Another one names the test that shows it, or says
//! why nothing can. The check below keeps both sides true: no row without its proof, no scenario that covers an unknown row.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde::Deserialize;

use crate::scenario::Scenario;

/// A row of the requirements.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub enum Row {
    /// One or more scenarios show it.
    Scenarios(String),
    /// A test elsewhere shows it.
    Test {
        /// What must hold.
        says: String,
        /// `path#function`, the path from the root of the repository.
        test: String,
    },
    /// Nothing shows it.
    Not {
        /// What must hold.
        says: String,
        /// Why it is not shown.
        not: String,
    },
}

/// Reads every row below `dir`, by its name.
///
/// # Errors
/// When a file cannot be read, is no list of rows, or names a row that another one has.
pub fn read_all(dir: &Path) -> Result<BTreeMap<String, Row>> {
    let mut rows = BTreeMap::new();
    for entry in std::fs::read_dir(dir).with_context(|| format!("{} cannot be read", dir.display()))? {
        let file = entry?.path();
        if file.extension().is_none_or(|ending| ending != "yaml") {
            continue;
        }
        let read: BTreeMap<String, Row> =
            serde_saphyr::from_str(&std::fs::read_to_string(&file)?).with_context(|| file.display().to_string())?;
        for (name, row) in read {
            anyhow::ensure!(rows.insert(name.clone(), row).is_none(), "row {name} is there twice");
        }
    }
    Ok(rows)
}

/// What is wrong between rows and scenarios; `root` is the repository's.
pub fn faults(rows: &BTreeMap<String, Row>, scenarios: &[Scenario], root: &Path) -> Vec<String> {
    let shown_by = |name: &str| scenarios.iter().any(|s| s.covers.iter().any(|row| row == name));
    let mut faults = Vec::new();
    for (name, row) in rows {
        match row {
            Row::Scenarios(_) if !shown_by(name) => faults.push(format!("{name}: no scenario covers it")),
            Row::Not { .. } if shown_by(name) => faults.push(format!("{name}: it is shown after all")),
            Row::Test { test, .. } if !exists(root, test) => faults.push(format!("{name}: there is no test {test}")),
            _ => {}
        }
    }
    for scenario in scenarios {
        let unknown = scenario.covers.iter().filter(|row| !rows.contains_key(*row));
        faults.extend(unknown.map(|row| format!("{}: it covers {row}, which is no row", scenario.name)));
    }
    faults
}

/// Whether `path#function` names a function of that file.
fn exists(root: &Path, test: &str) -> bool {
    test.split_once('#').is_some_and(|(path, function)| {
        let text = std::fs::read_to_string(root.join(path)).unwrap_or_default();
        text.contains(&format!("fn {function}("))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_is_shown_or_says_why_not() {
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        let rows = read_all(&here.join("rows")).unwrap();
        let scenarios = Scenario::read_all(&here.join("scenarios")).unwrap();
        let faults = faults(&rows, &scenarios, here.parent().unwrap());
        assert!(faults.is_empty(), "{}", faults.join("\n"));
        assert!(rows.len() > 300, "{}", rows.len());
    }

    #[test]
    fn each_kind_of_fault_is_found() {
        let scenario = |covers: &str| {
            let text = format!("scenario: x\ncovers: [{covers}]\nsteps:\n  - pause: 0\n");
            Scenario::parse("x", &text).unwrap()
        };
        let check = |row: &str, covers: &str, said: &str| {
            let rows: BTreeMap<String, Row> = serde_saphyr::from_str(row).unwrap();
            let found = faults(&rows, &[scenario(covers)], Path::new(env!("CARGO_MANIFEST_DIR")));
            assert_eq!(found.join("; "), said, "{row}");
        };
        check("A1: It holds.", "A1", "");
        check("A1: It holds.", "", "A1: no scenario covers it");
        check("A1: It holds.", "A1, B2", "x: it covers B2, which is no row");
        check("A1: {says: It holds., not: It cannot.}", "", "");
        check(
            "A1: {says: It holds., not: It cannot.}",
            "A1",
            "A1: it is shown after all",
        );
        check("A1: {says: It holds., test: src/rows.rs#faults}", "", "");
        check(
            "A1: {says: It holds., test: src/rows.rs#fault}",
            "",
            "A1: there is no test src/rows.rs#fault",
        );
    }
}
