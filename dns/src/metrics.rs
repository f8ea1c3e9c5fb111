//! Counters, under CoreDNS's names so that its dashboards and alerts work.
//!
//! Every server thread counts into a [`Tally`] of its own; a scrape adds them up. So counting takes no lock, and no two
//! threads write to one cache line.

mod export;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;

use crate::answer::Transport;
use crate::answer::parse::{HEADER, u16_at};
use crate::answer::walk::skip_name;
use crate::forward::spec::Target;

pub use export::{Exporter, Served};

/// Question types that are counted by name, as in CoreDNS; others are `other`.
const TYPES: [(u16, &str); 15] = [
    (1, "A"),
    (28, "AAAA"),
    (5, "CNAME"),
    (48, "DNSKEY"),
    (43, "DS"),
    (65, "HTTPS"),
    (15, "MX"),
    (2, "NS"),
    (47, "NSEC"),
    (50, "NSEC3"),
    (12, "PTR"),
    (46, "RRSIG"),
    (6, "SOA"),
    (33, "SRV"),
    (16, "TXT"),
];
const TYPE_KINDS: usize = TYPES.len() + 1;
/// Response codes by number.
pub const RCODES: [&str; 16] = [
    "NOERROR", "FORMERR", "SERVFAIL", "NXDOMAIN", "NOTIMP", "REFUSED", "YXDOMAIN", "YXRRSET", "NXRRSET", "NOTAUTH",
    "NOTZONE", "11", "12", "13", "14", "15",
];
/// Upper bounds of sizes in octets (CoreDNS's).
const SIZES: [f64; 14] = [
    0.0, 100.0, 200.0, 300.0, 400.0, 511.0, 1023.0, 2047.0, 4095.0, 8291.0, 16e3, 32e3, 48e3, 64e3,
];
/// Upper bounds of durations in seconds: 0.25 ms doubled 15 times (CoreDNS's).
const DURATIONS: [f64; 16] = {
    let mut bounds = [0.000_25; 16];
    let mut i = 1;
    while i < 16 {
        bounds[i] = bounds[i - 1] * 2.0;
        i += 1;
    }
    bounds
};

/// What is counted of one query and its response.
#[derive(Clone, Copy, Debug)]
pub struct Observed<'a> {
    /// How it came.
    pub transport: Transport,
    /// Whether it came over IPv6.
    pub v6: bool,
    /// The zone that answered; `None` for everything else.
    pub zone: Option<u8>,
    /// Octets of the query.
    pub request: usize,
    /// The response.
    pub response: &'a [u8],
    /// From reading the query to having the response.
    pub took: Duration,
}

/// A histogram with fixed bounds.
#[derive(Debug)]
struct Buckets {
    counts: Box<[AtomicU64]>,
    sum: AtomicU64,
}

/// What one thread has counted, for one zone.
#[derive(Debug)]
struct ZoneTally {
    /// By transport, family and type.
    requests: Box<[AtomicU64]>,
    rcodes: Box<[AtomicU64]>,
    /// Nanoseconds.
    durations: Buckets,
    /// By transport.
    request_sizes: [Buckets; 2],
    response_sizes: [Buckets; 2],
}

/// What one thread has counted.
#[derive(Debug)]
pub struct Tally {
    /// The zones in order, then everything else.
    zones: Vec<ZoneTally>,
    panics: AtomicU64,
}

/// All tallies of a server.
#[derive(Debug)]
pub struct Tallies {
    zones: usize,
    tallies: Mutex<Vec<Arc<Tally>>>,
}

// === impl Buckets ===

impl Buckets {
    fn new(bounds: usize) -> Self {
        Self {
            counts: counters(bounds + 1),
            sum: AtomicU64::new(0),
        }
    }

    fn add(&self, bounds: &[f64], value: f64, sum: u64) {
        let bucket = bounds.partition_point(|bound| *bound < value);
        add(self.counts.get(bucket), 1);
        self.sum.fetch_add(sum, Ordering::Relaxed);
    }
}

fn counters(count: usize) -> Box<[AtomicU64]> {
    (0..count).map(|_| AtomicU64::new(0)).collect()
}

fn add(counter: Option<&AtomicU64>, value: u64) {
    if let Some(counter) = counter {
        counter.fetch_add(value, Ordering::Relaxed);
    }
}

// === impl Tally ===

impl Tally {
    fn new(zones: usize) -> Self {
        let zone = || ZoneTally {
            requests: counters(4 * TYPE_KINDS),
            rcodes: counters(RCODES.len()),
            durations: Buckets::new(DURATIONS.len()),
            request_sizes: [Buckets::new(SIZES.len()), Buckets::new(SIZES.len())],
            response_sizes: [Buckets::new(SIZES.len()), Buckets::new(SIZES.len())],
        };
        Self {
            zones: (0..=zones).map(|_| zone()).collect(),
            panics: AtomicU64::new(0),
        }
    }

    /// Counts one query.
    pub fn observe(&self, observed: &Observed<'_>) {
        let last = self.zones.len() - 1;
        let Some(zone) = self.zones.get(observed.zone.map_or(last, usize::from)) else {
            return;
        };
        let stream = observed.transport == Transport::Tcp;
        let proto = usize::from(stream);
        let slot = (proto * 2 + usize::from(observed.v6)) * TYPE_KINDS + type_kind(observed.response);
        add(zone.requests.get(slot), 1);
        let rcode = observed.response.get(3).map_or(0, |flags| usize::from(flags & 15));
        add(zone.rcodes.get(rcode), 1);
        let nanoseconds = observed.took.as_nanos() as u64;
        zone.durations.add(&DURATIONS, observed.took.as_secs_f64(), nanoseconds);
        let (request, response) = (observed.request, observed.response.len());
        zone.request_sizes[proto].add(&SIZES, request as f64, request as u64);
        zone.response_sizes[proto].add(&SIZES, response as f64, response as u64);
    }

    /// Counts a query that made the program panic. The query gets no reply; the thread goes on.
    pub fn panicked(&self) {
        self.panics.fetch_add(1, Ordering::Relaxed);
    }
}

/// The index of the question's type among those that are counted by name.
fn type_kind(response: &[u8]) -> usize {
    let type_ = skip_name(response, HEADER).and_then(|end| u16_at(response, end));
    let known = type_.and_then(|type_| TYPES.iter().position(|(known, _)| *known == type_));
    known.unwrap_or(TYPES.len())
}

// === impl Tallies ===

impl Tallies {
    /// For that many zones.
    pub fn new(zones: usize) -> Self {
        Self {
            zones,
            tallies: Mutex::default(),
        }
    }

    /// A tally for one more thread.
    pub fn tally(&self) -> Arc<Tally> {
        let tally = Arc::new(Tally::new(self.zones));
        self.lock().push(tally.clone());
        tally
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Arc<Tally>>> {
        self.tallies.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What upstreams were asked.
#[derive(Clone, Debug)]
pub struct ForwardMetrics {
    durations: Family<Vec<(&'static str, String)>, Histogram>,
    probes_failed: Family<Vec<(&'static str, String)>, Counter>,
}

// === impl ForwardMetrics ===

impl Default for ForwardMetrics {
    fn default() -> Self {
        Self {
            durations: Family::new_with_constructor(|| Histogram::new(DURATIONS)),
            probes_failed: Family::default(),
        }
    }
}

impl ForwardMetrics {
    /// Notes one exchange; `rcode` is `None` when nothing usable came back.
    pub fn exchanged(&self, to: &Target, rcode: Option<u8>, took: Duration) {
        let rcode = rcode
            .and_then(|rcode| RCODES.get(usize::from(rcode)))
            .unwrap_or(&"NONE");
        let labels = vec![
            ("proxy_name", "forward".to_owned()),
            ("to", to.to_string()),
            ("rcode", (*rcode).to_owned()),
        ];
        self.durations.get_or_create(&labels).observe(took.as_secs_f64());
    }

    /// Notes a probe that was not answered.
    pub fn probe_failed(&self, to: &Target) {
        let labels = vec![("proxy_name", "forward".to_owned()), ("to", to.to_string())];
        self.probes_failed.get_or_create(&labels).inc();
    }
}

/// A question's type by name or as `TYPE123`.
pub fn type_number(text: &str) -> Option<u16> {
    let type_: hickory_proto::rr::RecordType = text.to_ascii_uppercase().parse().ok()?;
    Some(type_.into())
}

/// How long changes of endpoints took to become names.
#[derive(Debug)]
pub struct Programming(Family<Vec<(&'static str, &'static str)>, Histogram>);

/// Upper bounds in seconds: 1 ms doubled 20 times (CoreDNS's).
const PROGRAMMING: [f64; 20] = {
    let mut bounds = [0.001; 20];
    let mut i = 1;
    while i < 20 {
        bounds[i] = bounds[i - 1] * 2.0;
        i += 1;
    }
    bounds
};

// === impl Programming ===

impl Default for Programming {
    fn default() -> Self {
        Self(Family::new_with_constructor(|| Histogram::new(PROGRAMMING)))
    }
}

impl Programming {
    /// Notes the headless Services that a change of endpoints reached, as CoreDNS does.
    pub fn observe(&self, delta: &portolan_model::Delta, world: &portolan_model::World) {
        let now = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap_or_default();
        for (service, trigger) in &delta.triggers {
            if !world.service(service).is_some_and(|view| view.service.headless) {
                continue;
            }
            let Some(trigger) = u64::try_from(*trigger).ok().map(Duration::from_nanos) else {
                continue;
            };
            let took = now.saturating_sub(trigger);
            self.0
                .get_or_create(&vec![("service_kind", "headless_with_selector")])
                .observe(took.as_secs_f64());
        }
    }
}
