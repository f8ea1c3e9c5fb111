//! Connections through the programmed rules: how long `connect` takes and how many a second one client makes, at each size.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use crate::Options;
use crate::client;
use crate::report::{Measured, Metric};
use crate::site::{Seat, Site};

/// Measures every subject at every size, all of them loaded at the same time and asked in turns.
///
/// # Errors
/// When a subject does not make a Service work.
pub fn run(site: &mut Site, options: &Options) -> Result<Measured> {
    let names: Vec<&str> = site.seats.iter().map(Seat::name).collect();
    let mut measured = Measured::new("path", &names, site.scale.endpoints(), Metric::PATH);
    for size in options.sizes() {
        site.grow(size)?;
        let mut daemons = Vec::new();
        for seat in site.seats.iter().filter(|seat| seat.subject.is_some()) {
            let loaded = site
                .load(seat)
                .with_context(|| format!("{} at {size} Services", seat.name()))?;
            site.say(&format!("{}: loaded", seat.name()));
            daemons.push((seat, loaded.daemon));
        }
        site.settle(options)?;
        for repeat in 0..options.repeats() {
            for turn in 0..site.seats.len() {
                let index = (turn + usize::try_from(repeat)?) % site.seats.len();
                let seat = site.seats.get(index).context("no such subject")?;
                connect(site, seat, size, options.connections(), &mut measured)
                    .with_context(|| format!("{} at {size} Services", seat.name()))?;
            }
        }
        for (seat, daemon) in daemons {
            site.unload(seat, daemon)?;
        }
    }
    Ok(measured)
}

/// One turn of one subject: a few connections that do not count, then those that do.
fn connect(site: &Site, seat: &Seat, size: u32, count: u32, measured: &mut Measured) -> Result<()> {
    let targets: Vec<SocketAddr> = match seat.subject {
        Some(_) => site.scale.service_addresses(),
        None => site.scale.pod_addresses(),
    };
    let (mut times, took) = site.in_client(seat, || {
        client::connect_times(&targets, count / 10)?;
        let start = Instant::now();
        let times = client::connect_times(&targets, count)?;
        Ok((times, start.elapsed()))
    })?;
    times.sort_unstable();
    let micros = |share: usize| -> Result<Vec<f64>> {
        let at = (times.len() * share / 100).min(times.len().saturating_sub(1));
        let time: &Duration = times.get(at).context("no connection was made")?;
        Ok(vec![time.as_secs_f64() * 1e6])
    };
    measured.record(size, Metric::ConnectMedianMicros, seat.name(), micros(50)?);
    measured.record(size, Metric::ConnectSlowMicros, seat.name(), micros(99)?);
    measured.record(
        size,
        Metric::ConnectionsPerSecond,
        seat.name(),
        vec![f64::from(count) / took.as_secs_f64()],
    );
    Ok(())
}
