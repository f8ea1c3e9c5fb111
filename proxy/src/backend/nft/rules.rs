//! Pieces that rules are made of.

use ipnet::IpNet;
use portolan_model::Family;
use portolan_plan::{NodePlan, Pods};

use super::NftOptions;
use super::netlink::constants::*;
use super::netlink::expr::{Dreg, Expr, Register};
use super::netlink::object::Rule;
use super::schema::Map;

/// What the rules of all chains depend on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Context<'a> {
    pub(crate) family: Family,
    pub(crate) node: &'a NodePlan,
    pub(crate) options: &'a NftOptions,
}

/// Where a lookup's value goes: behind every key.
pub(crate) const DATA: Register = 8;

pub(crate) fn rule(expressions: Vec<Expr>) -> Rule {
    Rule {
        expressions,
        comment: Box::default(),
    }
}

/// Registers that an address takes.
pub(crate) const fn words(family: Family) -> Register {
    match family {
        Family::V4 => 1,
        Family::V6 => 4,
    }
}

pub(crate) const fn destination_offset(family: Family) -> u32 {
    match family {
        Family::V4 => 16,
        Family::V6 => 24,
    }
}

pub(crate) fn source(family: Family, dreg: Register) -> Expr {
    let offset = match family {
        Family::V4 => 12,
        Family::V6 => 8,
    };
    let len = u32::from(words(family)) * 4;
    Expr::Payload {
        base: NFT_PAYLOAD_NETWORK_HEADER,
        offset,
        len,
        dreg,
    }
}

pub(crate) fn destination(family: Family) -> Expr {
    Expr::Payload {
        base: NFT_PAYLOAD_NETWORK_HEADER,
        offset: destination_offset(family),
        len: u32::from(words(family)) * 4,
        dreg: 0,
    }
}

/// Loads a frontend's key into registers from 0 on; also yields the register behind it.
pub(crate) fn load_key(family: Family, with_address: bool) -> (Vec<Expr>, Register) {
    let mut expressions = Vec::new();
    let mut next = 0;
    if with_address {
        expressions.push(destination(family));
        next = words(family);
    }
    expressions.push(Expr::Meta {
        key: NFT_META_L4PROTO,
        dreg: next,
    });
    // TCP, UDP and SCTP have their destination port at the same place.
    expressions.push(Expr::Payload {
        base: NFT_PAYLOAD_TRANSPORT_HEADER,
        offset: 2,
        len: 2,
        dreg: next + 1,
    });
    (expressions, next + 2)
}

pub(crate) fn lookup(map: Map, dreg: Option<Dreg>) -> Expr {
    Expr::Lookup {
        set: map.name().into(),
        sreg: 0,
        dreg,
        not: false,
    }
}

pub(crate) fn equals(sreg: Register, value: Vec<u8>) -> Expr {
    Expr::Cmp {
        sreg,
        not: false,
        value,
    }
}

pub(crate) fn bitwise(mask: Vec<u8>, xor: Vec<u8>) -> Expr {
    Expr::Bitwise {
        sreg: 0,
        dreg: 0,
        mask,
        xor,
    }
}

/// `mark = (mark & and) ^ xor`: other bits of the mark stay as they are.
pub(crate) fn mark(and: u32, xor: u32) -> [Expr; 3] {
    [
        Expr::Meta {
            key: NFT_META_MARK,
            dreg: 0,
        },
        bitwise(and.to_ne_bytes().to_vec(), xor.to_ne_bytes().to_vec()),
        Expr::MetaSet {
            key: NFT_META_MARK,
            sreg: 0,
        },
    ]
}

/// Goes on when the address in register 0 is in the range.
pub(crate) fn in_range(range: IpNet) -> Vec<Expr> {
    let (network, mask) = match range {
        IpNet::V4(range) => (range.network().octets().to_vec(), range.netmask().octets().to_vec()),
        IpNet::V6(range) => (range.network().octets().to_vec(), range.netmask().octets().to_vec()),
    };
    if range.prefix_len() == range.max_prefix_len() {
        return vec![equals(0, network)];
    }
    let zeros = vec![0; mask.len()];
    vec![bitwise(mask, zeros), equals(0, network)]
}

pub(crate) fn of_family(ranges: &[IpNet], family: Family) -> impl Iterator<Item = IpNet> + '_ {
    let same = move |range: &IpNet| Family::of(&range.addr()) == family;
    ranges.iter().copied().filter(same)
}

/// Matches that together hold for pods: one rule for each.
pub(crate) fn pods(context: Context<'_>) -> Vec<Vec<Expr>> {
    let interface = |mut name: Vec<u8>, exact: bool| {
        if name.is_empty() {
            return Vec::new();
        }
        // IFNAMSIZ: an exact name is compared with its padding.
        name.truncate(15);
        if exact {
            name.resize(16, 0);
        }
        vec![vec![
            Expr::Meta {
                key: NFT_META_IIFNAME,
                dreg: 0,
            },
            equals(0, name),
        ]]
    };
    match &context.node.pods {
        Pods::Unknown => Vec::new(),
        Pods::Cidrs(ranges) => from_ranges(context.family, ranges),
        Pods::Interface(name) => interface(name.as_bytes().to_vec(), true),
        Pods::InterfacePrefix(prefix) => interface(prefix.as_bytes().to_vec(), false),
    }
}

/// Matches that together hold for pods of this node. Empty: they cannot be told from other pods.
pub(crate) fn own_pods(context: Context<'_>) -> Vec<Vec<Expr>> {
    match context.node.pods {
        Pods::Cidrs(_) => from_ranges(context.family, &context.node.own_pods),
        Pods::Unknown | Pods::Interface(_) | Pods::InterfacePrefix(_) => Vec::new(),
    }
}

fn from_ranges(family: Family, ranges: &[IpNet]) -> Vec<Vec<Expr>> {
    let of_family = of_family(ranges, family);
    of_family
        .map(|range| std::iter::once(source(family, 0)).chain(in_range(range)).collect())
        .collect()
}

/// Refuses at once: TCP by a reset, everything else by port unreachable.
///
/// What the node itself sends cannot be refused where it is sent: whoever sends would get EPERM instead of the refusal. A
/// datagram is therefore led to port 0 of the node, where nobody ever listens: the error that comes back by itself is the
/// one for the address that was asked.
pub(crate) fn reject(family: Family, matching: &[Expr], who: &str) -> [Rule; 3] {
    let protocol = |number: i32| {
        [
            Expr::Meta {
                key: NFT_META_L4PROTO,
                dreg: 0,
            },
            equals(0, vec![u8::try_from(number).unwrap_or(0)]),
        ]
    };
    let mut tcp = matching.to_vec();
    tcp.extend(protocol(libc::IPPROTO_TCP));
    tcp.push(Expr::Reject {
        tcp_reset: true,
        code: 0,
    });
    let mut own = matching.to_vec();
    own.extend(protocol(libc::IPPROTO_UDP));
    // Only what the node sends has come in through no interface.
    own.push(Expr::Meta {
        key: NFT_META_IIF,
        dreg: 0,
    });
    own.push(equals(0, vec![0; 4]));
    own.push(Expr::Constant {
        value: vec![0; 2],
        dreg: 0,
    });
    own.push(Expr::Redirect { port: 0 });
    let mut others = matching.to_vec();
    others.push(Expr::Reject {
        tcp_reset: false,
        code: match family {
            Family::V4 => ICMP_PORT_UNREACH,
            Family::V6 => ICMPV6_PORT_UNREACH,
        },
    });
    [tcp, own, others].map(|expressions| Rule {
        expressions,
        comment: who.into(),
    })
}
