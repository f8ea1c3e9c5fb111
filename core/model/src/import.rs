//! ServiceImport: a Service that other clusters export (KEP-1645, Multi-Cluster Services API).

use std::net::IpAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::name::ServiceName;
use crate::service::ServicePort;

/// A ServiceImport.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceImport {
    /// Namespace and name, the same in every cluster of the set.
    pub name: ServiceName,
    /// `spec.type: Headless`: its names are those of its endpoints.
    pub headless: bool,
    /// `spec.ips`: its addresses in the whole set of clusters, at most one of each family.
    pub ips: Vec<IpAddr>,
    /// `spec.ports`.
    pub ports: Vec<ServicePort>,
}

/// What an EndpointSlice of another cluster belongs to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Imported {
    /// The ServiceImport that label `multicluster.kubernetes.io/service-name` names, in the slice's namespace.
    pub service: ServiceName,
    /// The cluster that label `multicluster.kubernetes.io/source-cluster` names.
    pub cluster: Arc<str>,
}
