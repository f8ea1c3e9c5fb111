//! Limits of the node that kube-proxy raises and so do we: room for connections, their time-outs, our own place in the
//! queue of the out-of-memory killer.
//!
//! A limit that cannot be set costs nothing else: it is a warning, and forwarding goes on.

use std::fs;
use std::path::{Path, PathBuf};

use crate::config::{Conntrack, Period};

/// Where the kernel's settings are.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// `/proc`.
    pub proc: PathBuf,
    /// `/sys`.
    pub sys: PathBuf,
}

impl Default for Kernel {
    fn default() -> Self {
        Self {
            proc: "/proc".into(),
            sys: "/sys".into(),
        }
    }
}

/// Sets what `conntrack` asks for on a machine with so many cores, and returns what could not be set. A limit that is
/// higher already stays, as with kube-proxy.
pub fn raise_conntrack(kernel: &Kernel, conntrack: &Conntrack, cores: u32) -> Vec<String> {
    let mut problems = Vec::new();
    let mut raise = |name: &str, wanted: u64| {
        let path = kernel.proc.join("sys/net/netfilter").join(name);
        problems.extend(at_least(&path, wanted).err());
    };
    if let Some(wanted) = connections(conntrack, cores) {
        raise("nf_conntrack_max", wanted);
    }
    let timeouts = [
        (
            "nf_conntrack_tcp_timeout_established",
            conntrack.tcp_established_timeout,
        ),
        ("nf_conntrack_tcp_timeout_close_wait", conntrack.tcp_close_wait_timeout),
        ("nf_conntrack_udp_timeout", conntrack.udp_timeout),
        ("nf_conntrack_udp_timeout_stream", conntrack.udp_stream_timeout),
    ];
    for (name, Period(wanted)) in timeouts {
        if wanted.as_secs() > 0 {
            raise(name, wanted.as_secs());
        }
    }
    if conntrack.tcp_be_liberal {
        raise("nf_conntrack_tcp_be_liberal", 1);
    }
    // Four connections a bucket, as kube-proxy; the kernel lets only its first network namespace change this.
    if let Some(wanted) = connections(conntrack, cores) {
        let path = kernel.sys.join("module/nf_conntrack/parameters/hashsize");
        problems.extend(at_least(&path, wanted / 4).err());
    }
    problems
}

/// How many connections to track; `None` leaves the kernel's limit.
fn connections(conntrack: &Conntrack, cores: u32) -> Option<u64> {
    let scaled = u64::from(conntrack.max_per_core) * u64::from(cores);
    (scaled > 0).then(|| scaled.max(u64::from(conntrack.min)))
}

fn at_least(path: &Path, wanted: u64) -> Result<(), String> {
    let failed = |what: &str, cause: std::io::Error| format!("{what} {} at least {wanted}: {cause}", path.display());
    let text = fs::read_to_string(path).map_err(|cause| failed("cannot see whether there is", cause))?;
    let present: u64 = text.trim().parse().unwrap_or(0);
    if present >= wanted {
        return Ok(());
    }
    fs::write(path, wanted.to_string()).map_err(|cause| failed("cannot make", cause))?;
    tracing::info!(setting = %path.display(), from = present, to = wanted, "raised a limit of the node");
    Ok(())
}

/// Sets `oom_score_adj` of this process.
///
/// # Errors
/// A sentence, when the kernel refuses (a lower value needs CAP_SYS_RESOURCE).
pub fn set_oom_score_adj(kernel: &Kernel, score: i32) -> Result<(), String> {
    let path = kernel.proc.join("self/oom_score_adj");
    fs::write(&path, score.to_string()).map_err(|cause| format!("cannot write {score} to {}: {cause}", path.display()))
}

/// What keeps packets from reaching pods on other nodes, if anything does.
pub fn forwarding(kernel: &Kernel) -> Option<String> {
    let path = kernel.proc.join("sys/net/ipv4/ip_forward");
    let text = fs::read_to_string(path).ok()?;
    (text.trim() == "0").then(|| {
        "net.ipv4.ip_forward is 0: this node does not forward packets, so Services work only for endpoints on it; set it to 1"
            .into()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kernel(files: &[(&str, &str)]) -> (tempfile::TempDir, Kernel) {
        let dir = tempfile::tempdir().expect("a folder");
        for (name, text) in files {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().expect("a parent")).expect("a folder");
            fs::write(path, text).expect("a file");
        }
        let kernel = Kernel {
            proc: dir.path().join("proc"),
            sys: dir.path().join("sys"),
        };
        (dir, kernel)
    }

    #[test]
    fn limits_are_raised_and_never_lowered() {
        const MAX: &str = "proc/sys/net/netfilter/nf_conntrack_max";
        const ESTABLISHED: &str = "proc/sys/net/netfilter/nf_conntrack_tcp_timeout_established";
        const CLOSE_WAIT: &str = "proc/sys/net/netfilter/nf_conntrack_tcp_timeout_close_wait";
        const LIBERAL: &str = "proc/sys/net/netfilter/nf_conntrack_tcp_be_liberal";
        const HASH: &str = "sys/module/nf_conntrack/parameters/hashsize";
        let check = |conntrack: Conntrack, cores, expect: [&str; 5]| {
            let (dir, kernel) = kernel(&[
                (MAX, "65536\n"),
                (ESTABLISHED, "432000"),
                (CLOSE_WAIT, "60"),
                (LIBERAL, "0"),
                (HASH, "16384"),
            ]);
            assert_eq!(raise_conntrack(&kernel, &conntrack, cores), Vec::<String>::new());
            let found = [MAX, ESTABLISHED, CLOSE_WAIT, LIBERAL, HASH]
                .map(|name| fs::read_to_string(dir.path().join(name)).expect("a file"));
            assert_eq!(found.each_ref().map(|text| text.trim()), expect);
        };
        let default = Conntrack::default();
        check(default.clone(), 2, ["131072", "432000", "3600", "0", "32768"]);
        check(default.clone(), 8, ["262144", "432000", "3600", "0", "65536"]);
        let untouched = Conntrack {
            max_per_core: 0,
            tcp_close_wait_timeout: Period::default(),
            ..default.clone()
        };
        check(untouched, 8, ["65536", "432000", "60", "0", "16384"]);
        check(
            Conntrack {
                tcp_be_liberal: true,
                ..default
            },
            1,
            ["131072", "432000", "3600", "1", "32768"],
        );
    }

    #[test]
    fn what_cannot_be_set_is_told_by_name() {
        let (_dir, kernel) = kernel(&[("proc/sys/net/netfilter/nf_conntrack_max", "1")]);
        let problems = raise_conntrack(&kernel, &Conntrack::default(), 1);
        assert_eq!(problems.len(), 3, "{problems:?}");
        assert!(
            problems[0].contains("nf_conntrack_tcp_timeout_established"),
            "{problems:?}"
        );
    }
}
