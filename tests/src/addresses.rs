//! The address plan of every lab, stated once.
//!
//! | what                   | IPv4                | IPv6                |
//! |------------------------|---------------------|---------------------|
//! | node N                 | 172.18.0.N          | fd00:18::N          |
//! | second address of N    | 172.18.1.N          | fd00:18:1::N        |
//! | control plane          | 172.18.0.200        | fd00:18::c8         |
//! | pods of node N         | 10.244.N.0/24       | fd00:244:0:N::/64   |
//! | pods' gateway on N     | 10.244.N.1          | fd00:244:0:N::1     |
//! | Services               | 10.96.0.0/16        | fd00:96::/112       |
//! | outside host K         | 198.51.100.(9 + K)  | fd00:51::(9 + K)    |
//! | load balancer addresses| 203.0.113.0/24      | fd00:113::/64       |
//!
//! Nothing here touches the machine: the lab's namespaces are the only place where these addresses exist.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The Service range, in both families, as the API server and the routes write it.
pub const SERVICE_RANGES: [&str; 2] = ["10.96.0.0/16", "fd00:96::/112"];
/// The range of all pods of all nodes, in both families: kube-proxy's `clusterCIDR`.
pub const POD_RANGES: [&str; 2] = ["10.244.0.0/16", "fd00:244::/48"];
/// The range that load balancer addresses come from, in both families.
pub const LOAD_BALANCER_RANGES: [&str; 2] = ["203.0.113.0/24", "fd00:113::/64"];
/// The cluster IPs of `kube-system/kube-dns`.
pub const DNS_SERVICE: Pair = Pair {
    v4: Ipv4Addr::new(10, 96, 0, 10),
    v6: Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, 0xa),
};
/// Where the API server listens, when a lab has one.
pub const CONTROL_PLANE: Pair = Pair {
    v4: Ipv4Addr::new(172, 18, 0, 200),
    v6: Ipv6Addr::new(0xfd00, 0x18, 0, 0, 0, 0, 0, 200),
};
/// The fabric's own address on every link: the default gateway of nodes and outside hosts.
pub const FABRIC: Pair = Pair {
    v4: Ipv4Addr::new(172, 18, 0, 254),
    v6: Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1),
};

/// One address in each family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Pair {
    /// The IPv4 address.
    pub v4: Ipv4Addr,
    /// The IPv6 address.
    pub v6: Ipv6Addr,
}

// === impl Pair ===

impl Pair {
    /// Both addresses, IPv4 first.
    pub fn both(self) -> [IpAddr; 2] {
        [IpAddr::V4(self.v4), IpAddr::V6(self.v6)]
    }

    /// Whether `address` is one of the two.
    pub fn has(self, address: IpAddr) -> bool {
        self.both().contains(&address)
    }
}

/// The primary addresses of node `n` (1 to 199).
pub fn node(n: u8) -> Pair {
    Pair {
        v4: Ipv4Addr::new(172, 18, 0, n),
        v6: Ipv6Addr::new(0xfd00, 0x18, 0, 0, 0, 0, 0, n.into()),
    }
}

/// The second addresses of node `n`, present when the lab was built with them.
pub fn node_second(n: u8) -> Pair {
    Pair {
        v4: Ipv4Addr::new(172, 18, 1, n),
        v6: Ipv6Addr::new(0xfd00, 0x18, 1, 0, 0, 0, 0, n.into()),
    }
}

/// The pod ranges of node `n`: the `podCIDRs` of its Node object.
pub fn pod_ranges(n: u8) -> [String; 2] {
    [format!("10.244.{n}.0/24"), format!("fd00:244:0:{n:x}::/64")]
}

/// Address `host` in the pod ranges of node `n`; host 1 is the gateway that the node holds.
pub fn pod(n: u8, host: u8) -> Pair {
    Pair {
        v4: Ipv4Addr::new(10, 244, n, host),
        v6: Ipv6Addr::new(0xfd00, 0x244, 0, n.into(), 0, 0, 0, host.into()),
    }
}

/// The addresses of outside host `k`, counted from 1.
pub fn outside(k: u8) -> Pair {
    let host = 9 + k;
    Pair {
        v4: Ipv4Addr::new(198, 51, 100, host),
        v6: Ipv6Addr::new(0xfd00, 0x51, 0, 0, 0, 0, 0, host.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_plan_matches_its_table() {
        assert_eq!(node(2).both().map(|a| a.to_string()), ["172.18.0.2", "fd00:18::2"]);
        assert_eq!(
            node_second(2).both().map(|a| a.to_string()),
            ["172.18.1.2", "fd00:18:1::2"]
        );
        assert_eq!(
            pod(3, 7).both().map(|a| a.to_string()),
            ["10.244.3.7", "fd00:244:0:3::7"]
        );
        assert_eq!(
            outside(1).both().map(|a| a.to_string()),
            ["198.51.100.10", "fd00:51::a"]
        );
        assert_eq!(pod_ranges(10), ["10.244.10.0/24", "fd00:244:0:a::/64"]);
    }
}
