//! Metrics: kube-proxy's names, so that dashboards and alerts go on working, and a few of our own.

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
    services: Count,
    slices: Count,
    objects_written: Counter,
    faults: Counter,
}

/// 1 ms to 16 s, as kube-proxy.
fn durations() -> Histogram {
    Histogram::new(exponential_buckets(0.001, 2.0, 15))
}

// === impl Metrics ===

impl Metrics {
    /// Registers everything.
    pub fn new(registry: &mut Registry) -> Self {
        let kube = registry.sub_registry_with_prefix("kubeproxy");
        let histograms = |registry: &mut Registry, name: &str, help: &str| {
            let family = Histograms::new_with_constructor(durations);
            registry.register(name, help, family.clone());
            family
        };
        macro_rules! family {
            ($name:literal, $help:literal) => {{
                let family = Family::default();
                kube.register($name, $help, family.clone());
                family
            }};
        }
        let sync = histograms(kube, "sync_proxy_rules_duration_seconds", "Time to program one change");
        let full_sync = histograms(
            kube,
            "sync_full_proxy_rules_duration_seconds",
            "Time to program everything",
        );
        let partial_sync = histograms(
            kube,
            "sync_partial_proxy_rules_duration_seconds",
            "Time to program a part",
        );
        let programming = histograms(
            kube,
            "network_programming_duration_seconds",
            "Time from the cause of a change to its effect",
        );
        let mut metrics = Self {
            sync,
            full_sync,
            partial_sync,
            programming,
            last: family!(
                "sync_proxy_rules_last_timestamp_seconds",
                "When rules were last programmed"
            ),
            last_queued: family!(
                "sync_proxy_rules_last_queued_timestamp_seconds",
                "When a change last arrived"
            ),
            service_changes: family!("sync_proxy_rules_service_changes", "Services that changed"),
            endpoint_changes: family!(
                "sync_proxy_rules_endpoint_changes",
                "EndpointSlices' Services that changed"
            ),
            service_pending: family!("sync_proxy_rules_service_changes_pending", "Services that wait"),
            endpoint_pending: family!(
                "sync_proxy_rules_endpoint_changes_pending",
                "Endpoint changes that wait"
            ),
            no_local: family!(
                "sync_proxy_rules_no_local_endpoints_total",
                "Services that policy Local leaves without endpoints on this node"
            ),
            failures: family!(
                "sync_proxy_rules_nftables_sync_failures",
                "Changes that could not be programmed"
            ),
            healthz: family!("proxy_healthz", "Answers of /healthz"),
            livez: family!("proxy_livez", "Answers of /livez"),
            services: Count::default(),
            slices: Count::default(),
            objects_written: Counter::default(),
            faults: Counter::default(),
        };
        metrics.register_own(registry);
        metrics
    }

    fn register_own(&mut self, registry: &mut Registry) {
        let own = registry.sub_registry_with_prefix("portolan_proxy");
        own.register("services", "Services that are known", self.services.clone());
        own.register("endpoint_slices", "EndpointSlices that are known", self.slices.clone());
        own.register(
            "objects_written",
            "Elements, rules or listeners written",
            self.objects_written.clone(),
        );
        own.register(
            "object_faults",
            "Objects, or parts of them, that could not be used",
            self.faults.clone(),
        );
    }

    /// A change arrived from the source.
    pub fn queued(&self, desired: &Desired, faults: usize) {
        let pending = i64::try_from(desired.pending()).unwrap_or(i64::MAX);
        for family in &FAMILIES {
            self.last_queued.get_or_create(family).set(now());
            self.service_pending.get_or_create(family).set(pending);
            self.endpoint_pending.get_or_create(family).set(pending);
        }
        self.faults.inc_by(faults as u64);
    }

    /// A change was programmed.
    pub fn programmed(&self, desired: &Desired, occasion: &Occasion, complete: bool, report: &Report) {
        let took = report.took.as_secs_f64();
        let (internal, external) = desired.without_local_endpoints();
        for family in &FAMILIES {
            self.sync.get_or_create(family).observe(took);
            let kind = if complete { &self.full_sync } else { &self.partial_sync };
            kind.get_or_create(family).observe(took);
            for trigger in &occasion.triggers {
                self.programming.get_or_create(family).observe(since(*trigger));
            }
            self.last.get_or_create(family).set(now());
            self.service_changes
                .get_or_create(family)
                .inc_by(occasion.services as u64);
            self.endpoint_changes
                .get_or_create(family)
                .inc_by(occasion.triggers.len() as u64);
            self.service_pending.get_or_create(family).set(0);
            self.endpoint_pending.get_or_create(family).set(0);
            for (traffic_policy, count) in [("internal", internal), ("external", external)] {
                let labels = NoLocal {
                    ip_family: family.ip_family,
                    traffic_policy,
                };
                self.no_local
                    .get_or_create(&labels)
                    .set(i64::try_from(count).unwrap_or(i64::MAX));
            }
        }
        let (services, slices) = desired.world().counts();
        self.services.set(i64::try_from(services).unwrap_or(i64::MAX));
        self.slices.set(i64::try_from(slices).unwrap_or(i64::MAX));
        self.objects_written.inc_by((report.written + report.removed) as u64);
    }

    /// A change could not be programmed.
    pub fn failed(&self) {
        for family in &FAMILIES {
            self.failures.get_or_create(family).inc();
        }
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
