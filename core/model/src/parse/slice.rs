//! [`parse_endpoint_slice`]: what can be used of an EndpointSlice.

use std::sync::Arc;

use k8s_openapi::api::discovery::v1 as discovery;

use super::{Fault, Faults, namespaced, parse_ip, parse_port, parse_protocol};
use crate::endpoint::{Conditions, Endpoint, EndpointNames, EndpointPort, EndpointSlice, Hints};
use crate::import::Imported;
use crate::name::{Interner, NamespacedName};
use crate::service::Family;

/// Label of an EndpointSlice that names its Service.
pub const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";
/// Every label of an EndpointSlice that is read.
pub const SLICE_LABELS: [&str; 3] = [SERVICE_NAME_LABEL, IMPORT_NAME_LABEL, SOURCE_CLUSTER_LABEL];
/// Label of an EndpointSlice of another cluster that names its ServiceImport.
const IMPORT_NAME_LABEL: &str = "multicluster.kubernetes.io/service-name";
/// Label of an EndpointSlice of another cluster that names that cluster.
const SOURCE_CLUSTER_LABEL: &str = "multicluster.kubernetes.io/source-cluster";
/// Annotation of an EndpointSlice: when what it follows from happened.
pub const LAST_CHANGE_TRIGGER: &str = "endpoints.kubernetes.io/last-change-trigger-time";

/// An EndpointSlice. `None` when it has no name or an address type that is not IPv4 or IPv6.
pub fn parse_endpoint_slice(
    object: &discovery::EndpointSlice,
    interner: &mut Interner,
    faults: &mut Vec<Fault>,
) -> Option<EndpointSlice> {
    let meta = &object.metadata;
    let mut faults = Faults::new("EndpointSlice", meta, faults);
    let mut name = namespaced(meta, &mut faults)?;
    name.namespace = interner.intern(&name.namespace);
    let family = match object.address_type.as_str() {
        "IPv4" => Family::V4,
        "IPv6" => Family::V6,
        other => {
            faults.push("addressType", format!("{other:?} is not one of IPv4, IPv6"));
            return None;
        }
    };
    let label = |label: &str| {
        let value = meta.labels.as_ref().and_then(|labels| labels.get(label));
        value.filter(|value| !value.is_empty())
    };
    let service = label(SERVICE_NAME_LABEL);
    let service = service.map(|service| NamespacedName::new(name.namespace.clone(), interner.intern(service)));
    let imported = label(IMPORT_NAME_LABEL).zip(label(SOURCE_CLUSTER_LABEL));
    let imported = imported.map(|(service, cluster)| {
        Box::new(Imported {
            service: NamespacedName::new(name.namespace.clone(), interner.intern(service)),
            cluster: interner.intern(cluster),
        })
    });
    let trigger = meta
        .annotations
        .as_ref()
        .and_then(|annotations| annotations.get(LAST_CHANGE_TRIGGER));
    let trigger = trigger.and_then(|time| time.parse::<k8s_openapi::jiff::Timestamp>().ok());
    let mut ports = Vec::new();
    for (i, port) in object.ports.iter().flatten().enumerate() {
        let field = |name: &str| format!("ports[{i}].{name}");
        let protocol = faults.keep(|| field("protocol"), parse_protocol(port.protocol.as_deref()));
        let number = match port.port {
            None => None,
            Some(number) => match faults.keep(|| field("port"), parse_port(number)) {
                Some(number) => Some(number),
                None => continue,
            },
        };
        let Some(protocol) = protocol else { continue };
        ports.push(EndpointPort {
            name: port.name.as_deref().unwrap_or_default().into(),
            protocol,
            port: number,
        });
    }
    let mut endpoints = Vec::with_capacity(object.endpoints.len());
    for (i, endpoint) in object.endpoints.iter().enumerate() {
        endpoints.extend(parse_endpoint(
            i,
            endpoint,
            family,
            &name.namespace,
            interner,
            &mut faults,
        ));
    }
    Some(EndpointSlice {
        name,
        service,
        imported,
        family,
        ports: ports.into(),
        endpoints: endpoints.into(),
        last_change_trigger: trigger.and_then(|time| i64::try_from(time.as_nanosecond()).ok()),
    })
}

fn parse_endpoint(
    index: usize,
    object: &discovery::Endpoint,
    family: Family,
    namespace: &Arc<str>,
    interner: &mut Interner,
    faults: &mut Faults<'_>,
) -> Option<Endpoint> {
    let mut found = Vec::with_capacity(object.addresses.len());
    for (j, text) in object.addresses.iter().enumerate() {
        let field = || format!("endpoints[{index}].addresses[{j}]");
        let Some(ip) = faults.keep(field, parse_ip(text)) else {
            continue;
        };
        if Family::of(&ip) != family {
            faults.push(field(), format!("{ip} is not an {family} address"));
        } else if ip.is_unspecified() || ip.is_multicast() {
            faults.push(field(), format!("{ip} cannot be an endpoint"));
        } else {
            found.push(ip);
        }
    }
    if object.addresses.is_empty() {
        faults.push(format!("endpoints[{index}].addresses"), "is empty");
    }
    let (first, more) = found.split_first()?;
    let conditions = object.conditions.as_ref();
    let target = object
        .target_ref
        .as_ref()
        .filter(|target| target.kind.as_deref() == Some("Pod"));
    let hints = object.hints.as_ref().map(|hints| Hints {
        zones: hints
            .for_zones
            .iter()
            .flatten()
            .map(|zone| interner.intern(&zone.name))
            .collect(),
        nodes: hints
            .for_nodes
            .iter()
            .flatten()
            .map(|node| interner.intern(&node.name))
            .collect(),
    });
    let names = EndpointNames {
        more_addresses: more.into(),
        hostname: object
            .hostname
            .as_deref()
            .filter(|name| !name.is_empty())
            .map(Into::into),
        zone: object
            .zone
            .as_deref()
            .filter(|zone| !zone.is_empty())
            .map(|zone| interner.intern(zone)),
        target_pod: target.and_then(|target| target.name.as_deref()).map(|name| {
            let other = target.and_then(|target| target.namespace.as_deref());
            NamespacedName::new(
                other.map_or_else(|| namespace.clone(), |other| interner.intern(other)),
                name,
            )
        }),
    };
    Some(Endpoint {
        address: *first,
        conditions: Conditions {
            ready: conditions.and_then(|c| c.ready).unwrap_or(true),
            serving: conditions.and_then(|c| c.serving).unwrap_or(true),
            terminating: conditions.and_then(|c| c.terminating).unwrap_or(false),
        },
        node_name: object
            .node_name
            .as_deref()
            .filter(|name| !name.is_empty())
            .map(|name| interner.intern(name)),
        hints: hints
            .filter(|hints| !hints.zones.is_empty() || !hints.nodes.is_empty())
            .map(Box::new),
        names: names.boxed(),
    })
}
