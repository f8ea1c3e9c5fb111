//! Kubernetes objects as plain JSON, and the names they go by in scenarios and on the API server.

use std::fmt;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

/// The kinds that scenarios may use: kind, API path, plural, and whether they live in a namespace.
const KINDS: [(&str, &str, &str, bool); 14] = [
    (
        "ClusterRole",
        "/apis/rbac.authorization.k8s.io/v1",
        "clusterroles",
        false,
    ),
    (
        "ClusterRoleBinding",
        "/apis/rbac.authorization.k8s.io/v1",
        "clusterrolebindings",
        false,
    ),
    ("ConfigMap", "/api/v1", "configmaps", true),
    ("DaemonSet", "/apis/apps/v1", "daemonsets", true),
    ("Deployment", "/apis/apps/v1", "deployments", true),
    ("EndpointSlice", "/apis/discovery.k8s.io/v1", "endpointslices", true),
    ("Endpoints", "/api/v1", "endpoints", true),
    ("Namespace", "/api/v1", "namespaces", false),
    ("Node", "/api/v1", "nodes", false),
    ("Pod", "/api/v1", "pods", true),
    ("ReplicaSet", "/apis/apps/v1", "replicasets", true),
    ("Service", "/api/v1", "services", true),
    ("ServiceCIDR", "/apis/networking.k8s.io/v1", "servicecidrs", false),
    ("StatefulSet", "/apis/apps/v1", "statefulsets", true),
];

/// What identifies an object: kind, namespace and name. Written `service/web`, `service/shop/web` or `node/node-1`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectKey {
    /// The kind, as in the object: `Service`.
    pub kind: String,
    /// The namespace; empty for kinds that have none.
    pub namespace: String,
    /// The name.
    pub name: String,
}

// === impl ObjectKey ===

impl ObjectKey {
    /// The key of a kind that is known to have a namespace.
    pub fn namespaced(kind: &str, namespace: &str, name: &str) -> Self {
        Self {
            kind: kind.to_owned(),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        }
    }

    /// The key of an object.
    ///
    /// # Errors
    /// When it has no kind or name, or the kind is unknown here.
    pub fn of(object: &Value) -> Result<Self> {
        let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str);
        let kind = text("/kind").context("an object has no kind")?;
        let name = text("/metadata/name").with_context(|| format!("a {kind} has no metadata.name"))?;
        let (kind, _, _, namespaced) = lookup(kind)?;
        let namespace = if namespaced {
            text("/metadata/namespace").unwrap_or("default")
        } else {
            ""
        };
        Ok(Self::namespaced(kind, namespace, name))
    }

    /// Reads `service/web` (namespace default), `service/shop/web` or `node/node-1`.
    ///
    /// # Errors
    /// When the text has another form or the kind is unknown.
    pub fn parse(text: &str) -> Result<Self> {
        let parts: Vec<&str> = text.split('/').collect();
        let (kind, namespace, name) = match parts[..] {
            [kind, name] => (kind, "default", name),
            [kind, namespace, name] => (kind, namespace, name),
            _ => bail!("{text:?} is neither kind/name nor kind/namespace/name"),
        };
        let (kind, _, _, namespaced) = lookup(kind)?;
        Ok(Self::namespaced(kind, if namespaced { namespace } else { "" }, name))
    }

    /// The object's path on the API server.
    ///
    /// # Errors
    /// When the kind is unknown.
    pub fn path(&self) -> Result<String> {
        let (_, api, plural, namespaced) = lookup(&self.kind)?;
        let namespace = if namespaced {
            format!("/namespaces/{}", self.namespace)
        } else {
            String::new()
        };
        Ok(format!("{api}{namespace}/{plural}/{}", self.name))
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = self.kind.to_lowercase();
        if self.namespace.is_empty() {
            write!(f, "{kind}/{}", self.name)
        } else {
            write!(f, "{kind}/{}/{}", self.namespace, self.name)
        }
    }
}

/// Merges `patch` into `target` by the rules of JSON merge patch (RFC 7396).
pub fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = Value::Object(serde_json::Map::new());
    }
    if let Value::Object(fields) = target {
        for (key, value) in patch {
            if value.is_null() {
                fields.remove(key);
            } else {
                merge(fields.entry(key).or_insert(Value::Null), value);
            }
        }
    }
}

fn lookup(kind: &str) -> Result<(&'static str, &'static str, &'static str, bool)> {
    let wanted = kind.to_lowercase();
    let found = KINDS
        .into_iter()
        .find(|(name, _, plural, _)| name.to_lowercase() == wanted || *plural == wanted);
    found.with_context(|| format!("kind {kind:?} is not one that the lab knows"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn keys_and_paths() {
        let check = |text: &str, path: &str| assert_eq!(ObjectKey::parse(text).unwrap().path().unwrap(), path);
        check("service/web", "/api/v1/namespaces/default/services/web");
        check(
            "endpointslice/shop/web-1",
            "/apis/discovery.k8s.io/v1/namespaces/shop/endpointslices/web-1",
        );
        check("Node/node-1", "/api/v1/nodes/node-1");
        assert!(ObjectKey::parse("web").is_err());
        assert!(ObjectKey::parse("gateway/web").is_err());
    }

    #[test]
    fn merge_patch_replaces_removes_and_descends() {
        let mut target = json!({"a": {"b": 1, "c": 2}, "d": [1]});
        merge(&mut target, &json!({"a": {"b": null, "e": {"f": 3}}, "d": [2]}));
        assert_eq!(target, json!({"a": {"c": 2, "e": {"f": 3}}, "d": [2]}));
    }
}
