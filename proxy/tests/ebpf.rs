//! The kernel takes the eBPF programs, and connections go through them. Needs root, and the programs: `cargo xtask ebpf`.
#![cfg(target_os = "linux")]

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use portolan_proxy::backend::ebpf::{EbpfOptions, probe};

/// A folder that goes with all that is mounted on it.
struct Folder(tempfile::TempDir);

impl Drop for Folder {
    fn drop(&mut self) {
        let path = CString::new(self.0.path().as_os_str().as_bytes()).expect("a path");
        // SAFETY: a C string; the mount is this test's own.
        unsafe {
            libc::umount2(path.as_ptr(), libc::MNT_DETACH);
        }
    }
}

/// The cgroup2 directory that this process is in.
fn own_cgroup() -> PathBuf {
    let mounts = std::fs::read_to_string("/proc/self/mounts").expect("a list of mounts");
    let mount = mounts
        .lines()
        .find_map(|line| match line.split(' ').collect::<Vec<_>>()[..] {
            [_, at, "cgroup2", ..] => Some(PathBuf::from(at)),
            _ => None,
        })
        .expect("a cgroup2 hierarchy");
    let groups = std::fs::read_to_string("/proc/self/cgroup").expect("a list of cgroups");
    let own = groups
        .lines()
        .find_map(|line| line.strip_prefix("0::/"))
        .expect("a cgroup2 path");
    mount.join(own)
}

fn pinned(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).expect("a folder").flatten();
    entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect()
}

#[test]
fn the_verifier_takes_every_program_and_a_probe_leaves_nothing() {
    let folder = Folder(tempfile::tempdir().expect("a folder"));
    let options = EbpfOptions {
        cgroup: Some(own_cgroup()),
        bpffs: folder.0.path().to_owned(),
        host_only: false,
        map_size: 1 << 16,
    };
    for _ in 0..2 {
        // What a probe left that was killed long ago.
        let left = options.bpffs.join("probe-1");
        if options.bpffs.join("links").exists() {
            std::fs::create_dir_all(left.join("links")).expect("a folder of pins");
            let long_ago = SystemTime::now() - Duration::from_secs(3600);
            let folder = std::fs::File::open(&left).expect("a folder");
            folder.set_modified(long_ago).expect("a time");
        }
        let proof = probe(&options).expect("the kernel runs the programs");
        assert!(!proof.families.is_empty(), "{proof}");
        assert!(!pinned(&options.bpffs).iter().any(|name| name.starts_with("probe")));
    }
}

#[test]
fn a_folder_that_is_no_cgroup_is_named() {
    let folder = Folder(tempfile::tempdir().expect("a folder"));
    let options = EbpfOptions {
        cgroup: Some(folder.0.path().join("none")),
        bpffs: folder.0.path().to_owned(),
        host_only: false,
        map_size: 1 << 16,
    };
    let error = format!("{:#}", probe(&options).expect_err("no cgroup"));
    assert!(error.contains("none"), "{error}");
}
