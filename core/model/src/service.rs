//! Service: everything in its specification and status that bears on forwarding or on names.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::name::ServiceName;

/// Address family of a frontend or an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// The family of an address.
    pub fn of(address: &IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// Both families, IPv4 first.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

/// Transport protocol of a Service port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Protocol {
    /// TCP, the default of the API.
    #[default]
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Protocol {
    /// The number of the protocol in the IP header (IANA).
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }

    /// The API's spelling: `TCP`, `UDP`, `SCTP`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        }
    }

    /// The spelling of DNS labels and of nft: `tcp`, `udp`, `sctp`.
    pub const fn lower(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// `spec.type`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum ServiceType {
    /// Reachable on its cluster IPs only.
    #[default]
    ClusterIp,
    /// Also on a port of every node.
    NodePort,
    /// Also on the addresses in its status.
    LoadBalancer,
    /// A CNAME; nothing is forwarded.
    ExternalName,
}

impl fmt::Display for ServiceType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ClusterIp => "ClusterIP",
            Self::NodePort => "NodePort",
            Self::LoadBalancer => "LoadBalancer",
            Self::ExternalName => "ExternalName",
        })
    }
}

/// `externalTrafficPolicy` and `internalTrafficPolicy`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum TrafficPolicy {
    /// Every endpoint of the cluster.
    #[default]
    Cluster,
    /// Only endpoints on the node that took the packet.
    Local,
}

impl fmt::Display for TrafficPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cluster => "Cluster",
            Self::Local => "Local",
        })
    }
}

/// `status.loadBalancer.ingress[].ipMode` (KEP-1860).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum IpMode {
    /// Packets reach the node with the load balancer's address as destination: the node must serve it.
    #[default]
    Vip,
    /// The load balancer is a proxy: the node must not capture its address.
    Proxy,
}

/// One address in `status.loadBalancer.ingress`. Entries that carry only a host name forward nothing and are not kept.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct LoadBalancerIngress {
    /// The load balancer's address.
    pub ip: IpAddr,
    /// Who answers on that address.
    pub ip_mode: IpMode,
}

/// One entry of `spec.ports`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ServicePort {
    /// Empty for the only port of a Service that does not name it. Endpoint ports are matched by this name.
    pub name: Box<str>,
    /// Transport protocol; TCP where the object says nothing.
    pub protocol: Protocol,
    /// The port on the cluster IPs, external IPs and load balancer IPs.
    pub port: u16,
    /// The port on the nodes' addresses.
    pub node_port: Option<u16>,
}

/// A Service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// Namespace and name.
    pub name: ServiceName,
    /// `spec.type`.
    pub type_: ServiceType,
    /// `spec.clusterIP: None`: names only, nothing is forwarded.
    pub headless: bool,
    /// `spec.clusterIPs`, at most one of each family, in the object's order. Empty for headless and ExternalName.
    pub cluster_ips: Vec<IpAddr>,
    /// `spec.ipFamilies`; derived from the cluster IPs where the object says nothing.
    pub families: Vec<Family>,
    /// `spec.externalName` of an ExternalName Service.
    pub external_name: Option<Box<str>>,
    /// `spec.ports`.
    pub ports: Vec<ServicePort>,
    /// `spec.externalIPs`.
    pub external_ips: Vec<IpAddr>,
    /// `status.loadBalancer.ingress` entries that have an address.
    pub load_balancer: Vec<LoadBalancerIngress>,
    /// `sessionAffinity: ClientIP` with its timeout in seconds (1 to 86400; 10800 where the object says nothing).
    pub affinity_seconds: Option<u32>,
    /// `externalTrafficPolicy`.
    pub external_traffic_policy: TrafficPolicy,
    /// `internalTrafficPolicy`.
    pub internal_traffic_policy: TrafficPolicy,
    /// `loadBalancerSourceRanges`: binds the load balancer IPs, never node ports, cluster IPs or external IPs.
    pub source_ranges: Vec<IpNet>,
    /// `healthCheckNodePort`, set by the API for `externalTrafficPolicy: Local` load balancers.
    pub health_check_node_port: Option<u16>,
    /// `publishNotReadyAddresses`. EndpointSlices say `ready` already; kept for explanations.
    pub publish_not_ready_addresses: bool,
}

impl Service {
    /// Whether packets are forwarded for this Service at all.
    pub fn is_forwarded(&self) -> bool {
        self.type_ != ServiceType::ExternalName && !self.headless && !self.cluster_ips.is_empty()
    }
}
