//! The chains that are always there: they hook in, find the frontend that a packet is for, remember clients, and masquerade.
//!
//! All hooks are nat hooks, which only the first packet of a connection passes: established connections cost nothing.

use super::affinity;
use super::netlink::constants::*;
use super::netlink::expr::{Dreg, Expr, Verdict};
use super::netlink::object::{Chain, Hook, Rule};
use super::rules::{
    Context, bitwise, destination, destination_offset, in_range, load_key, lookup, mark, of_family, reject, rule,
    source, words,
};
use super::schema::Map;

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
        Chain {
            name: "affinity".into(),
            hook: None,
            rules: affinity::learners(context),
        },
        base("prerouting", NF_INET_PRE_ROUTING, -100, jump()),
        base("output", NF_INET_LOCAL_OUT, -100, jump()),
        base("input", NF_INET_LOCAL_IN, 100, vec![affinity::jump()]),
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
        // Before the source is replaced.
        affinity::jump(),
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
