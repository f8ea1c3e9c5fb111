//! What a frontend does with a client: the plan's verdict for where the client comes from, and the choice of an endpoint.
//!
//! A [`Target`] never changes. A changed plan is a new one, handed to the listener in one step.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use ipnet::IpNet;
use portolan_model::ServiceName;
use portolan_plan::{EndpointSet, NodePlan, Pods, Routes, Verdict};
use tokio::time::Instant;

use super::affinity::Affinity;
use super::socket;

/// What one frontend of a Service port does with its clients.
#[derive(Clone, Debug)]
pub(super) struct Target {
    /// For logs and `status`.
    pub(super) service: ServiceName,
    /// `spec.ports[].name`.
    pub(super) port_name: Box<str>,
    /// The plan's verdicts.
    pub(super) routes: Routes,
    /// The plan's source ranges.
    pub(super) source_ranges: Option<Arc<[IpNet]>>,
    /// Endpoints for policy Cluster.
    pub(super) cluster: Arc<[SocketAddr]>,
    /// Endpoints for policy Local.
    pub(super) local: Arc<[SocketAddr]>,
    /// Where clients stay, and for how long.
    pub(super) affinity: Option<(Arc<Affinity>, Duration)>,
}

impl Target {
    /// Whether any client could ever be forwarded or dropped. If not, not listening at all is the best refusal.
    pub(super) fn refuses_everyone(&self) -> bool {
        self.verdicts().all(|verdict| verdict == Verdict::Reject)
    }

    /// Whether some client can be forwarded or has to be refused. If not, connections may as well wait.
    pub(super) fn answers_someone(&self) -> bool {
        self.verdicts().any(|verdict| verdict != Verdict::Drop)
    }

    fn verdicts(&self) -> impl Iterator<Item = Verdict> {
        [self.routes.pod, self.routes.node, self.routes.outside].into_iter()
    }

    /// What to do with a new connection or flow from `client`.
    pub(super) fn verdict(&self, client: IpAddr, sources: &Sources) -> Verdict {
        if let Some(ranges) = &self.source_ranges
            && !ranges.iter().any(|range| range.contains(&client))
        {
            return Verdict::Drop;
        }
        let Routes { pod, node, outside } = self.routes;
        if pod == node && node == outside {
            return node;
        }
        match sources.kind(client) {
            SourceKind::Node => node,
            SourceKind::Pod => pod,
            SourceKind::Outside => outside,
        }
    }

    /// Whether the address is one of the endpoints: a listener there would relay to itself.
    pub(super) fn has_endpoint(&self, address: SocketAddr) -> bool {
        self.cluster.contains(&address) || self.local.contains(&address)
    }

    /// The endpoints of a set.
    pub(super) fn endpoints(&self, set: EndpointSet) -> &[SocketAddr] {
        match set {
            EndpointSet::Cluster => &self.cluster,
            EndpointSet::Local => &self.local,
        }
    }

    /// An endpoint of the set that is not among `tried`: the one the client stays with, else any.
    pub(super) fn choose(&self, set: EndpointSet, client: IpAddr, tried: &[SocketAddr]) -> Option<SocketAddr> {
        let endpoints = self.endpoints(set);
        let stays = self
            .affinity
            .as_ref()
            .and_then(|(table, _)| table.endpoint(client, Instant::now()));
        if let Some(endpoint) = stays
            && endpoints.contains(&endpoint)
            && !tried.contains(&endpoint)
        {
            return Some(endpoint);
        }
        let left = endpoints.iter().filter(|endpoint| !tried.contains(endpoint));
        let count = left.clone().count();
        (count > 0).then(|| left.copied().nth(fastrand::usize(..count)))?
    }

    /// Notes that the client got this endpoint. One that could not be reached is never noted: a client whose endpoint
    /// refuses moves to another and stays there.
    pub(super) fn learn(&self, client: IpAddr, endpoint: SocketAddr) {
        if let Some((table, timeout)) = &self.affinity {
            table.learn(client, endpoint, *timeout, Instant::now());
        }
    }
}

/// Equal when clients cannot tell the difference; the affinity table of a Service port is always the same one.
impl PartialEq for Target {
    fn eq(&self, other: &Self) -> bool {
        let timeout = |target: &Self| target.affinity.as_ref().map(|(_, timeout)| *timeout);
        self.service == other.service
            && self.port_name == other.port_name
            && self.routes == other.routes
            && self.source_ranges == other.source_ranges
            && self.cluster == other.cluster
            && self.local == other.local
            && timeout(self) == timeout(other)
    }
}

/// What a client is to this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SourceKind {
    Node,
    Pod,
    Outside,
}

/// Tells clients apart by their address.
#[derive(Debug, Default)]
pub(super) struct Sources {
    pods: ArcSwap<Vec<IpNet>>,
}

impl Sources {
    /// Takes over the node's plan. A relay sees no interface: where pods are told by theirs, they count as outside.
    pub(super) fn update(&self, node: &NodePlan) {
        let cidrs = match &node.pods {
            Pods::Cidrs(cidrs) => cidrs.clone(),
            Pods::Unknown | Pods::Interface(_) | Pods::InterfacePrefix(_) => Vec::new(),
        };
        self.pods.store(Arc::new(cidrs));
    }

    fn kind(&self, client: IpAddr) -> SourceKind {
        if client.is_loopback() || socket::is_own(client) {
            return SourceKind::Node;
        }
        if self.pods.load().iter().any(|cidr| cidr.contains(&client)) {
            SourceKind::Pod
        } else {
            SourceKind::Outside
        }
    }
}
