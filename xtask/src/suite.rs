//! `cargo xtask test`, also called `ci`: every check and every test, one after the other.
//!
//! A failed step does not keep the others from running: one run shows everything that is wrong. The last line is
//! `N passed, N failed`, summed over the tests of all steps; a step without tests of its own counts as one.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::command::{cargo, output, run as run_command, seconds, target_dir};
use crate::doctor::{self, Purpose, Verbosity};
use crate::{cross, ebpf, kube_assets, tidy};

/// Arguments of `cargo xtask test`.
#[derive(clap::Args)]
pub struct Args {
    /// Only these steps
    #[arg(long, value_name = "STEP")]
    only: Vec<String>,
    /// This step and those after it
    #[arg(long, value_name = "STEP", conflicts_with = "only")]
    from: Option<String>,
    /// All but these steps
    #[arg(long, value_name = "STEP")]
    skip: Vec<String>,
    /// Show the steps and do nothing
    #[arg(long)]
    list: bool,
}

/// Tests that passed and tests that failed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Tests that passed.
    pub passed: u64,
    /// Tests that failed.
    pub failed: u64,
}

impl Tally {
    /// Counts one check.
    pub fn count<T, E>(&mut self, done: &Result<T, E>) {
        match done {
            Ok(_) => self.passed += 1,
            Err(_) => self.failed += 1,
        }
    }

    /// An error when a check failed; what failed has been printed.
    pub fn into_result(self) -> Result<()> {
        if self.failed > 0 {
            bail!("{} of {} checks failed", self.failed, self.passed + self.failed);
        }
        Ok(())
    }

    fn add(&mut self, other: Tally) {
        self.passed += other.passed;
        self.failed += other.failed;
    }
}

struct Step {
    name: &'static str,
    what: &'static str,
    run: fn() -> Result<Tally>,
    /// What to do when it fails.
    advice: &'static str,
}

static STEPS: &[Step] = &[
    Step {
        name: "doctor",
        what: "what this machine lacks is installed",
        run: || one(doctor::examine(&[Purpose::Test], true, Verbosity::Table)),
        advice: "run the commands that the doctor printed, or leave out what this machine cannot do by --skip cross",
    },
    Step {
        name: "fmt",
        what: "cargo fmt --check",
        run: || one(run_command(cargo().args(["fmt", "--all", "--check"]))),
        advice: "cargo fmt --all",
    },
    Step {
        name: "tidy",
        what: "crate arrows, purity, file sizes, markers",
        run: tidy::run,
        advice: "each line names the file and the rule; CONTRIBUTING.md has the reasons",
    },
    Step {
        name: "deny",
        what: "licences and advisories, where cargo-deny is installed",
        run: deny,
        advice: "see deny.toml; cargo deny check explains each finding",
    },
    Step {
        name: "ebpf",
        what: "the eBPF programs, which everything after this embeds",
        run: || one(ebpf::run()),
        advice: "cargo xtask doctor names what the compiler or the linker lacks; cargo xtask ebpf tries again",
    },
    Step {
        name: "clippy",
        what: "cargo clippy with warnings denied",
        run: || {
            one(run_command(cargo().args([
                "clippy",
                "--workspace",
                "--all-targets",
                "--",
                "-D",
                "warnings",
            ])))
        },
        advice: "mend the lint, or allow it with a reason: #[allow(..., reason = \"...\")]",
    },
    Step {
        name: "unit",
        what: "unit, property and doc tests of every crate",
        run: || cargo_tests(cargo().args(["test", "--workspace", "--exclude", "portolan-lab", "--no-fail-fast"])),
        advice: "cargo test -p CRATE NAME runs one test again",
    },
    Step {
        name: "kube-assets",
        what: "etcd, the Kubernetes control plane, kube-proxy and CoreDNS",
        run: || one(kube_assets::run()),
        advice: "the log named above has the reason; cargo xtask kube-assets tries again and keeps what was built",
    },
    Step {
        name: "lab",
        what: "every scenario on our daemons in a lab of network namespaces, from manifests and from a real API server",
        run: || cargo_tests(cargo().args(["test", "--package", "portolan-lab", "--no-fail-fast"])),
        advice: "cargo test -p portolan-lab --test suite -- NAME runs one scenario again, --keep leaves its lab up",
    },
    Step {
        name: "reference",
        what: "the same scenarios and the DNS contract on the real kube-proxy and CoreDNS: are the expectations right?",
        run: || {
            let suite = [
                "test",
                "--package",
                "portolan-lab",
                "--test",
                "suite",
                "--",
                "--subject",
                "kube-proxy",
            ];
            let mut tally = cargo_tests(cargo().args(suite))?;
            // The DNS contract: every row asked of the real CoreDNS and of ours on one API server.
            run_command(cargo().args(["test", "--package", "portolan-dns", "--test", "wire", "--no-run"]))?;
            tally.add(cargo_tests(cargo().args([
                "test",
                "--package",
                "portolan-lab",
                "--test",
                "contract",
            ]))?);
            Ok(tally)
        },
        advice: "cargo test -p portolan-lab --test suite -- NAME --subject kube-proxy runs one scenario again, cargo test -p portolan-lab --test contract the DNS contract",
    },
    Step {
        name: "image",
        what: "an image of each daemon, which starts in its own root file system",
        run: image,
        advice: "cargo xtask image does the same with a release build",
    },
    Step {
        name: "demo",
        what: "the demo, in the lab and on loopback",
        run: demo,
        advice: "cargo xtask demo --keep leaves it up to look around",
    },
    Step {
        name: "cross",
        what: "the demo on loopback under Wine, and everything type-checked for macOS",
        run: || cross::main(&cross::Args::default()),
        advice: "cargo xtask cross windows, or cargo xtask cross macos; Linux-only code stays behind the backend's cfg",
    },
];

/// Runs the chosen steps; an error when a test of any step failed.
pub fn run(args: &Args) -> Result<()> {
    let steps = choose(args)?;
    if args.list {
        for step in steps {
            println!("{:12} {}", step.name, step.what);
        }
        return Ok(());
    }
    let start = Instant::now();
    let mut total = Tally::default();
    let mut rows = Vec::new();
    for (number, step) in steps.iter().enumerate() {
        println!("\n=== {}/{} {}: {}", number + 1, steps.len(), step.name, step.what);
        let (tally, took) = run_step(step);
        total.add(tally);
        rows.push((step.name, tally, took));
    }
    println!("\n=== {}", seconds(start.elapsed()));
    for (name, tally, took) in rows {
        let state = match (tally.passed, tally.failed) {
            (0, 0) => "left out",
            (_, 0) => "ok",
            _ => "FAILED",
        };
        println!(
            "{state:8} {name:12} {:>10}  {} passed, {} failed",
            seconds(took),
            tally.passed,
            tally.failed
        );
    }
    println!("{} passed, {} failed", total.passed, total.failed);
    // The line above is the last one of a run: the exit code says the rest.
    if total.failed > 0 {
        std::process::exit(1);
    }
    Ok(())
}

fn run_step(step: &Step) -> (Tally, Duration) {
    let start = Instant::now();
    let tally = (step.run)().unwrap_or_else(|error| {
        println!("{}: {error:#}", step.name);
        Tally { passed: 0, failed: 1 }
    });
    let took = start.elapsed();
    if tally.failed == 0 {
        println!("=== {}: ok in {}", step.name, seconds(took));
    } else {
        println!(
            "=== {}: FAILED after {}. What to do: {}",
            step.name,
            seconds(took),
            step.advice
        );
    }
    (tally, took)
}

fn choose(args: &Args) -> Result<Vec<&'static Step>> {
    for name in args.only.iter().chain(&args.from).chain(&args.skip) {
        if !STEPS.iter().any(|step| step.name == name) {
            let names: Vec<&str> = STEPS.iter().map(|step| step.name).collect();
            bail!("there is no step {name:?}; the steps are {}", names.join(", "));
        }
    }
    let first = STEPS
        .iter()
        .position(|step| args.from.as_deref().is_none_or(|from| step.name == from))
        .unwrap_or(0);
    let named = |list: &[String], step: &Step| list.iter().any(|name| name == step.name);
    let wanted = |step: &&Step| (args.only.is_empty() || named(&args.only, step)) && !named(&args.skip, step);
    Ok(STEPS.iter().skip(first).filter(wanted).collect())
}

fn one<T>(done: Result<T>) -> Result<Tally> {
    done.map(|_| Tally { passed: 1, failed: 0 })
}

fn image() -> Result<Tally> {
    run_command(cargo().args(["build", "--package", "portolan-proxy", "--package", "portolan-dns"]))?;
    let program = std::env::current_exe().context("cannot find this program")?;
    one(run_command(
        Command::new(program)
            .args(["image", "--programs"])
            .arg(target_dir().join("debug")),
    ))
}

/// The commands of the README, as a user would run them.
fn demo() -> Result<Tally> {
    let mut tally = Tally::default();
    let program = std::env::current_exe().context("cannot find this program")?;
    for arguments in [&[][..], &["--api-server"], &["--loopback"]] {
        let done = run_command(Command::new(&program).arg("demo").args(arguments).stdin(Stdio::null()));
        if let Err(error) = &done {
            println!("demo {}: {error:#}", arguments.join(" "));
        }
        tally.count(&done);
    }
    Ok(tally)
}

fn deny() -> Result<Tally> {
    if output(Command::new("cargo").args(["deny", "--version"])).is_err() {
        println!("left out: cargo-deny is not installed (cargo install --locked cargo-deny)");
        return Ok(Tally::default());
    }
    let mut tally = one(run_command(
        cargo().args(["deny", "check", "licenses", "bans", "sources"]),
    ))?;
    // The advisories are somebody else's repository: a machine that cannot reach it has no verdict.
    if output(cargo().args(["deny", "fetch", "db"])).is_err() {
        println!("advisories left out: their database cannot be fetched");
        return Ok(tally);
    }
    tally.count(&run_command(cargo().args(["deny", "check", "advisories"])));
    Ok(tally)
}

/// Runs `cargo test`, passes on what it prints and sums its results; a run that breaks without a failed test is one failure.
fn cargo_tests(command: &mut Command) -> Result<Tally> {
    let mut child = command
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start cargo test")?;
    let mut tally = Tally::default();
    if let Some(stdout) = child.stdout.take() {
        for line in BufReader::new(stdout).split(b'\n') {
            let line = line.context("cannot read what cargo test prints")?;
            let line = String::from_utf8_lossy(&line);
            println!("{line}");
            tally.add(test_result(&line).unwrap_or_default());
        }
    }
    let status = child.wait().context("lost cargo test")?;
    if !status.success() && tally.failed == 0 {
        println!("cargo test ended with {status} without a failed test");
        tally.failed += 1;
    }
    Ok(tally)
}

/// The counts of a line that ends a run: `test result: ok. 12 passed; 0 failed; …`, and the lab's `12 passed, 0 failed`.
fn test_result(line: &str) -> Option<Tally> {
    let counts = line
        .strip_prefix("test result: ")
        .map_or(Some(line), |rest| rest.split_once(". ").map(|(_, counts)| counts))?;
    let mut parts = counts.split([';', ',']);
    let mut count = |word: &str| parts.next()?.trim().strip_suffix(word)?.parse().ok();
    Some(Tally {
        passed: count(" passed")?,
        failed: count(" failed")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(words: &[&str]) -> Args {
        #[derive(clap::Parser)]
        struct Line {
            #[command(flatten)]
            args: Args,
        }
        let words = std::iter::once(&"test").chain(words);
        <Line as clap::Parser>::try_parse_from(words)
            .expect("these arguments are valid")
            .args
    }

    fn names(words: &[&str]) -> Vec<&'static str> {
        choose(&args(words))
            .expect("these steps exist")
            .iter()
            .map(|step| step.name)
            .collect()
    }

    #[test]
    fn steps_are_chosen_by_name() {
        assert_eq!(names(&["--only", "fmt", "--only", "tidy"]), ["fmt", "tidy"]);
        assert_eq!(names(&["--from", "reference"]), ["reference", "image", "demo", "cross"]);
        assert_eq!(names(&["--from", "demo", "--skip", "cross"]), ["demo"]);
        assert_eq!(names(&[]).len(), STEPS.len());
    }

    #[test]
    fn an_unknown_step_is_answered_with_the_known_ones() {
        let error = choose(&args(&["--only", "lint"]))
            .err()
            .map(|error| error.to_string())
            .unwrap_or_default();
        assert!(error.contains("\"lint\"") && error.contains("clippy"), "{error}");
    }

    #[test]
    fn results_of_cargo_test_are_summed() {
        let check = |line: &str, expect: Option<(u64, u64)>| {
            assert_eq!(
                test_result(line),
                expect.map(|(passed, failed)| Tally { passed, failed }),
                "{line}"
            );
        };
        let tail = "0 ignored; 0 measured; 3 filtered out; finished in 0.03s";
        check(&format!("test result: ok. 12 passed; 0 failed; {tail}"), Some((12, 0)));
        check(
            &format!("test result: FAILED. 7 passed; 2 failed; {tail}"),
            Some((7, 2)),
        );
        check("48 passed, 1 failed", Some((48, 1)));
        check("test model::parse ... ok", None);
        check("3 checks passed, 0 failed", None);
        check("test result: unreadable", None);
    }
}
