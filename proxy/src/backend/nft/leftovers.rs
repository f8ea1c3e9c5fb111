//! What kube-proxy leaves in the kernel when it ends, and how it is removed.
//!
//! In mode nftables that is two tables, in mode iptables chains and jumps in the tables that iptables shares with everybody.
//! Only what kube-proxy alone makes is touched: kubelet's chains (`KUBE-FIREWALL`, `KUBE-KUBELET-CANARY`) and all other
//! rules stay. Everything goes in one transaction, so a packet meets all of kube-proxy's rules or none.

use std::collections::BTreeSet;
use std::io;

use super::netlink::attr::Attributes;
use super::netlink::batch::{Batch, BatchError};
use super::netlink::constants::*;
use super::netlink::dump::dump;
use super::netlink::message::Message;
use super::netlink::object::Table;
use super::netlink::socket::Socket;

/// `NFTA_IMMEDIATE_DATA`.
const IMMEDIATE_DATA: u16 = 2;
/// kube-proxy's own tables.
const TABLE: &str = "kube-proxy";
/// iptables' tables in which it has chains.
const SHARED: [&str; 3] = ["nat", "filter", "mangle"];
/// Chains of kube-proxy with a fixed name.
const CHAINS: [&str; 14] = [
    "KUBE-SERVICES",
    "KUBE-EXTERNAL-SERVICES",
    "KUBE-NODEPORTS",
    "KUBE-NODE-PORT",
    "KUBE-FORWARD",
    "KUBE-PROXY-FIREWALL",
    "KUBE-PROXY-CANARY",
    "KUBE-POSTROUTING",
    "KUBE-MARK-MASQ",
    "KUBE-LOAD-BALANCER",
    "KUBE-SOURCE-RANGES-FIREWALL",
    "KUBE-IPVS-FILTER",
    "KUBE-IPVS-OUT-FILTER",
    "KUBE-HP",
];
/// Starts of the names of its chains for a Service or an endpoint.
const PREFIXES: [&str; 7] = [
    "KUBE-SVC-",
    "KUBE-SVL-",
    "KUBE-EXT-",
    "KUBE-SEP-",
    "KUBE-FW-",
    "KUBE-XLB-",
    "KUBE-NODE-",
];

/// A rule of a shared table, as far as it matters here.
struct SharedRule {
    chain: String,
    handle: u64,
    /// Where it jumps.
    target: Option<String>,
}

/// Removes kube-proxy's rules in the calling thread's network namespace, and says what that was. Nothing found is no error.
///
/// # Errors
/// When the kernel refuses: without CAP_NET_ADMIN, or because somebody else's rule jumps to one of the chains.
pub fn remove_kube_proxy() -> io::Result<Vec<String>> {
    let mut socket = Socket::open()?;
    let mut batch = Batch::new();
    let mut removed = Vec::new();
    for (family, word) in [(NFPROTO_IPV4, "ip"), (NFPROTO_IPV6, "ip6")] {
        let own = Table { family, name: TABLE };
        if own.flags(&mut socket)?.is_some() {
            own.delete(&mut batch);
            removed.push(format!("table {word} {TABLE}"));
        }
        for name in SHARED {
            let table = Table { family, name };
            if table.flags(&mut socket)?.is_none() {
                continue;
            }
            let chains = chains(&mut socket, table)?;
            if chains.is_empty() {
                continue;
            }
            let mut jumps = 0;
            for rule in rules(&mut socket, table)? {
                let leads_in = rule.target.as_ref().is_some_and(|target| chains.contains(target));
                if leads_in && !chains.contains(&rule.chain) {
                    delete_rule(&mut batch, table, &rule);
                    jumps += 1;
                }
            }
            chains.iter().for_each(|chain| table.flush_chain(&mut batch, chain));
            chains.iter().for_each(|chain| table.delete_chain(&mut batch, chain));
            removed.push(format!(
                "{} chains of table {word} {name}, and {jumps} jumps to them",
                chains.len()
            ));
        }
    }
    batch.commit(&mut socket).map_err(|error| match error {
        BatchError::Io(error) => error,
        BatchError::Refused(refusals) => {
            let first = refusals.first().map(ToString::to_string).unwrap_or_default();
            io::Error::other(format!("kube-proxy's rules stay as they are: {first}"))
        }
    })?;
    Ok(removed)
}

/// Whether our own tables are there: whoever removes kube-proxy's without them leaves the node without Services.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn is_programmed(table: &str) -> io::Result<bool> {
    let mut socket = Socket::open()?;
    let mut found = false;
    for family in [NFPROTO_IPV4, NFPROTO_IPV6] {
        found |= Table { family, name: table }.flags(&mut socket)?.is_some();
    }
    Ok(found)
}

fn is_kube_proxys(chain: &str) -> bool {
    CHAINS.contains(&chain) || PREFIXES.iter().any(|prefix| chain.starts_with(prefix))
}

fn chains(socket: &mut Socket, table: Table<'_>) -> io::Result<BTreeSet<String>> {
    let each = |found: &mut BTreeSet<String>, message: &Message<'_>| {
        let attributes = message.attributes();
        if attributes.text(NFTA_CHAIN_TABLE) == Some(table.name)
            && let Some(name) = attributes.text(NFTA_CHAIN_NAME).filter(|name| is_kube_proxys(name))
        {
            found.insert(name.to_owned());
        }
    };
    Ok(dump(socket, NFT_MSG_GETCHAIN, table.family, |_| {}, each, BTreeSet::new)?.unwrap_or_default())
}

fn rules(socket: &mut Socket, table: Table<'_>) -> io::Result<Vec<SharedRule>> {
    let each = |found: &mut Vec<SharedRule>, message: &Message<'_>| {
        let attributes = message.attributes();
        if attributes.text(NFTA_RULE_TABLE) == Some(table.name)
            && let (Some(chain), Some(handle)) = (attributes.text(NFTA_RULE_CHAIN), attributes.be64(NFTA_RULE_HANDLE))
        {
            found.push(SharedRule {
                chain: chain.to_owned(),
                handle,
                target: target(&attributes),
            });
        }
    };
    let fill = |w: &mut super::netlink::attr::Writer<'_>| w.text(NFTA_RULE_TABLE, table.name);
    Ok(dump(socket, NFT_MSG_GETRULE, table.family, fill, each, Vec::new)?.unwrap_or_default())
}

/// The chain that a rule jumps or goes to.
fn target(rule: &Attributes<'_>) -> Option<String> {
    let expressions = rule.nested(NFTA_RULE_EXPRESSIONS)?;
    let mut immediates = expressions.filter_map(|(_, element)| {
        let element = Attributes::new(element);
        (element.text(NFTA_EXPR_NAME) == Some("immediate"))
            .then(|| element.nested(NFTA_EXPR_DATA))
            .flatten()
    });
    immediates.find_map(|immediate| {
        let verdict = immediate.nested(IMMEDIATE_DATA)?.nested(NFTA_DATA_VERDICT)?;
        verdict.text(NFTA_VERDICT_CHAIN).map(str::to_owned)
    })
}

fn delete_rule(batch: &mut Batch, table: Table<'_>, rule: &SharedRule) {
    batch.message(NFT_MSG_DELRULE, 0, table.family, Batch::SHARED, |w| {
        w.text(NFTA_RULE_TABLE, table.name);
        w.text(NFTA_RULE_CHAIN, &rule.chain);
        w.be64(NFTA_RULE_HANDLE, rule.handle);
    });
}
