//! Cold load and single changes: how long, how much CPU time and how much memory, at each size.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use crate::Options;
use crate::client;
use crate::report::{Measured, Metric};
use crate::scale::Kind;
use crate::site::{Seat, Site};

/// How long one change may take.
const PATIENCE: Duration = Duration::from_secs(300);
const MIB: f64 = 1024.0 * 1024.0;

/// What one change has cost.
struct Changed {
    /// From the sending of the PATCH to the API server's answer.
    answered: Duration,
    /// From the sending of the PATCH to the first connection that the new endpoint answered.
    reached: Duration,
    /// CPU time of the proxy until it was idle.
    cpu: Duration,
}

/// Measures every subject at every size.
///
/// # Errors
/// When a subject does not do what is measured.
pub fn run(site: &mut Site, options: &Options) -> Result<Measured> {
    let names: Vec<&str> = site.seats.iter().map(Seat::name).collect();
    let mut measured = Measured::new("sync", &names, site.scale.endpoints(), Metric::SYNC);
    for size in options.sizes() {
        site.grow(size)?;
        for repeat in 0..options.repeats() {
            for turn in 0..site.seats.len() {
                // Every repeat begins with another subject.
                let index = (turn + usize::try_from(repeat)?) % site.seats.len();
                run_one(site, index, size, options, &mut measured)
                    .with_context(|| format!("{} at {size} Services", names.get(index).unwrap_or(&"?")))?;
            }
        }
    }
    Ok(measured)
}

/// One cold load with its changes, on a clean node.
fn run_one(site: &mut Site, index: usize, size: u32, options: &Options, measured: &mut Measured) -> Result<()> {
    let seat = site.seats.get(index).context("no such subject")?;
    let (name, meter) = (seat.name(), site.meter(seat)?);
    site.settle(options)?;
    let loaded = site.load(seat)?;
    let loaded_memory = meter.resident();
    site.say(&format!(
        "{name}: {size} Services after {:.2} s, {:.2} s of CPU time, {:.0} MiB",
        loaded.first_connection.as_secs_f64(),
        loaded.cpu.as_secs_f64(),
        loaded_memory as f64 / MIB
    ));
    let listed = site.list(seat)?;
    let peak = meter.watch_peak();
    let (mut changes, mut additions) = (Vec::new(), Vec::new());
    for _ in 0..options.changes() {
        changes.push(change(site, index, Kind::Replaced)?);
        additions.push(change(site, index, Kind::Added)?);
    }
    let seat = site.seats.get(index).context("no such subject")?;
    let peak = peak.finish()?.max(loaded.peak);
    let memory = meter.resident();
    site.unload(seat, loaded.daemon)?;
    let millis = |changes: &[Changed], times: &dyn Fn(&Changed) -> Duration| -> Vec<f64> {
        changes
            .iter()
            .map(|change| times(change).as_secs_f64() * 1000.0)
            .collect()
    };
    let reached = millis(&changes, &|change| change.reached);
    site.say(&format!(
        "{name}: changes reached after {reached:.1?} ms, {:.0} MiB",
        memory as f64 / MIB
    ));
    let mut record = |metric, values: Vec<f64>| measured.record(size, metric, name, values);
    record(Metric::LoadSeconds, vec![loaded.first_connection.as_secs_f64()]);
    record(Metric::LoadCpuSeconds, vec![loaded.cpu.as_secs_f64()]);
    record(Metric::LoadPeakMib, vec![loaded.peak as f64 / MIB]);
    record(Metric::LoadedMib, vec![loaded_memory as f64 / MIB]);
    record(Metric::ChangeMillis, reached);
    record(Metric::ListSeconds, vec![listed.as_secs_f64()]);
    record(Metric::ChangeAnswerMillis, millis(&changes, &|change| change.answered));
    record(Metric::ChangeCpuMillis, millis(&changes, &|change| change.cpu));
    record(Metric::AdditionMillis, millis(&additions, &|change| change.reached));
    record(Metric::AdditionCpuMillis, millis(&additions, &|change| change.cpu));
    record(Metric::PeakMib, vec![peak as f64 / MIB]);
    record(Metric::ChangedMib, vec![memory as f64 / MIB]);
    Ok(())
}

/// One change, from an idle proxy to an idle proxy. What was added is taken back afterwards.
fn change(site: &mut Site, index: usize, kind: Kind) -> Result<Changed> {
    let change = site.scale.next_change(kind)?;
    let seat = site.seats.get(index).context("no such subject")?;
    let (target, meter) = (site.scale.newest()?, site.meter(seat)?);
    let cpu_before = meter.cpu()?;
    let stop = AtomicBool::new(false);
    let (sent, answered, reached) = std::thread::scope(|scope| -> Result<_> {
        let waiting = scope.spawn(|| site.in_client(seat, || client::first_answer(target, &change.newcomer, &stop)));
        let sent = Instant::now();
        let done = site.scale.make(&change);
        let answered = sent.elapsed();
        while done.is_ok() && !waiting.is_finished() && sent.elapsed() < PATIENCE {
            std::thread::sleep(Duration::from_millis(2));
        }
        stop.store(true, Ordering::Relaxed);
        let reached = waiting.join().map_err(|_| anyhow::anyhow!("the client has died"))?;
        done?;
        Ok((sent, answered, reached?))
    })?;
    let cpu = meter.quiet(PATIENCE)?.saturating_sub(cpu_before);
    if kind == Kind::Added {
        site.scale.make(&site.scale.undo()?)?;
        meter.quiet(PATIENCE)?;
    }
    Ok(Changed {
        answered,
        reached: reached.saturating_duration_since(sent),
        cpu,
    })
}
