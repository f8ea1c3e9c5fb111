//! Whether the machine is idle: a figure of a busy one means little.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

/// Below this share of its CPU time in use, a machine with an idle control plane counts as idle.
const IDLE_PERCENT: f64 = 10.0;

/// Waits until the machine is idle, for `patience` at most but one look of a second in any case, and says how busy it is.
/// After thousands of new objects the controller-manager works for minutes.
///
/// # Errors
/// When the kernel does not say.
pub fn settle(patience: Duration) -> Result<String> {
    let began = Instant::now();
    loop {
        let busy = busy_percent(Duration::from_secs(1))?;
        let verdict = match busy < IDLE_PERCENT {
            true => "",
            false if began.elapsed() < patience => continue,
            false => ": something else is at work, so times mean little",
        };
        return Ok(format!(
            "the machine is {busy:.0} % busy while the bench waits, {:.0} s{verdict}",
            began.elapsed().as_secs_f64()
        ));
    }
}

/// The share of the machine's CPU time, in per cent, that anything used during `look`.
fn busy_percent(look: Duration) -> Result<f64> {
    let before = idle_and_all()?;
    std::thread::sleep(look);
    let after = idle_and_all()?;
    let (idle, all) = (after.0.saturating_sub(before.0), after.1.saturating_sub(before.1));
    Ok(100.0 - 100.0 * idle as f64 / all.max(1) as f64)
}

/// Ticks that all CPUs were idle, and ticks in all.
fn idle_and_all() -> Result<(u64, u64)> {
    let text = std::fs::read_to_string("/proc/stat").context("cannot read /proc/stat")?;
    let first = text.lines().next().unwrap_or_default();
    let ticks: Vec<u64> = first
        .split_whitespace()
        .skip(1)
        .map_while(|ticks| ticks.parse().ok())
        .collect();
    let idle = ticks.iter().skip(3).take(2).sum();
    // The last two, time of guests, are part of the first two.
    Ok((idle, ticks.iter().take(8).sum()))
}
