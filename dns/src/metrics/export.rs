//! Adds up what was counted when someone scrapes.

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

use super::{Buckets, DURATIONS, RCODES, SIZES, TYPE_KINDS, TYPES, Tallies, ZoneTally};
use crate::forward::Forwarder;
use crate::zone::{Snapshot, names};

const TRANSPORTS: [&str; 2] = ["udp", "tcp"];
const FAMILIES: [&str; 2] = ["1", "2"];

/// Everything that `/metrics` says about this server.
#[derive(Debug)]
pub struct Exporter {
    /// The label `server`, as CoreDNS writes it: `dns://:53`.
    pub server: String,
    /// What the threads counted.
    pub tallies: Arc<Tallies>,
    /// What is forwarded and cached.
    pub forwarder: Forwarder,
    /// What is served.
    pub zone: Arc<ArcSwap<Snapshot>>,
    /// How the source is doing.
    pub source: Health,
}

type Labels<'a> = Vec<(&'static str, &'a str)>;

// === impl Exporter ===

impl Exporter {
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

    fn requests(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let help = "Counter of DNS requests made per zone, protocol and family";
        let mut family = encoder.encode_descriptor("coredns_dns_requests", help, None, MetricType::Counter)?;
        for (index, zone) in self.zones().iter().enumerate() {
            for slot in 0..4 * TYPE_KINDS {
                let count = self.sum(index, |tally| tally.requests.get(slot));
                if count == 0 {
                    continue;
                }
                let (place, kind) = (slot / TYPE_KINDS, slot % TYPE_KINDS);
                let labels: Labels<'_> = vec![
                    ("server", &self.server),
                    ("zone", zone),
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
        let zones = self.zones();
        for (index, zone) in zones.iter().enumerate() {
            let plugin = if index + 1 < zones.len() {
                "kubernetes"
            } else {
                "forward"
            };
            for (code, rcode) in RCODES.iter().enumerate() {
                let count = self.sum(index, |tally| tally.rcodes.get(code));
                if count == 0 {
                    continue;
                }
                let labels: Labels<'_> = vec![
                    ("server", &self.server),
                    ("zone", zone),
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
        for (index, zone) in self.zones().iter().enumerate() {
            for (proto, transport) in transports.iter().enumerate() {
                let bounds = about.bounds.iter().copied().chain([f64::INFINITY]);
                let counts: Vec<(f64, u64)> = bounds
                    .enumerate()
                    .map(|(slot, bound)| (bound, self.sum(index, |tally| of(tally, proto).counts.get(slot))))
                    .collect();
                let count = counts.iter().map(|(_, count)| count).sum();
                if count == 0 {
                    continue;
                }
                let sum = self.sum(index, |tally| Some(&of(tally, proto).sum)) as f64 * about.unit;
                let mut labels: Labels<'_> = vec![("server", &self.server), ("zone", zone), ("view", "")];
                labels.extend(transport.map(|transport| ("proto", transport)));
                family
                    .encode_family(&labels)?
                    .encode_histogram::<NoLabelSet>(sum, count, &counts, None)?;
            }
        }
        Ok(())
    }

    fn cache(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let cache = self.forwarder.cache();
        let kinds = [("success", &cache.success), ("denial", &cache.denial)];
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let labels = |kind: &'static str| -> Labels<'_> {
            vec![("server", &self.server), ("type", kind), ("zones", "."), ("view", "")]
        };
        let help = "The number of elements in the cache";
        let mut family = encoder.encode_descriptor("coredns_cache_entries", help, None, MetricType::Gauge)?;
        for (kind, counts) in kinds {
            ConstGauge::new(load(&counts.entries) as i64).encode(family.encode_family(&labels(kind))?)?;
        }
        let help = "The count of cache hits";
        let mut family = encoder.encode_descriptor("coredns_cache_hits", help, None, MetricType::Counter)?;
        for (kind, counts) in kinds {
            ConstCounter::new(load(&counts.hits)).encode(family.encode_family(&labels(kind))?)?;
        }
        let help = "The count of cache evictions";
        let mut family = encoder.encode_descriptor("coredns_cache_evictions", help, None, MetricType::Counter)?;
        for (kind, counts) in kinds {
            ConstCounter::new(load(&counts.evictions)).encode(family.encode_family(&labels(kind))?)?;
        }
        let help = "The count of cache requests";
        let mut family = encoder.encode_descriptor("coredns_cache_requests", help, None, MetricType::Counter)?;
        let labels: Labels<'_> = vec![("server", &self.server), ("zones", "."), ("view", "")];
        ConstCounter::new(load(&cache.requests)).encode(family.encode_family(&labels)?)
    }

    fn forward(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let rejects = ConstCounter::new(self.forwarder.rejected());
        let help = "Counter of the number of queries rejected because the concurrent queries were at maximum";
        let name = "coredns_forward_max_concurrent_rejects";
        rejects.encode(encoder.encode_descriptor(name, help, None, MetricType::Counter)?)?;
        let durations = &self.forwarder.metrics().durations;
        let help = "Histogram of the time each request took";
        let name = "coredns_proxy_request_duration_seconds";
        durations.encode(encoder.encode_descriptor(name, help, None, MetricType::Histogram)?)
    }

    fn state(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let panics = self
            .tallies
            .lock()
            .iter()
            .map(|tally| tally.panics.load(Ordering::Relaxed))
            .sum::<u64>();
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
                i64::from(self.source.connected()),
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
        self.state(&mut encoder)
    }
}
