//! What the processes of one cgroup use: CPU time and resident memory, children included.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use portolan_lab::cgroup;

/// How often the resident memory is read. A process that lives shorter than this may be missed.
const SAMPLE_EVERY: Duration = Duration::from_millis(20);
/// The length of one look at the CPU time while waiting for quiet, and how many quiet ones in a row are asked for.
const QUIET_LOOK: Duration = Duration::from_millis(250);
const QUIET_LOOKS: u32 = 4;
/// A look is quiet when less than this was used in it: one per cent.
const QUIET_CPU: Duration = Duration::from_micros(2500);

/// A cgroup that is looked at.
#[derive(Debug, Clone)]
pub struct Meter {
    group: PathBuf,
}

/// Looks for the highest resident memory until it is asked.
#[derive(Debug)]
pub struct PeakMeter {
    stop: std::sync::Arc<AtomicBool>,
    thread: JoinHandle<u64>,
}

// === impl Meter ===

impl Meter {
    /// A meter of the cgroup in this directory.
    pub fn new(group: &Path) -> Self {
        Self {
            group: group.to_owned(),
        }
    }

    /// The CPU time that processes of the cgroup have used so far, those that have ended included.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub fn cpu(&self) -> Result<Duration> {
        let file = self.group.join("cpu.stat");
        let text = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        let micros = text.lines().find_map(|line| line.strip_prefix("usage_usec "));
        let micros = micros.and_then(|digits| digits.parse().ok());
        micros
            .map(Duration::from_micros)
            .with_context(|| format!("{} has no usage_usec", file.display()))
    }

    /// The resident memory of all processes of the cgroup, in bytes. Pages that two of them share count twice.
    pub fn resident(&self) -> u64 {
        resident(&self.group).values().map(|memory| memory.now).sum()
    }

    /// Starts to look for the highest resident memory.
    pub fn watch_peak(&self) -> PeakMeter {
        let group = self.group.clone();
        let stop = std::sync::Arc::new(AtomicBool::new(false));
        let flag = std::sync::Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut peak = 0;
            loop {
                let last = flag.load(Ordering::Relaxed);
                let seen = resident(&group);
                let together: u64 = seen.values().map(|memory| memory.now).sum();
                let single = seen.values().map(|memory| memory.highest).max().unwrap_or(0);
                peak = peak.max(together).max(single);
                if last {
                    return peak;
                }
                std::thread::sleep(SAMPLE_EVERY);
            }
        });
        PeakMeter { stop, thread }
    }

    /// Waits until the cgroup's processes have used next to no CPU time for a second, and returns the time used so far.
    ///
    /// # Errors
    /// When they are not quiet within `patience`.
    pub fn quiet(&self, patience: Duration) -> Result<Duration> {
        let deadline = Instant::now() + patience;
        let (mut looks, mut before) = (0, self.cpu()?);
        while looks < QUIET_LOOKS {
            if Instant::now() > deadline {
                bail!(
                    "the proxy is still at work {} s after its rules are there",
                    patience.as_secs()
                );
            }
            std::thread::sleep(QUIET_LOOK);
            let now = self.cpu()?;
            looks = if now.saturating_sub(before) < QUIET_CPU {
                looks + 1
            } else {
                0
            };
            before = now;
        }
        Ok(before)
    }
}

impl PeakMeter {
    /// Ends the search and returns the highest number of bytes seen.
    ///
    /// # Errors
    /// When its thread has died.
    pub fn finish(self) -> Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread
            .join()
            .map_err(|_| anyhow::anyhow!("the thread that watches the memory has died"))
    }
}

/// Bytes of resident memory of one process.
struct Memory {
    now: u64,
    highest: u64,
}

fn resident(group: &Path) -> BTreeMap<i32, Memory> {
    let pids = cgroup::pids(group).into_iter();
    // A process that has just ended has no memory any more.
    pids.filter_map(|pid| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        Some((pid, memory(&status)?))
    })
    .collect()
}

fn memory(status: &str) -> Option<Memory> {
    let field = |name: &str| -> Option<u64> {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        let kib: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
        Some(kib * 1024)
    };
    Some(Memory {
        now: field("VmRSS:")?,
        highest: field("VmHWM:")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_from_a_status_page() {
        let read = memory("Name:\tnft\nVmHWM:\t   2048 kB\nVmRSS:\t   1024 kB\n");
        assert_eq!(read.map(|m| (m.now, m.highest)), Some((1 << 20, 2 << 20)));
        // A zombie has no such lines.
        assert!(memory("Name:\tnft\nState:\tZ (zombie)\n").is_none());
    }
}
