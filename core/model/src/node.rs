//! Node, Namespace, Pod and ServiceCIDR: the objects around a Service.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::name::PodName;

/// A Node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// `metadata.name`.
    pub name: Arc<str>,
    /// `status.addresses` of type InternalIP, in order: the first of each family is the node's primary address.
    pub internal_ips: Vec<IpAddr>,
    /// `status.addresses` of type ExternalIP.
    pub external_ips: Vec<IpAddr>,
    /// `spec.podCIDRs`.
    pub pod_cidrs: Vec<IpNet>,
    /// Labels, of which `topology.kubernetes.io/zone` steers traffic.
    pub labels: BTreeMap<Box<str>, Box<str>>,
    /// The object is being deleted.
    pub deleting: bool,
    /// It carries the taint `ToBeDeletedByClusterAutoscaler`.
    pub to_be_deleted_by_autoscaler: bool,
}

/// Label of a Node that names its zone.
pub const ZONE_LABEL: &str = "topology.kubernetes.io/zone";

impl Node {
    /// The zone that the Node's label names.
    pub fn zone(&self) -> Option<&str> {
        self.labels.get(ZONE_LABEL).map(|zone| &**zone)
    }
}

/// A Namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Namespace {
    /// `metadata.name`.
    pub name: Arc<str>,
    /// `metadata.labels`.
    pub labels: BTreeMap<Box<str>, Box<str>>,
}

/// A Pod, as far as names need it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pod {
    /// Namespace and name.
    pub name: PodName,
    /// `status.podIPs`.
    pub ips: Vec<IpAddr>,
    /// `spec.nodeName`.
    pub node_name: Option<Arc<str>>,
    /// `spec.hostNetwork`: its addresses are the node's.
    pub host_network: bool,
    /// Phase Succeeded or Failed: its address may belong to another pod by now.
    pub finished: bool,
}

/// A ServiceCIDR object: ranges that cluster IPs are taken from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceCidr {
    /// `metadata.name`.
    pub name: Arc<str>,
    /// `spec.cidrs`.
    pub cidrs: Vec<IpNet>,
}
