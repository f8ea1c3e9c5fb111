//! What must be forwarded where.
//!
//! [`plan_service`] turns one Service into a [`ServicePlan`]: every address, port, verdict and flag that a backend
//! needs, so that no choice is left to it. [`plan_node`] does the same for what concerns the node as a whole. Both are
//! pure functions: the same World gives the same plan, whatever order its parts arrived in.
//!
//! The rules are kube-proxy's (nftables mode, 1.36); where we deviate on purpose the code says so.

mod categorize;
mod explain;
mod node;
mod print;
mod service;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;
use portolan_model::{Family, Protocol, ServiceName};

pub use categorize::{Categorized, Membership, categorize};
pub use explain::{Explanation, Outcome, Packet, SourceKind, explain};
pub use node::{HostAddress, NodePortAddresses, Options, PodDetection, plan_node};
pub use service::plan_service;

/// Everything that must be done for one Service on one node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePlan {
    /// The Service.
    pub service: ServiceName,
    /// One entry for each Service port and family, sorted. Empty when nothing is forwarded.
    pub ports: Vec<PortPlan>,
    /// The health check port to serve.
    pub health_check: Option<HealthCheckPlan>,
    /// What a user should know: contradictions and surprises that were found on the way. Sorted.
    pub notes: Vec<String>,
}

impl ServicePlan {
    /// Whether the internal, and whether the external policy Local leaves some frontend of this Service without an
    /// endpoint on this node although there are endpoints elsewhere (metric `no_local_endpoints_total`).
    pub fn without_local_endpoints(&self) -> (bool, bool) {
        let frontends = || self.ports.iter().flat_map(|port| &port.frontends);
        let dropped = |frontend: &Frontend| frontend.routes.outside == Verdict::Drop;
        let internal = |frontend: &Frontend| frontend.kind == FrontendKind::ClusterIp;
        (
            frontends().any(|f| internal(f) && dropped(f)),
            frontends().any(|f| !internal(f) && dropped(f)),
        )
    }
}

/// One port of a Service in one family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortPlan {
    /// `spec.ports[].name`, empty for the only, unnamed port.
    pub name: Box<str>,
    /// Transport protocol.
    pub protocol: Protocol,
    /// Address family of the frontends and of the endpoints.
    pub family: Family,
    /// Session affinity by client address, shared by all frontends of this port: how long a client stays, in seconds.
    pub affinity_seconds: Option<u32>,
    /// Endpoints for policy Cluster: sorted, without duplicates.
    pub cluster: Vec<Backend>,
    /// Endpoints for policy Local: those on this node. Empty also when no frontend uses it.
    pub local: Vec<Backend>,
    /// Endpoints that may keep the UDP or SCTP flows they have: every ready or serving one, whatever policy and topology
    /// say about new flows. Sorted. Empty for TCP, whose connections end by themselves.
    pub serving: Vec<SocketAddr>,
    /// Where traffic is taken in, sorted.
    pub frontends: Vec<Frontend>,
}

/// An endpoint that was chosen to get traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Backend {
    /// Address and target port.
    pub address: SocketAddr,
    /// It runs on this node, so a connection from it to its own Service comes back to it (hairpin).
    pub local: bool,
}

/// Which of a port's two endpoint sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum EndpointSet {
    /// [`PortPlan::cluster`].
    Cluster,
    /// [`PortPlan::local`].
    Local,
}

/// What kind of address a frontend has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FrontendKind {
    /// An entry of `spec.clusterIPs`.
    ClusterIp,
    /// An entry of `spec.externalIPs`.
    ExternalIp,
    /// An address in `status.loadBalancer.ingress`.
    LoadBalancerIp,
    /// The node port, on every address of [`NodePlan::node_port_addresses`].
    NodePort,
}

/// An address and port at which a Service port is reachable.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Frontend {
    /// What the address is.
    pub kind: FrontendKind,
    /// The address; `None` for a node port, which is served on the node's own addresses.
    pub address: Option<IpAddr>,
    /// The port.
    pub port: u16,
    /// What happens to a new connection, by where it comes from.
    pub routes: Routes,
    /// Sources that are let in; anyone else is dropped, before translation. `None` means no restriction. Families of
    /// the ranges are the frontend's own.
    pub source_ranges: Option<Arc<[IpNet]>>,
}

/// A verdict for each kind of source. See [`NodePlan`] for who is who.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Routes {
    /// A pod, as [`NodePlan::pods`] tells. Where pods cannot be told apart, no source is one. At a node port only a pod of
    /// this node.
    pub pod: Verdict,
    /// The node itself: the source address is one of the node's own. At a node port also a pod of another node.
    pub node: Verdict,
    /// Anyone else.
    pub outside: Verdict,
}

impl Routes {
    /// The same verdict for every source.
    pub fn same(verdict: Verdict) -> Self {
        Self {
            pod: verdict,
            node: verdict,
            outside: verdict,
        }
    }
}

impl Frontend {
    /// The verdict for a source.
    ///
    /// A pod that asks a node port of *another* node is short-circuited like the node itself: masqueraded, because the
    /// answer of an endpoint elsewhere would else reach the pod without coming back through the node that translated
    /// (kube-proxy lets such a connection hang).
    pub fn verdict(&self, source: SourceKind) -> Verdict {
        match source {
            SourceKind::PodElsewhere if self.kind == FrontendKind::NodePort => self.routes.node,
            SourceKind::Pod | SourceKind::PodElsewhere => self.routes.pod,
            SourceKind::Node => self.routes.node,
            SourceKind::Outside => self.routes.outside,
        }
    }
}

/// What happens to a new connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verdict {
    /// To an endpoint of the set, chosen at random (or by affinity). The set is never empty.
    Forward {
        /// Which endpoints.
        set: EndpointSet,
        /// Replace the source by the node's address, so that the answer comes back through this node. A hairpin
        /// connection is always masqueraded, whatever this says.
        masquerade: bool,
    },
    /// There is no endpoint at all: refuse at once (TCP reset, ICMP port unreachable).
    Reject,
    /// There are endpoints, but policy Local forbids all of them: say nothing.
    Drop,
}

/// `healthCheckNodePort`: an HTTP server that tells load balancers whether this node has endpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HealthCheckPlan {
    /// The port to listen on.
    pub port: u16,
    /// Ready endpoints on this node, each counted once.
    pub local_endpoints: usize,
}

/// How the node tells sources and its own addresses apart.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodePlan {
    /// Which packets come from pods.
    pub pods: Pods,
    /// Ranges of this node's own pods, where they can be told from those of other nodes: [`Frontend::verdict`] says what
    /// for. A family without a range: every pod counts as one of this node. Sorted.
    pub own_pods: Vec<IpNet>,
    /// Addresses that node ports are served on, sorted. Loopback addresses are in it when they are to be served.
    pub node_port_addresses: Vec<IpAddr>,
    /// Ranges of cluster IPs, sorted: an address in them that no Service has is dropped. Empty when unknown.
    pub service_cidrs: Vec<IpNet>,
    /// Addresses of the machine's interfaces that a cluster IP may be, sorted: a program on this node answers there (a node-local
    /// DNS server), and says itself by rules when packets are left to it. Sockets are not sent past it.
    pub taken: Vec<IpAddr>,
    /// What a user should know. Sorted.
    pub notes: Vec<String>,
}

impl NodePlan {
    /// Whether a pod's address is one of another node's.
    pub fn is_pod_elsewhere(&self, pod: IpAddr) -> bool {
        let family = Family::of(&pod);
        let mut own = self.own_pods.iter().filter(|range| Family::of(&range.addr()) == family);
        let known = own.clone().next().is_some();
        known && !own.any(|range| range.contains(&pod))
    }
}

/// How a packet from a pod is recognised (`detectLocalMode` of kube-proxy).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Pods {
    /// It is not: every source is the node or the outside.
    #[default]
    Unknown,
    /// By its source address.
    Cidrs(Vec<IpNet>),
    /// By the interface it comes in through.
    Interface(String),
    /// By the start of that interface's name.
    InterfacePrefix(String),
}

impl Pods {
    /// Whether pods can be told apart in this family.
    pub fn is_known(&self, family: Family) -> bool {
        match self {
            Self::Unknown => false,
            Self::Cidrs(cidrs) => cidrs.iter().any(|cidr| Family::of(&cidr.addr()) == family),
            Self::Interface(_) | Self::InterfacePrefix(_) => true,
        }
    }
}

#[cfg(test)]
mod tests;
