//! Chains that elements refer to: what happens to a new connection, as rules.
//!
//! There is a chain for each *program* in use (what happens to pods, the node and the outside, and among how many
//! endpoints is chosen), never one for a Service.

use std::fmt;
use std::sync::Arc;

use ipnet::IpNet;
use portolan_model::Family;
use portolan_plan::{EndpointSet, Routes, Verdict as PlanVerdict};

use super::affinity::{Affinity, fnv1a};
use super::netlink::constants::RTN_LOCAL;
use super::netlink::expr::{Dreg, Expr, Verdict};
use super::netlink::object::{Chain, Rule};
use super::rules::{
    Context, DATA, equals, in_range, load_key, lookup, mark, of_family, own_pods, pods, reject, rule, source, words,
};
use super::schema::{Map, family_number};

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
    /// Clients come back to the same endpoint: the chain is the port's own then.
    pub(crate) affinity: Option<Affinity>,
}

/// A chain that elements refer to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum ChainSpec {
    Program(Program),
    /// Remembers which endpoint a client was sent to by such a program.
    Learn(Program),
    /// Returns for sources in the ranges and drops the others.
    Sources(Arc<[IpNet]>),
}

// === impl Part ===

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            // What learns does not choose.
            Self::Forward { set, count: 0, .. } => write!(f, "{set}"),
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
    pub(crate) fn new(
        routes: &Routes,
        node_port: bool,
        affinity: Option<Affinity>,
        count: impl Fn(EndpointSet) -> usize,
    ) -> Self {
        let part = |verdict| match verdict {
            PlanVerdict::Forward { set, masquerade } => match count(set) {
                // A plan never forwards to an empty set; a modulus of 0 would be refused.
                0 => Part::Reject,
                count => Part::Forward { set, count, masquerade },
            },
            PlanVerdict::Reject => Part::Reject,
            PlanVerdict::Drop => Part::Drop,
        };
        let program = Self {
            node_port,
            pod: part(routes.pod),
            node: part(routes.node),
            outside: part(routes.outside),
            affinity: None,
        };
        let forwards = program.uses(EndpointSet::Cluster) || program.uses(EndpointSet::Local);
        Self {
            affinity: affinity.filter(|_| forwards),
            ..program
        }
    }

    /// What there is to learn from connections: only to which set each kind of source is sent.
    pub(crate) fn learner(&self) -> Self {
        let part = |part| match part {
            Part::Forward { set, .. } => Part::Forward {
                set,
                count: 0,
                masquerade: false,
            },
            Part::Reject | Part::Drop => Part::Drop,
        };
        Self {
            node_port: false,
            pod: part(self.pod),
            node: part(self.node),
            outside: part(self.outside),
            affinity: self.affinity,
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

    /// Calls `write` for each kind of source with what tells it from the next one, its part, and who it is.
    fn parts(&self, context: Context<'_>, mut write: impl FnMut(&[Expr], Part, &str)) {
        let mut any = "any source";
        let same = self.node == self.outside;
        if self.pod != self.outside || !same {
            // `Frontend::verdict` says why a node port makes a difference between pods.
            let own = if self.node_port && self.pod != self.node {
                own_pods(context)
            } else {
                Vec::new()
            };
            let rest = if own.is_empty() {
                (self.pod, "pods")
            } else {
                (self.node, "pods of other nodes")
            };
            for matching in own {
                write(&matching, self.pod, "pods of this node");
            }
            for matching in pods(context) {
                write(&matching, rest.0, rest.1);
                any = "not pods";
            }
        }
        if !same {
            let local = RTN_LOCAL.to_ne_bytes().to_vec();
            let matching = [Expr::SourceType { dreg: 0 }, equals(0, local)];
            write(&matching, self.node, "this node");
            any = "outside";
        }
        write(&[], self.outside, any);
    }

    fn rules(&self, context: Context<'_>) -> Vec<Rule> {
        let mut rules = Vec::new();
        self.parts(context, |matching, part, who| {
            self.part(&mut rules, context, matching, part, who);
        });
        rules
    }

    fn learn(&self, context: Context<'_>) -> Vec<Rule> {
        let mut rules = Vec::new();
        self.parts(context, |matching, part, who| {
            let mut expressions = matching.to_vec();
            if let (Part::Forward { set, .. }, Some(affinity)) = (part, self.affinity) {
                expressions.extend(affinity.learn(context, set));
            }
            // A kind of source that is not forwarded has nothing to be learnt, and must not fall to the next rule.
            expressions.push(Expr::Verdict(Verdict::Return));
            rules.push(Rule {
                expressions,
                comment: who.into(),
            });
        });
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
                let nat = dnat(context.family);
                if let Some(affinity) = self.affinity {
                    let mut expressions = expressions.clone();
                    expressions.extend(affinity.find(context, set));
                    expressions.push(nat.clone());
                    let comment = format!("{who}, known clients").into();
                    rules.push(Rule { expressions, comment });
                }
                expressions.extend(self.choose(context, set, count));
                expressions.push(nat);
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

    /// Finds an endpoint at random.
    fn choose(&self, context: Context<'_>, set: EndpointSet, count: usize) -> Vec<Expr> {
        let (mut expressions, next) = load_key(context.family, !self.node_port);
        expressions.push(Expr::Random {
            modulus: u32::try_from(count).unwrap_or(u32::MAX),
            dreg: next,
        });
        expressions.push(lookup(Self::map(self.node_port, set), Some(Dreg::Data(DATA))));
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
            affinity,
        } = self;
        f.write_str(if *node_port { "nodeport-" } else { "service-" })?;
        if pod == node && node == outside {
            write!(f, "{pod}")?;
        } else if node == outside {
            write!(f, "{pod}/{node}")?;
        } else {
            write!(f, "{pod}/{node}/{outside}")?;
        }
        match affinity {
            Some(Affinity { port, seconds }) => write!(f, "/affinity-{port:016x}-{seconds}s"),
            None => Ok(()),
        }
    }
}

// === impl ChainSpec ===

impl ChainSpec {
    /// The chain's name: the same content always has the same name, also after a restart.
    pub(crate) fn name(&self) -> Box<str> {
        match self {
            Self::Program(program) => program.to_string().into(),
            Self::Learn(program) => format!("learn-{program}").into(),
            Self::Sources(ranges) => {
                let text = ranges.iter().map(|range| format!("{range} ")).collect::<String>();
                format!("sources-{:016x}", fnv1a(&text)).into()
            }
        }
    }

    pub(crate) fn chain(&self, context: Context<'_>) -> Chain {
        let rules = match self {
            Self::Program(program) => program.rules(context),
            Self::Learn(program) => program.learn(context),
            Self::Sources(ranges) => sources(ranges),
        };
        Chain {
            name: self.name(),
            hook: None,
            rules,
        }
    }
}

/// Replaces the destination by the endpoint that a lookup found.
fn dnat(family: Family) -> Expr {
    Expr::Dnat {
        family: family_number(family),
        address: DATA,
        port: DATA + words(family),
    }
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
