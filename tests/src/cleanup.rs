//! Nothing of a lab outlives its owner: removal by name, on signals, and of labs whose owner has died.
//!
//! A lab's id is `plPID-N`, where PID is the owner. Its namespaces, its cgroup and its scratch directory all begin with
//! that id, so everything of a lab can be found and removed with nothing but the id. Only processes inside the lab's own
//! namespaces and cgroups are ever killed.

use std::collections::BTreeSet;
use std::ffi::CString;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::{cgroup, netns};

static COUNTER: AtomicU32 = AtomicU32::new(0);
static LIVE: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

/// Reserves the id of a new lab and makes its scratch directory.
///
/// # Errors
/// When the scratch directory cannot be made.
pub fn claim() -> Result<(String, PathBuf)> {
    let id = format!("pl{}-{}", std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed));
    let dir = scratch(&id);
    fs::create_dir(&dir).with_context(|| format!("scratch directory {} cannot be made", dir.display()))?;
    LIVE.lock().unwrap_or_else(PoisonError::into_inner).insert(id.clone());
    Ok((id, dir))
}

/// The scratch directory of lab `id`: logs, manifests and configuration of its daemons.
pub fn scratch(id: &str) -> PathBuf {
    std::env::temp_dir().join(format!("portolan-lab-{id}"))
}

/// Removes everything that belongs to lab `id`: processes, namespaces, cgroups, mounts, scratch directory.
pub fn remove(id: &str) {
    let names = netns::list(&format!("{id}-"));
    let groups = cgroup::list(id)
        .into_iter()
        .filter(|path| path.file_name().is_some_and(|n| n == id))
        .collect::<Vec<_>>();
    let processes = || -> Vec<i32> {
        let inside = names.iter().flat_map(|name| netns::pids(name));
        inside
            .chain(groups.iter().flat_map(|group| cgroup::pids(group)))
            .collect()
    };
    // A process may fork while it is being looked at: repeat until none is left.
    for _ in 0..50 {
        let found = processes();
        if found.is_empty() {
            break;
        }
        for pid in found
            .into_iter()
            .filter(|pid| i64::from(*pid) != i64::from(std::process::id()))
        {
            // SAFETY: a plain system call; the process was just seen inside a namespace or cgroup of this lab.
            unsafe {
                libc::kill(pid, libc::SIGKILL);
            }
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    for name in &names {
        netns::remove(name);
    }
    for group in &groups {
        cgroup::remove(group);
    }
    let scratch = scratch(id);
    unmount_below(&scratch);
    let _ = fs::remove_dir_all(scratch);
    LIVE.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
}

/// Unmounts what a daemon of the lab mounted in its scratch directory: a BPF file system, with all that is pinned in it.
fn unmount_below(dir: &Path) {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(1));
    for point in points.filter(|point| Path::new(point).starts_with(dir)) {
        if let Ok(point) = CString::new(point) {
            // SAFETY: a C string; the mount point lies inside the directory of a lab that nobody uses any more.
            unsafe {
                libc::umount2(point.as_ptr(), libc::MNT_DETACH);
            }
        }
    }
}

/// Removes every lab of this process that was not removed or kept before: the last thing that a `main` does.
pub fn remove_all() {
    let ids: Vec<String> = LIVE
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .iter()
        .cloned()
        .collect();
    for id in ids {
        remove(&id);
    }
}

/// Marks lab `id` as one that stays when its owner ends, until [`sweep`] is told to take such labs as well.
///
/// # Errors
/// When the mark cannot be written.
pub fn keep(id: &str) -> Result<()> {
    fs::write(scratch(id).join("keep"), "this lab stays until it is removed by hand\n")?;
    LIVE.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
    Ok(())
}

/// Removes what is left of labs whose owner is dead (it was killed before it could clean up), and with `also_kept` those
/// that were kept on purpose. Returns the ids that were removed.
pub fn sweep(also_kept: bool) -> Vec<String> {
    let names = netns::list("pl").into_iter();
    let groups = cgroup::list("pl")
        .into_iter()
        .filter_map(|path| path.file_name()?.to_str().map(str::to_owned));
    let dirs = fs::read_dir(std::env::temp_dir())
        .into_iter()
        .flatten()
        .filter_map(|entry| {
            entry
                .ok()?
                .file_name()
                .to_str()?
                .strip_prefix("portolan-lab-")
                .map(str::to_owned)
        });
    let ids: BTreeSet<String> = names
        .chain(groups)
        .chain(dirs)
        .filter_map(|name| id_of(&name))
        .collect();
    let left: Vec<String> = ids
        .into_iter()
        .filter(|id| owner(id).is_some_and(|pid| !PathBuf::from(format!("/proc/{pid}")).exists()))
        .filter(|id| also_kept || !scratch(id).join("keep").exists())
        .collect();
    for id in &left {
        remove(id);
    }
    left
}

/// From now on SIGINT and SIGTERM take down every lab of this process before it ends. To be called first in `main`, before
/// other threads exist: they inherit the blocked signals.
pub fn on_signals() {
    // SAFETY: the set is initialised by sigemptyset before use; the calls have no other preconditions.
    let set = unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, libc::SIGINT);
        libc::sigaddset(&raw mut set, libc::SIGTERM);
        libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut());
        set
    };
    std::thread::spawn(move || {
        let mut signal = 0;
        // SAFETY: `set` holds the two blocked signals and `signal` is a valid place for the answer.
        unsafe {
            libc::sigwait(&raw const set, &raw mut signal);
        }
        eprintln!("signal {signal}: taking the labs down");
        remove_all();
        std::process::exit(128 + signal);
    });
}

/// `pl12-3-node-1` and `pl12-3` belong to lab `pl12-3`.
fn id_of(name: &str) -> Option<String> {
    let mut parts = name.strip_prefix("pl")?.splitn(3, '-');
    let (owner, counter) = (parts.next()?, parts.next()?);
    let digits = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
    (digits(owner) && digits(counter)).then(|| format!("pl{owner}-{counter}"))
}

fn owner(id: &str) -> Option<u32> {
    id.strip_prefix("pl")?.split('-').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_tells_its_lab_and_owner() {
        assert_eq!(id_of("pl12-3-node-1").as_deref(), Some("pl12-3"));
        assert_eq!(id_of("pl12-3").as_deref(), Some("pl12-3"));
        assert_eq!(id_of("plane"), None);
        assert_eq!(id_of("pl-1-x"), None);
        assert_eq!(owner("pl12-3"), Some(12));
    }
}
