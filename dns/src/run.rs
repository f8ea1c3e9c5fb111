//! `portolan-dns run`: binds, follows the source, serves, and drains at the end.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use arc_swap::ArcSwap;
use portolan_agent::admin::{Admin, Reply};
use portolan_agent::source::{self, Batch, Feed, Health};
use portolan_agent::{admin, shutdown};
use portolan_model::{Delta, World};
use prometheus_client::registry::Registry;
use tokio_util::sync::CancellationToken;

use crate::config::RunArgs;
use crate::forward::upstream::{Source, parse_resolv_conf, without_loops};
use crate::forward::{Forwarder, Limits};
use crate::metrics::{Exporter, Tallies};
use crate::server::{self, Options, Shared, TcpLimits};
use crate::zone::{Snapshot, Zone};

/// How often a resolv.conf is looked at.
const LOOK: Duration = Duration::from_secs(2);
/// How long queries that wait for upstreams may take at the end.
const DRAIN: Duration = Duration::from_secs(5);

/// Serves until SIGTERM or SIGINT.
///
/// # Errors
/// When something that was asked for cannot be had: a port, a source, an upstream.
pub async fn run(args: &RunArgs) -> Result<()> {
    let mut config = args.zone.zone()?;
    let bound = server::bind(Options {
        listen: args.listen.clone(),
        threads: args.threads(),
        tcp: TcpLimits::default(),
        encrypted: Vec::new(),
    })?;
    let own = bound.addresses().iter().map(SocketAddr::ip);
    config.set_own_addresses(own.filter(|ip| !ip.is_unspecified()));
    // Another one after each start: clients take what they are given.
    config.set_cookie_secret(rand::random());
    let forwarder = Forwarder::new(Limits {
        max_concurrent: args.max_concurrent as usize,
        cache_octets: usize::from(args.cache_size) << 20,
    });
    let shutdown = shutdown::on_signal().context("cannot handle signals")?;
    let upstreams = Source::parse(&args.upstreams)?;
    let named = upstreams_of(&forwarder, &upstreams, bound.addresses())?;
    let listening = bound.addresses().to_vec();
    let follow = upstreams
        .file()
        .map(|file| follow(file.into(), named, forwarder.clone(), listening));

    let tallies = Arc::new(Tallies::new(config.zones().len()));
    let zone = Zone::new(config, now());
    let shared = Shared {
        zone: zone.reader(),
        forwarder,
        tallies,
    };
    let feed = source::start(args.zone.source(), shutdown.clone()).await?;
    let draining = Arc::new(AtomicBool::new(false));
    let admins = admins(args, &shared, &feed.health(), &draining).await?;
    for address in bound.addresses() {
        tracing::info!(%address, threads = args.threads(), "answering over UDP and TCP");
    }
    let running = bound.serve(&shared).context("cannot start the server's threads")?;
    let ended = CancellationToken::new();
    let admins: Vec<_> = admins
        .into_iter()
        .map(|admin| tokio::spawn(admin.serve(ended.clone())))
        .collect();
    let sync = tokio::spawn(follow_source(feed, zone, shutdown.clone()));
    let follow = follow.map(tokio::spawn);

    shutdown.cancelled().await;
    draining.store(true, Ordering::Relaxed);
    let lameduck = args.lameduck();
    if !lameduck.is_zero() {
        tracing::info!(?lameduck, "answering on while clients turn away");
        tokio::time::sleep(lameduck).await;
    }
    running.drain(DRAIN).await;
    ended.cancel();
    for admin in admins {
        let _ = admin.await;
    }
    sync.abort();
    if let Some(follow) = follow {
        follow.abort();
    }
    tracing::info!("ended");
    Ok(())
}

/// Seconds since 1970, which serials are made of.
fn now() -> u32 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(1, |since| since.as_secs() as u32)
}

/// Sets the upstreams that are named, and returns them. One on the command line that is this server is an error; one in a file is passed
/// over, because the file is someone else's.
fn upstreams_of(forwarder: &Forwarder, source: &Source, listening: &[SocketAddr]) -> Result<Vec<SocketAddr>> {
    let named = match source.read() {
        Ok(named) => named,
        Err(error) if source.file() == Some("/etc/resolv.conf".as_ref()) => {
            tracing::warn!(%error, "only the cluster's names are answered until there are upstreams");
            Vec::new()
        }
        Err(error) => return Err(error.into()),
    };
    let (kept, refused) = without_loops(named.clone(), listening);
    for error in refused {
        if source.file().is_none() {
            return Err(error.into());
        }
        tracing::error!(%error, "refusing an upstream");
    }
    if kept.is_empty() {
        tracing::warn!("there is no upstream: only the cluster's names are answered");
    } else {
        tracing::info!(upstreams = ?kept, "forwarding other names");
    }
    forwarder.set_upstreams(&kept);
    Ok(named)
}

/// Follows a resolv.conf that named `known`. It is looked at, not watched: it may be replaced, mounted over or rewritten
/// in place. When it is gone for a moment, what was known stays in force.
async fn follow(file: PathBuf, mut known: Vec<SocketAddr>, forwarder: Forwarder, listening: Vec<SocketAddr>) {
    loop {
        tokio::time::sleep(LOOK).await;
        let Ok(text) = tokio::fs::read_to_string(&file).await else {
            continue;
        };
        let named = parse_resolv_conf(&text);
        if named == known {
            continue;
        }
        known.clone_from(&named);
        let (kept, refused) = without_loops(named, &listening);
        for error in refused {
            tracing::error!(file = %file.display(), %error, "refusing an upstream");
        }
        tracing::info!(file = %file.display(), upstreams = ?kept, "upstreams changed");
        forwarder.set_upstreams(&kept);
    }
}

/// Gives the memory back that reading the first list has left behind.
fn give_back() {
    // SAFETY: it takes no pointer and changes nothing that a program can see.
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Applies what the source says to the zone, batch by batch.
async fn follow_source(mut feed: Feed, mut zone: Zone, shutdown: CancellationToken) {
    let mut world = World::default();
    let mut synced = false;
    while let Some(batch) = feed.next().await {
        let Batch {
            events,
            synced: complete,
            ..
        } = batch;
        let mut delta = Delta::default();
        for mut event in events {
            zone.naming().reduce(&mut event);
            world.apply(event, &mut delta);
        }
        let applied = zone.apply(&world, &delta, now());
        tracing::debug!(built = applied.built, changed = applied.changed, "applied a batch");
        if complete && !synced {
            synced = true;
            zone.set_synced();
            give_back();
            let (services, addresses) = zone.reader().load().counts();
            tracing::info!(services, addresses, "synced: answering the cluster's names");
        }
    }
    if !shutdown.is_cancelled() {
        tracing::error!("the source ended; answers stay as they are");
    }
}

/// The HTTP listeners, bound. Routes that share an address share a listener.
async fn admins(
    args: &RunArgs,
    shared: &Shared,
    health: &Health,
    draining: &Arc<AtomicBool>,
) -> Result<Vec<admin::Bound>> {
    let mut registry = Registry::default();
    portolan_agent::process::register(&mut registry);
    let port = args.listen.first().map_or(0, SocketAddr::port);
    registry.register_collector(Box::new(Exporter {
        server: format!("dns://:{port}"),
        tallies: shared.tallies.clone(),
        forwarder: shared.forwarder.clone(),
        zone: shared.zone.clone(),
        source: health.clone(),
    }));
    let mut admins: BTreeMap<SocketAddr, Admin> = BTreeMap::new();
    let mut route = |address: SocketAddr, add: &mut dyn FnMut(Admin) -> Admin| {
        let admin = admins.remove(&address).unwrap_or_default();
        admins.insert(address, add(admin));
    };
    route(args.health_bind_address, &mut |admin| {
        admin.version().route("/health", || Reply::text("OK"))
    });
    let ready = readiness(shared.zone.clone(), health.clone(), draining.clone());
    route(args.ready_bind_address, &mut |admin| {
        admin.route("/ready", ready.clone())
    });
    let registry = Arc::new(registry);
    route(args.metrics_bind_address, &mut |admin| admin.metrics(registry.clone()));
    let mut bound = Vec::new();
    for (address, admin) in admins {
        bound.push(admin.bind(address).await?);
    }
    Ok(bound)
}

/// `/ready`: from the first full sync until the end begins.
fn readiness(
    zone: Arc<ArcSwap<Snapshot>>,
    health: Health,
    draining: Arc<AtomicBool>,
) -> impl Fn() -> Reply + Clone + Send + Sync + 'static {
    move || {
        if draining.load(Ordering::Relaxed) {
            return Reply::text("shutting down\n").status(503);
        }
        if zone.load().synced {
            return Reply::text("OK");
        }
        let pending = health.pending();
        Reply::text(format!("waiting for {}\n", pending.join(", "))).status(503)
    }
}
