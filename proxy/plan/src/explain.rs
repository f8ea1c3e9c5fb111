//! Why a connection goes where it goes: `portolan-proxy explain`.
//!
//! Nothing is decided here: the verdicts are those of [`plan_service`], the reasons those of [`categorize`].

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use portolan_model::{Family, Node, Protocol, Service, ServiceName, ServiceView, World};

use crate::{
    Backend, EndpointSet, Frontend, Membership, NodePlan, Options, Pods, PortPlan, ServicePlan, Verdict, categorize,
    plan_service,
};

/// A new connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Who opens it.
    pub from: IpAddr,
    /// Where to.
    pub to: SocketAddr,
    /// Its protocol.
    pub protocol: Protocol,
}

/// What a source is to the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the fields of Routes and NodePlan have the words")]
pub enum SourceKind {
    Pod,
    PodElsewhere,
    Node,
    Outside,
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// The question.
    pub packet: Packet,
    /// What the source is taken for.
    pub source: SourceKind,
    /// The frontend that takes the connection; `None` when no Service has that address and port.
    pub frontend: Option<(ServiceName, Box<str>, Frontend)>,
    /// The whole plan of that frontend's Service.
    pub plan: Option<ServicePlan>,
    /// What happens.
    pub outcome: Outcome,
    /// Every endpoint of the port, in or out of the set that counts, and why.
    pub endpoints: Vec<(SocketAddr, Option<String>, Membership)>,
    /// How long the client stays with its endpoint, in seconds.
    pub affinity_seconds: Option<u32>,
    /// Notes of the Service's and the node's plan.
    pub notes: Vec<String>,
}

/// What happens to the connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The frontend's verdict for this source, with the endpoints to choose from.
    Verdict(Verdict, Vec<Backend>),
    /// The source is in none of the Service's `loadBalancerSourceRanges`: dropped.
    OutsideSourceRanges,
    /// A live cluster IP, but no Service port: rejected.
    UnlistedPort,
    /// In the service range, but no Service has the address: dropped.
    Unallocated,
    /// Not a Service's business: routed as if no proxy were there.
    NotOurs,
}

/// Explains what this node does with a new connection.
///
/// `host` are the machine's own addresses; the Node's are known already.
pub fn explain(
    packet: Packet,
    world: &World,
    node: Option<&Node>,
    host: &[IpAddr],
    node_plan: &NodePlan,
    options: &Options,
) -> Explanation {
    let source = source_kind(packet.from, node, host, node_plan);
    let mut explanation = Explanation {
        packet,
        source,
        frontend: None,
        plan: None,
        outcome: Outcome::NotOurs,
        endpoints: Vec::new(),
        affinity_seconds: None,
        notes: node_plan.notes.clone(),
    };
    let node_name = node.map_or(&*options.node_name, |node| &*node.name);
    for view in world.services().filter(|view| may_concern(view.service, packet)) {
        let plan = plan_service(view, node, node_plan, options);
        if let Some((port, frontend)) = find(&plan, packet, node_plan) {
            explanation.outcome = outcome(port, frontend, source, packet.from);
            let set = match &explanation.outcome {
                Outcome::Verdict(Verdict::Forward { set, .. }, _) => *set,
                _ if port.local.is_empty() && !port.cluster.is_empty() => EndpointSet::Local,
                _ => EndpointSet::Cluster,
            };
            explanation.endpoints = endpoints(view, port, set, node_name, node);
            explanation.affinity_seconds = port.affinity_seconds;
            explanation.frontend = Some((plan.service.clone(), port.name.clone(), frontend.clone()));
            explanation.notes.extend(plan.notes.iter().cloned());
            explanation.plan = Some(plan);
            return explanation;
        }
        if plan
            .ports
            .iter()
            .flat_map(|port| &port.frontends)
            .any(|f| is_cluster_ip(f, packet.to.ip()))
        {
            explanation.outcome = Outcome::UnlistedPort;
        }
    }
    let in_range = node_plan
        .service_cidrs
        .iter()
        .any(|cidr| cidr.contains(&packet.to.ip()));
    if in_range && explanation.outcome == Outcome::NotOurs {
        explanation.outcome = Outcome::Unallocated;
    }
    explanation
}

/// A plan costs more than a look at the addresses: a large cluster's explanations must not stop the daemon that gives them.
fn may_concern(service: &Service, packet: Packet) -> bool {
    let to = packet.to.ip();
    service.cluster_ips.contains(&to)
        || service.external_ips.contains(&to)
        || service.load_balancer.iter().any(|ingress| ingress.ip == to)
        || service
            .ports
            .iter()
            .any(|port| port.node_port == Some(packet.to.port()))
}

fn is_cluster_ip(frontend: &Frontend, address: IpAddr) -> bool {
    frontend.kind == crate::FrontendKind::ClusterIp && frontend.address == Some(address)
}

/// Addresses of Services win over node ports, as in every backend.
fn find<'a>(plan: &'a ServicePlan, packet: Packet, node_plan: &NodePlan) -> Option<(&'a PortPlan, &'a Frontend)> {
    let family = Family::of(&packet.to.ip());
    let ports = plan
        .ports
        .iter()
        .filter(|port| port.family == family && port.protocol == packet.protocol);
    let mut frontends = ports.flat_map(|port| port.frontends.iter().map(move |frontend| (port, frontend)));
    frontends.find(|(_, frontend)| {
        let here = match frontend.address {
            Some(address) => address == packet.to.ip(),
            None => node_plan.node_port_addresses.contains(&packet.to.ip()),
        };
        here && frontend.port == packet.to.port()
    })
}

fn source_kind(from: IpAddr, node: Option<&Node>, host: &[IpAddr], node_plan: &NodePlan) -> SourceKind {
    let of_node = node.is_some_and(|node| node.internal_ips.contains(&from) || node.external_ips.contains(&from));
    if of_node || from.is_loopback() || host.contains(&from) {
        return SourceKind::Node;
    }
    let ranges = match &node_plan.pods {
        Pods::Cidrs(cidrs) => cidrs.as_slice(),
        // Pods are told by their interface; an address can only be guessed at.
        Pods::Interface(_) | Pods::InterfacePrefix(_) => node.map_or(&[][..], |node| &node.pod_cidrs),
        Pods::Unknown => &[],
    };
    if ranges.iter().any(|cidr| cidr.contains(&from)) {
        match node_plan.is_pod_elsewhere(from) {
            true => SourceKind::PodElsewhere,
            false => SourceKind::Pod,
        }
    } else {
        SourceKind::Outside
    }
}

fn outcome(port: &PortPlan, frontend: &Frontend, source: SourceKind, from: IpAddr) -> Outcome {
    if let Some(ranges) = &frontend.source_ranges
        && !ranges.iter().any(|range| range.contains(&from))
    {
        return Outcome::OutsideSourceRanges;
    }
    let verdict = frontend.verdict(source);
    let backends = match verdict {
        Verdict::Forward {
            set: EndpointSet::Cluster,
            ..
        } => port.cluster.clone(),
        Verdict::Forward {
            set: EndpointSet::Local,
            ..
        } => port.local.clone(),
        Verdict::Reject | Verdict::Drop => Vec::new(),
    };
    Outcome::Verdict(verdict, backends)
}

fn endpoints(
    view: ServiceView<'_>,
    plan: &PortPlan,
    set: EndpointSet,
    node_name: &str,
    node: Option<&Node>,
) -> Vec<(SocketAddr, Option<String>, Membership)> {
    let port = view
        .service
        .ports
        .iter()
        .find(|port| port.name == plan.name && port.protocol == plan.protocol);
    let Some(port) = port else { return Vec::new() };
    let found = view.endpoints(port, plan.family);
    let sets = categorize(&found, node_name, node.and_then(Node::zone));
    let memberships = match set {
        EndpointSet::Cluster => sets.cluster,
        EndpointSet::Local => sets.local,
    };
    let named = found.iter().zip(memberships);
    named
        .map(|(e, membership)| (e.address, e.endpoint.node_name.as_deref().map(Into::into), membership))
        .collect()
}

// === impl Display ===

impl fmt::Display for SourceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pod => "a pod",
            Self::PodElsewhere => "a pod of another node",
            Self::Node => "the node itself",
            Self::Outside => "outside",
        })
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Packet { from, to, protocol } = self.packet;
        writeln!(f, "{from} ({}) -> {to}/{}", self.source, protocol.lower())?;
        match &self.frontend {
            Some((service, port, frontend)) => {
                let port = if port.is_empty() { "its only port" } else { port };
                writeln!(f, "frontend: {} of Service {service}, {port}", frontend.kind)?;
                writeln!(f, "policy:   {}", frontend.routes)?;
                if let Some(ranges) = &frontend.source_ranges {
                    let ranges: Vec<String> = ranges.iter().map(ToString::to_string).collect();
                    writeln!(f, "sources:  only {}", ranges.join(" "))?;
                }
            }
            None => writeln!(f, "frontend: none")?,
        }
        if let Some(seconds) = self.affinity_seconds {
            writeln!(
                f,
                "affinity: the client stays with its endpoint for {seconds} s after each new connection"
            )?;
        }
        for (address, node, membership) in &self.endpoints {
            let sign = if membership.is_in() { "+" } else { "-" };
            let node = node.as_deref().unwrap_or("no node");
            writeln!(f, "  {sign} {address} on {node}: {}", membership.reason())?;
        }
        writeln!(f, "verdict:  {}", self.outcome)?;
        self.notes.iter().try_for_each(|note| writeln!(f, "note:     {note}"))
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Verdict(Verdict::Forward { masquerade, .. }, backends) => {
                let count = backends.len();
                let plural = if count == 1 { "endpoint" } else { "endpoints" };
                let source = if *masquerade {
                    "the source becomes the node's address"
                } else {
                    "the source is kept"
                };
                write!(f, "forwarded to one of {count} {plural}; {source}")?;
                if !masquerade && backends.iter().any(|backend| backend.local) {
                    write!(f, " (but for an endpoint that calls itself)")?;
                }
                Ok(())
            }
            Self::Verdict(Verdict::Reject, _) => f.write_str("rejected: the Service has no endpoint"),
            Self::Verdict(Verdict::Drop, _) => {
                f.write_str("dropped: the policy is Local and no endpoint is on this node")
            }
            Self::OutsideSourceRanges => f.write_str("dropped: the source is not in loadBalancerSourceRanges"),
            Self::UnlistedPort => f.write_str("rejected: the address is a live cluster IP, but no Service port"),
            Self::Unallocated => f.write_str("dropped: in the service range, but no Service has the address"),
            Self::NotOurs => f.write_str("not a Service's address: routed as if no proxy were there"),
        }
    }
}
