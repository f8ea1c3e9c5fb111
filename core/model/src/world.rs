//! World: the snapshot that events build up, and Delta: what they changed.
//!
//! Cost follows the change: one event touches one object and marks at most two Services dirty, however many there are.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::endpoint::{Endpoint, EndpointSlice};
use crate::import::ServiceImport;
use crate::name::{EndpointSliceName, PodName, ServiceName};
use crate::node::{Namespace, Node, Pod, ServiceCidr};
use crate::service::{Family, Service, ServicePort};

/// An object of one of the kinds that the World keeps.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "each variant is the kind it names")]
pub enum Object {
    Service(Box<Service>),
    EndpointSlice(EndpointSlice),
    Node(Box<Node>),
    Namespace(Namespace),
    Pod(Box<Pod>),
    ServiceCidr(ServiceCidr),
    ServiceImport(Box<ServiceImport>),
}

/// The kind and name of an object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[allow(missing_docs, reason = "each variant is the kind it names")]
pub enum ObjectKey {
    Service(ServiceName),
    EndpointSlice(EndpointSliceName),
    Node(Arc<str>),
    Namespace(Arc<str>),
    Pod(PodName),
    ServiceCidr(Arc<str>),
    ServiceImport(ServiceName),
}

impl Object {
    /// The object's key.
    pub fn key(&self) -> ObjectKey {
        match self {
            Self::Service(o) => ObjectKey::Service(o.name.clone()),
            Self::EndpointSlice(o) => ObjectKey::EndpointSlice(o.name.clone()),
            Self::Node(o) => ObjectKey::Node(o.name.clone()),
            Self::Namespace(o) => ObjectKey::Namespace(o.name.clone()),
            Self::Pod(o) => ObjectKey::Pod(o.name.clone()),
            Self::ServiceCidr(o) => ObjectKey::ServiceCidr(o.name.clone()),
            Self::ServiceImport(o) => ObjectKey::ServiceImport(o.name.clone()),
        }
    }
}

/// What a source says. A source that lists anew sends `Apply` for what it finds and `Delete` for what is gone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// The object is now as given.
    Apply(Object),
    /// The object is gone.
    Delete(ObjectKey),
}

/// What changed since the Delta was last taken, by name. Objects that were set to what they were are not in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Delta {
    /// Services whose specification, status or endpoints changed, or that came or went.
    pub services: BTreeSet<ServiceName>,
    /// Nodes that changed.
    pub nodes: BTreeSet<Arc<str>>,
    /// Namespaces that came, went or changed their labels.
    pub namespaces: BTreeSet<Arc<str>>,
    /// Pods that changed.
    pub pods: BTreeSet<PodName>,
    /// ServiceImports whose specification or endpoints changed, or that came or went.
    pub imports: BTreeSet<ServiceName>,
    /// Some ServiceCIDR changed.
    pub service_cidrs: bool,
    /// The earliest `last-change-trigger-time` among the changed slices of each Service, in nanoseconds since 1970.
    pub triggers: BTreeMap<ServiceName, i64>,
}

impl Delta {
    /// Whether nothing changed.
    pub fn is_empty(&self) -> bool {
        self.services.is_empty()
            && self.nodes.is_empty()
            && self.namespaces.is_empty()
            && self.pods.is_empty()
            && self.imports.is_empty()
            && !self.service_cidrs
    }
}

/// What a slice serves.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Owner {
    Service(ServiceName),
    Import(ServiceName),
}

// === impl Owner ===

impl Owner {
    /// A slice that is labelled for a Service serves that one, whatever else it is labelled for.
    fn of(slice: &EndpointSlice) -> Option<Self> {
        let imported = || {
            slice
                .imported
                .as_ref()
                .map(|imported| Self::Import(imported.service.clone()))
        };
        slice.service.clone().map(Self::Service).or_else(imported)
    }
}

/// Everything that is known of the cluster.
#[derive(Debug, Default)]
pub struct World {
    services: BTreeMap<ServiceName, Box<Service>>,
    /// Slices by the Service that they serve, so that one Service's slices lie together.
    slices: BTreeMap<ServiceName, Vec<EndpointSlice>>,
    /// ServiceImports, and the slices of other clusters by the import that they serve.
    imports: BTreeMap<ServiceName, ServiceImport>,
    imported_slices: BTreeMap<ServiceName, Vec<EndpointSlice>>,
    /// What a slice is filed under. Slices of nothing are not kept.
    slice_owner: BTreeMap<EndpointSliceName, Owner>,
    nodes: BTreeMap<Arc<str>, Node>,
    namespaces: BTreeMap<Arc<str>, Namespace>,
    pods: BTreeMap<PodName, Pod>,
    service_cidrs: BTreeMap<Arc<str>, ServiceCidr>,
}

// === impl World ===

impl World {
    /// Takes one event in and notes in `delta` what it changed.
    pub fn apply(&mut self, event: Event, delta: &mut Delta) {
        match event {
            Event::Apply(object) => self.insert(object, delta),
            Event::Delete(key) => self.remove(&key, delta),
        }
    }

    fn insert(&mut self, object: Object, delta: &mut Delta) {
        match object {
            Object::Service(service) => {
                let name = service.name.clone();
                if replace(&mut self.services, &name, service) {
                    delta.services.insert(name);
                }
            }
            Object::EndpointSlice(slice) => self.insert_slice(slice, delta),
            Object::Node(node) => {
                let name = node.name.clone();
                if replace(&mut self.nodes, &name, *node) {
                    delta.nodes.insert(name);
                }
            }
            Object::Namespace(namespace) => {
                let name = namespace.name.clone();
                if replace(&mut self.namespaces, &name, namespace) {
                    delta.namespaces.insert(name);
                }
            }
            Object::Pod(pod) => {
                let name = pod.name.clone();
                if replace(&mut self.pods, &name, *pod) {
                    delta.pods.insert(name);
                }
            }
            Object::ServiceImport(import) => {
                let name = import.name.clone();
                if replace(&mut self.imports, &name, *import) {
                    delta.imports.insert(name);
                }
            }
            Object::ServiceCidr(cidr) => {
                let name = cidr.name.clone();
                delta.service_cidrs |= replace(&mut self.service_cidrs, &name, cidr);
            }
        }
    }

    /// A slice whose label now names another Service leaves the old one (kube-proxy leaves it in both).
    fn insert_slice(&mut self, slice: EndpointSlice, delta: &mut Delta) {
        let owner = self.slice_owner.get(&slice.name).cloned();
        let new = Owner::of(&slice);
        if owner != new {
            self.remove_slice(&slice.name, delta);
        }
        let Some(new) = new else { return };
        let service = match new.clone() {
            Owner::Service(service) => service,
            Owner::Import(import) => return self.insert_imported(import, new, slice, delta),
        };
        let filed = self.slices.entry(service.clone()).or_default();
        match filed.iter_mut().find(|known| known.name == slice.name) {
            Some(known) if *known == slice => return,
            Some(known) => {
                note_trigger(delta, &service, slice.last_change_trigger);
                *known = slice;
            }
            None => {
                note_trigger(delta, &service, slice.last_change_trigger);
                self.slice_owner.insert(slice.name.clone(), new);
                // Most Services have one slice; a list that grows by itself would begin with four.
                filed.reserve_exact(1);
                filed.push(slice);
            }
        }
        delta.services.insert(service);
    }

    fn insert_imported(&mut self, import: ServiceName, owner: Owner, slice: EndpointSlice, delta: &mut Delta) {
        let filed = self.imported_slices.entry(import.clone()).or_default();
        match filed.iter_mut().find(|known| known.name == slice.name) {
            Some(known) if *known == slice => return,
            Some(known) => *known = slice,
            None => {
                self.slice_owner.insert(slice.name.clone(), owner);
                filed.push(slice);
            }
        }
        delta.imports.insert(import);
    }

    fn remove_slice(&mut self, name: &EndpointSliceName, delta: &mut Delta) {
        let service = match self.slice_owner.remove(name) {
            None => return,
            Some(Owner::Service(service)) => service,
            Some(Owner::Import(import)) => {
                if let Some(filed) = self.imported_slices.get_mut(&import) {
                    filed.retain(|slice| slice.name != *name);
                    if filed.is_empty() {
                        self.imported_slices.remove(&import);
                    }
                }
                delta.imports.insert(import);
                return;
            }
        };
        if let Some(filed) = self.slices.get_mut(&service) {
            filed.retain(|slice| slice.name != *name);
            if filed.is_empty() {
                self.slices.remove(&service);
            }
        }
        delta.services.insert(service);
    }

    fn remove(&mut self, key: &ObjectKey, delta: &mut Delta) {
        match key {
            ObjectKey::Service(name) => {
                if self.services.remove(name).is_some() {
                    delta.services.insert(name.clone());
                }
            }
            ObjectKey::EndpointSlice(name) => self.remove_slice(name, delta),
            ObjectKey::Node(name) => {
                if self.nodes.remove(name).is_some() {
                    delta.nodes.insert(name.clone());
                }
            }
            ObjectKey::Namespace(name) => {
                if self.namespaces.remove(name).is_some() {
                    delta.namespaces.insert(name.clone());
                }
            }
            ObjectKey::Pod(name) => {
                if self.pods.remove(name).is_some() {
                    delta.pods.insert(name.clone());
                }
            }
            ObjectKey::ServiceImport(name) => {
                if self.imports.remove(name).is_some() {
                    delta.imports.insert(name.clone());
                }
            }
            ObjectKey::ServiceCidr(name) => delta.service_cidrs |= self.service_cidrs.remove(name).is_some(),
        }
    }

    /// The Service of that name with its slices; `None` when there is no such Service (its slices may be there).
    pub fn service(&self, name: &ServiceName) -> Option<ServiceView<'_>> {
        let service = self.services.get(name)?;
        Some(ServiceView {
            service,
            slices: self.slices_of(name),
        })
    }

    /// Every Service with its slices, in order of name.
    pub fn services(&self) -> impl Iterator<Item = ServiceView<'_>> {
        self.services.values().map(|service| ServiceView {
            service,
            slices: self.slices_of(&service.name),
        })
    }

    /// Every Service of a namespace with its slices, in order of name.
    pub fn services_in(&self, namespace: &str) -> impl Iterator<Item = ServiceView<'_>> {
        let first = ServiceName::new(namespace, "");
        let within = self.services.range(first.clone()..);
        let within = within.take_while(move |(name, _)| name.namespace == first.namespace);
        within.map(|(name, service)| ServiceView {
            service,
            slices: self.slices_of(name),
        })
    }

    /// The slices that serve a Service, in order of arrival.
    pub fn slices_of(&self, name: &ServiceName) -> &[EndpointSlice] {
        self.slices.get(name).map_or(&[], Vec::as_slice)
    }

    /// The ServiceImport of that name with the slices of all clusters.
    pub fn import(&self, name: &ServiceName) -> Option<ImportView<'_>> {
        let import = self.imports.get(name)?;
        Some(ImportView {
            import,
            slices: self.imported_slices.get(name).map_or(&[], Vec::as_slice),
        })
    }

    /// Every ServiceImport, in order of name.
    pub fn imports(&self) -> impl Iterator<Item = &ServiceImport> {
        self.imports.values()
    }

    /// The Node of that name.
    pub fn node(&self, name: &str) -> Option<&Node> {
        self.nodes.get(name)
    }

    /// Every Node, in order of name.
    pub fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.nodes.values()
    }

    /// The Namespace of that name.
    pub fn namespace(&self, name: &str) -> Option<&Namespace> {
        self.namespaces.get(name)
    }

    /// Every Namespace, in order of name.
    pub fn namespaces(&self) -> impl Iterator<Item = &Namespace> {
        self.namespaces.values()
    }

    /// The Pod of that name.
    pub fn pod(&self, name: &PodName) -> Option<&Pod> {
        self.pods.get(name)
    }

    /// Every Pod, in order of name.
    pub fn pods(&self) -> impl Iterator<Item = &Pod> {
        self.pods.values()
    }

    /// Every ServiceCIDR, in order of name.
    pub fn service_cidrs(&self) -> impl Iterator<Item = &ServiceCidr> {
        self.service_cidrs.values()
    }

    /// Every object, so that another World can be built from them: Services first.
    pub fn objects(&self) -> impl Iterator<Item = Object> + '_ {
        let services = self.services.values().cloned().map(Object::Service);
        let slices = self.slices.values().chain(self.imported_slices.values());
        let slices = slices.flatten().cloned().map(Object::EndpointSlice);
        let imports = self
            .imports
            .values()
            .cloned()
            .map(|o| Object::ServiceImport(Box::new(o)));
        let nodes = self.nodes.values().cloned().map(|o| Object::Node(Box::new(o)));
        let namespaces = self.namespaces.values().cloned().map(Object::Namespace);
        let pods = self.pods.values().cloned().map(|o| Object::Pod(Box::new(o)));
        let cidrs = self.service_cidrs.values().cloned().map(Object::ServiceCidr);
        services
            .chain(imports)
            .chain(slices)
            .chain(nodes)
            .chain(namespaces)
            .chain(pods)
            .chain(cidrs)
    }

    /// How many Services and how many slices are known.
    pub fn counts(&self) -> (usize, usize) {
        (self.services.len(), self.slice_owner.len())
    }
}

/// Stores `value` and says whether that changed anything.
fn replace<K: Ord + Clone, V: PartialEq>(map: &mut BTreeMap<K, V>, key: &K, value: V) -> bool {
    match map.get_mut(key) {
        Some(known) if *known == value => false,
        Some(known) => {
            *known = value;
            true
        }
        None => {
            map.insert(key.clone(), value);
            true
        }
    }
}

fn note_trigger(delta: &mut Delta, service: &ServiceName, trigger: Option<i64>) {
    if let Some(time) = trigger {
        let earliest = delta.triggers.entry(service.clone()).or_insert(time);
        *earliest = time.min(*earliest);
    }
}

/// A Service and the slices that serve it.
#[derive(Clone, Copy, Debug)]
pub struct ServiceView<'a> {
    /// The Service.
    pub service: &'a Service,
    /// Its slices, of both families.
    pub slices: &'a [EndpointSlice],
}

/// A ServiceImport and the slices that serve it.
#[derive(Clone, Copy, Debug)]
pub struct ImportView<'a> {
    /// The ServiceImport.
    pub import: &'a ServiceImport,
    /// Its slices, of all clusters and both families.
    pub slices: &'a [EndpointSlice],
}

/// An endpoint behind one port of a Service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortEndpoint<'a> {
    /// Where a connection goes: the endpoint's address and the slice's port.
    pub address: SocketAddr,
    /// The endpoint.
    pub endpoint: &'a Endpoint,
}

// === impl ServiceView ===

impl<'a> ServiceView<'a> {
    /// The endpoints of one port in one family, merged over all slices by port name and protocol, sorted by address.
    ///
    /// While a pod is replaced an address may stand in two slices; the ready one wins, then the serving one.
    pub fn endpoints(&self, port: &ServicePort, family: Family) -> Vec<PortEndpoint<'a>> {
        let count = self.slices.iter().map(|slice| slice.endpoints.len()).sum();
        let mut found: Vec<PortEndpoint<'a>> = Vec::with_capacity(count);
        for slice in self.slices.iter().filter(|slice| slice.family == family) {
            for slice_port in &slice.ports {
                let Some(number) = slice_port.port else { continue };
                if slice_port.name != port.name || slice_port.protocol != port.protocol {
                    continue;
                }
                found.extend(slice.endpoints.iter().map(|endpoint| PortEndpoint {
                    address: SocketAddr::new(endpoint.address, number),
                    endpoint,
                }));
            }
        }
        found.sort_by(|a, b| {
            let worth = |e: &Endpoint| (e.conditions.ready, e.conditions.serving, e.node_name.is_some());
            a.address
                .cmp(&b.address)
                .then_with(|| worth(b.endpoint).cmp(&worth(a.endpoint)))
        });
        found.dedup_by(|later, first| later.address == first.address);
        found
    }
}

#[cfg(test)]
mod tests;
