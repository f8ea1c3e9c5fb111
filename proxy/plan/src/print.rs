//! Plans as text: what `portolan-proxy plan` prints and golden files hold. The same plan gives the same text.

use std::fmt;

use crate::{Backend, EndpointSet, Frontend, FrontendKind, NodePlan, Pods, PortPlan, Routes, ServicePlan, Verdict};

impl fmt::Display for ServicePlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "service {}", self.service)?;
        if self.ports.is_empty() {
            writeln!(f, "  nothing is forwarded")?;
        }
        for port in &self.ports {
            write!(f, "{port}")?;
        }
        if let Some(check) = &self.health_check {
            writeln!(
                f,
                "  health check port {}: {} local endpoints",
                check.port, check.local_endpoints
            )?;
        }
        self.notes.iter().try_for_each(|note| writeln!(f, "  note: {note}"))
    }
}

impl fmt::Display for PortPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = if self.name.is_empty() { "(unnamed)" } else { &self.name };
        write!(f, "  port {name} {} {}", self.protocol, self.family)?;
        if let Some(seconds) = self.affinity_seconds {
            write!(f, ", clients stay for {seconds} s")?;
        }
        writeln!(f)?;
        for (set, backends) in [(EndpointSet::Cluster, &self.cluster), (EndpointSet::Local, &self.local)] {
            if !backends.is_empty() {
                let list: Vec<String> = backends.iter().map(ToString::to_string).collect();
                writeln!(f, "    {set} endpoints: {}", list.join(" "))?;
            }
        }
        self.frontends
            .iter()
            .try_for_each(|frontend| writeln!(f, "    {frontend}"))
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.address, if self.local { "(here)" } else { "" })
    }
}

impl fmt::Display for EndpointSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cluster => "cluster",
            Self::Local => "local",
        })
    }
}

impl fmt::Display for FrontendKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ClusterIp => "cluster IP",
            Self::ExternalIp => "external IP",
            Self::LoadBalancerIp => "load balancer IP",
            Self::NodePort => "node port",
        })
    }
}

impl fmt::Display for Frontend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.address {
            Some(address) => write!(f, "{} {} port {}: {}", self.kind, address, self.port, self.routes)?,
            None => write!(f, "{} {}: {}", self.kind, self.port, self.routes)?,
        }
        if let Some(ranges) = &self.source_ranges {
            let list: Vec<String> = ranges.iter().map(ToString::to_string).collect();
            write!(f, "; only from {}", list.join(" "))?;
        }
        Ok(())
    }
}

impl fmt::Display for Routes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { pod, node, outside } = self;
        if pod == node && node == outside {
            write!(f, "{pod}")
        } else if node == outside {
            write!(f, "pods {pod}; others {node}")
        } else {
            write!(f, "pods {pod}; the node {node}; outside {outside}")
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Forward { set, masquerade: false } => write!(f, "forward to {set}"),
            Self::Forward { set, masquerade: true } => write!(f, "forward to {set} masqueraded"),
            Self::Reject => f.write_str("reject"),
            Self::Drop => f.write_str("drop"),
        }
    }
}

impl fmt::Display for NodePlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fn list<T: ToString>(items: &[T]) -> String {
            if items.is_empty() {
                return "none".into();
            }
            items.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
        }
        writeln!(f, "node")?;
        match &self.pods {
            Pods::Unknown => writeln!(f, "  pods: cannot be told from other sources")?,
            Pods::Cidrs(cidrs) => writeln!(f, "  pods: {}", list(cidrs))?,
            Pods::Interface(name) => writeln!(f, "  pods: behind interface {name}")?,
            Pods::InterfacePrefix(prefix) => writeln!(f, "  pods: behind interfaces {prefix}*")?,
        }
        if !self.own_pods.is_empty() {
            writeln!(f, "  pods of this node: {}", list(&self.own_pods))?;
        }
        writeln!(f, "  node port addresses: {}", list(&self.node_port_addresses))?;
        writeln!(f, "  service ranges: {}", list(&self.service_cidrs))?;
        self.notes.iter().try_for_each(|note| writeln!(f, "  note: {note}"))
    }
}
