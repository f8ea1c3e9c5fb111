//! Tests of the nftables backend: on the kernel, in network namespaces of their own (root), and on a kernel in memory.
//!
//! Addresses: pods 10.244.0.0/16 and fd00:244::/48, those of the node 10.244.1.0/24 and fd00:244:0:1::/64, cluster IPs 10.96.0.0/16 and fd00:96::/112, the node
//! 172.18.0.1 and fd00:18::1, load balancer addresses 203.0.113.0/24.

mod encoding;
mod fake;
mod kernel;
mod leftovers;
pub(super) mod namespace;
mod properties;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;
use portolan_model::{Family, Protocol, ServiceName};
use portolan_plan::{
    Backend as Endpoint, EndpointSet, Frontend, FrontendKind, NodePlan, Pods, PortPlan, Routes, ServicePlan, Verdict,
};

use super::netlink::batch::BatchError;
use super::observe::{Kernel, Observed};
use super::*;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn node() -> NodePlan {
    NodePlan {
        pods: Pods::Cidrs(nets(&["10.244.0.0/16", "fd00:244::/48"])),
        own_pods: nets(&["10.244.1.0/24", "fd00:244:0:1::/64"]),
        node_port_addresses: ["127.0.0.1", "172.18.0.1", "::1", "fd00:18::1"].map(ip).to_vec(),
        service_cidrs: nets(&["10.96.0.0/16", "fd00:96::/112"]),
        ..NodePlan::default()
    }
}

fn nets(texts: &[&str]) -> Vec<IpNet> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

/// A Service with one port, in the making.
struct Made(ServicePlan);

/// A Service `default/NAME` with a TCP port of the endpoints' family. Endpoints that end in `*` run on this node.
fn service(name: &str, endpoints: &[&str]) -> Made {
    let endpoints: Vec<Endpoint> = endpoints.iter().map(|text| endpoint(text)).collect();
    let family = endpoints.first().map_or(Family::V4, |e| Family::of(&e.address.ip()));
    Made(ServicePlan {
        service: ServiceName::new("default", name),
        ports: vec![PortPlan {
            name: "http".into(),
            protocol: Protocol::Tcp,
            family,
            affinity_seconds: None,
            local: endpoints.iter().copied().filter(|e| e.local).collect(),
            cluster: endpoints,
            serving: Vec::new(),
            frontends: Vec::new(),
        }],
        health_check: None,
        notes: Vec::new(),
    })
}

fn endpoint(text: &str) -> Endpoint {
    let local = text.ends_with('*');
    let address: SocketAddr = text.trim_end_matches('*').parse().unwrap();
    Endpoint { address, local }
}

fn to(set: EndpointSet, masquerade: bool) -> Verdict {
    Verdict::Forward { set, masquerade }
}

/// As a plan routes a cluster IP.
fn internal() -> Routes {
    Routes {
        pod: to(EndpointSet::Cluster, false),
        node: to(EndpointSet::Cluster, true),
        outside: to(EndpointSet::Cluster, true),
    }
}

/// As a plan routes external traffic under policy Local.
fn local() -> Routes {
    Routes {
        pod: to(EndpointSet::Cluster, false),
        node: to(EndpointSet::Cluster, true),
        outside: to(EndpointSet::Local, false),
    }
}

impl Made {
    fn port(&mut self) -> &mut PortPlan {
        &mut self.0.ports[0]
    }

    fn protocol(mut self, protocol: Protocol) -> Self {
        self.port().protocol = protocol;
        self
    }

    fn at(mut self, kind: FrontendKind, address: Option<&str>, port: u16, routes: Routes) -> Self {
        let address = address.map(ip);
        if let Some(address) = address {
            self.port().family = Family::of(&address);
        }
        self.port().frontends.push(Frontend {
            kind,
            address,
            port,
            routes,
            source_ranges: None,
        });
        self
    }

    fn sticky(mut self, seconds: u32) -> Self {
        self.port().affinity_seconds = Some(seconds);
        self
    }

    fn cluster_ip(self, address: &str, port: u16) -> Self {
        self.at(FrontendKind::ClusterIp, Some(address), port, internal())
    }

    fn only_from(mut self, ranges: &[&str]) -> Self {
        let ranges: Arc<[IpNet]> = nets(ranges).into();
        if let Some(frontend) = self.port().frontends.last_mut() {
            frontend.source_ranges = Some(ranges);
        }
        self
    }
}

fn complete(plans: Vec<ServicePlan>) -> Change {
    let mut plans = plans;
    plans.sort_by(|a, b| a.service.cmp(&b.service));
    Change {
        node: Some(node()),
        plans,
        removed: Vec::new(),
        complete: true,
    }
}

fn changed(plans: Vec<ServicePlan>) -> Change {
    Change {
        plans,
        ..Change::default()
    }
}

fn removed(names: &[&str]) -> Change {
    let removed = names.iter().map(|name| ServiceName::new("default", *name)).collect();
    Change {
        removed,
        ..Change::default()
    }
}
