//! Whether the kernel holds what a plan says about one connection: reads the few elements and chains that it passes.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;

use portolan_model::Family;
use portolan_plan::{Explanation, FrontendKind, NodePlan, Outcome, Packet, PortPlan, ServicePlan, SourceKind, Verdict};

use super::NftOptions;
use super::affinity::Affinity;
use super::entries::{Entry, Needs, emit};
use super::frame::frame;
use super::netlink::object::{Bytes, Chain, Data, Element, Table};
use super::netlink::socket::Socket;
use super::rules::Context;
use super::schema::{Map, address_bytes, family_number, frontend_key, parse_endpoint, split_slot};
use crate::backend::Inspection;

/// A connection, and what a plan made of it.
#[derive(Clone, Copy, Debug)]
pub struct Question<'a> {
    /// The connection.
    pub packet: Packet,
    /// What its source is to the node.
    pub source: SourceKind,
    /// The plan of the Service whose frontend it asks, if it asks one.
    pub plan: Option<&'a ServicePlan>,
    /// Its destination is a cluster IP of some Service.
    pub live: bool,
}

impl<'a> From<&'a Explanation> for Question<'a> {
    fn from(explanation: &'a Explanation) -> Self {
        Self {
            packet: explanation.packet,
            source: explanation.source,
            plan: explanation.plan.as_ref(),
            live: explanation.outcome == Outcome::UnlistedPort,
        }
    }
}

/// Compares what the kernel of this network namespace holds for a connection with what was planned.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn inspect(question: &Question<'_>, node: &NodePlan, options: &NftOptions) -> io::Result<Inspection> {
    let packet = &question.packet;
    let family = Family::of(&packet.to.ip());
    let context = Context { family, node, options };
    let mut look = Look {
        socket: Socket::open()?,
        context,
        found: Inspection::default(),
    };
    if look.table().flags(&mut look.socket)?.is_none() {
        let table = format!("table {} {} is not there", name_of(family), options.table);
        look.found.differences.push(table);
        return Ok(look.found);
    }
    let asked = question.plan.and_then(|plan| only(plan, packet, node));
    match &asked {
        Some(plan) => look.frontend(plan, packet, question.source)?,
        None => look.nobody(packet, question.live)?,
    }
    for chain in frame(context) {
        look.chain(chain)?;
    }
    look.found.differences.dedup();
    Ok(look.found)
}

fn name_of(family: Family) -> &'static str {
    match family {
        Family::V4 => "ip",
        Family::V6 => "ip6",
    }
}

/// The plan with nothing in it but the frontend that is asked.
fn only(plan: &ServicePlan, packet: &Packet, node: &NodePlan) -> Option<ServicePlan> {
    let mut plan = plan.clone();
    for port in &mut plan.ports {
        let matches = port.family == Family::of(&packet.to.ip()) && port.protocol == packet.protocol;
        port.frontends.retain(|frontend| {
            let here = match frontend.address {
                Some(address) => address == packet.to.ip(),
                None => node.node_port_addresses.contains(&packet.to.ip()),
            };
            matches && here && frontend.port == packet.to.port()
        });
    }
    plan.ports.retain(|port| !port.frontends.is_empty());
    (!plan.ports.is_empty()).then_some(plan)
}

/// What is looked at, and what was found.
struct Look<'a> {
    socket: Socket,
    context: Context<'a>,
    found: Inspection,
}

// === impl Look ===

impl<'a> Look<'a> {
    fn table(&self) -> Table<'a> {
        Table {
            family: family_number(self.context.family),
            name: &self.context.options.table,
        }
    }

    fn get(&mut self, map: Map, key: &Bytes) -> io::Result<Option<Element>> {
        self.table().element(&mut self.socket, map.name(), key)
    }

    fn differs(&mut self, text: String) {
        self.found.differences.push(text);
    }

    fn frontend(&mut self, plan: &ServicePlan, packet: &Packet, source: SourceKind) -> io::Result<()> {
        let mut needs = Needs::default();
        emit(&mut needs, plan, 0, |_| true);
        let chains = needs.take_chains();
        let mut slots: BTreeMap<(Map, Bytes), Vec<Bytes>> = BTreeMap::new();
        for entry in needs.entries {
            match (&entry.data, split_slot(&entry.place.key)) {
                (Data::Value(value), Some((frontend, _))) => {
                    slots.entry((entry.place.map, frontend)).or_default().push(*value);
                }
                _ => self.entry(&entry, packet)?,
            }
        }
        for ((map, frontend), wanted) in slots {
            self.endpoints(map, frontend, wanted)?;
        }
        for (_, spec) in chains.into_values() {
            self.chain(spec.chain(self.context))?;
        }
        for place in needs.shared.into_keys() {
            if self.get(place.map, &place.key)?.is_none() {
                self.differs(format!("set {} lacks an element of this Service", place.map.name()));
            }
        }
        for port in &plan.ports {
            let node_port = port
                .frontends
                .iter()
                .any(|frontend| frontend.kind == FrontendKind::NodePort);
            // Loopback node ports are relayed by the daemon.
            if node_port && !packet.to.ip().is_loopback() {
                self.address(Map::NodePortIps, packet.to.ip(), true)?;
            }
            self.client(plan, port, packet, source)?;
        }
        Ok(())
    }

    fn entry(&mut self, wanted: &Entry, packet: &Packet) -> io::Result<()> {
        let map = wanted.place.map.name();
        let asked = format!("{}/{}", packet.to, packet.protocol.lower());
        let Some(found) = self.get(wanted.place.map, &wanted.place.key)? else {
            self.differs(format!("map {map} has nothing for {asked}"));
            return Ok(());
        };
        let chain = |data: &Data| match data {
            Data::Verdict(verdict) => verdict.chain().unwrap_or("no chain").to_owned(),
            _ => "no chain".to_owned(),
        };
        let comment = found.comment.as_deref().unwrap_or_default();
        if comment != &*wanted.comment {
            self.differs(format!("map {map} gives {asked} to Service {comment}"));
        } else if found.data != wanted.data {
            let (found, wanted) = (chain(&found.data), chain(&wanted.data));
            self.differs(format!("map {map} leads {asked} to chain {found} instead of {wanted}"));
        } else {
            self.found
                .found
                .push(format!("map {map}: {asked} -> chain {}", chain(&found.data)));
        }
        Ok(())
    }

    fn endpoints(&mut self, map: Map, frontend: Bytes, mut wanted: Vec<Bytes>) -> io::Result<()> {
        let mut found = Vec::new();
        for slot in 0..wanted.len() {
            let element = self.get(map, &super::schema::slot_key(frontend, slot))?;
            found.extend(element.and_then(|element| match element.data {
                Data::Value(value) => Some(value),
                _ => None,
            }));
        }
        found.sort_unstable();
        wanted.sort_unstable();
        let texts = |values: &[Bytes]| -> String {
            let texts: Vec<String> = values
                .iter()
                .filter_map(parse_endpoint)
                .map(|(address, port)| std::net::SocketAddr::new(address, port).to_string())
                .collect();
            if texts.is_empty() {
                "nothing".into()
            } else {
                texts.join(" ")
            }
        };
        let map = map.name();
        if found == wanted {
            self.found.found.push(format!("map {map}: {}", texts(&found)));
        } else {
            self.differs(format!("map {map} has {} instead of {}", texts(&found), texts(&wanted)));
        }
        Ok(())
    }

    fn chain(&mut self, wanted: Chain) -> io::Result<()> {
        let found = self.table().rules_of(&mut self.socket, &wanted.name)?;
        match found {
            None => self.differs(format!("chain {} is not there", wanted.name)),
            Some(rules) if rules != wanted.rules => self.differs(format!("chain {} has other rules", wanted.name)),
            Some(_) => {}
        }
        Ok(())
    }

    fn address(&mut self, set: Map, address: IpAddr, wanted: bool) -> io::Result<()> {
        let found = self.get(set, &address_bytes(address))?.is_some();
        if found != wanted {
            let verb = if found { "has" } else { "lacks" };
            self.differs(format!("set {} {verb} {address}", set.name()));
        }
        Ok(())
    }

    /// Where the kernel remembers this client to be.
    fn client(&mut self, plan: &ServicePlan, port: &PortPlan, packet: &Packet, source: SourceKind) -> io::Result<()> {
        let Some(affinity) = Affinity::new(&plan.service, port) else {
            return Ok(());
        };
        for frontend in &port.frontends {
            if let Verdict::Forward { set, .. } = frontend.verdict(source) {
                let key = affinity.key(packet.from, set);
                let endpoint = self.get(Map::Affinity, &key)?.map(|element| element.data);
                if let Some(Data::Value(value)) = endpoint
                    && let Some((address, number)) = parse_endpoint(&value)
                {
                    let endpoint = std::net::SocketAddr::new(address, number);
                    self.found.found.push(format!("this client stays with {endpoint}"));
                }
            }
        }
        Ok(())
    }

    /// No Service has the frontend, so that nothing may be there.
    fn nobody(&mut self, packet: &Packet, live: bool) -> io::Result<()> {
        let (address, number) = (packet.to.ip(), packet.to.port());
        let key = frontend_key(Some(address), packet.protocol, number);
        let mut places = vec![(Map::Services, key)];
        if self.get(Map::NodePortIps, &address_bytes(address))?.is_some() {
            places.push((Map::NodePorts, frontend_key(None, packet.protocol, number)));
        }
        for (map, key) in places {
            if let Some(element) = self.get(map, &key)? {
                let service = element.comment.unwrap_or_default();
                self.differs(format!("map {} gives {} to Service {service}", map.name(), packet.to));
            }
        }
        self.address(Map::ClusterIps, address, live)
    }
}
