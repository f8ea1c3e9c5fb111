//! What the source says, into the zone and onto the disk.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use portolan_agent::source::store::{Leftovers, Store, is_news};
use portolan_agent::source::{Batch, Feed, Health};
use portolan_model::{Delta, World};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, interval};

use crate::metrics::Programming;
use crate::zone::{Zone, ZoneConfig};

/// A source that has been silent for so long is lost; a watch that is opened again takes less.
const LOST_AFTER: Duration = Duration::from_secs(5);
/// How often that is looked at.
const LOOK: Duration = Duration::from_secs(1);
/// After the disk refused, how long it is left alone.
const DISK_PAUSE: Duration = Duration::from_secs(30);

/// Follows the source.
pub struct Sync {
    feed: Feed,
    zone: Zone,
    world: World,
    store: Option<Store>,
    leftovers: Leftovers,
    /// Configurations to put in force.
    configure: mpsc::Receiver<ZoneConfig>,
    /// True once names are answered.
    ready: watch::Sender<bool>,
    programming: Arc<Programming>,
    synced: bool,
    restored: bool,
    disk_again: Option<Instant>,
}

/// Seconds since 1970, which serials are made of.
pub fn now() -> u32 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(1, |since| since.as_secs() as u32)
}

/// Whether a source has been silent for long.
pub fn is_lost(health: &Health) -> bool {
    health
        .kinds()
        .values()
        .any(|kind| !kind.connected && kind.since.elapsed().is_ok_and(|since| since >= LOST_AFTER))
}

/// Gives the memory back that reading the first list has left behind.
fn give_back() {
    // SAFETY: it takes no pointer and changes nothing that a program can see.
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    unsafe {
        libc::malloc_trim(0);
    }
}

// === impl Sync ===

impl Sync {
    /// Takes up what the disk has, and says that it is stale.
    pub fn new(
        feed: Feed,
        zone: Zone,
        store: Option<Store>,
        configure: mpsc::Receiver<ZoneConfig>,
        ready: watch::Sender<bool>,
        programming: Arc<Programming>,
    ) -> Self {
        let mut sync = Self {
            feed,
            zone,
            world: World::default(),
            store,
            leftovers: Leftovers::default(),
            configure,
            ready,
            programming,
            synced: false,
            restored: false,
            disk_again: None,
        };
        if let Some(store) = &sync.store {
            let found = store.load();
            if let Some(problem) = found.problem {
                tracing::warn!("{problem}");
            }
            if !found.events.is_empty() {
                sync.leftovers = Leftovers::of(&found.events);
                let mut delta = Delta::default();
                for event in found.events {
                    sync.world.apply(event, &mut delta);
                }
                sync.zone.apply(&sync.world, &delta, now());
                sync.zone.set_stale(true);
                sync.zone.set_synced();
                sync.restored = true;
                let (services, slices) = sync.world.counts();
                tracing::info!(
                    services,
                    slices,
                    "answering from the disk until the API server has been read"
                );
                sync.ready.send_replace(true);
            }
        }
        sync
    }

    /// Follows until the source ends.
    pub async fn run(mut self) {
        let mut clock = interval(LOOK);
        loop {
            tokio::select! {
                batch = self.feed.next() => match batch {
                    Some(batch) => self.batch(batch),
                    None => return,
                },
                Some(config) = self.configure.recv() => {
                    self.zone.configure(config, &self.world, now());
                }
                _ = clock.tick() => {
                    let lost = is_lost(&self.feed.health());
                    self.zone.set_stale(lost || (self.restored && !self.synced));
                }
            }
        }
    }

    fn batch(&mut self, mut batch: Batch) {
        self.leftovers.settle(&mut batch);
        let Batch { events, synced, .. } = batch;
        let mut news = Vec::new();
        let mut delta = Delta::default();
        for mut event in events {
            self.zone.naming().reduce(&mut event);
            if self.synced && self.store.is_some() && is_news(&self.world, &event) {
                news.push(event.clone());
            }
            self.world.apply(event, &mut delta);
        }
        let applied = self.zone.apply(&self.world, &delta, now());
        tracing::debug!(built = applied.built, changed = applied.changed, "applied a batch");
        if self.synced {
            self.programming.observe(&delta, &self.world);
        }
        let first = synced && !self.synced;
        if first {
            self.synced = true;
            self.zone.set_stale(false);
            self.zone.set_synced();
            give_back();
            let (services, addresses) = self.zone.reader().load().counts();
            tracing::info!(services, addresses, "synced: answering the cluster's names");
            self.ready.send_replace(true);
        }
        if first || !news.is_empty() {
            self.keep(first, &news);
        }
    }

    /// Writes what changed. A disk that refuses is said once and left alone for a while.
    fn keep(&mut self, all: bool, news: &[portolan_model::Event]) {
        let Some(store) = &mut self.store else { return };
        if self.disk_again.is_some_and(|again| Instant::now() < again) {
            return;
        }
        let failed_before = self.disk_again.take().is_some();
        let world = &self.world;
        let written = if all || failed_before {
            tokio::task::block_in_place(|| store.replace(world))
        } else {
            store.append(news, world)
        };
        match written {
            Ok(()) if failed_before => {
                tracing::info!(file = %store.file().display(), "the cluster's state is written again");
            }
            Ok(()) => {}
            Err(error) => {
                if !failed_before {
                    let file = store.file().display();
                    tracing::warn!(%file, %error, "cannot keep the cluster's state; a restart without the API server will not know it");
                }
                self.disk_again = Some(Instant::now() + DISK_PAUSE);
            }
        }
    }
}
