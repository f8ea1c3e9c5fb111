//! The kubelet's part: runs pods, reports their status, ends them.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

use super::{Cluster, Store};
use crate::addresses::Pair;
use crate::lab::{Listen, Pod, PodRequest};
use crate::object::{ObjectKey, merge};

/// An annotation that gives a pod a certain IPv4 address of its node's range instead of the next free one.
pub const ADDRESS_ANNOTATION: &str = "lab.portolan.dev/address";

/// The state that a scenario puts a pod into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PodState {
    /// Passes its readiness probe.
    Ready,
    /// Fails it; the process runs on.
    NotReady,
    /// Deleted, with its grace period running; the process runs on.
    Terminating,
    /// Gone, process and network included.
    Gone,
}

// === impl PodState ===

impl PodState {
    /// Reads `ready`, `not-ready`, `terminating` or `gone`.
    ///
    /// # Errors
    /// When it is another word.
    pub fn parse(word: &str) -> Result<Self> {
        Ok(match word {
            "ready" => Self::Ready,
            "not-ready" => Self::NotReady,
            "terminating" => Self::Terminating,
            "gone" => Self::Gone,
            _ => bail!("{word:?} is none of ready, not-ready, terminating, gone"),
        })
    }
}

impl Cluster {
    /// Puts a pod (`name` or `namespace/name`) into a state.
    ///
    /// # Errors
    /// When there is no such pod or the API server refuses the change.
    pub fn set_pod(&self, name: &str, state: PodState) -> Result<()> {
        let (namespace, name) = name.split_once('/').unwrap_or(("default", name));
        let key = ObjectKey::namespaced("Pod", namespace, name);
        match state {
            PodState::Ready | PodState::NotReady => {
                let full = format!("{namespace}/{name}");
                let pod = self
                    .lab
                    .pod(&full)
                    .with_context(|| format!("pod {full} does not run"))?;
                let object = self.get(&key)?.with_context(|| format!("there is no {key}"))?;
                self.report(&key, &object, &pod, state == PodState::Ready)
            }
            PodState::Terminating => self.begin_termination(&key),
            PodState::Gone => {
                // The object first, as the kubelet does not: nobody may be sent to an address that is gone already.
                self.remove(&key)?;
                self.lab.remove_pod(&format!("{namespace}/{name}"));
                Ok(())
            }
        }
    }

    /// Stores a pod and, when it names a node, runs it and reports that it is ready.
    pub(super) fn apply_pod(&self, key: &ObjectKey, object: &Value) -> Result<()> {
        let mut object = object.clone();
        let mut declared = object.as_object_mut().and_then(|fields| fields.remove("status"));
        complete(&mut object);
        let name = format!("{}/{}", key.namespace, key.name);
        let Some(request) = request(key, &object)? else {
            return self.put(key, &object);
        };
        let (pod, ready) = match self.lab.pod(&name) {
            // Only its metadata can have changed: it keeps the readiness that it has.
            Some(pod) => (pod, self.is_ready(key)?),
            None => (self.lab.start_pod(&request)?, wants_ready(declared.take().as_ref())),
        };
        if let Store::Api(_) = self.store {
            self.put(key, &object)?;
        }
        self.report(key, &object, &pod, ready)
    }

    /// Whether the pod's status says that it is ready.
    fn is_ready(&self, key: &ObjectKey) -> Result<bool> {
        Ok(self.get(key)?.is_none_or(|object| wants_ready(object.get("status"))))
    }

    /// Writes the status that a kubelet would report.
    pub(super) fn report(&self, key: &ObjectKey, object: &Value, pod: &Pod, ready: bool) -> Result<()> {
        let node = self.lab.node(&pod.node)?.address;
        let status = json!({ "status": status(object, pod.address, node, ready) });
        match &self.store {
            Store::Api(api) => api.patch_status(key, &status),
            Store::Manifests { .. } => {
                let mut object = object.clone();
                merge(&mut object, &status);
                self.put(key, &object)
            }
        }
    }

    fn begin_termination(&self, key: &ObjectKey) -> Result<()> {
        // Longer than any scenario: the scenario itself says when the pod is gone.
        const GRACE: u32 = 3600;
        match &self.store {
            Store::Api(api) => api.delete(key, Some(GRACE)),
            Store::Manifests { .. } => self.patch(
                key,
                &json!({ "metadata": {
                    "deletionTimestamp": rfc3339(SystemTime::now()), "deletionGracePeriodSeconds": GRACE,
                }}),
            ),
        }
    }
}

/// Adds what a pod must have and a scenario need not write.
fn complete(object: &mut Value) {
    if object
        .pointer("/spec/containers")
        .and_then(Value::as_array)
        .is_none_or(Vec::is_empty)
    {
        merge(
            object,
            &json!({ "spec": { "containers": [{ "name": "server", "image": "portolan-probe" }] } }),
        );
    }
    // An end without delay is not what a scenario wants to see by accident: it says `terminating` and `gone` itself.
    if object.pointer("/spec/enableServiceLinks").is_none() {
        merge(object, &json!({ "spec": { "enableServiceLinks": false } }));
    }
}

/// What the lab is to run for a pod; `None` when it names no node.
pub(super) fn request(key: &ObjectKey, object: &Value) -> Result<Option<PodRequest>> {
    let text = |pointer: &str| {
        object
            .pointer(pointer)
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned()
    };
    let node = text("/spec/nodeName");
    if node.is_empty() {
        return Ok(None);
    }
    let annotations = object.pointer("/metadata/annotations");
    let address = annotations
        .and_then(|a| a.get(ADDRESS_ANNOTATION))
        .and_then(Value::as_str);
    let address = address
        .map(|a| {
            a.parse()
                .with_context(|| format!("{key}: {ADDRESS_ANNOTATION} is {a:?}"))
        })
        .transpose()?;
    let mut listen = Vec::new();
    for container in object
        .pointer("/spec/containers")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
    {
        for port in container.get("ports").and_then(Value::as_array).into_iter().flatten() {
            let number = port
                .get("containerPort")
                .and_then(Value::as_u64)
                .and_then(|p| u16::try_from(p).ok());
            let protocol = port.get("protocol").and_then(Value::as_str).unwrap_or("TCP").to_owned();
            listen.push(Listen {
                protocol,
                port: number.with_context(|| format!("{key}: containerPort is no port"))?,
            });
        }
    }
    Ok(Some(PodRequest {
        namespace: key.namespace.clone(),
        name: key.name.clone(),
        hostname: text("/spec/hostname"),
        node,
        host_network: object
            .pointer("/spec/hostNetwork")
            .and_then(Value::as_bool)
            .unwrap_or_default(),
        address,
        listen,
    }))
}

/// A pod starts ready unless its manifest's status says otherwise.
fn wants_ready(status: Option<&Value>) -> bool {
    let conditions = status.and_then(|s| s.get("conditions")).and_then(Value::as_array);
    let ready = conditions.and_then(|all| {
        all.iter()
            .find(|c| c.get("type").and_then(Value::as_str) == Some("Ready"))
    });
    ready.is_none_or(|condition| condition.get("status").and_then(Value::as_str) == Some("True"))
}

fn status(object: &Value, address: Pair, node: Pair, ready: bool) -> Value {
    let now = rfc3339(SystemTime::now());
    let condition = |kind: &str, yes: bool| json!({ "type": kind, "status": if yes { "True" } else { "False" }, "lastTransitionTime": now });
    let container = |c: &Value| {
        json!({
            "name": c.get("name"), "image": c.get("image"), "imageID": "", "ready": ready, "restartCount": 0,
            "started": true, "state": { "running": { "startedAt": now } },
        })
    };
    let containers = object.pointer("/spec/containers").and_then(Value::as_array);
    json!({
        "phase": "Running", "startTime": now,
        "podIP": address.v4, "podIPs": [{ "ip": address.v4 }, { "ip": address.v6 }],
        "hostIP": node.v4, "hostIPs": [{ "ip": node.v4 }, { "ip": node.v6 }],
        "conditions": [
            condition("PodScheduled", true), condition("Initialized", true), condition("ContainersReady", ready),
            condition("Ready", ready),
        ],
        "containerStatuses": containers.into_iter().flatten().map(container).collect::<Vec<_>>(),
    })
}

/// `2026-01-31T12:00:00Z`. Days are turned into a date by the usual arithmetic of eras of 400 years.
fn rfc3339(time: SystemTime) -> String {
    let seconds = time.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let (days, rest) = (seconds / 86_400 + 719_468, seconds % 86_400);
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z",
        rest / 3600,
        rest / 60 % 60,
        rest % 60
    )
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn dates() {
        let check = |seconds, text| assert_eq!(rfc3339(UNIX_EPOCH + Duration::from_secs(seconds)), text);
        check(0, "1970-01-01T00:00:00Z");
        check(951_782_400, "2000-02-29T00:00:00Z");
        check(1_795_354_179, "2026-11-22T13:29:39Z");
    }

    #[test]
    fn a_pod_listens_on_the_ports_of_all_its_containers() {
        let object = json!({
            "metadata": { "name": "web", "annotations": { ADDRESS_ANNOTATION: "10.244.1.6" } },
            "spec": { "nodeName": "node-1", "containers": [
                { "ports": [{ "containerPort": 80 }] }, { "ports": [{ "containerPort": 53, "protocol": "UDP" }] },
            ]},
        });
        let request = request(&ObjectKey::namespaced("Pod", "default", "web"), &object)
            .unwrap()
            .unwrap();
        let ports: Vec<(&str, u16)> = request.listen.iter().map(|l| (l.protocol.as_str(), l.port)).collect();
        assert_eq!(ports, [("TCP", 80), ("UDP", 53)]);
        assert_eq!(request.address, Some("10.244.1.6".parse().unwrap()));
    }
}
