//! What a plan is, in elements: [`emit`] lists every element and every chain that a Service needs.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use portolan_model::Family;
use portolan_plan::{Backend, EndpointSet, Frontend, FrontendKind, NodePlan, PortPlan, ServicePlan};

use super::affinity::{Affinity, Member};
use super::netlink::expr::Verdict;
use super::netlink::object::{Bytes, Data};
use super::program::{ChainSpec, Program};
use super::schema::{Map, address_bytes, endpoint_bytes, frontend_key, slot_key};
use crate::backend::claims::FrontendId;

/// Where an element is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Place {
    pub(crate) family: Family,
    pub(crate) map: Map,
    pub(crate) key: Bytes,
}

/// An element and where it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) place: Place,
    pub(crate) data: Data,
    /// Says which Service it serves. Empty for most.
    pub(crate) comment: Box<str>,
    /// For whom: an index into the list of the transaction's Services.
    pub(crate) owner: u32,
}

/// Chains by name, with how many elements refer to each.
pub(crate) type Chains = BTreeMap<(Family, Box<str>), (usize, ChainSpec)>;

/// Elements and chains that are needed, with how often each chain and each shared element is.
#[derive(Debug, Default)]
pub(crate) struct Needs {
    pub(crate) entries: Vec<Entry>,
    /// Few, and asked for by every frontend: names are made once.
    chains: HashMap<(Family, ChainSpec), (Box<str>, usize)>,
    pub(crate) shared: BTreeMap<Place, usize>,
    /// Endpoints that clients may stay with.
    pub(crate) members: BTreeSet<Member>,
}

impl Needs {
    fn entry(&mut self, place: Place, data: Data, comment: String, owner: u32) {
        let comment = comment.into_boxed_str();
        self.entries.push(Entry {
            place,
            data,
            comment,
            owner,
        });
    }

    fn share(&mut self, family: Family, map: Map, key: Bytes) {
        *self.shared.entry(Place { family, map, key }).or_default() += 1;
    }

    /// Notes that an element refers to a chain; yields the chain's name.
    fn chain(&mut self, family: Family, spec: ChainSpec) -> Box<str> {
        let chain = self.chains.entry((family, spec));
        let (name, count) = chain.or_insert_with_key(|(_, spec)| (spec.name(), 0));
        *count += 1;
        name.clone()
    }

    /// The chains by name.
    pub(crate) fn take_chains(&mut self) -> Chains {
        let mut chains = Chains::new();
        for ((family, spec), (name, count)) in self.chains.drain() {
            chains.entry((family, name)).or_insert((0, spec)).0 += count;
        }
        chains
    }

    /// Adds what the node as a whole needs.
    pub(crate) fn node(&mut self, node: &NodePlan) {
        // The kernel does not translate what comes to a loopback address from elsewhere, and what a process sends to
        // one keeps a source that no endpoint can answer: loopback node ports are served by other means.
        for address in node.node_port_addresses.iter().filter(|address| !address.is_loopback()) {
            self.share(Family::of(address), Map::NodePortIps, address_bytes(*address));
        }
    }
}

/// Adds what a Service needs. `holds` tells whether the Service has the frontend: another one may have been first.
/// Endpoints take slots in the order in which they stand in the plan.
pub(crate) fn emit(needs: &mut Needs, plan: &ServicePlan, owner: u32, holds: impl Fn(&FrontendId) -> bool) {
    for port in &plan.ports {
        let affinity = Affinity::new(&plan.service, port);
        let mut used = [false; 2];
        for frontend in &port.frontends {
            if holds(&FrontendId::new(port, frontend)) {
                let program = program(port, frontend, affinity);
                used[0] |= program.uses(EndpointSet::Cluster);
                used[1] |= program.uses(EndpointSet::Local);
                emit_frontend(needs, plan, port, frontend, &program, owner);
            }
        }
        for set in [EndpointSet::Cluster, EndpointSet::Local] {
            let affinity = affinity.filter(|_| used[usize::from(set == EndpointSet::Local)]);
            needs
                .members
                .extend(affinity.into_iter().flat_map(|affinity| members(affinity, port, set)));
        }
        let cluster = port.cluster.iter().filter(|_| used[0]);
        // Endpoints of the local set are in the cluster set, too, most of the time: once is enough.
        let local = port
            .local
            .iter()
            .filter(|b| used[1] && !(used[0] && port.cluster.contains(b)));
        for backend in cluster.chain(local).filter(|backend| backend.local) {
            let address = address_bytes(backend.address.ip());
            needs.share(port.family, Map::Hairpin, address.then(address.as_slice()));
        }
    }
}

/// The program of a frontend.
fn program(port: &PortPlan, frontend: &Frontend, affinity: Option<Affinity>) -> Program {
    let count = |set| backends(port, set).len();
    Program::new(
        &frontend.routes,
        frontend.kind == FrontendKind::NodePort,
        affinity,
        count,
    )
}

fn members(affinity: Affinity, port: &PortPlan, set: EndpointSet) -> impl Iterator<Item = Member> + '_ {
    backends(port, set).iter().map(move |backend| Member {
        family: port.family,
        set: affinity.set(set),
        endpoint: endpoint_bytes(backend.address.ip(), backend.address.port()),
    })
}

/// The endpoints of a set.
pub(crate) fn backends(port: &PortPlan, set: EndpointSet) -> &[Backend] {
    match set {
        EndpointSet::Cluster => &port.cluster,
        EndpointSet::Local => &port.local,
    }
}

fn emit_frontend(
    needs: &mut Needs,
    plan: &ServicePlan,
    port: &PortPlan,
    frontend: &Frontend,
    program: &Program,
    owner: u32,
) {
    let family = port.family;
    let key = frontend_key(frontend.address, port.protocol, frontend.port);
    let place = |map, key| Place { family, map, key };
    let comment = match &*port.name {
        "" => plan.service.to_string(),
        name => format!("{}:{name}", plan.service),
    };
    let (map, learning) = match program.node_port {
        true => (Map::NodePorts, Map::AffinityNodePorts),
        false => (Map::Services, Map::AffinityServices),
    };
    let chain = needs.chain(family, ChainSpec::Program(*program));
    if let Some(ranges) = &frontend.source_ranges {
        let chain = needs.chain(family, ChainSpec::Sources(ranges.clone()));
        let verdict = Data::Verdict(Verdict::Jump(chain));
        needs.entry(place(Map::Firewall, key), verdict, comment.clone(), owner);
    }
    if program.affinity.is_some() {
        let chain = needs.chain(family, ChainSpec::Learn(program.learner()));
        needs.entry(
            place(learning, key),
            Data::Verdict(Verdict::Goto(chain)),
            comment.clone(),
            owner,
        );
    }
    needs.entry(place(map, key), Data::Verdict(Verdict::Goto(chain)), comment, owner);
    for set in [EndpointSet::Cluster, EndpointSet::Local] {
        if program.uses(set) {
            let map = Program::map(program.node_port, set);
            for (slot, backend) in backends(port, set).iter().enumerate() {
                let value = endpoint_bytes(backend.address.ip(), backend.address.port());
                needs.entry(
                    place(map, slot_key(key, slot)),
                    Data::Value(value),
                    String::new(),
                    owner,
                );
            }
        }
    }
    if let (FrontendKind::ClusterIp, Some(address)) = (frontend.kind, frontend.address) {
        needs.share(family, Map::ClusterIps, address_bytes(address));
    }
}

/// Puts the endpoints of a set into slots so that as few as possible change: whoever has a slot keeps it, newcomers
/// take the holes, and the last ones move into what holes are left.
pub(crate) fn keep_slots(old: &[(IpAddr, u16)], new: &mut Vec<Backend>) {
    if old.is_empty() {
        return;
    }
    let mut waiting: BTreeMap<(IpAddr, u16), Backend> =
        new.iter().map(|b| ((b.address.ip(), b.address.port()), *b)).collect();
    let count = waiting.len();
    let mut slots: Vec<Option<Backend>> = old
        .iter()
        .take(count)
        .map(|endpoint| waiting.remove(endpoint))
        .collect();
    // What is left in `waiting` stood in a slot that is gone, or is new.
    slots.resize(count, None);
    let mut rest = waiting.into_values();
    for slot in slots.iter_mut().filter(|slot| slot.is_none()) {
        *slot = rest.next();
    }
    *new = slots.into_iter().flatten().collect();
}
