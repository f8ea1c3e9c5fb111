//! A plan in the words of the maps: addresses, frontends, and endpoints in slots.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use portolan_abi::{
    Address, Backend, BackendKey, Frontend, FrontendKey, Member, MemberKey, Route, SETS_OF_A_PORT, Set, TCP, UDP,
    address, frontend, route, scope, set, verdict,
};
use portolan_model::Protocol;
use portolan_plan::{EndpointSet, FrontendKind, PortPlan, Routes, Verdict};

use super::elements::Elements;

/// An address as the maps have it.
pub(crate) fn address(ip: IpAddr) -> Address {
    let octets = match ip {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    };
    let word = |at: usize| u32::from_ne_bytes([octets[at], octets[at + 1], octets[at + 2], octets[at + 3]]);
    Address([word(0), word(4), word(8), word(12)])
}

/// An address of the maps.
pub(crate) fn ip(address: &Address) -> IpAddr {
    let mut octets = [0; 16];
    for (place, word) in octets.chunks_mut(4).zip(address.0) {
        place.copy_from_slice(&word.to_ne_bytes());
    }
    IpAddr::from(octets).to_canonical()
}

/// The protocol's number; `None` for what sockets are not served with.
pub(crate) fn protocol(protocol: Protocol) -> Option<u8> {
    match protocol {
        Protocol::Tcp => Some(TCP),
        Protocol::Udp => Some(UDP),
        _ => None,
    }
}

/// An endpoint as the maps have it: address, and port in network byte order.
pub(crate) type Endpoint = (Address, u16);

pub(crate) fn endpoint(at: SocketAddr) -> Endpoint {
    (address(at.ip()), at.port().to_be())
}

/// The key of a frontend; `None` when its protocol is not served.
pub(crate) fn frontend_key(port: &PortPlan, frontend: &portolan_plan::Frontend) -> Option<FrontendKey> {
    let unspecified = match port.family {
        portolan_model::Family::V4 => Address::v4(0),
        portolan_model::Family::V6 => Address([0; 4]),
    };
    Some(FrontendKey {
        address: frontend.address.map_or(unspecified, address),
        port: frontend.port.to_be(),
        protocol: protocol(port.protocol)?,
        zero: 0,
    })
}

/// What an endpoint is known by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    /// Never used twice.
    pub(crate) id: u32,
    /// Place of its counters.
    pub(crate) counter: u32,
}

/// A Service port with its numbers and its endpoints in their slots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Port {
    /// Its number.
    pub(crate) id: u32,
    /// Every endpoint of any set.
    pub(crate) endpoints: BTreeMap<Endpoint, Identity>,
    pub(crate) cluster: Vec<Endpoint>,
    pub(crate) local: Vec<Endpoint>,
    /// Endpoints whose UDP flows stay.
    pub(crate) serving: Vec<Endpoint>,
    /// Clients or flows stay with endpoints: members are looked up.
    pub(crate) sticky: bool,
}

impl Port {
    fn set(&self, offset: u32) -> u32 {
        self.id * SETS_OF_A_PORT + offset
    }

    /// Adds what stands in the maps for the endpoints.
    pub(crate) fn emit(&self, elements: &mut Elements) {
        for (offset, slots) in [(set::CLUSTER, &self.cluster), (set::LOCAL, &self.local)] {
            let set = self.set(offset);
            let count = u32::try_from(slots.len()).unwrap_or(u32::MAX);
            if count > 0 {
                elements.sets.insert(set, Set { count, zero: 0 });
            }
            for (endpoint, slot) in slots.iter().zip(0..) {
                if let Some(identity) = self.endpoints.get(endpoint) {
                    let key = BackendKey { set, slot };
                    elements.backends.insert(key, backend(&key, *endpoint, *identity));
                }
            }
            if self.sticky {
                self.members(set, slots, elements);
            }
        }
        self.members(self.set(set::SERVING), &self.serving, elements);
    }

    fn members(&self, set: u32, endpoints: &[Endpoint], elements: &mut Elements) {
        for (address, port) in endpoints {
            if let Some(identity) = self.endpoints.get(&(*address, *port)) {
                let key = MemberKey {
                    set,
                    port: *port,
                    zero: 0,
                    address: *address,
                };
                let member = Member {
                    id: identity.id,
                    counter: identity.counter,
                };
                elements.members.insert(key, member);
            }
        }
    }

    /// The value of one of its frontends.
    pub(crate) fn frontend(&self, key: &FrontendKey, plan: &PortPlan, wanted: &portolan_plan::Frontend) -> Frontend {
        let Routes { pod, node, outside } = wanted.routes;
        let mut routes = [Route {
            set: 0,
            verdict: verdict::DROP,
            flags: 0,
            zero: 0,
        }; 3];
        for (place, verdict) in [(scope::POD, pod), (scope::NODE, node), (scope::OUTSIDE, outside)] {
            routes[place] = self.route(verdict);
        }
        let mut value = Frontend {
            routes,
            port: self.id,
            affinity_seconds: plan.affinity_seconds.unwrap_or(0),
            flags: frontend_flags(wanted),
            check: 0,
        };
        value.check = value.sum(key);
        value
    }

    fn route(&self, wanted: Verdict) -> Route {
        let (set, verdict, flags) = match wanted {
            Verdict::Forward { set, masquerade } => {
                let offset = match set {
                    EndpointSet::Cluster => set::CLUSTER,
                    EndpointSet::Local => set::LOCAL,
                };
                (
                    self.set(offset),
                    verdict::FORWARD,
                    if masquerade { route::MASQUERADE } else { 0 },
                )
            }
            Verdict::Reject => (0, verdict::REJECT, 0),
            Verdict::Drop => (0, verdict::DROP, 0),
        };
        Route {
            set,
            verdict,
            flags,
            zero: 0,
        }
    }
}

fn backend(key: &BackendKey, (address, port): Endpoint, identity: Identity) -> Backend {
    let mut value = Backend {
        address,
        port,
        zero: 0,
        id: identity.id,
        counter: identity.counter,
        check: 0,
    };
    value.check = value.sum(key);
    value
}

fn frontend_flags(wanted: &portolan_plan::Frontend) -> u32 {
    let masqueraded = matches!(wanted.routes.pod, Verdict::Forward { masquerade: true, .. });
    let mut flags = 0;
    if wanted.source_ranges.is_some() {
        flags |= frontend::RESTRICTED;
    }
    if wanted.kind == FrontendKind::ClusterIp && masqueraded {
        flags |= frontend::MASQUERADED;
    }
    flags
}

/// The flags that a frontend's address gets from it.
pub(crate) fn address_flags(kind: FrontendKind) -> u32 {
    match kind {
        FrontendKind::ClusterIp => address::SERVICE | address::CLUSTER_IP,
        FrontendKind::ExternalIp | FrontendKind::LoadBalancerIp => address::SERVICE,
        // Entered under the unspecified address, which nobody looks up as an address.
        FrontendKind::NodePort => 0,
    }
}

/// Puts endpoints into slots so that as few as possible change: whoever has a slot keeps it, newcomers take the holes, and
/// the last ones move into what holes are left.
pub(crate) fn keep_slots(old: &[Endpoint], wanted: Vec<Endpoint>) -> Vec<Endpoint> {
    if old.is_empty() {
        return wanted;
    }
    let mut waiting: BTreeMap<Endpoint, ()> = wanted.iter().map(|endpoint| (*endpoint, ())).collect();
    let count = waiting.len();
    let kept = old.iter().take(count);
    let mut slots: Vec<Option<Endpoint>> = kept
        .map(|endpoint| waiting.remove(endpoint).map(|()| *endpoint))
        .collect();
    slots.resize(count, None);
    let mut rest = waiting.into_keys();
    for slot in slots.iter_mut().filter(|slot| slot.is_none()) {
        *slot = rest.next();
    }
    slots.into_iter().flatten().collect()
}
