//! Against a real API server (`api_server`), and against one that says what an old or broken one would (`fake`).

use std::time::Duration;

use portolan_model::{Delta, Event, World};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::*;
use crate::source::Batch;

mod api_server;
mod fake;
mod real;
mod scripted;

/// Long enough for a loaded machine; nothing waits for it when all is well.
const PATIENCE: Duration = Duration::from_secs(120);

/// A source under test and the World that follows it.
struct Follower {
    feed: Feed,
    world: World,
    /// Everything that arrived since the last [`Follower::forget`].
    events: Vec<Event>,
    problems: Vec<String>,
    synced: bool,
    _shutdown: DropGuard,
}

impl Follower {
    async fn start(options: Options, wants: Wants) -> Self {
        let shutdown = CancellationToken::new();
        let feed = start(options, wants, shutdown.clone()).await.unwrap();
        Self {
            feed,
            world: World::default(),
            events: Vec::new(),
            problems: Vec::new(),
            synced: false,
            _shutdown: shutdown.drop_guard(),
        }
    }

    fn take(&mut self, batch: Batch) {
        let mut delta = Delta::default();
        for event in batch.events {
            self.events.push(event.clone());
            self.world.apply(event, &mut delta);
        }
        self.problems.extend(batch.problems.iter().map(ToString::to_string));
        assert!(batch.synced || !self.synced, "synced stays");
        self.synced = batch.synced;
    }

    fn forget(&mut self) {
        self.events.clear();
        self.problems.clear();
    }

    /// Waits until something holds.
    async fn until(&mut self, what: &str, holds: impl Fn(&Self) -> bool) {
        while !holds(self) {
            let batch = tokio::time::timeout(PATIENCE, self.feed.next()).await;
            let Ok(batch) = batch else {
                panic!(
                    "{what} did not come; health {:?}, problems {:?}, events {:?}",
                    self.feed.health().kinds(),
                    self.problems,
                    self.events
                );
            };
            self.take(batch.expect("the source goes on"));
        }
    }

    async fn until_synced(&mut self) {
        self.until("the first sync", |follower| follower.synced).await;
    }

    /// The Services in namespace `default` with their endpoints' addresses, one a line.
    fn text(&self) -> String {
        let mut lines = Vec::new();
        for view in self
            .world
            .services()
            .filter(|view| &*view.service.name.namespace == "default")
        {
            let endpoints = view.slices.iter().flat_map(|slice| &slice.endpoints);
            let mut addresses: Vec<String> = endpoints.map(|endpoint| endpoint.address.to_string()).collect();
            addresses.sort();
            let port = view.service.ports.first().map_or(0, |port| port.port);
            lines.push(
                format!("{}:{port} {}", view.service.name.name, addresses.join(" "))
                    .trim_end()
                    .to_string(),
            );
        }
        lines.join("\n")
    }

    async fn shows(&mut self, text: &str) {
        self.until(text, |follower| follower.text() == text).await;
    }
}
