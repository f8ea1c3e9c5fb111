//! The table of names: what readers see, and how one changed Service gets into it.
//!
//! The maps are persistent: a change copies the path to what it touches and shares the rest, so its cost does not
//! depend on how many Services there are. A reader holds one [`Snapshot`] and sees every Service whole.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use arc_swap::ArcSwap;
use portolan_model::{Delta, Pod, PodName, ServiceName, World};
use rpds::HashTrieMapSync;

use super::build::{ServiceNames, service_key};
use super::config::{Naming, ZoneConfig};
use super::reverse::{Addresses, Pointers};

type Map<K, V> = HashTrieMapSync<K, V, foldhash::fast::RandomState>;

/// Everything that can be answered at one moment.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// What was configured.
    pub config: Arc<ZoneConfig>,
    /// Whether every source has been read once. Until then no name of ours may be answered or forwarded.
    pub synced: bool,
    /// Whether the source is lost, so that answers may be out of date. They are given nevertheless, and say so.
    pub stale: bool,
    /// The serial of every zone.
    pub serial: u32,
    services: Map<Arc<[u8]>, Arc<ServiceNames>>,
    /// ServiceImports, by the same kind of key.
    imports: Map<Arc<[u8]>, Arc<ServiceNames>>,
    namespaces: Map<Box<[u8]>, Presence>,
    reverse: Addresses,
    /// Who has an address, for `pods verified` and for completion.
    pods: Map<IpAddr, Arc<[Resident]>>,
}

/// A pod that has an address.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Resident {
    name: PodName,
    /// The address is the node's: whoever asks from it may be any process there.
    host_network: bool,
}

/// Why a namespace exists.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Presence {
    /// There is a Namespace object.
    declared: bool,
    /// Services in it. Without a watch on Namespaces they are all there is to go by.
    services: u32,
}

/// What one call of [`Zone::apply`] did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Services whose names were built.
    pub built: usize,
    /// Services whose answers changed.
    pub changed: usize,
}

/// The writer's side: follows the World and publishes Snapshots.
#[derive(Debug)]
pub struct Zone {
    work: Snapshot,
    published: Arc<ArcSwap<Snapshot>>,
    /// What `work.pods` holds, so that a pod that is gone can be taken out.
    pods: std::collections::HashMap<PodName, Vec<IpAddr>>,
}

// === impl Snapshot ===

impl Snapshot {
    fn new(config: ZoneConfig, serial: u32) -> Self {
        Self {
            config: Arc::new(config),
            synced: false,
            stale: false,
            serial,
            services: Map::default(),
            imports: Map::default(),
            namespaces: Map::default(),
            reverse: Addresses::default(),
            pods: Map::default(),
        }
    }

    /// The names of a Service, given its labels `service.namespace` in lower case and wire form.
    pub fn service(&self, key: &[u8]) -> Option<&ServiceNames> {
        self.services.get(key).map(|names| &**names)
    }

    /// The names of a ServiceImport, given its labels in the same form.
    pub fn import(&self, key: &[u8]) -> Option<&ServiceNames> {
        self.imports.get(key).map(|names| &**names)
    }

    /// Whether a namespace exists, given its label in lower case.
    pub fn has_namespace(&self, label: &[u8]) -> bool {
        self.namespaces.contains_key(label)
    }

    /// The names of an address.
    pub fn pointers(&self, ip: IpAddr) -> Pointers<'_> {
        Pointers::new(self, &self.reverse, ip)
    }

    /// Whether a pod of a namespace, given by its label in lower case, has an address.
    pub fn has_pod(&self, ip: IpAddr, namespace: &[u8]) -> bool {
        let pods = self.pods.get(&ip).map_or(&[][..], |list| list);
        pods.iter()
            .any(|pod| pod.name.namespace.as_bytes().eq_ignore_ascii_case(namespace))
    }

    /// The namespace of the one pod that has an address to itself.
    pub fn namespace_of(&self, ip: IpAddr) -> Option<&str> {
        match self.pods.get(&ip.to_canonical()).map(|list| &**list) {
            Some([pod]) if !pod.host_network => Some(&pod.name.namespace),
            _ => None,
        }
    }

    /// The names of every Service.
    pub fn services(&self) -> impl Iterator<Item = &ServiceNames> {
        self.services.values().map(|names| &**names)
    }

    /// The names of every ServiceImport.
    pub fn imports(&self) -> impl Iterator<Item = &ServiceNames> {
        self.imports.values().map(|names| &**names)
    }

    /// Every address that has names.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.reverse.iter()
    }

    /// Every address of a pod with the namespaces of the pods that have it.
    pub fn pod_addresses(&self) -> impl Iterator<Item = (IpAddr, BTreeSet<&str>)> {
        self.pods.iter().map(|(ip, list)| {
            let namespaces = list.iter().map(|pod| &*pod.name.namespace).collect();
            (*ip, namespaces)
        })
    }

    /// How many Services and addresses have names.
    pub fn counts(&self) -> (usize, usize) {
        (self.services.size(), self.reverse.len())
    }

    /// Puts the names of one Service in the place of those it had. Says whether an answer changed.
    fn replace(&mut self, name: &ServiceName, names: Option<ServiceNames>) -> bool {
        let Some(key) = names
            .as_ref()
            .map(|names| names.key.clone())
            .or_else(|| service_key(name))
        else {
            return false;
        };
        let old = self.services.get(&key).cloned();
        if old.as_deref() == names.as_ref() {
            return false;
        }
        let before = old.as_ref().map(|old| old.addresses()).unwrap_or_default();
        let after = names.as_ref().map(ServiceNames::addresses).unwrap_or_default();
        // The key that is in the table already is shared, so that an address costs no second copy of it.
        let shared = old.as_ref().map_or_else(|| key.clone(), |old| old.key.clone());
        for ip in before.iter().filter(|ip| after.binary_search(ip).is_err()) {
            self.reverse.remove(*ip, &shared);
        }
        for ip in after.iter().filter(|ip| before.binary_search(ip).is_err()) {
            self.reverse.insert(*ip, &shared);
        }
        let count = i64::from(names.is_some()) - i64::from(old.is_some());
        self.presence(name.namespace.as_bytes(), |presence| {
            presence.services = presence.services.saturating_add_signed(count as i32);
        });
        match names {
            Some(mut names) => {
                names.key = shared.clone();
                self.services.insert_mut(shared, Arc::new(names));
            }
            None => {
                self.services.remove_mut(&key);
            }
        }
        true
    }

    /// The same for a ServiceImport, whose addresses have no names.
    fn replace_import(&mut self, name: &ServiceName, names: Option<ServiceNames>) -> bool {
        let Some(key) = service_key(name) else { return false };
        if self.import(&key) == names.as_ref() {
            return false;
        }
        match names {
            Some(names) => self.imports.insert_mut(key, Arc::new(names)),
            None => {
                self.imports.remove_mut(&key);
            }
        }
        true
    }

    /// Changes why a namespace exists; says whether that changed.
    fn presence(&mut self, namespace: &[u8], change: impl FnOnce(&mut Presence)) -> bool {
        let label = namespace.to_ascii_lowercase();
        let old = self.namespaces.get(&*label).copied().unwrap_or_default();
        let mut new = old;
        change(&mut new);
        if new == old {
            return false;
        }
        if new == Presence::default() {
            self.namespaces.remove_mut(&*label);
        } else {
            self.namespaces.insert_mut(label.into(), new);
        }
        (new == Presence::default()) != (old == Presence::default())
    }

    fn house(&mut self, ip: IpAddr, change: impl FnOnce(&mut Vec<Resident>)) {
        let mut list = self.pods.get(&ip).map_or_else(Vec::new, |list| list.to_vec());
        change(&mut list);
        if list.is_empty() {
            self.pods.remove_mut(&ip);
        } else {
            self.pods.insert_mut(ip, list.into());
        }
    }
}

// === impl Zone ===

impl Zone {
    /// An empty zone that nothing may be answered from yet. `now` is in seconds since 1970 and starts the serial.
    pub fn new(config: ZoneConfig, now: u32) -> Self {
        let work = Snapshot::new(config, now);
        Self {
            published: Arc::new(ArcSwap::from_pointee(work.clone())),
            work,
            pods: std::collections::HashMap::new(),
        }
    }

    /// Which objects have names.
    pub fn naming(&self) -> &Naming {
        &self.work.config.naming
    }

    /// Where readers find the current Snapshot.
    pub fn reader(&self) -> Arc<ArcSwap<Snapshot>> {
        self.published.clone()
    }

    /// Takes in what changed and publishes it in one step. `now` is in seconds since 1970.
    pub fn apply(&mut self, world: &World, delta: &Delta, now: u32) -> Applied {
        let mut applied = Applied::default();
        let mut moved = false;
        let config = self.work.config.clone();
        let naming = &config.naming;
        for name in &delta.namespaces {
            let object = world.namespace(name);
            let declared = object.is_some() && naming.exposes(name, object);
            moved |= self
                .work
                .presence(name.as_bytes(), |presence| presence.declared = declared);
            // With a selector the labels of a namespace decide about all Services in it.
            if !naming.namespace_labels.is_empty() {
                for view in world
                    .services_in(name)
                    .filter(|view| !delta.services.contains(&view.service.name))
                {
                    self.rebuild(world, &view.service.name, &mut applied);
                }
                for import in world.imports().filter(|import| import.name.namespace == *name) {
                    self.rebuild_import(world, &import.name, &mut applied);
                }
            }
        }
        for name in &delta.services {
            self.rebuild(world, name, &mut applied);
        }
        for name in &delta.imports {
            self.rebuild_import(world, name, &mut applied);
        }
        if config.needs_pods() {
            for name in &delta.pods {
                moved |= self.replace_pod(name, world.pod(name));
            }
        }
        if moved || applied.changed > 0 {
            // A serial never goes back, and two changes within one second differ.
            self.work.serial = now.max(self.work.serial.wrapping_add(1));
            self.publish();
        }
        applied
    }

    fn rebuild(&mut self, world: &World, name: &ServiceName, applied: &mut Applied) {
        let naming = &self.work.config.naming;
        let exposed = naming.exposes(&name.namespace, world.namespace(&name.namespace));
        let view = world.service(name).filter(|_| exposed);
        let names = view.and_then(|view| ServiceNames::build(&view, naming));
        applied.built += 1;
        applied.changed += usize::from(self.work.replace(name, names));
    }

    fn rebuild_import(&mut self, world: &World, name: &ServiceName, applied: &mut Applied) {
        let naming = &self.work.config.naming;
        let exposed = naming.exposes(&name.namespace, world.namespace(&name.namespace));
        let view = world.import(name).filter(|_| exposed);
        let names = view.and_then(|view| ServiceNames::build_import(&view, naming));
        applied.built += 1;
        applied.changed += usize::from(self.work.replace_import(name, names));
    }

    fn replace_pod(&mut self, name: &PodName, pod: Option<&Pod>) -> bool {
        let new = match pod {
            Some(pod) if !pod.finished => pod.ips.clone(),
            _ => Vec::new(),
        };
        let old = self.pods.remove(name).unwrap_or_default();
        for ip in old.iter().filter(|ip| !new.contains(ip)) {
            self.work.house(*ip, |list| list.retain(|known| known.name != *name));
        }
        let host_network = pod.is_some_and(|pod| pod.host_network);
        for ip in new.iter().filter(|ip| !old.contains(ip)) {
            let resident = Resident {
                name: name.clone(),
                host_network,
            };
            self.work.house(*ip, |list| list.push(resident));
        }
        let moved = old != new;
        if !new.is_empty() {
            self.pods.insert(name.clone(), new);
        }
        moved
    }

    /// Puts another configuration in force. Only names that it changes are built anew. `now` is in seconds since 1970.
    pub fn configure(&mut self, config: ZoneConfig, world: &World, now: u32) -> Applied {
        let old = std::mem::replace(&mut self.work.config, Arc::new(config));
        let config = self.work.config.clone();
        let mut applied = Applied::default();
        if config.naming != old.naming {
            for namespace in world.namespaces() {
                let declared = config.naming.exposes(&namespace.name, Some(namespace));
                self.work
                    .presence(namespace.name.as_bytes(), |presence| presence.declared = declared);
            }
            for view in world.services() {
                self.rebuild(world, &view.service.name, &mut applied);
            }
            for import in world.imports() {
                self.rebuild_import(world, &import.name, &mut applied);
            }
        }
        if config.needs_pods() && !old.needs_pods() {
            for pod in world.pods() {
                self.replace_pod(&pod.name, Some(pod));
            }
        }
        self.work.serial = now.max(self.work.serial.wrapping_add(1));
        self.publish();
        applied
    }

    /// Says that every source has been read: from now on names are answered.
    pub fn set_synced(&mut self) {
        if !self.work.synced {
            self.work.synced = true;
            self.publish();
        }
    }

    /// Says whether the source is lost.
    pub fn set_stale(&mut self, stale: bool) {
        if self.work.stale != stale {
            self.work.stale = stale;
            self.publish();
        }
    }

    fn publish(&self) {
        self.published.store(Arc::new(self.work.clone()));
    }
}
