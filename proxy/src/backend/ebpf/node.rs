//! The node as the kernel has it: its network namespace and its cgroup.

use std::fs;
use std::io;
use std::net::UdpSocket;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

const SO_NETNS_COOKIE: i32 = 71;

/// The cookie of this thread's network namespace; 0 where the kernel does not tell (before 5.14), which programs take for
/// the machine's first namespace.
pub(crate) fn netns_cookie() -> u64 {
    let Ok(socket) = UdpSocket::bind(("127.0.0.1", 0)) else {
        return 0;
    };
    let mut cookie = 0_u64;
    let mut length = libc::socklen_t::try_from(size_of::<u64>()).unwrap_or(8);
    // SAFETY: the buffer has the length that is given.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    if result == 0 { cookie } else { 0 }
}

/// The cgroup2 directory to attach to: the chosen one, or the root of the mounted hierarchy. Where version 1 rules, cgroup2
/// is mounted at `unified` below `/sys/fs/cgroup` (systemd's hybrid layout); a choice of the folder above it means that one.
///
/// # Errors
/// When there is no cgroup2 directory.
pub(crate) fn cgroup(chosen: Option<&Path>) -> io::Result<PathBuf> {
    let found = match chosen {
        Some(chosen) => hybrid(chosen),
        None => cgroup_root()?,
    };
    // Every cgroup of version 2 has this file, and none of version 1.
    if found.join("cgroup.controllers").exists() {
        Ok(found)
    } else {
        Err(io::Error::other(format!(
            "--cgroup {}: not a cgroup2 directory",
            found.display()
        )))
    }
}

fn hybrid(chosen: &Path) -> PathBuf {
    let below = chosen.join("unified");
    let is_other = !chosen.join("cgroup.controllers").exists() && below.join("cgroup.controllers").exists();
    if is_other { below } else { chosen.to_owned() }
}

/// The root of the machine's cgroup2 hierarchy.
///
/// # Errors
/// When none is mounted, and in a network namespace that is not the machine's (process 1 has that one): the root then holds
/// processes that are not this node's.
fn cgroup_root() -> io::Result<PathBuf> {
    let netns = |process: &str| fs::read_link(format!("/proc/{process}/ns/net"));
    if let (Ok(own), Ok(first)) = (netns("self"), netns("1"))
        && own != first
    {
        return Err(io::Error::other(
            "this network namespace is not the machine's own: --cgroup has to name the cgroup2 directory of this node's processes",
        ));
    }
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    root_of(&mounts).map(Path::to_owned).ok_or_else(|| {
        io::Error::other(
            "no cgroup2 file system is mounted (mount -t cgroup2 none /sys/fs/cgroup), and --cgroup names none",
        )
    })
}

fn root_of(mounts: &str) -> Option<&Path> {
    mounts.lines().find_map(|line| {
        let mut fields = line.split_whitespace().skip(1);
        let (at, kind) = (fields.next()?, fields.next()?);
        (kind == "cgroup2").then_some(Path::new(at))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cgroup2_mount_is_found_beside_version_1() {
        let mounts = "cgroup /sys/fs/cgroup/cpu cgroup rw 0 0\ncgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n";
        assert_eq!(root_of(mounts), Some(Path::new("/sys/fs/cgroup/unified")));
        assert_eq!(root_of("tmpfs /tmp tmpfs rw 0 0\n"), None);
    }

    #[test]
    fn a_chosen_folder_of_version_1_means_the_hierarchy_below_it() -> io::Result<()> {
        let folder = tempfile::tempdir()?;
        let top = folder.path();
        let unified = top.join("unified");
        fs::create_dir(&unified)?;
        assert!(cgroup(Some(top)).is_err(), "no cgroup2 anywhere");
        fs::write(unified.join("cgroup.controllers"), "")?;
        assert_eq!(cgroup(Some(top))?, unified);
        assert_eq!(cgroup(Some(&unified))?, unified);
        fs::write(top.join("cgroup.controllers"), "")?;
        assert_eq!(
            cgroup(Some(top))?,
            top,
            "a group of that name in a hierarchy of version 2"
        );
        Ok(())
    }
}
