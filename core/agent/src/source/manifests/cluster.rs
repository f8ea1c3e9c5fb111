//! Cluster: the objects that are in force, and what follows from them.
//!
//! Takes candidates from files, refuses what the API server would refuse, allocates, derives EndpointSlices and says as
//! [`Event`]s what changed. Work follows the change: a changed Pod touches the Services that select it, found by index.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::{apps::v1 as apps, core::v1 as core};
use portolan_model::node::ZONE_LABEL;
use portolan_model::parse;
use portolan_model::{Event, Fault, Interner, Namespace, NamespacedName, Object, ObjectKey, ServiceCidr, ServiceName};

use super::allocate::{Allocator, Claims, FieldError};
use super::decode::{Id, Kind, Manifest};
use super::files::{Candidate, Changes};
use super::slices::{self, PodView};
use super::state::StateFile;
use super::validate::validate;
use crate::source::wants::{HEADLESS_LABEL, SliceSelection};
use crate::source::{ManifestError, Wants};

/// Label that a StatefulSet puts on its pods.
const STATEFUL_POD_LABEL: &str = "statefulset.kubernetes.io/pod-name";
/// Label of an Endpoints object that is not to be mirrored.
const SKIP_MIRROR_LABEL: &str = "endpointslice.kubernetes.io/skip-mirror";
/// Annotation of an Endpoints object that is only somebody's lock.
const LEADER_ANNOTATION: &str = "control-plane.alpha.kubernetes.io/leader";

/// A label in a namespace: `(namespace, key, value)`.
type Labelled = (String, String, String);

/// What an update led to.
#[derive(Debug, Default)]
pub(crate) struct Output {
    pub(crate) events: Vec<Event>,
    pub(crate) errors: Vec<ManifestError>,
}

/// The objects in force.
pub(crate) struct Cluster {
    wants: Wants,
    state: StateFile,
    state_stamp: Option<(std::time::SystemTime, u64)>,
    allocator: Allocator,
    interner: Interner,
    objects: BTreeMap<Id, Arc<Manifest>>,
    /// What the files say of objects that are refused; an older version may be in `objects`.
    refused: BTreeMap<Id, (Candidate, Vec<FieldError>)>,
    pods_by_label: BTreeMap<Labelled, BTreeSet<String>>,
    /// Services by one pair of their selector.
    services_by_label: BTreeMap<Labelled, BTreeSet<String>>,
    /// Derived slices that were handed out, by Service.
    derived: BTreeMap<ServiceName, BTreeSet<NamespacedName>>,
    /// How many objects live in a namespace.
    inhabitants: BTreeMap<String, usize>,
    started: bool,
}

// === impl Cluster ===

impl Cluster {
    pub(crate) fn new(wants: Wants, state: StateFile, ranges: Vec<ipnet::IpNet>) -> Self {
        Self {
            wants,
            state,
            state_stamp: None,
            allocator: Allocator::new(ranges),
            interner: Interner::default(),
            objects: BTreeMap::new(),
            refused: BTreeMap::new(),
            pods_by_label: BTreeMap::new(),
            services_by_label: BTreeMap::new(),
            derived: BTreeMap::new(),
            inhabitants: BTreeMap::new(),
            started: false,
        }
    }

    /// Takes changes in. `all_good` tells whether every file could be read, so that an address whose Service is not
    /// there may be given away.
    pub(crate) fn update(&mut self, changes: Changes, all_good: bool) -> Output {
        let mut round = Round::new(changes.errors);
        if !self.started {
            self.started = true;
            self.publish_builtin(&mut round);
        }
        let (services, others): (Vec<_>, Vec<_>) = changes
            .objects
            .into_iter()
            .partition(|(id, _)| id.kind == Kind::Service);
        for (id, candidate) in others {
            self.take_other(id, candidate, &mut round);
        }
        self.take_services(services, all_good, &mut round);
        for name in std::mem::take(&mut round.dirty) {
            self.derive(&name, &mut round);
        }
        self.interner.shrink();
        round.output
    }

    /// What exists in a cluster before anybody creates anything.
    fn publish_builtin(&mut self, round: &mut Round) {
        for namespace in ["default", "kube-system"] {
            self.count_namespace(namespace, true, round);
        }
        self.publish_ranges(round);
    }

    /// The ranges as the ServiceCIDR that the API server makes of its flags, unless a manifest says otherwise.
    fn publish_ranges(&mut self, round: &mut Round) {
        let cidr = Object::ServiceCidr(ServiceCidr {
            name: "kubernetes".into(),
            cidrs: self.allocator.ranges().to_vec(),
        });
        if self.wants.service_cidrs {
            round.output.events.push(Event::Apply(cidr));
        }
    }

    // --- objects that need no allocation ---

    fn take_other(&mut self, id: Id, candidate: Option<Candidate>, round: &mut Round) {
        let Some(candidate) = candidate else {
            self.refused.remove(&id);
            return self.remove(&id, round);
        };
        let mut errors = validate(&candidate.manifest);
        let object = self.parse(&candidate.manifest, &mut errors);
        if !errors.is_empty() {
            return self.refuse(id, candidate, errors, round);
        }
        self.accept(&id, candidate.manifest, object, round);
    }

    /// The model's view of an object; `None` for kinds that only other objects follow from.
    fn parse(&mut self, manifest: &Manifest, errors: &mut Vec<FieldError>) -> Option<Object> {
        let mut faults = Vec::new();
        let object = match manifest {
            Manifest::Namespace(o) => parse::parse_namespace(o, &mut faults).map(Object::Namespace),
            Manifest::Node(o) => parse::parse_node(o, &mut faults).map(|node| Object::Node(Box::new(node))),
            Manifest::ServiceCidr(o) => parse::parse_service_cidr(o, &mut faults).map(Object::ServiceCidr),
            Manifest::Pod(o) => {
                let pod = parse::parse_pod(o, &mut self.interner, &mut faults);
                pod.map(|pod| Object::Pod(Box::new(pod)))
            }
            Manifest::Service(o) => parse::parse_service(o, &mut faults).map(|o| Object::Service(Box::new(o))),
            Manifest::EndpointSlice(o) => {
                parse::parse_endpoint_slice(o, &mut self.interner, &mut faults).map(Object::EndpointSlice)
            }
            Manifest::StatefulSet(_) | Manifest::Endpoints(_) => None,
        };
        for Fault { field, cause, .. } in faults {
            // Validation has found it already, perhaps in other words.
            if !errors.iter().any(|(known, _)| *known == field) {
                errors.push((field, cause));
            }
        }
        object
    }

    fn refuse(&mut self, id: Id, candidate: Candidate, errors: Vec<FieldError>, round: &mut Round) {
        let known = self.refused.get(&id).is_some_and(|(_, known)| *known == errors);
        if !known {
            let stale = self.objects.contains_key(&id);
            for (field, cause) in &errors {
                round.output.errors.push(ManifestError {
                    file: candidate.file.to_string(),
                    document: Some(candidate.document),
                    object: Some(id.object_ref()),
                    field: Some(field.clone()),
                    cause: cause.clone(),
                    stale,
                });
            }
        }
        self.refused.insert(id, (candidate, errors));
    }

    fn accept(&mut self, id: &Id, manifest: Arc<Manifest>, object: Option<Object>, round: &mut Round) {
        if self.refused.remove(id).is_some() {
            tracing::info!(object = %id, "is in force again");
        }
        let old = self.objects.insert(id.clone(), manifest.clone());
        if old.is_none() {
            self.count_namespace(&id.namespace, true, round);
        }
        self.touch(id, old.as_deref(), Some(&manifest), round);
        if let Some(object) = object {
            let admitted = self.wants.admits(&object, |label| manifest.has_label(label));
            round.output.events.push(match admitted {
                true => Event::Apply(object),
                false => Event::Delete(object.key()),
            });
        }
    }

    fn remove(&mut self, id: &Id, round: &mut Round) {
        let Some(old) = self.objects.remove(id) else { return };
        self.touch(id, Some(&old), None, round);
        let name = || NamespacedName::new(&*id.namespace, &*id.name);
        let key = match id.kind {
            Kind::Namespace => ObjectKey::Namespace(id.name.as_str().into()),
            Kind::Node => ObjectKey::Node(id.name.as_str().into()),
            Kind::ServiceCidr => ObjectKey::ServiceCidr(id.name.as_str().into()),
            Kind::Pod => ObjectKey::Pod(name()),
            Kind::Service => ObjectKey::Service(name()),
            Kind::EndpointSlice => ObjectKey::EndpointSlice(name()),
            Kind::StatefulSet | Kind::Endpoints => return self.count_namespace(&id.namespace, false, round),
        };
        round.output.events.push(Event::Delete(key));
        match id.kind {
            Kind::Namespace if self.inhabitants.contains_key(&id.name) => self.publish_namespace(&id.name, round),
            Kind::ServiceCidr if id.name == "kubernetes" => self.publish_ranges(round),
            _ => {}
        }
        self.count_namespace(&id.namespace, false, round);
    }

    /// A namespace exists when a manifest says so, or when something lives in it: nobody has to write it down.
    fn count_namespace(&mut self, namespace: &str, more: bool, round: &mut Round) {
        if namespace.is_empty() {
            return;
        }
        let count = self.inhabitants.entry(namespace.to_string()).or_default();
        *count = if more { *count + 1 } else { count.saturating_sub(1) };
        let (count, written) = (
            *count,
            self.objects.contains_key(&Id::new(Kind::Namespace, "", namespace)),
        );
        if count == 0 {
            self.inhabitants.remove(namespace);
            if !written && self.wants.namespaces {
                round
                    .output
                    .events
                    .push(Event::Delete(ObjectKey::Namespace(namespace.into())));
            }
        } else if more && count == 1 && !written {
            self.publish_namespace(namespace, round);
        }
    }

    fn publish_namespace(&self, namespace: &str, round: &mut Round) {
        if self.wants.namespaces {
            round.output.events.push(Event::Apply(Object::Namespace(Namespace {
                name: namespace.into(),
                labels: [("kubernetes.io/metadata.name".into(), namespace.into())].into(),
            })));
        }
    }

    // --- Services ---

    fn take_services(&mut self, services: Vec<(Id, Option<Candidate>)>, all_good: bool, round: &mut Round) {
        if services.is_empty() && self.state.stamp() == self.state_stamp {
            return;
        }
        let mut pending: BTreeMap<Id, Candidate> = BTreeMap::new();
        for (id, candidate) in services {
            match candidate {
                Some(candidate) => {
                    pending.insert(id, candidate);
                }
                None => {
                    self.refused.remove(&id);
                    self.remove(&id, round);
                }
            }
        }
        // What another Service stood in the way of may be possible now.
        for (id, (candidate, _)) in self.refused.iter().filter(|(id, _)| id.kind == Kind::Service) {
            pending.entry(id.clone()).or_insert_with(|| candidate.clone());
        }
        let state = std::mem::replace(&mut self.state, StateFile::nowhere());
        let locked = state.lock();
        let recorded = locked.load();
        if let Some(records) = &recorded {
            for name in self.allocator.adopt(records.clone()) {
                self.revisit(&name, &mut pending);
            }
        }
        if all_good {
            let objects = &self.objects;
            self.allocator.retain(|name| {
                let id = service_id(name);
                objects.contains_key(&id) || pending.contains_key(&id)
            });
        }
        self.take_pending(pending, round);
        if recorded.unwrap_or_default() != *self.allocator.records() {
            locked.store(self.allocator.records());
        }
        drop(locked);
        self.state_stamp = state.stamp();
        self.state = state;
    }

    /// Another daemon gave this Service other addresses: it is looked at again.
    fn revisit(&self, name: &str, pending: &mut BTreeMap<Id, Candidate>) {
        let id = service_id(name);
        if let Some(manifest) = self.objects.get(&id) {
            pending.entry(id).or_insert_with(|| Candidate {
                file: "".into(),
                document: 0,
                manifest: manifest.clone(),
            });
        }
    }

    /// Services that name addresses go first, so that automatic allocation never takes those away from them.
    fn take_pending(&mut self, pending: BTreeMap<Id, Candidate>, round: &mut Round) {
        let mut claims = Claims::default();
        let mut ordered = Vec::with_capacity(pending.len());
        for (id, candidate) in pending {
            let Manifest::Service(service) = &*candidate.manifest else {
                continue;
            };
            claims.add(service);
            let service = service.clone();
            ordered.push((!Claims::named_by(&service), id, candidate, service));
        }
        ordered.sort_by(|a, b| (a.0, &a.1).cmp(&(b.0, &b.1)));
        for (_, id, candidate, mut service) in ordered {
            let mut errors = validate(&candidate.manifest);
            if errors.is_empty() {
                complete(&mut service);
                let key = format!("{}/{}", id.namespace, id.name);
                if let Err(refusals) = self.allocator.allocate(&key, &mut service, &claims) {
                    errors = refusals;
                }
            }
            let manifest = Manifest::Service(service);
            let object = match errors.is_empty() {
                true => self.parse(&manifest, &mut errors),
                false => None,
            };
            if errors.is_empty() {
                self.accept(&id, Arc::new(manifest), object, round);
            } else {
                self.refuse(id, candidate, errors, round);
            }
        }
    }

    // --- what follows from what ---

    /// Keeps the indexes and notes which Services' slices have to be derived anew.
    fn touch(&mut self, id: &Id, old: Option<&Manifest>, new: Option<&Manifest>, round: &mut Round) {
        let name = || NamespacedName::new(&*id.namespace, &*id.name);
        match id.kind {
            Kind::Service => {
                for (manifest, present) in [(old, false), (new, true)] {
                    if let Some(Manifest::Service(service)) = manifest
                        && let Some((key, value)) = selector(service).and_then(BTreeMap::first_key_value)
                    {
                        let labelled = (id.namespace.clone(), key.clone(), value.clone());
                        file_under(&mut self.services_by_label, labelled, &id.name, present);
                    }
                }
                round.dirty.insert(name());
            }
            Kind::Endpoints => {
                round.dirty.insert(name());
            }
            Kind::Pod => {
                for (manifest, present) in [(old, false), (new, true)] {
                    let Some(Manifest::Pod(pod)) = manifest else { continue };
                    for (key, value) in pod.metadata.labels.iter().flatten() {
                        let labelled = (id.namespace.clone(), key.clone(), value.clone());
                        if let Some(services) = self.services_by_label.get(&labelled) {
                            round.dirty.extend(
                                services
                                    .iter()
                                    .map(|service| NamespacedName::new(&*id.namespace, &**service)),
                            );
                        }
                        file_under(&mut self.pods_by_label, labelled, &id.name, present);
                    }
                }
            }
            Kind::StatefulSet => {
                for manifest in [old, new] {
                    if let Some(Manifest::StatefulSet(set)) = manifest
                        && let Some(service) = set.spec.as_ref().and_then(|spec| spec.service_name.as_deref())
                    {
                        round.dirty.insert(NamespacedName::new(&*id.namespace, service));
                    }
                }
            }
            Kind::Node => self.touch_zone(&id.name, old, new, round),
            Kind::Namespace | Kind::ServiceCidr | Kind::EndpointSlice => {}
        }
    }

    /// A Node that moves to another zone takes its pods with it. This walks every Pod, which is as rare as it is slow.
    fn touch_zone(&mut self, node: &str, old: Option<&Manifest>, new: Option<&Manifest>, round: &mut Round) {
        if zone_of(old) == zone_of(new) {
            return;
        }
        for (id, manifest) in &self.objects {
            let Manifest::Pod(pod) = &**manifest else { continue };
            if pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()) != Some(node) {
                continue;
            }
            for (key, value) in pod.metadata.labels.iter().flatten() {
                let labelled = (id.namespace.clone(), key.clone(), value.clone());
                let services = self.services_by_label.get(&labelled).into_iter().flatten();
                round
                    .dirty
                    .extend(services.map(|service| NamespacedName::new(&*id.namespace, &**service)));
            }
        }
    }

    /// Makes the slices of a Service and says what became of them.
    fn derive(&mut self, name: &ServiceName, round: &mut Round) {
        let slices = self.slices_of(name);
        let names: BTreeSet<NamespacedName> = slices.iter().map(|slice| slice.name.clone()).collect();
        let old = match names.is_empty() {
            true => self.derived.remove(name),
            false => self.derived.insert(name.clone(), names.clone()),
        };
        let events = &mut round.output.events;
        events.extend(
            slices
                .into_iter()
                .map(|slice| Event::Apply(Object::EndpointSlice(slice))),
        );
        let gone = old.into_iter().flatten().filter(|slice| !names.contains(slice));
        events.extend(gone.map(|slice| Event::Delete(ObjectKey::EndpointSlice(slice))));
    }

    fn slices_of(&mut self, name: &ServiceName) -> Vec<portolan_model::EndpointSlice> {
        let id = Id::new(Kind::Service, &name.namespace, &name.name);
        let Some(manifest) = self.objects.get(&id).cloned() else {
            return Vec::new();
        };
        let Manifest::Service(service) = &*manifest else {
            return Vec::new();
        };
        let spec = service.spec.as_ref();
        let headless =
            spec.and_then(|spec| spec.cluster_ip.as_deref()) == Some("None") || manifest.has_label(HEADLESS_LABEL);
        if headless && self.wants.slices == SliceSelection::Forwarded {
            return Vec::new();
        }
        if spec.and_then(|spec| spec.type_.as_deref()) == Some("ExternalName") {
            return Vec::new();
        }
        let mut interner = std::mem::take(&mut self.interner);
        let slices = match selector(service) {
            Some(selector) => {
                let pods = self
                    .selected(&name.namespace, selector)
                    .into_iter()
                    .map(|pod| self.view(pod));
                slices::from_pods(name, service, pods, &mut interner)
            }
            None => match self.endpoints(name) {
                Some(endpoints) => slices::from_endpoints(name, endpoints, &mut interner),
                None => Vec::new(),
            },
        };
        self.interner = interner;
        slices
    }

    fn endpoints(&self, name: &ServiceName) -> Option<&core::Endpoints> {
        let id = Id::new(Kind::Endpoints, &name.namespace, &name.name);
        let Manifest::Endpoints(endpoints) = &**self.objects.get(&id)? else {
            return None;
        };
        let label = endpoints
            .metadata
            .labels
            .as_ref()
            .and_then(|labels| labels.get(SKIP_MIRROR_LABEL));
        let annotations = endpoints.metadata.annotations.as_ref();
        let is_lock = annotations.is_some_and(|annotations| annotations.contains_key(LEADER_ANNOTATION));
        (label.map(String::as_str) != Some("true") && !is_lock).then_some(endpoints)
    }

    /// The pods that have every label of the selector, looked for among those with its rarest one.
    fn selected(&self, namespace: &str, selector: &BTreeMap<String, String>) -> Vec<&core::Pod> {
        let sets = selector.iter().map(|(key, value)| {
            let labelled = (namespace.to_string(), key.clone(), value.clone());
            self.pods_by_label.get(&labelled)
        });
        let Some(sets) = sets.collect::<Option<Vec<_>>>() else {
            return Vec::new();
        };
        let Some(rarest) = sets.iter().min_by_key(|set| set.len()) else {
            return Vec::new();
        };
        let names = rarest.iter().filter(|name| sets.iter().all(|set| set.contains(*name)));
        let pods = names.filter_map(
            |name| match &**self.objects.get(&Id::new(Kind::Pod, namespace, name))? {
                Manifest::Pod(pod) => Some(&**pod),
                _ => None,
            },
        );
        pods.collect()
    }

    fn view<'a>(&'a self, pod: &'a core::Pod) -> PodView<'a> {
        let spec = pod.spec.as_ref();
        let node = spec.and_then(|spec| spec.node_name.as_deref());
        let node = node.and_then(|node| self.objects.get(&Id::new(Kind::Node, "", node)));
        let zone = zone_of(node.map(|node| &**node));
        let filled = |text: Option<&'a String>| text.map(String::as_str).filter(|text| !text.is_empty());
        let hostname = filled(spec.and_then(|spec| spec.hostname.as_ref()));
        let subdomain = filled(spec.and_then(|spec| spec.subdomain.as_ref()));
        let hostname = match (hostname, subdomain) {
            (Some(hostname), Some(subdomain)) => Some((hostname, subdomain)),
            _ => self.governed(pod),
        };
        PodView { pod, zone, hostname }
    }

    /// Host name and subdomain that the pod's StatefulSet would have given it.
    fn governed<'a>(&'a self, pod: &'a core::Pod) -> Option<(&'a str, &'a str)> {
        let meta = &pod.metadata;
        let name = meta.name.as_deref()?;
        let (set_name, ordinal) = name.rsplit_once('-')?;
        if ordinal.is_empty() || !ordinal.bytes().all(|c| c.is_ascii_digit()) {
            return None;
        }
        let id = Id::new(Kind::StatefulSet, meta.namespace.as_deref()?, set_name);
        let Manifest::StatefulSet(set) = &**self.objects.get(&id)? else {
            return None;
        };
        let owner = meta
            .owner_references
            .iter()
            .flatten()
            .find(|owner| owner.controller == Some(true) || owner.kind == "StatefulSet");
        let owned = match owner {
            Some(owner) => owner.kind == "StatefulSet" && owner.name == set_name,
            None => is_adopted(set, pod, name),
        };
        let service = set
            .spec
            .as_ref()?
            .service_name
            .as_deref()
            .filter(|service| !service.is_empty())?;
        owned.then_some((name, service))
    }
}

/// One update under way.
#[derive(Default)]
struct Round {
    output: Output,
    /// Services whose slices have to be derived anew.
    dirty: BTreeSet<ServiceName>,
}

impl Round {
    fn new(errors: Vec<ManifestError>) -> Self {
        Self {
            output: Output {
                events: Vec::new(),
                errors,
            },
            dirty: BTreeSet::new(),
        }
    }
}

/// A pod without an owner belongs to the set of its name when it says so or matches the set's selector.
fn is_adopted(set: &apps::StatefulSet, pod: &core::Pod, name: &str) -> bool {
    let labels = pod.metadata.labels.as_ref();
    let label = |key: &str| labels.and_then(|labels| labels.get(key));
    if label(STATEFUL_POD_LABEL).is_some_and(|pod_name| pod_name == name) {
        return true;
    }
    let wanted = set.spec.as_ref().and_then(|spec| spec.selector.match_labels.as_ref());
    wanted.is_some_and(|wanted| !wanted.is_empty() && wanted.iter().all(|(key, value)| label(key) == Some(value)))
}

/// The zone that a Node's label names.
fn zone_of(node: Option<&Manifest>) -> Option<&str> {
    let Some(Manifest::Node(node)) = node else { return None };
    let zone = node.metadata.labels.as_ref()?.get(ZONE_LABEL)?;
    (!zone.is_empty()).then_some(zone)
}

fn service_id(name: &str) -> Id {
    let (namespace, name) = name.split_once('/').unwrap_or(("default", name));
    Id::new(Kind::Service, namespace, name)
}

fn selector(service: &core::Service) -> Option<&BTreeMap<String, String>> {
    let selector = service.spec.as_ref()?.selector.as_ref()?;
    (!selector.is_empty()).then_some(selector)
}

/// What the API server fills in before it allocates, as far as anything here depends on it.
fn complete(service: &mut core::Service) {
    let Some(spec) = service.spec.as_mut() else { return };
    if spec.type_.as_deref().unwrap_or_default().is_empty() {
        spec.type_ = Some("ClusterIP".into());
    }
    let one = spec.cluster_ip.take().filter(|text| !text.is_empty());
    let many = spec.cluster_ips.take().filter(|many| !many.is_empty());
    let many = many.or_else(|| one.map(|one| vec![one]));
    spec.cluster_ip = many.as_ref().and_then(|many| many.first().cloned());
    spec.cluster_ips = many;
    spec.ip_families = spec.ip_families.take().filter(|families| !families.is_empty());
    spec.ip_family_policy = spec.ip_family_policy.take().filter(|policy| !policy.is_empty());
}

fn file_under(index: &mut BTreeMap<Labelled, BTreeSet<String>>, labelled: Labelled, name: &str, present: bool) {
    if present {
        index.entry(labelled).or_default().insert(name.to_string());
    } else if let Some(names) = index.get_mut(&labelled) {
        names.remove(name);
        if names.is_empty() {
            index.remove(&labelled);
        }
    }
}
