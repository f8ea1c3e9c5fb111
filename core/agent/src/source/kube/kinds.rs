//! kinds: what the watch has to know of each kind.

use std::borrow::Cow;
use std::fmt::Debug;

use ::kube::Resource;
use k8s_openapi::api::{core::v1 as core, discovery::v1 as discovery, networking::v1 as networking};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use portolan_model::parse::ServiceImportSpec;
use portolan_model::{Fault, Interner, NamespacedName, Object, ObjectKey, parse};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::body::Malformed;
use super::objects;
use super::protobuf::Fields;

/// A kind that can be watched.
pub(crate) trait Watched:
    Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + 'static
{
    /// Its name.
    const NAME: &'static str;
    /// Older API servers do not have it.
    const OPTIONAL: bool = false;

    /// An object from protobuf, with what the model needs of it. Names of endpoints are left out unless they are wanted.
    fn decode(object: Fields<'_>, names: bool) -> Result<Self, Malformed>;

    /// The model's view of an object; `None` when nothing of it can be used.
    fn parse(&self, interner: &mut Interner, faults: &mut Vec<Fault>) -> Option<Object>;

    /// The key of the object of that name.
    fn key(name: NamespacedName) -> ObjectKey;
}

impl Watched for core::Service {
    const NAME: &'static str = "Service";

    fn decode(object: Fields<'_>, _: bool) -> Result<Self, Malformed> {
        objects::service(object)
    }

    fn parse(&self, interner: &mut Interner, faults: &mut Vec<Fault>) -> Option<Object> {
        let mut service = parse::parse_service(self, faults)?;
        service.name.namespace = interner.intern(&service.name.namespace);
        Some(Object::Service(Box::new(service)))
    }

    fn key(name: NamespacedName) -> ObjectKey {
        ObjectKey::Service(name)
    }
}

impl Watched for discovery::EndpointSlice {
    const NAME: &'static str = "EndpointSlice";

    fn decode(object: Fields<'_>, names: bool) -> Result<Self, Malformed> {
        objects::endpoint_slice(object, names)
    }

    fn parse(&self, interner: &mut Interner, faults: &mut Vec<Fault>) -> Option<Object> {
        parse::parse_endpoint_slice(self, interner, faults).map(Object::EndpointSlice)
    }

    fn key(name: NamespacedName) -> ObjectKey {
        ObjectKey::EndpointSlice(name)
    }
}

impl Watched for core::Node {
    const NAME: &'static str = "Node";

    fn decode(object: Fields<'_>, _: bool) -> Result<Self, Malformed> {
        objects::node(object)
    }

    fn parse(&self, _: &mut Interner, faults: &mut Vec<Fault>) -> Option<Object> {
        parse::parse_node(self, faults).map(|node| Object::Node(Box::new(node)))
    }

    fn key(name: NamespacedName) -> ObjectKey {
        ObjectKey::Node(name.name)
    }
}

impl Watched for core::Namespace {
    const NAME: &'static str = "Namespace";

    fn decode(object: Fields<'_>, _: bool) -> Result<Self, Malformed> {
        objects::namespace(object)
    }

    fn parse(&self, _: &mut Interner, faults: &mut Vec<Fault>) -> Option<Object> {
        parse::parse_namespace(self, faults).map(Object::Namespace)
    }

    fn key(name: NamespacedName) -> ObjectKey {
        ObjectKey::Namespace(name.name)
    }
}

impl Watched for core::Pod {
    const NAME: &'static str = "Pod";

    fn decode(object: Fields<'_>, _: bool) -> Result<Self, Malformed> {
        objects::pod(object)
    }

    fn parse(&self, interner: &mut Interner, faults: &mut Vec<Fault>) -> Option<Object> {
        parse::parse_pod(self, interner, faults).map(|pod| Object::Pod(Box::new(pod)))
    }

    fn key(name: NamespacedName) -> ObjectKey {
        ObjectKey::Pod(name)
    }
}

impl Watched for networking::ServiceCIDR {
    const NAME: &'static str = "ServiceCIDR";
    /// Served since Kubernetes 1.33 (KEP-1880).
    const OPTIONAL: bool = true;

    fn decode(object: Fields<'_>, _: bool) -> Result<Self, Malformed> {
        objects::service_cidr(object)
    }

    fn parse(&self, _: &mut Interner, faults: &mut Vec<Fault>) -> Option<Object> {
        parse::parse_service_cidr(self, faults).map(Object::ServiceCidr)
    }

    fn key(name: NamespacedName) -> ObjectKey {
        ObjectKey::ServiceCidr(name.name)
    }
}

/// A ServiceImport (KEP-1645). The API is an extension, so no library has its type.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
pub(crate) struct ServiceImport {
    pub(crate) metadata: ObjectMeta,
    #[serde(default)]
    pub(crate) spec: ServiceImportSpec,
}

impl ServiceImport {
    pub(crate) const GROUP: &'static str = "multicluster.x-k8s.io";
    pub(crate) const API_VERSION: &'static str = "multicluster.x-k8s.io/v1alpha1";
}

impl Resource for ServiceImport {
    type DynamicType = ();
    type Scope = k8s_openapi::NamespaceResourceScope;

    fn kind((): &()) -> Cow<'_, str> {
        "ServiceImport".into()
    }

    fn group((): &()) -> Cow<'_, str> {
        Self::GROUP.into()
    }

    fn version((): &()) -> Cow<'_, str> {
        "v1alpha1".into()
    }

    fn plural((): &()) -> Cow<'_, str> {
        "serviceimports".into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

impl Watched for ServiceImport {
    const NAME: &'static str = "ServiceImport";
    /// A cluster that is in no set has no such kind.
    const OPTIONAL: bool = true;

    /// The API server has extensions in JSON only.
    fn decode(_: Fields<'_>, _: bool) -> Result<Self, Malformed> {
        Err(Malformed::Magic)
    }

    fn parse(&self, _: &mut Interner, faults: &mut Vec<Fault>) -> Option<Object> {
        let import = parse::parse_service_import(&self.metadata, &self.spec, faults)?;
        Some(Object::ServiceImport(Box::new(import)))
    }

    fn key(name: NamespacedName) -> ObjectKey {
        ObjectKey::ServiceImport(name)
    }
}

/// The key of an object; `None` when it has no name, which the API server never lets happen.
pub(crate) fn key_of<K: Watched>(meta: &ObjectMeta, interner: &mut Interner) -> Option<ObjectKey> {
    let name = meta.name.as_deref().filter(|name| !name.is_empty())?;
    let namespace = interner.intern(meta.namespace.as_deref().unwrap_or("default"));
    Some(K::key(NamespacedName::new(namespace, name)))
}
