//! A group of listeners at work: its forwarder, its rules, and the files that they follow. Another configuration is put in
//! force without a query being lost.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use arc_swap::{ArcSwap, ArcSwapOption};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::corefile::plugins::forward::Forward;
use crate::forward::loops::AGAIN;
use crate::forward::pool::Pool;
use crate::forward::route::{Block, Route, Table};
use crate::forward::spec::Target;
use crate::forward::upstream::{parse_resolv_conf, without_loops};
use crate::forward::{Forwarder, Limits};
use crate::metrics::{ForwardMetrics, Tallies};
use crate::rules::hosts::Hosts;
use crate::rules::{self, Rules};
use crate::server::Shared;
use crate::settings::Group;
use crate::zone::Snapshot;

/// How often a resolv.conf is looked at.
const LOOK: Duration = Duration::from_secs(2);
/// CoreDNS's limit.
const MAX_UPSTREAMS: usize = 15;

/// A group of listeners at work.
#[derive(Debug)]
pub struct Plant {
    /// What its listeners share.
    pub shared: Shared,
    rules: Arc<ArcSwapOption<Rules>>,
    listening: Vec<SocketAddr>,
    /// Ends what follows files for the configuration that is in force.
    follow: Option<DropGuard>,
}

/// The upstreams of one `forward`.
struct Upstreams {
    pool: Arc<Pool>,
    to: Vec<Target>,
    files: Vec<PathBuf>,
}

// === impl Plant ===

impl Plant {
    /// A group that answers nothing yet but the zones in `zone`.
    pub fn new(zone: Arc<ArcSwap<Snapshot>>, limits: Limits, metrics: ForwardMetrics) -> Self {
        let zones = zone.load().config.zones().len();
        let rules = Arc::new(ArcSwapOption::empty());
        Self {
            shared: Shared {
                zone,
                forwarder: Forwarder::with_metrics(limits, metrics),
                tallies: Arc::new(Tallies::new(zones)),
                rules: rules.clone(),
            },
            rules,
            listening: Vec::new(),
            follow: None,
        }
    }

    /// Puts a configuration in force. `listening` is where this server answers, which no upstream may be.
    ///
    /// # Errors
    /// When an upstream that was named as such is this server. One in a file is passed over, because the file is someone
    /// else's.
    pub fn configure(&mut self, group: &Group, listening: &[SocketAddr]) -> Result<()> {
        self.listening = listening.to_vec();
        let forwarder = &self.shared.forwarder;
        let mut all = Vec::new();
        let (mut blocks, mut ruled, mut hosts) = (Vec::new(), Vec::new(), Vec::new());
        for block in &group.blocks {
            let mut routes = Vec::new();
            for forward in &block.forwards {
                let upstreams = Upstreams::new(forwarder, forward);
                upstreams.look(listening, true)?;
                routes.push(Route {
                    from: forward.from.clone(),
                    except: forward.except.clone(),
                    pool: upstreams.pool.clone(),
                });
                all.push(upstreams);
            }
            let (policy, cache_zones) = block.cache.clone().unzip();
            blocks.push(Block {
                zone: block.zone.clone(),
                routes,
                cache: policy.map(Arc::new),
                cache_zones: cache_zones.unwrap_or_default(),
            });
            let known: Vec<Arc<Hosts>> = block
                .hosts
                .iter()
                .map(|spec| Arc::new(Hosts::new(spec.clone())))
                .collect();
            hosts.extend(known.iter().cloned());
            ruled.push(rules::Block {
                zone: block.zone.clone(),
                rewrites: block.rewrites.clone(),
                templates: block.templates.clone(),
                hosts: known,
                log: block.log.clone(),
            });
        }
        let pools: Vec<Arc<Pool>> = all.iter().map(|upstreams| upstreams.pool.clone()).collect();
        if pools.iter().all(|pool| pool.upstreams().is_empty()) {
            tracing::warn!("there is no upstream: only the cluster's names are answered");
        }
        crate::forward::tls::forget();
        forwarder.set_table(Table::new(blocks));
        self.rules.store(Rules::new(ruled).map(Arc::new));
        let stop = CancellationToken::new();
        for upstreams in all.into_iter().filter(|upstreams| !upstreams.files.is_empty()) {
            spawn(&stop, upstreams.follow(listening.to_vec()));
        }
        for hosts in hosts {
            if let Some((_, pause)) = hosts.file() {
                spawn(&stop, follow_hosts(hosts.clone(), pause));
            }
        }
        if group.detect_loops {
            spawn(&stop, examine(forwarder.clone(), pools));
        }
        self.follow = Some(stop.drop_guard());
        Ok(())
    }
}

fn spawn(stop: &CancellationToken, task: impl Future<Output = ()> + Send + 'static) {
    tokio::spawn(stop.clone().run_until_cancelled_owned(task));
}

async fn follow_hosts(hosts: Arc<Hosts>, pause: Duration) {
    loop {
        tokio::time::sleep(pause).await;
        hosts.look();
    }
}

/// Looks at every upstream once, again when there are others, and at those that loop from time to time.
async fn examine(forwarder: Forwarder, pools: Vec<Arc<Pool>>) {
    let mut examined = Vec::new();
    let mut since = Duration::ZERO;
    loop {
        let now: Vec<Target> = pools
            .iter()
            .flat_map(|pool| {
                pool.upstreams()
                    .iter()
                    .map(|upstream| upstream.target.clone())
                    .collect::<Vec<_>>()
            })
            .collect();
        let looping = pools
            .iter()
            .any(|pool| pool.upstreams().iter().any(|upstream| upstream.is_looping()));
        if now != examined || (looping && since >= AGAIN) {
            for pool in &pools {
                forwarder.loops().check(pool).await;
            }
            (examined, since) = (now, Duration::ZERO);
        }
        tokio::time::sleep(LOOK).await;
        since += LOOK;
    }
}

// === impl Upstreams ===

impl Upstreams {
    fn new(forwarder: &Forwarder, forward: &Forward) -> Self {
        Self {
            pool: forwarder.pool(forward.options.clone()),
            to: forward.to.clone(),
            files: forward.files.clone(),
        }
    }

    /// Takes what the files name now. A file that cannot be read keeps what it named before.
    fn look(&self, listening: &[SocketAddr], first: bool) -> Result<()> {
        let mut targets = self.to.clone();
        for file in &self.files {
            match std::fs::read_to_string(file) {
                Ok(text) => targets.extend(parse_resolv_conf(&text).into_iter().map(Target::plain)),
                // It is being replaced, most likely.
                Err(_) if !first => return Ok(()),
                Err(error) => tracing::warn!(file = %file.display(), %error, "cannot read upstreams"),
            }
        }
        targets.truncate(MAX_UPSTREAMS);
        let (kept, refused) = without_loops(targets, listening);
        for error in refused {
            if first && self.files.is_empty() {
                return Err(error.into());
            }
            if first {
                tracing::error!(%error, "refusing an upstream");
            }
        }
        let upstreams: Vec<String> = kept.iter().map(ToString::to_string).collect();
        if first && !kept.is_empty() {
            tracing::info!(upstreams = upstreams.join(", "), "forwarding other names");
        } else if self.pool.upstreams().iter().map(|upstream| &upstream.target).ne(&kept) {
            let file = self.files.first().map_or(Path::new(""), PathBuf::as_path);
            tracing::info!(file = %file.display(), upstreams = upstreams.join(", "), "upstreams changed");
        }
        self.pool.set_targets(&kept);
        Ok(())
    }

    /// Looks at the files for ever. They are looked at, not watched: they may be replaced, mounted over or rewritten in place.
    async fn follow(self, listening: Vec<SocketAddr>) {
        loop {
            tokio::time::sleep(LOOK).await;
            // Only the first look fails.
            let _ = self.look(&listening, false);
        }
    }
}
