//! Desired: the World and what it asks of this node. Turns events into [`Change`]s; does no I/O.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use portolan_model::{Delta, Event, Node, Object, ObjectKey, ServiceName, World};
use portolan_plan::{Explanation, HealthCheckPlan, HostAddress, NodePlan, Options, Packet, plan_node, plan_service};

use crate::backend::Change;

/// What this node should do, as far as events have told.
pub struct Desired {
    world: World,
    delta: Delta,
    options: Options,
    /// Addresses of the machine's interfaces.
    host: Vec<HostAddress>,
    host_changed: bool,
    /// Stands for the Node object where the source has none (manifests without a Node of our name).
    stand_in: Option<Node>,
    /// The node plan and the node that the last change was made from.
    node_plan: NodePlan,
    node: Option<Node>,
    /// Health check ports by Service.
    health_checks: BTreeMap<ServiceName, HealthCheckPlan>,
    /// Notes by Service, for `status`; only Services that have some.
    notes: BTreeMap<ServiceName, Vec<String>>,
    /// Services that a policy Local leaves without endpoints here, for the metric: internal, external.
    no_local: BTreeMap<ServiceName, (bool, bool)>,
    /// Events of Services and of EndpointSlices that no change has taken up yet.
    waiting: (usize, usize),
}

/// What a [`Change`] came from, for metrics.
#[derive(Clone, Debug, Default)]
pub struct Occasion {
    /// Services that were planned.
    pub services: usize,
    /// `last-change-trigger-time` of each Service whose slices changed, in nanoseconds since 1970.
    pub triggers: Vec<i64>,
    /// Notes that were not there before.
    pub new_notes: Vec<String>,
}

// === impl Desired ===

impl Desired {
    /// Starts from nothing. `stand_in` is used while the source has no Node of our name.
    pub fn new(options: Options, host: Vec<HostAddress>, stand_in: Option<Node>) -> Self {
        Self {
            world: World::default(),
            delta: Delta::default(),
            options,
            host,
            host_changed: true,
            stand_in,
            node_plan: NodePlan::default(),
            node: None,
            health_checks: BTreeMap::new(),
            notes: BTreeMap::new(),
            no_local: BTreeMap::new(),
            waiting: (0, 0),
        }
    }

    /// Takes events in. Yields how many concerned Services, and how many EndpointSlices.
    pub fn take_in(&mut self, events: impl IntoIterator<Item = Event>) -> (usize, usize) {
        let (mut services, mut slices) = (0, 0);
        for event in events {
            match &event {
                Event::Apply(Object::Service(_)) | Event::Delete(ObjectKey::Service(_)) => services += 1,
                Event::Apply(Object::EndpointSlice(_)) | Event::Delete(ObjectKey::EndpointSlice(_)) => slices += 1,
                _ => {}
            }
            self.world.apply(without_names(event), &mut self.delta);
        }
        self.waiting = (self.waiting.0 + services, self.waiting.1 + slices);
        (services, slices)
    }

    /// Takes in what addresses the machine has now.
    pub fn set_host(&mut self, host: Vec<HostAddress>, stand_in: Option<Node>) {
        if host != self.host {
            self.host = host;
            self.stand_in = stand_in;
            self.host_changed = true;
        }
    }

    /// Whether anything waits to be made real.
    pub fn is_dirty(&self) -> bool {
        self.host_changed || !self.delta.is_empty()
    }

    /// Events of Services and of EndpointSlices that no change has taken up yet.
    pub fn waiting(&self) -> (usize, usize) {
        self.waiting
    }

    /// What has to change since the last call; everything when `complete`. `None` when nothing concerns us.
    pub fn change(&mut self, complete: bool) -> Option<(Change, Occasion)> {
        let delta = std::mem::take(&mut self.delta);
        self.waiting = (0, 0);
        let (node, node_plan) = self.observe_node();
        self.host_changed = false;
        // Endpoint choice and masquerading hang on the node's name, zone and pod ranges: when these change, all
        // Services are planned anew (a rare, declared walk over everything); the backend still writes differences only.
        let replan = complete || node_plan.pods != self.node_plan.pods || zone(&node) != zone(&self.node);
        let mut change = Change {
            complete,
            ..Change::default()
        };
        let mut occasion = Occasion::default();
        if complete || node_plan != self.node_plan {
            let known = &self.node_plan.notes;
            let new_notes = node_plan.notes.iter().filter(|note| !known.contains(note));
            occasion.new_notes.extend(new_notes.cloned());
            change.node = Some(node_plan.clone());
        }
        self.node_plan = node_plan;
        self.node = node;
        if replan {
            self.plan_all(&mut change, &mut occasion);
            let gone = delta.services.iter().filter(|name| self.world.service(name).is_none());
            change.removed.extend(gone.cloned());
        } else {
            for name in &delta.services {
                self.plan_one(name, &mut change, &mut occasion);
            }
        }
        for name in &change.removed {
            self.forget(name);
        }
        occasion.services = change.plans.len();
        occasion.triggers = delta.triggers.into_values().collect();
        let empty = change.plans.is_empty() && change.removed.is_empty() && change.node.is_none();
        (complete || !empty).then_some((change, occasion))
    }

    fn observe_node(&self) -> (Option<Node>, NodePlan) {
        let node = self
            .world
            .node(&self.options.node_name)
            .or(self.stand_in.as_ref())
            .cloned();
        let cidrs: Vec<IpNet> = self
            .world
            .service_cidrs()
            .flat_map(|cidr| cidr.cidrs.iter().copied())
            .collect();
        let plan = plan_node(node.as_ref(), &self.host, &cidrs, &self.options);
        (node, plan)
    }

    fn plan_all(&mut self, change: &mut Change, occasion: &mut Occasion) {
        let names: Vec<ServiceName> = self.world.services().map(|view| view.service.name.clone()).collect();
        names.iter().for_each(|name| self.plan_one(name, change, occasion));
    }

    fn plan_one(&mut self, name: &ServiceName, change: &mut Change, occasion: &mut Occasion) {
        let Some(view) = self.world.service(name) else {
            change.removed.push(name.clone());
            return;
        };
        let plan = plan_service(view, self.node.as_ref(), &self.node_plan, &self.options);
        let known = self.notes.get(name).map(Vec::as_slice).unwrap_or_default();
        let new_notes = plan.notes.iter().filter(|note| !known.contains(note));
        occasion
            .new_notes
            .extend(new_notes.map(|note| format!("Service {name}: {note}")));
        self.forget(name);
        if let Some(check) = plan.health_check {
            self.health_checks.insert(name.clone(), check);
        }
        if !plan.notes.is_empty() {
            self.notes.insert(name.clone(), plan.notes.clone());
        }
        let no_local = plan.without_local_endpoints();
        if no_local != (false, false) {
            self.no_local.insert(name.clone(), no_local);
        }
        change.plans.push(plan);
    }

    fn forget(&mut self, name: &ServiceName) {
        self.health_checks.remove(name);
        self.notes.remove(name);
        self.no_local.remove(name);
    }

    /// What this node does with a new connection, as last planned.
    pub fn explain(&self, packet: Packet) -> Explanation {
        let host: Vec<IpAddr> = self.host.iter().map(|address| address.0).collect();
        let node = self.node.as_ref();
        portolan_plan::explain(packet, &self.world, node, &host, &self.node_plan, &self.options)
    }

    /// The World.
    pub fn world(&self) -> &World {
        &self.world
    }

    /// The Node that the last change was planned for.
    pub fn node(&self) -> Option<&Node> {
        self.node.as_ref()
    }

    /// The node's plan in the last change.
    pub fn node_plan(&self) -> &NodePlan {
        &self.node_plan
    }

    /// The options.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// Health check ports by Service.
    pub fn health_checks(&self) -> &BTreeMap<ServiceName, HealthCheckPlan> {
        &self.health_checks
    }

    /// Notes of the node's and of all Services' plans.
    pub fn notes(&self) -> Vec<String> {
        let of_services = self.notes.iter();
        let of_services =
            of_services.flat_map(|(name, notes)| notes.iter().map(move |n| format!("Service {name}: {n}")));
        self.node_plan.notes.iter().cloned().chain(of_services).collect()
    }

    /// Notes of a Service's plan.
    pub fn notes_of(&self, name: &ServiceName) -> &[String] {
        self.notes.get(name).map_or(&[], Vec::as_slice)
    }

    /// How many Services policy Local leaves without endpoints on this node: by the internal, by the external policy.
    pub fn without_local_endpoints(&self) -> (usize, usize) {
        let count = |which: fn(&(bool, bool)) -> bool| self.no_local.values().filter(|flags| which(flags)).count();
        (count(|flags| flags.0), count(|flags| flags.1))
    }
}

/// Names of endpoints are the DNS server's business. Without them an endpoint that changes its name changes nothing here,
/// and endpoints take less memory.
fn without_names(mut event: Event) -> Event {
    if let Event::Apply(Object::EndpointSlice(slice)) = &mut event {
        for endpoint in &mut slice.endpoints {
            endpoint.names = None;
        }
    }
    event
}

fn zone(node: &Option<Node>) -> Option<&str> {
    node.as_ref().and_then(Node::zone)
}

#[cfg(test)]
mod tests;
