//! The objects of a lab's cluster, and the pods that come of them.
//!
//! A cluster keeps its objects in a folder of manifests or on a real API server; scenarios and the demo use both in the
//! same words. It plays the parts that a lab has no program for: it registers the nodes, runs the pods that name a node as
//! the kubelet does (namespace, address, server, status), and, where there is no controller manager, makes the pods of
//! Deployments and StatefulSets.

mod follow;
mod pods;
mod workload;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use crate::addresses;
use crate::api::ApiClient;
use crate::control_plane::ControlPlane;
use crate::lab::Lab;
use crate::object::{ObjectKey, merge};
use crate::subject::Source;

pub use self::follow::Follower;
pub use self::pods::{ADDRESS_ANNOTATION, PodState};

/// A lab with objects in it.
#[derive(Debug)]
pub struct Cluster {
    store: Store,
    /// Ends before the lab does.
    plane: Option<ControlPlane>,
    lab: Lab,
}

/// Where the objects are.
#[derive(Debug)]
enum Store {
    Manifests {
        dir: PathBuf,
        objects: Mutex<BTreeMap<ObjectKey, Value>>,
    },
    Api(ApiClient),
}

// === impl Cluster ===

impl Cluster {
    /// A cluster whose objects are files in `dir`, which is made when it does not exist. The daemons follow that folder.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub fn from_manifests(lab: Lab, dir: &Path) -> Result<Self> {
        fs::create_dir_all(dir).with_context(|| format!("{} cannot be made", dir.display()))?;
        let store = Store::Manifests {
            dir: dir.to_owned(),
            objects: Mutex::default(),
        };
        let cluster = Self {
            store,
            plane: None,
            lab,
        };
        cluster.register_nodes()?;
        Ok(cluster)
    }

    /// A cluster with a real control plane; the lab must have been built with a place for one.
    ///
    /// # Errors
    /// When the control plane does not come up.
    pub fn with_api_server(lab: Lab) -> Result<Self> {
        let plane = ControlPlane::start(&lab)?;
        let cluster = Self {
            store: Store::Api(plane.api().clone()),
            plane: Some(plane),
            lab,
        };
        cluster.register_nodes()?;
        Ok(cluster)
    }

    /// The lab under the cluster.
    pub fn lab(&self) -> &Lab {
        &self.lab
    }

    /// The control plane, when there is one.
    pub fn control_plane(&self) -> Option<&ControlPlane> {
        self.plane.as_ref()
    }

    /// What the daemons are to read.
    pub fn source(&self) -> Source {
        match &self.store {
            Store::Manifests { dir, .. } => Source::Manifests(dir.clone()),
            Store::Api(_) => Source::Api(self.lab.scratch().join("control-plane")),
        }
    }

    /// Knows an object that a file of the folder holds already, written by somebody else: it is not stored a second time.
    /// Without effect when the objects are kept by an API server.
    ///
    /// # Errors
    /// When it has no kind or name, or the kind is unknown here.
    pub fn adopt(&self, object: &Value) -> Result<()> {
        if let Store::Manifests { objects, .. } = &self.store {
            lock(objects).insert(ObjectKey::of(object)?, object.clone());
        }
        Ok(())
    }

    /// Creates an object or makes it what `object` says. A pod that names a node runs when this returns; the namespace is
    /// made when it is missing.
    ///
    /// # Errors
    /// When the API server refuses it, or the pod cannot run.
    pub fn apply(&self, object: &Value) -> Result<()> {
        let key = ObjectKey::of(object)?;
        if !key.namespace.is_empty() {
            self.ensure_namespace(&key.namespace)?;
        }
        match (key.kind.as_str(), &self.store) {
            ("Pod", _) => self.apply_pod(&key, object),
            ("Deployment" | "StatefulSet" | "ReplicaSet", Store::Manifests { .. }) => self.apply_workload(object),
            _ => self.put(&key, object),
        }
    }

    /// Merges `patch` into an object (JSON merge patch).
    ///
    /// # Errors
    /// When there is no such object or the API server refuses the result.
    pub fn patch(&self, key: &ObjectKey, patch: &Value) -> Result<()> {
        match &self.store {
            Store::Api(api) => {
                let mut main = patch.clone();
                let status = main.as_object_mut().and_then(|fields| fields.remove("status"));
                if main.as_object().is_some_and(|fields| !fields.is_empty()) {
                    api.patch(key, &main)?;
                }
                status.map_or(Ok(()), |status| api.patch_status(key, &json!({ "status": status })))
            }
            Store::Manifests { .. } => {
                let mut object = self.get(key)?.with_context(|| format!("there is no {key} to patch"))?;
                merge(&mut object, patch);
                match key.kind.as_str() {
                    "Deployment" | "StatefulSet" | "ReplicaSet" => self.apply_workload(&object),
                    _ => self.put(key, &object),
                }
            }
        }
    }

    /// Deletes an object, a pod with its process; silent when it does not exist.
    ///
    /// # Errors
    /// When the API server refuses it.
    pub fn delete(&self, key: &ObjectKey) -> Result<()> {
        match (key.kind.as_str(), &self.store) {
            ("Pod", _) => self.set_pod(&format!("{}/{}", key.namespace, key.name), PodState::Gone),
            ("Deployment" | "StatefulSet" | "ReplicaSet", Store::Manifests { .. }) => self.delete_workload(key),
            _ => self.remove(key),
        }
    }

    /// Deletes a workload and leaves its pods as they are (`kubectl delete --cascade=orphan`).
    ///
    /// # Errors
    /// When the API server refuses it.
    pub fn delete_alone(&self, key: &ObjectKey) -> Result<()> {
        match &self.store {
            Store::Api(api) => api.delete_alone(key),
            Store::Manifests { .. } => self.remove(key),
        }
    }

    /// The object as it is now.
    ///
    /// # Errors
    /// When the API server does not answer.
    pub fn get(&self, key: &ObjectKey) -> Result<Option<Value>> {
        match &self.store {
            Store::Api(api) => api.get(key),
            Store::Manifests { objects, .. } => Ok(lock(objects).get(key).cloned()),
        }
    }

    /// Writes an object to where objects are kept, with nothing else happening.
    fn put(&self, key: &ObjectKey, object: &Value) -> Result<()> {
        match &self.store {
            Store::Api(api) => api.apply(object),
            Store::Manifests { dir, objects } => {
                let mut objects = lock(objects);
                let file = dir.join(file_name(key));
                // Beside the folder first: a reader never sees half a file.
                let draft = self.lab.scratch().join(format!("draft-{}", file_name(key)));
                fs::write(&draft, serde_json::to_vec_pretty(object)?)?;
                fs::rename(&draft, &file).or_else(|_| fs::copy(&draft, &file).map(drop))?;
                objects.insert(key.clone(), object.clone());
                Ok(())
            }
        }
    }

    fn remove(&self, key: &ObjectKey) -> Result<()> {
        match &self.store {
            Store::Api(api) => api.delete(key, Some(0)),
            Store::Manifests { dir, objects } => {
                if lock(objects).remove(key).is_some() {
                    fs::remove_file(dir.join(file_name(key))).with_context(|| format!("{key} was not deleted"))?;
                }
                Ok(())
            }
        }
    }

    fn ensure_namespace(&self, name: &str) -> Result<()> {
        let key = ObjectKey {
            kind: "Namespace".to_owned(),
            namespace: String::new(),
            name: name.to_owned(),
        };
        if self.get(&key)?.is_some() {
            return Ok(());
        }
        self.put(
            &key,
            &json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name } }),
        )
    }

    /// Makes Node objects what they were in the beginning.
    ///
    /// # Errors
    /// When the API server refuses it.
    pub fn restore_nodes(&self, nodes: &BTreeSet<ObjectKey>) -> Result<()> {
        for key in nodes {
            self.remove(key)?;
        }
        self.register_nodes()
    }

    fn register_nodes(&self) -> Result<()> {
        for node in self.lab.nodes() {
            let ranges = addresses::pod_ranges(node.index);
            let address = |kind: &str, address: String| json!({ "type": kind, "address": address });
            let object = json!({
                "apiVersion": "v1", "kind": "Node",
                "metadata": { "name": node.name, "labels": {
                    "kubernetes.io/hostname": node.name, "kubernetes.io/os": "linux",
                    "topology.kubernetes.io/region": "lab", "topology.kubernetes.io/zone": zone(node.index),
                }},
                "spec": { "podCIDR": ranges[0], "podCIDRs": ranges },
                "status": {
                    "addresses": [
                        address("InternalIP", node.address.v4.to_string()),
                        address("InternalIP", node.address.v6.to_string()),
                        address("Hostname", node.name.clone()),
                    ],
                    "conditions": [{ "type": "Ready", "status": "True", "reason": "Lab", "message": "raised" }],
                },
            });
            self.put(&ObjectKey::of(&object)?, &object)?;
        }
        Ok(())
    }
}

/// The zone of node `n`: `zone-1`, `zone-2`, `zone-3` in turn.
fn zone(n: u8) -> String {
    format!("zone-{}", (n - 1) % 3 + 1)
}

fn file_name(key: &ObjectKey) -> String {
    let kind = key.kind.to_lowercase();
    if key.namespace.is_empty() {
        format!("{kind}.{}.json", key.name)
    } else {
        format!("{kind}.{}.{}.json", key.namespace, key.name)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
