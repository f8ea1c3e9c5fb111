//! What the demo reads from its folder of manifests: which pods to start and whom a Service may send traffic to.
//!
//! This is the kubelet's view (addresses, ports, arguments) and a selector match for the expectations. How Services are
//! carried is not decided here.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

/// The namespace of the application.
pub const NAMESPACE: &str = "shop";

/// A pod to start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pod {
    pub namespace: String,
    pub name: String,
    pub hostname: String,
    pub node: String,
    pub address: Ipv4Addr,
    pub port: u16,
    /// Which program stands for the container.
    pub image: String,
    pub args: Vec<String>,
    /// Whether it resolves names through the cluster's DNS.
    pub cluster_dns: bool,
    /// Its status as the manifest says it.
    pub status: Value,
    labels: BTreeMap<String, String>,
    ready: bool,
}

/// Everything the demo needs of the folder.
#[derive(Debug, Default)]
pub struct Manifests {
    pub pods: Vec<Pod>,
    /// Selector of each Service, by `namespace/name`.
    selectors: BTreeMap<String, BTreeMap<String, String>>,
    /// The first node port of each Service that has one.
    node_ports: BTreeMap<String, u16>,
}

impl Manifests {
    /// Reads every YAML file of the folder.
    pub fn read(dir: &Path) -> Result<Self> {
        let mut manifests = Manifests::default();
        for file in yaml_files(dir)? {
            let text = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
            manifests.add(&text).with_context(|| file.display().to_string())?;
        }
        Ok(manifests)
    }

    fn add(&mut self, text: &str) -> Result<()> {
        let objects: Vec<Value> = serde_saphyr::from_multiple(text)?;
        for object in &objects {
            let name = format!("{}/{}", string(object, "/metadata/namespace"), string(object, "/metadata/name"));
            match string(object, "/kind").as_str() {
                "Pod" => self.pods.push(pod(object).with_context(|| format!("pod {name}"))?),
                "Service" => {
                    self.selectors.insert(name.clone(), strings(object, "/spec/selector"));
                    if let Some(port) = number(object, "/spec/ports/0/nodePort") {
                        self.node_ports.insert(name, port);
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// The names of the ready pods that a Service of the application selects.
    pub fn pods_of(&self, service: &str) -> Result<BTreeSet<String>> {
        let name = format!("{NAMESPACE}/{service}");
        let selector = self.selectors.get(&name).with_context(|| format!("the manifests have no Service {name}"))?;
        let selected = |pod: &&Pod| {
            pod.namespace == NAMESPACE && pod.ready && selector.iter().all(|(key, value)| pod.labels.get(key) == Some(value))
        };
        Ok(self.pods.iter().filter(selected).map(|pod| pod.name.clone()).collect())
    }

    /// The pod of the application with this name.
    pub fn pod(&self, name: &str) -> Result<&Pod> {
        let found = self.pods.iter().find(|pod| pod.namespace == NAMESPACE && pod.name == name);
        found.with_context(|| format!("the manifests have no Pod {NAMESPACE}/{name}"))
    }

    /// The node port of a Service of the application.
    pub fn node_port(&self, service: &str) -> Result<u16> {
        let name = format!("{NAMESPACE}/{service}");
        self.node_ports.get(&name).copied().with_context(|| format!("Service {name} names no nodePort"))
    }
}

/// Rewrites the one document of the folder that describes this Pod; everything else keeps its bytes.
///
/// The file is replaced as a whole, so whoever follows the folder never reads half of it.
pub fn edit_pod(dir: &Path, pod: &str, edit: impl Fn(&str) -> String) -> Result<PathBuf> {
    let heading = format!("\n  name: {pod}\n");
    for file in yaml_files(dir)? {
        let text = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        let mut changed = false;
        let documents: Vec<String> = text
            .split("---\n")
            .map(|document| {
                if !document.contains("kind: Pod\n") || !document.contains(&heading) {
                    return document.to_owned();
                }
                let edited = edit(document);
                changed |= edited != document;
                edited
            })
            .collect();
        if changed {
            let partial = file.with_extension("partial");
            fs::write(&partial, documents.join("---\n")).with_context(|| format!("cannot write {}", partial.display()))?;
            fs::rename(&partial, &file).with_context(|| format!("cannot replace {}", file.display()))?;
            return Ok(file);
        }
    }
    bail!("no file of {} has a Pod {pod} that could be changed so", dir.display())
}

/// The Ready condition as the demo's manifests write it.
pub fn ready_condition(ready: bool) -> String {
    format!("{{type: Ready, status: \"{}\"}}", if ready { "True" } else { "False" })
}

fn yaml_files(dir: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(dir).with_context(|| format!("cannot read the folder {}", dir.display()))?;
    let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    files.retain(|file| file.extension().is_some_and(|extension| extension == "yaml" || extension == "yml"));
    files.sort();
    if files.is_empty() {
        bail!("there are no manifests in {}", dir.display());
    }
    Ok(files)
}

fn pod(object: &Value) -> Result<Pod> {
    let name = string(object, "/metadata/name");
    let address = string(object, "/status/podIP");
    let hostname = string(object, "/spec/hostname");
    let conditions = object.pointer("/status/conditions").and_then(Value::as_array);
    let ready = conditions.into_iter().flatten().any(|c| string(c, "/type") == "Ready" && string(c, "/status") == "True");
    let args = object.pointer("/spec/containers/0/args").and_then(Value::as_array);
    Ok(Pod {
        namespace: string(object, "/metadata/namespace"),
        hostname: if hostname.is_empty() { name.clone() } else { hostname },
        name,
        node: string(object, "/spec/nodeName"),
        address: address.parse().with_context(|| format!("status.podIP: {address:?} is no IPv4 address"))?,
        port: number(object, "/spec/containers/0/ports/0/containerPort").context("spec.containers[0] names no containerPort")?,
        image: string(object, "/spec/containers/0/image"),
        args: args.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect(),
        cluster_dns: string(object, "/spec/dnsPolicy") != "Default",
        status: object.get("status").cloned().unwrap_or_default(),
        labels: strings(object, "/metadata/labels"),
        ready,
    })
}

fn string(object: &Value, path: &str) -> String {
    object.pointer(path).and_then(Value::as_str).unwrap_or_default().to_owned()
}

fn number(object: &Value, path: &str) -> Option<u16> {
    object.pointer(path)?.as_u64()?.try_into().ok()
}

fn strings(object: &Value, path: &str) -> BTreeMap<String, String> {
    let map = object.pointer(path).and_then(Value::as_object);
    map.into_iter().flatten().filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned()))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shipped() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/demo")
    }

    #[test]
    fn the_shipped_manifests_are_read() {
        let manifests = Manifests::read(&shipped()).expect("the repository's manifests are good");
        let names = |service| manifests.pods_of(service).expect("the Service exists").into_iter().collect::<Vec<_>>();
        assert_eq!(names("backend"), ["backend-1", "backend-2", "backend-3"]);
        assert_eq!(names("store"), ["store-0", "store-1"]);
        assert_eq!(manifests.node_port("frontend").expect("has a node port"), 30080);
        assert_eq!(manifests.pod("store-0").expect("exists").hostname, "store-0");
        assert_eq!(manifests.pods.iter().filter(|pod| pod.image == "portolan-dns").count(), 1);
    }

    #[test]
    fn one_pod_is_made_unready_and_nothing_else_changes() {
        let dir = tempfile::tempdir().expect("a scratch folder");
        for file in yaml_files(&shipped()).expect("the repository has manifests") {
            fs::copy(&file, dir.path().join(file.file_name().expect("has a name"))).expect("can be copied");
        }
        let unready = |text: &str| text.replace(&ready_condition(true), &ready_condition(false));
        let file = edit_pod(dir.path(), "backend-2", unready).expect("the pod is there");
        let before = fs::read_to_string(shipped().join("backend.yaml")).expect("can be read");
        let after = fs::read_to_string(file).expect("can be read");
        let changed: Vec<_> = before.lines().zip(after.lines()).filter(|(before, after)| before != after).collect();
        assert_eq!((before.lines().count(), changed.len()), (after.lines().count(), 1));
        let left = Manifests::read(dir.path()).expect("still good").pods_of("backend").expect("still there");
        assert_eq!(left.into_iter().collect::<Vec<_>>(), ["backend-1", "backend-3"]);
        assert!(edit_pod(dir.path(), "backend-9", unready).is_err());
    }

    #[test]
    fn a_pod_without_an_address_is_named() {
        let text = "kind: Pod\nmetadata: {name: web, namespace: shop}\nspec: {containers: [{ports: [{containerPort: 1}]}]}\n";
        let error = Manifests::default().add(text).map_err(|error| format!("{error:#}"));
        assert!(error.is_err_and(|text| text.contains("shop/web") && text.contains("podIP")));
    }
}
