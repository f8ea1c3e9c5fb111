//! [`plan_service`]: one Service, one node, one plan.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;
use portolan_model::{
    Family, IpMode, Node, PortEndpoint, Protocol, Service, ServicePort, ServiceType, ServiceView, TrafficPolicy,
};

use crate::categorize::{Membership, categorize, uses_local};
use crate::{
    Backend, EndpointSet, Frontend, FrontendKind, HealthCheckPlan, NodePlan, Options, PortPlan, Routes, ServicePlan,
    Verdict,
};

/// Plans one Service for one node.
///
/// `node` is the object of the node we run on; without it nothing is local and no zone is known.
pub fn plan_service(
    view: ServiceView<'_>,
    node: Option<&Node>,
    node_plan: &NodePlan,
    options: &Options,
) -> ServicePlan {
    let service = view.service;
    let mut plan = ServicePlan {
        service: service.name.clone(),
        ports: Vec::with_capacity(service.ports.len() * service.cluster_ips.len()),
        health_check: None,
        notes: Vec::new(),
    };
    if !service.is_forwarded() {
        return plan;
    }
    for family in Family::ALL {
        // A Service is served in the families that it has a cluster IP of (KEP-563), its other addresses too.
        if !service.cluster_ips.iter().any(|ip| Family::of(ip) == family) {
            continue;
        }
        for port in &service.ports {
            plan.ports
                .push(plan_port(view, port, family, node, node_plan, options, &mut plan.notes));
        }
    }
    plan.ports
        .sort_by(|a, b| (a.family, &a.name, a.protocol).cmp(&(b.family, &b.name, b.protocol)));
    plan.health_check = health_check(view, node_name(node, options));
    plan.notes.sort_unstable();
    plan.notes.dedup();
    plan
}

fn node_name<'a>(node: Option<&'a Node>, options: &'a Options) -> &'a str {
    node.map_or(&*options.node_name, |node| &*node.name)
}

fn plan_port(
    view: ServiceView<'_>,
    port: &ServicePort,
    family: Family,
    node: Option<&Node>,
    node_plan: &NodePlan,
    options: &Options,
    notes: &mut Vec<String>,
) -> PortPlan {
    let service = view.service;
    let name = node_name(node, options);
    let endpoints = view.endpoints(port, family);
    let sets = categorize(&endpoints, name, node.and_then(Node::zone));
    let cluster = backends(&endpoints, &sets.cluster, name);
    let local = if uses_local(service) {
        backends(&endpoints, &sets.local, name)
    } else {
        Vec::new()
    };
    let routing = Routing {
        has_cluster: !cluster.is_empty(),
        has_local: !local.is_empty(),
        any: sets.any,
        last_resort: !cluster.is_empty() && !sets.cluster.contains(&Membership::Ready),
        pods_known: node_plan.pods.is_known(family),
        masquerade_all: options.masquerade_all,
    };
    let frontends = frontends(service, port, family, &routing, options, notes);
    PortPlan {
        name: port.name.clone(),
        protocol: port.protocol,
        family,
        affinity_seconds: service.affinity_seconds,
        cluster,
        local,
        serving: serving(&endpoints, port.protocol),
        frontends,
    }
}

fn backends(endpoints: &[PortEndpoint<'_>], memberships: &[Membership], node: &str) -> Vec<Backend> {
    let chosen = endpoints
        .iter()
        .zip(memberships)
        .filter(|(_, membership)| membership.is_in());
    // Nearly always all of them: one allocation.
    let mut backends = Vec::with_capacity(endpoints.len());
    backends.extend(chosen.map(|(e, _)| Backend {
        address: e.address,
        local: e.endpoint.node_name.as_deref() == Some(node),
    }));
    backends
}

/// kube-proxy's conntrack reconciler keeps flows to whatever is ready or serving.
fn serving(endpoints: &[PortEndpoint<'_>], protocol: Protocol) -> Vec<SocketAddr> {
    if protocol == Protocol::Tcp {
        return Vec::new();
    }
    let serving = endpoints.iter().filter(|e| {
        let conditions = e.endpoint.conditions;
        conditions.ready || (conditions.serving && conditions.terminating)
    });
    serving.map(|e| e.address).collect()
}

/// Frontends of one port in one family, sorted. An address that stands twice is served once, as the kind that comes
/// first in [`FrontendKind`].
fn frontends(
    service: &Service,
    port: &ServicePort,
    family: Family,
    routing: &Routing,
    options: &Options,
    notes: &mut Vec<String>,
) -> Vec<Frontend> {
    let of_family = |ip: &&IpAddr| Family::of(ip) == family;
    let internal = routing.internal(service.internal_traffic_policy);
    let external = routing.external(service.external_traffic_policy);
    let mut found: Vec<Frontend> = Vec::new();
    let mut add = |kind, address: Option<IpAddr>, port, routes, source_ranges: Option<Arc<[IpNet]>>| {
        if address.is_none() || !found.iter().any(|known| known.address == address) {
            found.push(Frontend {
                kind,
                address,
                port,
                routes,
                source_ranges,
            });
        } else if let Some(address) = address {
            notes.push(format!(
                "{address} is listed more than once; it is served as the first of its kinds"
            ));
        }
    };
    for ip in service.cluster_ips.iter().filter(of_family) {
        add(FrontendKind::ClusterIp, Some(*ip), port.port, internal, None);
    }
    if options.external_ips {
        for ip in service.external_ips.iter().filter(of_family) {
            add(FrontendKind::ExternalIp, Some(*ip), port.port, external, None);
        }
    }
    let vips = service
        .load_balancer
        .iter()
        .filter(|ingress| ingress.ip_mode == IpMode::Vip);
    for ip in vips.map(|ingress| &ingress.ip).filter(of_family) {
        add(
            FrontendKind::LoadBalancerIp,
            Some(*ip),
            port.port,
            external,
            source_ranges(service, family),
        );
    }
    if service.type_ != ServiceType::ClusterIp
        && let Some(node_port) = port.node_port
    {
        let routes = routing.node_port(service.external_traffic_policy);
        add(FrontendKind::NodePort, None, node_port, routes, None);
    }
    let others = !service.source_ranges.is_empty() && source_ranges(service, family).is_none();
    if others && service.type_ == ServiceType::LoadBalancer {
        notes.push(format!(
            "loadBalancerSourceRanges names no {family} range: {family} clients are not restricted"
        ));
    }
    found.sort_unstable();
    found
}

/// Ranges of the family. None of this family, or one that holds everybody, means no restriction, as in kube-proxy.
fn source_ranges(service: &Service, family: Family) -> Option<Arc<[IpNet]>> {
    let ranges = service
        .source_ranges
        .iter()
        .filter(|range| Family::of(&range.addr()) == family);
    let ranges: Arc<[IpNet]> = ranges.copied().collect();
    (!ranges.is_empty() && !ranges.iter().any(|range| range.prefix_len() == 0)).then_some(ranges)
}

/// What the verdicts of a port depend on.
struct Routing {
    has_cluster: bool,
    has_local: bool,
    any: bool,
    /// No endpoint is ready: those there are terminate, and serve until they have ended.
    last_resort: bool,
    pods_known: bool,
    masquerade_all: bool,
}

impl Routing {
    fn forward(&self, set: EndpointSet, masquerade: bool) -> Verdict {
        let has = match set {
            EndpointSet::Cluster => self.has_cluster,
            EndpointSet::Local => self.has_local,
        };
        match has {
            true => Verdict::Forward { set, masquerade },
            // Endpoints elsewhere are a reason to stay silent, so that a load balancer moves on (KEP-1669); when there
            // is nobody at all the client should know at once.
            false if self.any => Verdict::Drop,
            false => Verdict::Reject,
        }
    }

    /// Cluster IPs: pods keep their address. Where pods cannot be told apart nobody is masqueraded.
    fn internal(&self, policy: TrafficPolicy) -> Routes {
        let set = match policy {
            TrafficPolicy::Cluster => EndpointSet::Cluster,
            TrafficPolicy::Local => EndpointSet::Local,
        };
        let other = self.forward(set, self.masquerade_all || self.pods_known);
        Routes {
            pod: self.forward(set, self.masquerade_all),
            node: other,
            outside: other,
        }
    }

    /// Node ports, external IPs and load balancer IPs. Policy Local keeps the client's address and this node's
    /// endpoints; pods and the node itself are short-circuited to all endpoints, whatever the policy.
    fn external(&self, policy: TrafficPolicy) -> Routes {
        match policy {
            TrafficPolicy::Cluster => Routes::same(self.forward(EndpointSet::Cluster, true)),
            TrafficPolicy::Local => Routes {
                pod: self.forward(EndpointSet::Cluster, false),
                node: self.forward(EndpointSet::Cluster, true),
                outside: self.forward(EndpointSet::Local, false),
            },
        }
    }

    /// Node ports: external, but under policy Local the fallback to terminating endpoints never crosses nodes. A pod that
    /// asks the node port of a node without one fails (Kubernetes' own test of KEP-1669 wants that), and so does whoever else
    /// is treated like the node, see [`Frontend::verdict`]: they get what the outside gets.
    fn node_port(&self, policy: TrafficPolicy) -> Routes {
        let external = self.external(policy);
        match self.last_resort {
            true => Routes {
                node: external.outside,
                ..external
            },
            false => external,
        }
    }
}

/// Ready endpoints on this node. Each address counts once; a pod of both families counts once, too, so the larger of
/// the two families is taken (kube-proxy answers for one family only).
fn health_check(view: ServiceView<'_>, node: &str) -> Option<HealthCheckPlan> {
    let service = view.service;
    let port = service.health_check_node_port?;
    if service.external_traffic_policy != TrafficPolicy::Local || service.type_ != ServiceType::LoadBalancer {
        return None;
    }
    let count = |family| {
        let slices = view.slices.iter().filter(|slice| slice.family == family);
        let endpoints = slices.flat_map(|slice| &slice.endpoints);
        let here = endpoints.filter(|e| e.conditions.ready && e.node_name.as_deref() == Some(node));
        here.map(|e| e.address).collect::<BTreeSet<_>>().len()
    };
    Some(HealthCheckPlan {
        port,
        local_endpoints: count(Family::V4).max(count(Family::V6)),
    })
}
