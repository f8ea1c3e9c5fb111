//! Which objects a daemon wants: kube-proxy's filters, or everything.

use portolan_model::{Object, Selector, Service};

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
    /// No slice.
    None,
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
    /// Host names, pods and zones of endpoints. A source may leave them out when they are not wanted.
    pub endpoint_names: bool,
    /// Which Nodes.
    pub nodes: NodeSelection,
    /// Namespaces.
    pub namespaces: bool,
    /// Pods.
    pub pods: bool,
    /// ServiceCIDRs.
    pub service_cidrs: bool,
    /// ServiceImports, where the API server has them.
    pub imports: bool,
    /// Services and Pods must match it. Slices need not: they count with their Service.
    pub labels: Selector,
}

// === impl Wants ===

impl Wants {
    /// What a service proxy needs: forwarded Services and their slices, every Node, ServiceCIDRs.
    pub fn forwarding() -> Self {
        Self {
            services: ServiceSelection::Forwarded,
            slices: SliceSelection::Forwarded,
            endpoint_names: false,
            nodes: NodeSelection::All,
            namespaces: false,
            pods: false,
            service_cidrs: true,
            imports: false,
            labels: Selector::default(),
        }
    }

    /// What a DNS server needs: every Service, every slice, Namespaces. Pods only for `pods verified`.
    pub fn naming() -> Self {
        Self {
            services: ServiceSelection::All,
            slices: SliceSelection::All,
            endpoint_names: true,
            nodes: NodeSelection::None,
            namespaces: true,
            pods: false,
            service_cidrs: false,
            imports: false,
            labels: Selector::default(),
        }
    }

    /// Whether an object of a manifest folder is wanted; `label` tells the value of a label. The API server does
    /// the same with selectors.
    pub(crate) fn admits<'a>(&self, object: &Object, label: impl Fn(&str) -> Option<&'a str>) -> bool {
        let labelled = |name| label(name).is_some();
        match object {
            Object::Service(_) | Object::Pod(_) if !self.labels.matches(&label) => false,
            Object::Service(service) => match self.services {
                ServiceSelection::All => true,
                ServiceSelection::Forwarded => !is_headless(service) && !labelled(SERVICE_PROXY_NAME_LABEL),
            },
            Object::EndpointSlice(_) => match self.slices {
                SliceSelection::All => true,
                SliceSelection::Forwarded => !labelled(HEADLESS_LABEL),
                SliceSelection::None => false,
            },
            Object::Node(node) => match &self.nodes {
                NodeSelection::None => false,
                NodeSelection::Named(name) => *node.name == **name,
                NodeSelection::All => true,
            },
            Object::Namespace(_) => self.namespaces,
            Object::Pod(_) => self.pods,
            Object::ServiceCidr(_) => self.service_cidrs,
            Object::ServiceImport(_) => self.imports,
        }
    }
}

fn is_headless(service: &Service) -> bool {
    service.headless
}
