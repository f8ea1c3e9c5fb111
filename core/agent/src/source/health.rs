//! How a source is doing, kind by kind: for `/readyz`, metrics and `status`.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

/// How the source of one kind of object is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KindHealth {
    /// The source answers: a watch is open, or the folder is readable.
    pub connected: bool,
    /// Since when `connected` is as it is.
    pub since: SystemTime,
    /// The kind has been listed completely at least once.
    pub synced: bool,
    /// Why it is not connected.
    pub error: Option<String>,
    /// How often the source was lost since the start.
    pub losses: u64,
}

/// A shared view of a source's health. Cheap to clone; always current.
#[derive(Clone, Debug, Default)]
pub struct Health(Arc<Mutex<BTreeMap<&'static str, KindHealth>>>);

// === impl Health ===

impl Health {
    pub(crate) fn new(kinds: &[&'static str]) -> Self {
        let now = SystemTime::now();
        let unknown = || KindHealth {
            connected: false,
            since: now,
            synced: false,
            error: None,
            losses: 0,
        };
        let kinds = kinds.iter().map(|kind| (*kind, unknown())).collect();
        Self(Arc::new(Mutex::new(kinds)))
    }

    /// Every kind that is read, by name.
    pub fn kinds(&self) -> BTreeMap<&'static str, KindHealth> {
        self.lock().clone()
    }

    /// Whether every kind is connected.
    pub fn connected(&self) -> bool {
        self.lock().values().all(|kind| kind.connected)
    }

    /// The kinds that have not been listed completely yet, with the error that stands in the way if there is one.
    pub fn pending(&self) -> Vec<String> {
        let kinds = self.lock();
        let pending = kinds.iter().filter(|(_, health)| !health.synced);
        pending
            .map(|(kind, health)| match &health.error {
                Some(error) => format!("{kind} ({error})"),
                None => (*kind).to_string(),
            })
            .collect()
    }

    /// Notes that the source of a kind answers. True when it did not before.
    pub(crate) fn up(&self, kind: &'static str) -> bool {
        self.change(kind, None)
    }

    /// Notes that the source of a kind does not answer. True when it did before, or when nothing was known.
    pub(crate) fn down(&self, kind: &'static str, error: String) -> bool {
        self.change(kind, Some(error))
    }

    pub(crate) fn synced(&self, kind: &'static str) {
        if let Some(health) = self.lock().get_mut(kind) {
            health.synced = true;
        }
    }

    fn change(&self, kind: &'static str, error: Option<String>) -> bool {
        let mut kinds = self.lock();
        let Some(health) = kinds.get_mut(kind) else {
            return false;
        };
        let connected = error.is_none();
        let changed = health.connected != connected || (!connected && health.error.is_none());
        if changed {
            health.since = SystemTime::now();
            health.losses += u64::from(health.connected);
            health.connected = connected;
        }
        health.error = error;
        changed
    }

    /// A poisoned lock only means that a reader panicked; the values are plain.
    fn lock(&self) -> MutexGuard<'_, BTreeMap<&'static str, KindHealth>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
