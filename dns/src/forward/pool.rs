//! The upstreams of one `forward`: in what order they are asked, who gets company, who is left for last.
//!
//! An upstream that is dead costs the time until the second one is asked, and only until it is known to be dead. Then it is
//! probed until it answers.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use rand::seq::SliceRandom;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{sleep, timeout};

use super::Outcome;
use super::exchange::{Asked, ExchangeError, exchange};
use super::spec::{Options, Policy, Target};
use super::upstream::Upstream;
use crate::answer::Ede;
use crate::cache::{Prepared, prepare};
use crate::metrics::ForwardMetrics;

/// The same upstream is asked again after so long: a datagram may be lost.
const REPEAT_AFTER: Duration = Duration::from_millis(900);
/// How long a query may take in all (CoreDNS's limit).
const PATIENCE: Duration = Duration::from_secs(5);
const TYPE_NS: u16 = 2;

/// The upstreams of one `forward`.
#[derive(Debug)]
pub struct Pool {
    upstreams: ArcSwap<Vec<Arc<Upstream>>>,
    options: Options,
    cursor: AtomicUsize,
    slots: Arc<Semaphore>,
    rejected: AtomicU64,
    /// Queries for which every upstream was down.
    broken: AtomicU64,
    metrics: ForwardMetrics,
}

/// Leave to forward one query.
#[derive(Debug)]
pub struct Slot(#[allow(dead_code, reason = "held for its drop")] Option<OwnedSemaphorePermit>);

/// Who has been asked, and whether that was so long ago that another was asked as well.
struct Asking {
    upstream: Arc<Upstream>,
    begun: Instant,
}

// === impl Slot ===

impl Slot {
    /// Leave that takes no room: nobody will be asked.
    pub(super) fn free() -> Self {
        Self(None)
    }
}

// === impl Pool ===

impl Pool {
    /// A pool without upstreams. `most` bounds the queries in flight when the options do not.
    pub fn new(options: Options, most: usize, metrics: ForwardMetrics) -> Arc<Self> {
        let slots = options.max_concurrent.unwrap_or(most).min(Semaphore::MAX_PERMITS);
        Arc::new(Self {
            upstreams: ArcSwap::default(),
            options,
            cursor: AtomicUsize::new(0),
            slots: Arc::new(Semaphore::new(slots)),
            rejected: AtomicU64::new(0),
            broken: AtomicU64::new(0),
            metrics,
        })
    }

    /// Replaces the upstreams. What is known of those that stay is kept.
    pub fn set_targets(&self, targets: &[Target]) {
        let old = self.upstreams.load();
        let known = |target: &Target| old.iter().find(|upstream| upstream.target == *target).cloned();
        let new = targets
            .iter()
            .map(|t| known(t).unwrap_or_else(|| Arc::new(Upstream::new(t.clone()))));
        self.upstreams.store(Arc::new(new.collect()));
    }

    /// The upstreams, in the order in which they were named.
    pub fn upstreams(&self) -> Arc<Vec<Arc<Upstream>>> {
        self.upstreams.load_full()
    }

    /// Leave to forward one more query; `None` when too many are in flight.
    pub fn slot(&self) -> Option<Slot> {
        let slot = self.slots.clone().try_acquire_owned().ok();
        if slot.is_none() {
            self.rejected.fetch_add(1, Ordering::Relaxed);
        }
        slot.map(|permit| Slot(Some(permit)))
    }

    /// Queries that were refused because too many were in flight, and queries for which every upstream was down.
    pub fn counts(&self) -> (u64, u64) {
        (
            self.rejected.load(Ordering::Relaxed),
            self.broken.load(Ordering::Relaxed),
        )
    }

    /// Asks until there is an answer, or nobody is left to ask.
    pub(super) async fn ask(self: &Arc<Self>, asked: &Asked) -> Outcome {
        let mut upstreams: Vec<_> = self.upstreams.load().iter().cloned().collect();
        if upstreams.is_empty() {
            return Err(Ede::NoUpstream);
        }
        upstreams.retain(|upstream| !upstream.is_looping());
        if upstreams.is_empty() {
            return Err(Ede::Looping);
        }
        self.order(&mut upstreams);
        if upstreams
            .iter()
            .all(|upstream| upstream.is_down(self.options.max_fails))
        {
            self.broken.fetch_add(1, Ordering::Relaxed);
            if self.options.fail_fast {
                return Err(Ede::UpstreamDown);
            }
        }
        timeout(PATIENCE, self.race(asked, &upstreams))
            .await
            .unwrap_or(Err(Ede::UpstreamDown))
    }

    /// Puts upstreams into the order in which they are asked: by policy, those that are down last.
    fn order(&self, upstreams: &mut [Arc<Upstream>]) {
        match self.options.policy {
            Policy::Random => upstreams.shuffle(&mut rand::rng()),
            Policy::RoundRobin => {
                let turn = self.cursor.fetch_add(1, Ordering::Relaxed);
                upstreams.rotate_left(turn % upstreams.len());
            }
            Policy::Sequential => {}
        }
        upstreams.sort_by_key(|upstream| upstream.is_down(self.options.max_fails));
    }

    /// Asks one upstream after the other, without giving up on those that were asked; the first good answer wins. When all
    /// have been asked, all are asked once more.
    async fn race(self: &Arc<Self>, asked: &Asked, upstreams: &[Arc<Upstream>]) -> Outcome {
        let distinct = upstreams.len();
        let mut attempts = upstreams.iter().chain(upstreams);
        let mut asking: Vec<Asking> = Vec::new();
        let mut running = FuturesUnordered::new();
        let mut poor = None;
        loop {
            let mut patience = REPEAT_AFTER;
            if let Some(upstream) = attempts.next() {
                if asking.len() + 1 < distinct {
                    patience = upstream.hedge_after();
                }
                running.push(self.attempt(upstream.clone(), asked, asking.len()));
                asking.push(Asking {
                    upstream: upstream.clone(),
                    begun: Instant::now(),
                });
            }
            let hurry = sleep(patience);
            tokio::pin!(hurry);
            loop {
                let more = asking.len() < 2 * distinct;
                tokio::select! {
                    answer = running.next() => match answer {
                        Some((index, Ok(prepared))) if self.is_good(&prepared) => {
                            self.overtaken(&asking[..index]);
                            return Ok(prepared);
                        }
                        Some((_, Ok(prepared))) => {
                            poor = Some(prepared);
                            // It has spoken: asking the same again would say the same.
                            if asking.len() < distinct { break }
                        }
                        Some((_, Err(()))) if more => break,
                        Some((_, Err(()))) => {}
                        None if more && poor.is_none() => break,
                        None => return poor.ok_or(Ede::UpstreamDown),
                    },
                    () = &mut hurry, if more => break,
                }
            }
        }
    }

    /// Those that were asked first and are still silent count as failed: otherwise one that is dead would be asked first
    /// for ever, because nobody waits long enough to see it.
    fn overtaken(self: &Arc<Self>, before: &[Asking]) {
        for asking in before {
            if asking.begun.elapsed() >= asking.upstream.hedge_after() {
                self.failed(
                    &asking.upstream,
                    &ExchangeError::TimedOut(asking.upstream.target.to_string()),
                );
            }
        }
    }

    async fn attempt(
        self: &Arc<Self>,
        upstream: Arc<Upstream>,
        asked: &Asked,
        index: usize,
    ) -> (usize, Result<Arc<Prepared>, ()>) {
        let begun = Instant::now();
        let answer = exchange(&upstream, asked, &self.options).await;
        let prepared = match answer.map(prepare) {
            Ok(Some(prepared)) => Ok(prepared),
            Ok(None) => Err(ExchangeError::Garbage(upstream.target.to_string())),
            Err(error) => Err(error),
        };
        let rcode = prepared.as_ref().ok().map(Prepared::rcode);
        self.metrics.exchanged(&upstream.target, rcode, begun.elapsed());
        match prepared {
            Ok(prepared) => {
                upstream.answered(begun.elapsed());
                (index, Ok(Arc::new(prepared)))
            }
            Err(error) => {
                self.failed(&upstream, &error);
                (index, Err(()))
            }
        }
    }

    /// Notes a failure, and has the upstream probed until it answers.
    fn failed(self: &Arc<Self>, upstream: &Arc<Upstream>, error: &ExchangeError) {
        if upstream.failed(self.options.max_fails) {
            tracing::warn!(%error, "upstream is down; it is asked last until it answers a probe");
        } else {
            tracing::debug!(%error, "upstream gave no answer");
        }
        if self.options.max_fails > 0 && upstream.begin_probing() {
            tokio::spawn(probe(Arc::downgrade(self), Arc::downgrade(upstream)));
        }
    }

    /// SERVFAIL, NOTIMP and REFUSED are no answer while another upstream may know better.
    fn is_good(&self, prepared: &Prepared) -> bool {
        let rcode = prepared.rcode();
        !matches!(rcode, 2 | 4 | 5) && !self.options.failover.contains(&rcode)
    }

    /// Whether the next `forward` may know better.
    pub(super) fn passes_on(&self, prepared: &Prepared) -> bool {
        self.options.next.contains(&prepared.rcode()) || self.options.next_on_nodata && prepared.is_empty()
    }

    /// What probes ask.
    fn probe(&self) -> Asked {
        Asked {
            name: self.options.probe_name.clone(),
            qtype: TYPE_NS,
            dnssec_ok: false,
            checking_disabled: false,
            recursion_desired: self.options.probe_recursion,
        }
    }

    /// Asks one upstream for a name, whatever comes of it.
    pub(super) async fn whisper(&self, upstream: &Upstream, asked: &Asked) -> bool {
        exchange(upstream, asked, &self.options).await.is_ok()
    }
}

/// Probes an upstream until it answers anything, or is no longer one.
async fn probe(pool: Weak<Pool>, upstream: Weak<Upstream>) {
    while let Some(pause) = pool.upgrade().map(|pool| pool.options.health_check) {
        sleep(pause).await;
        let (Some(pool), Some(upstream)) = (pool.upgrade(), upstream.upgrade()) else {
            break;
        };
        let begun = Instant::now();
        match exchange(&upstream, &pool.probe(), &pool.options).await {
            Ok(_) => {
                if upstream.is_down(pool.options.max_fails) {
                    tracing::info!(upstream = %upstream.target, "upstream answers again");
                }
                upstream.answered(begun.elapsed());
                upstream.end_probing();
                return;
            }
            Err(error) => {
                pool.metrics.probe_failed(&upstream.target);
                if upstream.failed(pool.options.max_fails) {
                    tracing::warn!(%error, "upstream is down; it is asked last until it answers a probe");
                }
            }
        }
    }
    if let Some(upstream) = upstream.upgrade() {
        upstream.end_probing();
    }
}
