//! What is programmed, as far as this process knows: enough to say what a change of one Service means.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use portolan_abi::{Address, SETS_OF_A_PORT, address, set};
use portolan_model::{Family, Protocol, ServiceName};
use portolan_plan::{NodePlan, PortPlan, ServicePlan};

use super::compile::{self, Endpoint, Identity, Port, address_flags, endpoint, frontend_key, keep_slots};
use super::elements::{Difference, Elements};
use super::numbers::Numbers;
use super::sight::PortLabels;
use crate::backend::Change;
use crate::backend::claims::{Claims, FrontendId, frontends};

/// A Service as it is programmed.
#[derive(Debug)]
struct Programmed {
    plan: ServicePlan,
    ports: Vec<(PortName, Port)>,
}

type PortName = (Box<str>, Protocol, Family);

/// How many ask for an address, and what for.
#[derive(Clone, Copy, Debug, Default)]
struct Uses {
    service: u32,
    cluster_ip: u32,
    node: bool,
}

/// What is programmed.
#[derive(Debug, Default)]
pub(crate) struct Mirror {
    node_ports: BTreeSet<Address>,
    /// Cluster IPs that a program on this node answers on: their packets are left to rules.
    taken: BTreeSet<Address>,
    services: BTreeMap<ServiceName, Programmed>,
    claims: Claims,
    addresses: HashMap<Address, Uses>,
    ports: Numbers,
    counters: Numbers,
    /// The last endpoint's identity.
    last: u32,
    /// Numbers of Service ports that are free once the last change is real: until then a frontend may lead to their sets.
    retired: Vec<u32>,
    /// Counters that were given to endpoints in the last change.
    fresh: Vec<u32>,
}

impl Mirror {
    pub(crate) fn claims(&self) -> &Claims {
        &self.claims
    }

    /// Numbers of Service ports that are gone with the last change.
    pub(crate) fn retired(&self) -> &[u32] {
        &self.retired
    }

    /// Counters that were given to endpoints in the last change.
    pub(crate) fn fresh(&self) -> &[u32] {
        &self.fresh
    }

    /// The Service ports of some Services, by number.
    pub(crate) fn labels<'a>(
        &'a self,
        services: impl Iterator<Item = &'a ServiceName> + 'a,
    ) -> impl Iterator<Item = (u32, PortLabels)> + 'a {
        let known = services.filter_map(|service| self.services.get(service));
        known.flat_map(|programmed| {
            programmed.ports.iter().map(|((name, protocol, family), port)| {
                let labels = PortLabels {
                    service: programmed.plan.service.clone(),
                    port: name.clone(),
                    protocol: protocol.lower(),
                    family: match family {
                        Family::V4 => "IPv4",
                        Family::V6 => "IPv6",
                    },
                };
                (port.id, labels)
            })
        })
    }

    /// Names of all Services.
    pub(crate) fn names(&self) -> impl Iterator<Item = &ServiceName> {
        self.services.keys()
    }

    pub(crate) fn services(&self) -> usize {
        self.services.len()
    }

    /// One more than the largest number of a Service port, and of an endpoint's counters.
    pub(crate) fn limits(&self) -> (u32, u32) {
        (self.ports.end(), self.counters.end())
    }

    /// Takes a change in and yields what it changes in the maps.
    pub(crate) fn change(&mut self, change: &Change) -> Difference {
        self.fresh.clear();
        for number in std::mem::take(&mut self.retired) {
            self.ports.release(number);
        }
        let affected = self.affected(change);
        let mut before = Elements::default();
        self.emit(&affected, &mut before);
        let mut touched = self.touched(&affected, change);
        self.note_addresses(&touched, &mut before);

        let removed = change.removed.iter().map(|service| (service, None));
        let plans = change.plans.iter().map(|plan| (&plan.service, Some(plan)));
        for (service, plan) in removed.chain(plans) {
            self.replace(service, plan.cloned());
        }
        if let Some(node) = &change.node {
            self.set_node(node);
        }

        let mut after = Elements::default();
        self.emit(&affected, &mut after);
        touched.extend(self.touched(&affected, change));
        self.note_addresses(&touched, &mut after);
        Difference::between(&before, &after)
    }

    /// A mirror of everything in a complete change. Numbers and slots are those that are found in the maps, as far as they
    /// fit.
    pub(crate) fn adopt(change: &Change, found: &Elements) -> Self {
        let mut mirror = Self::default();
        let largest = found.backends.values().map(|backend| backend.id);
        let largest = largest.chain(found.members.values().map(|member| member.id)).max();
        mirror.last = largest.unwrap_or(0);
        if let Some(node) = &change.node {
            mirror.set_node(node);
        }
        for plan in &change.plans {
            mirror.claims.claim(plan);
        }
        // Numbers that are found are taken before new ones are given. A port takes one only when all its frontends
        // lead there and nothing else does: one that comes, moves or goes must not lead to another port's endpoints meanwhile.
        let mut leading: HashMap<u32, usize> = HashMap::new();
        for frontend in found.frontends.values() {
            *leading.entry(frontend.port).or_default() += 1;
        }
        let mut adopted = HashMap::new();
        for plan in &change.plans {
            for port in &plan.ports {
                let numbers: Vec<Option<u32>> = mirror.numbers_of(plan, port, found).collect();
                let Some(number) = numbers.first().copied().flatten() else {
                    continue;
                };
                let alone = leading.get(&number) == Some(&numbers.len());
                if !alone || numbers.iter().any(|other| *other != Some(number)) {
                    continue;
                }
                if mirror.ports.take(number) {
                    let old = found_port(number, found);
                    for identity in old.endpoints.values() {
                        mirror.counters.take(identity.counter);
                    }
                    adopted.insert((plan.service.clone(), port_name(port)), old);
                }
            }
        }
        // Whatever else leads to a number, or stands in its sets, keeps it from being given until that is gone.
        let leading = found.frontends.values().map(|frontend| frontend.port);
        let sets = found.sets.keys().chain(found.backends.keys().map(|key| &key.set));
        let sets = sets.chain(found.members.keys().map(|key| &key.set));
        for number in leading.chain(sets.map(|set| set / SETS_OF_A_PORT)) {
            if mirror.ports.take(number) {
                mirror.retired.push(number);
            }
        }
        for plan in &change.plans {
            let old: Vec<(PortName, Port)> = plan
                .ports
                .iter()
                .filter_map(|port| {
                    Some((
                        port_name(port),
                        adopted.remove(&(plan.service.clone(), port_name(port)))?,
                    ))
                })
                .collect();
            mirror.enter(plan.clone(), old);
        }
        mirror
    }

    /// The numbers that a port has in the maps, under each of the frontends that the Service holds: one, as a rule.
    fn numbers_of<'a>(
        &'a self,
        plan: &'a ServicePlan,
        port: &'a PortPlan,
        found: &'a Elements,
    ) -> impl Iterator<Item = Option<u32>> + 'a {
        let held = port
            .frontends
            .iter()
            .filter(|frontend| self.claims.holds(&plan.service, &FrontendId::new(port, frontend)));
        let keys = held.filter_map(|frontend| frontend_key(port, frontend));
        keys.map(|key| found.frontends.get(&key).map(|frontend| frontend.port))
    }

    /// Everything.
    pub(crate) fn elements(&self) -> Elements {
        let mut elements = Elements::default();
        let all: Vec<ServiceName> = self.services.keys().cloned().collect();
        self.emit(&all, &mut elements);
        let addresses: BTreeSet<Address> = self.addresses.keys().copied().collect();
        self.note_addresses(&addresses, &mut elements);
        elements
    }

    /// The Services whose elements a change can change: those in it, and those that ask for the same frontends.
    fn affected(&self, change: &Change) -> Vec<ServiceName> {
        let mut affected: BTreeSet<&ServiceName> = BTreeSet::new();
        let changed = change.plans.iter().map(|plan| &plan.service).chain(&change.removed);
        for service in changed {
            affected.insert(service);
            if let Some(old) = self.services.get(service) {
                affected.extend(frontends(&old.plan).flat_map(|id| self.claims.claimants(id)));
            }
        }
        for plan in &change.plans {
            affected.extend(frontends(plan).flat_map(|id| self.claims.claimants(id)));
        }
        affected.into_iter().cloned().collect()
    }

    /// Addresses whose flags a change can change.
    fn touched(&self, affected: &[ServiceName], change: &Change) -> BTreeSet<Address> {
        let plans = affected.iter().filter_map(|service| self.services.get(service));
        let frontends = plans
            .flat_map(|programmed| &programmed.plan.ports)
            .flat_map(|port| &port.frontends);
        let mut touched: BTreeSet<Address> = frontends.filter_map(|f| f.address).map(compile::address).collect();
        if let Some(node) = &change.node {
            touched.extend(self.node_ports.union(&self.taken));
            touched.extend(node.taken.iter().map(|ip| compile::address(*ip)));
        }
        touched
    }

    fn note_addresses(&self, addresses: &BTreeSet<Address>, elements: &mut Elements) {
        for address in addresses {
            let Some(uses) = self.addresses.get(address) else {
                continue;
            };
            let only_cluster_ip = uses.service == uses.cluster_ip;
            if !(self.taken.contains(address) && only_cluster_ip) {
                elements.addresses.insert(*address, uses.flags(address));
            } else if uses.node {
                // Node ports may be served there, too.
                let node = Uses {
                    node: true,
                    ..Uses::default()
                };
                elements.addresses.insert(*address, node.flags(address));
            }
        }
    }

    fn emit(&self, services: &[ServiceName], elements: &mut Elements) {
        for service in services {
            let Some(programmed) = self.services.get(service) else {
                continue;
            };
            for ((_, port), plan) in programmed.ports.iter().zip(served(&programmed.plan)) {
                port.emit(elements);
                for wanted in &plan.frontends {
                    if self.claims.holds(service, &FrontendId::new(plan, wanted))
                        && let Some(key) = frontend_key(plan, wanted)
                    {
                        elements.frontends.insert(key, port.frontend(&key, plan, wanted));
                    }
                }
            }
        }
    }

    fn replace(&mut self, service: &ServiceName, plan: Option<ServicePlan>) {
        let old = self.services.remove(service);
        let mut ports = Vec::new();
        if let Some(old) = old {
            self.claims.release(&old.plan);
            self.count_addresses(&old.plan, false);
            ports = old.ports;
        }
        if let Some(plan) = plan {
            self.claims.claim(&plan);
            self.enter(plan, ports);
        } else {
            for (_, port) in ports {
                self.release(&port);
            }
        }
    }

    /// Enters a plan whose frontends are claimed; its ports keep the numbers and slots of `old`.
    fn enter(&mut self, plan: ServicePlan, mut old: Vec<(PortName, Port)>) {
        self.count_addresses(&plan, true);
        let mut ports = Vec::with_capacity(plan.ports.len());
        for port in served(&plan) {
            let name = port_name(port);
            let place = old.iter().position(|(other, _)| *other == name);
            let known = place.map(|place| old.swap_remove(place).1);
            ports.push((name, self.port(port, known)));
        }
        for (_, port) in old {
            self.release(&port);
        }
        self.services.insert(plan.service.clone(), Programmed { plan, ports });
    }

    fn port(&mut self, plan: &PortPlan, old: Option<Port>) -> Port {
        let list =
            |backends: &[portolan_plan::Backend]| backends.iter().map(|b| endpoint(b.address)).collect::<Vec<_>>();
        let (id, mut known, cluster, local) = match old {
            Some(old) => (old.id, old.endpoints, old.cluster, old.local),
            None => (self.ports.give(), BTreeMap::new(), Vec::new(), Vec::new()),
        };
        let cluster = keep_slots(&cluster, list(&plan.cluster));
        let local = keep_slots(&local, list(&plan.local));
        let serving: Vec<Endpoint> = plan.serving.iter().map(|at| endpoint(*at)).collect();
        let mut endpoints = BTreeMap::new();
        for endpoint in cluster.iter().chain(&local).chain(&serving) {
            endpoints.entry(*endpoint).or_insert_with(|| {
                known.remove(endpoint).unwrap_or_else(|| {
                    self.last = self.last.wrapping_add(1);
                    let counter = self.counters.give();
                    self.fresh.push(counter);
                    Identity { id: self.last, counter }
                })
            });
        }
        for identity in known.values() {
            self.counters.release(identity.counter);
        }
        Port {
            id,
            endpoints,
            cluster,
            local,
            serving,
            sticky: plan.affinity_seconds.is_some(),
        }
    }

    fn release(&mut self, port: &Port) {
        self.retired.push(port.id);
        for identity in port.endpoints.values() {
            self.counters.release(identity.counter);
        }
    }

    fn count_addresses(&mut self, plan: &ServicePlan, enter: bool) {
        for frontend in served(plan).flat_map(|port| &port.frontends) {
            let Some(ip) = frontend.address else { continue };
            let flags = address_flags(frontend.kind);
            let key = compile::address(ip);
            let uses = self.addresses.entry(key).or_default();
            for (flag, count) in [
                (address::SERVICE, &mut uses.service),
                (address::CLUSTER_IP, &mut uses.cluster_ip),
            ] {
                if flags & flag != 0 {
                    *count = if enter { *count + 1 } else { count.saturating_sub(1) };
                }
            }
            if uses.is_unused() {
                self.addresses.remove(&key);
            }
        }
    }

    fn set_node(&mut self, node: &NodePlan) {
        self.taken = node.taken.iter().map(|ip| compile::address(*ip)).collect();
        let old = std::mem::take(&mut self.node_ports);
        self.node_ports = node
            .node_port_addresses
            .iter()
            .map(|ip| compile::address(*ip))
            .collect();
        for address in &self.node_ports {
            self.addresses.entry(*address).or_default().node = true;
        }
        for address in old.difference(&self.node_ports) {
            if let Some(uses) = self.addresses.get_mut(address) {
                uses.node = false;
                if uses.is_unused() {
                    self.addresses.remove(address);
                }
            }
        }
    }
}

impl Uses {
    fn is_unused(&self) -> bool {
        self.service == 0 && self.cluster_ip == 0 && !self.node
    }

    fn flags(&self, key: &Address) -> u32 {
        let flag = |set: bool, flag| if set { flag } else { 0 };
        let first_octet = key.0[3].to_ne_bytes()[0];
        let loopback = if key.is_v4() {
            first_octet == 127
        } else {
            key.0 == [0, 0, 0, 1_u32.to_be()]
        };
        flag(self.service > 0, address::SERVICE)
            | flag(self.cluster_ip > 0, address::CLUSTER_IP)
            | flag(self.node, address::NODE_PORT)
            | flag(loopback, address::LOOPBACK)
    }
}

fn port_name(port: &PortPlan) -> PortName {
    (port.name.clone(), port.protocol, port.family)
}

/// The ports that sockets are served with.
fn served(plan: &ServicePlan) -> impl Iterator<Item = &PortPlan> {
    plan.ports
        .iter()
        .filter(|port| compile::protocol(port.protocol).is_some())
}

/// A port as it is found in the maps.
fn found_port(number: u32, found: &Elements) -> Port {
    let first = number.saturating_mul(SETS_OF_A_PORT);
    let mut endpoints = BTreeMap::new();
    let mut slots = |offset: u32| -> Vec<Endpoint> {
        let key = |slot| portolan_abi::BackendKey {
            set: first + offset,
            slot,
        };
        let list = found.backends.range(key(0)..=key(u32::MAX));
        list.map(|(_, backend)| {
            let endpoint = (backend.address, backend.port);
            let identity = Identity {
                id: backend.id,
                counter: backend.counter,
            };
            endpoints.insert(endpoint, identity);
            endpoint
        })
        .collect()
    };
    let (cluster, local) = (slots(set::CLUSTER), slots(set::LOCAL));
    let member = |set| portolan_abi::MemberKey {
        set,
        port: 0,
        zero: 0,
        address: Address([0; 4]),
    };
    for (key, value) in found.members.range(member(first)..member(first + SETS_OF_A_PORT)) {
        endpoints.entry((key.address, key.port)).or_insert(Identity {
            id: value.id,
            counter: value.counter,
        });
    }
    Port {
        id: number,
        endpoints,
        cluster,
        local,
        serving: Vec::new(),
        sticky: false,
    }
}
