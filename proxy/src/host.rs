//! The machine we run on: its addresses, and the Node that it is where no object says so.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use portolan_model::{Family, Node};
use portolan_plan::HostAddress;

/// Addresses of all interfaces that are up, sorted. Link-local IPv6 addresses are left out: they mean nothing without
/// their interface.
///
/// # Errors
/// The system's, when it cannot list interfaces.
pub fn addresses() -> io::Result<Vec<HostAddress>> {
    let interfaces = if_addrs::get_if_addrs()?;
    let usable = |ip: &IpAddr| !matches!(ip, IpAddr::V6(v6) if v6.is_unicast_link_local());
    let mut found: Vec<_> = interfaces
        .iter()
        .map(if_addrs::Interface::ip)
        .filter(usable)
        .map(HostAddress)
        .collect();
    found.sort_unstable();
    found.dedup();
    Ok(found)
}

/// A Node made from the machine, for manifests that have none of our name.
pub fn node_from_machine(name: &str, host: &[HostAddress]) -> Node {
    let primary = Family::ALL
        .into_iter()
        .filter_map(|family| primary_address(family, host));
    Node {
        name: name.into(),
        internal_ips: primary.collect(),
        ..Node::default()
    }
}

/// The address that the machine would use towards the outside, else its first one.
fn primary_address(family: Family, host: &[HostAddress]) -> Option<IpAddr> {
    let routed = || -> io::Result<IpAddr> {
        // Documentation addresses (RFC 5737, RFC 3849): connecting a UDP socket asks the routing table, sends nothing.
        let (any, target): (SocketAddr, SocketAddr) = match family {
            Family::V4 => (
                (Ipv4Addr::UNSPECIFIED, 0).into(),
                (Ipv4Addr::new(192, 0, 2, 1), 9).into(),
            ),
            Family::V6 => (
                (Ipv6Addr::UNSPECIFIED, 0).into(),
                (Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1), 9).into(),
            ),
        };
        let socket = UdpSocket::bind(any)?;
        socket.connect(target)?;
        Ok(socket.local_addr()?.ip())
    };
    let usable = |ip: &IpAddr| !ip.is_loopback() && !ip.is_unspecified() && host.contains(&HostAddress(*ip));
    let first = || {
        host.iter()
            .map(|address| address.0)
            .find(|ip| Family::of(ip) == family && !ip.is_loopback())
    };
    routed().ok().filter(usable).or_else(first)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_has_loopback() {
        let host = addresses().expect("interfaces");
        assert!(host.contains(&HostAddress(IpAddr::V4(Ipv4Addr::LOCALHOST))), "{host:?}");
    }

    #[test]
    fn a_node_has_no_loopback_and_one_address_a_family() {
        let host =
            ["127.0.0.1", "192.0.2.7", "192.0.2.8", "::1"].map(|ip| HostAddress(ip.parse().expect("an address")));
        let node = node_from_machine("laptop", &host);
        assert_eq!(node.internal_ips, ["192.0.2.7".parse::<IpAddr>().expect("an address")]);
    }
}
