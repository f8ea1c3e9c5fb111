//! What is programmed, as far as this process knows: enough to say what a change of one Service means, and no more.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use portolan_model::{Family, ServiceName};
use portolan_plan::{EndpointSet, FrontendKind, NodePlan, PortPlan, ServicePlan};

use super::NftOptions;
use super::affinity::Member;
use super::difference::{Difference, sort};
use super::entries::{Chains, Entry, Needs, Place, backends, emit, keep_slots};
use super::frame::frame;
use super::netlink::batch::Batch;
use super::netlink::object::{Bytes, Chain, Data};
use super::observe::Observed;
use super::packed::Packed;
use super::program::Program;
use super::rules::Context;
use super::schema::{Map, frontend_key, parse_endpoint, split_slot};
use crate::backend::claims::{Claims, FrontendId, frontends};

/// New plans of Services; `None` for one that goes.
pub(crate) type Plans = Vec<(ServiceName, Option<ServicePlan>)>;

/// What a replacement means.
#[derive(Debug)]
pub(crate) struct Replacement {
    pub(crate) difference: Difference,
    /// Services that the owners of elements are indexes of.
    pub(crate) owners: Vec<ServiceName>,
    /// What was replaced: replacing this brings everything back.
    pub(crate) old_plans: Plans,
    /// The node's plan that was replaced.
    pub(crate) old_node: Option<NodePlan>,
    /// Endpoints have gone that clients may stay with.
    pub(crate) forget: bool,
}

/// What is programmed.
#[derive(Debug, Default)]
pub(crate) struct Mirror {
    node: NodePlan,
    /// Families that there are tables of.
    families: Vec<Family>,
    /// Endpoints stand in the order of their slots.
    plans: BTreeMap<ServiceName, Packed>,
    claims: Claims,
    /// Chains in use, and by how many elements.
    chains: Chains,
    /// Shared elements, and how many need them.
    shared: HashMap<Place, usize>,
    /// Endpoints that clients may stay with.
    members: BTreeSet<Member>,
}

impl Mirror {
    /// How many Services there are.
    pub(crate) fn services(&self) -> usize {
        self.plans.len()
    }

    /// How many endpoints there are, counted for each port. Walks over everything.
    pub(crate) fn endpoints(&self) -> usize {
        let plans = self.plans.iter().map(|(service, plan)| plan.unpack(service));
        plans.flat_map(|plan| plan.ports).map(|port| port.cluster.len()).sum()
    }

    fn plan(&self, service: &ServiceName) -> Option<ServicePlan> {
        self.plans.get(service).map(|plan| plan.unpack(service))
    }

    pub(crate) fn claims(&self) -> &Claims {
        &self.claims
    }

    pub(crate) fn members(&self) -> &BTreeSet<Member> {
        &self.members
    }

    pub(crate) fn chains(&self) -> usize {
        self.chains.len()
    }

    /// Gives the endpoints of a new plan the slots that they have.
    pub(crate) fn assign_slots(&self, plan: &mut ServicePlan) {
        let Some(old) = self.plan(&plan.service) else { return };
        for port in &mut plan.ports {
            let same =
                |old: &&PortPlan| (old.family, old.protocol, &old.name) == (port.family, port.protocol, &port.name);
            if let Some(old) = old.ports.iter().find(same) {
                keep_slots(&endpoints(old, EndpointSet::Cluster), &mut port.cluster);
                keep_slots(&endpoints(old, EndpointSet::Local), &mut port.local);
            }
        }
    }

    /// Replaces plans as they are given, slots included.
    pub(crate) fn replace(&mut self, plans: Plans, node: Option<NodePlan>, options: &NftOptions) -> Replacement {
        let mut difference = Difference::default();
        let (mut before, mut after) = (Needs::default(), Needs::default());
        let owners = self.affected(&plans);

        self.emit(&mut before, &owners);
        let mut old_plans = Vec::with_capacity(plans.len());
        for (service, plan) in plans {
            let old = self.plan(&service);
            old.iter().for_each(|old| self.claims.release(old));
            match plan {
                Some(plan) => {
                    self.claims.claim(&plan);
                    self.plans.insert(service.clone(), Packed::new(&plan));
                }
                None => drop(self.plans.remove(&service)),
            }
            old_plans.push((service, old));
        }
        self.emit(&mut after, &owners);

        let old_node = node.map(|node| {
            before.node(&self.node);
            after.node(&node);
            std::mem::replace(&mut self.node, node)
        });
        if let Some(old) = &old_node {
            self.rewrite(&mut difference, old, options);
        }
        let forget = !before.members.is_subset(&after.members);
        for member in &before.members {
            self.members.remove(member);
        }
        self.members.append(&mut after.members);
        self.count_chains(&mut difference, before.take_chains(), after.take_chains(), options);
        self.count_shared(&mut before.entries, &before.shared, &mut after.entries, &after.shared);
        sort(&mut before.entries);
        sort(&mut after.entries);
        difference.entries(before.entries, after.entries);
        Replacement {
            difference,
            owners,
            old_plans,
            old_node,
            forget,
        }
    }

    /// The Services whose elements a replacement can change: those that are replaced, and those that ask for the same
    /// frontends. Their places in the list are the owners of their elements.
    fn affected(&self, plans: &Plans) -> Vec<ServiceName> {
        let mut affected: BTreeSet<&ServiceName> = BTreeSet::new();
        for (service, plan) in plans {
            affected.insert(service);
            for plan in self.plan(service).iter().chain(plan) {
                affected.extend(frontends(plan).flat_map(|id| self.claims.claimants(id)));
            }
        }
        affected.into_iter().cloned().collect()
    }

    fn emit(&self, needs: &mut Needs, services: &[ServiceName]) {
        for (service, owner) in services.iter().zip(0..) {
            if let Some(plan) = self.plan(service) {
                emit(needs, &plan, owner, |id| self.claims.holds(service, id));
            }
        }
    }

    /// Replaces the rules of chains that the node's plan bears on.
    fn rewrite(&self, difference: &mut Difference, old: &NodePlan, options: &NftOptions) {
        for family in self.families.iter().copied() {
            let context = |node| Context { family, node, options };
            let (old, new) = (context(old), context(&self.node));
            let specs = self.chains.iter().filter(|((f, _), _)| *f == family);
            let frames = frame(old).into_iter().zip(frame(new));
            let programs = specs.map(|(_, (_, spec))| (spec.chain(old), spec.chain(new)));
            let changed = frames.chain(programs).filter(|(old, new)| old != new);
            difference.rewrite_chains.extend(changed.map(|(_, new)| (family, new)));
        }
    }

    fn count_chains(&mut self, difference: &mut Difference, before: Chains, after: Chains, options: &NftOptions) {
        for (key, (count, spec)) in after {
            let family = key.0;
            let context = Context {
                family,
                node: &self.node,
                options,
            };
            let known = self.chains.entry(key).or_insert_with(|| {
                difference.create_chains.push((family, spec.chain(context)));
                (0, spec)
            });
            known.0 += count;
        }
        for (key, (count, _)) in before {
            if let Some(known) = self.chains.get_mut(&key) {
                known.0 = known.0.saturating_sub(count);
                if known.0 == 0 {
                    self.chains.remove(&key);
                    // It may just have been rewritten for the node's sake.
                    difference
                        .rewrite_chains
                        .retain(|(family, chain)| (*family, &chain.name) != (key.0, &key.1));
                    difference.delete_chains.push(key);
                }
            }
        }
    }

    fn count_shared(
        &mut self,
        removed: &mut Vec<Entry>,
        before: &BTreeMap<Place, usize>,
        added: &mut Vec<Entry>,
        after: &BTreeMap<Place, usize>,
    ) {
        for (place, count) in after {
            let known = self.shared.entry(*place).or_default();
            if *known == 0 {
                added.push(shared(*place));
            }
            *known += count;
        }
        for (place, count) in before {
            if let Some(known) = self.shared.get_mut(place) {
                *known = known.saturating_sub(*count);
                if *known == 0 {
                    self.shared.remove(place);
                    removed.push(shared(*place));
                }
            }
        }
    }

    // === a complete change ===

    /// A mirror of these plans, sorted by Service, in which endpoints keep the slots that they have in the kernel, and
    /// what makes of what was observed what has to be. The owners of elements are the places of their plans.
    pub(crate) fn adopt<'a>(
        plans: impl Iterator<Item = &'a ServicePlan> + Clone,
        node: NodePlan,
        observed: Vec<(Family, Option<Observed>)>,
        options: &NftOptions,
    ) -> (Self, Difference) {
        let mut mirror = Self {
            node,
            families: observed.iter().map(|(family, _)| *family).collect(),
            ..Self::default()
        };
        for plan in plans.clone() {
            mirror.claims.claim(plan);
        }
        let anything = observed.iter().any(|(_, observed)| observed.is_some());
        let mut needs = Needs::default();
        let mut packed = Vec::with_capacity(plans.size_hint().0);
        for (plan, owner) in plans.zip(0..) {
            let mut plan = Cow::Borrowed(plan);
            if anything {
                mirror.claims.keep_observed_slots(plan.to_mut(), &observed);
            }
            emit(&mut needs, &plan, owner, |id| mirror.claims.holds(&plan.service, id));
            packed.push((plan.service.clone(), Packed::new(&plan)));
        }
        // From a sorted list the tree is built densely.
        mirror.plans = packed.into_iter().collect();
        needs.node(&mirror.node);
        let difference = mirror.difference(needs, observed, options);
        (mirror, difference)
    }

    fn difference(
        &mut self,
        mut needs: Needs,
        observed: Vec<(Family, Option<Observed>)>,
        options: &NftOptions,
    ) -> Difference {
        let mut difference = Difference::default();
        needs.entries.extend(needs.shared.keys().map(|place| shared(*place)));
        self.chains = needs.take_chains();
        self.shared = needs.shared.into_iter().collect();
        self.members = needs.members;
        sort(&mut needs.entries);

        let mut found = Vec::new();
        for (family, observed) in observed {
            let context = Context {
                family,
                node: &self.node,
                options,
            };
            let specs = self.chains.iter().filter(|((f, _), _)| *f == family);
            let wanted: Vec<_> = frame(context)
                .into_iter()
                .chain(specs.map(|(_, (_, spec))| spec.chain(context)))
                .collect();
            match observed {
                Some(mut observed) if observed.is_usable(&wanted) => {
                    difference.chains(family, &observed.chains, wanted);
                    match found.is_empty() {
                        true => found = observed.entries,
                        false => found.append(&mut observed.entries),
                    }
                }
                observed => {
                    difference.delete_tables.extend(observed.is_some().then_some(family));
                    difference.create_tables.push(family);
                    difference
                        .create_chains
                        .extend(wanted.into_iter().map(|chain| (family, chain)));
                }
            }
        }
        difference.entries(found, needs.entries);
        difference
    }
}

impl Observed {
    /// Whether the table can be changed into what it has to be: its sets are right, and every hook in it is ours.
    fn is_usable(&self, wanted: &[Chain]) -> bool {
        let hook = |name: &str| {
            wanted
                .iter()
                .find(|chain| &*chain.name == name)
                .and_then(|chain| chain.hook)
        };
        let right = self.chains.iter().all(|chain| chain.hook == hook(&chain.name));
        self.sound && right
    }
}

impl Difference {
    /// Adds what makes the chains that were found the ones that have to be.
    fn chains(&mut self, family: Family, found: &[Chain], wanted: Vec<Chain>) {
        let gone = found
            .iter()
            .filter(|old| !wanted.iter().any(|chain| chain.name == old.name));
        self.delete_chains
            .extend(gone.map(|chain| (family, chain.name.clone())));
        for chain in wanted {
            match found.iter().find(|old| old.name == chain.name) {
                None => self.create_chains.push((family, chain)),
                Some(old) if *old != chain => self.rewrite_chains.push((family, chain)),
                Some(_) => {}
            }
        }
    }
}

fn shared(place: Place) -> Entry {
    Entry {
        place,
        data: Data::None,
        comment: Box::default(),
        owner: Batch::SHARED,
    }
}

/// The endpoints of a set in the order of their slots.
fn endpoints(port: &PortPlan, set: EndpointSet) -> Vec<(IpAddr, u16)> {
    backends(port, set)
        .iter()
        .map(|b| (b.address.ip(), b.address.port()))
        .collect()
}

impl Claims {
    /// Gives the endpoints of a plan the slots that they have in the kernel.
    fn keep_observed_slots(&self, plan: &mut ServicePlan, observed: &[(Family, Option<Observed>)]) {
        for port in &mut plan.ports {
            let found = observed.iter().find(|(family, _)| *family == port.family);
            if let Some((_, Some(observed))) = found {
                adopt_slots(&plan.service, port, self, observed);
            }
        }
    }
}

/// Gives the endpoints of a port the slots that they have in the kernel, under the first frontend that has them.
fn adopt_slots(service: &ServiceName, port: &mut PortPlan, claims: &Claims, observed: &Observed) {
    for set in [EndpointSet::Cluster, EndpointSet::Local] {
        let held = port
            .frontends
            .iter()
            .filter(|f| claims.holds(service, &FrontendId::new(port, f)));
        let mut slots = held.map(|frontend| {
            let map = Program::map(frontend.kind == FrontendKind::NodePort, set);
            let key = frontend_key(frontend.address, port.protocol, frontend.port);
            observed_slots(observed, port.family, map, &key)
        });
        if let Some(slots) = slots.find(|slots| !slots.is_empty()) {
            match set {
                EndpointSet::Cluster => keep_slots(&slots, &mut port.cluster),
                EndpointSet::Local => keep_slots(&slots, &mut port.local),
            }
        }
    }
}

/// The endpoints under a frontend's key, in the order of their slots.
fn observed_slots(observed: &Observed, family: Family, map: Map, key: &Bytes) -> Vec<(IpAddr, u16)> {
    let first = observed
        .entries
        .partition_point(|entry| entry.place < Place { family, map, key: *key });
    let entries = observed.entries.get(first..).unwrap_or_default().iter();
    let ours =
        entries.take_while(|entry| entry.place.map == map && entry.place.key.as_slice().starts_with(key.as_slice()));
    let mut slots: Vec<_> = ours
        .filter_map(|entry| {
            let (found, slot) = split_slot(&entry.place.key)?;
            let Data::Value(value) = &entry.data else { return None };
            (found == *key).then_some((slot, parse_endpoint(value)?))
        })
        .collect();
    // Host byte order does not sort by number.
    slots.sort_by_key(|(slot, _)| *slot);
    slots.into_iter().map(|(_, endpoint)| endpoint).collect()
}
