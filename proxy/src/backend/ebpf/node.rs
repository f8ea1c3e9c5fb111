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

/// The root of the machine's cgroup2 hierarchy.
///
/// # Errors
/// When none is mounted, and in a network namespace that is not the machine's (process 1 has that one): the root then holds
/// processes that are not this node's.
pub(crate) fn cgroup_root() -> io::Result<PathBuf> {
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
}
