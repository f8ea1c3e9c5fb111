//! The scheduler's and the kubelet's part for pods that controllers make on a real API server.
//!
//! Such pods appear and disappear by themselves: each is bound to the node with the fewest pods, run, reported ready, and
//! ended some time after it was deleted. Pods that a scenario applied itself are left to the scenario.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::pods::request;
use super::{Cluster, lock};
use crate::api::WatchEvent;
use crate::object::ObjectKey;

/// How long a deleted pod goes on serving, as one with a `preStop` hook would: long enough for every proxy to leave it.
const GRACE: Duration = Duration::from_secs(3);

/// Pods are followed while this lives. Dropping it waits for the event that is being handled.
#[derive(Debug)]
pub struct Follower {
    stopped: Arc<Mutex<bool>>,
}

impl Drop for Follower {
    fn drop(&mut self) {
        *lock(&self.stopped) = true;
    }
}

impl Cluster {
    /// Starts to bind, run and end the pods that controllers make, until the returned guard is dropped.
    ///
    /// # Errors
    /// When the cluster has no API server.
    pub fn follow_pods(self: &Arc<Self>) -> Result<Follower> {
        let api = self
            .plane
            .as_ref()
            .context("only an API server has controllers")?
            .api()
            .clone();
        let cluster = Arc::downgrade(self);
        let stopped = Arc::new(Mutex::new(false));
        let follower = Follower {
            stopped: Arc::clone(&stopped),
        };
        std::thread::spawn(move || {
            let each = |event: WatchEvent| {
                // Held while an event is handled: whoever stops the follower knows that nobody holds the cluster any more.
                let stopped = lock(&stopped);
                let Some(cluster) = cluster.upgrade().filter(|_| !*stopped) else {
                    return false;
                };
                if let Err(error) = cluster.follow(&event, &Arc::downgrade(&cluster)) {
                    eprintln!("lab: a pod could not be followed: {error:#}");
                }
                drop(cluster);
                true
            };
            // The stream ends when the control plane does; nothing is left to follow then.
            let _ = api.watch("/api/v1/pods", each);
        });
        Ok(follower)
    }

    fn follow(&self, event: &WatchEvent, me: &Weak<Self>) -> Result<()> {
        let pod = &event.object;
        if pod.pointer("/metadata/ownerReferences").is_none() {
            return Ok(());
        }
        let key = ObjectKey::namespaced(
            "Pod",
            text(pod, "/metadata/namespace"),
            pod.pointer("/metadata/name")
                .and_then(Value::as_str)
                .context("a pod has no name")?,
        );
        let name = format!("{}/{}", key.namespace, key.name);
        let api = self.plane.as_ref().context("no API server")?.api();
        let uid = text(pod, "/metadata/uid");
        if event.kind == "DELETED" {
            // News may be late: the next scenario may have a pod of that name already.
            let pods = api.list(&format!("/api/v1/namespaces/{}/pods", key.namespace))?;
            let replaced =
                |other: &Value| text(other, "/metadata/name") == key.name && text(other, "/metadata/uid") != uid;
            if !pods.iter().any(replaced) {
                self.lab.remove_pod(&name);
            }
            return Ok(());
        }
        if pod.pointer("/metadata/deletionTimestamp").is_some() {
            let (api, me, uid) = (api.clone(), me.clone(), uid.to_owned());
            std::thread::spawn(move || {
                std::thread::sleep(GRACE);
                if me.strong_count() > 0
                    && let Err(error) = api.delete_exactly(&key, &uid)
                {
                    eprintln!("lab: {error:#}");
                }
            });
            return Ok(());
        }
        if text(pod, "/spec/nodeName").is_empty() {
            return api.bind(&key, &self.emptiest_node()?);
        }
        if self.lab.pod(&name).is_none()
            && let Some(request) = request(&key, pod)?
        {
            let running = self.lab.start_pod(&request)?;
            self.report(&key, pod, &running, true)?;
        }
        Ok(())
    }

    fn emptiest_node(&self) -> Result<String> {
        let mut load: BTreeMap<&str, usize> = self.lab.nodes().iter().map(|node| (node.name.as_str(), 0)).collect();
        let pods = self.lab.pods();
        for pod in &pods {
            *load.entry(&pod.node).or_default() += 1;
        }
        let least = load.into_iter().min_by_key(|(_, pods)| *pods);
        Ok(least.context("the lab has no nodes")?.0.to_owned())
    }
}

fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}
