//! Chains: what happens to a new connection, as rules.
//!
//! All hooks are nat hooks, which only the first packet of a connection passes: established connections cost nothing.
//! There is a chain for each *program* in use (what happens to pods, the node and the outside, and among how many
//! endpoints is chosen), never one for a Service.

use std::fmt;
use std::sync::Arc;

use ipnet::IpNet;
use portolan_model::Family;
use portolan_plan::{EndpointSet, NodePlan, Pods, Routes, Verdict as PlanVerdict};

use super::NftOptions;
use super::netlink::constants::*;
use super::netlink::expr::{Dreg, Expr, Register, Verdict};
use super::netlink::object::{Chain, Hook, Rule};
use super::schema::{Map, family_number};

/// What the rules of all chains depend on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Context<'a> {
    pub(crate) family: Family,
    pub(crate) node: &'a NodePlan,
    pub(crate) options: &'a NftOptions,
}

/// What happens to a connection from one kind of source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Part {
    /// To one of `count` endpoints.
    Forward {
        set: EndpointSet,
        count: usize,
        masquerade: bool,
    },
    Reject,
    Drop,
}

/// What a frontend's chain does. Frontends with the same program share the chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Program {
    /// The key has no address: a node port.
    pub(crate) node_port: bool,
    pub(crate) pod: Part,
    pub(crate) node: Part,
    pub(crate) outside: Part,
}

/// A chain that elements refer to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ChainSpec {
    Program(Program),
    /// Returns for sources in the ranges and drops the others.
    Sources(Arc<[IpNet]>),
}

// === impl Part ===

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Forward { set, count, masquerade } => {
                write!(f, "{set}-{count}{}", if *masquerade { "-masq" } else { "" })
            }
            Self::Reject => f.write_str("reject"),
            Self::Drop => f.write_str("drop"),
        }
    }
}

// === impl Program ===

impl Program {
    /// Puts numbers to the routes of a frontend.
    pub(crate) fn new(routes: &Routes, node_port: bool, count: impl Fn(EndpointSet) -> usize) -> Self {
        let part = |verdict| match verdict {
            PlanVerdict::Forward { set, masquerade } => match count(set) {
                // A plan never forwards to an empty set; a modulus of 0 would be refused.
                0 => Part::Reject,
                count => Part::Forward { set, count, masquerade },
            },
            PlanVerdict::Reject => Part::Reject,
            PlanVerdict::Drop => Part::Drop,
        };
        Self {
            node_port,
            pod: part(routes.pod),
            node: part(routes.node),
            outside: part(routes.outside),
        }
    }

    /// Whether some source is sent to the set.
    pub(crate) fn uses(&self, wanted: EndpointSet) -> bool {
        let is = |part: &Part| matches!(part, Part::Forward { set, .. } if *set == wanted);
        [self.pod, self.node, self.outside].iter().any(is)
    }

    /// The map that a set's endpoints are in.
    pub(crate) const fn map(node_port: bool, set: EndpointSet) -> Map {
        match (node_port, set) {
            (false, EndpointSet::Cluster) => Map::Endpoints,
            (false, EndpointSet::Local) => Map::LocalEndpoints,
            (true, EndpointSet::Cluster) => Map::NodePortEndpoints,
            (true, EndpointSet::Local) => Map::NodePortLocalEndpoints,
        }
    }

    fn rules(&self, context: Context<'_>) -> Vec<Rule> {
        let mut rules = Vec::new();
        let same = self.node == self.outside;
        if self.pod != self.outside || !same {
            for matching in pods(context) {
                self.part(&mut rules, context, &matching, self.pod, "pods");
            }
        }
        if !same {
            let local = RTN_LOCAL.to_ne_bytes().to_vec();
            let matching = [Expr::SourceType { dreg: 0 }, equals(0, local)];
            self.part(&mut rules, context, &matching, self.node, "this node");
        }
        let rest = match (rules.is_empty(), same) {
            (true, _) => "any source",
            (false, true) => "not pods",
            (false, false) => "outside",
        };
        self.part(&mut rules, context, &[], self.outside, rest);
        rules
    }

    fn part(&self, rules: &mut Vec<Rule>, context: Context<'_>, matching: &[Expr], part: Part, who: &str) {
        let comment: Box<str> = who.into();
        match part {
            Part::Forward { set, count, masquerade } => {
                let mut expressions = matching.to_vec();
                if masquerade {
                    let bit = context.options.masquerade_bit();
                    expressions.extend(mark(!bit, bit));
                }
                expressions.extend(self.forward(context, set, count));
                rules.push(Rule { expressions, comment });
            }
            Part::Reject => rules.extend(reject(context.family, matching, who)),
            Part::Drop => {
                let mut expressions = matching.to_vec();
                expressions.push(Expr::Verdict(Verdict::Drop));
                rules.push(Rule { expressions, comment });
            }
        }
    }

    fn forward(&self, context: Context<'_>, set: EndpointSet, count: usize) -> Vec<Expr> {
        let (mut expressions, next) = load_key(context.family, !self.node_port);
        expressions.push(Expr::Random {
            modulus: u32::try_from(count).unwrap_or(u32::MAX),
            dreg: next,
        });
        expressions.push(lookup(Self::map(self.node_port, set), Some(Dreg::Data(DATA))));
        expressions.push(Expr::Dnat {
            family: family_number(context.family),
            address: DATA,
            port: DATA + words(context.family),
        });
        expressions
    }
}

/// Readable and the same for the same program: what happens to any source; or to pods and others; or to pods, the node
/// and the outside.
impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            node_port,
            pod,
            node,
            outside,
        } = self;
        f.write_str(if *node_port { "nodeport-" } else { "service-" })?;
        if pod == node && node == outside {
            write!(f, "{pod}")
        } else if node == outside {
            write!(f, "{pod}/{node}")
        } else {
            write!(f, "{pod}/{node}/{outside}")
        }
    }
}

// === impl ChainSpec ===

impl ChainSpec {
    /// The chain's name: the same content always has the same name, also after a restart.
    pub(crate) fn name(&self) -> Box<str> {
        match self {
            Self::Program(program) => program.to_string().into(),
            Self::Sources(ranges) => {
                // FNV-1a over the text: names must not change with the compiler, as the standard library's hash may.
                let text = ranges.iter().map(|range| format!("{range} ")).collect::<String>();
                let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
                format!("sources-{:016x}", text.bytes().fold(0xcbf2_9ce4_8422_2325, step)).into()
            }
        }
    }

    pub(crate) fn chain(&self, context: Context<'_>) -> Chain {
        let rules = match self {
            Self::Program(program) => program.rules(context),
            Self::Sources(ranges) => sources(ranges),
        };
        Chain {
            name: self.name(),
            hook: None,
            rules,
        }
    }
}

// === the chains that are always there ===

/// The chains that hook in and what they share, in an order in which they can be created.
pub(crate) fn frame(context: Context<'_>) -> Vec<Chain> {
    let base = |name: &str, number, priority, rules| Chain {
        name: name.into(),
        hook: Some(Hook { number, priority }),
        rules,
    };
    let jump = || vec![rule(vec![Expr::Verdict(Verdict::Jump("services".into()))])];
    vec![
        Chain {
            name: "services".into(),
            hook: None,
            rules: services(context),
        },
        base("prerouting", NF_INET_PRE_ROUTING, -100, jump()),
        base("output", NF_INET_LOCAL_OUT, -100, jump()),
        base("postrouting", NF_INET_POST_ROUTING, 100, postrouting(context)),
    ]
}

fn services(context: Context<'_>) -> Vec<Rule> {
    let by_key = |map| {
        let (mut expressions, _) = load_key(context.family, true);
        expressions.push(lookup(map, Some(Dreg::Verdict)));
        rule(expressions)
    };
    let (node_port_key, _) = load_key(context.family, false);
    let mut node_ports = vec![destination(context.family), lookup(Map::NodePortIps, None)];
    node_ports.extend(node_port_key);
    node_ports.push(lookup(Map::NodePorts, Some(Dreg::Verdict)));

    let mut rules = vec![by_key(Map::Firewall), by_key(Map::Services), rule(node_ports)];
    let live = [destination(context.family), lookup(Map::ClusterIps, None)];
    rules.extend(reject(context.family, &live, "no such port"));
    for range in of_family(&context.node.service_cidrs, context.family) {
        let mut expressions = vec![destination(context.family)];
        expressions.extend(in_range(range));
        expressions.push(Expr::Verdict(Verdict::Drop));
        rules.push(Rule {
            expressions,
            comment: "no such Service".into(),
        });
    }
    rules
}

fn postrouting(context: Context<'_>) -> Vec<Rule> {
    let bit = context.options.masquerade_bit();
    let mut marked = vec![
        Expr::Meta {
            key: NFT_META_MARK,
            dreg: 0,
        },
        bitwise(bit.to_ne_bytes().to_vec(), vec![0; 4]),
        Expr::Cmp {
            sreg: 0,
            not: true,
            value: vec![0; 4],
        },
    ];
    marked.extend(mark(!bit, 0));
    marked.push(Expr::Masquerade);

    let length = u32::from(words(context.family)) * 4;
    let hairpin = vec![
        Expr::Ct {
            key: NFT_CT_STATUS,
            dreg: 0,
            original: false,
        },
        bitwise(IPS_DST_NAT.to_ne_bytes().to_vec(), vec![0; 4]),
        Expr::Cmp {
            sreg: 0,
            not: true,
            value: vec![0; 4],
        },
        // Source and destination stand side by side in the header: one load for each, so that nft can name them.
        source(context.family, 0),
        Expr::Payload {
            base: NFT_PAYLOAD_NETWORK_HEADER,
            offset: destination_offset(context.family),
            len: length,
            dreg: words(context.family),
        },
        lookup(Map::Hairpin, None),
        Expr::Masquerade,
    ];
    vec![
        Rule {
            expressions: marked,
            comment: "marked for masquerading".into(),
        },
        Rule {
            expressions: hairpin,
            comment: "an endpoint that reached itself".into(),
        },
    ]
}

fn sources(ranges: &[IpNet]) -> Vec<Rule> {
    let family = ranges.first().map_or(Family::V4, |range| Family::of(&range.addr()));
    let mut rules = Vec::new();
    for range in of_family(ranges, family) {
        let mut expressions = vec![source(family, 0)];
        expressions.extend(in_range(range));
        expressions.push(Expr::Verdict(Verdict::Return));
        rules.push(rule(expressions));
    }
    rules.push(Rule {
        expressions: vec![Expr::Verdict(Verdict::Drop)],
        comment: "not in loadBalancerSourceRanges".into(),
    });
    rules
}

// === pieces of rules ===

/// Where a lookup's value goes: behind every key.
const DATA: Register = 8;

fn rule(expressions: Vec<Expr>) -> Rule {
    Rule {
        expressions,
        comment: Box::default(),
    }
}

/// Registers that an address takes.
const fn words(family: Family) -> Register {
    match family {
        Family::V4 => 1,
        Family::V6 => 4,
    }
}

const fn destination_offset(family: Family) -> u32 {
    match family {
        Family::V4 => 16,
        Family::V6 => 24,
    }
}

fn source(family: Family, dreg: Register) -> Expr {
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

fn destination(family: Family) -> Expr {
    Expr::Payload {
        base: NFT_PAYLOAD_NETWORK_HEADER,
        offset: destination_offset(family),
        len: u32::from(words(family)) * 4,
        dreg: 0,
    }
}

/// Loads a frontend's key into registers from 0 on; also yields the register behind it.
fn load_key(family: Family, with_address: bool) -> (Vec<Expr>, Register) {
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

fn lookup(map: Map, dreg: Option<Dreg>) -> Expr {
    Expr::Lookup {
        set: map.name().into(),
        sreg: 0,
        dreg,
        not: false,
    }
}

fn equals(sreg: Register, value: Vec<u8>) -> Expr {
    Expr::Cmp {
        sreg,
        not: false,
        value,
    }
}

fn bitwise(mask: Vec<u8>, xor: Vec<u8>) -> Expr {
    Expr::Bitwise {
        sreg: 0,
        dreg: 0,
        mask,
        xor,
    }
}

/// `mark = (mark & and) ^ xor`: other bits of the mark stay as they are.
fn mark(and: u32, xor: u32) -> [Expr; 3] {
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
fn in_range(range: IpNet) -> Vec<Expr> {
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

fn of_family(ranges: &[IpNet], family: Family) -> impl Iterator<Item = IpNet> + '_ {
    let same = move |range: &IpNet| Family::of(&range.addr()) == family;
    ranges.iter().copied().filter(same)
}

/// Matches that together hold for pods: one rule for each.
fn pods(context: Context<'_>) -> Vec<Vec<Expr>> {
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
        Pods::Cidrs(ranges) => of_family(ranges, context.family)
            .map(|range| {
                std::iter::once(source(context.family, 0))
                    .chain(in_range(range))
                    .collect()
            })
            .collect(),
        Pods::Interface(name) => interface(name.as_bytes().to_vec(), true),
        Pods::InterfacePrefix(prefix) => interface(prefix.as_bytes().to_vec(), false),
    }
}

/// Refuses at once: TCP by a reset, everything else by port unreachable.
fn reject(family: Family, matching: &[Expr], who: &str) -> [Rule; 2] {
    let mut tcp = matching.to_vec();
    tcp.push(Expr::Meta {
        key: NFT_META_L4PROTO,
        dreg: 0,
    });
    tcp.push(equals(0, vec![libc::IPPROTO_TCP as u8]));
    tcp.push(Expr::Reject {
        tcp_reset: true,
        code: 0,
    });
    let mut others = matching.to_vec();
    others.push(Expr::Reject {
        tcp_reset: false,
        code: match family {
            Family::V4 => ICMP_PORT_UNREACH,
            Family::V6 => ICMPV6_PORT_UNREACH,
        },
    });
    [tcp, others].map(|expressions| Rule {
        expressions,
        comment: who.into(),
    })
}
