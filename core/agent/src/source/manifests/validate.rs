//! validate: what the API server would refuse, as far as it bears on forwarding or names.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use portolan_model::Family;
use portolan_model::parse::{parse_cidr, parse_ip};

use super::allocate::FieldError;
use super::decode::Manifest;
use super::names;

/// Everything that is wrong with an object; what the model's parsers report comes on top.
pub(crate) fn validate(manifest: &Manifest) -> Vec<FieldError> {
    let mut check = Check(Vec::new());
    check.metadata(manifest);
    match manifest {
        Manifest::Service(service) => check.service(service),
        Manifest::Endpoints(endpoints) => check.endpoints(endpoints),
        Manifest::EndpointSlice(slice) => {
            let ports = slice.ports.iter().flatten();
            check.port_names("ports", ports.map(|port| port.name.as_deref().unwrap_or_default()));
        }
        _ => {}
    }
    check.0
}

struct Check(Vec<FieldError>);

// === impl Check ===

impl Check {
    fn fail(&mut self, field: impl Into<String>, cause: impl Into<String>) {
        self.0.push((field.into(), cause.into()));
    }

    fn keep<T>(&mut self, field: impl Into<String>, result: Result<T, String>) -> Option<T> {
        result.map_err(|cause| self.fail(field, cause)).ok()
    }

    fn one_of(&mut self, field: &str, value: Option<&str>, allowed: &[&str]) {
        if let Some(value) = value.filter(|value| !value.is_empty() && !allowed.contains(value)) {
            self.fail(field, format!("{value:?} is not one of {}", allowed.join(", ")));
        }
    }

    fn metadata(&mut self, manifest: &Manifest) {
        let meta = manifest.metadata();
        let name = meta.name.as_deref().unwrap_or_default();
        let rule = match manifest {
            Manifest::Service(_) => names::label_1035,
            Manifest::Namespace(_) => names::label,
            _ => names::subdomain,
        };
        self.keep("metadata.name", rule(name));
        if let Some(namespace) = &meta.namespace {
            self.keep("metadata.namespace", names::label(namespace));
        }
        for (key, value) in meta.labels.iter().flatten() {
            self.keep("metadata.labels", names::label_key(key));
            self.keep(format!("metadata.labels[{key}]"), names::label_value(value));
        }
    }

    fn service(&mut self, service: &core::Service) {
        let Some(spec) = &service.spec else {
            return self.fail("spec", "is missing");
        };
        let type_ = spec
            .type_
            .as_deref()
            .filter(|type_| !type_.is_empty())
            .unwrap_or("ClusterIP");
        let types = ["ClusterIP", "NodePort", "LoadBalancer", "ExternalName"];
        self.one_of("spec.type", Some(type_), &types);
        for (key, value) in spec.selector.iter().flatten() {
            self.keep("spec.selector", names::label_key(key));
            self.keep(format!("spec.selector[{key}]"), names::label_value(value));
        }
        self.cluster_ips(spec, type_);
        self.families(spec);
        self.ports(spec, type_);
        self.policies(spec, type_);
        for (i, text) in spec.external_ips.iter().flatten().enumerate() {
            self.outside_address(format!("spec.externalIPs[{i}]"), text);
        }
        for (i, text) in spec.load_balancer_source_ranges.iter().flatten().enumerate() {
            self.keep(format!("spec.loadBalancerSourceRanges[{i}]"), parse_cidr(text));
        }
        if type_ != "LoadBalancer" && spec.load_balancer_source_ranges.iter().flatten().next().is_some() {
            self.fail("spec.loadBalancerSourceRanges", "is for type LoadBalancer only");
        }
        if type_ == "ExternalName" {
            match spec.external_name.as_deref().unwrap_or_default().trim_end_matches('.') {
                "" => self.fail("spec.externalName", "is missing (type ExternalName needs one)"),
                name => {
                    self.keep("spec.externalName", names::subdomain(name));
                }
            }
        }
        let seconds = spec
            .session_affinity_config
            .as_ref()
            .and_then(|config| config.client_ip.as_ref());
        if let Some(seconds) = seconds.and_then(|client_ip| client_ip.timeout_seconds)
            && !(1..=86_400).contains(&seconds)
        {
            let cause = format!("{seconds} is not between 1 and 86400");
            self.fail("spec.sessionAffinityConfig.clientIP.timeoutSeconds", cause);
        }
        self.load_balancer_status(service);
    }

    fn cluster_ips(&mut self, spec: &core::ServiceSpec, type_: &str) {
        let one = spec.cluster_ip.as_deref().filter(|text| !text.is_empty());
        let many: Vec<&str> = spec.cluster_ips.iter().flatten().map(String::as_str).collect();
        if let (Some(one), Some(first)) = (one, many.first())
            && one != *first
        {
            self.fail(
                "spec.clusterIPs[0]",
                format!("{first:?} is not the value of spec.clusterIP, {one:?}"),
            );
        }
        let all = if many.is_empty() {
            one.into_iter().collect()
        } else {
            many
        };
        if all.is_empty() {
            return;
        }
        if type_ == "ExternalName" {
            return self.fail("spec.clusterIP", "has to be empty for type ExternalName");
        }
        if all.contains(&"None") {
            if all.len() > 1 {
                self.fail("spec.clusterIPs", "None stands alone");
            }
            if type_ != "ClusterIP" {
                self.fail("spec.clusterIP", format!("cannot be None for type {type_}"));
            }
            return;
        }
        let mut families = BTreeSet::new();
        for (i, text) in all.iter().enumerate() {
            let field = if i == 0 {
                "spec.clusterIP".to_string()
            } else {
                format!("spec.clusterIPs[{i}]")
            };
            if let Some(ip) = self.keep(field.clone(), parse_ip(text))
                && !families.insert(Family::of(&ip))
            {
                self.fail(field, format!("{ip} is a second address of its family"));
            }
        }
    }

    fn families(&mut self, spec: &core::ServiceSpec) {
        let policies = ["SingleStack", "PreferDualStack", "RequireDualStack"];
        self.one_of("spec.ipFamilyPolicy", spec.ip_family_policy.as_deref(), &policies);
        let mut seen = BTreeSet::new();
        for (i, text) in spec.ip_families.iter().flatten().enumerate() {
            let field = format!("spec.ipFamilies[{i}]");
            self.one_of(&field, Some(text), &["IPv4", "IPv6"]);
            if !seen.insert(text) {
                self.fail(field, format!("{text} is listed twice"));
            }
        }
    }

    fn ports(&mut self, spec: &core::ServiceSpec, type_: &str) {
        let ports = spec.ports.as_deref().unwrap_or_default();
        let headless = spec.cluster_ip.as_deref() == Some("None");
        if ports.is_empty() && !headless && type_ != "ExternalName" {
            self.fail(
                "spec.ports",
                "is missing (a Service that is not headless needs at least one port)",
            );
        }
        self.port_names(
            "spec.ports",
            ports.iter().map(|port| port.name.as_deref().unwrap_or_default()),
        );
        let mut seen = BTreeMap::new();
        let mut node_ports = BTreeMap::new();
        for (i, port) in ports.iter().enumerate() {
            let field = |name: &str| format!("spec.ports[{i}].{name}");
            self.port_number(field("port"), port.port);
            let protocol = port
                .protocol
                .as_deref()
                .filter(|protocol| !protocol.is_empty())
                .unwrap_or("TCP");
            self.one_of(&field("protocol"), Some(protocol), &["TCP", "UDP", "SCTP"]);
            if let Some(first) = seen.insert((port.port, protocol), i) {
                let cause = format!("{}/{protocol} is spec.ports[{first}] already", port.port);
                self.fail(field("port"), cause);
            }
            match &port.target_port {
                Some(IntOrString::Int(0)) | None => {}
                Some(IntOrString::Int(number)) => self.port_number(field("targetPort"), *number),
                Some(IntOrString::String(name)) => {
                    self.keep(field("targetPort"), names::port_name(name));
                }
            }
            let Some(node_port) = port.node_port.filter(|port| *port != 0) else {
                continue;
            };
            if !matches!(type_, "NodePort" | "LoadBalancer") {
                self.fail(field("nodePort"), format!("is not for type {type_}"));
            }
            self.port_number(field("nodePort"), node_port);
            if let Some(first) = node_ports.insert((node_port, protocol), i) {
                let cause = format!("{node_port}/{protocol} is the node port of spec.ports[{first}] already");
                self.fail(field("nodePort"), cause);
            }
        }
    }

    fn port_names<'a>(&mut self, field: &str, ports: impl Iterator<Item = &'a str>) {
        let ports: Vec<&str> = ports.collect();
        let mut seen = BTreeSet::new();
        for (i, name) in ports.iter().enumerate() {
            let field = format!("{field}[{i}].name");
            if name.is_empty() {
                if ports.len() > 1 {
                    self.fail(field, "is missing (each of several ports needs a name)");
                }
                continue;
            }
            self.keep(field.clone(), names::label(name));
            if !seen.insert(*name) {
                self.fail(field, format!("{name:?} is the name of another port already"));
            }
        }
    }

    fn port_number(&mut self, field: String, number: i32) {
        if !(1..=65_535).contains(&number) {
            self.fail(field, format!("{number} is not a port (1 to 65535)"));
        }
    }

    fn policies(&mut self, spec: &core::ServiceSpec, type_: &str) {
        self.one_of(
            "spec.sessionAffinity",
            spec.session_affinity.as_deref(),
            &["None", "ClientIP"],
        );
        let external = spec
            .external_traffic_policy
            .as_deref()
            .filter(|policy| !policy.is_empty());
        self.one_of("spec.externalTrafficPolicy", external, &["Cluster", "Local"]);
        let reachable =
            matches!(type_, "NodePort" | "LoadBalancer") || spec.external_ips.iter().flatten().next().is_some();
        if external.is_some() && !reachable {
            self.fail(
                "spec.externalTrafficPolicy",
                format!("is not for type {type_} without external IPs"),
            );
        }
        self.one_of(
            "spec.internalTrafficPolicy",
            spec.internal_traffic_policy.as_deref(),
            &["Cluster", "Local"],
        );
        let distributions = ["PreferClose", "PreferSameZone", "PreferSameNode"];
        self.one_of(
            "spec.trafficDistribution",
            spec.traffic_distribution.as_deref(),
            &distributions,
        );
        if let Some(port) = spec.health_check_node_port.filter(|port| *port != 0) {
            self.port_number("spec.healthCheckNodePort".into(), port);
            if type_ != "LoadBalancer" || external != Some("Local") {
                let cause = "is for type LoadBalancer with externalTrafficPolicy Local only";
                self.fail("spec.healthCheckNodePort", cause);
            }
        }
    }

    /// An address outside the cluster: not the machine's own, not a group.
    fn outside_address(&mut self, field: String, text: &str) {
        let Some(ip) = self.keep(field.clone(), parse_ip(text)) else {
            return;
        };
        let link_local = match ip {
            IpAddr::V4(ip) => ip.is_link_local(),
            IpAddr::V6(ip) => ip.is_unicast_link_local(),
        };
        if ip.is_unspecified() || ip.is_loopback() || ip.is_multicast() || link_local {
            self.fail(
                field,
                format!("{ip} cannot be used (unspecified, loopback, link-local or multicast)"),
            );
        }
    }

    fn load_balancer_status(&mut self, service: &core::Service) {
        let status = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
        let ingress = status.and_then(|status| status.ingress.as_deref()).unwrap_or_default();
        for (i, entry) in ingress.iter().enumerate() {
            let field = |name: &str| format!("status.loadBalancer.ingress[{i}].{name}");
            if let Some(text) = entry.ip.as_deref().filter(|text| !text.is_empty()) {
                self.keep(field("ip"), parse_ip(text));
            }
            self.one_of(&field("ipMode"), entry.ip_mode.as_deref(), &["VIP", "Proxy"]);
        }
    }

    fn endpoints(&mut self, endpoints: &core::Endpoints) {
        for (i, subset) in endpoints.subsets.iter().flatten().enumerate() {
            for (list, addresses) in [
                ("addresses", &subset.addresses),
                ("notReadyAddresses", &subset.not_ready_addresses),
            ] {
                for (j, address) in addresses.iter().flatten().enumerate() {
                    self.outside_address(format!("subsets[{i}].{list}[{j}].ip"), &address.ip);
                    if let Some(hostname) = address.hostname.as_deref().filter(|name| !name.is_empty()) {
                        self.keep(format!("subsets[{i}].{list}[{j}].hostname"), names::label(hostname));
                    }
                }
            }
            let ports = subset.ports.as_deref().unwrap_or_default();
            let field = format!("subsets[{i}].ports");
            self.port_names(
                &field,
                ports.iter().map(|port| port.name.as_deref().unwrap_or_default()),
            );
            for (j, port) in ports.iter().enumerate() {
                self.port_number(format!("{field}[{j}].port"), port.port);
                let protocols = ["TCP", "UDP", "SCTP"];
                self.one_of(&format!("{field}[{j}].protocol"), port.protocol.as_deref(), &protocols);
            }
        }
    }
}
