//! The sets and maps of our tables: the same ones in `ip portolan` and in `ip6 portolan`.
//!
//! Everything that follows the cluster is an element of one of them, so that a change of the cluster is a change of
//! elements. `nft` 1.0.6 (Debian 12) aborts when it lists a rule that looks up one map with what another one yielded;
//! that is why endpoints stand under each frontend's own key and not under the number of a shared set.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use portolan_model::{Family, Protocol};

use super::netlink::constants::{NFPROTO_IPV4, NFPROTO_IPV6};
use super::netlink::object::{Bytes, DataType, Set, Type};

/// A set or map of a table. Their order is the order in which they are created and written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Map {
    /// Address, protocol, port of a frontend: to the chain of its program.
    Services,
    /// Protocol and node port: to the chain of its program.
    NodePorts,
    /// Frontend and slot: to an endpoint for policy Cluster.
    Endpoints,
    /// Frontend and slot: to an endpoint for policy Local.
    LocalEndpoints,
    /// Node port and slot: to an endpoint for policy Cluster.
    NodePortEndpoints,
    /// Node port and slot: to an endpoint for policy Local.
    NodePortLocalEndpoints,
    /// Frontend: to the chain that lets its source ranges pass.
    Firewall,
    /// Cluster IPs that some Service has.
    ClusterIps,
    /// Addresses that node ports are served on.
    NodePortIps,
    /// Source and destination of connections of an endpoint on this node to itself.
    Hairpin,
    /// Frontend with session affinity: to the chain that learns.
    AffinityServices,
    /// Node port with session affinity: to the chain that learns.
    AffinityNodePorts,
    /// Client and endpoint set: to the endpoint that the client stays with. The kernel writes it.
    Affinity,
}

impl Map {
    pub(crate) const ALL: [Self; 13] = [
        Self::Services,
        Self::NodePorts,
        Self::Endpoints,
        Self::LocalEndpoints,
        Self::NodePortEndpoints,
        Self::NodePortLocalEndpoints,
        Self::Firewall,
        Self::ClusterIps,
        Self::NodePortIps,
        Self::Hairpin,
        Self::AffinityServices,
        Self::AffinityNodePorts,
        Self::Affinity,
    ];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Services => "services",
            Self::NodePorts => "nodeports",
            Self::Endpoints => "endpoints",
            Self::LocalEndpoints => "local-endpoints",
            Self::NodePortEndpoints => "nodeport-endpoints",
            Self::NodePortLocalEndpoints => "nodeport-local-endpoints",
            Self::Firewall => "firewall",
            Self::ClusterIps => "cluster-ips",
            Self::NodePortIps => "nodeport-ips",
            Self::Hairpin => "hairpin",
            Self::AffinityServices => "affinity-services",
            Self::AffinityNodePorts => "affinity-nodeports",
            Self::Affinity => "affinity",
        }
    }

    const fn comment(self) -> &'static str {
        match self {
            Self::Services => "address, protocol and port of a Service: how it is forwarded",
            Self::NodePorts => "protocol and node port: how it is forwarded",
            Self::Endpoints | Self::NodePortEndpoints => "frontend and slot: an endpoint of the cluster",
            Self::LocalEndpoints | Self::NodePortLocalEndpoints => "frontend and slot: an endpoint on this node",
            Self::Firewall => "frontends with loadBalancerSourceRanges",
            Self::ClusterIps => "cluster IPs in use: other ports of theirs are refused",
            Self::NodePortIps => "addresses that node ports are served on",
            Self::Hairpin => "endpoints on this node that may reach themselves through their Service",
            Self::AffinityServices | Self::AffinityNodePorts => "frontends whose clients are remembered",
            Self::Affinity => "client and endpoint set: the endpoint that the client stays with",
        }
    }

    /// What the map has to be in a family.
    pub(crate) fn definition(self, family: Family) -> Set {
        const ADDRESS: [&[Type]; 2] = [&[Type::Ipv4], &[Type::Ipv6]];
        const PAIR: [&[Type]; 2] = [&[Type::Ipv4, Type::Ipv4], &[Type::Ipv6, Type::Ipv6]];
        const FRONTEND: [&[Type]; 2] = [
            &[Type::Ipv4, Type::Protocol, Type::Port],
            &[Type::Ipv6, Type::Protocol, Type::Port],
        ];
        const FRONTEND_SLOT: [&[Type]; 2] = [
            &[Type::Ipv4, Type::Protocol, Type::Port, Type::Mark],
            &[Type::Ipv6, Type::Protocol, Type::Port, Type::Mark],
        ];
        const CLIENT: [&[Type]; 2] = [
            &[Type::Ipv4, Type::Mark, Type::Mark],
            &[Type::Ipv6, Type::Mark, Type::Mark],
        ];
        const ENDPOINT: [&[Type]; 2] = [&[Type::Ipv4, Type::Port], &[Type::Ipv6, Type::Port]];
        let by_family = |types: [&'static [Type]; 2]| match family {
            Family::V4 => types[0],
            Family::V6 => types[1],
        };
        let (key, data) = match self {
            Self::Services | Self::Firewall | Self::AffinityServices => (by_family(FRONTEND), DataType::Verdict),
            Self::NodePorts | Self::AffinityNodePorts => (&[Type::Protocol, Type::Port][..], DataType::Verdict),
            Self::Endpoints | Self::LocalEndpoints => (by_family(FRONTEND_SLOT), DataType::Value(by_family(ENDPOINT))),
            Self::NodePortEndpoints | Self::NodePortLocalEndpoints => (
                &[Type::Protocol, Type::Port, Type::Mark][..],
                DataType::Value(by_family(ENDPOINT)),
            ),
            Self::ClusterIps | Self::NodePortIps => (by_family(ADDRESS), DataType::None),
            Self::Hairpin => (by_family(PAIR), DataType::None),
            Self::Affinity => (by_family(CLIENT), DataType::Value(by_family(ENDPOINT))),
        };
        Set {
            name: self.name(),
            key,
            data,
            dynamic: self == Self::Affinity,
            comment: self.comment(),
        }
    }
}

/// `NFPROTO_*` of a family.
pub(crate) const fn family_number(family: Family) -> u8 {
    match family {
        Family::V4 => NFPROTO_IPV4,
        Family::V6 => NFPROTO_IPV6,
    }
}

/// An address as it lies in registers.
pub(crate) fn address_bytes(address: IpAddr) -> Bytes {
    match address {
        IpAddr::V4(address) => Bytes::EMPTY.then(&address.octets()),
        IpAddr::V6(address) => Bytes::EMPTY.then(&address.octets()),
    }
}

/// Key of a frontend; `None` is the address of a node port.
pub(crate) fn frontend_key(address: Option<IpAddr>, protocol: Protocol, port: u16) -> Bytes {
    let start = address.map_or(Bytes::EMPTY, address_bytes);
    start.then(&[protocol.number()]).then(&port.to_be_bytes())
}

/// Key of a slot of a frontend. Slots are host byte order: a random number is, too.
pub(crate) fn slot_key(frontend: Bytes, slot: usize) -> Bytes {
    frontend.then(&u32::try_from(slot).unwrap_or(u32::MAX).to_ne_bytes())
}

/// Value of a slot.
pub(crate) fn endpoint_bytes(address: IpAddr, port: u16) -> Bytes {
    address_bytes(address).then(&port.to_be_bytes())
}

/// The slot in a key that [`slot_key`] made, and the key of the frontend.
pub(crate) fn split_slot(key: &Bytes) -> Option<(Bytes, usize)> {
    let (frontend, slot) = key.as_slice().split_last_chunk::<4>()?;
    Some((Bytes::new(frontend)?, usize::try_from(u32::from_ne_bytes(*slot)).ok()?))
}

/// The endpoint in a value that [`endpoint_bytes`] made.
pub(crate) fn parse_endpoint(value: &Bytes) -> Option<(IpAddr, u16)> {
    let (address, port) = value.as_slice().split_last_chunk::<4>()?;
    let [high, low, _, _] = *port;
    let address = match address.len() {
        4 => IpAddr::V4(Ipv4Addr::from(<[u8; 4]>::try_from(address).ok()?)),
        16 => IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(address).ok()?)),
        _ => return None,
    };
    Some((address, u16::from_be_bytes([high, low])))
}
