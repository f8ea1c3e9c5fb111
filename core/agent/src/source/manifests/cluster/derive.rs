//! derive: which Services a changed object concerns, and their EndpointSlices.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::{apps::v1 as apps, core::v1 as core};
use portolan_model::node::ZONE_LABEL;
use portolan_model::{EndpointSlice, Event, NamespacedName, Object, ObjectKey, ServiceName};

use super::{Cluster, Labelled, Round};
use crate::source::manifests::decode::{Id, Kind, Manifest};
use crate::source::manifests::slices::{self, PodView};
use crate::source::wants::{HEADLESS_LABEL, SliceSelection};

/// Label that a StatefulSet puts on its pods.
const STATEFUL_POD_LABEL: &str = "statefulset.kubernetes.io/pod-name";
/// Label of an Endpoints object that is not to be mirrored.
const SKIP_MIRROR_LABEL: &str = "endpointslice.kubernetes.io/skip-mirror";
/// Annotation of an Endpoints object that is only somebody's lock.
const LEADER_ANNOTATION: &str = "control-plane.alpha.kubernetes.io/leader";

// === impl Cluster ===

impl Cluster {
    /// Keeps the indexes and notes which Services' slices have to be derived anew.
    pub(super) fn touch(&mut self, id: &Id, old: Option<&Manifest>, new: Option<&Manifest>, round: &mut Round) {
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
            Kind::Namespace | Kind::ServiceCidr | Kind::EndpointSlice | Kind::ServiceImport => {}
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
    pub(super) fn derive(&mut self, name: &ServiceName, round: &mut Round) {
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

    fn slices_of(&mut self, name: &ServiceName) -> Vec<EndpointSlice> {
        let id = Id::new(Kind::Service, &name.namespace, &name.name);
        let Some(manifest) = self.objects.get(&id).cloned() else {
            return Vec::new();
        };
        let Manifest::Service(service) = &*manifest else {
            return Vec::new();
        };
        let spec = service.spec.as_ref();
        let headless = spec.and_then(|spec| spec.cluster_ip.as_deref()) == Some("None")
            || manifest.label(HEADLESS_LABEL).is_some();
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

fn selector(service: &core::Service) -> Option<&BTreeMap<String, String>> {
    let selector = service.spec.as_ref()?.selector.as_ref()?;
    (!selector.is_empty()).then_some(selector)
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
