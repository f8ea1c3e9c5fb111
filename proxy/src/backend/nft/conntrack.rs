//! Connection tracking: ends UDP and SCTP flows whose endpoint serves no more.
//!
//! The kernel translates the first packet of a flow and remembers. A UDP client that keeps its source port would reach a
//! removed endpoint for as long as it goes on sending, so after each change exactly the entries of that change's
//! frontends whose answer does not come from a serving endpoint are deleted: when an endpoint goes, when the last one
//! goes, when a Service goes, and when an address turns from "no endpoint" to live. Nothing else is touched, and never
//! TCP: an established connection lives until its endpoint's process ends.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use portolan_model::{Family, Protocol, ServiceName};
use portolan_plan::{NodePlan, PortPlan};

use super::netlink::attr::{Attributes, Writer};
use super::netlink::constants::*;
use super::netlink::dump::dump_messages;
use super::netlink::message::{self, Message, Messages, conntrack};
use super::netlink::socket::Socket;
use super::schema::family_number;
use crate::backend::Change;

/// Deletions sent in one datagram.
const DELETIONS: usize = 64;

/// A frontend as connection tracking knows it: the original destination. Without an address it is a node port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Key {
    family: Family,
    protocol: u8,
    address: Option<IpAddr>,
    port: u16,
}

/// An entry of the table, as far as we look at it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Flow {
    protocol: u8,
    /// Where the client sent to.
    destination: SocketAddr,
    /// Who answers.
    answered_by: SocketAddr,
    /// The original tuple and the zone as the kernel wrote them: they name the entry.
    tuple: Vec<u8>,
    zone: Option<Vec<u8>>,
}

/// Keeps connection tracking in step with the plans.
pub(crate) struct Conntrack {
    socket: Socket,
    /// Frontends of each Service that has UDP or SCTP ports.
    known: BTreeMap<ServiceName, Vec<Key>>,
    node_addresses: BTreeSet<IpAddr>,
    service_cidrs: Vec<IpNet>,
}

/// Frontends to look at, each with the endpoints that may answer for it.
type Suspects = BTreeMap<Key, Vec<SocketAddr>>;

// === impl Conntrack ===

impl Conntrack {
    /// Opens a socket in the calling thread's network namespace.
    pub(crate) fn open() -> io::Result<Self> {
        Ok(Self {
            socket: Socket::open()?,
            known: BTreeMap::new(),
            node_addresses: BTreeSet::new(),
            service_cidrs: Vec::new(),
        })
    }

    /// Deletes what the change, which is programmed already, made stale. Yields how many entries that were.
    pub(crate) fn follow(&mut self, change: &Change) -> io::Result<usize> {
        if let Some(node) = &change.node {
            self.take_node(node);
        }
        let suspects = self.suspects(change);
        let mut deleted = 0;
        for family in Family::ALL {
            for protocol in [Protocol::Udp, Protocol::Sctp] {
                let concerns = |key: &&Key| key.family == family && key.protocol == protocol.number();
                let mut keys = suspects.keys().filter(concerns).peekable();
                // A first, complete look also finds flows of Services that went while nobody watched.
                if keys.peek().is_none() && !change.complete {
                    continue;
                }
                let ports: BTreeSet<u16> = keys.map(|key| key.port).collect();
                let port = ports.first().copied().filter(|_| ports.len() == 1 && !change.complete);
                let flows = self.flows(family, protocol, port)?;
                let stale = flows
                    .iter()
                    .filter(|flow| self.is_stale(flow, &suspects, change.complete));
                let stale: Vec<&Flow> = stale.collect();
                delete(&mut self.socket, family, &stale)?;
                deleted += stale.len();
            }
        }
        Ok(deleted)
    }

    fn take_node(&mut self, node: &NodePlan) {
        self.node_addresses = node.node_port_addresses.iter().copied().collect();
        self.service_cidrs.clone_from(&node.service_cidrs);
    }

    /// Frontends that the change concerns: those that are, and those that were.
    fn suspects(&mut self, change: &Change) -> Suspects {
        let mut suspects = Suspects::new();
        let mut gone: Vec<Key> = Vec::new();
        if change.complete {
            gone.extend(std::mem::take(&mut self.known).into_values().flatten());
        }
        for service in &change.removed {
            gone.extend(self.known.remove(service).unwrap_or_default());
        }
        for plan in &change.plans {
            let mut keys = Vec::new();
            for port in plan.ports.iter().filter(|port| port.protocol != Protocol::Tcp) {
                for key in keys_of(port) {
                    suspects.insert(key, port.serving.clone());
                    keys.push(key);
                }
            }
            gone.extend(self.known.remove(&plan.service).unwrap_or_default());
            if !keys.is_empty() {
                self.known.insert(plan.service.clone(), keys);
            }
        }
        for key in gone {
            suspects.entry(key).or_default();
        }
        suspects
    }

    fn is_stale(&self, flow: &Flow, suspects: &Suspects, complete: bool) -> bool {
        let address = flow.destination.ip();
        let mut key = Key {
            family: Family::of(&address),
            protocol: flow.protocol,
            address: Some(address),
            port: flow.destination.port(),
        };
        let mut serving = suspects.get(&key);
        if serving.is_none() && self.node_addresses.contains(&address) {
            key.address = None;
            serving = suspects.get(&key);
        }
        match serving {
            Some(serving) => !serving.contains(&flow.answered_by),
            // A translated flow to a cluster IP that no Service has.
            None => {
                let translated = flow.answered_by != flow.destination;
                complete && translated && self.service_cidrs.iter().any(|cidr| cidr.contains(&address))
            }
        }
    }

    /// Flows of one protocol, where possible only those to one port.
    fn flows(&mut self, family: Family, protocol: Protocol, port: Option<u16>) -> io::Result<Vec<Flow>> {
        let fill = |attributes: &mut Writer<'_>| {
            attributes.nest(CTA_TUPLE_ORIG, |tuple| {
                tuple.nest(CTA_TUPLE_PROTO, |proto| {
                    proto.bytes(CTA_PROTO_NUM, &[protocol.number()]);
                    if let Some(port) = port {
                        proto.bytes(CTA_PROTO_DST_PORT, &port.to_be_bytes());
                    }
                });
            });
            let by_port = if port.is_some() { CTA_FILTER_F_PROTO_DST_PORT } else { 0 };
            attributes.nest(CTA_FILTER, |filter| {
                let flags = CTA_FILTER_F_PROTO_NUM | by_port;
                filter.bytes(CTA_FILTER_ORIG_FLAGS, &flags.to_ne_bytes());
                filter.bytes(CTA_FILTER_REPLY_FLAGS, &0u32.to_ne_bytes());
            });
        };
        let each = |flows: &mut Vec<Flow>, message: &Message<'_>| {
            // Kernels before 5.8 do not know the filter and list everything.
            flows.extend(parse(message.attributes()).filter(|flow| flow.protocol == protocol.number()));
        };
        let kind = conntrack(IPCTNL_MSG_CT_GET);
        let flows = dump_messages(&mut self.socket, kind, family_number(family), fill, each, Vec::new)?;
        Ok(flows.unwrap_or_default())
    }
}

fn keys_of(port: &PortPlan) -> impl Iterator<Item = Key> + '_ {
    port.frontends.iter().map(|frontend| Key {
        family: port.family,
        protocol: port.protocol.number(),
        address: frontend.address,
        port: frontend.port,
    })
}

/// An entry. `None` when it is not one of ours to judge: no ports, or malformed.
fn parse(attributes: Attributes<'_>) -> Option<Flow> {
    let original = attributes.nested(CTA_TUPLE_ORIG)?;
    let reply = attributes.nested(CTA_TUPLE_REPLY)?;
    let proto = original.nested(CTA_TUPLE_PROTO)?;
    Some(Flow {
        protocol: *proto.get(CTA_PROTO_NUM)?.first()?,
        destination: SocketAddr::new(
            address(&original, CTA_IP_V4_DST, CTA_IP_V6_DST)?,
            be16(&proto, CTA_PROTO_DST_PORT)?,
        ),
        answered_by: SocketAddr::new(
            address(&reply, CTA_IP_V4_SRC, CTA_IP_V6_SRC)?,
            be16(&reply.nested(CTA_TUPLE_PROTO)?, CTA_PROTO_SRC_PORT)?,
        ),
        tuple: attributes.get(CTA_TUPLE_ORIG)?.to_vec(),
        zone: attributes.get(CTA_ZONE).map(<[u8]>::to_vec),
    })
}

fn address(tuple: &Attributes<'_>, v4: u16, v6: u16) -> Option<IpAddr> {
    let ip = tuple.nested(CTA_TUPLE_IP)?;
    if let Some(bytes) = ip.get(v4) {
        return Some(IpAddr::from(<[u8; 4]>::try_from(bytes).ok()?));
    }
    Some(IpAddr::from(<[u8; 16]>::try_from(ip.get(v6)?).ok()?))
}

fn be16(attributes: &Attributes<'_>, kind: u16) -> Option<u16> {
    Some(u16::from_be_bytes(attributes.get(kind)?.try_into().ok()?))
}

/// Deletes entries. One that is gone already is no error. A deletion without a tuple would delete everything, so every
/// message carries one.
fn delete(socket: &mut Socket, family: Family, flows: &[&Flow]) -> io::Result<()> {
    for chunk in flows.chunks(DELETIONS) {
        let mut request = Vec::new();
        let mut expected = 0;
        for flow in chunk.iter().filter(|flow| !flow.tuple.is_empty()) {
            expected += 1;
            let kind = conntrack(IPCTNL_MSG_CT_DELETE);
            message::write(
                &mut request,
                kind,
                NLM_F_ACK,
                expected,
                (family_number(family), 0),
                |attributes| {
                    let start = attributes.open_nest(CTA_TUPLE_ORIG);
                    attributes.0.extend_from_slice(&flow.tuple);
                    attributes.close(start);
                    if let Some(zone) = &flow.zone {
                        attributes.bytes(CTA_ZONE, zone);
                    }
                },
            );
        }
        if expected > 0 {
            socket.send(&request)?;
            acknowledged(socket, expected)?;
        }
    }
    Ok(())
}

/// Reads as many answers as there were requests.
fn acknowledged(socket: &mut Socket, expected: u32) -> io::Result<()> {
    let mut outcome = Ok(());
    let mut left = expected;
    while left > 0 {
        let datagram = match socket.receive() {
            Ok(datagram) => datagram,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        let answers = Messages(datagram).filter(|message| message.kind == NLMSG_ERROR);
        for answer in answers.filter_map(|message| message.acknowledgement()) {
            left = left.saturating_sub(1);
            if answer.errno != 0 && answer.errno != libc::ENOENT {
                outcome = Err(io::Error::from_raw_os_error(answer.errno));
            }
        }
    }
    outcome
}
