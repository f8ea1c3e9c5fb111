//! The network namespaces of this machine, as far as we can see them.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Where container runtimes and iproute2 keep the namespaces of pods.
const KEPT: [&str; 2] = ["/run/netns", "/var/run/docker/netns"];

/// A network namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespace {
    /// Device and inode of its file: the same for everyone who is in it.
    pub id: (u64, u64),
    /// A file to enter it by.
    pub path: PathBuf,
}

/// The calling thread's own one.
pub(super) fn own() -> io::Result<(u64, u64)> {
    id(Path::new("/proc/thread-self/ns/net"))
}

pub(super) fn id(path: &Path) -> io::Result<(u64, u64)> {
    let file = fs::metadata(path)?;
    Ok((file.dev(), file.ino()))
}

/// All that are visible, each once.
pub(super) fn all() -> Vec<Namespace> {
    let mut found = BTreeMap::new();
    let mut add = |path: PathBuf| {
        // A process that ended meanwhile, or one that we may not look at.
        if let Ok(id) = id(&path) {
            found.entry(id).or_insert(path);
        }
    };
    let list = |folder: &str| {
        fs::read_dir(folder)
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path())
    };
    KEPT.into_iter().flat_map(list).for_each(&mut add);
    let is_process = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str());
        name.is_some_and(|name| name.bytes().all(|byte| byte.is_ascii_digit()))
    };
    list("/proc")
        .filter(is_process)
        .map(|path| path.join("ns/net"))
        .for_each(add);
    found.into_iter().map(|(id, path)| Namespace { id, path }).collect()
}
