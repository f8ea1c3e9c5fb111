//! Plans in few bytes: what the mirror keeps of every Service until it changes.
//!
//! A plan in memory is made of lists of lists; tens of thousands of them take more room than everything else in the
//! process. Packed, an IPv4 endpoint takes seven bytes.
//! A plan is packed as it is, also one that the kernel will refuse.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::IpNet;
use portolan_model::{Family, Protocol, ServiceName};
use portolan_plan::{Backend, EndpointSet, Frontend, FrontendKind, PortPlan, Routes, ServicePlan, Verdict};

/// What a plan says about rules. Endpoints that keep old flows, health checks and notes are other people's business.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Packed(Box<[u8]>);

const FAMILY_V6: u8 = 1 << 2;
const WITH_AFFINITY: u8 = 1 << 3;
/// Most ports have no endpoints apart from those of the cluster.
const WITH_LOCAL: u8 = 1 << 4;
const IPV6: u8 = 1 << 2;
const WITH_ADDRESS: u8 = 1 << 3;
const WITH_RANGES: u8 = 1 << 4;

const PROTOCOLS: [Protocol; 3] = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];
const KINDS: [FrontendKind; 4] = [
    FrontendKind::ClusterIp,
    FrontendKind::ExternalIp,
    FrontendKind::LoadBalancerIp,
    FrontendKind::NodePort,
];
const VERDICTS: [Verdict; 6] = [
    Verdict::Forward {
        set: EndpointSet::Cluster,
        masquerade: false,
    },
    Verdict::Forward {
        set: EndpointSet::Cluster,
        masquerade: true,
    },
    Verdict::Forward {
        set: EndpointSet::Local,
        masquerade: false,
    },
    Verdict::Forward {
        set: EndpointSet::Local,
        masquerade: true,
    },
    Verdict::Reject,
    Verdict::Drop,
];

fn index<T: PartialEq>(all: &[T], one: &T) -> u8 {
    all.iter()
        .position(|known| known == one)
        .and_then(|at| u8::try_from(at).ok())
        .unwrap_or(u8::MAX)
}

// === impl Packed ===

impl Packed {
    pub(crate) fn new(plan: &ServicePlan) -> Self {
        let mut w = Writer(Vec::with_capacity(128));
        w.list(&plan.ports, Writer::port);
        Self(w.0.into_boxed_slice())
    }

    /// The plan again. It says nothing about `serving`, health checks and notes.
    pub(crate) fn unpack(&self, service: &ServiceName) -> ServicePlan {
        let mut r = Reader(&self.0);
        ServicePlan {
            service: service.clone(),
            // Nobody else writes these bytes, so that nothing can be missing.
            ports: r.list(Reader::port).unwrap_or_default(),
            health_check: None,
            notes: Vec::new(),
        }
    }
}

struct Writer(Vec<u8>);

impl Writer {
    fn byte(&mut self, byte: u8) {
        self.0.push(byte);
    }

    fn number(&mut self, mut number: usize) {
        while number > 0x7f {
            self.byte(number as u8 | 0x80);
            number >>= 7;
        }
        self.byte(number as u8);
    }

    fn list<T>(&mut self, items: &[T], mut write: impl FnMut(&mut Self, &T)) {
        self.number(items.len());
        items.iter().for_each(|item| write(self, item));
    }

    fn address(&mut self, address: IpAddr) {
        match address {
            IpAddr::V4(address) => self.0.extend_from_slice(&address.octets()),
            IpAddr::V6(address) => self.0.extend_from_slice(&address.octets()),
        }
    }

    fn backend(&mut self, backend: &Backend) {
        let Backend { address, local } = backend;
        self.byte(u8::from(*local) | u8::from(address.is_ipv6()) << 1);
        self.address(address.ip());
        self.0.extend_from_slice(&address.port().to_be_bytes());
    }

    fn port(&mut self, port: &PortPlan) {
        let PortPlan {
            name,
            protocol,
            family,
            affinity_seconds,
            cluster,
            local,
            serving: _,
            frontends,
        } = port;
        let family = if *family == Family::V6 { FAMILY_V6 } else { 0 };
        let with_affinity = affinity_seconds.map_or(0, |_| WITH_AFFINITY);
        let with_local = if local.is_empty() { 0 } else { WITH_LOCAL };
        self.byte(index(&PROTOCOLS, protocol) | family | with_affinity | with_local);
        self.list(name.as_bytes(), |w, byte| w.byte(*byte));
        self.0
            .extend(affinity_seconds.iter().flat_map(|seconds| seconds.to_be_bytes()));
        self.list(cluster, Self::backend);
        if !local.is_empty() {
            self.list(local, Self::backend);
        }
        self.list(frontends, Self::frontend);
    }

    fn frontend(&mut self, frontend: &Frontend) {
        let Frontend {
            kind,
            address,
            port,
            routes,
            source_ranges,
        } = frontend;
        let Routes { pod, node, outside } = routes;
        let with_address = address.map_or(0, |address| WITH_ADDRESS | if address.is_ipv6() { IPV6 } else { 0 });
        let with_ranges = if source_ranges.is_some() { WITH_RANGES } else { 0 };
        self.byte(index(&KINDS, kind) | with_address | with_ranges);
        address.iter().for_each(|address| self.address(*address));
        self.0.extend_from_slice(&port.to_be_bytes());
        [pod, node, outside]
            .into_iter()
            .for_each(|verdict| self.byte(index(&VERDICTS, verdict)));
        if let Some(ranges) = source_ranges {
            self.list(ranges, |w, range| {
                w.byte(u8::from(range.addr().is_ipv6()));
                w.byte(range.prefix_len());
                w.address(range.addr());
            });
        }
    }
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (first, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*first)
    }

    fn number(&mut self) -> Option<usize> {
        let mut number = 0;
        for shift in (0..usize::BITS).step_by(7) {
            let byte = self.byte()?;
            number |= usize::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                break;
            }
        }
        Some(number)
    }

    fn list<T>(&mut self, mut read: impl FnMut(&mut Self) -> Option<T>) -> Option<Vec<T>> {
        let count = self.number()?;
        (0..count).map(|_| read(self)).collect()
    }

    fn address(&mut self, ipv6: bool) -> Option<IpAddr> {
        Some(match ipv6 {
            false => IpAddr::V4(Ipv4Addr::from(self.array::<4>()?)),
            true => IpAddr::V6(Ipv6Addr::from(self.array::<16>()?)),
        })
    }

    fn port_number(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    fn backend(&mut self) -> Option<Backend> {
        let flags = self.byte()?;
        let address = self.address(flags & 2 != 0)?;
        Some(Backend {
            address: SocketAddr::new(address, self.port_number()?),
            local: flags & 1 != 0,
        })
    }

    fn port(&mut self) -> Option<PortPlan> {
        let flags = self.byte()?;
        let family = if flags & FAMILY_V6 == 0 { Family::V4 } else { Family::V6 };
        let name = String::from_utf8(self.list(Self::byte)?).ok()?;
        let affinity = flags & WITH_AFFINITY != 0;
        Some(PortPlan {
            name: name.into(),
            protocol: *PROTOCOLS.get(usize::from(flags & 3))?,
            family,
            affinity_seconds: if affinity {
                Some(u32::from_be_bytes(self.array()?))
            } else {
                None
            },
            cluster: self.list(Self::backend)?,
            local: if flags & WITH_LOCAL == 0 {
                Vec::new()
            } else {
                self.list(Self::backend)?
            },
            serving: Vec::new(),
            frontends: self.list(Self::frontend)?,
        })
    }

    fn frontend(&mut self) -> Option<Frontend> {
        let flags = self.byte()?;
        let address = if flags & WITH_ADDRESS == 0 {
            None
        } else {
            Some(self.address(flags & IPV6 != 0)?)
        };
        let port = self.port_number()?;
        let mut verdict = || VERDICTS.get(usize::from(self.byte()?)).copied();
        let routes = Routes {
            pod: verdict()?,
            node: verdict()?,
            outside: verdict()?,
        };
        let mut source_ranges = None;
        if flags & WITH_RANGES != 0 {
            let ranges = self.list(|r| {
                let (ipv6, prefix) = (r.byte()? != 0, r.byte()?);
                IpNet::new(r.address(ipv6)?, prefix).ok()
            })?;
            source_ranges = Some(ranges.into());
        }
        let kind = *KINDS.get(usize::from(flags & 3))?;
        Some(Frontend {
            kind,
            address,
            port,
            routes,
            source_ranges,
        })
    }
}
