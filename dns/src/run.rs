//! `portolan-dns run`: binds, follows the source, serves, and drains at the end.

pub mod admins;
pub mod reload;
pub mod sync;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use portolan_agent::shutdown;
use portolan_agent::source::store::Store;
use portolan_agent::source::{self, Health, Origin};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::config::RunArgs;
use crate::forward::Limits;
use crate::handover::{self, Estate, Inherited};
use crate::metrics::{ForwardMetrics, Programming, Served};
use crate::nodelocal::NodeLocal;
use crate::plant::Plant;
use crate::server::{self, Options, Running, TcpLimits};
use crate::settings::Settings;
use crate::zone::{Zone, ZoneConfig};
use admins::Admins;
use reload::{Counts, Reload};
use sync::{Sync, now};

/// How long queries that wait for upstreams may take at the end.
const DRAIN: Duration = Duration::from_secs(5);

/// Serves until SIGTERM or SIGINT, or until a successor has taken over.
///
/// # Errors
/// When something that was asked for cannot be had: a port, a source, an upstream.
pub async fn run(args: &RunArgs) -> Result<()> {
    let settings = reload::load(args)?;
    let listening = settings.listen();
    let mut inherited = match &args.handover {
        Some(file) => handover::ask(file).with_context(|| format!("--handover {}", file.display()))?,
        None => Inherited::default(),
    };
    let predecessor = inherited.predecessor.take();
    let mut node_local = match &args.local_ip[..] {
        [] => None,
        addresses => Some(NodeLocal::set_up(addresses).context("--local-ip")?),
    };
    let mut bound = Vec::new();
    for group in &settings.groups {
        let options = Options {
            listen: group.listen.clone(),
            threads: args.threads(),
            tcp: TcpLimits::default(),
            encrypted: group.encrypted.clone(),
        };
        bound.push(server::bind_or_inherit(options, &mut inherited)?);
    }
    // Those that are served no longer.
    drop(inherited);
    let addresses: Vec<SocketAddr> = bound.iter().flat_map(|bound| bound.addresses().to_vec()).collect();
    let shutdown = shutdown::on_signal().context("cannot handle signals")?;

    // The cluster's names.
    let mut config = settings.zone.clone().unwrap_or_else(ZoneConfig::nothing);
    config.set_own_addresses(reload::own(&addresses));
    // Another one after each start: clients take what they are given.
    config.set_cookie_secret(rand::random());
    let zone = Zone::new(config, now());
    let names = zone.reader();
    let programming = Arc::new(Programming::default());
    let (configure, configurations) = mpsc::channel(1);
    let (ready, mut is_ready) = watch::channel(false);
    let health = start_source(&settings, args, zone, configurations, ready, &programming, &shutdown).await?;

    // What goes elsewhere.
    let forwarding = ForwardMetrics::default();
    let mut elsewhere = Zone::new(nothing(&settings), now());
    elsewhere.set_synced();
    let mut plants = Vec::new();
    for group in &settings.groups {
        let zone = if group.cluster {
            names.clone()
        } else {
            elsewhere.reader()
        };
        let mut plant = Plant::new(zone, limits(args, settings.groups.len()), forwarding.clone());
        plant.configure(group, if addresses.is_empty() { &listening } else { &addresses })?;
        plants.push(plant);
    }

    if predecessor.is_some() {
        // It answers meanwhile, and knows more.
        tracing::info!("waiting for the cluster's names before taking over");
        tokio::select! {
            _ = is_ready.wait_for(|ready| *ready) => {}
            () = shutdown.cancelled() => return Ok(()),
        }
    }
    let draining = Arc::new(AtomicBool::new(false));
    let counts = Arc::new(Counts::default());
    let served = plants
        .iter()
        .zip(&settings.groups)
        .map(|(plant, group)| served(plant, &group.listen))
        .collect();
    let admins = Admins {
        served,
        forwarding,
        zone: names,
        source: health,
        programming,
        reload: counts.clone(),
        draining: draining.clone(),
        ready_needs_source: args.ready_needs_source,
    };
    let mut admins = admins.routes(&settings);
    // A predecessor still has the ports.
    if predecessor.is_none() {
        admins.bind().await?;
    }
    let mut estate = Estate::default();
    let mut running: Vec<Running> = Vec::new();
    for (bound, plant) in bound.into_iter().zip(&plants) {
        bound.estate(&mut estate).context("cannot copy sockets")?;
        for address in bound.addresses() {
            tracing::info!(%address, threads = args.threads(), "answering over UDP and TCP");
        }
        for address in bound.encrypted_addresses() {
            tracing::info!(%address, "answering encrypted queries");
        }
        running.push(
            bound
                .serve(&plant.shared)
                .context("cannot start the server's threads")?,
        );
    }
    let succeeded = CancellationToken::new();
    if let Some(predecessor) = predecessor {
        if let Some(node_local) = &mut node_local {
            // It sees then that it is not the last one.
            node_local.take_queries(&listening).context("--local-ip")?;
        }
        match predecessor.dismiss() {
            Ok(()) => tracing::info!("took over from the running process"),
            Err(error) => tracing::warn!(%error, "the process that had the sockets is gone"),
        }
    }
    if let Some(file) = &args.handover {
        handover::listen(file.clone(), estate, succeeded.clone())
            .with_context(|| format!("--handover {}", file.display()))?;
    }
    let ended = CancellationToken::new();
    let admins = tokio::spawn(admins.serve(ended.clone()));
    let reload = Reload {
        args: args.clone(),
        settings: settings.clone(),
        plants,
        zone: configure,
        elsewhere,
        counts,
    };
    let reload = tokio::spawn(reload.run());
    if let Some(node_local) = &mut node_local {
        // Until names are known, queries to the DNS Service go where the Service says.
        tokio::select! {
            _ = is_ready.wait_for(|ready| *ready) => node_local.take_queries(&listening).context("--local-ip")?,
            () = shutdown.cancelled() => {}
            () = succeeded.cancelled() => {}
        }
    }

    tokio::select! {
        () = shutdown.cancelled() => {}
        () = succeeded.cancelled() => tracing::info!("a successor answers now"),
    }
    draining.store(true, Ordering::Relaxed);
    if succeeded.is_cancelled() {
        // It wants our HTTP ports.
        ended.cancel();
    } else if !settings.lameduck.is_zero() {
        tracing::info!(lameduck = ?settings.lameduck, "answering on while clients turn away");
        tokio::select! {
            () = tokio::time::sleep(settings.lameduck) => {}
            () = succeeded.cancelled() => ended.cancel(),
        }
    }
    let handed_over = succeeded.is_cancelled();
    if let Some(node_local) = node_local.as_mut().filter(|_| !handed_over) {
        // First nobody is led here any more, then the sockets close.
        node_local.leave_queries();
    }
    let ends = running.into_iter().map(|running| async move {
        if handed_over {
            running.hand_over(DRAIN).await;
        } else {
            running.drain(DRAIN).await;
        }
    });
    futures::future::join_all(ends).await;
    ended.cancel();
    let _ = admins.await;
    reload.abort();
    // The addresses go now, unless a successor answers on them.
    drop(node_local);
    if let Some(file) = args.handover.as_ref().filter(|_| !handed_over) {
        let _ = std::fs::remove_file(file);
    }
    tracing::info!("ended");
    Ok(())
}

/// Starts to read the cluster, and answers from the disk until it has been read.
async fn start_source(
    settings: &Settings,
    args: &RunArgs,
    mut zone: Zone,
    configurations: mpsc::Receiver<ZoneConfig>,
    ready: watch::Sender<bool>,
    programming: &Arc<Programming>,
    shutdown: &CancellationToken,
) -> Result<Option<Health>> {
    let Some(config) = settings.source.clone() else {
        zone.set_synced();
        ready.send_replace(true);
        // Whoever reads from the zone has a reader of its own.
        return Ok(None);
    };
    let store = store(args, &config);
    let feed = source::start(config, shutdown.clone()).await?;
    let health = feed.health();
    let sync = Sync::new(feed, zone, store, configurations, ready, programming.clone());
    let shutdown = shutdown.clone();
    tokio::spawn(async move {
        sync.run().await;
        if !shutdown.is_cancelled() {
            tracing::error!("the source ended; answers stay as they are");
        }
    });
    Ok(Some(health))
}

/// Where the last state of the cluster is kept, if it is.
pub fn store(args: &RunArgs, config: &source::Config) -> Option<Store> {
    let folder = args.zone.source.state_dir.as_deref()?;
    // Manifests are on the disk already.
    let Origin::Kube(options) = &config.origin else {
        return None;
    };
    let identity = format!("{:?} {:?} {:?}", options.kubeconfig, options.master, config.wants);
    Some(Store::new(folder, "portolan-dns", &identity))
}

/// No zones, for listeners that have none of the cluster's.
pub fn nothing(settings: &Settings) -> ZoneConfig {
    let mut config = ZoneConfig::nothing();
    config.policy = settings.policy.clone();
    config
}

/// The limits of one of so many groups.
fn limits(args: &RunArgs, groups: usize) -> Limits {
    Limits {
        max_concurrent: args.max_concurrent as usize,
        cache_octets: (usize::from(args.cache_size) << 20) / groups.max(1),
    }
}

fn served(plant: &Plant, addresses: &[SocketAddr]) -> Served {
    Served {
        server: format!("dns://:{}", addresses.first().map_or(0, SocketAddr::port)),
        tallies: plant.shared.tallies.clone(),
        forwarder: plant.shared.forwarder.clone(),
        zone: plant.shared.zone.clone(),
    }
}
