//! request: one Service asks for what it needs.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::ops::RangeInclusive;

use ipnet::IpNet;
use k8s_openapi::api::core::v1 as core;
use portolan_model::Family;
use portolan_model::parse::parse_ip;

use super::{Allocator, Claims, FieldError};
use crate::source::manifests::names::fnv1a;
use crate::source::manifests::state::Record;

/// The API server's default `--service-node-port-range`.
const NODE_PORTS: RangeInclusive<u16> = 30_000..=32_767;
/// Of these the lower 86 are left to manifests: `min(max(16, size / 32), 128)` (KEP-3668).
const NODE_PORTS_BY_NAME: u16 = 86;

/// One Service's turn.
pub(super) struct Request<'a> {
    pub(super) allocator: &'a Allocator,
    pub(super) name: &'a str,
    pub(super) before: &'a Record,
    pub(super) claims: &'a Claims,
    pub(super) errors: &'a mut Vec<FieldError>,
}

// === impl Request ===

impl Request<'_> {
    fn fail(&mut self, field: impl Into<String>, cause: impl Into<String>) {
        self.errors.push((field.into(), cause.into()));
    }

    pub(super) fn cluster_ips(&mut self, spec: &mut core::ServiceSpec) -> Vec<IpAddr> {
        let headless = spec.cluster_ip.as_deref() == Some("None");
        let named: Vec<IpAddr> = match headless {
            true => Vec::new(),
            false => spec
                .cluster_ips
                .iter()
                .flatten()
                .filter_map(|text| parse_ip(text).ok())
                .collect(),
        };
        let Some(families) = self.families(spec, headless, &named) else {
            return Vec::new();
        };
        spec.ip_families = Some(families.iter().map(ToString::to_string).collect());
        if headless {
            return Vec::new();
        }
        let mut found = Vec::new();
        for (i, family) in families.into_iter().enumerate() {
            match named.get(i) {
                Some(ip) => {
                    let field = if i == 0 {
                        "spec.clusterIP".to_string()
                    } else {
                        format!("spec.clusterIPs[{i}]")
                    };
                    self.check_ip(field, *ip, family);
                    found.push(*ip);
                }
                None => found.extend(self.any_ip(family)),
            }
        }
        spec.cluster_ips = Some(found.iter().map(ToString::to_string).collect());
        spec.cluster_ip = found.first().map(ToString::to_string);
        found
    }

    /// `ipFamilies` and `ipFamilyPolicy` as the API server completes them.
    fn families(&mut self, spec: &mut core::ServiceSpec, headless: bool, named: &[IpAddr]) -> Option<Vec<Family>> {
        let default = self
            .allocator
            .ranges
            .first()
            .map_or(Family::V4, |range| Family::of(&range.addr()));
        let mut families: Vec<Family> = spec
            .ip_families
            .iter()
            .flatten()
            .filter_map(|text| family(text))
            .collect();
        if let Some((i, ip)) = named
            .iter()
            .enumerate()
            .find(|(i, ip)| families.get(*i).is_some_and(|family| *family != Family::of(ip)))
        {
            self.fail(
                format!("spec.ipFamilies[{i}]"),
                format!("is not the family of cluster IP {ip}"),
            );
            return None;
        }
        families.extend(named.iter().skip(families.len()).map(Family::of));
        if families.is_empty() {
            families.push(default);
        }
        // Without a selector nobody knows the endpoints' families, so a headless Service gets both.
        let selectorless = headless && spec.selector.as_ref().is_none_or(BTreeMap::is_empty);
        let policy = spec.ip_family_policy.get_or_insert_with(|| {
            let both = families.len() == 2 || selectorless;
            if both { "RequireDualStack" } else { "SingleStack" }.into()
        });
        let other = match families.first() {
            Some(Family::V4) => Family::V6,
            _ => Family::V4,
        };
        let available = selectorless || self.allocator.range_of(other).is_some();
        match policy.as_str() {
            "SingleStack" if families.len() > 1 => {
                self.fail(
                    "spec.ipFamilyPolicy",
                    "SingleStack does not go with two families; write PreferDualStack",
                );
                return None;
            }
            "RequireDualStack" if families.len() < 2 && !available => {
                let cause = "this folder has service ranges of one family only (see --service-cluster-ip-range)";
                self.fail("spec.ipFamilyPolicy", cause);
                return None;
            }
            "PreferDualStack" | "RequireDualStack" if families.len() < 2 && available => families.push(other),
            _ => {}
        }
        let missing = families
            .iter()
            .find(|family| self.allocator.range_of(**family).is_none());
        if let Some(missing) = missing.filter(|_| !selectorless) {
            let cause = format!("{missing} has no service range here (see --service-cluster-ip-range)");
            self.fail("spec.ipFamilies", cause);
            return None;
        }
        Some(families)
    }

    fn check_ip(&mut self, field: String, ip: IpAddr, family: Family) {
        let in_range = self.allocator.range_of(family).is_some_and(|range| range.contains(&ip));
        if !in_range {
            let ranges: Vec<String> = self.allocator.ranges.iter().map(ToString::to_string).collect();
            let ranges = ranges.join(", ");
            self.fail(
                field,
                format!("{ip} is not in the service range {ranges} (see --service-cluster-ip-range)"),
            );
        } else if let Some(holder) = self.allocator.ips.get(&ip).filter(|holder| *holder != self.name) {
            let cause = format!("{ip} is taken by Service {holder}");
            self.fail(field, cause);
        }
    }

    fn any_ip(&mut self, family: Family) -> Option<IpAddr> {
        let range = self.allocator.range_of(family)?;
        let kept = self.before.cluster_ips.iter().find(|ip| range.contains(*ip));
        if let Some(kept) = kept {
            return Some(*kept);
        }
        let free = |ip: &IpAddr| !self.allocator.ips.contains_key(ip) && !self.claims.ips.contains(ip);
        let found = candidates(range, self.name).find(free);
        if found.is_none() {
            let cause = format!("no address is left in {range} (see --service-cluster-ip-range)");
            self.fail("spec.clusterIP", cause);
        }
        found
    }

    pub(super) fn node_ports(&mut self, spec: &mut core::ServiceSpec) -> BTreeMap<String, u16> {
        let mut found: BTreeMap<String, u16> = BTreeMap::new();
        let automatic = match spec.type_.as_deref() {
            Some("NodePort") => true,
            Some("LoadBalancer") => spec.allocate_load_balancer_node_ports != Some(false),
            _ => return found,
        };
        let mut ports = spec.ports.take().unwrap_or_default();
        for (i, port) in ports.iter().enumerate() {
            let named = port.node_port.and_then(|port| u16::try_from(port).ok());
            if let Some(named) = named.filter(|port| *port != 0) {
                self.check_port(format!("spec.ports[{i}].nodePort"), named);
                found.insert(port_key(port), named);
            }
        }
        for port in ports.iter_mut().filter(|port| port.node_port.unwrap_or(0) == 0) {
            let key = port_key(port);
            let number = format!("{}/", port.port);
            let sibling = found.iter().find(|(other, _)| other.starts_with(&number));
            let kept = self
                .before
                .node_ports
                .get(&key)
                .filter(|kept| !found.values().any(|taken| taken == *kept));
            let chosen = match sibling.map(|(_, port)| port).or(kept) {
                Some(known) => Some(*known),
                None if automatic => self.any_port(&format!("{}:{}", self.name, port.port), &found, "spec.ports"),
                None => None,
            };
            if let Some(chosen) = chosen {
                found.insert(key, chosen);
                port.node_port = Some(i32::from(chosen));
            }
        }
        spec.ports = Some(ports);
        found
    }

    pub(super) fn health_check_node_port(
        &mut self,
        spec: &mut core::ServiceSpec,
        taken: &BTreeMap<String, u16>,
    ) -> Option<u16> {
        let local = spec.external_traffic_policy.as_deref() == Some("Local");
        if !local || spec.type_.as_deref() != Some("LoadBalancer") {
            return None;
        }
        let field = "spec.healthCheckNodePort";
        let named = spec.health_check_node_port.and_then(|port| u16::try_from(port).ok());
        let chosen = match named.filter(|port| *port != 0) {
            Some(named) => {
                self.check_port(field.into(), named);
                Some(named)
            }
            None => self
                .before
                .health_check_node_port
                .or_else(|| self.any_port(&format!("{}:healthCheckNodePort", self.name), taken, field)),
        };
        spec.health_check_node_port = chosen.map(i32::from);
        chosen
    }

    fn check_port(&mut self, field: String, port: u16) {
        if !NODE_PORTS.contains(&port) {
            let (first, last) = (NODE_PORTS.start(), NODE_PORTS.end());
            self.fail(field, format!("{port} is not a node port ({first} to {last})"));
        } else if let Some(holder) = self.allocator.ports.get(&port).filter(|holder| *holder != self.name) {
            let cause = format!("{port} is taken by Service {holder}");
            self.fail(field, cause);
        }
    }

    fn any_port(&mut self, key: &str, own: &BTreeMap<String, u16>, field: &str) -> Option<u16> {
        let first = NODE_PORTS.start() + NODE_PORTS_BY_NAME;
        let count = u64::from(NODE_PORTS.end() - first) + 1;
        let start = fnv1a(key) % count;
        let dynamic = (0..count).map(|i| first + u16::try_from((start + i) % count).unwrap_or(0));
        let free = |port: &u16| {
            !self.allocator.ports.contains_key(port)
                && !self.claims.ports.contains(port)
                && !own.values().any(|taken| taken == port)
        };
        let found = dynamic.chain(*NODE_PORTS.start()..first).find(free);
        if found.is_none() {
            self.fail(field, "no node port is left");
        }
        found
    }
}

/// The key of a node port in a record: `53/UDP`. Ports of one number share a node port unless the manifest names
/// several, whatever their protocol, as in the API.
fn port_key(port: &core::ServicePort) -> String {
    let protocol = port.protocol.as_deref().filter(|protocol| !protocol.is_empty());
    format!("{}/{}", port.port, protocol.unwrap_or("TCP"))
}

fn family(text: &str) -> Option<Family> {
    match text {
        "IPv4" => Some(Family::V4),
        "IPv6" => Some(Family::V6),
        _ => None,
    }
}

/// Addresses of a range in the order in which a Service of that name tries them: from its hash upwards through the upper
/// part, then the lower part. The network's first address and the IPv4 broadcast address are not used.
fn candidates(range: &IpNet, name: &str) -> impl Iterator<Item = IpAddr> {
    let first: u128 = match range.network() {
        IpAddr::V4(ip) => u32::from(ip).into(),
        IpAddr::V6(ip) => ip.into(),
    };
    let is_v4 = range.addr().is_ipv4();
    let bits = u32::from(range.max_prefix_len() - range.prefix_len()).min(62);
    let size = (1u64 << bits).saturating_sub(1 + u64::from(is_v4));
    // min(max(16, size / 16), 256) are left to manifests; a tiny range has no such part (KEP-3070).
    let by_name = match size {
        0..=16 => 0,
        _ => (size / 16).clamp(16, 256),
    };
    let count = size - by_name;
    let start = fnv1a(name).checked_rem(count).unwrap_or(0);
    let dynamic = (0..count).map(move |i| by_name + (start + i) % count);
    dynamic.chain(0..by_name).map(move |offset| {
        let number = first + 1 + u128::from(offset);
        match u32::try_from(number) {
            Ok(number) if is_v4 => IpAddr::V4(number.into()),
            _ => IpAddr::V6(number.into()),
        }
    })
}
