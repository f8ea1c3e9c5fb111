//! Kubernetes objects into the model.
//!
//! Each `parse_*` function takes an object as the API (or a file) gave it and returns what can be used of it. What
//! cannot be used is pushed to `faults` with the object, the field and the cause. `None` means that nothing is left
//! worth having; a caller then keeps what it knew of that object before. Nothing here panics, whatever the object holds.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use ipnet::IpNet;
use k8s_openapi::api::{core::v1 as core, discovery::v1 as discovery, networking::v1 as networking};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::endpoint::{Conditions, Endpoint, EndpointPort, EndpointSlice, Hints};
use crate::name::{Interner, NamespacedName};
use crate::node::{Namespace, Node, Pod, ServiceCidr};
use crate::service::{Family, IpMode, LoadBalancerIngress, Protocol, Service, ServicePort, ServiceType, TrafficPolicy};

/// Label of an EndpointSlice that names its Service.
pub const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";
/// Taint that the cluster autoscaler puts on a Node that it is about to remove.
pub const TO_BE_DELETED_TAINT: &str = "ToBeDeletedByClusterAutoscaler";
const LAST_CHANGE_TRIGGER: &str = "endpoints.kubernetes.io/last-change-trigger-time";
/// Three hours, the API's default for `sessionAffinityConfig.clientIP.timeoutSeconds`.
const DEFAULT_AFFINITY_SECONDS: u32 = 10_800;
const MAX_AFFINITY_SECONDS: u32 = 86_400;

/// Names an object in a message.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectRef {
    /// The kind, such as `Service`.
    pub kind: &'static str,
    /// Empty for objects without a namespace.
    pub namespace: String,
    /// `metadata.name`, `?` when it has none.
    pub name: String,
}

impl fmt::Display for ObjectRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            write!(f, "{} {}", self.kind, self.name)
        } else {
            write!(f, "{} {}/{}", self.kind, self.namespace, self.name)
        }
    }
}

/// Something in an object that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fault {
    /// The object.
    pub object: ObjectRef,
    /// Path of the field, such as `spec.ports[1].port`.
    pub field: String,
    /// What is wrong with it.
    pub cause: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: {}", self.object, self.field, self.cause)
    }
}

impl std::error::Error for Fault {}

/// Collects the faults of one object.
struct Faults<'a> {
    object: ObjectRef,
    into: &'a mut Vec<Fault>,
}

impl<'a> Faults<'a> {
    fn new(kind: &'static str, meta: &ObjectMeta, into: &'a mut Vec<Fault>) -> Self {
        let object = ObjectRef {
            kind,
            namespace: meta.namespace.clone().unwrap_or_default(),
            name: meta.name.clone().unwrap_or_else(|| "?".into()),
        };
        Self { object, into }
    }

    fn push(&mut self, field: impl Into<String>, cause: impl fmt::Display) {
        self.into.push(Fault {
            object: self.object.clone(),
            field: field.into(),
            cause: cause.to_string(),
        });
    }

    /// Keeps the good value, reports the bad one.
    fn keep<T>(&mut self, field: impl FnOnce() -> String, value: Result<T, String>) -> Option<T> {
        value.map_err(|cause| self.push(field(), cause)).ok()
    }
}

/// An IP address as Kubernetes reads it: leading zeros of an IPv4 part are decimal (KEP-4858, "funny IPs").
///
/// # Errors
/// Says what is wrong with the text.
pub fn parse_ip(text: &str) -> Result<IpAddr, String> {
    if let Ok(ip) = text.parse::<IpAddr>() {
        // The API refuses IPv4-mapped IPv6 addresses in new objects; old ones mean the IPv4 address.
        return Ok(ip.to_canonical());
    }
    let parts: Vec<&str> = text.split('.').collect();
    if let [a, b, c, d] = parts[..] {
        let part = |p: &str| (!p.is_empty() && p.bytes().all(|c| c.is_ascii_digit())).then(|| p.parse::<u8>().ok());
        if let (Some(Some(a)), Some(Some(b)), Some(Some(c)), Some(Some(d))) = (part(a), part(b), part(c), part(d)) {
            return Ok(IpAddr::V4(Ipv4Addr::new(a, b, c, d)));
        }
    }
    Err(format!("{text:?} is not an IP address"))
}

/// A CIDR as Kubernetes reads it; host bits are cleared, surrounding blanks ignored (the API allows them in
/// `loadBalancerSourceRanges`).
///
/// # Errors
/// Says what is wrong with the text.
pub fn parse_cidr(text: &str) -> Result<IpNet, String> {
    let text = text.trim();
    let not_a_cidr = || format!("{text:?} is not a CIDR such as 10.0.0.0/8");
    let (address, prefix) = text.split_once('/').ok_or_else(not_a_cidr)?;
    let address = parse_ip(address)?;
    let prefix = prefix.parse::<u8>().map_err(|_| not_a_cidr())?;
    IpNet::new(address, prefix)
        .map(|net| net.trunc())
        .map_err(|_| not_a_cidr())
}

fn parse_port(number: i32) -> Result<u16, String> {
    match u16::try_from(number) {
        Ok(port) if port != 0 => Ok(port),
        _ => Err(format!("{number} is not a port (1 to 65535)")),
    }
}

fn parse_protocol(text: Option<&str>) -> Result<Protocol, String> {
    match text {
        None | Some("" | "TCP") => Ok(Protocol::Tcp),
        Some("UDP") => Ok(Protocol::Udp),
        Some("SCTP") => Ok(Protocol::Sctp),
        Some(other) => Err(format!("{other:?} is not one of TCP, UDP, SCTP")),
    }
}

fn parse_policy(text: Option<&str>) -> Result<TrafficPolicy, String> {
    match text {
        None | Some("" | "Cluster") => Ok(TrafficPolicy::Cluster),
        Some("Local") => Ok(TrafficPolicy::Local),
        Some(other) => Err(format!("{other:?} is not one of Cluster, Local")),
    }
}

fn namespaced(meta: &ObjectMeta, faults: &mut Faults<'_>) -> Option<NamespacedName> {
    let Some(name) = meta.name.as_deref().filter(|name| !name.is_empty()) else {
        faults.push("metadata.name", "is missing");
        return None;
    };
    Some(NamespacedName::new(
        meta.namespace.as_deref().unwrap_or("default"),
        name,
    ))
}

fn cluster_scoped(meta: &ObjectMeta, faults: &mut Faults<'_>) -> Option<Arc<str>> {
    match meta.name.as_deref() {
        Some(name) if !name.is_empty() => Some(name.into()),
        _ => {
            faults.push("metadata.name", "is missing");
            None
        }
    }
}

fn labels(meta: &ObjectMeta) -> BTreeMap<Box<str>, Box<str>> {
    let labels = meta.labels.iter().flatten();
    labels
        .map(|(key, value)| (key.as_str().into(), value.as_str().into()))
        .collect()
}

// === Service ===

/// A Service. `None` when it has no name, no specification or no readable type.
pub fn parse_service(object: &core::Service, faults: &mut Vec<Fault>) -> Option<Service> {
    let mut faults = Faults::new("Service", &object.metadata, faults);
    let name = namespaced(&object.metadata, &mut faults)?;
    let Some(spec) = &object.spec else {
        faults.push("spec", "is missing");
        return None;
    };
    let type_ = match spec.type_.as_deref() {
        None | Some("" | "ClusterIP") => ServiceType::ClusterIp,
        Some("NodePort") => ServiceType::NodePort,
        Some("LoadBalancer") => ServiceType::LoadBalancer,
        Some("ExternalName") => ServiceType::ExternalName,
        Some(other) => {
            faults.push("spec.type", format!("{other:?} is not a Service type"));
            return None;
        }
    };
    let external = type_ == ServiceType::ExternalName;
    let (headless, cluster_ips) = cluster_ips(spec, &mut faults);
    let families = families(spec, &cluster_ips, &mut faults);
    let policy = |field: &str, text: &Option<String>, faults: &mut Faults<'_>| {
        faults
            .keep(|| field.into(), parse_policy(text.as_deref()))
            .unwrap_or_default()
    };
    Some(Service {
        name,
        type_,
        headless: headless && !external,
        cluster_ips: if external { Vec::new() } else { cluster_ips },
        families,
        external_name: spec
            .external_name
            .as_deref()
            .filter(|name| external && !name.is_empty())
            .map(Into::into),
        ports: service_ports(spec, &mut faults),
        external_ips: addresses("spec.externalIPs", spec.external_ips.as_deref(), &mut faults),
        load_balancer: load_balancer(object, type_, &mut faults),
        affinity_seconds: affinity(spec, &mut faults),
        external_traffic_policy: policy("spec.externalTrafficPolicy", &spec.external_traffic_policy, &mut faults),
        internal_traffic_policy: policy("spec.internalTrafficPolicy", &spec.internal_traffic_policy, &mut faults),
        source_ranges: source_ranges(spec, &mut faults),
        health_check_node_port: spec
            .health_check_node_port
            .filter(|port| *port != 0)
            .and_then(|port| faults.keep(|| "spec.healthCheckNodePort".into(), parse_port(port))),
        publish_not_ready_addresses: spec.publish_not_ready_addresses.unwrap_or(false),
    })
}

fn addresses(field: &str, texts: Option<&[String]>, faults: &mut Faults<'_>) -> Vec<IpAddr> {
    let mut found = Vec::new();
    for (i, text) in texts.unwrap_or_default().iter().enumerate() {
        if let Some(ip) = faults.keep(|| format!("{field}[{i}]"), parse_ip(text))
            && !found.contains(&ip)
        {
            found.push(ip);
        }
    }
    found
}

/// Whether the Service is headless, and its cluster IPs. `clusterIPs` wins over `clusterIP`, as in the API.
fn cluster_ips(spec: &core::ServiceSpec, faults: &mut Faults<'_>) -> (bool, Vec<IpAddr>) {
    let many: Vec<String> = spec
        .cluster_ips
        .iter()
        .flatten()
        .filter(|text| !text.is_empty())
        .cloned()
        .collect();
    let one = spec.cluster_ip.as_deref().filter(|text| !text.is_empty());
    if many.first().map(String::as_str).or(one) == Some("None") {
        return (true, Vec::new());
    }
    if many.is_empty() {
        let ip = one.and_then(|text| faults.keep(|| "spec.clusterIP".into(), parse_ip(text)));
        return (false, ip.into_iter().collect());
    }
    let mut found = addresses("spec.clusterIPs", Some(&many), faults);
    let of_family = |family, ips: &[IpAddr]| ips.iter().position(|ip| Family::of(ip) == family);
    let first = [of_family(Family::V4, &found), of_family(Family::V6, &found)];
    if found.len() > first.iter().flatten().count() {
        faults.push("spec.clusterIPs", "two addresses of one family; the second is ignored");
        let mut index = 0..;
        found.retain(|_| index.next().is_some_and(|i| first.contains(&Some(i))));
    }
    (false, found)
}

fn families(spec: &core::ServiceSpec, cluster_ips: &[IpAddr], faults: &mut Faults<'_>) -> Vec<Family> {
    let mut found = Vec::new();
    for (i, text) in spec.ip_families.iter().flatten().enumerate() {
        let family = match text.as_str() {
            "IPv4" => Family::V4,
            "IPv6" => Family::V6,
            other => {
                faults.push(
                    format!("spec.ipFamilies[{i}]"),
                    format!("{other:?} is not one of IPv4, IPv6"),
                );
                continue;
            }
        };
        if !found.contains(&family) {
            found.push(family);
        }
    }
    if found.is_empty() {
        found.extend(cluster_ips.iter().map(Family::of));
    }
    found
}

fn service_ports(spec: &core::ServiceSpec, faults: &mut Faults<'_>) -> Vec<ServicePort> {
    let mut ports: Vec<ServicePort> = Vec::new();
    for (i, port) in spec.ports.iter().flatten().enumerate() {
        let field = |name: &str| format!("spec.ports[{i}].{name}");
        let number = faults.keep(|| field("port"), parse_port(port.port));
        let protocol = faults.keep(|| field("protocol"), parse_protocol(port.protocol.as_deref()));
        let node_port = port.node_port.filter(|port| *port != 0);
        let node_port = node_port.and_then(|port| faults.keep(|| field("nodePort"), parse_port(port)));
        let (Some(number), Some(protocol)) = (number, protocol) else {
            continue;
        };
        if ports
            .iter()
            .any(|known| known.port == number && known.protocol == protocol)
        {
            faults.push(
                field("port"),
                format!("{number}/{protocol} is listed twice; the first one counts"),
            );
            continue;
        }
        let name = port.name.as_deref().unwrap_or_default().into();
        ports.push(ServicePort {
            name,
            protocol,
            port: number,
            node_port,
        });
    }
    ports
}

/// Addresses in the status. The API clears them when the type changes; a file may not.
fn load_balancer(object: &core::Service, type_: ServiceType, faults: &mut Faults<'_>) -> Vec<LoadBalancerIngress> {
    if type_ != ServiceType::LoadBalancer {
        return Vec::new();
    }
    let status = object.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let ingress = status.and_then(|status| status.ingress.as_deref()).unwrap_or_default();
    let mut found: Vec<LoadBalancerIngress> = Vec::new();
    for (i, entry) in ingress.iter().enumerate() {
        let field = |name: &str| format!("status.loadBalancer.ingress[{i}].{name}");
        let Some(text) = entry.ip.as_deref().filter(|text| !text.is_empty()) else {
            continue;
        };
        let Some(ip) = faults.keep(|| field("ip"), parse_ip(text)) else {
            continue;
        };
        let ip_mode = match entry.ip_mode.as_deref() {
            None | Some("" | "VIP") => IpMode::Vip,
            Some("Proxy") => IpMode::Proxy,
            Some(other) => {
                faults.push(field("ipMode"), format!("{other:?} is not one of VIP, Proxy"));
                continue;
            }
        };
        if !found.iter().any(|known| known.ip == ip) {
            found.push(LoadBalancerIngress { ip, ip_mode });
        }
    }
    found
}

fn affinity(spec: &core::ServiceSpec, faults: &mut Faults<'_>) -> Option<u32> {
    match spec.session_affinity.as_deref() {
        None | Some("" | "None") => None,
        Some("ClientIP") => {
            let config = spec
                .session_affinity_config
                .as_ref()
                .and_then(|config| config.client_ip.as_ref());
            let Some(seconds) = config.and_then(|config| config.timeout_seconds) else {
                return Some(DEFAULT_AFFINITY_SECONDS);
            };
            match u32::try_from(seconds) {
                Ok(seconds @ 1..=MAX_AFFINITY_SECONDS) => Some(seconds),
                _ => {
                    let cause = format!("{seconds} is not between 1 and {MAX_AFFINITY_SECONDS}; 10800 is used");
                    faults.push("spec.sessionAffinityConfig.clientIP.timeoutSeconds", cause);
                    Some(DEFAULT_AFFINITY_SECONDS)
                }
            }
        }
        Some(other) => {
            faults.push(
                "spec.sessionAffinity",
                format!("{other:?} is not one of None, ClientIP"),
            );
            None
        }
    }
}

/// A range that cannot be read must not open the load balancer to everyone, so ranges that hold nobody stand for it:
/// the unspecified address of each family.
fn source_ranges(spec: &core::ServiceSpec, faults: &mut Faults<'_>) -> Vec<IpNet> {
    let mut found = Vec::new();
    for (i, text) in spec.load_balancer_source_ranges.iter().flatten().enumerate() {
        let field = || format!("spec.loadBalancerSourceRanges[{i}]");
        match faults.keep(field, parse_cidr(text)) {
            Some(range) => found.push(range),
            None => found.extend([
                IpNet::from(IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
                IpNet::from(IpAddr::V6(Ipv6Addr::UNSPECIFIED)),
            ]),
        }
    }
    found.sort_unstable();
    found.dedup();
    found
}

// === EndpointSlice ===

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
    let service = meta.labels.as_ref().and_then(|labels| labels.get(SERVICE_NAME_LABEL));
    let service = service.filter(|service| !service.is_empty());
    let service = service.map(|service| NamespacedName::new(name.namespace.clone(), interner.intern(service)));
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
    Some(Endpoint {
        address: *first,
        more_addresses: (!more.is_empty()).then(|| more.into()),
        conditions: Conditions {
            ready: conditions.and_then(|c| c.ready).unwrap_or(true),
            serving: conditions.and_then(|c| c.serving).unwrap_or(true),
            terminating: conditions.and_then(|c| c.terminating).unwrap_or(false),
        },
        hostname: object
            .hostname
            .as_deref()
            .filter(|name| !name.is_empty())
            .map(Into::into),
        node_name: object
            .node_name
            .as_deref()
            .filter(|name| !name.is_empty())
            .map(|name| interner.intern(name)),
        zone: object
            .zone
            .as_deref()
            .filter(|zone| !zone.is_empty())
            .map(|zone| interner.intern(zone)),
        hints: hints
            .filter(|hints| !hints.zones.is_empty() || !hints.nodes.is_empty())
            .map(Box::new),
        target_pod: target.and_then(|target| target.name.as_deref()).map(|name| {
            let other = target.and_then(|target| target.namespace.as_deref());
            NamespacedName::new(
                other.map_or_else(|| namespace.clone(), |other| interner.intern(other)),
                name,
            )
        }),
    })
}

// === Node, Namespace, Pod, ServiceCIDR ===

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

#[cfg(test)]
mod tests;
