//! The controller manager's part where there is none: the pods of Deployments, ReplicaSets and StatefulSets.
//!
//! Pods are made from the template with numbers for names, on the nodes in turn. Fewer replicas take the highest numbers
//! away; a changed template reaches a pod when it is made the next time.

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::{Cluster, PodState};
use crate::object::{ObjectKey, merge};

impl Cluster {
    /// Stores a workload and makes its pods as many as it wants.
    pub(super) fn apply_workload(&self, object: &Value) -> Result<()> {
        let key = ObjectKey::of(object)?;
        if self.get(&key)?.as_ref() != Some(object) {
            self.put(&key, object)?;
        }
        let wanted = replicas(object);
        for index in wanted..self.pods_of(&key) {
            self.set_pod(&format!("{}/{}-{index}", key.namespace, key.name), PodState::Gone)?;
        }
        for index in 0..wanted {
            let name = format!("{}/{}-{index}", key.namespace, key.name);
            if self.lab.pod(&name).is_none() {
                let nodes = self.lab.nodes();
                let node = nodes.get(index % nodes.len().max(1)).context("the lab has no nodes")?;
                let pod = pod(&key, object, index, &node.name);
                self.apply_pod(&ObjectKey::of(&pod)?, &pod)?;
            }
        }
        Ok(())
    }

    /// Removes a workload and its pods.
    pub(super) fn delete_workload(&self, key: &ObjectKey) -> Result<()> {
        for index in 0..self.pods_of(key) {
            self.set_pod(&format!("{}/{}-{index}", key.namespace, key.name), PodState::Gone)?;
        }
        self.remove(key)
    }

    /// One more than the highest number among the workload's pods that run.
    fn pods_of(&self, key: &ObjectKey) -> usize {
        let prefix = format!("{}-", key.name);
        let index = |name: &str| name.strip_prefix(&prefix)?.parse::<usize>().ok();
        let pods = self.lab.pods();
        let mine = pods
            .iter()
            .filter(|pod| pod.namespace == key.namespace)
            .filter_map(|pod| index(&pod.name));
        mine.max().map_or(0, |highest| highest + 1)
    }
}

fn replicas(object: &Value) -> usize {
    object
        .pointer("/spec/replicas")
        .and_then(Value::as_u64)
        .and_then(|n| usize::try_from(n).ok())
        .unwrap_or(1)
}

fn pod(key: &ObjectKey, object: &Value, index: usize, node: &str) -> Value {
    let name = format!("{}-{index}", key.name);
    let mut pod = object.pointer("/spec/template").cloned().unwrap_or_else(|| json!({}));
    merge(
        &mut pod,
        &json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name, "namespace": key.namespace },
            "spec": { "nodeName": node },
        }),
    );
    if key.kind == "StatefulSet" {
        let service = object.pointer("/spec/serviceName").cloned().unwrap_or_default();
        merge(
            &mut pod,
            &json!({
                "metadata": { "labels": { "statefulset.kubernetes.io/pod-name": name } },
                "spec": { "hostname": name, "subdomain": service },
            }),
        );
    }
    pod
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stateful_set_names_its_pods() {
        let set = json!({
            "kind": "StatefulSet", "metadata": { "name": "web" },
            "spec": { "serviceName": "nginx", "template": { "metadata": { "labels": { "app": "nginx" } } } },
        });
        let pod = pod(&ObjectKey::namespaced("StatefulSet", "shop", "web"), &set, 1, "node-2");
        let text = |pointer: &str| pod.pointer(pointer).and_then(Value::as_str).unwrap();
        assert_eq!((text("/metadata/name"), text("/metadata/namespace")), ("web-1", "shop"));
        assert_eq!(
            (text("/spec/hostname"), text("/spec/subdomain"), text("/spec/nodeName")),
            ("web-1", "nginx", "node-2")
        );
        assert_eq!(text("/metadata/labels/app"), "nginx");
    }
}
