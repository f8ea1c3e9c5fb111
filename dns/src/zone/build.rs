//! One Service into everything that its names answer.
//!
//! Looks at that Service and its slices only. Names that DNS cannot carry are left out; they were reported when the
//! object was parsed.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use portolan_model::{Endpoint, EndpointSlice, ImportView, Protocol, ServiceName, ServiceType, ServiceView};

use super::config::Naming;
use super::names::{DashedLabel, Name, parse_dashed, push_label, wire_from_text};
use super::records::{Label, Records, Srv};
use super::zonal::Zonal;

/// Everything that the names of one Service answer.
#[derive(Debug, PartialEq, Eq)]
pub struct ServiceNames {
    /// Labels `service.namespace` in lower case and wire form.
    pub key: Arc<[u8]>,
    kind: Kind,
    v4: Box<[Ipv4Addr]>,
    v6: Box<[Ipv6Addr]>,
    /// Ready endpoints by their own name, sorted; see [`Host`].
    hosts: Box<[Host]>,
    /// How many of `hosts` are named by their address.
    dashed: usize,
    ports: Box<[Port]>,
    /// SRV records of the bare name, when they are not just those of the only port.
    bare: Option<Box<[SrvRecord]>>,
    /// Its own name does not exist, for want of endpoints.
    hidden: bool,
    /// It is a ServiceImport: endpoints are named by their cluster too, and addresses have no names.
    imported: bool,
    /// Its endpoints by zone, when names are asked for that way.
    zonal: Option<Box<Zonal>>,
}

#[derive(Debug, PartialEq, Eq)]
enum Kind {
    /// Answers with its cluster IPs.
    ClusterIp,
    /// Answers with its ready endpoints; without one the name does not exist.
    Headless,
    /// The target, in wire form; `None` when it is no name, and then the Service's name does not exist either.
    ExternalName(Option<Box<[u8]>>),
}

/// The name of an endpoint. The order puts the dashed ones first, sorted by address, then the named by label.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Host {
    /// No hostname: named by its IPv4 address.
    V4(Ipv4Addr),
    /// No hostname: named by its IPv6 address.
    V6(Ipv6Addr),
    /// Named by its hostname.
    Named(Box<NamedHost>),
}

/// An endpoint, or several, that share a hostname.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NamedHost {
    /// Lower case, in wire form; of another cluster's endpoint the cluster's label too.
    pub label: Arc<[u8]>,
    /// Its IPv4 addresses.
    pub v4: Box<[Ipv4Addr]>,
    /// Its IPv6 addresses.
    pub v6: Box<[Ipv6Addr]>,
}

/// The SRV records of one port name.
#[derive(Debug, PartialEq, Eq)]
struct Port {
    name: Box<str>,
    protocol: Protocol,
    records: Box<[SrvRecord]>,
    /// Records before duplicates were dropped. CoreDNS divides 100 by this.
    count: usize,
}

/// One SRV record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SrvRecord {
    /// The index of the endpoint, or [`SELF`].
    pub host: u32,
    /// The port.
    pub port: u16,
}

/// As a record's host: the Service itself.
pub const SELF: u32 = u32::MAX;

/// What a Service says about one of its names.
#[derive(Clone, Copy, Debug)]
pub enum ServiceAnswer<'a> {
    /// The records asked for; none means NODATA.
    Records(Records<'a>),
    /// The name exists and holds nothing of the type.
    NoData,
    /// An alias; the target in wire form.
    Cname(&'a [u8]),
    /// There is no such name.
    NxDomain,
}

// === impl ServiceNames ===

impl ServiceNames {
    /// Builds the names of a Service. `None` when its name cannot stand in DNS.
    pub fn build(view: &ServiceView<'_>, naming: &Naming) -> Option<Self> {
        let key = service_key(&view.service.name)?;
        let service = view.service;
        let mut names = Self::empty(key);
        if service.type_ == ServiceType::ExternalName {
            names.kind = Kind::ExternalName(service.external_name.as_deref().and_then(external_target));
            return Some(names);
        }
        if service.headless {
            let zonal = naming
                .zonal
                .then(|| Box::new(Zonal::build(&names.key, view.slices, naming)));
            names = Self::of_endpoints(names.key, view.slices, naming);
            names.zonal = zonal;
            return Some(names);
        }
        names.hosts = hosts(view.slices, naming);
        names.hidden = !naming.empty_services && names.hosts.is_empty();
        names.dashed = names.hosts.partition_point(|host| !matches!(host, Host::Named(_)));
        (names.v4, names.v6) = split(service.cluster_ips.iter().copied());
        if !names.hidden {
            names.service_ports(&service.ports);
        }
        names.merge_bare();
        Some(names)
    }

    /// The names of a headless Service with these slices.
    pub(super) fn of_endpoints(key: Arc<[u8]>, slices: &[EndpointSlice], naming: &Naming) -> Self {
        let mut names = Self::empty(key);
        names.kind = Kind::Headless;
        names.hosts = hosts(slices, naming);
        names.dashed = names.hosts.partition_point(|host| !matches!(host, Host::Named(_)));
        let ready = slices.iter().flat_map(ready_endpoints).filter(|_| naming.endpoints);
        (names.v4, names.v6) = split(ready.flat_map(Endpoint::addresses).collect::<BTreeSet<_>>());
        names.endpoint_ports(slices, naming);
        names.merge_bare();
        names
    }

    /// Builds the names of a ServiceImport. `None` when its name cannot stand in DNS.
    pub fn build_import(view: &ImportView<'_>, naming: &Naming) -> Option<Self> {
        let import = view.import;
        let mut names = Self::empty(service_key(&import.name)?);
        names.imported = true;
        if import.headless {
            names.kind = Kind::Headless;
            names.hosts = hosts(view.slices, naming);
            let ready = view
                .slices
                .iter()
                .flat_map(ready_endpoints)
                .filter(|_| naming.endpoints);
            (names.v4, names.v6) = split(ready.flat_map(Endpoint::addresses).collect::<BTreeSet<_>>());
            names.endpoint_ports(view.slices, naming);
        } else {
            (names.v4, names.v6) = split(import.ips.iter().copied());
            names.service_ports(&import.ports);
        }
        names.merge_bare();
        Some(names)
    }

    fn empty(key: Arc<[u8]>) -> Self {
        Self {
            key,
            kind: Kind::ClusterIp,
            v4: Box::default(),
            v6: Box::default(),
            hosts: Box::default(),
            dashed: 0,
            ports: Box::default(),
            bare: None,
            hidden: false,
            imported: false,
            zonal: None,
        }
    }

    /// The ports of the Service itself: every record points at its own name.
    fn service_ports(&mut self, ports: &[portolan_model::ServicePort]) {
        let addresses = self.v4.len() + self.v6.len();
        if addresses == 0 {
            return;
        }
        let port = |port: &portolan_model::ServicePort| Port {
            name: port.name.to_ascii_lowercase().into(),
            protocol: port.protocol,
            records: [SrvRecord {
                host: SELF,
                port: port.port,
            }]
            .into(),
            count: addresses,
        };
        self.ports = ports.iter().map(port).collect();
    }

    /// The ports that the slices of a headless Service name: every record points at an endpoint.
    fn endpoint_ports(&mut self, slices: &[EndpointSlice], naming: &Naming) {
        let mut found: BTreeMap<(&str, Protocol), (BTreeSet<SrvRecord>, usize)> = BTreeMap::new();
        for slice in slices {
            for port in &slice.ports {
                let Some(number) = port.port else { continue };
                let (records, count) = found.entry((&*port.name, port.protocol)).or_default();
                let ready = slice.endpoints.iter().filter(|endpoint| endpoint.conditions.ready);
                for (endpoint, ip) in ready.flat_map(|e| e.addresses().map(move |ip| (e, ip))) {
                    *count += 1;
                    if let Some(host) = self.position(slice, endpoint, ip, naming) {
                        records.insert(SrvRecord { host, port: number });
                    }
                }
            }
        }
        let ports = found.into_iter().map(|((name, protocol), (records, count))| Port {
            name: name.to_ascii_lowercase().into(),
            protocol,
            records: records.into_iter().collect(),
            count,
        });
        self.ports = ports.collect();
    }

    fn merge_bare(&mut self) {
        if self.ports.len() > 1 {
            let all = self.ports.iter().flat_map(|port| port.records.iter().copied());
            self.bare = Some(all.collect::<BTreeSet<_>>().into_iter().collect());
        }
    }

    fn position(&self, slice: &EndpointSlice, endpoint: &Endpoint, ip: IpAddr, naming: &Naming) -> Option<u32> {
        let found = match host_label(slice, endpoint, ip, naming) {
            Some(label) => self.named(&label),
            None => self.dashed(ip),
        };
        found.and_then(|index| u32::try_from(index).ok())
    }

    fn named(&self, label: &[u8]) -> Option<usize> {
        let named = &self.hosts[self.dashed..];
        let found = named.binary_search_by(|host| match host {
            Host::Named(named) => (*named.label).cmp(label),
            Host::V4(_) | Host::V6(_) => std::cmp::Ordering::Less,
        });
        found.ok().map(|index| index + self.dashed)
    }

    fn dashed(&self, ip: IpAddr) -> Option<usize> {
        let host = match ip {
            IpAddr::V4(ip) => Host::V4(ip),
            IpAddr::V6(ip) => Host::V6(ip),
        };
        self.hosts[..self.dashed].binary_search(&host).ok()
    }

    /// Every name below the Service's own one that exists, as labels in wire form.
    pub fn below(&self) -> impl Iterator<Item = Vec<u8>> {
        let hosts = self.hosts.iter().map(|host| host.label().wire().to_vec());
        let ports = self
            .ports
            .iter()
            .filter(|port| !port.name.is_empty() && !port.records.is_empty());
        let ports = ports.map(|port| {
            let (name, protocol) = (port.name.as_bytes(), port.protocol.lower().as_bytes());
            let lengths = [name.len() as u8 + 1, protocol.len() as u8 + 1];
            [&lengths[..1], b"_", name, &lengths[1..], b"_", protocol].concat()
        });
        hosts.chain(ports)
    }

    /// The endpoint at an index.
    pub fn host(&self, index: u32) -> Option<&Host> {
        self.hosts.get(index as usize)
    }

    /// The IPv4 addresses of the Service's own name.
    pub fn v4(&self) -> &[Ipv4Addr] {
        &self.v4
    }

    /// The IPv6 addresses of the Service's own name.
    pub fn v6(&self) -> &[Ipv6Addr] {
        &self.v6
    }

    /// Whether the Service's own name exists.
    pub fn exists(&self) -> bool {
        match &self.kind {
            Kind::ClusterIp => !self.hidden,
            Kind::Headless => !self.hosts.is_empty(),
            Kind::ExternalName(target) => target.is_some(),
        }
    }

    /// The question for the Service's own name.
    pub fn answer(&self, qtype: u16) -> ServiceAnswer<'_> {
        if !self.exists() {
            return ServiceAnswer::NxDomain;
        }
        self.answer_at(qtype, 0)
    }

    /// The same for a name that has the Service's own at label `depth`, and exists.
    pub(super) fn answer_at(&self, qtype: u16, depth: usize) -> ServiceAnswer<'_> {
        if let Kind::ExternalName(Some(target)) = &self.kind {
            return ServiceAnswer::Cname(target);
        }
        match qtype {
            super::TYPE_A => ServiceAnswer::Records(Records::A(&self.v4)),
            super::TYPE_AAAA => ServiceAnswer::Records(Records::Aaaa(&self.v6)),
            super::TYPE_SRV => {
                let only = self.ports.first().map_or(&[][..], |port| &port.records);
                let records = self.bare.as_deref().unwrap_or(only);
                self.srv(records, self.ports.iter().map(|port| port.count).sum(), depth)
            }
            _ => ServiceAnswer::NoData,
        }
    }

    fn srv<'a>(&'a self, records: &'a [SrvRecord], count: usize, depth: usize) -> ServiceAnswer<'a> {
        ServiceAnswer::Records(Records::Srv(Srv {
            service: self,
            records,
            weight: (100 / count.max(1)).max(1) as u16,
            depth,
        }))
    }

    /// The question for a name one label below: an endpoint, or `_proto` above the ports' names.
    ///
    /// `wire` is the label in lower case and wire form.
    pub fn answer_below(&self, wire: &[u8], qtype: u16) -> ServiceAnswer<'_> {
        let label = wire.get(1..).unwrap_or_default();
        if let Some(protocol) = label.strip_prefix(b"_") {
            let mut ports = self.ports.iter().filter(|port| !port.name.is_empty());
            return if ports.any(|port| port.protocol.lower().as_bytes() == protocol && !port.records.is_empty()) {
                ServiceAnswer::NoData
            } else {
                ServiceAnswer::NxDomain
            };
        }
        let by_address = || {
            let ip = parse_dashed(label)?;
            self.dashed(ip).filter(|_| DashedLabel::new(ip).as_bytes() == label)
        };
        let host = self.named(wire).or_else(by_address).and_then(|i| self.hosts.get(i));
        match host {
            Some(host) => Self::answer_host(host, qtype),
            // The label of a cluster above those of its endpoints.
            None if self.imported && self.has_cluster(wire) => ServiceAnswer::NoData,
            None => ServiceAnswer::NxDomain,
        }
    }

    fn has_cluster(&self, wire: &[u8]) -> bool {
        let below = |host: &Host| matches!(host, Host::Named(named) if named.label.ends_with(wire));
        self.hosts.iter().any(below)
    }

    /// The question for a name two labels below: an endpoint of another cluster, or `_port._proto`.
    ///
    /// `wire` are the labels in lower case and wire form.
    pub fn answer_two_below(&self, wire: &[u8], qtype: u16) -> ServiceAnswer<'_> {
        let imported = self.named(wire).filter(|_| self.imported);
        if let Some(host) = imported.and_then(|i| self.hosts.get(i)) {
            return Self::answer_host(host, qtype);
        }
        let split = || {
            let (length, rest) = wire.split_first()?;
            let (port, rest) = rest.split_at_checked(usize::from(*length))?;
            Some((port, rest.get(1..)?))
        };
        match split() {
            Some((port, protocol)) => self.answer_port(port, protocol, qtype),
            None => ServiceAnswer::NxDomain,
        }
    }

    /// The question for a name below `_zone`; `None` when it is no such name, or when there are none.
    pub fn answer_zonal(&self, name: &Name, depth: usize, qtype: u16) -> Option<ServiceAnswer<'_>> {
        self.zonal.as_ref()?.answer(self, name, depth, qtype)
    }

    fn answer_host(host: &Host, qtype: u16) -> ServiceAnswer<'_> {
        match qtype {
            super::TYPE_A => ServiceAnswer::Records(Records::A(host.v4())),
            super::TYPE_AAAA => ServiceAnswer::Records(Records::Aaaa(host.v6())),
            _ => ServiceAnswer::NoData,
        }
    }

    /// The question for `_port._proto`.
    fn answer_port(&self, port: &[u8], protocol: &[u8], qtype: u16) -> ServiceAnswer<'_> {
        let (Some(name), Some(protocol)) = (port.strip_prefix(b"_"), protocol.strip_prefix(b"_")) else {
            return ServiceAnswer::NxDomain;
        };
        let matches = |port: &&Port| {
            !name.is_empty() && port.name.as_bytes() == name && port.protocol.lower().as_bytes() == protocol
        };
        match self.ports.iter().find(matches).filter(|port| !port.records.is_empty()) {
            None => ServiceAnswer::NxDomain,
            Some(port) if qtype == super::TYPE_SRV => self.srv(&port.records, port.count, 2),
            Some(_) => ServiceAnswer::NoData,
        }
    }

    /// Every address that the Service names, its own and those of its endpoints, sorted.
    pub fn addresses(&self) -> Vec<IpAddr> {
        let own = self.own_addresses();
        let hosts = self.hosts.iter().filter(|_| !self.imported);
        let hosts = hosts.flat_map(Host::addresses);
        let mut all: Vec<IpAddr> = own.chain(hosts).collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    /// Its cluster IPs.
    fn own_addresses(&self) -> impl Iterator<Item = IpAddr> {
        let (v4, v6): (&[_], &[_]) = match self.kind {
            Kind::ClusterIp if !self.imported => (&self.v4, &self.v6),
            _ => (&[], &[]),
        };
        let v4 = v4.iter().map(|ip| IpAddr::V4(*ip));
        v4.chain(v6.iter().map(|ip| IpAddr::V6(*ip)))
    }

    /// Whether an address is one of its cluster IPs.
    pub fn owns(&self, address: IpAddr) -> bool {
        self.own_addresses().any(|own| own == address)
    }

    /// The labels of its endpoints at an address: those with a hostname, or those without.
    pub fn labels_of(&self, address: IpAddr, named: bool) -> impl Iterator<Item = Label<'_>> {
        let (dashed, with_names) = self.hosts.split_at(self.dashed);
        let with_names = with_names.iter().filter(move |_| named);
        let with_names = with_names.filter(move |host| host.addresses().any(|ip| ip == address));
        let dashed = self.dashed(address).filter(|_| !named).and_then(|at| dashed.get(at));
        with_names.chain(dashed).map(Host::label)
    }
}

/// Labels `service.namespace` in lower case and wire form.
pub fn service_key(name: &ServiceName) -> Option<Arc<[u8]>> {
    let mut key = Vec::with_capacity(name.name.len() + name.namespace.len() + 2);
    push_label(&mut key, name.name.as_bytes()).ok()?;
    push_label(&mut key, name.namespace.as_bytes()).ok()?;
    key.make_ascii_lowercase();
    Some(key.into())
}

/// The target of an ExternalName Service. An address is no name (as in CoreDNS).
fn external_target(name: &str) -> Option<Box<[u8]>> {
    if name.parse::<IpAddr>().is_ok() {
        return None;
    }
    wire_from_text(name).ok().filter(|wire| wire.len() > 1)
}

fn ready_endpoints(slice: &EndpointSlice) -> impl Iterator<Item = &Endpoint> {
    slice.endpoints.iter().filter(|endpoint| endpoint.conditions.ready)
}

/// What an endpoint is named by when it is not named by its address alone, in lower case and wire form: its hostname, or its
/// pod's name when that is asked for; in a slice of another cluster always, and followed by the cluster.
fn host_label(slice: &EndpointSlice, endpoint: &Endpoint, ip: IpAddr, naming: &Naming) -> Option<Vec<u8>> {
    let pod = || endpoint.target_pod().filter(|_| naming.endpoint_pod_names);
    let name = endpoint.hostname().or_else(|| pod().map(|pod| &pod.name));
    let mut wire = Vec::new();
    let named = name.filter(|name| !name.contains('.'));
    let named = named.is_some_and(|name| push_label(&mut wire, name.as_bytes()).is_ok());
    if let Some(imported) = cluster_of(slice) {
        if !named {
            wire.extend_from_slice(DashedLabel::new(ip).wire());
        }
        push_label(&mut wire, imported.as_bytes()).ok()?;
    } else if !named {
        return None;
    }
    wire.make_ascii_lowercase();
    Some(wire)
}

/// The cluster that a slice comes from, if it is another one's.
fn cluster_of(slice: &EndpointSlice) -> Option<&str> {
    let imported = slice.imported.as_ref().filter(|_| slice.service.is_none());
    imported.map(|imported| &*imported.cluster)
}

fn hosts(slices: &[EndpointSlice], naming: &Naming) -> Box<[Host]> {
    let mut dashed = BTreeSet::new();
    let mut named: BTreeMap<Vec<u8>, BTreeSet<IpAddr>> = BTreeMap::new();
    let ready = slices
        .iter()
        .flat_map(|slice| ready_endpoints(slice).map(move |endpoint| (slice, endpoint)));
    for (slice, endpoint) in ready.filter(|_| naming.endpoints) {
        for ip in endpoint.addresses() {
            match host_label(slice, endpoint, ip, naming) {
                Some(label) => {
                    named.entry(label).or_default().insert(ip);
                }
                None => {
                    dashed.insert(ip);
                }
            }
        }
    }
    let dashed = dashed.into_iter().map(|ip| match ip {
        IpAddr::V4(ip) => Host::V4(ip),
        IpAddr::V6(ip) => Host::V6(ip),
    });
    let named = named.into_iter().map(|(label, addresses)| {
        let (v4, v6) = split(addresses);
        Host::Named(Box::new(NamedHost {
            label: label.into(),
            v4,
            v6,
        }))
    });
    dashed.chain(named).collect()
}

/// Addresses by family, in the order given.
pub fn split(addresses: impl IntoIterator<Item = IpAddr>) -> (Box<[Ipv4Addr]>, Box<[Ipv6Addr]>) {
    let (mut v4, mut v6) = (Vec::new(), Vec::new());
    for address in addresses {
        match address {
            IpAddr::V4(ip) => v4.push(ip),
            IpAddr::V6(ip) => v6.push(ip),
        }
    }
    (v4.into(), v6.into())
}
