//! Follows the Corefile: another one is put in force when it can be used, and is only reported when it cannot.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Result, bail};
use clap::Parser;
use portolan_model::World;
use tokio::sync::mpsc;

use super::sync::now;
use crate::config::{CheckArgs, Cli, RunArgs};
use crate::corefile::lex::PILLARS;
use crate::corefile::{Corefile, Machine};
use crate::plant::Plant;
use crate::settings::Settings;
use crate::zone::{Zone, ZoneConfig};

/// How often the signal's flag is looked at when no interval is set.
const SELDOM: Duration = Duration::from_secs(3600);

/// What is counted.
#[derive(Debug, Default)]
pub struct Counts {
    /// Corefiles that could not be used.
    pub failed: AtomicU64,
    /// Of the one in force (FNV-1a).
    pub version: AtomicU64,
}

/// Reads what the flags name.
///
/// # Errors
/// With every problem of a Corefile in the log, or that of a flag.
pub fn load(args: &RunArgs) -> Result<Settings> {
    let Some(file) = &args.corefile else {
        return Settings::from_flags(args);
    };
    let (corefile, problems) = Corefile::read(file, &machine(args));
    if problems.is_empty() {
        return Settings::from_corefile(args, &corefile);
    }
    for problem in &problems {
        tracing::error!("{problem}");
    }
    match &problems[..] {
        [only] => bail!("{only}"),
        _ => bail!("{} has {} problems, named above", file.display(), problems.len()),
    }
}

/// Whether a Corefile can be used; prints what is wrong with it, or what it comes to.
///
/// # Errors
/// When it cannot.
pub fn check(args: &CheckArgs) -> Result<()> {
    let file = &args.corefile;
    // The other flags have their defaults.
    let args = &Cli::parse_from(["portolan-dns"]).run;
    let (corefile, problems) = Corefile::read(file, &machine(args));
    for problem in &problems {
        println!("{problem}");
    }
    if !problems.is_empty() {
        bail!("{} cannot be used", file.display());
    }
    let settings = Settings::from_corefile(args, &corefile)?;
    for group in &settings.groups {
        let addresses: Vec<String> = group.listen.iter().map(ToString::to_string).collect();
        let encrypted = group.encrypted.iter();
        let encrypted = encrypted.map(|e| format!("{}://{}", format!("{:?}", e.scheme).to_lowercase(), e.address));
        let addresses: Vec<String> = addresses.into_iter().chain(encrypted).collect();
        println!("on {}:", addresses.join(", "));
        if let Some(zone) = settings.zone.as_ref().filter(|_| group.cluster) {
            let zones: Vec<String> = zone
                .zones()
                .iter()
                .map(|zone| crate::zone::names::text(&zone.wire))
                .collect();
            println!("  the cluster's names in {}", zones.join(", "));
        }
        for block in &group.blocks {
            let zone = crate::zone::names::text(&block.zone);
            for forward in &block.forwards {
                let to = forward.to.iter().map(ToString::to_string);
                let to: Vec<String> = to
                    .chain(forward.files.iter().map(|file| file.display().to_string()))
                    .collect();
                println!("  {zone} to {}", to.join(", "));
            }
            if block.forwards.is_empty() {
                println!("  {zone} to nobody: other names are refused");
            }
        }
    }
    Ok(())
}

fn machine(args: &RunArgs) -> Machine {
    let domain = args.zone.cluster_domains.first().cloned().unwrap_or_default();
    let local = args
        .local_ip
        .first()
        .map_or_else(|| "169.254.20.10".to_owned(), ToString::to_string);
    let mut pillars = vec![(PILLARS[0], local), (PILLARS[2], domain)];
    if let Some(service) = args.local_ip.get(1) {
        pillars.push((PILLARS[1], service.to_string()));
    }
    Machine { pillars }
}

/// A running process that follows its Corefile.
pub struct Reload {
    /// The flags, which win over it.
    pub args: RunArgs,
    /// What is in force.
    pub settings: Settings,
    /// The groups of listeners, in the order of the settings.
    pub plants: Vec<Plant>,
    /// Takes the configuration of the zones.
    pub zone: mpsc::Sender<ZoneConfig>,
    /// Serves listeners that have none of the cluster's zones.
    pub elsewhere: Zone,
    /// What is counted.
    pub counts: Arc<Counts>,
}

// === impl Reload ===

impl Reload {
    /// Follows for ever. SIGUSR1 and SIGHUP make it look at once, also when the Corefile does not say `reload`.
    pub async fn run(mut self) {
        let mut known = fingerprint(&self.settings.files);
        self.counts.version.store(known, Ordering::Relaxed);
        if self.settings.files.is_empty() {
            // The plants live as long as this does.
            return std::future::pending().await;
        }
        let mut signals = Signals::new();
        loop {
            let pause = self.settings.reload.unwrap_or(SELDOM);
            let asked = tokio::select! {
                () = tokio::time::sleep(pause) => false,
                () = signals.next() => true,
            };
            if !asked && self.settings.reload.is_none() {
                continue;
            }
            let now = fingerprint(&self.settings.files);
            if now == known && !asked {
                continue;
            }
            known = now;
            match load(&self.args).and_then(|settings| self.put_in_force(settings)) {
                Ok(()) => {
                    // It may import other files now.
                    known = fingerprint(&self.settings.files);
                    self.counts.version.store(known, Ordering::Relaxed);
                }
                Err(error) => {
                    self.counts.failed.fetch_add(1, Ordering::Relaxed);
                    let error = portolan_agent::telemetry::one_line(error.as_ref());
                    tracing::error!(error, "the new Corefile cannot be used; the old one stays in force");
                }
            }
        }
    }

    fn put_in_force(&mut self, settings: Settings) -> Result<()> {
        let beyond = settings.beyond(&self.settings);
        if !beyond.is_empty() {
            bail!("it changes {}: that takes a restart", beyond.join(", "));
        }
        let listening = settings.listen();
        for (plant, group) in self.plants.iter_mut().zip(&settings.groups) {
            plant.configure(group, &listening)?;
        }
        if let Some(mut zone) = settings.zone.clone() {
            zone.set_own_addresses(own(&listening));
            zone.set_cookie_secret(rand::random());
            // It is taken within moments, or the process ends.
            let _ = self.zone.try_send(zone);
        }
        self.elsewhere
            .configure(super::nothing(&settings), &World::default(), now());
        tracing::info!(files = settings.files.len(), "another Corefile is in force");
        self.settings = settings;
        Ok(())
    }
}

/// The addresses that are this server's own, as far as they are known.
pub fn own(listening: &[std::net::SocketAddr]) -> impl Iterator<Item = std::net::IpAddr> + '_ {
    listening
        .iter()
        .map(std::net::SocketAddr::ip)
        .filter(|ip| !ip.is_unspecified())
}

/// What files hold, in a number.
fn fingerprint(files: &[PathBuf]) -> u64 {
    let mut sum: u64 = 0xcbf2_9ce4_8422_2325;
    for file in files {
        let content = std::fs::read(file).unwrap_or_default();
        for octet in content.iter().chain(&[0]) {
            sum = (sum ^ u64::from(*octet)).wrapping_mul(0x0100_0000_01b3);
        }
    }
    sum
}

#[cfg(unix)]
struct Signals(Vec<tokio::signal::unix::Signal>);

#[cfg(unix)]
impl Signals {
    fn new() -> Self {
        use tokio::signal::unix::{SignalKind, signal};
        let kinds = [SignalKind::user_defined1(), SignalKind::hangup()];
        Self(kinds.into_iter().filter_map(|kind| signal(kind).ok()).collect())
    }

    async fn next(&mut self) {
        match &mut self.0[..] {
            [user, hangup] => tokio::select! {
                _ = user.recv() => {}
                _ = hangup.recv() => {}
            },
            _ => std::future::pending().await,
        }
    }
}

#[cfg(not(unix))]
struct Signals;

#[cfg(not(unix))]
impl Signals {
    fn new() -> Self {
        Self
    }

    async fn next(&mut self) {
        std::future::pending().await
    }
}
