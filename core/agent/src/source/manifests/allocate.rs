//! allocate: cluster IPs and node ports, as the API server gives them, but the same ones every time.
//!
//! Where the API server picks at random, the name of the Service picks: its hash is the first try, the following
//! addresses the next ones. Values that a manifest names are checked (in range, not taken). As in the API server the
//! lower part of a range is kept for those (KEP-3070, KEP-3668), so that the two seldom meet.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use k8s_openapi::api::core::v1 as core;
use portolan_model::Family;
use portolan_model::parse::parse_ip;

use super::state::{Record, Records};

mod request;

use request::Request;

/// A field and what is wrong with it.
pub(crate) type FieldError = (String, String);

/// Values that manifests name: automatic allocation keeps clear of them.
#[derive(Debug, Default)]
pub(crate) struct Claims {
    ips: BTreeSet<IpAddr>,
    ports: BTreeSet<u16>,
}

/// Who holds what.
#[derive(Debug)]
pub(crate) struct Allocator {
    ranges: Vec<IpNet>,
    records: Records,
    ips: BTreeMap<IpAddr, String>,
    ports: BTreeMap<u16, String>,
}

// === impl Claims ===

impl Claims {
    /// Adds what a Service names.
    pub(crate) fn add(&mut self, service: &core::Service) {
        let Some(spec) = &service.spec else { return };
        let texts = spec.cluster_ips.iter().flatten().chain(&spec.cluster_ip);
        self.ips.extend(texts.filter_map(|text| parse_ip(text).ok()));
        let ports = spec.ports.iter().flatten().filter_map(|port| port.node_port);
        let ports = ports.chain(spec.health_check_node_port);
        self.ports.extend(
            ports
                .filter_map(|port| u16::try_from(port).ok())
                .filter(|port| *port != 0),
        );
    }

    /// Whether a Service names anything, so that it goes before those that do not.
    pub(crate) fn named_by(service: &core::Service) -> bool {
        let mut claims = Self::default();
        claims.add(service);
        !claims.ips.is_empty() || !claims.ports.is_empty()
    }
}

// === impl Allocator ===

impl Allocator {
    pub(crate) fn new(ranges: Vec<IpNet>) -> Self {
        Self {
            ranges,
            records: Records::new(),
            ips: BTreeMap::new(),
            ports: BTreeMap::new(),
        }
    }

    /// The ranges, the default family first.
    pub(crate) fn ranges(&self) -> &[IpNet] {
        &self.ranges
    }

    pub(crate) fn records(&self) -> &Records {
        &self.records
    }

    /// Takes over what is recorded and returns the Services whose record differs from what was known.
    pub(crate) fn adopt(&mut self, records: Records) -> Vec<String> {
        let names: BTreeSet<&String> = records.keys().chain(self.records.keys()).collect();
        let changed = names
            .into_iter()
            .filter(|name| records.get(*name) != self.records.get(*name));
        let changed: Vec<String> = changed.cloned().collect();
        self.records.clear();
        self.ips.clear();
        self.ports.clear();
        for (name, mut record) in records {
            // A file that was edited by hand may give one address to two: the first by name has it.
            record.cluster_ips.retain(|ip| !self.ips.contains_key(ip));
            record.node_ports.retain(|_, port| !self.ports.contains_key(port));
            record.health_check_node_port = record
                .health_check_node_port
                .filter(|port| !self.ports.contains_key(port));
            self.hold(&name, record);
        }
        changed
    }

    /// Forgets the Services that are gone. True when there were any.
    pub(crate) fn retain(&mut self, keep: impl Fn(&str) -> bool) -> bool {
        let gone: Vec<String> = self.records.keys().filter(|name| !keep(name)).cloned().collect();
        for name in &gone {
            self.release(name);
        }
        !gone.is_empty()
    }

    /// Gives a Service that has passed validation its families, cluster IPs and node ports, and writes them into it. On
    /// an error the Service holds what it held before.
    pub(crate) fn allocate(
        &mut self,
        name: &str,
        service: &mut core::Service,
        claims: &Claims,
    ) -> Result<(), Vec<FieldError>> {
        let Some(spec) = service.spec.as_mut() else {
            return Ok(());
        };
        let before = self.records.get(name).cloned().unwrap_or_default();
        let mut errors = Vec::new();
        let record = if spec.type_.as_deref() == Some("ExternalName") {
            Record::default()
        } else {
            let mut request = Request {
                allocator: self,
                name,
                before: &before,
                claims,
                errors: &mut errors,
            };
            let cluster_ips = request.cluster_ips(spec);
            let node_ports = request.node_ports(spec);
            let health_check_node_port = request.health_check_node_port(spec, &node_ports);
            Record {
                cluster_ips,
                node_ports,
                health_check_node_port,
            }
        };
        if !errors.is_empty() {
            return Err(errors);
        }
        self.release(name);
        self.hold(name, record);
        Ok(())
    }

    fn release(&mut self, name: &str) {
        if let Some(record) = self.records.remove(name) {
            for ip in &record.cluster_ips {
                self.ips.remove(ip);
            }
            for port in record.node_ports.values().chain(&record.health_check_node_port) {
                self.ports.remove(port);
            }
        }
    }

    fn hold(&mut self, name: &str, record: Record) {
        if record == Record::default() {
            return;
        }
        self.ips
            .extend(record.cluster_ips.iter().map(|ip| (*ip, name.to_string())));
        let ports = record.node_ports.values().chain(&record.health_check_node_port);
        self.ports.extend(ports.map(|port| (*port, name.to_string())));
        self.records.insert(name.to_string(), record);
    }

    fn range_of(&self, family: Family) -> Option<&IpNet> {
        self.ranges.iter().find(|range| Family::of(&range.addr()) == family)
    }
}
