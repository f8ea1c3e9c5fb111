//! decode: a document's value into the Kubernetes object that it claims to be.

use std::fmt;

use k8s_openapi::Resource;
use k8s_openapi::api::{apps::v1 as apps, core::v1 as core, discovery::v1 as discovery, networking::v1 as networking};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use portolan_model::ObjectRef;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::source::kube::ServiceImport;

/// The kinds that are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Kind {
    Namespace,
    Node,
    ServiceCidr,
    StatefulSet,
    Pod,
    Service,
    Endpoints,
    EndpointSlice,
    ServiceImport,
}

/// The identity of an object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Id {
    pub(crate) kind: Kind,
    /// Empty for kinds without a namespace.
    pub(crate) namespace: String,
    pub(crate) name: String,
}

/// An object as a manifest gives it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Manifest {
    Namespace(core::Namespace),
    Node(Box<core::Node>),
    ServiceCidr(networking::ServiceCIDR),
    StatefulSet(Box<apps::StatefulSet>),
    Pod(Box<core::Pod>),
    Service(Box<core::Service>),
    Endpoints(core::Endpoints),
    EndpointSlice(discovery::EndpointSlice),
    ServiceImport(ServiceImport),
}

/// What a document turned out to be.
#[derive(Debug)]
pub(crate) enum Decoded {
    /// An object of a kind that is read.
    Object(Id, Box<Manifest>),
    /// A kind that bears neither on forwarding nor on names, such as `apps/v1 Deployment`.
    Skipped(String),
}

/// Why a value is no object.
#[derive(Debug)]
pub(crate) struct Refusal {
    pub(crate) object: Option<ObjectRef>,
    pub(crate) field: Option<String>,
    pub(crate) cause: String,
}

// === impl Kind ===

impl Kind {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Namespace => "Namespace",
            Self::Node => "Node",
            Self::ServiceCidr => "ServiceCIDR",
            Self::StatefulSet => "StatefulSet",
            Self::Pod => "Pod",
            Self::Service => "Service",
            Self::Endpoints => "Endpoints",
            Self::EndpointSlice => "EndpointSlice",
            Self::ServiceImport => "ServiceImport",
        }
    }

    fn is_namespaced(self) -> bool {
        !matches!(self, Self::Namespace | Self::Node | Self::ServiceCidr)
    }

    /// The kind of that name in an API group, and the version that is read.
    fn find(group: &str, kind: &str) -> Option<(Self, &'static str)> {
        let found = match (group, kind) {
            ("", "Namespace") => (Self::Namespace, core::Namespace::API_VERSION),
            ("", "Node") => (Self::Node, core::Node::API_VERSION),
            ("", "Pod") => (Self::Pod, core::Pod::API_VERSION),
            ("", "Service") => (Self::Service, core::Service::API_VERSION),
            ("", "Endpoints") => (Self::Endpoints, core::Endpoints::API_VERSION),
            ("apps", "StatefulSet") => (Self::StatefulSet, apps::StatefulSet::API_VERSION),
            ("discovery.k8s.io", "EndpointSlice") => (Self::EndpointSlice, discovery::EndpointSlice::API_VERSION),
            (ServiceImport::GROUP, "ServiceImport") => (Self::ServiceImport, ServiceImport::API_VERSION),
            ("networking.k8s.io", "ServiceCIDR") => (Self::ServiceCidr, networking::ServiceCIDR::API_VERSION),
            _ => return None,
        };
        Some(found)
    }
}

// === impl Id ===

impl Id {
    pub(crate) fn new(kind: Kind, namespace: &str, name: &str) -> Self {
        Self {
            kind,
            namespace: namespace.into(),
            name: name.into(),
        }
    }

    pub(crate) fn object_ref(&self) -> ObjectRef {
        ObjectRef {
            kind: self.kind.as_str(),
            namespace: self.namespace.clone(),
            name: self.name.clone(),
        }
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.object_ref().fmt(f)
    }
}

// === impl Manifest ===

impl Manifest {
    pub(crate) fn metadata(&self) -> &ObjectMeta {
        match self {
            Self::Namespace(o) => &o.metadata,
            Self::Node(o) => &o.metadata,
            Self::ServiceCidr(o) => &o.metadata,
            Self::StatefulSet(o) => &o.metadata,
            Self::Pod(o) => &o.metadata,
            Self::Service(o) => &o.metadata,
            Self::Endpoints(o) => &o.metadata,
            Self::EndpointSlice(o) => &o.metadata,
            Self::ServiceImport(o) => &o.metadata,
        }
    }

    fn metadata_mut(&mut self) -> &mut ObjectMeta {
        match self {
            Self::Namespace(o) => &mut o.metadata,
            Self::Node(o) => &mut o.metadata,
            Self::ServiceCidr(o) => &mut o.metadata,
            Self::StatefulSet(o) => &mut o.metadata,
            Self::Pod(o) => &mut o.metadata,
            Self::Service(o) => &mut o.metadata,
            Self::Endpoints(o) => &mut o.metadata,
            Self::EndpointSlice(o) => &mut o.metadata,
            Self::ServiceImport(o) => &mut o.metadata,
        }
    }

    pub(crate) fn label(&self, label: &str) -> Option<&str> {
        let labels = self.metadata().labels.as_ref();
        labels.and_then(|labels| labels.get(label)).map(String::as_str)
    }
}

/// Reads a value that is not a List.
pub(crate) fn decode(value: Value) -> Result<Decoded, Refusal> {
    let refuse = |field: &str, cause: &str| Refusal {
        object: None,
        field: Some(field.into()),
        cause: cause.into(),
    };
    let Value::Object(fields) = &value else {
        return Err(Refusal {
            object: None,
            field: None,
            cause: format!("is not an object but {}", sort_of(&value)),
        });
    };
    let text = |field: &str| {
        fields
            .get(field)
            .and_then(Value::as_str)
            .filter(|text| !text.is_empty())
    };
    let kind_name = text("kind").ok_or_else(|| refuse("kind", "is missing"))?;
    let api_version = text("apiVersion").ok_or_else(|| refuse("apiVersion", "is missing"))?;
    let (group, version) = api_version.rsplit_once('/').unwrap_or(("", api_version));
    let Some((kind, known)) = Kind::find(group, kind_name) else {
        return Ok(Decoded::Skipped(format!("{api_version} {kind_name}")));
    };
    if api_version != known {
        if kind == Kind::StatefulSet {
            return Ok(Decoded::Skipped(format!("{api_version} {kind_name}")));
        }
        return Err(Refusal {
            object: Some(object_ref(kind, &value)),
            field: Some("apiVersion".into()),
            cause: format!("version {version:?} of this kind is not served; write {known}"),
        });
    }
    let object = object_ref(kind, &value);
    let mut manifest = match kind {
        Kind::Namespace => Manifest::Namespace(typed(value, &object)?),
        Kind::Node => Manifest::Node(typed(value, &object)?),
        Kind::ServiceCidr => Manifest::ServiceCidr(typed(value, &object)?),
        Kind::StatefulSet => Manifest::StatefulSet(typed(value, &object)?),
        Kind::Pod => Manifest::Pod(typed(value, &object)?),
        Kind::Service => Manifest::Service(typed(value, &object)?),
        Kind::Endpoints => Manifest::Endpoints(typed(value, &object)?),
        Kind::EndpointSlice => Manifest::EndpointSlice(typed(value, &object)?),
        Kind::ServiceImport => Manifest::ServiceImport(typed(value, &object)?),
    };
    let id = identify(kind, &mut manifest).ok_or_else(|| Refusal {
        object: Some(object),
        field: Some("metadata.name".into()),
        cause: "is missing".into(),
    })?;
    Ok(Decoded::Object(id, Box::new(manifest)))
}

/// Sets the namespace that the API server would set, and drops what only it uses.
fn identify(kind: Kind, manifest: &mut Manifest) -> Option<Id> {
    let meta = manifest.metadata_mut();
    meta.managed_fields = None;
    let namespace = meta.namespace.take().filter(|namespace| !namespace.is_empty());
    meta.namespace = kind
        .is_namespaced()
        .then(|| namespace.unwrap_or_else(|| "default".into()));
    let name = meta.name.as_deref().filter(|name| !name.is_empty())?;
    Some(Id::new(kind, meta.namespace.as_deref().unwrap_or_default(), name))
}

fn typed<T: DeserializeOwned>(value: Value, object: &ObjectRef) -> Result<T, Refusal> {
    serde_path_to_error::deserialize(value).map_err(|error| {
        let path = error.path().to_string();
        Refusal {
            object: Some(object.clone()),
            field: (path != ".").then_some(path),
            cause: error.into_inner().to_string(),
        }
    })
}

fn object_ref(kind: Kind, value: &Value) -> ObjectRef {
    let meta = |field: &str| {
        let text = value
            .get("metadata")
            .and_then(|meta| meta.get(field))
            .and_then(Value::as_str);
        text.filter(|text| !text.is_empty()).map(str::to_string)
    };
    ObjectRef {
        kind: kind.as_str(),
        namespace: match kind.is_namespaced() {
            true => meta("namespace").unwrap_or_else(|| "default".into()),
            false => String::new(),
        },
        name: meta("name").unwrap_or_else(|| "?".into()),
    }
}

fn sort_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "nothing",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}
