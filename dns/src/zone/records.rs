//! What a name holds: the record sets that both answer paths turn into messages, and the order they come in.
//!
//! Everything that repeats the question's name or the zone is left out: it is taken from the question when the answer
//! is written. So a Service costs the memory of its addresses, and one set of answers serves every zone.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::build::{Host, ServiceNames, SrvRecord};
use super::names::DashedLabel;
use super::reverse::Pointers;

/// Refresh, retry and expire of every SOA, as CoreDNS has them. Only zone transfers use them.
pub const SOA_TIMERS: [u32; 3] = [7200, 1800, 86_400];
/// The text at `dns-version` (specification 1.1.0 section 2.2).
pub const DNS_VERSION: &[u8] = b"1.1.0";
/// The text at `dns-version` of a zone of ServiceImports (KEP-1645).
pub const MULTICLUSTER_VERSION: &[u8] = b"1.0.0";
/// The TTL of the text at `dns-version` (specification 1.1.0 section 2.2).
pub const DNS_VERSION_TTL: u32 = 28_800;

/// A record set: the positive answer to one question.
#[derive(Clone, Copy, Debug)]
pub enum Records<'a> {
    /// IPv4 addresses of the question's name.
    A(&'a [Ipv4Addr]),
    /// IPv6 addresses of the question's name.
    Aaaa(&'a [Ipv6Addr]),
    /// The address that the question's name spells, which is of the type asked for.
    Spelled(IpAddr),
    /// Ports of a Service.
    Srv(Srv<'a>),
    /// Names of an address.
    Ptr(Pointers<'a>),
    /// The start of authority of the zone, whose apex the question names.
    Soa,
    /// The name server of the zone, whose apex the question names.
    Ns(NameServer<'a>),
    /// One text.
    Txt(&'static [u8]),
}

/// SRV records of one Service.
#[derive(Clone, Copy, Debug)]
pub struct Srv<'a> {
    /// The Service.
    pub service: &'a ServiceNames,
    /// The records, sorted by host, so that the records of one host lie together.
    pub records: &'a [SrvRecord],
    /// The weight that each record carries.
    pub weight: u16,
    /// How many labels of the question stand before the name of the Service: 2 for `_port._proto`, else 0.
    pub depth: usize,
}

/// The name server of every zone, with its addresses.
#[derive(Clone, Copy, Debug)]
pub struct NameServer<'a> {
    /// Labels before the cluster zone, in wire form.
    pub labels: &'a [u8],
    /// Its IPv4 addresses.
    pub v4: &'a [Ipv4Addr],
    /// Its IPv6 addresses.
    pub v6: &'a [Ipv6Addr],
}

// === impl Records ===

impl Records<'_> {
    /// How many records the set has.
    pub fn len(&self) -> usize {
        match self {
            Self::A(list) => list.len(),
            Self::Aaaa(list) => list.len(),
            Self::Srv(srv) => srv.records.len(),
            Self::Ptr(pointers) => pointers.iter().count(),
            Self::Spelled(_) | Self::Soa | Self::Ns(_) | Self::Txt(_) => 1,
        }
    }

    /// Whether the set is empty, which is NODATA.
    pub fn is_empty(&self) -> bool {
        match self {
            Self::Ptr(pointers) => pointers.is_empty(),
            records => records.len() == 0,
        }
    }

    /// Where to begin so that the record at `rotation` comes first.
    ///
    /// The records of one SRV target stay together, so that no target's addresses are listed twice. The names of an
    /// address stay in order, so that a client that takes the first gets the Service.
    pub fn first(&self, rotation: u32) -> usize {
        if let Self::Ptr(_) = self {
            return 0;
        }
        let mut first = rotation as usize % self.len().max(1);
        if let Self::Srv(srv) = self {
            while first > 0 && srv.records[first - 1].host == srv.records[first].host {
                first -= 1;
            }
        }
        first
    }
}

/// A list from `first` on, then its beginning.
pub fn rotated<T>(list: &[T], first: usize) -> impl Iterator<Item = &T> {
    let (tail, head) = list.split_at(first.min(list.len()));
    head.iter().chain(tail)
}

// === impl Srv ===

impl<'a> Srv<'a> {
    /// The label and the addresses of a record's target. The label is `None` for the Service itself.
    pub fn target(&self, record: &SrvRecord) -> Target<'a> {
        match self.service.host(record.host) {
            None => Target {
                label: None,
                v4: self.service.v4(),
                v6: self.service.v6(),
            },
            Some(host) => Target {
                label: Some(host.label()),
                v4: host.v4(),
                v6: host.v6(),
            },
        }
    }
}

/// Where an SRV record points.
pub struct Target<'a> {
    /// The label before the Service's name.
    pub label: Option<Label<'a>>,
    /// IPv4 addresses of the target.
    pub v4: &'a [Ipv4Addr],
    /// IPv6 addresses of the target.
    pub v6: &'a [Ipv6Addr],
}

/// The labels of an endpoint before its Service, stored or made of an address.
pub enum Label<'a> {
    /// A hostname in wire form; of another cluster's endpoint the cluster's label too.
    Stored(&'a [u8]),
    /// A dashed address.
    Dashed(DashedLabel),
}

// === impl Label ===

impl Label<'_> {
    /// The labels in wire form.
    pub fn wire(&self) -> &[u8] {
        match self {
            Self::Stored(bytes) => bytes,
            Self::Dashed(label) => label.wire(),
        }
    }
}

// === impl Host ===

impl Host {
    /// The endpoint's own label.
    pub fn label(&self) -> Label<'_> {
        match self {
            Self::V4(ip) => Label::Dashed(DashedLabel::new((*ip).into())),
            Self::V6(ip) => Label::Dashed(DashedLabel::new((*ip).into())),
            Self::Named(named) => Label::Stored(&named.label),
        }
    }

    /// Its IPv4 addresses.
    pub fn v4(&self) -> &[Ipv4Addr] {
        match self {
            Self::V4(ip) => std::slice::from_ref(ip),
            Self::V6(_) => &[],
            Self::Named(named) => &named.v4,
        }
    }

    /// Its IPv6 addresses.
    pub fn v6(&self) -> &[Ipv6Addr] {
        match self {
            Self::V4(_) => &[],
            Self::V6(ip) => std::slice::from_ref(ip),
            Self::Named(named) => &named.v6,
        }
    }

    /// Every address that it has.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> + '_ {
        let v4 = self.v4().iter().map(|ip| IpAddr::V4(*ip));
        v4.chain(self.v6().iter().map(|ip| IpAddr::V6(*ip)))
    }
}
