//! Metrics: kube-proxy's names, so that dashboards and alerts go on working, and a few of our own.

mod source;

use std::sync::atomic::{AtomicI64, AtomicU64};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use crate::backend::Report;
use crate::desired::{Desired, Occasion};

pub use source::SourceMetrics;

/// Label `ip_family`. We program both families in one transaction, so both get the same figures.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByFamily {
    ip_family: IpFamily,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
#[allow(clippy::upper_case_acronyms, reason = "the label's values are spelt so")]
enum IpFamily {
    IPv4,
    IPv6,
}

const FAMILIES: [ByFamily; 2] = [
    ByFamily {
        ip_family: IpFamily::IPv4,
    },
    ByFamily {
        ip_family: IpFamily::IPv6,
    },
];

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct NoLocal {
    ip_family: IpFamily,
    traffic_policy: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByCode {
    code: u16,
}

type Seconds = Gauge<f64, AtomicU64>;
type Count = Gauge<i64, AtomicI64>;
type Histograms = Family<ByFamily, Histogram, fn() -> Histogram>;

/// All metrics of the proxy.
pub struct Metrics {
    sync: Histograms,
    full_sync: Histograms,
    partial_sync: Histograms,
    programming: Histograms,
    conntrack: Histograms,
    conntrack_deleted: Family<ByFamily, Counter>,
    last: Family<ByFamily, Seconds>,
    last_queued: Family<ByFamily, Seconds>,
    service_changes: Family<ByFamily, Counter>,
    endpoint_changes: Family<ByFamily, Counter>,
    service_pending: Family<ByFamily, Count>,
    endpoint_pending: Family<ByFamily, Count>,
    no_local: Family<NoLocal, Count>,
    failures: Family<ByFamily, Counter>,
    healthz: Family<ByCode, Counter>,
    livez: Family<ByCode, Counter>,
    own: Own,
}

/// What kube-proxy has no name for.
#[derive(Default)]
struct Own {
    services: Count,
    slices: Count,
    notes: Count,
    health_check_ports: Count,
    synced: Count,
    failing: Count,
    node_eligible: Count,
    objects_written: Counter,
    faults: Counter,
    disturbances: Counter,
    health_check_failures: Counter,
}

/// 1 ms to 16 s, as kube-proxy.
fn durations() -> Histogram {
    Histogram::new(exponential_buckets(0.001, 2.0, 15))
}

/// kube-proxy's buckets, which begin at a quarter of a second, and those below, where we are.
fn programming_durations() -> Histogram {
    let short = exponential_buckets(0.001, 2.0, 8);
    let seconds = (1..60).map(f64::from);
    let minutes = (12..24)
        .map(|fives| f64::from(fives) * 5.0)
        .chain((4..11).map(|halves| f64::from(halves) * 30.0));
    Histogram::new(short.chain([0.25, 0.5]).chain(seconds).chain(minutes))
}

// === impl Metrics ===

impl Metrics {
    /// Registers everything. Each metric has its label values from the start, so that a rate of it is never missing.
    pub fn new(registry: &mut Registry) -> Self {
        let kube = registry.sub_registry_with_prefix("kubeproxy");
        let histograms = |registry: &mut Registry, name: &str, help: &str, make: fn() -> Histogram| {
            let family = Histograms::new_with_constructor(make);
            registry.register(name, help, family.clone());
            FAMILIES.iter().for_each(|labels| drop(family.get_or_create(labels)));
            family
        };
        let sync = "sync_proxy_rules_duration_seconds";
        let sync = histograms(kube, sync, "Time to program one change", durations);
        let full = "sync_full_proxy_rules_duration_seconds";
        let full_sync = histograms(kube, full, "Time to program everything", durations);
        let partial = "sync_partial_proxy_rules_duration_seconds";
        let partial_sync = histograms(kube, partial, "Time to program a part", durations);
        let programming = "network_programming_duration_seconds";
        let help = "Time from the cause of a change to its effect";
        let programming = histograms(kube, programming, help, programming_durations);
        let conntrack = "conntrack_reconciler_sync_duration_seconds";
        let help = "Time to end flows whose endpoint serves no more";
        let conntrack = histograms(kube, conntrack, help, durations);
        macro_rules! family {
            ($name:literal, $help:literal) => {{
                let family = Family::default();
                kube.register($name, $help, family.clone());
                FAMILIES
                    .iter()
                    .for_each(|labels| drop(family.get_or_create(labels)));
                family
            }};
        }
        macro_rules! coded {
            ($name:literal, $help:literal) => {{
                let family = Family::default();
                kube.register($name, $help, family.clone());
                family
            }};
        }
        // Our rules live in tables that go as a whole, so nothing is left to be cleaned up later.
        let _: Family<ByFamily, Counter> = family!(
            "sync_proxy_rules_nftables_cleanup_failures",
            "Stale rules that could not be removed"
        );
        let no_local = Family::default();
        let help = "Services that policy Local leaves without endpoints on this node";
        kube.register("sync_proxy_rules_no_local_endpoints_total", help, no_local.clone());
        let metrics = Self {
            sync,
            full_sync,
            partial_sync,
            programming,
            conntrack,
            conntrack_deleted: family!(
                "conntrack_reconciler_deleted_entries",
                "Flows that were ended because their endpoint serves no more"
            ),
            last: family!(
                "sync_proxy_rules_last_timestamp_seconds",
                "When rules were last programmed"
            ),
            last_queued: family!(
                "sync_proxy_rules_last_queued_timestamp_seconds",
                "When a change last arrived"
            ),
            service_changes: family!("sync_proxy_rules_service_changes", "Changes of Services that arrived"),
            endpoint_changes: family!(
                "sync_proxy_rules_endpoint_changes",
                "Changes of EndpointSlices that arrived"
            ),
            service_pending: family!(
                "sync_proxy_rules_service_changes_pending",
                "Changes of Services that wait"
            ),
            endpoint_pending: family!(
                "sync_proxy_rules_endpoint_changes_pending",
                "Changes of EndpointSlices that wait"
            ),
            no_local,
            failures: family!(
                "sync_proxy_rules_nftables_sync_failures",
                "Changes that could not be programmed"
            ),
            healthz: coded!("proxy_healthz", "Answers of /healthz"),
            livez: coded!("proxy_livez", "Answers of /livez"),
            own: Own::default(),
        };
        metrics.count_without_local_endpoints((0, 0));
        metrics.own.register(registry);
        metrics
    }

    /// A change arrived from the source: so many events of Services, and of EndpointSlices.
    pub fn queued(&self, desired: &Desired, (services, slices): (usize, usize), faults: usize) {
        for family in &FAMILIES {
            self.last_queued.get_or_create(family).set(now());
            self.service_changes.get_or_create(family).inc_by(services as u64);
            self.endpoint_changes.get_or_create(family).inc_by(slices as u64);
        }
        self.pending(desired.waiting());
        self.own.faults.inc_by(faults as u64);
    }

    fn pending(&self, (services, slices): (usize, usize)) {
        for family in &FAMILIES {
            self.service_pending.get_or_create(family).set(count(services));
            self.endpoint_pending.get_or_create(family).set(count(slices));
        }
    }

    /// A change was programmed.
    pub fn programmed(&self, desired: &Desired, occasion: &Occasion, complete: bool, report: &Report) {
        let took = report.took.as_secs_f64();
        for family in &FAMILIES {
            self.sync.get_or_create(family).observe(took);
            let kind = if complete { &self.full_sync } else { &self.partial_sync };
            kind.get_or_create(family).observe(took);
            for trigger in &occasion.triggers {
                self.programming.get_or_create(family).observe(since(*trigger));
            }
            self.conntrack
                .get_or_create(family)
                .observe(report.flows_took.as_secs_f64());
            self.conntrack_deleted
                .get_or_create(family)
                .inc_by(report.flows_ended as u64);
            self.last.get_or_create(family).set(now());
        }
        self.pending(desired.waiting());
        self.count_without_local_endpoints(desired.without_local_endpoints());
        let (services, slices) = desired.world().counts();
        let own = &self.own;
        own.services.set(count(services));
        own.slices.set(count(slices));
        own.notes.set(count(desired.notes().len()));
        own.health_check_ports.set(count(desired.health_checks().len()));
        own.objects_written.inc_by((report.written + report.removed) as u64);
        own.synced.set(1);
        own.failing.set(0);
    }

    fn count_without_local_endpoints(&self, (internal, external): (usize, usize)) {
        for (traffic_policy, services) in [("internal", internal), ("external", external)] {
            for family in &FAMILIES {
                let ip_family = family.ip_family;
                let labels = NoLocal {
                    ip_family,
                    traffic_policy,
                };
                self.no_local.get_or_create(&labels).set(count(services));
            }
        }
    }

    /// Whether the Node is there to stay.
    pub fn node_eligible(&self, eligible: bool) {
        self.own.node_eligible.set(i64::from(eligible));
    }

    /// A change could not be programmed.
    pub fn failed(&self) {
        for family in &FAMILIES {
            self.failures.get_or_create(family).inc();
        }
        self.own.failing.set(1);
    }

    /// Someone else changed what we programmed.
    pub fn disturbed(&self) {
        self.own.disturbances.inc();
    }

    /// Health check ports could not be opened.
    pub fn health_checks_failed(&self, failures: usize) {
        self.own.health_check_failures.inc_by(failures as u64);
    }

    /// `/healthz` answered.
    pub fn healthz(&self, code: u16) {
        self.healthz.get_or_create(&ByCode { code }).inc();
    }

    /// `/livez` answered.
    pub fn livez(&self, code: u16) {
        self.livez.get_or_create(&ByCode { code }).inc();
    }
}

impl Own {
    fn register(&self, registry: &mut Registry) {
        let own = registry.sub_registry_with_prefix("portolan_proxy");
        let mut gauge = |name: &str, help: &str, gauge: &Count| own.register(name, help, gauge.clone());
        gauge("services", "Services that are known", &self.services);
        gauge("endpoint_slices", "EndpointSlices that are known", &self.slices);
        gauge(
            "notes",
            "Contradictions and surprises in the plans that are in force",
            &self.notes,
        );
        gauge(
            "health_check_ports",
            "Services with a health check port",
            &self.health_check_ports,
        );
        gauge("synced", "1 when everything has been programmed once", &self.synced);
        gauge(
            "failing",
            "1 when the last change could not be programmed",
            &self.failing,
        );
        gauge(
            "node_eligible",
            "1 while the Node is there to stay",
            &self.node_eligible,
        );
        let mut counter = |name: &str, help: &str, counter: &Counter| own.register(name, help, counter.clone());
        counter(
            "objects_written",
            "Elements, rules or listeners written",
            &self.objects_written,
        );
        counter(
            "object_faults",
            "Objects, or parts of them, that could not be used",
            &self.faults,
        );
        counter(
            "disturbances",
            "Times that someone else changed what we programmed",
            &self.disturbances,
        );
        let help = "Health check ports that could not be opened";
        counter("health_check_failures", help, &self.health_check_failures);
    }
}

fn count(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// Seconds since 1970.
fn now() -> f64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or(Duration::ZERO)
        .as_secs_f64()
}

/// Seconds since a time in nanoseconds since 1970, never negative.
#[allow(
    clippy::cast_precision_loss,
    reason = "a histogram of milliseconds does not need 53 bits"
)]
fn since(nanoseconds: i64) -> f64 {
    (now() - nanoseconds as f64 / 1e9).max(0.0)
}
