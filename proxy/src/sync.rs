//! The sync loop: batches in, changes out.
//!
//! While a change is being programmed the next batch gathers behind it, so a burst costs few changes and a lone event
//! is never delayed by a timer. Nothing is programmed before the source is complete: rules that an earlier process left
//! stay as they are until then.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use portolan_agent::events::Recorder;
use portolan_agent::source::{Batch, Feed};
use portolan_agent::version::VERSION;
use portolan_model::Node;
use portolan_plan::HostAddress;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::backend::{Backend, BackendError, Change, Disturbance, Inspection, Report};
use crate::desired::{Desired, Occasion};
use crate::explain::Answer;
use crate::health::HealthChecks;
use crate::host;
use crate::lease::{Lease, Turn, Turns};
use crate::memory;
use crate::metrics::Metrics;
use crate::page::History;
use crate::state::{Question, State, Status};

/// First wait after a failure; it doubles up to [`LONGEST_RETRY`].
const FIRST_RETRY: Duration = Duration::from_millis(100);
const LONGEST_RETRY: Duration = Duration::from_secs(30);
/// How often the machine's addresses are looked at.
const HOST_INTERVAL: Duration = Duration::from_secs(5);
/// Someone who deletes a table sends many events: wait for the rest of them.
const DISTURBANCE_PAUSE: Duration = Duration::from_millis(20);
/// Faults kept for `status`.
const FAULTS_KEPT: usize = 100;

/// Everything the loop works with.
pub struct Sync {
    /// Where events come from.
    pub feed: Feed,
    /// What they add up to.
    pub desired: Desired,
    /// Who makes it real.
    pub backend: Box<dyn Backend>,
    /// Someone else touched what the backend programmed.
    pub disturbances: mpsc::Receiver<Disturbance>,
    /// Health check ports.
    pub health_checks: HealthChecks,
    /// What health endpoints say.
    pub state: Arc<State>,
    /// Questions: answers are put together when somebody asks.
    pub questions: mpsc::Receiver<Question>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// A Node made from the machine may stand for a missing object.
    pub stand_in: bool,
    /// Where the cluster is told what goes wrong.
    pub events: Recorder,
    /// What was found at start that a user should know.
    pub findings: Vec<String>,
    /// Taken before anything is programmed.
    pub lease: Lease,
    /// When another process programs this node, and when no more.
    pub turns: Turns,
}

/// What the loop has to remember between rounds.
struct Progress {
    synced: bool,
    /// The next change has to be a complete one: the first, one after a failure, one after a disturbance.
    complete: bool,
    retry_at: Option<Instant>,
    backoff: Duration,
    faults: VecDeque<String>,
    last_sync: Option<u64>,
    last_error: Option<String>,
    /// Another process programs this node: who, for `status`.
    standing_by: Option<String>,
    history: History,
}

// === impl Sync ===

impl Sync {
    /// Runs until `shutdown` or until the source ends. What is programmed stays.
    pub async fn run(mut self, shutdown: CancellationToken) {
        let mut progress = Progress {
            synced: false,
            complete: true,
            retry_at: None,
            backoff: FIRST_RETRY,
            faults: VecDeque::new(),
            last_sync: None,
            last_error: None,
            standing_by: None,
            history: History::default(),
        };
        let mut look_at_host = tokio::time::interval(HOST_INTERVAL);
        loop {
            let retry = progress.retry_at;
            tokio::select! {
                biased;
                () = shutdown.cancelled() => break,
                batch = self.feed.next() => match batch {
                    Some(batch) => self.take_in(batch, &mut progress),
                    None => break,
                },
                Some(turn) = self.turns.recv() => self.take_turn(turn, &mut progress).await,
                Some(disturbance) = self.disturbances.recv() => self.disturbed(disturbance, &mut progress).await,
                () = tokio::time::sleep_until(retry.unwrap_or_else(Instant::now)), if retry.is_some() => {
                    progress.retry_at = None;
                }
                Some(question) = self.questions.recv() => {
                    self.answer(question, &progress);
                    continue;
                }
                _ = look_at_host.tick() => self.look_at_host(),
            }
            let waiting = progress.complete || self.desired.is_dirty();
            let our_turn = progress.standing_by.is_none() && progress.retry_at.is_none();
            if progress.synced && waiting && our_turn {
                // A process that is not ready yet takes nothing from one that is.
                if shutdown.run_until_cancelled(self.lease.take()).await.is_none() {
                    break;
                }
                self.round(&mut progress).await;
            }
        }
        self.backend.stop();
    }

    fn take_in(&mut self, batch: Batch, progress: &mut Progress) {
        for problem in &batch.problems {
            if progress.faults.len() == FAULTS_KEPT {
                progress.faults.pop_front();
            }
            progress.faults.push_back(problem.to_string());
        }
        let arrived = self.desired.take_in(batch.events);
        // Before the source is complete nothing is meant to be programmed, so nothing is late.
        if batch.synced && self.desired.is_dirty() && progress.standing_by.is_none() {
            self.state.queued();
        }
        progress.history.arrived(arrived.0 + arrived.1);
        self.metrics.queued(&self.desired, arrived, batch.problems.len());
        progress.synced = batch.synced;
    }

    async fn take_turn(&mut self, turn: Turn, progress: &mut Progress) {
        match turn {
            Turn::StandBy(pid, done) => {
                let who = pid.map_or_else(
                    || "a newer portolan-proxy".into(),
                    |pid| format!("portolan-proxy {pid}"),
                );
                tracing::info!("{who} programs this node from now on; standing by");
                progress.standing_by = Some(who);
                progress.retry_at = None;
                let backend = &mut self.backend;
                tokio::task::block_in_place(|| backend.stand_by());
                // It needs the ports.
                self.health_checks.apply(&BTreeMap::new(), &[]).await;
                self.state.programmed(self.node_eligible());
                // When it has ended meanwhile, this process is told to go on.
                let _ = done.send(());
            }
            Turn::GoOn => {
                progress.standing_by = None;
                progress.complete = true;
            }
        }
    }

    async fn disturbed(&mut self, disturbance: Disturbance, progress: &mut Progress) {
        tokio::time::sleep(DISTURBANCE_PAUSE).await;
        let mut reasons = vec![disturbance.reason];
        while let Ok(more) = self.disturbances.try_recv() {
            if !reasons.contains(&more.reason) {
                reasons.push(more.reason);
            }
        }
        tracing::warn!(
            reason = reasons.join("; "),
            "someone else changed what we programmed; repairing"
        );
        self.metrics.disturbed();
        progress.complete = true;
    }

    fn look_at_host(&mut self) {
        match host::addresses() {
            Ok(addresses) => {
                let stand_in = self.stand_in(&addresses);
                self.desired.set_host(addresses, stand_in);
            }
            Err(error) => tracing::debug!(%error, "cannot list the machine's addresses"),
        }
    }

    fn stand_in(&self, addresses: &[HostAddress]) -> Option<Node> {
        self.stand_in
            .then(|| host::node_from_machine(&self.desired.options().node_name, addresses))
    }

    /// One change: plan, apply, report.
    async fn round(&mut self, progress: &mut Progress) {
        let complete = progress.complete;
        let Some((change, occasion)) = self.desired.change(complete) else {
            self.programmed();
            return;
        };
        let backend = &mut self.backend;
        let outcome = tokio::task::block_in_place(|| backend.apply(&change));
        progress
            .history
            .tried(&change, outcome.as_ref().map_err(ToString::to_string));
        match outcome {
            Ok(report) => self.applied(&change, &occasion, &report, progress),
            Err(error) => self.failed(&error, progress),
        }
        drop(change);
        if complete {
            memory::give_back();
        }
        occasion.new_notes.iter().for_each(|note| tracing::warn!("{note}"));
        let addresses = &self.desired.node_plan().node_port_addresses;
        let failures = self.health_checks.apply(self.desired.health_checks(), addresses).await;
        self.metrics.health_checks_failed(failures.len());
        for error in failures {
            tracing::warn!("{error}");
            self.events.record(error.notice());
        }
    }

    fn applied(&mut self, change: &Change, occasion: &Occasion, report: &Report, progress: &mut Progress) {
        let level_worthy = change.complete || report.written + report.removed > 0;
        if level_worthy {
            let Report {
                written,
                removed,
                messages,
                took,
                ..
            } = *report;
            let services = change.plans.len() + change.removed.len();
            if change.complete {
                tracing::info!(services, written, removed, messages, ?took, "everything is programmed");
            } else {
                tracing::debug!(services, written, removed, messages, ?took, "programmed");
            }
        }
        self.metrics
            .programmed(&self.desired, occasion, change.complete, report);
        progress.complete = false;
        progress.backoff = FIRST_RETRY;
        progress.last_sync = Some(
            SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .unwrap_or_default()
                .as_secs(),
        );
        progress.last_error = None;
        self.programmed();
    }

    /// What was programmed stays; everything is looked at again after a while.
    fn failed(&mut self, error: &BackendError, progress: &mut Progress) {
        tracing::error!(%error, retry_in = ?progress.backoff, "could not program the change; what was there stays");
        self.metrics.failed();
        progress.complete = true;
        progress.retry_at = Some(Instant::now() + progress.backoff);
        progress.backoff = (progress.backoff * 2).min(LONGEST_RETRY);
        match error {
            BackendError::Services(_) => self.programmed(),
            BackendError::System { .. } => self.state.queued(),
        }
        progress.last_error = Some(error.to_string());
    }

    fn programmed(&self) {
        let eligible = self.node_eligible();
        self.state.programmed(eligible);
        self.metrics.node_eligible(eligible);
    }

    /// As kube-proxy: a Node that is gone, going, or marked by the autoscaler takes no new connections from outside.
    fn node_eligible(&self) -> bool {
        self.desired
            .node()
            .is_some_and(|node| !node.deleting && !node.to_be_deleted_by_autoscaler)
    }

    /// An asker who did not wait for the answer is no loss.
    fn answer(&mut self, question: Question, progress: &Progress) {
        match question {
            Question::Status(asker) => drop(asker.send(self.status(progress))),
            Question::Explain(packet, asker) => {
                let explanation = self.desired.explain(packet);
                let (backend, node) = (&mut self.backend, self.desired.node_plan());
                let kernel = tokio::task::block_in_place(|| backend.inspect(&explanation, node));
                let kernel = kernel.map(|outcome| {
                    outcome.unwrap_or_else(|error| Inspection {
                        differences: vec![format!("the kernel cannot be asked: {error}")],
                        ..Inspection::default()
                    })
                });
                drop(asker.send(Answer::new(&explanation, kernel)));
            }
            Question::Page(filter, asker) => {
                let page = progress.history.page(&self.desired, self.status(progress), &filter);
                drop(asker.send(page));
            }
        }
    }

    fn status(&self, progress: &Progress) -> Status {
        let (services, endpoint_slices) = self.desired.world().counts();
        let source = self.feed.health().kinds();
        let source = source.iter().map(|(kind, health)| {
            let text = match (&health.error, health.synced) {
                (Some(error), _) => format!("lost: {error}"),
                (None, true) => "synced".into(),
                (None, false) => "listing".into(),
            };
            ((*kind).to_string(), text)
        });
        let standing_by = progress.standing_by.iter().map(|who| {
            let line = format!("{who} programs this node");
            ("standing by".to_owned(), line)
        });
        Status {
            version: VERSION.into(),
            node: self.desired.options().node_name.clone(),
            backend: self.backend.name().into(),
            synced: progress.last_sync.is_some(),
            last_sync: progress.last_sync,
            last_error: progress.last_error.clone(),
            services,
            endpoint_slices,
            node_port_addresses: self.desired.node_plan().node_port_addresses.clone(),
            programmed: standing_by.chain(self.backend.status()).collect(),
            notes: self.findings.iter().cloned().chain(self.desired.notes()).collect(),
            faults: progress.faults.iter().cloned().collect(),
            source: source.collect(),
        }
    }
}
