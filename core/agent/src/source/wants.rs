//! Which objects a daemon wants: kube-proxy's filters, or everything.

use portolan_model::{Object, Service};

/// Label of a Service that another proxy takes care of.
pub(crate) const SERVICE_PROXY_NAME_LABEL: &str = "service.kubernetes.io/service-proxy-name";
/// Label of the EndpointSlices of headless Services.
pub(crate) const HEADLESS_LABEL: &str = "service.kubernetes.io/headless";

/// Which Services.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServiceSelection {
    /// Those that a node forwards: not headless, not left to another proxy by the label
    /// `service.kubernetes.io/service-proxy-name` (kube-proxy's filter).
    Forwarded,
    /// Every Service.
    All,
}

/// Which EndpointSlices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SliceSelection {
    /// Those without the label `service.kubernetes.io/headless` (kube-proxy's filter).
    Forwarded,
    /// Every slice.
    All,
}

/// Which Nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodeSelection {
    /// No Node.
    None,
    /// The Node of that name.
    Named(String),
    /// Every Node.
    All,
}

/// Which objects a daemon wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wants {
    /// Which Services.
    pub services: ServiceSelection,
    /// Which EndpointSlices.
    pub slices: SliceSelection,
    /// Which Nodes.
    pub nodes: NodeSelection,
    /// Namespaces.
    pub namespaces: bool,
    /// Pods.
    pub pods: bool,
    /// ServiceCIDRs.
    pub service_cidrs: bool,
}

// === impl Wants ===

impl Wants {
    /// What a service proxy needs: forwarded Services and their slices, every Node, ServiceCIDRs.
    pub fn forwarding() -> Self {
        Self {
            services: ServiceSelection::Forwarded,
            slices: SliceSelection::Forwarded,
            nodes: NodeSelection::All,
            namespaces: false,
            pods: false,
            service_cidrs: true,
        }
    }

    /// What a DNS server needs: every Service, every slice, Namespaces. Pods only for `pods verified`.
    pub fn naming() -> Self {
        Self {
            services: ServiceSelection::All,
            slices: SliceSelection::All,
            nodes: NodeSelection::None,
            namespaces: true,
            pods: false,
            service_cidrs: false,
        }
    }

    /// Whether an object of a manifest folder is wanted; `labelled` tells whether it has a label. The API server does
    /// the same with selectors.
    pub(crate) fn admits(&self, object: &Object, labelled: impl Fn(&str) -> bool) -> bool {
        match object {
            Object::Service(service) => match self.services {
                ServiceSelection::All => true,
                ServiceSelection::Forwarded => !is_headless(service) && !labelled(SERVICE_PROXY_NAME_LABEL),
            },
            Object::EndpointSlice(_) => self.slices == SliceSelection::All || !labelled(HEADLESS_LABEL),
            Object::Node(node) => match &self.nodes {
                NodeSelection::None => false,
                NodeSelection::Named(name) => *node.name == **name,
                NodeSelection::All => true,
            },
            Object::Namespace(_) => self.namespaces,
            Object::Pod(_) => self.pods,
            Object::ServiceCidr(_) => self.service_cidrs,
        }
    }
}

fn is_headless(service: &Service) -> bool {
    service.headless
}
