//! The rules that are read from the source text.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::Finding;
use super::graph::{Graph, PURE};
use crate::command::workspace;

/// The most lines a file may have without its tests.
const MOST_LINES: usize = 600;

/// What a pure crate must not name. Written in two halves, so that this file does not name them either.
const ACTING: &[&str] = &[
    concat!("std", "::fs"),
    concat!("std", "::process"),
    concat!("std", "::thread"),
    concat!("std", "::env"),
    concat!("Tcp", "Stream"),
    concat!("Tcp", "Listener"),
    concat!("Udp", "Socket"),
    concat!("ToSocket", "Addrs"),
    concat!("System", "Time"),
    concat!("Instant", "::now"),
];

/// What is not committed, and why.
const MARKERS: &[(&str, &str)] = &[
    (concat!("todo", "!("), "unfinished code"),
    (concat!("unimplemented", "!("), "unfinished code"),
    (concat!("dbg", "!("), "a debugging aid"),
    (concat!("#[igno", "re"), "a test that does not run tells nothing"),
    (concat!("TO", "DO"), "unfinished: finish it or leave it out"),
    (concat!("FIX", "ME"), "unfinished: finish it or leave it out"),
    (concat!("HA", "CK"), "say why in a sentence instead"),
];

/// One source file.
pub struct Source {
    /// The crate it belongs to.
    package: String,
    /// Its path in the checkout.
    path: PathBuf,
    text: String,
}

impl Source {
    /// The lines before the file's test module; none of a file that holds tests only.
    fn code(&self) -> impl Iterator<Item = &str> {
        let tests_only = self.path.ends_with("tests.rs")
            || self.path.components().any(|part| part.as_os_str() == "tests") && !self.path.starts_with("tests/src");
        let mut lines = self.text.lines().peekable();
        std::iter::from_fn(move || {
            let line = lines.next()?;
            let starts_tests = line == "#[cfg(test)]" && lines.peek().is_some_and(|next| next.ends_with(" {"));
            (!tests_only && !starts_tests).then_some(line)
        })
    }
}

/// Reads every Rust file of the workspace's crates.
pub fn load(graph: &Graph) -> Result<Vec<Source>> {
    let crates: Vec<(String, PathBuf)> = graph
        .members()
        .filter_map(|package| Some((package.name.clone(), package.manifest_path.parent()?.to_path_buf())))
        .collect();
    let mut sources = Vec::new();
    for (package, dir) in &crates {
        // A crate's folder may hold another crate's.
        let inner: Vec<&PathBuf> = crates
            .iter()
            .map(|(_, other)| other)
            .filter(|other| *other != dir)
            .collect();
        walk(package, dir, &inner, &mut sources)?;
    }
    Ok(sources)
}

fn walk(package: &str, dir: &Path, skip: &[&PathBuf], sources: &mut Vec<Source>) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))? {
        let path = entry.with_context(|| format!("cannot read {}", dir.display()))?.path();
        if path.is_dir() && !skip.contains(&&path) && !path.ends_with("target") {
            walk(package, &path, skip, sources)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
            let path = path.strip_prefix(workspace()).unwrap_or(&path).to_path_buf();
            sources.push(Source {
                package: package.to_owned(),
                path,
                text,
            });
        }
    }
    Ok(())
}

/// Places where a pure crate acts.
pub fn impure(sources: &[Source]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for source in sources.iter().filter(|source| PURE.contains(&source.package.as_str())) {
        for (number, line) in source.code().enumerate().filter(|(_, line)| !is_comment(line)) {
            for word in ACTING.iter().filter(|word| line.contains(*word)) {
                findings.push(format!(
                    "{}:{}: {word} in a pure crate",
                    source.path.display(),
                    number + 1
                ));
            }
        }
    }
    findings
}

/// Files that are too long, say not what they are, or have a name that says nothing.
pub fn shape(sources: &[Source]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for source in sources {
        let (path, lines) = (source.path.display(), source.code().count());
        if lines > MOST_LINES {
            findings.push(format!(
                "{path}: {lines} lines without tests, {MOST_LINES} are the most"
            ));
        }
        if !source.text.starts_with("//! ") {
            findings.push(format!("{path}: does not start with `//!` and what the file decides"));
        }
        if source.path.ends_with("mod.rs") {
            findings.push(format!(
                "{path}: the module's file stands beside its folder, foo.rs and foo/"
            ));
        }
        if ["utils", "util", "helpers"]
            .iter()
            .any(|name| source.path.file_stem().is_some_and(|stem| stem == *name))
        {
            findings.push(format!("{path}: a name that does not say what the file is about"));
        }
    }
    findings
}

/// Places that are unfinished or switched off.
pub fn markers(sources: &[Source]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for source in sources {
        for (number, line) in source.text.lines().enumerate() {
            for (marker, why) in MARKERS.iter().filter(|(marker, _)| line.contains(marker)) {
                findings.push(format!("{}:{}: {marker}: {why}", source.path.display(), number + 1));
            }
        }
    }
    findings
}

fn is_comment(line: &str) -> bool {
    line.trim_start().starts_with("//")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(path: &str, text: &str) -> Vec<Source> {
        vec![Source {
            package: "portolan-plan".into(),
            path: path.into(),
            text: text.into(),
        }]
    }

    #[test]
    fn tests_do_not_count_as_code() {
        let text = "//! Plans.\nfn plan() {}\n#[cfg(test)]\nmod tests {\n    use std::fs;\n}\n";
        let sources = source("proxy/plan/src/lib.rs", text);
        assert_eq!(sources[0].code().count(), 2);
        assert!(impure(&sources).is_empty());
        assert_eq!(source("proxy/plan/src/lib/tests.rs", text)[0].code().count(), 0);
        assert_eq!(source("tests/src/lib.rs", text)[0].code().count(), 2);
    }

    #[test]
    fn a_pure_crate_that_reads_a_file_is_found() {
        let text = format!("//! Plans.\n// {0}\nuse {0};\n", ACTING[0]);
        assert_eq!(
            impure(&source("proxy/plan/src/lib.rs", &text)),
            [format!("proxy/plan/src/lib.rs:3: {} in a pure crate", ACTING[0])]
        );
    }

    #[test]
    fn shape_and_markers() {
        let check = |path, text: &str, expect: usize| {
            let sources = source(path, text);
            assert_eq!(
                shape(&sources).len() + markers(&sources).len(),
                expect,
                "{path}: {text:.80}"
            );
        };
        check("a/src/lib.rs", "//! Fine.\n", 0);
        check("a/src/lib.rs", "fn silent() {}\n", 1);
        check("a/src/utils.rs", "//! Things.\n", 1);
        check("a/src/b/mod.rs", "//! Things.\n", 1);
        check("a/src/lib.rs", &format!("//! Long.\n{}", "//\n".repeat(MOST_LINES)), 1);
        check(
            "a/src/lib.rs",
            &format!("//! Unfinished.\nfn f() {{ {}) }}\n", MARKERS[0].0),
            1,
        );
    }
}
