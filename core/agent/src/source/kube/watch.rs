//! watch: one task for each kind that keeps its watch going, whatever happens to the API server.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use ::kube::runtime::watcher;
use ::kube::{Api, Client, Config};
use futures::{FutureExt, Stream, StreamExt};
use tokio_util::sync::CancellationToken;

use super::client::observed;
use super::kinds::Watched;
use super::mirror::{Mirror, Output};
use crate::source::SourceError;
use crate::source::feed::{Closed, PARCEL_EVENTS, Sink};

/// First and longest wait after a failure.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(15));
/// How often a kind that the API server does not have is asked for again.
const ABSENT: Duration = Duration::from_secs(300);

/// What every watch needs.
pub(crate) struct Watches {
    pub(crate) config: Config,
    pub(crate) sink: Sink,
    pub(crate) shutdown: CancellationToken,
}

// === impl Watches ===

impl Watches {
    /// Starts the watch of a kind. It ends with `shutdown` or when the Feed is dropped.
    pub(crate) fn spawn<K: Watched>(&self, selection: watcher::Config) -> Result<(), SourceError> {
        let client = observed(&self.config, self.sink.health.clone(), K::NAME)?;
        let task = Task {
            client,
            selection,
            sink: self.sink.clone(),
            mirror: Mirror::default(),
            failures: 0,
            streaming: true,
            synced: false,
        };
        let shutdown = self.shutdown.clone();
        // `Closed` means that nobody listens any more.
        tokio::spawn(shutdown.run_until_cancelled_owned(task.run::<K>()));
        Ok(())
    }
}

struct Task {
    client: Client,
    selection: watcher::Config,
    sink: Sink,
    mirror: Mirror,
    /// Failures since the last success.
    failures: u32,
    /// Lists are read as streams (KEP-3157), so that no page has to fit into memory. Older servers cannot.
    streaming: bool,
    synced: bool,
}

// === impl Task ===

impl Task {
    async fn run<K: Watched>(mut self) -> Result<(), Closed> {
        loop {
            let selection = self.selection.clone();
            let selection = if self.streaming {
                selection.streaming_lists()
            } else {
                selection
            };
            let stream = watcher(Api::<K>::all(self.client.clone()), selection);
            self.follow(std::pin::pin!(stream)).await?;
        }
    }

    /// Follows one watcher until the way of listing has to change.
    async fn follow<K: Watched>(
        &mut self,
        mut stream: std::pin::Pin<&mut (impl Stream<Item = watcher::Result<watcher::Event<K>>> + Send)>,
    ) -> Result<(), Closed> {
        while let Some(first) = stream.next().await {
            let mut output = Output::default();
            let mut failure = self.take(first, &mut output);
            // What has arrived already goes along; what has not is not waited for.
            while failure.is_none() && output.events.len() < PARCEL_EVENTS && !output.complete {
                let Some(Some(next)) = stream.next().now_or_never() else {
                    break;
                };
                failure = self.take(next, &mut output);
            }
            let complete = output.complete;
            for problem in &output.problems {
                tracing::warn!("{problem}");
            }
            self.sink.send(output.events, output.problems).await?;
            if complete {
                self.synced::<K>().await?;
            }
            let Some(error) = failure else { continue };
            let code = status_code(&error);
            if self.streaming && matches!(code, Some(400 | 422)) {
                tracing::debug!(kind = K::NAME, %error, "the API server cannot stream lists; they are read in pages");
                self.streaming = false;
                return Ok(());
            }
            let pause = self.failed::<K>(&error, code).await?;
            tokio::time::sleep(pause).await;
            if code == Some(410) {
                // The watcher starts over by itself, except when the server refuses the watch instead of ending it.
                return Ok(());
            }
        }
        Ok(())
    }

    fn take<K: Watched>(
        &mut self,
        item: watcher::Result<watcher::Event<K>>,
        output: &mut Output,
    ) -> Option<watcher::Error> {
        match item {
            Ok(event) => {
                // `Init` comes before the first answer, so it proves nothing.
                if !matches!(event, watcher::Event::Init) {
                    self.failures = 0;
                }
                self.mirror.take(event, output);
                None
            }
            Err(error) => Some(error),
        }
    }

    async fn synced<K: Watched>(&mut self) -> Result<(), Closed> {
        if !std::mem::replace(&mut self.synced, true) {
            self.sink.synced(K::NAME).await?;
        }
        Ok(())
    }

    /// Notes a failure, says so if it is news, and returns how long to wait.
    async fn failed<K: Watched>(&mut self, error: &watcher::Error, code: Option<u16>) -> Result<Duration, Closed> {
        if K::OPTIONAL && code == Some(404) {
            if !self.synced {
                tracing::info!(
                    kind = K::NAME,
                    "the API server does not have this kind; going on without"
                );
            }
            self.sink.health.up(K::NAME);
            self.synced::<K>().await?;
            return Ok(ABSENT);
        }
        // hyper hides "connection refused" two levels down.
        let text = crate::telemetry::one_line(error);
        // A forgotten place (410) is the ordinary course of things.
        if code != Some(410) && self.sink.health.down(K::NAME, text.clone()) {
            tracing::warn!(
                kind = K::NAME,
                error = text,
                "no watch; what is known stays in force, trying again"
            );
        }
        let pause = backoff(self.failures);
        self.failures = self.failures.saturating_add(1);
        Ok(pause)
    }
}

/// Doubles from failure to failure; half of it is random, so that the nodes of a cluster do not come back as one.
fn backoff(failures: u32) -> Duration {
    let (first, longest) = BACKOFF;
    let full = first.saturating_mul(1 << failures.min(10)).min(longest);
    let random = RandomState::new().hash_one(failures) % 1024;
    full / 2 + full.mul_f64(random as f64 / 2048.0)
}

fn status_code(error: &watcher::Error) -> Option<u16> {
    match error {
        watcher::Error::InitialListFailed(::kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(::kube::Error::Api(status))
        | watcher::Error::WatchFailed(::kube::Error::Api(status))
        | watcher::Error::WatchError(status) => Some(status.code),
        _ => None,
    }
}
