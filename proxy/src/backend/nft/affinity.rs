//! Session affinity: a client comes back to the endpoint that it was sent to.
//!
//! Map `affinity` holds where each client was sent to, under its address and the number of the endpoint set. A chain
//! with affinity looks there first. What is found there was learnt when the first packet left the nat hooks, where
//! source and endpoint are both known. The kernel forgets what is not renewed in time; what leads to an endpoint that
//! serves no more is forgotten by [`stale`] right after the endpoint has gone.

use std::collections::BTreeSet;
use std::net::IpAddr;

use portolan_model::{Family, ServiceName};
use portolan_plan::{EndpointSet, PortPlan};

use super::entries::{Entry, Place};
use super::netlink::batch::Batch;
use super::netlink::constants::*;
use super::netlink::expr::{Dreg, Expr, Verdict};
use super::netlink::object::{Bytes, Data, Element, Rule};
use super::rules::{Context, DATA, bitwise, destination_offset, lookup, rule, source, words};
use super::schema::{Map, address_bytes};

/// The affinity of a port: shared by all its frontends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Affinity {
    /// The number of the port, which is the same after a restart.
    pub(crate) port: u64,
    /// How long a client stays after its last connection.
    pub(crate) seconds: u32,
}

/// An endpoint that clients may stay with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Member {
    pub(crate) family: Family,
    /// The number of the endpoint set.
    pub(crate) set: u64,
    /// As in the maps of endpoints.
    pub(crate) endpoint: Bytes,
}

// === impl Affinity ===

impl Affinity {
    /// The affinity of a Service's port, if it has one.
    pub(crate) fn new(service: &ServiceName, port: &PortPlan) -> Option<Self> {
        let seconds = port.affinity_seconds.filter(|seconds| *seconds > 0)?;
        let text = format!("{service}:{}/{}", port.name, port.protocol);
        Some(Self {
            port: fnv1a(&text),
            seconds,
        })
    }

    /// The number of one of the port's endpoint sets. A client that may only be sent to endpoints on this node must not
    /// stay with another one that it met through another frontend.
    pub(crate) fn set(&self, set: EndpointSet) -> u64 {
        match set {
            EndpointSet::Cluster => self.port,
            EndpointSet::Local => !self.port,
        }
    }

    /// The client's key.
    pub(crate) fn key(&self, client: IpAddr, set: EndpointSet) -> Bytes {
        address_bytes(client).then(&self.set(set).to_ne_bytes())
    }

    /// Loads the client's key into registers from 0 on.
    fn load(&self, context: Context<'_>, set: EndpointSet) -> Vec<Expr> {
        let next = words(context.family);
        let [a, b, c, d, e, f, g, h] = self.set(set).to_ne_bytes();
        // nft 1.0.6 names a constant in a key `[invalid type]`; what was made of a mark it prints as a mark.
        let constant = |value: [u8; 4], dreg| {
            let key = NFT_META_MARK;
            let (mask, xor) = (vec![0; 4], value.to_vec());
            let sreg = dreg;
            [Expr::Meta { key, dreg }, Expr::Bitwise { sreg, dreg, mask, xor }]
        };
        let mut expressions = vec![source(context.family, 0)];
        expressions.extend(constant([a, b, c, d], next));
        expressions.extend(constant([e, f, g, h], next + 1));
        expressions
    }

    /// Finds the endpoint that the client stays with.
    pub(crate) fn find(&self, context: Context<'_>, set: EndpointSet) -> Vec<Expr> {
        let mut expressions = self.load(context, set);
        expressions.push(lookup(Map::Affinity, Some(Dreg::Data(DATA))));
        expressions
    }

    /// Notes, where the destination is the endpoint already, that the client stays with it.
    pub(crate) fn learn(&self, context: Context<'_>, set: EndpointSet) -> Vec<Expr> {
        let mut expressions = self.load(context, set);
        let next = words(context.family);
        expressions.extend([
            Expr::Payload {
                base: NFT_PAYLOAD_NETWORK_HEADER,
                offset: destination_offset(context.family),
                len: u32::from(next) * 4,
                dreg: DATA,
            },
            Expr::Payload {
                base: NFT_PAYLOAD_TRANSPORT_HEADER,
                offset: 2,
                len: 2,
                dreg: DATA + next,
            },
            Expr::Update {
                set: Map::Affinity.name().into(),
                key: 0,
                data: DATA,
                timeout: u64::from(self.seconds) * 1000,
            },
        ]);
        expressions
    }
}

/// FNV-1a: unlike the standard library's hash it never changes.
pub(crate) fn fnv1a(text: &str) -> u64 {
    let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    text.bytes().fold(0xcbf2_9ce4_8422_2325, step)
}

/// The rules that find out to which frontend a translated connection was opened, and go to the chain that learns.
pub(crate) fn learners(context: Context<'_>) -> Vec<Rule> {
    let family = context.family;
    let address = match family {
        Family::V4 => NFT_CT_DST_IP,
        Family::V6 => NFT_CT_DST_IP6,
    };
    let translated = [
        Expr::Ct {
            key: NFT_CT_STATUS,
            dreg: 0,
            original: false,
        },
        bitwise(IPS_DST_NAT.to_ne_bytes().to_vec(), vec![0; 4]),
        Expr::Cmp {
            sreg: 0,
            not: true,
            value: vec![0; 4],
        },
    ];
    let original = |key, dreg| Expr::Ct {
        key,
        dreg,
        original: true,
    };
    let protocol = |dreg| Expr::Meta {
        key: NFT_META_L4PROTO,
        dreg,
    };

    let mut services = translated.to_vec();
    let next = words(family);
    services.extend([
        original(address, 0),
        protocol(next),
        original(NFT_CT_PROTO_DST, next + 1),
    ]);
    services.push(lookup(Map::AffinityServices, Some(Dreg::Verdict)));
    let mut node_ports = translated.to_vec();
    node_ports.extend([original(address, 0), lookup(Map::NodePortIps, None)]);
    node_ports.extend([protocol(0), original(NFT_CT_PROTO_DST, 1)]);
    node_ports.push(lookup(Map::AffinityNodePorts, Some(Dreg::Verdict)));
    vec![rule(services), rule(node_ports)]
}

/// The rule that has a hook learn.
pub(crate) fn jump() -> Rule {
    rule(vec![Expr::Verdict(Verdict::Jump("affinity".into()))])
}

/// Those elements of map `affinity` that lead to an endpoint that is no member.
pub(crate) fn stale(family: Family, elements: &[Element], members: &BTreeSet<Member>) -> Vec<Entry> {
    let is_member = |element: &&Element| {
        let set = element
            .key
            .as_slice()
            .last_chunk::<8>()
            .map(|set| u64::from_ne_bytes(*set));
        match (set, &element.data) {
            (Some(set), Data::Value(endpoint)) => members.contains(&Member {
                family,
                set,
                endpoint: *endpoint,
            }),
            _ => false,
        }
    };
    let stale = elements.iter().filter(|element| !is_member(element));
    stale
        .map(|element| Entry {
            place: Place {
                family,
                map: Map::Affinity,
                key: element.key,
            },
            data: Data::None,
            comment: Box::default(),
            owner: Batch::SHARED,
        })
        .collect()
}
