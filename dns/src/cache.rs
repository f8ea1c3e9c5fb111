//! The cache of upstream answers: positive, negative (RFC 2308) and SERVFAIL, bounded by octets.
//!
//! Names of our own zones never come here. Entries leave by age, oldest first, when a shard is full. What is old stays for
//! the time that upstreams are silent (RFC 8767).

pub mod echo;
pub mod message;
pub mod policy;

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::answer::{Ede, Question, Transport};
use message::fit;
use policy::{Kind, Policy};

pub use message::{Prepared, prepare};

const SHARDS: usize = 16;
/// What an entry costs beside its message and key: map slot, queue slot, allocations.
const OVERHEAD: usize = 160;
/// How long an old answer is given at once after upstreams were silent (RFC 8767 section 5, failure recheck timer).
const RECHECK: Duration = Duration::from_secs(30);
/// The TTL of an answer that is old (RFC 8767 section 4).
pub const STALE_TTL: u32 = 30;

/// What an entry is found by: the lower-case name, the type, DO and CD, which change what upstreams say.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Key(Arc<[u8]>);

/// Counters of one kind of entries.
#[derive(Debug, Default)]
pub struct Counts {
    /// Answers given from the cache.
    pub hits: AtomicU64,
    /// Entries that made room for others.
    pub evictions: AtomicU64,
    /// Entries held.
    pub entries: AtomicU64,
}

/// Answers of upstreams.
#[derive(Debug)]
pub struct Cache {
    shards: Vec<Mutex<Shard>>,
    hasher: foldhash::fast::RandomState,
    shard_octets: usize,
    /// Look-ups.
    pub requests: AtomicU64,
    /// Positive answers.
    pub success: Counts,
    /// Negative answers.
    pub denial: Counts,
    /// Answers fetched anew before they were old.
    pub prefetched: AtomicU64,
    /// Answers given although they were old.
    pub stale: AtomicU64,
}

#[derive(Debug, Default)]
struct Shard {
    entries: HashMap<Arc<[u8]>, Entry, foldhash::fast::RandomState>,
    /// Keys in order of arrival, with the generation that the entry had then.
    order: VecDeque<(Arc<[u8]>, u64)>,
    octets: usize,
    generation: u64,
}

#[derive(Debug)]
struct Entry {
    prepared: Prepared,
    policy: Arc<Policy>,
    stored: Instant,
    lifetime: Duration,
    generation: u64,
    kind: Kind,
    /// Until then upstreams are not waited for, because they were silent a moment ago.
    silent_until: Option<Instant>,
    /// When it was asked for last, and how often without a gap.
    asked: (Instant, u32),
    /// Someone fetches it anew.
    refreshing: Option<Instant>,
}

/// What the cache has.
#[derive(Debug)]
pub enum Look {
    /// An answer, with its TTLs as they are by now.
    Fresh(Prepared),
    /// One that is old, and how long upstreams are to be waited for first.
    Stale(Prepared, Duration),
    /// No answer.
    Nothing,
}

/// The key of a name and the rest of a question, built without allocating.
struct KeyBytes {
    bytes: [u8; 260],
    length: usize,
}

// === impl KeyBytes ===

impl KeyBytes {
    fn new(name: &[u8], question: &Question) -> Self {
        let mut bytes = [0; 260];
        let length = name.len().min(255);
        bytes[..length].copy_from_slice(&name[..length]);
        bytes[..length].make_ascii_lowercase();
        let dnssec_ok = question.edns.is_some_and(|edns| edns.dnssec_ok);
        let flags = u8::from(dnssec_ok) | u8::from(question.checking_disabled) << 1;
        let [high, low] = question.qtype.to_be_bytes();
        bytes[length..length + 3].copy_from_slice(&[high, low, flags]);
        Self {
            bytes,
            length: length + 3,
        }
    }

    fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

// === impl Key ===

impl Key {
    /// The key of `name` (wire form, any letter case), asked the way that `question` asks.
    pub fn new(name: &[u8], question: &Question) -> Self {
        Self(KeyBytes::new(name, question).as_bytes().into())
    }
}

// === impl Cache ===

impl Cache {
    /// A cache that holds at most about that many octets; 0 keeps nothing.
    pub fn new(octets: usize) -> Self {
        Self {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            hasher: foldhash::fast::RandomState::default(),
            shard_octets: octets / SHARDS,
            requests: AtomicU64::new(0),
            success: Counts::default(),
            denial: Counts::default(),
            prefetched: AtomicU64::new(0),
            stale: AtomicU64::new(0),
        }
    }

    /// The response to a question, if it is here and may be given without asking; and whether it should be fetched anew.
    /// `now` must not go back.
    pub fn answer(
        &self,
        question: &Question,
        transport: Transport,
        now: Instant,
        out: &mut [u8],
    ) -> Option<(usize, bool)> {
        let key = KeyBytes::new(question.name.sent(), question);
        self.requests.fetch_add(1, Ordering::Relaxed);
        let mut shard = self.shard(key.as_bytes());
        let entry = shard.entries.get_mut(key.as_bytes())?;
        let age = now.saturating_duration_since(entry.stored);
        if age < entry.lifetime {
            let refresh = entry.wanted(age, now);
            let (prepared, shown, kind) = (entry.prepared.clone(), entry.shown_age(age), entry.kind);
            drop(shard);
            self.counts(kind).hits.fetch_add(1, Ordering::Relaxed);
            self.prefetched.fetch_add(u64::from(refresh), Ordering::Relaxed);
            return Some((fit(&prepared, shown, None, question, transport, out)?, refresh));
        }
        // Old: only without waiting. Otherwise whoever asks upstream finds it again.
        let verify = entry.stale(age, now)?;
        if !verify.is_zero() {
            return None;
        }
        let refresh = entry.refresh(now);
        let prepared = entry.prepared.clone();
        drop(shard);
        self.stale.fetch_add(1, Ordering::Relaxed);
        let old = prepared.aged(u32::MAX, STALE_TTL);
        Some((fit(&old, 0, Some(Ede::StaleAnswer), question, transport, out)?, refresh))
    }

    /// What is here under a key.
    pub fn look(&self, key: &Key, now: Instant) -> Look {
        let mut shard = self.shard(&key.0);
        let Some(entry) = shard.entries.get_mut(&key.0) else {
            return Look::Nothing;
        };
        let age = now.saturating_duration_since(entry.stored);
        if age < entry.lifetime {
            return Look::Fresh(entry.prepared.aged(entry.shown_age(age), 0));
        }
        match entry.stale(age, now) {
            Some(verify) => Look::Stale(entry.prepared.aged(u32::MAX, STALE_TTL), verify),
            None => Look::Nothing,
        }
    }

    /// Notes that an old answer was given because upstreams were silent.
    pub fn served_stale(&self, key: &Key, now: Instant) {
        self.stale.fetch_add(1, Ordering::Relaxed);
        if let Some(entry) = self.shard(&key.0).entries.get_mut(&key.0) {
            entry.silent_until = Some(now + RECHECK);
        }
    }

    /// Notes that upstreams did not answer.
    pub fn failed(&self, key: &Key, policy: &Policy, now: Instant) {
        if policy.stale.is_some()
            && let Some(entry) = self.shard(&key.0).entries.get_mut(&key.0)
        {
            entry.silent_until = Some(now + RECHECK);
            entry.refreshing = None;
        }
    }

    /// Forgets everything.
    pub fn clear(&self) {
        for shard in &self.shards {
            let mut shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            for entry in shard.entries.values() {
                self.counts(entry.kind).entries.fetch_sub(1, Ordering::Relaxed);
            }
            *shard = Shard::default();
        }
    }

    /// Keeps a message for as long as it and the policy allow.
    pub fn insert(&self, key: Key, prepared: &Prepared, policy: &Arc<Policy>, now: Instant) {
        let cost = cost(&key.0, prepared);
        let name = key.0.len().checked_sub(3).map_or(&[][..], |end| &key.0[..end]);
        let Some(kind) = prepared
            .kind
            .filter(|kind| cost <= self.shard_octets && policy.keeps(*kind, name))
        else {
            return;
        };
        let lifetime = match prepared.seconds {
            Some(seconds) => policy.lifetime(kind, seconds),
            None if kind == Kind::Failure => policy.servfail,
            None => return,
        };
        let mut shard = self.shard(&key.0);
        if kind == Kind::Failure
            && let Some(entry) = shard.entries.get_mut(&key.0)
            && entry.kind != Kind::Failure
            && entry.stale(now.saturating_duration_since(entry.stored), now).is_some()
        {
            // An old answer is worth more than a failure.
            entry.silent_until = Some(now + RECHECK);
            entry.refreshing = None;
            return;
        }
        self.forget(&mut shard, &key.0);
        if lifetime.is_zero() {
            return;
        }
        shard.generation += 1;
        let generation = shard.generation;
        shard.order.push_back((key.0.clone(), generation));
        shard.octets += cost;
        let entry = Entry {
            prepared: prepared.clone(),
            policy: policy.clone(),
            stored: now,
            lifetime,
            generation,
            kind,
            silent_until: None,
            asked: (now, 0),
            refreshing: None,
        };
        self.counts(kind).entries.fetch_add(1, Ordering::Relaxed);
        shard.entries.insert(key.0, entry);
        while shard.octets > self.shard_octets {
            let Some((oldest, generation)) = shard.order.pop_front() else {
                break;
            };
            if shard
                .entries
                .get(&oldest)
                .is_some_and(|entry| entry.generation == generation)
                && let Some(entry) = self.forget(&mut shard, &oldest)
            {
                self.counts(entry.kind).evictions.fetch_add(1, Ordering::Relaxed);
            }
        }
        // Keys that were replaced leave the queue when they outnumber the entries.
        if shard.order.len() > 2 * shard.entries.len() + 16 {
            let Shard { order, entries, .. } = &mut *shard;
            order.retain(|(key, generation)| entries.get(key).is_some_and(|entry| entry.generation == *generation));
        }
    }

    fn forget(&self, shard: &mut Shard, key: &Arc<[u8]>) -> Option<Entry> {
        let entry = shard.entries.remove(key)?;
        shard.octets -= cost(key, &entry.prepared);
        self.counts(entry.kind).entries.fetch_sub(1, Ordering::Relaxed);
        Some(entry)
    }

    fn counts(&self, kind: Kind) -> &Counts {
        match kind {
            Kind::Success => &self.success,
            Kind::Denial | Kind::Failure => &self.denial,
        }
    }

    fn shard(&self, key: &[u8]) -> MutexGuard<'_, Shard> {
        use std::hash::BuildHasher;
        let shard = self.hasher.hash_one(key) as usize % SHARDS;
        // What is behind the lock is changed by code that cannot panic half way; a poisoned shard is a whole one.
        self.shards[shard].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn cost(key: &[u8], prepared: &Prepared) -> usize {
    key.len() + prepared.message.len() + 2 * prepared.ttls.len() + OVERHEAD
}

// === impl Entry ===

impl Entry {
    /// The age that TTLs are lowered by.
    fn shown_age(&self, age: Duration) -> u32 {
        if self.policy.keep_ttl { 0 } else { age.as_secs() as u32 }
    }

    /// Whether it may be given although it is old, and how long upstreams are waited for first.
    fn stale(&self, age: Duration, now: Instant) -> Option<Duration> {
        let stale = self.policy.stale.filter(|_| self.kind != Kind::Failure)?;
        if age >= self.lifetime.saturating_add(stale.most) {
            return None;
        }
        let silent = self.silent_until.is_some_and(|until| now < until);
        Some(if silent { Duration::ZERO } else { stale.verify })
    }

    /// Notes a query, and whether it makes fetching anew worth while.
    fn wanted(&mut self, age: Duration, now: Instant) -> bool {
        let Some(prefetch) = self.policy.prefetch else {
            return false;
        };
        let (last, count) = self.asked;
        let count = if now.saturating_duration_since(last) > prefetch.within {
            1
        } else {
            count.saturating_add(1)
        };
        self.asked = (now, count);
        let left = self.lifetime.saturating_sub(age);
        count >= prefetch.amount && left <= self.lifetime * prefetch.percentage / 100 && self.refresh(now)
    }

    /// Takes the right to fetch it anew. It comes back after a while, lest one that was lost were lost for ever.
    fn refresh(&mut self, now: Instant) -> bool {
        let busy = self
            .refreshing
            .is_some_and(|begun| now.saturating_duration_since(begun) < Duration::from_secs(5));
        if !busy {
            self.refreshing = Some(now);
        }
        !busy
    }
}

#[cfg(test)]
mod tests;
