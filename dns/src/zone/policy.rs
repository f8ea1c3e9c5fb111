//! How queries are treated beside what their name holds: who may ask what, how large and in which order answers are, what
//! is said of the server itself.

use std::net::IpAddr;

use ipnet::IpNet;

use super::config::Domain;
use super::names::Name;

/// The treatment of queries.
#[derive(Clone, Debug)]
pub struct Policy {
    /// Rules in order; the first one that applies decides (CoreDNS's `acl`).
    pub acl: Vec<AclRule>,
    /// Who may transfer zones (CoreDNS's `transfer`); nobody may otherwise.
    pub transfer: Vec<Transfer>,
    /// The name of this server that clients may ask for (RFC 5001).
    pub nsid: Option<Box<[u8]>>,
    /// The largest datagram, 512 to 4096 octets (CoreDNS's `bufsize`).
    pub bufsize: u16,
    /// Whether the records of an answer come in another order each time (CoreDNS's `loadbalance`).
    pub shuffle: bool,
    /// The key of server cookies (RFC 7873), the same for every server behind one address. `None`: no cookies are given.
    pub cookie_secret: Option<[u8; 16]>,
    /// Names are completed for clients (CoreDNS's `autopath @kubernetes`).
    pub autopath: Option<Autopath>,
}

/// What becomes of a query that a rule applies to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AclAction {
    /// It is answered.
    Allow,
    /// REFUSED.
    Block,
    /// NOERROR without records, as if there were none.
    Filter,
    /// No reply.
    Drop,
}

/// A rule about who may ask what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AclRule {
    /// Names that it is about; none given means every name.
    pub zones: Vec<Domain>,
    /// What it does.
    pub action: AclAction,
    /// Types that it is about; none given means every type.
    pub types: Vec<u16>,
    /// Clients that it is about; none given means everybody.
    pub sources: Vec<IpNet>,
}

/// Who may transfer which zones.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transfer {
    /// The zones; none given means every one.
    pub zones: Vec<Domain>,
    /// Who may; everybody is `0.0.0.0/0` and `::/0`.
    pub to: Vec<IpNet>,
}

/// How names are completed for a pod: its namespace, `svc` and the zone are taken from where it runs, as in its own
/// resolv.conf.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Autopath {
    /// Further domains of the pods' search list, those of the nodes' resolv.conf.
    pub search: Vec<Domain>,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            acl: Vec::new(),
            transfer: Vec::new(),
            nsid: None,
            bufsize: 1232,
            shuffle: true,
            cookie_secret: None,
            autopath: None,
        }
    }
}

// === impl Policy ===

impl Policy {
    /// What becomes of a query.
    pub fn verdict(&self, name: &Name, qtype: u16, source: IpAddr) -> AclAction {
        let source = source.to_canonical();
        let applies = |rule: &&AclRule| {
            (rule.zones.is_empty() || rule.zones.iter().any(|zone| zone.contains(name)))
                && (rule.types.is_empty() || rule.types.contains(&qtype))
                && (rule.sources.is_empty() || rule.sources.iter().any(|net| net.contains(&source)))
        };
        self.acl
            .iter()
            .find(applies)
            .map_or(AclAction::Allow, |rule| rule.action)
    }

    /// Whether a client may transfer the zone whose apex is `zone`.
    pub fn may_transfer(&self, zone: &Name, source: IpAddr) -> bool {
        let source = source.to_canonical();
        self.transfer.iter().any(|transfer| {
            let listed = |domain: &Domain| domain.wire() == zone.lower();
            (transfer.zones.is_empty() || transfer.zones.iter().any(listed))
                && transfer.to.iter().any(|net| net.contains(&source))
        })
    }
}
