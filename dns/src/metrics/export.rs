//! Adds up what was counted when someone scrapes.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;
use portolan_agent::source::Health;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use super::{Buckets, DURATIONS, ForwardMetrics, Programming, RCODES, SIZES, TYPE_KINDS, TYPES, Tallies, ZoneTally};
use crate::cache::Cache;
use crate::forward::Forwarder;
use crate::run::reload::Counts;
use crate::zone::{Snapshot, names};

const TRANSPORTS: [&str; 2] = ["udp", "tcp"];
const FAMILIES: [&str; 2] = ["1", "2"];

/// What one group of listeners is asked and answers.
#[derive(Debug)]
pub struct Served {
    /// The label `server`, as CoreDNS writes it: `dns://:53`.
    pub server: String,
    /// What the threads counted.
    pub tallies: Arc<Tallies>,
    /// What is forwarded and cached.
    pub forwarder: Forwarder,
    /// What is served.
    pub zone: Arc<ArcSwap<Snapshot>>,
}

/// Everything that `/metrics` says about this process.
#[derive(Debug)]
pub struct Exporter {
    /// The groups of listeners.
    pub served: Vec<Served>,
    /// What is forwarded, by all of them.
    pub forwarding: ForwardMetrics,
    /// The cluster's names.
    pub zone: Arc<ArcSwap<Snapshot>>,
    /// How the source is doing, if there is one.
    pub source: Option<Health>,
    /// How long changes took to become names.
    pub programming: Arc<Programming>,
    /// How the Corefile is followed.
    pub reload: Arc<Counts>,
    /// Plugins by server block.
    pub plugins: BTreeSet<(String, String)>,
}

type Labels<'a> = Vec<(&'static str, &'a str)>;

// === impl Served ===

impl Served {
    /// The names of all zones in order, and `.` for everything else.
    fn zones(&self) -> Vec<String> {
        let snapshot = self.zone.load();
        let named = snapshot.config.zones().iter().map(|zone| names::text(&zone.wire));
        named.chain([".".to_owned()]).collect()
    }

    fn sum(&self, zone: usize, counter: impl Fn(&ZoneTally) -> Option<&AtomicU64>) -> u64 {
        let tallies = self.tallies.lock();
        let counters = tallies.iter().filter_map(|tally| counter(tally.zones.get(zone)?));
        counters.map(|counter| counter.load(Ordering::Relaxed)).sum()
    }
}

// === impl Exporter ===

impl Exporter {
    fn requests(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let help = "Counter of DNS requests made per zone, protocol and family";
        let mut family = encoder.encode_descriptor("coredns_dns_requests", help, None, MetricType::Counter)?;
        for (served, index, zone) in self.zones() {
            for slot in 0..4 * TYPE_KINDS {
                let count = served.sum(index, |tally| tally.requests.get(slot));
                if count == 0 {
                    continue;
                }
                let (place, kind) = (slot / TYPE_KINDS, slot % TYPE_KINDS);
                let labels: Labels<'_> = vec![
                    ("server", &served.server),
                    ("zone", &zone),
                    ("view", ""),
                    ("proto", TRANSPORTS[place / 2]),
                    ("family", FAMILIES[place % 2]),
                    ("type", TYPES.get(kind).map_or("other", |(_, name)| name)),
                ];
                ConstCounter::new(count).encode(family.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }

    fn responses(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let help = "Counter of response status codes";
        let mut family = encoder.encode_descriptor("coredns_dns_responses", help, None, MetricType::Counter)?;
        for (served, index, zone) in self.zones() {
            let plugin = if zone == "." { "forward" } else { "kubernetes" };
            for (code, rcode) in RCODES.iter().enumerate() {
                let count = served.sum(index, |tally| tally.rcodes.get(code));
                if count == 0 {
                    continue;
                }
                let labels: Labels<'_> = vec![
                    ("server", &served.server),
                    ("zone", &zone),
                    ("view", ""),
                    ("rcode", rcode),
                    ("plugin", plugin),
                ];
                ConstCounter::new(count).encode(family.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }

    /// A histogram by zone, and by transport where it is counted so.
    fn histogram(
        &self,
        encoder: &mut DescriptorEncoder<'_>,
        about: &Histogram,
        of: impl Fn(&ZoneTally, usize) -> &Buckets,
    ) -> fmt::Result {
        let mut family = encoder.encode_descriptor(about.name, about.help, None, MetricType::Histogram)?;
        let transports: &[Option<&'static str>] = if about.by_transport {
            &[Some("udp"), Some("tcp")]
        } else {
            &[None]
        };
        for (served, index, zone) in self.zones() {
            for (proto, transport) in transports.iter().enumerate() {
                let bounds = about.bounds.iter().copied().chain([f64::INFINITY]);
                let counts: Vec<(f64, u64)> = bounds
                    .enumerate()
                    .map(|(slot, bound)| (bound, served.sum(index, |tally| of(tally, proto).counts.get(slot))))
                    .collect();
                let count = counts.iter().map(|(_, count)| count).sum();
                if count == 0 {
                    continue;
                }
                let sum = served.sum(index, |tally| Some(&of(tally, proto).sum)) as f64 * about.unit;
                let mut labels: Labels<'_> = vec![("server", &served.server), ("zone", &zone), ("view", "")];
                labels.extend(transport.map(|transport| ("proto", transport)));
                family
                    .encode_family(&labels)?
                    .encode_histogram::<NoLabelSet>(sum, count, &counts, None)?;
            }
        }
        Ok(())
    }

    /// Every zone of every group, with its place.
    fn zones(&self) -> Vec<(&Served, usize, String)> {
        let zones = |served| {
            Served::zones(served)
                .into_iter()
                .enumerate()
                .map(move |(index, zone)| (served, index, zone))
        };
        self.served.iter().flat_map(zones).collect()
    }

    fn cache(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let labels = |served: &'_ Served| -> Vec<(&'static str, String)> {
            vec![
                ("server", served.server.clone()),
                ("zones", ".".to_owned()),
                ("view", String::new()),
            ]
        };
        let by_kind = |served: &'_ Served, kind: &str| {
            let mut labels = labels(served);
            labels.insert(1, ("type", kind.to_owned()));
            labels
        };
        let kinds = |cache: &Cache, of: fn(&crate::cache::Counts) -> &AtomicU64| {
            [
                ("success", load(of(&cache.success))),
                ("denial", load(of(&cache.denial))),
            ]
        };
        let help = "The number of elements in the cache";
        let mut family = encoder.encode_descriptor("coredns_cache_entries", help, None, MetricType::Gauge)?;
        for served in &self.served {
            for (kind, count) in kinds(served.forwarder.cache(), |counts| &counts.entries) {
                ConstGauge::new(count as i64).encode(family.encode_family(&by_kind(served, kind))?)?;
            }
        }
        type Count = fn(&crate::cache::Counts) -> &AtomicU64;
        let counters: [(&str, &str, Count); 2] = [
            ("coredns_cache_hits", "The count of cache hits", |counts| &counts.hits),
            ("coredns_cache_evictions", "The count of cache evictions", |counts| {
                &counts.evictions
            }),
        ];
        for (name, help, of) in counters {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for served in &self.served {
                for (kind, count) in kinds(served.forwarder.cache(), of) {
                    ConstCounter::new(count).encode(family.encode_family(&by_kind(served, kind))?)?;
                }
            }
        }
        let misses =
            |cache: &Cache| load(&cache.requests).saturating_sub(load(&cache.success.hits) + load(&cache.denial.hits));
        type Whole<'a> = &'a dyn Fn(&Cache) -> u64;
        let wholes: [(&str, &str, Whole<'_>); 4] = [
            ("coredns_cache_requests", "The count of cache requests", &|cache| {
                load(&cache.requests)
            }),
            (
                "coredns_cache_misses",
                "The count of cache misses. Deprecated, derive misses from cache hits/requests counters",
                &misses,
            ),
            (
                "coredns_cache_prefetch",
                "The number of times the cache has prefetched a cached item",
                &|cache| load(&cache.prefetched),
            ),
            (
                "coredns_cache_served_stale",
                "The number of requests served from stale cache entries",
                &|cache| load(&cache.stale),
            ),
        ];
        for (name, help, count) in wholes {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for served in &self.served {
                let count = count(served.forwarder.cache());
                ConstCounter::new(count).encode(family.encode_family(&labels(served))?)?;
            }
        }
        Ok(())
    }

    fn forward(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let sum = |of: fn(&Forwarder) -> u64| {
            ConstCounter::new(self.served.iter().map(|served| of(&served.forwarder)).sum::<u64>())
        };
        let help = "Counter of the number of queries rejected because the concurrent queries were at maximum";
        let name = "coredns_forward_max_concurrent_rejects";
        sum(Forwarder::rejected).encode(encoder.encode_descriptor(name, help, None, MetricType::Counter)?)?;
        let help = "Histogram of the time each request took";
        let name = "coredns_proxy_request_duration_seconds";
        let durations = &self.forwarding.durations;
        durations.encode(encoder.encode_descriptor(name, help, None, MetricType::Histogram)?)?;
        let help = "Counter of the number of failed healthchecks";
        let name = "coredns_proxy_healthcheck_failures";
        let failed = &self.forwarding.probes_failed;
        failed.encode(encoder.encode_descriptor(name, help, None, MetricType::Counter)?)?;
        let help = "Counter of the number of complete failures of the healthchecks";
        let name = "coredns_forward_healthcheck_broken";
        sum(Forwarder::broken).encode(encoder.encode_descriptor(name, help, None, MetricType::Counter)?)
    }

    /// What was built, what is configured, and how changes of either kind get here.
    fn about(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let help = "A metric with a constant '1' value labeled by version, revision, and goversion from which CoreDNS was built";
        let labels: Labels<'_> = vec![
            ("version", portolan_agent::version::VERSION),
            ("revision", portolan_agent::version::BUILD.commit),
            ("goversion", "none"),
        ];
        let mut family = encoder.encode_descriptor("coredns_build_info", help, None, MetricType::Gauge)?;
        ConstGauge::new(1).encode(family.encode_family(&labels)?)?;
        let help = "A metric that indicates whether a plugin is enabled on per server and zone basis";
        let mut family = encoder.encode_descriptor("coredns_plugin_enabled", help, None, MetricType::Gauge)?;
        let server = self.served.first().map_or("", |served| served.server.as_str());
        for (zone, plugin) in &self.plugins {
            let labels: Labels<'_> = vec![("server", server), ("zone", zone), ("view", ""), ("name", plugin)];
            ConstGauge::new(1).encode(family.encode_family(&labels)?)?;
        }
        let help = "Counter of the number of failed reload attempts";
        let failed = ConstCounter::new(self.reload.failed.load(Ordering::Relaxed));
        failed.encode(encoder.encode_descriptor("coredns_reload_failed", help, None, MetricType::Counter)?)?;
        let help = "A metric with a constant '1' value labeled by hash, and value which type of hash generated";
        let mut family = encoder.encode_descriptor("coredns_reload_version_info", help, None, MetricType::Gauge)?;
        let version = format!("{:016x}", self.reload.version.load(Ordering::Relaxed));
        let labels: Labels<'_> = vec![("hash", "fnv1a"), ("value", &version)];
        ConstGauge::new(1).encode(family.encode_family(&labels)?)?;
        let help = "Histogram of the time (in seconds) it took to program a dns instance";
        let name = "coredns_kubernetes_dns_programming_duration_seconds";
        let programming = &self.programming.0;
        programming.encode(encoder.encode_descriptor(name, help, None, MetricType::Histogram)?)
    }

    fn state(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let panics = self.served.iter().map(|served| {
            let tallies = served.tallies.lock();
            tallies
                .iter()
                .map(|tally| tally.panics.load(Ordering::Relaxed))
                .sum::<u64>()
        });
        let panics: u64 = panics.sum();
        let help = "A metrics that counts the number of panics";
        ConstCounter::new(panics).encode(encoder.encode_descriptor(
            "coredns_panics",
            help,
            None,
            MetricType::Counter,
        )?)?;
        let snapshot = self.zone.load();
        let (services, addresses) = snapshot.counts();
        for (name, help, value) in [
            (
                "portolan_dns_synced",
                "Whether every source has been read once",
                i64::from(snapshot.synced),
            ),
            (
                "portolan_dns_source_connected",
                "Whether the source answers",
                i64::from(self.source.as_ref().is_none_or(Health::connected)),
            ),
            (
                "portolan_dns_stale",
                "Whether answers may be out of date, because the source is lost or has not been read since the start",
                i64::from(snapshot.stale),
            ),
            (
                "portolan_dns_source_lost_seconds",
                "For how long the source has been lost; 0 while it answers",
                self.source.as_ref().map_or(0, lost_seconds),
            ),
            (
                "portolan_dns_serial",
                "The serial of every zone",
                i64::from(snapshot.serial),
            ),
            ("portolan_dns_services", "Services that have names", services as i64),
            ("portolan_dns_addresses", "Addresses that have names", addresses as i64),
        ] {
            ConstGauge::new(value).encode(encoder.encode_descriptor(name, help, None, MetricType::Gauge)?)?;
        }
        Ok(())
    }
}

/// For how many seconds the source of some kind has been silent.
fn lost_seconds(health: &Health) -> i64 {
    let kinds = health.kinds();
    let lost = kinds.values().filter(|kind| !kind.connected);
    lost.filter_map(|kind| kind.since.elapsed().ok())
        .map(|since| since.as_secs() as i64)
        .max()
        .unwrap_or(0)
}

/// What a histogram is called and how it is counted.
struct Histogram {
    name: &'static str,
    help: &'static str,
    bounds: &'static [f64],
    by_transport: bool,
    /// What one unit of the sum is in the unit of the name.
    unit: f64,
}

impl Collector for Exporter {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        self.requests(&mut encoder)?;
        self.responses(&mut encoder)?;
        let durations = Histogram {
            name: "coredns_dns_request_duration_seconds",
            help: "Histogram of the time (in seconds) each request took per zone",
            bounds: &DURATIONS,
            by_transport: false,
            unit: 1e-9,
        };
        self.histogram(&mut encoder, &durations, |tally, _| &tally.durations)?;
        let sizes = Histogram {
            name: "coredns_dns_request_size_bytes",
            help: "Size of the request in bytes, by zone and protocol",
            bounds: &SIZES,
            by_transport: true,
            unit: 1.0,
        };
        self.histogram(&mut encoder, &sizes, |tally, proto| &tally.request_sizes[proto])?;
        let sizes = Histogram {
            name: "coredns_dns_response_size_bytes",
            help: "Size of the response in bytes, by zone and protocol",
            ..sizes
        };
        self.histogram(&mut encoder, &sizes, |tally, proto| &tally.response_sizes[proto])?;
        self.cache(&mut encoder)?;
        self.forward(&mut encoder)?;
        self.about(&mut encoder)?;
        self.state(&mut encoder)
    }
}
