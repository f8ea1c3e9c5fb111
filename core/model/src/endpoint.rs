//! EndpointSlice and its endpoints.

use std::net::IpAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::import::Imported;
use crate::name::{EndpointSliceName, PodName, ServiceName};
use crate::service::{Family, Protocol};

/// One entry of a slice's `ports`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointPort {
    /// Matched against the Service port's name; empty where the object says nothing.
    pub name: Box<str>,
    /// Matched against the Service port's protocol; TCP where the object says nothing.
    pub protocol: Protocol,
    /// Where the endpoint listens. `None` means every port, which no Service port can use.
    pub port: Option<u16>,
}

/// Whether an endpoint may get traffic. Absent conditions are read as the API says: ready and serving, not terminating.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Conditions {
    /// May get new traffic. The EndpointSlice controller folds `publishNotReadyAddresses` in.
    pub ready: bool,
    /// Able to answer, also while terminating.
    pub serving: bool,
    /// Being shut down.
    pub terminating: bool,
}

impl Default for Conditions {
    fn default() -> Self {
        Self {
            ready: true,
            serving: true,
            terminating: false,
        }
    }
}

/// `endpoints[].hints`: who should use the endpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hints {
    /// `forZones`.
    pub zones: Box<[Arc<str>]>,
    /// `forNodes` (KEP-3015).
    pub nodes: Box<[Arc<str>]>,
}

/// What only names say of an endpoint: forwarding looks at none of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointNames {
    /// Further addresses. The API allows up to 100; in practice there is none.
    pub more_addresses: Box<[IpAddr]>,
    /// The DNS label of the endpoint, set for pods of a governing Service.
    pub hostname: Option<Arc<str>>,
    /// The zone the endpoint runs in; hints, not this, steer traffic.
    pub zone: Option<Arc<str>>,
    /// `targetRef` when it names a Pod.
    pub target_pod: Option<PodName>,
}

impl EndpointNames {
    /// For an [`Endpoint`]: `None` when nothing is said.
    pub fn boxed(self) -> Option<Box<Self>> {
        (self != Self::default()).then(|| Box::new(self))
    }
}

/// One entry of a slice's `endpoints`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// The first address, which is the one that is forwarded to.
    pub address: IpAddr,
    /// May it get traffic.
    pub conditions: Conditions,
    /// The node the endpoint runs on. `None` is never local.
    pub node_name: Option<Arc<str>>,
    /// Who should use the endpoint. Boxed: most endpoints have none.
    pub hints: Option<Box<Hints>>,
    /// Boxed, because a proxy does without: there may be a hundred thousand endpoints.
    pub names: Option<Box<EndpointNames>>,
}

impl Endpoint {
    /// Every address of the endpoint, the forwarded one first.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> + '_ {
        let more = self.names.iter().flat_map(|names| names.more_addresses.iter().copied());
        std::iter::once(self.address).chain(more)
    }

    /// The DNS label of the endpoint.
    pub fn hostname(&self) -> Option<&Arc<str>> {
        self.names.as_ref()?.hostname.as_ref()
    }

    /// The zone the endpoint runs in.
    pub fn zone(&self) -> Option<&Arc<str>> {
        self.names.as_ref()?.zone.as_ref()
    }

    /// The Pod that the endpoint is.
    pub fn target_pod(&self) -> Option<&PodName> {
        self.names.as_ref()?.target_pod.as_ref()
    }
}

/// An EndpointSlice of address type IPv4 or IPv6.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointSlice {
    /// Namespace and name; the name says nothing about the Service.
    pub name: EndpointSliceName,
    /// The Service that label `kubernetes.io/service-name` names, in the slice's namespace.
    pub service: Option<ServiceName>,
    /// The ServiceImport that it belongs to, if it comes from another cluster.
    pub imported: Option<Box<Imported>>,
    /// `addressType`.
    pub family: Family,
    /// `ports`.
    pub ports: Box<[EndpointPort]>,
    /// `endpoints`, in the object's order.
    pub endpoints: Box<[Endpoint]>,
    /// Annotation `endpoints.kubernetes.io/last-change-trigger-time`, in nanoseconds since 1970.
    pub last_change_trigger: Option<i64>,
}
