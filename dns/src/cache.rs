//! The cache of upstream answers: positive and negative (RFC 2308), bounded by octets.
//!
//! Names of our own zones never come here. Entries leave by age, oldest first, when a shard is full.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::answer::walk::{Section, records};
use crate::answer::{Question, Transport, truncate};
use crate::zone::{TYPE_OPT, TYPE_SOA};

const SHARDS: usize = 16;
/// What an entry costs beside its message and key: map slot, queue slot, allocations.
const OVERHEAD: usize = 160;
/// The longest time that a positive answer is kept (CoreDNS's default).
const MAX_POSITIVE: u32 = 3600;
/// The longest time that a negative answer is kept (CoreDNS's default).
const MAX_NEGATIVE: u32 = 1800;

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
    message: Arc<[u8]>,
    /// Offsets of every TTL in the message.
    ttls: Arc<[u16]>,
    stored: Instant,
    lifetime: Duration,
    generation: u64,
    negative: bool,
}

/// What was found, and for how many seconds it has been there.
struct Hit {
    message: Arc<[u8]>,
    ttls: Arc<[u16]>,
    age: u32,
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
        }
    }

    /// The response to a question, if it is here and young enough. `now` must not go back.
    pub fn answer(&self, question: &Question, transport: Transport, now: Instant, out: &mut [u8]) -> Option<usize> {
        let key = KeyBytes::new(question.name.sent(), question);
        let Hit { message, ttls, age } = self.find(key.as_bytes(), now)?;
        fit(&message, &ttls, age, question, transport, out)
    }

    /// The whole message under a key, with its TTLs as they are by now.
    pub fn message(&self, key: &Key, now: Instant) -> Option<Vec<u8>> {
        let Hit { message, ttls, age } = self.find(&key.0, now)?;
        let mut message = message.to_vec();
        age_ttls(&mut message, &ttls, age);
        Some(message)
    }

    fn find(&self, key: &[u8], now: Instant) -> Option<Hit> {
        self.requests.fetch_add(1, Ordering::Relaxed);
        let shard = self.shard(key);
        let entry = shard.entries.get(key)?;
        let age = now.saturating_duration_since(entry.stored);
        if age >= entry.lifetime {
            return None;
        }
        self.counts(entry.negative).hits.fetch_add(1, Ordering::Relaxed);
        Some(Hit {
            message: entry.message.clone(),
            ttls: entry.ttls.clone(),
            age: age.as_secs() as u32,
        })
    }

    /// Keeps a message for as long as it allows. The message must have been checked by [`prepare`].
    pub fn insert(&self, key: Key, prepared: &Prepared, now: Instant) {
        let cost = key.0.len() + prepared.message.len() + 2 * prepared.ttls.len() + OVERHEAD;
        let Some(lifetime) = prepared.lifetime.filter(|_| cost <= self.shard_octets) else {
            return;
        };
        let mut shard = self.shard(&key.0);
        self.forget(&mut shard, &key.0);
        shard.generation += 1;
        let generation = shard.generation;
        shard.order.push_back((key.0.clone(), generation));
        shard.octets += cost;
        let entry = Entry {
            message: prepared.message.clone(),
            ttls: prepared.ttls.clone(),
            stored: now,
            lifetime: Duration::from_secs(lifetime.into()),
            generation,
            negative: prepared.negative,
        };
        self.counts(entry.negative).entries.fetch_add(1, Ordering::Relaxed);
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
                self.counts(entry.negative).evictions.fetch_add(1, Ordering::Relaxed);
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
        shard.octets -= key.len() + entry.message.len() + 2 * entry.ttls.len() + OVERHEAD;
        self.counts(entry.negative).entries.fetch_sub(1, Ordering::Relaxed);
        Some(entry)
    }

    fn counts(&self, negative: bool) -> &Counts {
        if negative { &self.denial } else { &self.success }
    }

    fn shard(&self, key: &[u8]) -> MutexGuard<'_, Shard> {
        use std::hash::BuildHasher;
        let shard = self.hasher.hash_one(key) as usize % SHARDS;
        // What is behind the lock is changed by code that cannot panic half way; a poisoned shard is a whole one.
        self.shards[shard].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A message of an upstream that may be given to clients and kept.
#[derive(Clone, Debug)]
pub struct Prepared {
    /// Without an OPT record; AA clear, RA set.
    pub message: Arc<[u8]>,
    ttls: Arc<[u16]>,
    /// Seconds that it may be kept; `None` when it must not be.
    lifetime: Option<u32>,
    negative: bool,
}

/// Checks a message of an upstream and makes it fit to be given to clients. `None` when it cannot be read.
pub fn prepare(mut message: Vec<u8>) -> Option<Prepared> {
    let mut walk = records(&message)?;
    let start = walk.start();
    let all: Vec<_> = walk.by_ref().collect();
    if !walk.is_complete() {
        return None;
    }
    let mut end = start;
    let mut additionals = 0u16;
    let (mut ttls, mut lowest, mut negative_ttl) = (Vec::new(), None::<u32>, None);
    let answers = all.iter().filter(|record| record.section == Section::Answer).count();
    for record in &all {
        if record.type_ == TYPE_OPT {
            if record.section != Section::Additional {
                return None;
            }
            // Whatever follows goes as well: names behind it may not be moved.
            break;
        }
        end = record.end;
        additionals += u16::from(record.section == Section::Additional);
        ttls.push(u16::try_from(record.ttl_at).ok()?);
        lowest = Some(lowest.unwrap_or(u32::MAX).min(record.ttl));
        if record.type_ == TYPE_SOA && record.section == Section::Authority {
            let minimum = message.get(record.end.checked_sub(4)?..record.end)?;
            let minimum = u32::from_be_bytes(minimum.try_into().ok()?);
            negative_ttl = Some(record.ttl.min(minimum));
        }
    }
    message.truncate(end);
    message[2] &= !0x06;
    message[3] |= 0x80;
    message[10..12].copy_from_slice(&additionals.to_be_bytes());
    let rcode = message[3] & 15;
    let negative = rcode == 3 || (rcode == 0 && answers == 0);
    let lifetime = match (rcode, negative) {
        (0, false) => lowest.map(|ttl| ttl.min(MAX_POSITIVE)),
        // Without an SOA nobody said for how long (RFC 2308 section 5).
        (0 | 3, true) => negative_ttl.map(|ttl| ttl.min(lowest.unwrap_or(0)).min(MAX_NEGATIVE)),
        _ => None,
    };
    if let (true, Some(ttl)) = (negative, negative_ttl) {
        for at in &ttls {
            cap_ttl(&mut message, *at, ttl);
        }
    }
    Some(Prepared {
        message: message.into(),
        ttls: ttls.into(),
        lifetime: lifetime.filter(|seconds| *seconds > 0),
        negative,
    })
}

// === impl Prepared ===

impl Prepared {
    /// The response code, without the bits that an OPT record would add.
    pub fn rcode(&self) -> u8 {
        self.message.get(3).map_or(0, |flags| flags & 15)
    }

    /// The response to a question, from a message that has just come.
    pub fn answer(&self, question: &Question, transport: Transport, out: &mut [u8]) -> Option<usize> {
        fit(&self.message, &self.ttls, 0, question, transport, out)
    }
}

fn ttl_at(message: &mut [u8], at: u16) -> Option<&mut [u8; 4]> {
    message.get_mut(usize::from(at)..)?.first_chunk_mut()
}

fn cap_ttl(message: &mut [u8], at: u16, most: u32) {
    if let Some(ttl) = ttl_at(message, at) {
        *ttl = u32::from_be_bytes(*ttl).min(most).to_be_bytes();
    }
}

fn age_ttls(message: &mut [u8], ttls: &[u16], age: u32) {
    for at in ttls {
        if let Some(ttl) = ttl_at(message, *at) {
            *ttl = u32::from_be_bytes(*ttl).saturating_sub(age).to_be_bytes();
        }
    }
}

/// Turns a kept message into the response to a question.
fn fit(
    message: &[u8],
    ttls: &[u16],
    age: u32,
    question: &Question,
    transport: Transport,
    out: &mut [u8],
) -> Option<usize> {
    let reserve = question.opt_length();
    let room = question.limit(transport).min(out.len()).checked_sub(reserve)?;
    let mut length = message.len();
    if length > room {
        let mut aged = message.to_vec();
        age_ttls(&mut aged, ttls, age);
        truncate::cut(&mut aged, room);
        length = aged.len();
        out.get_mut(..length)?.copy_from_slice(&aged);
    } else {
        out.get_mut(..length)?.copy_from_slice(message);
        age_ttls(out.get_mut(..length)?, ttls, age);
    }
    let header = out.first_chunk_mut::<12>()?;
    header[..2].copy_from_slice(&question.id.to_be_bytes());
    header[2] = header[2] & !1 | u8::from(question.recursion_desired);
    header[3] = header[3] & !0x10 | u8::from(question.checking_disabled) << 4;
    if let Some(client) = &question.edns {
        let count = u16::from_be_bytes([header[10], header[11]]) + 1;
        header[10..].copy_from_slice(&count.to_be_bytes());
        client.write_opt(question.max_udp, out.get_mut(length..length + reserve)?);
    }
    // The question in the letter case of this client.
    let name = question.name.sent();
    out.get_mut(12..12 + name.len())?.copy_from_slice(name);
    Some(length + reserve)
}

#[cfg(test)]
mod tests;
