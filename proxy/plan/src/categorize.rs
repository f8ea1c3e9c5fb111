//! Which endpoints get traffic (kube-proxy's `pkg/proxy/topology.go`, `CategorizeEndpoints`).

use portolan_model::{PortEndpoint, Service, TrafficPolicy};

/// Where an endpoint stands, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Membership {
    /// Ready, and topology lets this node use it.
    Ready,
    /// Terminating but serving, taken because no ready endpoint is left.
    TerminatingFallback,
    /// Ready, but its hints keep it for other nodes or zones.
    OtherTopology,
    /// Ready or serving, but not on this node, and the policy is Local.
    NotLocal,
    /// Terminating and serving, while ready endpoints exist.
    Terminating,
    /// Neither ready nor a serving, terminating endpoint.
    NotReady,
}

impl Membership {
    /// Whether the endpoint gets traffic.
    pub fn is_in(self) -> bool {
        matches!(self, Self::Ready | Self::TerminatingFallback)
    }

    /// One clause that says why.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::TerminatingFallback => "terminating, but serving, and no endpoint is ready",
            Self::OtherTopology => "its hints keep it for another node or zone",
            Self::NotLocal => "not on this node",
            Self::Terminating => "terminating, and other endpoints are ready",
            Self::NotReady => "not ready",
        }
    }
}

/// What [`categorize`] found, one entry for each endpoint in the order given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Categorized {
    /// Membership in the set of policy Cluster.
    pub cluster: Vec<Membership>,
    /// Membership in the set of policy Local.
    pub local: Vec<Membership>,
    /// Whether any endpoint could serve, on whatever node: tells "nobody is there" (reject) from "nobody is here" (drop).
    pub any: bool,
}

/// Sorts the endpoints of one port into the sets of both policies.
///
/// - Cluster: ready endpoints that topology leaves to this node; when there is none ready at all, the serving,
///   terminating ones of the whole cluster, whatever their hints (KEP-1669).
/// - Local: ready endpoints on this node; when there is none, the serving, terminating ones on this node. Hints never
///   narrow it.
///
/// Topology counts only for Services whose policy is Cluster somewhere: each ready endpoint must carry a hint and one
/// hint must name this node (node hints first, then zone hints); otherwise all ready endpoints are used.
pub fn categorize(endpoints: &[PortEndpoint<'_>], node: &str, zone: Option<&str>) -> Categorized {
    let topology = Topology::of(endpoints, node, zone);
    let is_local = |e: &PortEndpoint<'_>| e.endpoint.node_name.as_deref() == Some(node);
    let any_ready = endpoints.iter().any(ready);
    let any_ready_local = endpoints.iter().any(|e| ready(e) && is_local(e));
    let cluster = endpoints.iter().map(|e| match () {
        () if ready(e) && topology.allows(e) => Membership::Ready,
        () if ready(e) => Membership::OtherTopology,
        () if draining(e) && !any_ready => Membership::TerminatingFallback,
        () if draining(e) => Membership::Terminating,
        () => Membership::NotReady,
    });
    let local = endpoints.iter().map(|e| match () {
        () if !ready(e) && !draining(e) => Membership::NotReady,
        () if !is_local(e) => Membership::NotLocal,
        () if ready(e) => Membership::Ready,
        () if any_ready_local => Membership::Terminating,
        () => Membership::TerminatingFallback,
    });
    Categorized {
        cluster: cluster.collect(),
        local: local.collect(),
        any: endpoints.iter().any(|e| ready(e) || draining(e)),
    }
}

fn ready(e: &PortEndpoint<'_>) -> bool {
    e.endpoint.conditions.ready
}

fn draining(e: &PortEndpoint<'_>) -> bool {
    !e.endpoint.conditions.ready && e.endpoint.conditions.serving && e.endpoint.conditions.terminating
}

/// What hints mean on this node.
enum Topology<'a> {
    /// Nothing: at least one ready endpoint has no hint, or none names us.
    Everywhere,
    /// All ready endpoints have node hints and one names this node.
    Node(&'a str),
    /// All ready endpoints have zone hints and one names this zone.
    Zone(&'a str),
}

impl<'a> Topology<'a> {
    fn of(endpoints: &[PortEndpoint<'_>], node: &'a str, zone: Option<&'a str>) -> Self {
        let candidates = [Some(Self::Node(node)), zone.map(Self::Zone)];
        for candidate in candidates.into_iter().flatten() {
            let mut usable = endpoints.iter().filter(|e| ready(e)).peekable();
            let all_hinted = usable.peek().is_some() && usable.all(|e| candidate.is_hinted(e));
            if all_hinted && endpoints.iter().any(|e| ready(e) && candidate.allows(e)) {
                return candidate;
            }
        }
        Self::Everywhere
    }

    fn is_hinted(&self, e: &PortEndpoint<'_>) -> bool {
        let hints = e.endpoint.hints.as_deref();
        match self {
            Self::Everywhere => true,
            Self::Node(_) => hints.is_some_and(|hints| !hints.nodes.is_empty()),
            Self::Zone(_) => hints.is_some_and(|hints| !hints.zones.is_empty()),
        }
    }

    fn allows(&self, e: &PortEndpoint<'_>) -> bool {
        let hints = e.endpoint.hints.as_deref();
        match *self {
            Self::Everywhere => true,
            Self::Node(node) => hints.is_some_and(|hints| hints.nodes.iter().any(|name| &**name == node)),
            Self::Zone(zone) => hints.is_some_and(|hints| hints.zones.iter().any(|name| &**name == zone)),
        }
    }
}

/// Whether any traffic to the Service may use the Local set.
pub(crate) fn uses_local(service: &Service) -> bool {
    service.internal_traffic_policy == TrafficPolicy::Local || service.external_traffic_policy == TrafficPolicy::Local
}
