//! Feed and Sink: how events travel from a source to its daemon.
//!
//! A lone change is handed on at once; whatever waits behind it comes in the same [`Batch`]. The channel is bounded, so a
//! source that lists a large cluster waits for its daemon instead of filling memory.

use std::collections::BTreeSet;

use portolan_model::Event;
use tokio::sync::mpsc;

use super::health::Health;
use super::problem::Problem;

/// How many parcels may wait. A parcel holds up to [`PARCEL_EVENTS`] events.
const PARCELS: usize = 32;
/// Events that a source puts into one parcel at most.
pub(crate) const PARCEL_EVENTS: usize = 512;
/// Events after which a batch takes no further parcel.
const BATCH_EVENTS: usize = 4096;

/// What arrived since the last batch.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Batch {
    /// Apply these to the World, in this order.
    pub events: Vec<Event>,
    /// What could not be used. The source has logged it already; each problem comes once until it changes.
    pub problems: Vec<Problem>,
    /// Every wanted kind has been listed completely at least once, and all of that is in this or earlier batches.
    /// Once true it stays true. Before that, do not act on the World: it has holes.
    pub synced: bool,
}

enum Parcel {
    Content { events: Vec<Event>, problems: Vec<Problem> },
    Synced(&'static str),
}

/// The daemon has dropped its [`Feed`]: the source may end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the feed was dropped")]
pub struct Closed;

/// The daemon's end of a source.
#[derive(Debug)]
pub struct Feed {
    parcels: mpsc::Receiver<Parcel>,
    /// Kinds that have not been listed completely yet.
    pending: BTreeSet<&'static str>,
    health: Health,
}

/// The source's end of a [`Feed`].
#[derive(Clone, Debug)]
pub struct Sink {
    parcels: mpsc::Sender<Parcel>,
    /// How the source is doing.
    pub(crate) health: Health,
}

/// A connected pair. `kinds` are what has to be reported by [`Sink::synced`] before a batch is marked as synced.
pub fn channel(kinds: &[&'static str]) -> (Sink, Feed) {
    let (sender, receiver) = mpsc::channel(PARCELS);
    let health = Health::new(kinds);
    let sink = Sink {
        parcels: sender,
        health: health.clone(),
    };
    let feed = Feed {
        parcels: receiver,
        pending: kinds.iter().copied().collect(),
        health,
    };
    (sink, feed)
}

// === impl Feed ===

impl Feed {
    /// Waits for something to arrive and returns it with everything else that already waits, up to a bound. `None` when
    /// the source has ended. Safe to cancel: nothing is lost when the future is dropped.
    pub async fn next(&mut self) -> Option<Batch> {
        let first = self.parcels.recv().await?;
        let mut batch = Batch::default();
        self.unpack(first, &mut batch);
        while batch.events.len() < BATCH_EVENTS {
            let Ok(parcel) = self.parcels.try_recv() else { break };
            self.unpack(parcel, &mut batch);
        }
        batch.synced = self.pending.is_empty();
        Some(batch)
    }

    /// How the source is doing; the value stays current.
    pub fn health(&self) -> Health {
        self.health.clone()
    }

    fn unpack(&mut self, parcel: Parcel, batch: &mut Batch) {
        match parcel {
            Parcel::Content { events, problems } => {
                if batch.events.is_empty() {
                    batch.events = events;
                } else {
                    batch.events.extend(events);
                }
                batch.problems.extend(problems);
            }
            Parcel::Synced(kind) => {
                self.pending.remove(kind);
                self.health.synced(kind);
            }
        }
    }
}

// === impl Sink ===

impl Sink {
    /// Hands on events and problems; waits while the daemon is behind.
    ///
    /// # Errors
    /// When the daemon has dropped its Feed.
    pub async fn send(&self, events: Vec<Event>, problems: Vec<Problem>) -> Result<(), Closed> {
        if events.is_empty() && problems.is_empty() {
            return Ok(());
        }
        let parcel = Parcel::Content { events, problems };
        self.parcels.send(parcel).await.map_err(|_| Closed)
    }

    /// Says that everything of a kind has been sent once.
    ///
    /// # Errors
    /// When the daemon has dropped its Feed.
    pub async fn synced(&self, kind: &'static str) -> Result<(), Closed> {
        self.parcels.send(Parcel::Synced(kind)).await.map_err(|_| Closed)
    }

    /// Whether the daemon has dropped its Feed.
    pub(crate) fn is_closed(&self) -> bool {
        self.parcels.is_closed()
    }

    /// [`Sink::send`] from a thread outside the async runtime.
    pub(crate) fn blocking_send(&self, events: Vec<Event>, problems: Vec<Problem>) -> Result<(), Closed> {
        if events.is_empty() && problems.is_empty() {
            return Ok(());
        }
        let parcel = Parcel::Content { events, problems };
        self.parcels.blocking_send(parcel).map_err(|_| Closed)
    }

    /// [`Sink::synced`] from a thread outside the async runtime.
    pub(crate) fn blocking_synced(&self, kind: &'static str) -> Result<(), Closed> {
        self.parcels.blocking_send(Parcel::Synced(kind)).map_err(|_| Closed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use portolan_model::{Namespace, Object};

    fn event(name: &str) -> Event {
        Event::Apply(Object::Namespace(Namespace {
            name: name.into(),
            ..Namespace::default()
        }))
    }

    #[tokio::test]
    async fn what_waits_comes_together_and_synced_needs_every_kind() {
        let (sink, mut feed) = channel(&["Service", "Node"]);
        sink.send(vec![event("a")], vec![]).await.unwrap();
        sink.synced("Service").await.unwrap();
        sink.send(vec![event("b")], vec![]).await.unwrap();
        let batch = feed.next().await.unwrap();
        assert_eq!((batch.events.len(), batch.synced), (2, false));
        assert_eq!(feed.health().pending(), ["Node"]);
        sink.synced("Node").await.unwrap();
        assert!(feed.next().await.unwrap().synced);
        sink.send(vec![event("c")], vec![]).await.unwrap();
        assert!(feed.next().await.unwrap().synced, "synced stays");
        drop(sink);
        assert_eq!(feed.next().await, None);
    }

    #[tokio::test]
    async fn a_flood_waits_for_the_daemon_and_arrives_in_bounded_batches() {
        let (sink, mut feed) = channel(&["Service"]);
        let flood = tokio::spawn(async move {
            for _ in 0..1000 {
                let parcel = (0..PARCEL_EVENTS).map(|i| event(&i.to_string())).collect();
                sink.send(parcel, vec![]).await.unwrap();
            }
        });
        let mut seen = 0;
        while let Some(batch) = feed.next().await {
            assert!(batch.events.len() < BATCH_EVENTS + PARCEL_EVENTS);
            seen += batch.events.len();
        }
        flood.await.unwrap();
        assert_eq!(seen, 1000 * PARCEL_EVENTS);
    }

    #[tokio::test]
    async fn a_dropped_feed_ends_the_source() {
        let (sink, feed) = channel(&["Service"]);
        drop(feed);
        assert_eq!(sink.send(vec![event("a")], vec![]).await, Err(Closed));
    }
}
