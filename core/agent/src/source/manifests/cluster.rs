//! Cluster: the objects that are in force, and what follows from them.
//!
//! Takes candidates from files, refuses what the API server would refuse, allocates, derives EndpointSlices and says as
//! [`Event`]s what changed. Work follows the change: a changed Pod touches the Services that select it, found by index.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1 as core;
use portolan_model::parse;
use portolan_model::{Event, Fault, Interner, Namespace, NamespacedName, Object, ObjectKey, ServiceCidr, ServiceName};

use super::allocate::{Allocator, Claims, FieldError};
use super::decode::{Id, Kind, Manifest};
use super::files::{Candidate, Changes};
use super::state::StateFile;
use super::validate::validate;
use crate::source::{ManifestError, Wants};

mod derive;

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
    /// How many strings were left when unused ones were last forgotten.
    interned: usize,
    objects: BTreeMap<Id, Arc<Manifest>>,
    /// Services in force as they were written, before anything was allocated.
    written: BTreeMap<Id, Candidate>,
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
            interned: 0,
            objects: BTreeMap::new(),
            written: BTreeMap::new(),
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
        if self.interner.len() > 2 * self.interned + 1000 {
            self.interner.shrink();
            self.interned = self.interner.len();
        }
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
            Manifest::ServiceImport(o) => parse::parse_service_import(&o.metadata, &o.spec, &mut faults)
                .map(|import| Object::ServiceImport(Box::new(import))),
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
            let admitted = self.wants.admits(&object, |label| manifest.label(label));
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
            Kind::ServiceImport => ObjectKey::ServiceImport(name()),
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
                    self.written.remove(&id);
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
            // Another daemon gave these other addresses: they are looked at again.
            for name in self.allocator.adopt(records.clone()) {
                let id = service_id(&name);
                if let Some(candidate) = self.written.get(&id) {
                    pending.entry(id).or_insert_with(|| candidate.clone());
                }
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
                self.written.insert(id, candidate);
            } else {
                self.refuse(id, candidate, errors, round);
            }
        }
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

fn service_id(name: &str) -> Id {
    let (namespace, name) = name.split_once('/').unwrap_or(("default", name));
    Id::new(Kind::Service, namespace, name)
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
