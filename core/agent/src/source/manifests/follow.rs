//! follow: the thread that looks at the folder, now and whenever something changes.

use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use notify::{RecursiveMode, Watcher};
use portolan_model::Event;
use tokio_util::sync::CancellationToken;

use super::cluster::{Cluster, Output};
use super::files::Files;
use super::state::StateFile;
use super::{KIND, Options, default_service_ranges};
use crate::source::feed::{Closed, PARCEL_EVENTS, Sink};
use crate::source::{Problem, Wants};

/// How often the folder is looked at without being told, for file systems without notifications.
const POLL: Duration = Duration::from_secs(1);
/// After a notification the folder has to be quiet this long: one `kubectl`-like write is several notifications.
const QUIET: Duration = Duration::from_millis(20);
/// But no longer than this.
const QUIET_LIMIT: Duration = Duration::from_millis(500);

/// Starts the thread. It ends when `shutdown` is cancelled or the Feed is dropped.
pub(crate) fn spawn(options: Options, wants: Wants, sink: Sink, shutdown: CancellationToken) -> std::io::Result<()> {
    let (wake, woken) = channel();
    let waker = wake.clone();
    let watched = shutdown.clone();
    if options.follow {
        tokio::spawn(async move {
            watched.cancelled().await;
            let _ = waker.send(());
        });
    }
    let thread = std::thread::Builder::new().name("manifests".into());
    thread.spawn(move || {
        let mut follower = Follower::new(&options, wants, sink);
        // An error means that nobody listens any more.
        let _ = follower.run(&options, wake, &woken, &shutdown);
    })?;
    Ok(())
}

struct Follower {
    files: Files,
    cluster: Cluster,
    sink: Sink,
}

// === impl Follower ===

impl Follower {
    fn new(options: &Options, wants: Wants, sink: Sink) -> Self {
        let state = StateFile::choose(options.state_dir.as_deref(), &options.dir, !options.follow);
        let ranges = match options.service_ranges.is_empty() {
            true => default_service_ranges(),
            false => options.service_ranges.clone(),
        };
        Self {
            files: Files::new(&options.dir),
            cluster: Cluster::new(wants, state, ranges),
            sink,
        }
    }

    fn run(
        &mut self,
        options: &Options,
        wake: Sender<()>,
        woken: &Receiver<()>,
        shutdown: &CancellationToken,
    ) -> Result<(), Closed> {
        // Before the first look, so that no change falls between the two.
        let mut watcher = options.follow.then(|| watch(options, &wake)).flatten();
        let mut synced = false;
        while !shutdown.is_cancelled() {
            let unsettled = self.look(&options.dir)?;
            if self.sink.health.kinds().values().all(|health| health.connected) {
                if !synced {
                    self.sink.blocking_synced(KIND)?;
                    synced = true;
                }
            } else {
                // The folder is gone, and the notifications went with it.
                watcher = None;
            }
            if !options.follow {
                return Ok(());
            }
            if watcher.is_none() {
                watcher = watch(options, &wake);
            }
            wait(woken, if unsettled { QUIET } else { POLL });
            if self.sink.is_closed() {
                return Err(Closed);
            }
        }
        Ok(())
    }

    /// One look at the folder. True when a file waits for its writer.
    fn look(&mut self, dir: &std::path::Path) -> Result<bool, Closed> {
        let changes = match self.files.refresh() {
            Ok(changes) => changes,
            Err(error) => {
                if self.sink.health.down(KIND, error.to_string()) {
                    tracing::warn!(dir = %dir.display(), %error, "the manifest folder cannot be read; what was read stays in force");
                }
                return Ok(false);
            }
        };
        if self.sink.health.up(KIND) {
            tracing::info!(dir = %dir.display(), "following manifests");
        }
        if !changes.skipped.is_empty() {
            let kinds: Vec<&str> = changes.skipped.iter().map(String::as_str).collect();
            tracing::info!(
                kinds = kinds.join(", "),
                "kinds that bear neither on forwarding nor on names are not read"
            );
        }
        let unsettled = changes.unsettled;
        let output = self.cluster.update(changes, self.files.all_good());
        self.hand_on(output)?;
        Ok(unsettled)
    }

    fn hand_on(&self, output: Output) -> Result<(), Closed> {
        for error in &output.errors {
            tracing::warn!("{error}");
        }
        let mut problems: Vec<Problem> = output.errors.into_iter().map(Problem::from).collect();
        let mut events = output.events;
        while events.len() > PARCEL_EVENTS {
            let rest = events.split_off(PARCEL_EVENTS);
            let parcel: Vec<Event> = std::mem::replace(&mut events, rest);
            self.sink.blocking_send(parcel, std::mem::take(&mut problems))?;
        }
        self.sink.blocking_send(events, problems)
    }
}

fn watch(options: &Options, wake: &Sender<()>) -> Option<notify::RecommendedWatcher> {
    let wake = wake.clone();
    let told = move |event: notify::Result<notify::Event>| {
        // Reading a file is no change; everything else, errors too, is worth a look.
        if !event.is_ok_and(|event| event.kind.is_access()) {
            let _ = wake.send(());
        }
    };
    let watcher = notify::recommended_watcher(told).and_then(|mut watcher| {
        watcher.watch(&options.dir, RecursiveMode::NonRecursive)?;
        Ok(watcher)
    });
    watcher
        .inspect_err(|error| tracing::debug!(%error, "no notifications for this folder; it is looked at once a second"))
        .ok()
}

/// Waits for a notification and then for quiet, or for the time to look anyway.
fn wait(woken: &Receiver<()>, patience: Duration) {
    if woken.recv_timeout(patience) != Ok(()) {
        return;
    }
    let since = Instant::now();
    while since.elapsed() < QUIET_LIMIT {
        if woken.recv_timeout(QUIET) == Err(RecvTimeoutError::Timeout) {
            return;
        }
    }
}
