//! The HTTP listeners: `/health`, `/ready` and `/metrics`. Routes that share an address share a listener.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use portolan_agent::admin::{Admin, BindError, Bound, Reply};
use portolan_agent::source::Health;
use prometheus_client::registry::Registry;
use tokio_util::sync::CancellationToken;

use super::reload::Counts;
use super::sync::is_lost;
use crate::metrics::{Exporter, ForwardMetrics, Programming, Served};
use crate::settings::Settings;
use crate::zone::Snapshot;

/// A predecessor gives its ports up within moments.
const RETRY: Duration = Duration::from_millis(100);
/// Then someone else has them.
const SELDOM: Duration = Duration::from_secs(5);
const OFTEN: u32 = 100;

/// What the pages are made from.
pub struct Admins {
    /// The groups of listeners.
    pub served: Vec<Served>,
    /// What is forwarded.
    pub forwarding: ForwardMetrics,
    /// The cluster's names.
    pub zone: Arc<ArcSwap<Snapshot>>,
    /// How the source is doing, if there is one.
    pub source: Option<Health>,
    /// How long changes took.
    pub programming: Arc<Programming>,
    /// How the Corefile is followed.
    pub reload: Arc<Counts>,
    /// The end has begun.
    pub draining: Arc<AtomicBool>,
    /// `/ready` says no while the source is lost.
    pub ready_needs_source: bool,
}

/// Listeners that are bound or not.
pub struct Routes {
    unbound: BTreeMap<SocketAddr, Admin>,
    bound: Vec<Bound>,
}

// === impl Admins ===

impl Admins {
    /// The pages by address.
    pub fn routes(self, settings: &Settings) -> Routes {
        let ready = self.readiness();
        let mut registry = Registry::default();
        portolan_agent::process::register(&mut registry);
        registry.register_collector(Box::new(Exporter {
            served: self.served,
            forwarding: self.forwarding,
            zone: self.zone,
            source: self.source,
            programming: self.programming,
            reload: self.reload,
            plugins: settings.plugins.clone(),
        }));
        let registry = Arc::new(registry);
        let mut unbound: BTreeMap<SocketAddr, Admin> = BTreeMap::new();
        let mut route = |address: Option<SocketAddr>, add: &mut dyn FnMut(Admin) -> Admin| {
            let Some(address) = address else { return };
            let admin = unbound.remove(&address).unwrap_or_default();
            unbound.insert(address, add(admin));
        };
        route(settings.health, &mut |admin| {
            admin.version().route("/health", || Reply::text("OK"))
        });
        route(settings.ready, &mut |admin| admin.route("/ready", ready.clone()));
        route(settings.metrics, &mut |admin| admin.metrics(registry.clone()));
        Routes {
            unbound,
            bound: Vec::new(),
        }
    }

    /// `/ready`: from the first full sync, or from what the disk has, until the end begins.
    fn readiness(&self) -> impl Fn() -> Reply + Clone + Send + Sync + 'static {
        let (zone, health, draining) = (self.zone.clone(), self.source.clone(), self.draining.clone());
        let needs_source = self.ready_needs_source;
        move || {
            if draining.load(Ordering::Relaxed) {
                return Reply::text("shutting down\n").status(503);
            }
            if !zone.load().synced {
                let pending = health.as_ref().map(Health::pending).unwrap_or_default();
                return Reply::text(format!("waiting for {}\n", pending.join(", "))).status(503);
            }
            if needs_source && health.as_ref().is_some_and(is_lost) {
                return Reply::text("the source of the cluster's names is lost\n").status(503);
            }
            Reply::text("OK")
        }
    }
}

// === impl Routes ===

impl Routes {
    /// Binds every address.
    ///
    /// # Errors
    /// Names the address that cannot be listened on.
    pub async fn bind(&mut self) -> Result<(), BindError> {
        while let Some((address, admin)) = self.unbound.pop_first() {
            self.bound.push(admin.bind(address).await?);
        }
        Ok(())
    }

    /// Serves until `ended`; addresses that are not bound yet are tried until they can be.
    pub async fn serve(self, ended: CancellationToken) {
        let bound = self.bound.into_iter().map(|bound| bound.serve(ended.clone()));
        let late = self
            .unbound
            .into_iter()
            .map(|(address, admin)| late(address, admin, ended.clone()));
        futures::future::join(futures::future::join_all(bound), futures::future::join_all(late)).await;
    }
}

async fn late(address: SocketAddr, admin: Admin, ended: CancellationToken) {
    for attempt in 0u32.. {
        match admin.clone().bind(address).await {
            Ok(bound) => return bound.serve(ended).await,
            Err(error) if attempt == OFTEN => tracing::error!(%error, "trying again"),
            Err(_) => {}
        }
        let pause = if attempt < OFTEN { RETRY } else { SELDOM };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = ended.cancelled() => return,
        }
    }
}
