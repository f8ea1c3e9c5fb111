//! [`plan_node`]: what concerns the node as a whole, and the options that bear on plans.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use portolan_model::{Family, Node};

use crate::{NodePlan, Pods};

/// What the operator chose (kube-proxy's flags and configuration of the same names).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Name of the node we run on (`--node-name`, `hostnameOverride`): endpoints that carry it are local.
    pub node_name: String,
    /// Masquerade everything that goes to a cluster IP (`masqueradeAll`).
    pub masquerade_all: bool,
    /// How packets from pods are recognised (`detectLocalMode`).
    pub pod_detection: PodDetection,
    /// Where node ports are served (`nodePortAddresses`).
    pub node_port_addresses: NodePortAddresses,
    /// Serve `spec.externalIPs`. Whoever may write a Service may claim any address with them (CVE-2020-8554, KEP-5707).
    pub external_ips: bool,
    /// The node's own address of its family, whatever the Node object says (`bindAddress`).
    pub node_ip: Option<IpAddr>,
    /// Node ports are served on loopback addresses too (`iptables.localhostNodePorts`).
    pub localhost_node_ports: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            node_name: String::new(),
            masquerade_all: false,
            pod_detection: PodDetection::ClusterCidr(Vec::new()),
            node_port_addresses: NodePortAddresses::Primary,
            external_ips: true,
            node_ip: None,
            localhost_node_ports: true,
        }
    }
}

/// `detectLocalMode`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PodDetection {
    /// Sources in `clusterCIDR`. When that is empty the Node's own podCIDRs are taken.
    ClusterCidr(Vec<IpNet>),
    /// Sources in the Node's `spec.podCIDRs`.
    NodeCidr,
    /// Packets that come in through this bridge (`bridgeInterface`).
    BridgeInterface(String),
    /// Packets that come in through an interface whose name starts so (`interfaceNamePrefix`).
    InterfaceNamePrefix(String),
}

/// `nodePortAddresses`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodePortAddresses {
    /// The node's primary address of each family and the loopback address of each family.
    Primary,
    /// The node's addresses inside these ranges. A family that no range names is closed.
    Cidrs(Vec<IpNet>),
}

/// An address of one of the machine's interfaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostAddress(pub IpAddr);

/// Plans what concerns the node as a whole.
///
/// `node` is the object of the node we run on, `host` the addresses of the machine's interfaces and `service_cidrs` the
/// ranges in ServiceCIDR objects.
pub fn plan_node(node: Option<&Node>, host: &[HostAddress], service_cidrs: &[IpNet], options: &Options) -> NodePlan {
    let mut notes = Vec::new();
    let pods = pods(node, &options.pod_detection, &mut notes);
    let own_pods = own_pods(node, &pods);
    let mut addresses = match &options.node_port_addresses {
        NodePortAddresses::Primary => primary(node, options.node_ip),
        NodePortAddresses::Cidrs(cidrs) => in_cidrs(host, cidrs, &mut notes),
    };
    addresses.retain(|address| options.localhost_node_ports || !address.is_loopback());
    addresses.sort_unstable();
    addresses.dedup();
    let mut service_cidrs = service_cidrs.to_vec();
    service_cidrs.sort_unstable();
    service_cidrs.dedup();
    notes.sort_unstable();
    NodePlan {
        pods,
        own_pods,
        node_port_addresses: addresses,
        taken: taken(host, &service_cidrs),
        service_cidrs,
        notes,
    }
}

/// The Node's own ranges, as far as they are among the pods' ranges: ranges that contradict each other tell nothing.
fn own_pods(node: Option<&Node>, pods: &Pods) -> Vec<IpNet> {
    let Pods::Cidrs(all) = pods else {
        return Vec::new();
    };
    let own = node.map(|node| &*node.pod_cidrs).unwrap_or_default().iter();
    let mut own: Vec<IpNet> = own
        .copied()
        .filter(|own| all.iter().any(|range| range.contains(own)))
        .collect();
    own.sort_unstable();
    own
}

fn primary(node: Option<&Node>, chosen: Option<IpAddr>) -> Vec<IpAddr> {
    let internal = node.map(|node| &*node.internal_ips).unwrap_or_default();
    let first = |family| {
        let mut candidates = chosen.iter().chain(internal);
        candidates.find(|ip| Family::of(ip) == family).copied()
    };
    let loopback = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
    Family::ALL.into_iter().filter_map(first).chain(loopback).collect()
}

fn in_cidrs(host: &[HostAddress], cidrs: &[IpNet], notes: &mut Vec<String>) -> Vec<IpAddr> {
    for family in Family::ALL {
        if !cidrs.iter().any(|cidr| Family::of(&cidr.addr()) == family) {
            notes.push(format!(
                "nodePortAddresses names no {family} range: node ports are closed for {family}"
            ));
        }
    }
    let addresses = host.iter().map(|address| address.0);
    addresses
        .filter(|ip| cidrs.iter().any(|cidr| cidr.contains(ip)))
        .collect()
}

/// The machine's addresses in the ranges of cluster IPs; all but loopback where those are not known.
fn taken(host: &[HostAddress], service_cidrs: &[IpNet]) -> Vec<IpAddr> {
    let may_be = |ip: &IpAddr| service_cidrs.is_empty() || service_cidrs.iter().any(|cidr| cidr.contains(ip));
    let addresses = host.iter().map(|address| address.0);
    let mut taken: Vec<IpAddr> = addresses.filter(|ip| !ip.is_loopback() && may_be(ip)).collect();
    taken.sort_unstable();
    taken.dedup();
    taken
}

/// A wrong pod range masquerades all pods' traffic, which nobody notices until an address is missed: compare it with
/// what the Node says.
fn pods(node: Option<&Node>, detection: &PodDetection, notes: &mut Vec<String>) -> Pods {
    let node_cidrs = node.map(|node| &*node.pod_cidrs).unwrap_or_default();
    let own = |notes: &mut Vec<String>, mode: &str| {
        if node_cidrs.is_empty() {
            notes.push(format!(
                "{mode} and the Node has no spec.podCIDRs: pods cannot be told from other sources"
            ));
            Pods::Unknown
        } else {
            Pods::Cidrs(node_cidrs.to_vec())
        }
    };
    match detection {
        PodDetection::ClusterCidr(cidrs) if cidrs.is_empty() => own(notes, "no clusterCIDR is set"),
        PodDetection::NodeCidr => own(notes, "detectLocalMode is NodeCIDR"),
        PodDetection::ClusterCidr(cidrs) => {
            for own in node_cidrs {
                let same_family = |cidr: &&IpNet| Family::of(&cidr.addr()) == Family::of(&own.addr());
                if !cidrs.iter().filter(same_family).any(|cidr| cidr.contains(own)) {
                    notes.push(format!(
                        "clusterCIDR does not hold the Node's pod range {own}: traffic of its pods will be masqueraded"
                    ));
                }
            }
            Pods::Cidrs(cidrs.clone())
        }
        PodDetection::BridgeInterface(name) => Pods::Interface(name.clone()),
        PodDetection::InterfaceNamePrefix(prefix) => Pods::InterfacePrefix(prefix.clone()),
    }
}
