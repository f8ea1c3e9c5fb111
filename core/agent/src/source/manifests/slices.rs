//! slices: EndpointSlices as the controllers make them, from Pods by selector and from Endpoints.
//!
//! The rules are those of kube-controller-manager's endpointslice and endpointslicemirroring controllers. Slices are not
//! cut at 100 endpoints: nothing behind this source can tell the difference.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use portolan_model::parse::parse_ip;
use portolan_model::{
    Conditions, Endpoint, EndpointNames, EndpointPort, EndpointSlice, Family, Hints, Interner, NamespacedName,
    Protocol, ServiceName,
};

use super::names::fnv1a;

/// A Pod with what its surroundings add.
pub(crate) struct PodView<'a> {
    pub(crate) pod: &'a core::Pod,
    /// The zone of its Node.
    pub(crate) zone: Option<&'a str>,
    /// `spec.hostname` and `spec.subdomain`, as the StatefulSet controller would have set them.
    pub(crate) hostname: Option<(&'a str, &'a str)>,
}

/// Slices by their ports: endpoints that resolve a named port to different numbers stand in different slices.
type Grouped = BTreeMap<(Family, Vec<(String, Protocol, u16)>), Vec<Endpoint>>;

/// The slices of a Service with a selector, from the pods that it selects.
pub(crate) fn from_pods<'a>(
    name: &ServiceName,
    service: &core::Service,
    pods: impl Iterator<Item = PodView<'a>>,
    interner: &mut Interner,
) -> Vec<EndpointSlice> {
    let Some(spec) = &service.spec else { return Vec::new() };
    let families: Vec<Family> = spec
        .ip_families
        .iter()
        .flatten()
        .filter_map(|text| family(text))
        .collect();
    let mut grouped = Grouped::new();
    for view in pods {
        let phase = view.pod.status.as_ref().and_then(|status| status.phase.as_deref());
        if matches!(phase, Some("Succeeded" | "Failed")) {
            continue;
        }
        let ips = pod_ips(view.pod);
        let ports = endpoint_ports(spec, view.pod);
        for family in &families {
            let Some(ip) = ips.iter().find(|ip| Family::of(ip) == *family) else {
                continue;
            };
            let endpoint = pod_endpoint(*ip, name, spec, &view, interner);
            grouped.entry((*family, ports.clone())).or_default().push(endpoint);
        }
    }
    finish(name, grouped)
}

/// The slices that mirror an Endpoints object.
pub(crate) fn from_endpoints(
    name: &ServiceName,
    object: &core::Endpoints,
    interner: &mut Interner,
) -> Vec<EndpointSlice> {
    let mut grouped = Grouped::new();
    for subset in object.subsets.iter().flatten() {
        let ports = subset.ports.iter().flatten().filter_map(|port| {
            let number = u16::try_from(port.port).ok()?;
            Some((
                port.name.clone().unwrap_or_default(),
                protocol(port.protocol.as_deref()),
                number,
            ))
        });
        let ports: Vec<_> = ports.collect();
        for (ready, addresses) in [(true, &subset.addresses), (false, &subset.not_ready_addresses)] {
            for address in addresses.iter().flatten() {
                let Ok(ip) = parse_ip(&address.ip) else { continue };
                let target = address
                    .target_ref
                    .as_ref()
                    .filter(|target| target.kind.as_deref() == Some("Pod"));
                let names = EndpointNames {
                    hostname: address
                        .hostname
                        .as_deref()
                        .filter(|name| !name.is_empty())
                        .map(Into::into),
                    target_pod: target.and_then(|target| target.name.as_deref()).map(|pod| {
                        let namespace = target.and_then(|target| target.namespace.as_deref());
                        NamespacedName::new(interner.intern(namespace.unwrap_or(&name.namespace)), pod)
                    }),
                    ..EndpointNames::default()
                };
                let endpoint = Endpoint {
                    address: ip,
                    // The mirroring controller sets `ready` only; what is absent is read as serving.
                    conditions: Conditions {
                        ready,
                        ..Conditions::default()
                    },
                    node_name: address.node_name.as_deref().map(|node| interner.intern(node)),
                    hints: None,
                    names: names.boxed(),
                };
                grouped
                    .entry((Family::of(&ip), ports.clone()))
                    .or_default()
                    .push(endpoint);
            }
        }
    }
    finish(name, grouped)
}

/// A slice's name depends on its ports only, so that a changed endpoint changes one slice.
fn finish(service: &ServiceName, grouped: Grouped) -> Vec<EndpointSlice> {
    let slices = grouped.into_iter().map(|((family, ports), mut endpoints)| {
        endpoints.sort_by(|a, b| (a.address, a.target_pod()).cmp(&(b.address, b.target_pod())));
        let hash = fnv1a(&format!("{family} {ports:?}"));
        let name = format!("{}-{}-{hash:016x}", service.name, family.to_string().to_lowercase());
        let ports = ports.into_iter().map(|(name, protocol, number)| EndpointPort {
            name: name.into(),
            protocol,
            port: Some(number),
        });
        EndpointSlice {
            imported: None,
            name: NamespacedName::new(service.namespace.clone(), name),
            service: Some(service.clone()),
            family,
            ports: ports.collect(),
            endpoints: endpoints.into(),
            last_change_trigger: None,
        }
    });
    slices.collect()
}

fn pod_endpoint(
    ip: IpAddr,
    service: &ServiceName,
    spec: &core::ServiceSpec,
    view: &PodView<'_>,
    interner: &mut Interner,
) -> Endpoint {
    let serving = is_ready(view.pod);
    let terminating = view.pod.metadata.deletion_timestamp.is_some();
    let ready = spec.publish_not_ready_addresses == Some(true) || (serving && !terminating);
    let node_name = view.pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref());
    let node_name = node_name
        .filter(|node| !node.is_empty())
        .map(|node| interner.intern(node));
    let zone = view.zone.map(|zone| interner.intern(zone));
    let hostname = view.hostname.filter(|(_, subdomain)| **subdomain == *service.name);
    let pod_name: Arc<str> = view.pod.metadata.name.as_deref().unwrap_or_default().into();
    Endpoint {
        address: ip,
        conditions: Conditions {
            ready,
            serving,
            terminating,
        },
        hints: hints(spec, ready, zone.as_ref(), node_name.as_ref()).map(Box::new),
        node_name,
        names: EndpointNames {
            more_addresses: Box::default(),
            hostname: hostname.map(|(hostname, _)| hostname.into()),
            zone,
            target_pod: Some(NamespacedName::new(service.namespace.clone(), pod_name)),
        }
        .boxed(),
    }
}

/// `trafficDistribution` (KEP-4444, KEP-3015): a ready endpoint is for its own zone, with PreferSameNode for its node too.
fn hints(spec: &core::ServiceSpec, ready: bool, zone: Option<&Arc<str>>, node: Option<&Arc<str>>) -> Option<Hints> {
    let same_node = match spec.traffic_distribution.as_deref() {
        Some("PreferClose" | "PreferSameZone") => false,
        Some("PreferSameNode") => true,
        _ => return None,
    };
    let hints = Hints {
        zones: zone.cloned().into_iter().collect(),
        nodes: node.filter(|_| same_node).cloned().into_iter().collect(),
    };
    (ready && !(hints.zones.is_empty() && hints.nodes.is_empty())).then_some(hints)
}

/// Ready unless the status says otherwise: a manifest written by hand has no conditions.
fn is_ready(pod: &core::Pod) -> bool {
    let Some(status) = &pod.status else { return true };
    let condition = status
        .conditions
        .iter()
        .flatten()
        .find(|condition| condition.type_ == "Ready");
    match condition {
        Some(condition) => condition.status == "True",
        None => matches!(status.phase.as_deref(), None | Some("" | "Running")),
    }
}

fn pod_ips(pod: &core::Pod) -> Vec<IpAddr> {
    let Some(status) = &pod.status else { return Vec::new() };
    let many = status.pod_ips.iter().flatten().map(|entry| entry.ip.as_str());
    let mut found: Vec<IpAddr> = many.filter_map(|text| parse_ip(text).ok()).collect();
    if found.is_empty() {
        found.extend(status.pod_ip.as_deref().and_then(|text| parse_ip(text).ok()));
    }
    found
}

/// The Service's ports as this pod serves them. A named target port that the pod does not have is left out.
fn endpoint_ports(spec: &core::ServiceSpec, pod: &core::Pod) -> Vec<(String, Protocol, u16)> {
    let ports = spec.ports.iter().flatten().filter_map(|port| {
        let protocol = protocol(port.protocol.as_deref());
        let number = match &port.target_port {
            None | Some(IntOrString::Int(0)) => port.port,
            Some(IntOrString::Int(number)) => *number,
            Some(IntOrString::String(name)) => container_port(pod, name, protocol)?,
        };
        Some((
            port.name.clone().unwrap_or_default(),
            protocol,
            u16::try_from(number).ok()?,
        ))
    });
    ports.collect()
}

/// The port of that name among the containers, then among the sidecars (init containers that are always restarted).
fn container_port(pod: &core::Pod, name: &str, wanted: Protocol) -> Option<i32> {
    let spec = pod.spec.as_ref()?;
    let sidecars = spec.init_containers.iter().flatten();
    let sidecars = sidecars.filter(|container| container.restart_policy.as_deref() == Some("Always"));
    let ports = spec
        .containers
        .iter()
        .chain(sidecars)
        .flat_map(|container| container.ports.iter().flatten());
    let mut ports = ports.filter(|port| protocol(port.protocol.as_deref()) == wanted);
    ports
        .find(|port| port.name.as_deref() == Some(name))
        .map(|port| port.container_port)
}

fn protocol(text: Option<&str>) -> Protocol {
    match text {
        Some("UDP") => Protocol::Udp,
        Some("SCTP") => Protocol::Sctp,
        _ => Protocol::Tcp,
    }
}

fn family(text: &str) -> Option<Family> {
    match text {
        "IPv4" => Some(Family::V4),
        "IPv6" => Some(Family::V6),
        _ => None,
    }
}
