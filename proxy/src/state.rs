//! What the daemon thinks of itself, shared between the sync loop and HTTP.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use portolan_plan::Packet;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use crate::explain::Answer;
use crate::page::Page;

/// What `portolan-proxy status` prints and `/status` answers.
#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq, Eq)]
pub struct Status {
    /// Version of the daemon.
    pub version: String,
    /// Name of the node it runs on.
    pub node: String,
    /// Backend in use: `nftables`, `userspace`.
    pub backend: String,
    /// Every kind of object has been listed and programmed once.
    pub synced: bool,
    /// When the last change was programmed, as Unix time in seconds.
    pub last_sync: Option<u64>,
    /// Why the last attempt failed; absent when it did not.
    pub last_error: Option<String>,
    /// Services known.
    pub services: usize,
    /// EndpointSlices known.
    pub endpoint_slices: usize,
    /// Addresses that node ports are served on.
    pub node_port_addresses: Vec<IpAddr>,
    /// What the backend says about itself.
    pub programmed: Vec<(String, String)>,
    /// Notes about the node and about Services.
    pub notes: Vec<String>,
    /// Objects, or parts of them, that cannot be used.
    pub faults: Vec<String>,
    /// Connection to each kind of object in the source.
    pub source: BTreeMap<String, String>,
}

/// What HTTP asks the sync loop, which alone knows.
#[derive(Debug)]
pub enum Question {
    /// How it is doing.
    Status(oneshot::Sender<Status>),
    /// What happens to a connection, and whether the kernel agrees.
    Explain(Packet, oneshot::Sender<Answer>),
    /// What the page shows of the Services whose names hold this text.
    Page(String, oneshot::Sender<Page>),
}

/// Shared state.
pub struct State {
    timing: Mutex<Timing>,
    /// Read by health check ports.
    healthy: Arc<AtomicBool>,
    /// How long a change may wait before the proxy calls itself unhealthy.
    patience: Duration,
}

#[derive(Clone, Copy)]
struct Timing {
    /// When the oldest change that is not programmed yet arrived.
    pending_since: Option<SystemTime>,
    last_updated: Option<SystemTime>,
    node_eligible: bool,
}

/// What `/healthz` and `/livez` say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Health {
    /// Everything was programmed once, and nothing has been waiting for too long since.
    pub healthy: bool,
    /// Nothing has been waiting for too long. True while the daemon waits for its source: to start it anew would not help.
    pub alive: bool,
    /// The Node is there to stay: neither deleted nor about to be removed by the autoscaler.
    pub node_eligible: bool,
    /// When rules last were what they should be: now, when nothing waits.
    pub last_updated: Option<SystemTime>,
}

// === impl State ===

impl State {
    /// Nothing programmed yet, so not healthy. A change may wait for `patience`: twice `syncPeriod`.
    pub fn new(patience: Duration) -> Self {
        let timing = Timing {
            pending_since: None,
            last_updated: None,
            node_eligible: true,
        };
        Self {
            timing: Mutex::new(timing),
            healthy: Arc::new(AtomicBool::new(false)),
            patience,
        }
    }

    /// A change waits.
    pub fn queued(&self) {
        lock(&self.timing).pending_since.get_or_insert_with(SystemTime::now);
    }

    /// Everything is programmed.
    pub fn programmed(&self, node_eligible: bool) {
        let now = SystemTime::now();
        *lock(&self.timing) = Timing {
            pending_since: None,
            last_updated: Some(now),
            node_eligible,
        };
        self.healthy.store(true, Ordering::Relaxed);
    }

    /// The flag that health check ports read.
    pub fn healthy_flag(&self) -> Arc<AtomicBool> {
        self.healthy.clone()
    }

    /// The state of health at this moment.
    pub fn health(&self, now: SystemTime) -> Health {
        let timing = *lock(&self.timing);
        let waited = timing
            .pending_since
            .map(|since| now.duration_since(since).unwrap_or_default());
        let alive = waited.is_none_or(|waited| waited <= self.patience);
        let healthy = alive && timing.last_updated.is_some();
        self.healthy.store(healthy, Ordering::Relaxed);
        let last_updated = timing
            .last_updated
            .map(|last| if waited.is_some() { last } else { now });
        Health {
            healthy,
            alive,
            node_eligible: timing.node_eligible,
            last_updated,
        }
    }
}

/// A poisoned lock holds plain data that is still whole.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
