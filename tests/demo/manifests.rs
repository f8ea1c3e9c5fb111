//! What the demo reads from its folder of manifests: the workloads to run and the Services to ask.
//!
//! Only what is needed to start pods and to know their Services' names. How Services are carried is not decided here.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

/// The namespace of the application.
pub const NAMESPACE: &str = "shop";

/// The objects of the folder.
#[derive(Debug, Default)]
pub struct Manifests {
    objects: Vec<Value>,
}

/// A Service of the application.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// The labels of its pods.
    pub selector: BTreeMap<String, String>,
    /// Its first port.
    pub port: u16,
    /// The first port's node port, where the manifest names one.
    pub node_port: Option<u16>,
}

// === impl Manifests ===

impl Manifests {
    /// Reads every YAML file of the folder.
    pub fn read(dir: &Path) -> Result<Self> {
        let entries = fs::read_dir(dir).with_context(|| format!("cannot read the folder {}", dir.display()))?;
        let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        files.retain(|file| {
            file.extension()
                .is_some_and(|extension| extension == "yaml" || extension == "yml")
        });
        files.sort();
        if files.is_empty() {
            bail!("there are no manifests in {}", dir.display());
        }
        let mut manifests = Manifests::default();
        for file in files {
            let text = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
            let objects: Vec<Value> = serde_saphyr::from_multiple(&text).with_context(|| file.display().to_string())?;
            manifests.objects.extend(objects);
        }
        Ok(manifests)
    }

    /// Every object, in the order of the files.
    #[cfg(target_os = "linux")]
    pub fn objects(&self) -> &[Value] {
        &self.objects
    }

    /// The Deployments and StatefulSets, whose pods somebody has to make.
    pub fn workloads(&self) -> impl Iterator<Item = &Value> {
        let kind = |object: &&Value| matches!(text(object, "/kind").as_str(), "Deployment" | "StatefulSet");
        self.objects.iter().filter(kind)
    }

    /// A Service of the application.
    pub fn service(&self, name: &str) -> Result<Service> {
        let is_it = |object: &&Value| {
            text(object, "/kind") == "Service"
                && text(object, "/metadata/namespace") == NAMESPACE
                && text(object, "/metadata/name") == name
        };
        let object = self.objects.iter().find(is_it);
        let object = object.with_context(|| format!("the manifests have no Service {NAMESPACE}/{name}"))?;
        Ok(Service {
            selector: labels(object, "/spec/selector"),
            port: port(object, "/spec/ports/0/port").with_context(|| format!("Service {name} has no port"))?,
            node_port: port(object, "/spec/ports/0/nodePort"),
        })
    }
}

/// The text at a JSON pointer; empty when there is none.
pub fn text(object: &Value, path: &str) -> String {
    object
        .pointer(path)
        .and_then(Value::as_str)
        .unwrap_or_default()
        .to_owned()
}

/// The port number at a JSON pointer.
pub fn port(object: &Value, path: &str) -> Option<u16> {
    object.pointer(path)?.as_u64()?.try_into().ok()
}

/// The map of texts at a JSON pointer.
pub fn labels(object: &Value, path: &str) -> BTreeMap<String, String> {
    let map = object.pointer(path).and_then(Value::as_object);
    map.into_iter()
        .flatten()
        .filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned())))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shipped_manifests_are_read() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/demo");
        let manifests = Manifests::read(&folder).expect("the repository's manifests are good");
        let workloads: Vec<String> = manifests
            .workloads()
            .map(|object| text(object, "/metadata/name"))
            .collect();
        assert_eq!(workloads, ["backend", "frontend", "store"]);
        let frontend = manifests.service("frontend").expect("is there");
        assert_eq!((frontend.port, frontend.node_port), (80, Some(30080)));
        assert_eq!(
            frontend.selector,
            BTreeMap::from([("app".to_owned(), "frontend".to_owned())])
        );
        assert!(manifests.service("no-such").is_err());
    }

    #[test]
    fn a_broken_file_is_named() {
        let dir = tempfile::tempdir().expect("a scratch folder");
        fs::write(dir.path().join("broken.yaml"), "kind: [\n").expect("can be written");
        let error = Manifests::read(dir.path()).map_err(|error| format!("{error:#}"));
        assert!(error.is_err_and(|text| text.contains("broken.yaml")));
        let empty = tempfile::tempdir().expect("a scratch folder");
        assert!(Manifests::read(empty.path()).is_err());
    }
}
