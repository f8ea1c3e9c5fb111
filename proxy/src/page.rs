//! The page that the admin port serves for people: what is known, what is programmed, and why an endpoint is in or out.
//!
//! It only reads. The HTML is one file without any outside resource; it asks for [`Page`] every other second. Whoever can
//! reach the port sees all Services of the cluster, so it is there on loopback only unless the operator says otherwise.

use std::collections::VecDeque;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use portolan_model::{Family, ServicePort, ServiceView, TrafficPolicy};
use portolan_plan::categorize;
use serde::Serialize;

use crate::backend::{Change, Report};
use crate::desired::Desired;
use crate::state::Status;

/// The page itself.
pub const HTML: &str = include_str!("page.html");

/// Services in one answer; who looks for another one filters.
const SERVICES: usize = 200;
/// Endpoints of a port in one answer.
const ENDPOINTS: usize = 50;
/// Changes that are remembered.
const CHANGES: usize = 100;
/// Names that are remembered of a change.
const NAMES: usize = 3;

/// Everything that the page shows.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Page {
    /// As `portolan-proxy status` tells it.
    pub status: Status,
    /// Unix time of the answer in milliseconds.
    pub now: u64,
    /// Events that arrived, changes that were programmed, changes that failed, since the start.
    pub totals: Totals,
    /// The latest changes, the newest first.
    pub changes: Vec<Recent>,
    /// Services whose name holds the filter, at most [`SERVICES`].
    pub services: Vec<ServiceEntry>,
    /// How many there are.
    pub matching: usize,
}

/// Counted since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Totals {
    /// Events of Services and EndpointSlices.
    pub arrived: u64,
    /// Changes that were programmed.
    pub programmed: u64,
    /// Changes that could not be.
    pub failed: u64,
    /// Objects written or removed.
    pub objects: u64,
    /// Time spent programming, in seconds.
    pub seconds: f64,
}

/// A change that was tried.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Recent {
    /// Unix time in milliseconds.
    pub at: u64,
    /// The Services that it was about; the first few by name.
    pub services: Vec<String>,
    /// How many there were.
    pub count: usize,
    /// It was a complete one.
    pub complete: bool,
    /// Objects written and removed.
    pub objects: usize,
    /// How long it took, in milliseconds.
    pub took: f64,
    /// Why it failed.
    pub error: Option<String>,
}

/// A Service.
#[derive(Clone, Debug, Serialize)]
pub struct ServiceEntry {
    /// `namespace/name`.
    pub name: String,
    /// `spec.type`.
    pub kind: String,
    /// Cluster, external and load balancer addresses.
    pub addresses: Vec<String>,
    /// Its ports.
    pub ports: Vec<PortEntry>,
    /// What the plan remarks.
    pub notes: Vec<String>,
}

/// A port in one family.
#[derive(Clone, Debug, Serialize)]
pub struct PortEntry {
    /// `http 80/TCP IPv4`.
    pub port: String,
    /// How many endpoints get traffic here.
    pub used: usize,
    /// The endpoints, at most [`ENDPOINTS`].
    pub endpoints: Vec<EndpointEntry>,
    /// How many there are.
    pub all: usize,
}

/// An endpoint.
#[derive(Clone, Debug, Serialize)]
pub struct EndpointEntry {
    /// Address and port.
    pub address: String,
    /// The node it runs on.
    pub node: String,
    /// It gets traffic.
    pub used: bool,
    /// Why, or why not.
    pub why: &'static str,
}

/// What the loop remembers for the page.
#[derive(Debug, Default)]
pub struct History {
    changes: VecDeque<Recent>,
    totals: Totals,
}

// === impl History ===

impl History {
    /// Events arrived.
    pub fn arrived(&mut self, events: usize) {
        self.totals.arrived += events as u64;
    }

    /// A change was tried.
    pub fn tried(&mut self, change: &Change, outcome: Result<&Report, String>) {
        let changed = change.plans.iter().map(|plan| &plan.service).chain(&change.removed);
        let mut recent = Recent {
            at: milliseconds(SystemTime::now()),
            services: changed.take(NAMES).map(ToString::to_string).collect(),
            count: change.plans.len() + change.removed.len(),
            complete: change.complete,
            objects: 0,
            took: 0.0,
            error: None,
        };
        match outcome {
            Ok(report) => {
                recent.objects = report.written + report.removed;
                recent.took = report.took.as_secs_f64() * 1000.0;
                self.totals.programmed += 1;
                self.totals.objects += recent.objects as u64;
                self.totals.seconds += report.took.as_secs_f64();
            }
            Err(error) => {
                recent.error = Some(error);
                self.totals.failed += 1;
            }
        }
        if self.changes.len() == CHANGES {
            self.changes.pop_back();
        }
        self.changes.push_front(recent);
    }

    /// The page for a filter: a part of `namespace/name`.
    pub fn page(&self, desired: &Desired, status: Status, filter: &str) -> Page {
        let named = |view: &ServiceView<'_>| filter.is_empty() || view.service.name.to_string().contains(filter);
        let mut services = Vec::new();
        let mut matching = 0;
        for view in desired.world().services().filter(named) {
            if matching < SERVICES {
                services.push(entry(view, desired));
            }
            matching += 1;
        }
        Page {
            status,
            now: milliseconds(SystemTime::now()),
            totals: self.totals,
            changes: self.changes.iter().cloned().collect(),
            services,
            matching,
        }
    }
}

fn milliseconds(time: SystemTime) -> u64 {
    let since: Duration = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

fn entry(view: ServiceView<'_>, desired: &Desired) -> ServiceEntry {
    let service = view.service;
    let addresses = service
        .cluster_ips
        .iter()
        .chain(&service.external_ips)
        .map(ToString::to_string);
    let node_ports = |port: &ServicePort| {
        port.node_port
            .map(|port| format!(" node port {port}"))
            .unwrap_or_default()
    };
    let ports = service.ports.iter().flat_map(|port| {
        let families = Family::ALL
            .into_iter()
            .filter(|family| service.cluster_ips.iter().any(|ip| Family::of(ip) == *family));
        families.map(move |family| (port, family))
    });
    let ports = ports.map(|(port, family)| {
        let title = format!(
            "{} {}/{} {family}{}",
            port.name,
            port.port,
            port.protocol,
            node_ports(port)
        );
        ports_entry(view, port, family, title.trim().to_owned(), desired)
    });
    ServiceEntry {
        name: service.name.to_string(),
        kind: service.type_.to_string(),
        addresses: addresses.collect(),
        ports: ports.collect(),
        notes: desired.notes_of(&service.name).to_vec(),
    }
}

/// Endpoints with the set that this node's own traffic uses.
fn ports_entry(
    view: ServiceView<'_>,
    port: &ServicePort,
    family: Family,
    title: String,
    desired: &Desired,
) -> PortEntry {
    let endpoints = view.endpoints(port, family);
    let zone = desired.node().and_then(portolan_model::Node::zone);
    let sorted = categorize(&endpoints, &desired.options().node_name, zone);
    let membership = match view.service.internal_traffic_policy {
        TrafficPolicy::Cluster => sorted.cluster,
        TrafficPolicy::Local => sorted.local,
    };
    let shown = endpoints
        .iter()
        .zip(&membership)
        .take(ENDPOINTS)
        .map(|(endpoint, membership)| EndpointEntry {
            address: endpoint.address.to_string(),
            node: endpoint.endpoint.node_name.as_deref().unwrap_or_default().to_owned(),
            used: membership.is_in(),
            why: membership.reason(),
        });
    PortEntry {
        port: title,
        used: membership.iter().filter(|membership| membership.is_in()).count(),
        endpoints: shown.collect(),
        all: membership.len(),
    }
}

/// Whether a `Host` header names this machine by an address or as localhost. A name may be anybody's: a page of theirs could
/// read ours through it (DNS rebinding).
pub fn is_local_host(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port))
            if port.chars().all(|c| c.is_ascii_digit()) && (!name.contains(':') || name.ends_with(']')) =>
        {
            name
        }
        _ => host,
    };
    name.eq_ignore_ascii_case("localhost") || name.trim_matches(['[', ']']).parse::<std::net::IpAddr>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_and_localhost_are_served() {
        let check = |host: &str, expect: bool| assert_eq!(is_local_host(host), expect, "{host}");
        check("127.0.0.1:10249", true);
        check("[::1]:10249", true);
        check("::1", true);
        check("localhost", true);
        check("LOCALHOST:10249", true);
        check("evil.example.com:10249", false);
        check("127.0.0.1.example.com", false);
        check("", false);
    }

    #[test]
    fn the_page_names_no_outside_resource() {
        for forbidden in ["http:", "https:", "//cdn", "src=", "@import", "url("] {
            assert!(!HTML.contains(forbidden), "{forbidden} is in the page");
        }
    }
}
