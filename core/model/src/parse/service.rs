//! [`parse_service`]: what can be used of a Service.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use k8s_openapi::api::core::v1 as core;

use super::{Fault, Faults, addresses, namespaced, parse_cidr, parse_ip, parse_policy, parse_port, parse_protocol};
use crate::service::{Family, IpMode, LoadBalancerIngress, Service, ServicePort, ServiceType};

/// Three hours, the API's default for `sessionAffinityConfig.clientIP.timeoutSeconds`.
const DEFAULT_AFFINITY_SECONDS: u32 = 10_800;
const MAX_AFFINITY_SECONDS: u32 = 86_400;

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
    let mut service = Service {
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
    };
    // There may be tens of thousands, and most hold one entry in a list that grew to four.
    service.cluster_ips.shrink_to_fit();
    service.families.shrink_to_fit();
    service.ports.shrink_to_fit();
    Some(service)
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
