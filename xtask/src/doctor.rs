//! `cargo xtask doctor`: what this machine has of what the project needs, and how to get the rest.
//!
//! Every row is tried, never guessed from a version: a kernel feature counts when it just worked in a network namespace
//! of its own. `--install` changes the machine only through apt-get, only as root, only on Debian and its descendants;
//! everywhere else it prints the commands and fails.

mod checks;
mod install;

use anyhow::{Result, bail};
use clap::ValueEnum;

pub use checks::is_root;

use checks::{Check, Need, Remedy};

/// What a machine can be made ready for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Purpose {
    /// `cargo build`: the two daemons
    Build,
    /// `cargo xtask demo`: the lab, as root
    Demo,
    /// `cargo xtask demo --api-server`: a real control plane in the lab
    ApiServer,
    /// `cargo xtask test`: everything CI runs
    Test,
    /// `cargo xtask bench`
    Bench,
    /// `cargo xtask bench dns`: the DNS servers beside ours
    BenchDns,
    /// `cargo xtask cross`: Windows and macOS
    Cross,
}

/// Arguments of `cargo xtask doctor`.
#[derive(clap::Args)]
pub struct Args {
    /// Install what is missing (Debian and Ubuntu, as root; elsewhere print the commands and fail)
    #[arg(long)]
    install: bool,
    /// Look only at what these need; everything when not given
    #[arg(long = "for", value_enum, value_name = "PURPOSE")]
    purposes: Vec<Purpose>,
}

/// One row of the table: a check and what it found.
struct Finding {
    check: &'static Check,
    found: Result<String, String>,
}

impl Finding {
    fn new(check: &'static Check) -> Self {
        Finding {
            check,
            found: (check.probe)(),
        }
    }

    fn is_missing(&self) -> bool {
        self.found.is_err() && self.check.need == Need::Required
    }
}

/// Runs the command line's doctor.
pub fn run(args: &Args) -> Result<()> {
    let purposes = if args.purposes.is_empty() {
        Purpose::value_variants()
    } else {
        &args.purposes
    };
    examine(purposes, args.install, Verbosity::Table)
}

/// How much of a healthy machine is shown.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Verbosity {
    /// Every row.
    Table,
    /// One line when nothing is missing.
    Brief,
}

/// Checks what `purposes` need, installs what is missing if asked to, and fails if something is missing at the end.
pub fn examine(purposes: &[Purpose], install: bool, verbosity: Verbosity) -> Result<()> {
    let mut findings = probe(purposes);
    if verbosity == Verbosity::Table || findings.iter().any(Finding::is_missing) {
        print_table(&findings);
    }
    if install && findings.iter().any(Finding::is_missing) {
        install::install(&apt_packages(&findings))?;
        findings = probe(purposes);
    }
    let missing: Vec<&Finding> = findings.iter().filter(|finding| finding.is_missing()).collect();
    if missing.is_empty() {
        println!("doctor: {} checks, nothing missing", findings.len());
        return Ok(());
    }
    print_remedies(&missing);
    bail!(
        "{} of {} checks failed; the commands above mend them",
        missing.len(),
        findings.len()
    );
}

fn probe(purposes: &[Purpose]) -> Vec<Finding> {
    checks::ALL
        .iter()
        .filter(|check| check.purposes.iter().any(|purpose| purposes.contains(purpose)))
        .filter(|check| cfg!(target_os = "linux") || !check.linux_only)
        .map(Finding::new)
        .collect()
}

fn apt_packages(findings: &[Finding]) -> Vec<&'static str> {
    let mut packages: Vec<&str> = findings
        .iter()
        .filter(|finding| finding.is_missing())
        .filter_map(|finding| match finding.check.remedy {
            Remedy::Packages { apt, .. } => Some(apt),
            Remedy::Commands(_) => None,
        })
        .flatten()
        .copied()
        .collect();
    packages.sort_unstable();
    packages.dedup();
    packages
}

fn print_table(findings: &[Finding]) {
    let rows: Vec<[String; 4]> = findings.iter().map(row).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let (state, name, purposes) = (width(0), width(1), width(2));
    for ([found, what, needed_for, detail], finding) in rows.iter().zip(findings) {
        println!("{found:state$}  {what:name$}  {needed_for:purposes$}  {detail}");
        if finding.found.is_err() {
            println!(
                "{:state$}  {:name$}  {:purposes$}  ({})",
                "", "", "", finding.check.reason
            );
        }
    }
}

fn row(Finding { check, found }: &Finding) -> [String; 4] {
    const SHOWN: usize = 140;
    let (state, detail) = match (found, check.need) {
        (Ok(detail), _) => ("ok", detail),
        (Err(detail), Need::Required) => ("MISSING", detail),
        (Err(detail), Need::Optional) => ("absent", detail),
    };
    let everything = Purpose::value_variants()
        .iter()
        .all(|purpose| check.purposes.contains(purpose));
    let named = check.purposes.iter().filter_map(ValueEnum::to_possible_value);
    let purposes: Vec<String> = named.map(|purpose| purpose.get_name().to_owned()).collect();
    let needed_for = if everything {
        "everything".to_owned()
    } else {
        purposes.join(" ")
    };
    [
        state.to_owned(),
        check.name.to_owned(),
        needed_for,
        detail.chars().take(SHOWN).collect(),
    ]
}

fn print_remedies(missing: &[&Finding]) {
    println!("\nTo mend:");
    let (mut apt, mut dnf) = (Vec::new(), Vec::new());
    for finding in missing {
        match finding.check.remedy {
            Remedy::Packages {
                apt: debian,
                dnf: fedora,
            } => {
                apt.extend_from_slice(debian);
                dnf.extend_from_slice(fedora);
            }
            Remedy::Commands(text) => println!("  # {}\n  {text}", finding.check.name),
        }
    }
    for list in [&mut apt, &mut dnf] {
        list.sort_unstable();
        list.dedup();
    }
    match install::package_manager() {
        install::PackageManager::Dnf if !dnf.is_empty() => println!("  dnf install -y {}", dnf.join(" ")),
        _ if apt.is_empty() => {}
        install::PackageManager::Apt => {
            println!(
                "  apt-get update && apt-get install -y --no-install-recommends {}",
                apt.join(" ")
            );
        }
        _ => println!("  # your system's packages for what Debian calls: {}", apt.join(" ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_purpose_has_checks_and_the_demo_installs_no_cross_compiler() {
        for purpose in Purpose::value_variants() {
            assert!(
                checks::ALL.iter().any(|check| check.purposes.contains(purpose)),
                "{purpose:?}"
            );
        }
        let demo = checks::ALL
            .iter()
            .filter(|check| check.purposes.contains(&Purpose::Demo));
        for check in demo {
            if let Remedy::Packages { apt, .. } = check.remedy {
                assert!(!apt.iter().any(|package| package.contains("wine")), "{}", check.name);
            }
        }
    }

    #[test]
    fn packages_of_missing_rows_only_and_each_once() {
        let two: Vec<&'static Check> = checks::ALL
            .iter()
            .filter(|check| matches!(check.remedy, Remedy::Packages { .. }))
            .take(2)
            .collect();
        let findings = [
            Finding {
                check: two[0],
                found: Err(String::new()),
            },
            Finding {
                check: two[0],
                found: Err(String::new()),
            },
            Finding {
                check: two[1],
                found: Ok(String::new()),
            },
        ];
        let Remedy::Packages { apt, .. } = two[0].remedy else {
            unreachable!("filtered above")
        };
        let mut expect = apt.to_vec();
        expect.sort_unstable();
        assert_eq!(apt_packages(&findings), expect);
    }
}
