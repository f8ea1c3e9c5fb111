//! One cgroup2 directory per node: the processes of a node and of its pods live in it, and nobody else's.
//!
//! The eBPF backend of a node attaches its programs to that directory, so the nodes of one lab never see each other's
//! connections although they share a kernel.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};

/// The places where a cgroup2 hierarchy is mounted, the usual one of each kind of distribution.
const MOUNTS: [&str; 2] = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"];

/// The mount point of the cgroup2 hierarchy.
///
/// # Errors
/// When the machine has none.
pub fn mount_point() -> Result<&'static Path> {
    MOUNTS
        .into_iter()
        .map(Path::new)
        .find(|mount| mount.join("cgroup.controllers").exists())
        .with_context(|| format!("no cgroup2 hierarchy is mounted at {}", MOUNTS.join(" or ")))
}

/// Makes the directory of `lab` and one below it for each of `nodes`.
///
/// # Errors
/// When the hierarchy is missing or not writable.
pub fn create(lab: &str, nodes: &[String]) -> Result<PathBuf> {
    let root = mount_point()?.join(lab);
    for node in nodes {
        let dir = root.join(node);
        fs::create_dir_all(&dir).with_context(|| format!("cgroup {} cannot be made", dir.display()))?;
    }
    Ok(root)
}

/// Removes the directory `root` with all below it. A cgroup goes only once its last process is gone, which the kernel may
/// see a moment after the process was waited for.
pub fn remove(root: &Path) {
    for _ in 0..50 {
        remove_tree(root);
        if !root.exists() {
            return;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The directories of labs whose name begins with `prefix`.
pub fn list(prefix: &str) -> Vec<PathBuf> {
    let Ok(mount) = mount_point() else { return Vec::new() };
    let Ok(entries) = fs::read_dir(mount) else {
        return Vec::new();
    };
    entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            path.is_dir()
                && path
                    .file_name()
                    .is_some_and(|n| n.to_string_lossy().starts_with(prefix))
        })
        .collect()
}

/// The processes in `root` and below.
pub fn pids(root: &Path) -> Vec<i32> {
    let mut found: Vec<i32> = fs::read_to_string(root.join("cgroup.procs"))
        .unwrap_or_default()
        .lines()
        .filter_map(|line| line.parse().ok())
        .collect();
    if let Ok(entries) = fs::read_dir(root) {
        for entry in entries.flatten().filter(|entry| entry.path().is_dir()) {
            found.extend(pids(&entry.path()));
        }
    }
    found
}

fn remove_tree(root: &Path) {
    if let Ok(entries) = fs::read_dir(root) {
        for entry in entries.flatten().filter(|entry| entry.path().is_dir()) {
            remove_tree(&entry.path());
        }
    }
    let _ = fs::remove_dir(root);
}
