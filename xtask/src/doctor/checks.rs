//! The rows of the doctor's table: what is tried, why it is needed, how to get it.
//!
//! Kernel features are tried inside a fresh network namespace, so nothing of the machine's own network is touched.

use std::path::Path;
use std::process::Command;

use clap::ValueEnum;

use super::Purpose::{self, ApiServer, Bench, BenchDns, Build, Cross, Demo, Test};
use crate::command::{RUST, one_line, output, version, which};
use crate::cross::{self, Target};
use crate::ebpf;

/// Whether the absence of something is a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Its purposes cannot be served without it.
    Required,
    /// It adds a check that is left out otherwise.
    Optional,
}

/// How to get what is missing.
#[derive(Clone, Copy)]
pub enum Remedy {
    /// Packages, by Debian's and by Fedora's names.
    Packages {
        /// Debian and Ubuntu.
        apt: &'static [&'static str],
        /// Fedora and its relatives.
        dnf: &'static [&'static str],
    },
    /// Shell commands, or a sentence where no command can help.
    Commands(&'static str),
}

/// One thing the project needs.
pub struct Check {
    /// What it is called in the table.
    pub name: &'static str,
    /// What needs it.
    pub purposes: &'static [Purpose],
    /// What it does for them.
    pub reason: &'static str,
    /// Whether it can be done without.
    pub need: Need,
    /// Not looked at on other systems, where the userspace backend is all there is.
    pub linux_only: bool,
    /// Tries it: what was found, or what is wrong.
    pub probe: fn() -> Result<String, String>,
    /// How to get it.
    pub remedy: Remedy,
}

const EVERY: &[Purpose] = &[Build, Demo, ApiServer, Test, Bench, BenchDns, Cross];
const LAB: &[Purpose] = &[Demo, Test, Bench, BenchDns];
const REFERENCE: &[Purpose] = &[Test, Bench];
const CONTROL_PLANE: &[Purpose] = &[ApiServer, Test, Bench, BenchDns];
const ON_EBPF: &[Purpose] = &[Test, Bench];
const ON_CROSS: &[Purpose] = &[Test, Cross];

/// The oldest Go that fetches a newer one by itself when a module asks for it.
const GO: (u32, u32) = (1, 21);

const fn packages(apt: &'static [&'static str], dnf: &'static [&'static str]) -> Remedy {
    Remedy::Packages { apt, dnf }
}

const fn required(
    name: &'static str,
    purposes: &'static [Purpose],
    reason: &'static str,
    probe: fn() -> Result<String, String>,
    remedy: Remedy,
) -> Check {
    Check {
        name,
        purposes,
        reason,
        need: Need::Required,
        linux_only: true,
        probe,
        remedy,
    }
}

/// Every check, in the order in which they are shown.
pub static ALL: &[Check] = &[
    Check {
        linux_only: false,
        ..required(
            "rustc",
            EVERY,
            "compiles everything",
            || version(Command::new("rustc").arg("--version"), RUST).map_err(one_line),
            Remedy::Commands("rustup update stable && rustup default stable"),
        )
    },
    required(
        "cc",
        EVERY,
        "links programs, compiles the C parts of the TLS library",
        || program("cc"),
        packages(&["gcc", "libc6-dev"], &["gcc"]),
    ),
    Check {
        linux_only: false,
        ..required(
            "clippy, rustfmt",
            &[Test],
            "the lint and format steps",
            || {
                output(Command::new("cargo").args(["fmt", "--version"])).map_err(one_line)?;
                output(Command::new("cargo").args(["clippy", "--version"]))
                    .map(one_line)
                    .map_err(one_line)
            },
            Remedy::Commands("rustup component add clippy rustfmt"),
        )
    },
    required(
        "ip",
        LAB,
        "makes the lab's namespaces, links and routes",
        || program("ip"),
        packages(&["iproute2"], &["iproute"]),
    ),
    required(
        "unshare",
        LAB,
        "a namespace for each probe of this table",
        || program("unshare"),
        packages(&["util-linux"], &["util-linux"]),
    ),
    required(
        "nft",
        LAB,
        "shows and judges what the proxy wrote (the proxy itself never calls it)",
        || program("nft"),
        packages(&["nftables"], &["nftables"]),
    ),
    required(
        "conntrack",
        REFERENCE,
        "shows connection entries to the tests",
        || program("conntrack"),
        packages(&["conntrack"], &["conntrack-tools"]),
    ),
    required(
        "iptables",
        REFERENCE,
        "what kube-proxy programs in its mode iptables (the proxy itself never calls it)",
        || program("iptables"),
        packages(&["iptables"], &["iptables"]),
    ),
    required(
        "chromium",
        REFERENCE,
        "opens the proxy's page as people do",
        || program("chromium"),
        packages(&["chromium"], &["chromium"]),
    ),
    required(
        "root",
        LAB,
        "namespaces and rules need it; without it the demo runs in userspace on loopback",
        root,
        Remedy::Commands("sudo -E env \"PATH=$PATH\" cargo xtask doctor"),
    ),
    required(
        "network namespaces",
        LAB,
        "each node, pod and client of the lab is one",
        || in_namespace("true", "works"),
        Remedy::Commands(
            "# the kernel needs CONFIG_NET_NS, the container CAP_SYS_ADMIN: use a virtual machine or a privileged container",
        ),
    ),
    required(
        "veth",
        LAB,
        "the cables of the lab",
        || in_namespace("ip link add probe0 type veth peer name probe1", "works"),
        Remedy::Commands("modprobe veth"),
    ),
    required(
        "nftables in the kernel",
        LAB,
        "the nft backend: concatenated maps, numgen, NAT, reject",
        nftables,
        Remedy::Commands("modprobe -a nf_tables nft_chain_nat nft_numgen nft_masq nft_reject_inet"),
    ),
    required(
        "conntrack in the kernel",
        LAB,
        "replies find their way back through the NAT",
        kernel_conntrack,
        Remedy::Commands("modprobe -a nf_conntrack nf_conntrack_netlink nft_ct"),
    ),
    required(
        "cgroup2",
        LAB,
        "a cgroup for each node of the lab",
        cgroup2,
        Remedy::Commands("mkdir -p /sys/fs/cgroup/unified && mount -t cgroup2 none /sys/fs/cgroup/unified"),
    ),
    required(
        "rustc for BPF",
        ON_EBPF,
        "compiles the eBPF programs: rustup's nightly with rust-src will do as well",
        || {
            ebpf::toolchain()
                .map(|toolchain| toolchain.rustc.display().to_string())
                .map_err(one_line)
        },
        packages(&["rustc-web", "cargo-web", "libstd-rust-web-dev-bpf"], &[]),
    ),
    required(
        "bpf-linker",
        ON_EBPF,
        "links the eBPF programs; it is built once, by `cargo xtask ebpf`",
        || ebpf::linker_or_llvm().map_err(one_line),
        packages(&["llvm-22-dev", "libpolly-22-dev", "zlib1g-dev", "libzstd-dev"], &[]),
    ),
    required(
        "curl",
        REFERENCE,
        "an HTTP client that is not ours",
        || program("curl"),
        packages(&["curl"], &["curl"]),
    ),
    required(
        "dig",
        &[Test],
        "a resolver that is not ours",
        || program("dig"),
        packages(&["bind9-dnsutils"], &["bind-utils"]),
    ),
    required(
        "openssl",
        CONTROL_PLANE,
        "the key that the API server signs service account tokens with",
        || program("openssl"),
        packages(&["openssl"], &["openssl"]),
    ),
    Check {
        linux_only: false,
        ..required(
            "go",
            CONTROL_PLANE,
            "builds the reference programs of `cargo xtask kube-assets` (not needed where they are found)",
            || version(Command::new("go").arg("version"), GO).map_err(one_line),
            Remedy::Commands(
                "curl -fsSL https://go.dev/dl/go1.26.8.linux-amd64.tar.gz | tar -C /usr/local -xz && export PATH=/usr/local/go/bin:$PATH",
            ),
        )
    },
    required(
        "dig",
        &[Test],
        "a DNS client that is not ours",
        || program("dig"),
        packages(&["bind9-dnsutils"], &["bind-utils"]),
    ),
    required(
        "busybox",
        &[Test],
        "a resolver that is not ours: its nslookup",
        || program("busybox"),
        packages(&["busybox"], &["busybox"]),
    ),
    required(
        "musl-gcc",
        &[Test],
        "builds a client with musl's resolver, which most containers have",
        || program("musl-gcc"),
        packages(&["musl-tools"], &["musl-gcc"]),
    ),
    required(
        "dnsperf",
        &[BenchDns],
        "asks as fast as it is answered",
        || program("dnsperf"),
        packages(&["dnsperf"], &["dnsperf"]),
    ),
    required(
        "knotd",
        &[BenchDns],
        "Knot DNS, measured beside ours (its package may start it as a service: systemctl disable --now knot)",
        || daemon("knotd"),
        packages(&["knot"], &["knot"]),
    ),
    required(
        "unbound",
        &[BenchDns],
        "Unbound, measured beside ours (its package may start it as a service: systemctl disable --now unbound)",
        || daemon("unbound"),
        packages(&["unbound"], &["unbound"]),
    ),
    required(
        "foreign std",
        ON_CROSS,
        "a rustc with the standard library of Windows and macOS, compiled or in source form",
        standard_library,
        packages(&["rustc-web", "cargo-web", "rust-web-src"], &[]),
    ),
    required(
        "mingw-w64",
        ON_CROSS,
        "links the Windows program",
        || program("x86_64-w64-mingw32-gcc"),
        packages(&["gcc-mingw-w64-x86-64"], &["mingw64-gcc"]),
    ),
    required(
        "wine",
        ON_CROSS,
        "runs the Windows program",
        || program("wine"),
        packages(&["wine", "wine64"], &["wine"]),
    ),
    Check {
        need: Need::Optional,
        linux_only: false,
        ..required(
            "cargo-deny",
            &[Test],
            "licences and advisories of the dependencies (deny.toml); the step is left out without it",
            || {
                output(Command::new("cargo").args(["deny", "--version"]))
                    .map(one_line)
                    .map_err(|_| "not installed".to_owned())
            },
            Remedy::Commands("cargo install --locked cargo-deny"),
        )
    },
];

/// Whether this process may make namespaces and rules at all.
pub fn is_root() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    effective_uid(&status) == Some(0)
}

fn effective_uid(status: &str) -> Option<u32> {
    status
        .lines()
        .find_map(|line| line.strip_prefix("Uid:"))?
        .split_whitespace()
        .nth(1)?
        .parse()
        .ok()
}

fn root() -> Result<String, String> {
    if is_root() {
        Ok("yes".into())
    } else {
        Err("this is not root".into())
    }
}

fn program(name: &str) -> Result<String, String> {
    which(name)
        .map(|path| path.display().to_string())
        .ok_or_else(|| format!("no {name} on PATH"))
}

/// A program that may lie where only root's PATH leads.
fn daemon(name: &str) -> Result<String, String> {
    let usual = Path::new("/usr/sbin").join(name);
    program(name).or_else(|error| match usual.is_file() {
        true => Ok(usual.display().to_string()),
        false => Err(error),
    })
}

fn in_namespace(script: &str, works: &str) -> Result<String, String> {
    output(Command::new("unshare").args(["--net", "sh", "-ec", script]))
        .map(|_| works.into())
        .map_err(one_line)
}

/// The kinds of rule that the nft backend is made of.
const RULES: &str = r#"nft -f - <<'RULES'
table inet probe {
  map endpoints {
    typeof ip daddr . meta l4proto . th dport . numgen random mod 1 : ip daddr . th dport
    elements = { 10.96.0.1 . tcp . 80 . 0 : 10.244.0.1 . 8080 }
  }
  chain lb-1 { dnat ip to ip daddr . meta l4proto . th dport . numgen random mod 1 map @endpoints; }
  map services {
    typeof ip daddr . meta l4proto . th dport : verdict
    elements = { 10.96.0.1 . tcp . 80 : goto lb-1 }
  }
  chain before { type nat hook prerouting priority dstnat; ip daddr . meta l4proto . th dport vmap @services; }
  chain after { type nat hook postrouting priority srcnat; meta mark 0x4000 masquerade; }
  chain through { type filter hook forward priority filter; ct state new ip daddr 10.96.0.2 reject; }
}
RULES"#;

fn nftables() -> Result<String, String> {
    in_namespace(RULES, "maps, numgen, NAT, masquerade and reject work")
}

fn kernel_conntrack() -> Result<String, String> {
    let script = "nft 'table ip probe { chain c { type filter hook input priority 0; ct state new counter; }; }'\n\
                  test -r /proc/sys/net/netfilter/nf_conntrack_count";
    in_namespace(script, "works")
}

fn cgroup2() -> Result<String, String> {
    let mounts = std::fs::read_to_string("/proc/mounts").unwrap_or_default();
    let Some(mount) = cgroup2_mount(&mounts) else {
        return Err("no cgroup2 file system is mounted".into());
    };
    let probe = Path::new(mount).join(format!("portolan-doctor-{}", std::process::id()));
    std::fs::create_dir(&probe).map_err(|error| format!("cannot make a cgroup in {mount}: {error}"))?;
    std::fs::remove_dir(&probe).map_err(|error| format!("cannot remove {}: {error}", probe.display()))?;
    Ok(format!("{mount}, writable"))
}

fn cgroup2_mount(mounts: &str) -> Option<&str> {
    mounts.lines().find_map(|line| {
        let mut fields = line.split_whitespace();
        let (mount, kind) = (fields.nth(1)?, fields.next()?);
        (kind == "cgroup2").then_some(mount)
    })
}

fn standard_library() -> Result<String, String> {
    let all = Target::value_variants()
        .iter()
        .map(|target| cross::toolchain(*target).map_err(one_line));
    let found = all.collect::<Result<Vec<_>, _>>()?;
    Ok(found
        .first()
        .map(|toolchain| toolchain.rustc.display().to_string())
        .unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_effective_user_decides() {
        let check = |status, expect| assert_eq!(effective_uid(status), expect, "{status}");
        check("Name:\tx\nUid:\t1000\t0\t0\t0\n", Some(0));
        check("Uid:\t0\t1000\t0\t0\n", Some(1000));
        check("Uid:\n", None);
    }

    #[test]
    fn the_mount_of_cgroup2_is_found_beside_version_1() {
        let mounts = "cgroup /sys/fs/cgroup/cpu cgroup rw 0 0\ncgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n";
        assert_eq!(cgroup2_mount(mounts), Some("/sys/fs/cgroup/unified"));
        assert_eq!(cgroup2_mount("tmpfs /tmp tmpfs rw 0 0\n"), None);
    }
}
