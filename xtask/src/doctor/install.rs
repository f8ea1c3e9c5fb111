//! Installing what the table lacks, through apt-get and nothing else.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};

use super::checks::is_root;
use crate::command::{output, run_logged, target_dir, which};

/// Package lists older than this are fetched again before something is installed.
const STALE: Duration = Duration::from_secs(24 * 60 * 60);

/// What this system installs software with.
pub enum PackageManager {
    /// Debian, Ubuntu and their descendants.
    Apt,
    /// Fedora and its relatives.
    Dnf,
    /// Anything else.
    Unknown,
}

/// The package manager found on PATH.
pub fn package_manager() -> PackageManager {
    if which("apt-get").is_some() {
        PackageManager::Apt
    } else if which("dnf").is_some() {
        PackageManager::Dnf
    } else {
        PackageManager::Unknown
    }
}

/// Installs Debian packages. Where that cannot be done nothing happens: the caller looks again and prints the commands.
pub fn install(packages: &[&str]) -> Result<()> {
    if packages.is_empty() || !is_root() || !matches!(package_manager(), PackageManager::Apt) {
        return Ok(());
    }
    println!("doctor: installing {}", packages.join(" "));
    let log = target_dir().join("xtask/apt.log");
    if lists_are_stale(Path::new("/var/lib/apt/lists")) {
        run_logged("apt-get update", apt().arg("update"), &log)?;
    }
    if output(
        apt()
            .args(["install", "--simulate", "--no-install-recommends"])
            .args(packages),
    )
    .is_err()
    {
        // The lists may be young and still lack a section that was added to the sources since.
        run_logged("apt-get update", apt().arg("update"), &log)?;
    }
    let mut command = apt();
    command
        .args(["install", "-y", "--no-install-recommends"])
        .args(packages);
    let installed = run_logged("apt-get install", &mut command, &log);
    if installed.is_err() && packages.len() > 1 {
        // One package that this release does not have must not keep the others away; the table then shows which.
        for package in packages {
            let one = output(apt().args(["install", "-y", "--no-install-recommends", package]));
            println!(
                "  {package}: {}",
                if one.is_ok() { "installed" } else { "not available" }
            );
        }
        return Ok(());
    }
    installed.context("apt-get could not install the missing packages")
}

fn apt() -> Command {
    let mut command = Command::new("apt-get");
    // Two installers at a time wait for each other instead of failing.
    command
        .env("DEBIAN_FRONTEND", "noninteractive")
        .args(["-o", "DPkg::Lock::Timeout=600"]);
    command
}

fn lists_are_stale(lists: &Path) -> bool {
    let newest = || -> Option<SystemTime> {
        let entries = std::fs::read_dir(lists).ok()?;
        let files = entries
            .flatten()
            .filter(|entry| entry.file_name().to_string_lossy().contains("Packages"));
        files.filter_map(|entry| entry.metadata().ok()?.modified().ok()).max()
    };
    match newest() {
        // The files carry the server's date; the folder's own date says when it was last fetched.
        Some(_) => std::fs::metadata(lists)
            .and_then(|meta| meta.modified())
            .ok()
            .and_then(|time| time.elapsed().ok())
            .is_some_and(|age| age > STALE),
        None => true,
    }
}
