//! Asks upstreams what is not ours, once for however many ask at the same time, and keeps what they say.
//!
//! A second upstream is asked when the first is slow, so that one that is dead costs a moment. Beyond a number of
//! queries in flight new ones are refused at once, and say why.

pub mod exchange;
pub mod upstream;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use hickory_proto::op::{Message, ResponseCode};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{sleep, timeout};

use crate::answer::slow::{failure, relay};
use crate::answer::{Ede, Forward, Question, Transport, truncate};
use crate::cache::{Cache, Key, Prepared, prepare};
use crate::metrics::ForwardMetrics;
use exchange::{Asked, ExchangeError, exchange};
use upstream::Upstream;

/// An upstream that has not answered for so long gets company.
const HEDGE_AFTER: Duration = Duration::from_millis(150);
/// The same upstream is asked again after so long: a datagram may be lost.
const REPEAT_AFTER: Duration = Duration::from_millis(900);
/// How long a query may take in all (CoreDNS's limit).
const PATIENCE: Duration = Duration::from_secs(5);

type Outcome = Result<Arc<Prepared>, Ede>;
type Flights = Mutex<HashMap<Key, watch::Receiver<Option<Outcome>>>>;

/// Forwards queries. Cheap to clone; all clones are one.
#[derive(Clone, Debug)]
pub struct Forwarder(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    upstreams: ArcSwap<Vec<Arc<Upstream>>>,
    cache: Cache,
    flights: Flights,
    slots: Arc<Semaphore>,
    rejected: AtomicU64,
    metrics: ForwardMetrics,
}

/// Limits of a [`Forwarder`].
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Queries in flight; more are refused.
    pub max_concurrent: usize,
    /// Octets of the cache.
    pub cache_octets: usize,
}

/// Leave to forward one query.
#[derive(Debug)]
pub struct Slot(#[allow(dead_code, reason = "held for its drop")] OwnedSemaphorePermit);

// === impl Forwarder ===

impl Forwarder {
    /// A forwarder without upstreams.
    pub fn new(limits: Limits) -> Self {
        Self(Arc::new(Inner {
            upstreams: ArcSwap::default(),
            cache: Cache::new(limits.cache_octets),
            flights: Mutex::default(),
            slots: Arc::new(Semaphore::new(limits.max_concurrent)),
            rejected: AtomicU64::new(0),
            metrics: ForwardMetrics::default(),
        }))
    }

    /// Replaces the upstreams. What is known of those that stay is kept.
    pub fn set_upstreams(&self, addresses: &[SocketAddr]) {
        let old = self.0.upstreams.load();
        let known = |address: &SocketAddr| old.iter().find(|upstream| upstream.address == *address).cloned();
        let new = addresses
            .iter()
            .map(|a| known(a).unwrap_or_else(|| Arc::new(Upstream::new(*a))));
        self.0.upstreams.store(Arc::new(new.collect()));
    }

    /// The answers that are kept.
    pub fn cache(&self) -> &Cache {
        &self.0.cache
    }

    /// Queries that were refused because too many were in flight.
    pub fn rejected(&self) -> u64 {
        self.0.rejected.load(Ordering::Relaxed)
    }

    /// What upstreams were asked, and how long they took.
    pub fn metrics(&self) -> &ForwardMetrics {
        &self.0.metrics
    }

    /// The response to a question that is not ours, when it is in the cache. Does not wait.
    pub fn cached(&self, forward: &Forward, transport: Transport, out: &mut [u8]) -> Option<usize> {
        if !forward.aliases.is_empty() {
            return None;
        }
        self.0.cache.answer(&forward.question, transport, Instant::now(), out)
    }

    /// Leave to forward one more query; `None` when too many are in flight.
    pub fn slot(&self) -> Option<Slot> {
        let slot = self.0.slots.clone().try_acquire_owned().ok();
        if slot.is_none() {
            self.0.rejected.fetch_add(1, Ordering::Relaxed);
        }
        slot.map(Slot)
    }

    /// The response to a query for which there is no slot (CoreDNS's REFUSED).
    pub fn overloaded(&self, question: &Question, transport: Transport) -> Vec<u8> {
        let message = failure(question, ResponseCode::Refused, Ede::Overloaded);
        truncate::encode(message, question.limit(transport))
    }

    /// Asks upstream and makes the response. Never fails: what goes wrong is in the response.
    pub async fn resolve(&self, forward: &Forward, transport: Transport, _slot: Slot) -> Vec<u8> {
        let question = &forward.question;
        let limit = question.limit(transport);
        let failed = |ede| truncate::encode(failure(question, ResponseCode::ServFail, ede), limit);
        let prepared = match self.ask(forward).await {
            Ok(prepared) => prepared,
            Err(ede) => return failed(ede),
        };
        if forward.aliases.is_empty() {
            let mut out = vec![0; limit];
            return match prepared.answer(question, transport, &mut out) {
                Some(length) => {
                    out.truncate(length);
                    out
                }
                None => failed(Ede::UpstreamDown),
            };
        }
        match Message::from_vec(&prepared.message) {
            Ok(message) => truncate::encode(relay(forward, &message), limit),
            Err(_) => failed(Ede::UpstreamDown),
        }
    }

    /// Asks for the target, or waits for the one who asks already.
    async fn ask(&self, forward: &Forward) -> Outcome {
        let question = &forward.question;
        let key = Key::new(forward.target(), question);
        if !forward.aliases.is_empty()
            && let Some(message) = self.0.cache.message(&key, Instant::now())
            && let Some(prepared) = prepare(message)
        {
            return Ok(Arc::new(prepared));
        }
        let mut flight = match self.board(&key) {
            Boarded::Passenger(flight) => flight,
            Boarded::Pilot(land, flight) => {
                let asked = Asked {
                    name: forward.target().into(),
                    qtype: question.qtype,
                    dnssec_ok: question.edns.is_some_and(|edns| edns.dnssec_ok),
                    checking_disabled: question.checking_disabled,
                };
                let forwarder = self.clone();
                // A task of its own: the others wait for it even when the first client goes away.
                tokio::spawn(async move {
                    let outcome = forwarder.fly(&asked).await;
                    if let Ok(prepared) = &outcome {
                        forwarder.0.cache.insert(key.clone(), prepared, Instant::now());
                    }
                    forwarder.flights().remove(&key);
                    // Nobody waits any more: fine.
                    let _ = land.send(Some(outcome));
                });
                flight
            }
        };
        let landed = flight.wait_for(Option::is_some).await;
        landed
            .ok()
            .and_then(|outcome| outcome.clone())
            .unwrap_or(Err(Ede::UpstreamDown))
    }

    fn board(&self, key: &Key) -> Boarded {
        let mut flights = self.flights();
        match flights.get(key) {
            Some(flight) => Boarded::Passenger(flight.clone()),
            None => {
                let (land, flight) = watch::channel(None);
                flights.insert(key.clone(), flight.clone());
                Boarded::Pilot(land, flight)
            }
        }
    }

    fn flights(&self) -> std::sync::MutexGuard<'_, HashMap<Key, watch::Receiver<Option<Outcome>>>> {
        self.0.flights.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn fly(&self, asked: &Asked) -> Outcome {
        let attempts = self.attempts();
        if attempts.is_empty() {
            return Err(Ede::NoUpstream);
        }
        timeout(PATIENCE, self.race(asked, &attempts))
            .await
            .unwrap_or(Err(Ede::UpstreamDown))
    }

    /// Every upstream in its turn, those that are down last, and then once more.
    fn attempts(&self) -> Vec<Arc<Upstream>> {
        let mut upstreams: Vec<_> = self.0.upstreams.load().iter().cloned().collect();
        upstreams.sort_by_key(|upstream| upstream.is_down());
        let again = upstreams.clone();
        upstreams.into_iter().chain(again).collect()
    }

    /// Asks one upstream after the other, without giving up on those that were asked; the first good answer wins.
    async fn race(&self, asked: &Asked, attempts: &[Arc<Upstream>]) -> Outcome {
        let distinct = attempts.len() / 2;
        let mut next = 0;
        let mut running = FuturesUnordered::new();
        let mut poor = None;
        loop {
            if let Some(upstream) = attempts.get(next) {
                running.push(self.attempt(upstream.clone(), asked));
                next += 1;
            }
            let patience = if next < distinct { HEDGE_AFTER } else { REPEAT_AFTER };
            let hurry = sleep(patience);
            tokio::pin!(hurry);
            loop {
                let more = next < attempts.len();
                tokio::select! {
                    answer = running.next() => match answer {
                        Some(Ok(prepared)) if is_good(&prepared) => return Ok(prepared),
                        Some(Ok(prepared)) => {
                            poor = Some(prepared);
                            // It has spoken: asking the same again would say the same.
                            if next < distinct { break }
                        }
                        Some(Err(())) if more => break,
                        Some(Err(())) => {}
                        None if more && poor.is_none() => break,
                        None => return poor.ok_or(Ede::UpstreamDown),
                    },
                    () = &mut hurry, if more => break,
                }
            }
        }
    }

    async fn attempt(&self, upstream: Arc<Upstream>, asked: &Asked) -> Result<Arc<Prepared>, ()> {
        let begun = Instant::now();
        let answer = exchange(upstream.address, asked).await;
        let prepared = match answer.map(prepare) {
            Ok(Some(prepared)) => Ok(prepared),
            Ok(None) => Err(ExchangeError::Garbage(upstream.address)),
            Err(error) => Err(error),
        };
        let rcode = prepared.as_ref().ok().map(Prepared::rcode);
        self.0.metrics.exchanged(upstream.address, rcode, begun.elapsed());
        match prepared {
            Ok(prepared) => {
                upstream.answered();
                Ok(Arc::new(prepared))
            }
            Err(error) => {
                if upstream.failed() {
                    tracing::warn!(%error, "upstream is down; it is asked last for a while");
                } else {
                    tracing::debug!(%error, "upstream gave no answer");
                }
                Err(())
            }
        }
    }
}

enum Boarded {
    Passenger(watch::Receiver<Option<Outcome>>),
    Pilot(watch::Sender<Option<Outcome>>, watch::Receiver<Option<Outcome>>),
}

/// SERVFAIL, NOTIMP and REFUSED are no answer while another upstream may know better.
fn is_good(prepared: &Prepared) -> bool {
    !matches!(prepared.rcode(), 2 | 4 | 5)
}
