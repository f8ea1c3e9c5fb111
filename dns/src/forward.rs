//! Asks upstreams what is not ours, once for however many ask at the same time, and keeps what they say.
//!
//! Beyond a number of queries in flight new ones are refused at once, and say why. When upstreams are silent, an old answer
//! is better than none (RFC 8767).

pub mod exchange;
pub mod https;
pub mod loops;
pub mod pool;
pub mod route;
pub mod spec;
pub mod stream;
pub mod tls;
pub mod upstream;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use arc_swap::ArcSwap;
use hickory_proto::op::{Message, ResponseCode};
use tokio::sync::watch;
use tokio::time::timeout;

use crate::answer::slow::{failure, relay};
use crate::answer::{Ede, Forward, Question, Transport, truncate};
use crate::cache::policy::{Kind, Policy};
use crate::cache::{Cache, Key, Look, Prepared};
use crate::metrics::ForwardMetrics;
use crate::zone::names::Name;
use exchange::Asked;
use loops::Loops;
use pool::Pool;
use route::{Block, Route, Table};
use spec::{Options, Target};

pub use pool::Slot;

type Outcome = Result<Arc<Prepared>, Ede>;
type Flights = Mutex<HashMap<Key, watch::Receiver<Option<Outcome>>>>;

/// Forwards queries. Cheap to clone; all clones are one.
#[derive(Clone, Debug)]
pub struct Forwarder(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    table: ArcSwap<Table>,
    cache: Cache,
    flights: Flights,
    loops: Loops,
    metrics: ForwardMetrics,
    /// Where refreshes run.
    runtime: Option<tokio::runtime::Handle>,
    most: usize,
}

/// Limits of a [`Forwarder`].
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Queries in flight for each pool that says nothing itself; more are refused.
    pub max_concurrent: usize,
    /// Octets of the cache.
    pub cache_octets: usize,
}

// === impl Forwarder ===

impl Forwarder {
    /// A forwarder without upstreams. Inside a tokio runtime it can fetch ahead.
    pub fn new(limits: Limits) -> Self {
        Self::with_metrics(limits, ForwardMetrics::default())
    }

    /// The same with metrics that others count into as well.
    pub fn with_metrics(limits: Limits, metrics: ForwardMetrics) -> Self {
        Self(Arc::new(Inner {
            table: ArcSwap::default(),
            cache: Cache::new(limits.cache_octets),
            flights: Mutex::default(),
            loops: Loops::default(),
            metrics,
            runtime: tokio::runtime::Handle::try_current().ok(),
            most: limits.max_concurrent,
        }))
    }

    /// A pool for this forwarder's table.
    pub fn pool(&self, options: Options) -> Arc<Pool> {
        Pool::new(options, self.0.most, self.0.metrics.clone())
    }

    /// Replaces what goes where. Answers that were kept are forgotten: they may come from elsewhere now.
    pub fn set_table(&self, table: Table) {
        self.0.table.store(Arc::new(table));
        self.0.cache.clear();
    }

    /// Forwards every name to these, the first one that is well first.
    pub fn set_upstreams(&self, addresses: &[SocketAddr]) {
        let targets: Vec<Target> = addresses.iter().map(|address| Target::plain(*address)).collect();
        let pool = self.pool(Options {
            policy: spec::Policy::Sequential,
            ..Options::default()
        });
        pool.set_targets(&targets);
        self.set_table(Table::new(vec![everything(pool, Some(Policy::default()))]));
    }

    /// What goes where.
    pub fn table(&self) -> Arc<Table> {
        self.0.table.load_full()
    }

    /// The answers that are kept.
    pub fn cache(&self) -> &Cache {
        &self.0.cache
    }

    /// Which upstreams loop.
    pub fn loops(&self) -> &Loops {
        &self.0.loops
    }

    /// Queries that were refused because too many were in flight.
    pub fn rejected(&self) -> u64 {
        self.table().pools().iter().map(|pool| pool.counts().0).sum()
    }

    /// Queries for which every upstream was down.
    pub fn broken(&self) -> u64 {
        self.table().pools().iter().map(|pool| pool.counts().1).sum()
    }

    /// What upstreams were asked, and how long they took.
    pub fn metrics(&self) -> &ForwardMetrics {
        &self.0.metrics
    }

    /// The response to a question that is not ours, when it is in the cache. Does not wait.
    pub fn cached(&self, forward: &Forward, transport: Transport, out: &mut [u8]) -> Option<usize> {
        if !forward.aliases.is_empty() || forward.undo.is_some() {
            return None;
        }
        let (length, refresh) = self.0.cache.answer(&forward.question, transport, Instant::now(), out)?;
        if refresh {
            self.refresh(forward);
        }
        Some(length)
    }

    /// Leave to forward one more query; `None` when too many are in flight.
    pub fn slot(&self, forward: &Forward) -> Option<Slot> {
        let table = self.0.table.load();
        match target_name(forward).and_then(|name| table.find(&name).pools.first().copied()) {
            Some(pool) => pool.slot(),
            None => Some(Slot::free()),
        }
    }

    /// The response to a query for which there is no slot (CoreDNS's REFUSED).
    pub fn overloaded(&self, question: &Question, transport: Transport) -> Vec<u8> {
        let message = failure(question, ResponseCode::Refused, Ede::Overloaded);
        truncate::encode(message, question.limit(transport))
    }

    /// Fetches anew what is about to be old, if there is room.
    fn refresh(&self, forward: &Forward) {
        if let Some(runtime) = &self.0.runtime
            && let Some(slot) = self.slot(forward)
        {
            let (forwarder, forward) = (self.clone(), forward.clone());
            runtime.spawn(async move {
                let key = Key::new(forward.target(), &forward.question);
                drop(forwarder.fly(key, &forward).await);
                drop(slot);
            });
        }
    }

    /// Asks upstream and makes the response. Never fails: what goes wrong is in the response.
    pub async fn resolve(&self, forward: &Forward, transport: Transport, _slot: Slot) -> Vec<u8> {
        let response = self.respond(forward, transport).await;
        let limit = forward.question.limit(transport);
        match &forward.undo {
            Some(undo) => undo.bytes(&response, limit).unwrap_or(response),
            None => response,
        }
    }

    async fn respond(&self, forward: &Forward, transport: Transport) -> Vec<u8> {
        let question = &forward.question;
        let limit = question.limit(transport);
        let failed = |code, ede| truncate::encode(failure(question, code, ede), limit);
        if self.0.loops.recognise(question) {
            return failed(ResponseCode::ServFail, Ede::Looping);
        }
        let (prepared, ede) = match self.ask(forward).await {
            Ok(found) => found,
            Err(ede @ (Ede::NotServed | Ede::Overloaded)) => return failed(ResponseCode::Refused, ede),
            Err(ede) => return failed(ResponseCode::ServFail, ede),
        };
        if forward.aliases.is_empty() {
            let mut out = vec![0; limit];
            return match prepared.answer(question, transport, ede, &mut out) {
                Some(length) => {
                    out.truncate(length);
                    out
                }
                None => failed(ResponseCode::ServFail, Ede::UpstreamDown),
            };
        }
        match Message::from_vec(&prepared.message) {
            Ok(message) => truncate::encode(relay(forward, &message), limit),
            Err(_) => failed(ResponseCode::ServFail, Ede::UpstreamDown),
        }
    }

    /// What the cache has for the target, what upstreams say, or what the cache had once; and the last is said.
    async fn ask(&self, forward: &Forward) -> Result<(Arc<Prepared>, Option<Ede>), Ede> {
        let key = Key::new(forward.target(), &forward.question);
        let old = match self.0.cache.look(&key, Instant::now()) {
            Look::Fresh(prepared) => return Ok((Arc::new(prepared), None)),
            Look::Stale(prepared, verify) => Some((prepared, verify)),
            Look::Nothing => None,
        };
        let Some((old, verify)) = old else {
            return self.fly(key, forward).await.map(|prepared| (prepared, None));
        };
        match timeout(verify, self.fly(key.clone(), forward)).await {
            Ok(Ok(prepared)) if prepared.rcode() != SERVFAIL => Ok((prepared, None)),
            _ => {
                self.0.cache.served_stale(&key, Instant::now());
                Ok((Arc::new(old), Some(Ede::StaleAnswer)))
            }
        }
    }

    /// Asks for the target, or waits for the one who asks already.
    async fn fly(&self, key: Key, forward: &Forward) -> Outcome {
        let table = self.0.table.load_full();
        let name = target_name(forward).ok_or(Ede::NotServed)?;
        let way = table.find(&name);
        let pools: Vec<Arc<Pool>> = way.pools.into_iter().cloned().collect();
        if pools.is_empty() {
            return Err(if way.served { Ede::NoForward } else { Ede::NotServed });
        }
        let policy = way.cache.cloned();
        let mut flight = match self.board(&key) {
            Boarded::Passenger(flight) => flight,
            Boarded::Pilot(land, flight) => {
                let asked = asked(forward);
                let forwarder = self.clone();
                // A task of its own: the others wait for it even when the first client goes away.
                tokio::spawn(async move {
                    let outcome = ask_in_turn(&pools, &asked).await;
                    let outcome = forwarder.keep(&key, outcome, policy.as_ref());
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

    /// Keeps an answer as the policy says, and gives it as it is kept.
    fn keep(&self, key: &Key, outcome: Outcome, policy: Option<&Arc<Policy>>) -> Outcome {
        let Some(policy) = policy else { return outcome };
        match outcome {
            Ok(prepared) => {
                let prepared = Arc::new(prepared.within(policy));
                self.0.cache.insert(key.clone(), &prepared, policy, Instant::now());
                Ok(prepared)
            }
            Err(ede) => {
                self.0.cache.failed(key, policy, Instant::now());
                Err(ede)
            }
        }
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
}

const SERVFAIL: u8 = 2;

/// Asks one pool, and the next ones as long as the answer leaves it to them.
async fn ask_in_turn(pools: &[Arc<Pool>], asked: &Asked) -> Outcome {
    let mut outcome = Err(Ede::NoForward);
    for (index, pool) in pools.iter().enumerate() {
        // Who asked has the leave of the first.
        let slot = if index == 0 { Some(Slot::free()) } else { pool.slot() };
        let Some(_slot) = slot else {
            return Err(Ede::Overloaded);
        };
        outcome = pool.ask(asked).await;
        if !outcome.as_ref().is_ok_and(|prepared| pool.passes_on(prepared)) {
            break;
        }
    }
    outcome
}

/// A block that forwards every name to one pool.
pub fn everything(pool: Arc<Pool>, cache: Option<Policy>) -> Block {
    let root: Box<[u8]> = Box::new([0]);
    Block {
        zone: root.clone(),
        routes: vec![Route {
            from: vec![root],
            except: Vec::new(),
            pool,
        }],
        cache: cache.map(Arc::new),
        cache_zones: Vec::new(),
    }
}

fn target_name(forward: &Forward) -> Option<Name> {
    if forward.aliases.is_empty() {
        return Some(forward.question.name.clone());
    }
    Name::from_wire(forward.target()).ok()
}

fn asked(forward: &Forward) -> Asked {
    let question = &forward.question;
    Asked {
        name: forward.target().into(),
        qtype: question.qtype,
        dnssec_ok: question.edns.is_some_and(|edns| edns.dnssec_ok),
        checking_disabled: question.checking_disabled,
        recursion_desired: true,
    }
}

enum Boarded {
    Passenger(watch::Receiver<Option<Outcome>>),
    Pilot(watch::Sender<Option<Outcome>>, watch::Receiver<Option<Outcome>>),
}

/// What kind of answer a message is to the cache.
pub(crate) fn kind_of(rcode: u8, answers: usize) -> Option<Kind> {
    match (rcode, answers) {
        (0, 1..) => Some(Kind::Success),
        (0, 0) | (3, _) => Some(Kind::Denial),
        (SERVFAIL, _) => Some(Kind::Failure),
        _ => None,
    }
}
