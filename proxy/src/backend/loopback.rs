//! Node ports on the loopback addresses, beside a kernel backend.
//!
//! `curl localhost:NODEPORT` on a node has to work. Kernel rules cannot carry it: a packet from 127.0.0.1 may not leave
//! the machine unless `route_localnet` opens a hole for everybody (CVE-2020-8558), and there is no such switch for ::1.
//! So the userspace relay carries just these frontends, from the same plans.

use std::io;
use std::net::IpAddr;

use portolan_plan::{Explanation, FrontendKind, NodePlan, PortPlan, ServicePlan};

use super::userspace::UserspaceBackend;
use super::{Backend, BackendError, Change, Inspection, Report};

/// A kernel backend, and a relay for what it cannot carry.
pub struct WithLoopback<K> {
    kernel: K,
    relay: UserspaceBackend,
}

impl<K: Backend> WithLoopback<K> {
    /// Puts `relay` beside `kernel`, which must leave loopback node port addresses alone.
    pub fn new(kernel: K, relay: UserspaceBackend) -> Self {
        Self { kernel, relay }
    }
}

impl<K: Backend> Backend for WithLoopback<K> {
    fn name(&self) -> &'static str {
        self.kernel.name()
    }

    /// The kernel goes first: the relay concerns the node's own processes only. It follows whatever the kernel says:
    /// what the kernel refused is tried again with a complete change, which the relay takes as well.
    fn apply(&mut self, change: &Change) -> Result<Report, BackendError> {
        let kernel = self.kernel.apply(change);
        let relayed = self.relay.apply(&loopback_share(change))?;
        let report = kernel?;
        Ok(Report {
            written: report.written + relayed.written,
            removed: report.removed + relayed.removed,
            ..report
        })
    }

    fn status(&self) -> Vec<(String, String)> {
        let mut lines = self.kernel.status();
        lines.extend(
            self.relay
                .status()
                .into_iter()
                .map(|(key, value)| (format!("loopback {key}"), value)),
        );
        lines
    }

    fn programs(&self) -> Option<String> {
        self.kernel.programs()
    }

    fn inspect(&mut self, explanation: &Explanation, node: &NodePlan) -> Option<io::Result<Inspection>> {
        self.kernel.inspect(explanation, node)
    }

    /// The newer process's relay needs the ports.
    fn stand_by(&mut self) {
        self.kernel.stand_by();
        let nothing = Change {
            node: Some(NodePlan::default()),
            complete: true,
            ..Change::default()
        };
        if let Err(error) = self.relay.apply(&nothing) {
            tracing::warn!(%error, "node ports on loopback addresses are not free for the newer portolan-proxy");
        }
    }

    fn stop(&mut self) {
        self.relay.stop();
        self.kernel.stop();
    }
}

/// The part of a change that concerns node ports on loopback addresses.
fn loopback_share(change: &Change) -> Change {
    Change {
        node: change.node.as_ref().map(|node| NodePlan {
            node_port_addresses: node
                .node_port_addresses
                .iter()
                .copied()
                .filter(IpAddr::is_loopback)
                .collect(),
            notes: Vec::new(),
            ..node.clone()
        }),
        plans: change.plans.iter().map(node_ports).collect(),
        removed: change.removed.clone(),
        complete: change.complete,
    }
}

fn node_ports(plan: &ServicePlan) -> ServicePlan {
    let ports = plan.ports.iter().filter_map(|port| {
        let frontend = port
            .frontends
            .iter()
            .find(|frontend| frontend.kind == FrontendKind::NodePort)?;
        Some(PortPlan {
            frontends: vec![frontend.clone()],
            ..port.clone()
        })
    });
    ServicePlan {
        ports: ports.collect(),
        health_check: None,
        notes: Vec::new(),
        ..plan.clone()
    }
}

#[cfg(test)]
mod tests {
    use portolan_model::{Family, Protocol, ServiceName};
    use portolan_plan::{Frontend, Routes, Verdict};

    use super::*;

    #[test]
    fn only_node_ports_on_loopback_are_relayed() {
        let frontend = |kind, address: Option<&str>| Frontend {
            kind,
            address: address.map(|ip| ip.parse().expect("an address")),
            port: 80,
            routes: Routes::same(Verdict::Reject),
            source_ranges: None,
        };
        let port = |frontends| PortPlan {
            name: "".into(),
            protocol: Protocol::Tcp,
            family: Family::V4,
            affinity_seconds: None,
            cluster: Vec::new(),
            local: Vec::new(),
            serving: Vec::new(),
            frontends,
        };
        let cluster_ip = || frontend(FrontendKind::ClusterIp, Some("10.96.0.1"));
        let plan = ServicePlan {
            service: ServiceName::new("default", "web"),
            ports: vec![
                port(vec![cluster_ip()]),
                port(vec![cluster_ip(), frontend(FrontendKind::NodePort, None)]),
            ],
            health_check: None,
            notes: Vec::new(),
        };
        let node = NodePlan {
            node_port_addresses: ["172.18.0.1", "127.0.0.1", "::1"]
                .map(|ip| ip.parse().expect("an address"))
                .into(),
            ..NodePlan::default()
        };
        let share = loopback_share(&Change {
            node: Some(node),
            plans: vec![plan],
            ..Change::default()
        });
        let addresses = share.node.expect("a node").node_port_addresses;
        assert!(addresses.len() == 2 && addresses.iter().all(IpAddr::is_loopback));
        assert_eq!(share.plans[0].ports.len(), 1);
        assert_eq!(
            share.plans[0].ports[0].frontends,
            [frontend(FrontendKind::NodePort, None)]
        );
    }
}
