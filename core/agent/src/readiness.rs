//! Readiness: what still has to happen before a daemon may be called ready.
//!
//! Every part of a daemon takes a [`Task`] and drops it when it is done. Ready is when none is left.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// What a daemon waits for. Cheap to clone; all clones are one.
#[derive(Clone, Debug)]
pub struct Readiness {
    pending: Arc<Mutex<BTreeMap<&'static str, usize>>>,
    since: Instant,
}

/// A part of the daemon that is not ready yet. Dropping it says that it is.
#[derive(Debug)]
#[must_use = "dropping it marks the part as ready"]
pub struct Task {
    readiness: Readiness,
    name: &'static str,
}

// === impl Readiness ===

impl Default for Readiness {
    fn default() -> Self {
        Self {
            pending: Arc::default(),
            since: Instant::now(),
        }
    }
}

impl Readiness {
    /// Registers a part. Do so for every part before the first one becomes ready.
    pub fn register(&self, name: &'static str) -> Task {
        *self.lock().entry(name).or_default() += 1;
        Task {
            readiness: self.clone(),
            name,
        }
    }

    /// The parts that are not ready, by name.
    pub fn pending(&self) -> Vec<&'static str> {
        self.lock().keys().copied().collect()
    }

    /// Whether every part is ready.
    pub fn is_ready(&self) -> bool {
        self.lock().is_empty()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<&'static str, usize>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Task ===

impl Drop for Task {
    fn drop(&mut self) {
        let left = {
            let mut pending = self.readiness.lock();
            if let Some(count) = pending.get_mut(self.name) {
                *count -= 1;
                if *count == 0 {
                    pending.remove(self.name);
                }
            }
            pending.len()
        };
        let elapsed = self.readiness.since.elapsed();
        match left {
            0 => tracing::info!(part = self.name, ?elapsed, "ready"),
            left => tracing::debug!(part = self.name, left, ?elapsed, "part ready"),
        }
    }
}
