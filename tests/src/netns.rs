//! Named network namespaces: made, entered, configured and removed.
//!
//! A namespace is bound under `/run/netns`, so that `ip netns exec NAME` works on it by hand. Links, addresses and routes
//! are set by `ip -batch`, one process for a whole list of commands. Nothing here touches the namespace that the caller
//! runs in.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

/// Where `ip netns` keeps its namespaces.
pub const DIRECTORY: &str = "/run/netns";

/// A network namespace that can be entered. The handle keeps it alive; [`Netns::remove`] takes its name away.
#[derive(Debug)]
pub struct Netns {
    name: String,
    file: OwnedFd,
}

// === impl Netns ===

impl Netns {
    /// Opens the namespace `name`, which [`create`] or `ip netns add` made before.
    ///
    /// # Errors
    /// When no such namespace exists.
    pub fn open(name: &str) -> Result<Self> {
        let file = File::open(path(name)).with_context(|| format!("network namespace {name} cannot be opened"))?;
        Ok(Self {
            name: name.to_owned(),
            file: file.into(),
        })
    }

    /// The name under `/run/netns`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The descriptor that `setns` takes.
    pub fn raw_fd(&self) -> i32 {
        self.file.as_raw_fd()
    }

    /// Runs `work` on a thread of its own inside the namespace and returns what it returned.
    ///
    /// # Errors
    /// When the namespace cannot be entered, or when `work` fails or panics.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let fd = self.raw_fd();
        std::thread::scope(|scope| {
            scope
                .spawn(move || {
                    // SAFETY: setns with a descriptor that outlives the call; it changes this thread only, which ends below.
                    if unsafe { libc::setns(fd, libc::CLONE_NEWNET) } != 0 {
                        return Err(std::io::Error::last_os_error()).context("setns failed (root is needed)");
                    }
                    work()
                })
                .join()
                .unwrap_or_else(|_| bail!("the work inside network namespace {} panicked", self.name))
        })
    }

    /// Writes kernel settings of this namespace: `("net.ipv4.ip_forward", "1")`.
    ///
    /// # Errors
    /// When a setting does not exist or refuses the value.
    pub fn sysctl(&self, settings: &[(&str, &str)]) -> Result<()> {
        self.run(|| {
            for (key, value) in settings {
                let file = format!("/proc/sys/{}", key.replace('.', "/"));
                fs::write(&file, value).with_context(|| format!("{file} does not take {value:?}"))?;
            }
            Ok(())
        })
    }

    /// Runs `ip` commands inside this namespace, as one batch.
    ///
    /// # Errors
    /// When one of them fails; the message holds what `ip` said.
    pub fn ip(&self, commands: &str) -> Result<()> {
        batch(Some(&self.name), commands)
    }

    /// The processes that live in the namespace.
    pub fn pids(&self) -> Vec<i32> {
        pids(&self.name)
    }
}

/// The file that stands for namespace `name`.
pub fn path(name: &str) -> PathBuf {
    Path::new(DIRECTORY).join(name)
}

/// Makes namespaces, with IPv6 addresses usable at once (no duplicate address detection) and loopback up.
///
/// # Errors
/// When the caller is not root or a name is taken.
pub fn create(names: &[String], settings: &[(&str, &str)]) -> Result<Vec<Netns>> {
    let commands: String = names.iter().map(|name| format!("netns add {name}\n")).collect();
    batch(None, &commands)?;
    names
        .iter()
        .map(|name| {
            let ns = Netns::open(name)?;
            // Before any link exists: `default` only reaches links that are made later.
            ns.sysctl(&[
                ("net.ipv6.conf.all.accept_dad", "0"),
                ("net.ipv6.conf.default.accept_dad", "0"),
                ("net.ipv6.conf.default.dad_transmits", "0"),
                ("net.ipv6.conf.default.router_solicitations", "0"),
                ("net.ipv6.conf.default.accept_ra", "0"),
                ("net.ipv4.conf.all.rp_filter", "0"),
                ("net.ipv4.conf.default.rp_filter", "0"),
            ])?;
            ns.sysctl(settings)?;
            Ok(ns)
        })
        .collect()
}

/// Runs `ip` commands as one batch: in namespace `name`, or in the caller's.
///
/// # Errors
/// When `ip` is missing or one of the commands fails.
pub fn batch(name: Option<&str>, commands: &str) -> Result<()> {
    let mut ip = Command::new("ip");
    if let Some(name) = name {
        ip.args(["-n", name]);
    }
    let mut child = ip
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("the ip command (package iproute2) cannot be started")?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(commands.as_bytes())?;
    }
    let output = child.wait_with_output()?;
    if !output.status.success() {
        let place = name.map_or_else(String::new, |name| format!(" in {name}"));
        bail!(
            "ip -batch{place} failed: {}\nthe batch was:\n{commands}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(())
}

/// Removes namespace `name`, whatever is left in it; silent when there is none.
pub fn remove(name: &str) {
    let file = path(name);
    let Ok(target) = std::ffi::CString::new(file.as_os_str().as_encoded_bytes()) else {
        return;
    };
    // SAFETY: `target` is a valid C string for the duration of both calls.
    unsafe {
        libc::umount2(target.as_ptr(), libc::MNT_DETACH);
    }
    // A name without a mount behind it is only a file; both steps are tried and neither is needed to succeed.
    let _ = fs::remove_file(file);
}

/// The names of all namespaces that begin with `prefix`.
pub fn list(prefix: &str) -> Vec<String> {
    let Ok(entries) = fs::read_dir(DIRECTORY) else {
        return Vec::new();
    };
    entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name.starts_with(prefix))
        .collect()
}

/// The processes that live in namespace `name`: those whose `/proc/PID/ns/net` is the same file.
pub fn pids(name: &str) -> Vec<i32> {
    use std::os::unix::fs::MetadataExt as _;
    let Ok(wanted) = fs::metadata(path(name)).map(|m| (m.dev(), m.ino())) else {
        return Vec::new();
    };
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|pid: &i32| fs::metadata(format!("/proc/{pid}/ns/net")).is_ok_and(|m| (m.dev(), m.ino()) == wanted))
        .collect()
}
