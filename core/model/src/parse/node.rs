//! Node, Namespace, Pod and ServiceCIDR: what can be used of them.

use k8s_openapi::api::{core::v1 as core, networking::v1 as networking};

use super::{Fault, Faults, addresses, cluster_scoped, labels, namespaced, parse_cidr, parse_ip};
use crate::name::Interner;
use crate::node::{Namespace, Node, Pod, ServiceCidr};

/// Taint that the cluster autoscaler puts on a Node that it is about to remove.
pub const TO_BE_DELETED_TAINT: &str = "ToBeDeletedByClusterAutoscaler";

/// A Node.
pub fn parse_node(object: &core::Node, faults: &mut Vec<Fault>) -> Option<Node> {
    let meta = &object.metadata;
    let mut faults = Faults::new("Node", meta, faults);
    let name = cluster_scoped(meta, &mut faults)?;
    let mut node = Node {
        name,
        labels: labels(meta),
        deleting: meta.deletion_timestamp.is_some(),
        ..Node::default()
    };
    let status = object.status.as_ref();
    for (i, address) in status
        .iter()
        .flat_map(|status| status.addresses.iter().flatten())
        .enumerate()
    {
        let list = match address.type_.as_str() {
            "InternalIP" => &mut node.internal_ips,
            "ExternalIP" => &mut node.external_ips,
            _ => continue,
        };
        let field = || format!("status.addresses[{i}].address");
        list.extend(faults.keep(field, parse_ip(&address.address)));
    }
    let Some(spec) = &object.spec else { return Some(node) };
    let many = spec.pod_cidrs.as_deref().unwrap_or_default();
    let texts = if many.is_empty() {
        spec.pod_cidr.as_slice()
    } else {
        many
    };
    for (i, text) in texts.iter().filter(|text| !text.is_empty()).enumerate() {
        node.pod_cidrs
            .extend(faults.keep(|| format!("spec.podCIDRs[{i}]"), parse_cidr(text)));
    }
    node.to_be_deleted_by_autoscaler = spec
        .taints
        .iter()
        .flatten()
        .any(|taint| taint.key == TO_BE_DELETED_TAINT);
    Some(node)
}

/// A Namespace.
pub fn parse_namespace(object: &core::Namespace, faults: &mut Vec<Fault>) -> Option<Namespace> {
    let mut faults = Faults::new("Namespace", &object.metadata, faults);
    Some(Namespace {
        name: cluster_scoped(&object.metadata, &mut faults)?,
        labels: labels(&object.metadata),
    })
}

/// A Pod.
pub fn parse_pod(object: &core::Pod, interner: &mut Interner, faults: &mut Vec<Fault>) -> Option<Pod> {
    let mut faults = Faults::new("Pod", &object.metadata, faults);
    let mut name = namespaced(&object.metadata, &mut faults)?;
    name.namespace = interner.intern(&name.namespace);
    let spec = object.spec.as_ref();
    let status = object.status.as_ref();
    let mut texts: Vec<&str> = status
        .iter()
        .flat_map(|s| s.pod_ips.iter().flatten())
        .map(|entry| entry.ip.as_str())
        .collect();
    if texts.is_empty() {
        texts.extend(status.and_then(|status| status.pod_ip.as_deref()));
    }
    let texts: Vec<String> = texts
        .into_iter()
        .filter(|text| !text.is_empty())
        .map(Into::into)
        .collect();
    Some(Pod {
        name,
        ips: addresses("status.podIPs", Some(&texts), &mut faults),
        node_name: spec
            .and_then(|spec| spec.node_name.as_deref())
            .map(|name| interner.intern(name)),
        host_network: spec.and_then(|spec| spec.host_network).unwrap_or(false),
        finished: matches!(status.and_then(|s| s.phase.as_deref()), Some("Succeeded" | "Failed")),
    })
}

/// A ServiceCIDR.
pub fn parse_service_cidr(object: &networking::ServiceCIDR, faults: &mut Vec<Fault>) -> Option<ServiceCidr> {
    let mut faults = Faults::new("ServiceCIDR", &object.metadata, faults);
    let name = cluster_scoped(&object.metadata, &mut faults)?;
    let mut cidrs = Vec::new();
    for (i, text) in object
        .spec
        .iter()
        .flat_map(|spec| spec.cidrs.iter().flatten())
        .enumerate()
    {
        cidrs.extend(faults.keep(|| format!("spec.cidrs[{i}]"), parse_cidr(text)));
    }
    Some(ServiceCidr { name, cidrs })
}
