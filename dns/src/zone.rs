//! The zone: which names exist and what they hold.
//!
//! Pure. It follows Deltas, one Service at a time, and never does I/O or looks at a clock. [`Snapshot::lookup`] is the
//! only place that knows the layout of the cluster's names; both answer paths ask it.

pub mod build;
pub mod complete;
pub mod config;
pub mod listing;
pub mod names;
pub mod policy;
pub mod records;
pub mod reverse;
pub mod table;
pub mod zonal;

use std::net::IpAddr;

use build::{ServiceAnswer, ServiceNames};
use config::{PodMode, ZoneApex, ZoneKind};
use names::{Name, Reverse, parse_dashed, parse_reverse};
use records::{DNS_VERSION, MULTICLUSTER_VERSION, NameServer, Records};

pub use config::{ZoneConfig, ZoneError, ZoneSpec};
pub use policy::Policy;
pub use table::{Applied, Snapshot, Zone};

/// Record type A.
pub const TYPE_A: u16 = 1;
/// Record type NS.
pub const TYPE_NS: u16 = 2;
/// Record type CNAME.
pub const TYPE_CNAME: u16 = 5;
/// Record type SOA.
pub const TYPE_SOA: u16 = 6;
/// Record type PTR.
pub const TYPE_PTR: u16 = 12;
/// Record type TXT.
pub const TYPE_TXT: u16 = 16;
/// Record type AAAA.
pub const TYPE_AAAA: u16 = 28;
/// Record type SRV.
pub const TYPE_SRV: u16 = 33;
/// Pseudo record type OPT (RFC 6891).
pub const TYPE_OPT: u16 = 41;
/// Question type IXFR.
pub const TYPE_IXFR: u16 = 251;
/// Question type AXFR.
pub const TYPE_AXFR: u16 = 252;

/// What a question finds.
#[derive(Clone, Copy, Debug)]
pub enum Found<'a> {
    /// In no zone of ours, or an address that is not ours: ask upstream.
    NotOurs,
    /// Ours, but our store is not complete yet.
    NotSynced,
    /// Ours, and something else must be said.
    Ours(&'a ZoneApex, Outcome<'a>),
}

/// What a question finds in a zone of ours.
#[derive(Clone, Copy, Debug)]
pub enum Outcome<'a> {
    /// The records asked for, at least one.
    Records(Records<'a>),
    /// An alias; the target in wire form.
    Cname(&'a [u8]),
    /// The name exists and holds nothing of the type.
    NoData,
    /// There is no such name.
    NxDomain,
    /// Zone transfers are not for everyone.
    Refused,
}

impl Snapshot {
    /// What a question finds.
    pub fn lookup(&self, name: &Name, qtype: u16) -> Found<'_> {
        let Some(zone) = self.config.zone_of(name) else {
            return Found::NotOurs;
        };
        if !self.synced {
            return Found::NotSynced;
        }
        if matches!(qtype, TYPE_AXFR | TYPE_IXFR) {
            return Found::Ours(zone, Outcome::Refused);
        }
        let above = name.labels() - zone.labels;
        let outcome = match zone.kind {
            _ if above == 0 => self.apex(qtype),
            ZoneKind::Cluster => self.cluster_name(zone, name, above, qtype),
            ZoneKind::ClusterSet => self.cluster_set_name(name, above, qtype),
            ZoneKind::Reverse => self.reverse_name(name, qtype),
        };
        let absent = match outcome {
            Outcome::NxDomain => true,
            // Whether there is something below is not known here: whoever has the rest of the tree knows.
            Outcome::NoData => above > 0 && zone.kind == ZoneKind::Reverse && parse_reverse(name) == Reverse::Prefix,
            _ => false,
        };
        if absent && zone.falls_through(name) {
            return Found::NotOurs;
        }
        Found::Ours(zone, non_empty(outcome))
    }

    fn apex(&self, qtype: u16) -> Outcome<'_> {
        match qtype {
            TYPE_SOA => Outcome::Records(Records::Soa),
            TYPE_NS => Outcome::Records(Records::Ns(self.name_server())),
            _ => Outcome::NoData,
        }
    }

    /// The DNS Service when it exists, otherwise `ns.dns`, which is ourselves.
    fn name_server(&self) -> NameServer<'_> {
        match self
            .service(&self.config.dns_service)
            .filter(|service| service.exists())
        {
            Some(service) => NameServer {
                labels: &service.key,
                v4: service.v4(),
                v6: service.v6(),
            },
            None => NameServer {
                labels: b"",
                v4: &self.config.own_v4,
                v6: &self.config.own_v6,
            },
        }
    }

    fn cluster_name(&self, zone: &ZoneApex, name: &Name, above: usize, qtype: u16) -> Outcome<'_> {
        match name.label(above - 1) {
            b"svc" => self.service_name(Self::service, name, above - 1, qtype),
            b"pod" => self.pod_name(zone.pods, name, above - 1, qtype),
            b"dns" => self.name_server_name(name, above - 1, qtype),
            b"dns-version" if above == 1 && qtype == TYPE_TXT => Outcome::Records(Records::Txt(DNS_VERSION)),
            b"dns-version" if above == 1 => Outcome::NoData,
            _ => Outcome::NxDomain,
        }
    }

    /// Names of a zone that holds what other clusters export.
    fn cluster_set_name(&self, name: &Name, above: usize, qtype: u16) -> Outcome<'_> {
        match name.label(above - 1) {
            b"svc" => self.service_name(Self::import, name, above - 1, qtype),
            b"dns" => self.name_server_name(name, above - 1, qtype),
            b"dns-version" if above == 1 && qtype == TYPE_TXT => Outcome::Records(Records::Txt(MULTICLUSTER_VERSION)),
            b"dns-version" if above == 1 => Outcome::NoData,
            _ => Outcome::NxDomain,
        }
    }

    /// `dns` and `ns.dns`, which every SOA names.
    fn name_server_name(&self, name: &Name, above: usize, qtype: u16) -> Outcome<'_> {
        let server = self.name_server();
        match above {
            0 => Outcome::NoData,
            1 if name.label(0) == b"ns" => match qtype {
                TYPE_A => Outcome::Records(Records::A(server.v4)),
                TYPE_AAAA => Outcome::Records(Records::Aaaa(server.v6)),
                _ => Outcome::NoData,
            },
            _ => Outcome::NxDomain,
        }
    }

    /// Names below `svc`, which has `above` labels before it; `find` finds the Service or import of a key.
    fn service_name<'a>(
        &'a self,
        find: fn(&'a Self, &[u8]) -> Option<&'a ServiceNames>,
        name: &Name,
        above: usize,
        qtype: u16,
    ) -> Outcome<'a> {
        let Some(namespace) = above.checked_sub(1) else {
            return Outcome::NoData;
        };
        let Some(service) = namespace.checked_sub(1) else {
            let exists = self.has_namespace(name.label(namespace));
            return if exists { Outcome::NoData } else { Outcome::NxDomain };
        };
        let Some(names) = find(self, name.span(service, above)) else {
            return Outcome::NxDomain;
        };
        Outcome::from(below_service(names, name, service, qtype))
    }

    /// Names below `pod`, which has `above` labels before it.
    fn pod_name(&self, pods: PodMode, name: &Name, above: usize, qtype: u16) -> Outcome<'_> {
        let Some(namespace) = above.checked_sub(1) else {
            return Outcome::NoData;
        };
        let label = name.label(namespace);
        if pods == PodMode::Disabled || !self.has_namespace(label) {
            return Outcome::NxDomain;
        }
        let ip = match namespace {
            0 => return Outcome::NoData,
            1 => parse_dashed(name.label(0)),
            _ => None,
        };
        match ip {
            Some(ip) if pods == PodMode::Insecure || self.has_pod(ip, label) => match (ip, qtype) {
                (IpAddr::V4(_), TYPE_A) | (IpAddr::V6(_), TYPE_AAAA) => Outcome::Records(Records::Spelled(ip)),
                _ => Outcome::NoData,
            },
            _ => Outcome::NxDomain,
        }
    }

    fn reverse_name(&self, name: &Name, qtype: u16) -> Outcome<'_> {
        match parse_reverse(name) {
            Reverse::Address(ip) => match self.pointers(ip) {
                pointers if pointers.is_empty() => Outcome::NxDomain,
                pointers if qtype == TYPE_PTR => Outcome::Records(Records::Ptr(pointers)),
                _ => Outcome::NoData,
            },
            Reverse::Prefix => Outcome::NoData,
            Reverse::None => Outcome::NxDomain,
        }
    }
}

fn below_service<'a>(names: &'a ServiceNames, name: &Name, depth: usize, qtype: u16) -> ServiceAnswer<'a> {
    if depth > 0
        && let Some(answer) = names.answer_zonal(name, depth, qtype)
    {
        return answer;
    }
    match depth {
        0 => names.answer(qtype),
        1 => names.answer_below(name.span(0, 1), qtype),
        2 => names.answer_two_below(name.span(0, 2), qtype),
        _ => ServiceAnswer::NxDomain,
    }
}

impl<'a> From<ServiceAnswer<'a>> for Outcome<'a> {
    fn from(answer: ServiceAnswer<'a>) -> Self {
        match answer {
            ServiceAnswer::Records(records) => Self::Records(records),
            ServiceAnswer::NoData => Self::NoData,
            ServiceAnswer::Cname(target) => Self::Cname(target),
            ServiceAnswer::NxDomain => Self::NxDomain,
        }
    }
}

fn non_empty(outcome: Outcome<'_>) -> Outcome<'_> {
    match outcome {
        Outcome::Records(records) if records.is_empty() => Outcome::NoData,
        outcome => outcome,
    }
}
