//! A kernel in memory: it reads the very bytes that would be sent, refuses what the real one refuses, and runs a
//! packet through the rules that it was given. What it does not know is an error.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use portolan_plan::FrontendKind;

use super::*;
use crate::backend::nft::entries::{Entry, Place};
use crate::backend::nft::netlink::attr::Attributes;
use crate::backend::nft::netlink::batch::Batch;
use crate::backend::nft::netlink::constants::*;
use crate::backend::nft::netlink::expr::{Dreg, Expr, Verdict as ChainVerdict};
use crate::backend::nft::netlink::message::{Message, Messages};
use crate::backend::nft::netlink::object::{Bytes, Chain, Data, Element, Hook, Rule};
use crate::backend::nft::schema::{Map, address_bytes, family_number, frontend_key, parse_endpoint, split_slot};

/// A table in memory.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct FakeTable {
    /// Length of the keys of each set.
    sets: BTreeMap<String, u32>,
    pub(super) elements: BTreeMap<(String, Vec<u8>), (Data, String)>,
    pub(super) chains: BTreeMap<Box<str>, Chain>,
}

/// Shared, so that it outlives the process that programs it.
#[derive(Clone, Default)]
pub(super) struct Fake(
    pub(super) Arc<Mutex<BTreeMap<u8, FakeTable>>>,
    pub(super) Arc<Mutex<Moods>>,
);

/// In what ways it is not as it should be.
#[derive(Default)]
pub(super) struct Moods {
    /// It has no nf_tables for IPv6.
    pub(super) without_v6: bool,
    /// It counts references to chains until a transaction is over.
    pub(super) busy: bool,
    /// It refuses elements with these comments without saying which ones it means.
    pub(super) bad: Vec<String>,
    /// How many transactions were asked for.
    pub(super) commits: usize,
}

/// A packet that opens a connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct Packet {
    pub(super) from: IpAddr,
    /// The sender is the node itself.
    pub(super) local: bool,
    pub(super) to: IpAddr,
    pub(super) protocol: Protocol,
    pub(super) port: u16,
}

/// What became of it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Outcome {
    Untouched,
    Dropped,
    Reset,
    Unreachable,
    Forwarded { to: SocketAddr, masquerade: bool },
}

// === impl Fake ===

impl Kernel for Fake {
    fn commit(&mut self, mut batch: Batch) -> Result<(), BatchError> {
        let mut tables = self.0.lock().unwrap().clone();
        let mut moods = self.1.lock().unwrap();
        moods.commits += 1;
        let bytes = batch.bytes().to_vec();
        let mut sequences = 0..;
        for message in Messages(&bytes) {
            assert_eq!(
                Some(message.sequence),
                sequences
                    .next()
                    .filter(|_| message.kind != NFNL_MSG_BATCH_END)
                    .or(Some(0))
            );
            if let Some(kind) = message.nft_kind()
                && let Err(errno) = carry_out(&mut tables, kind, &message, moods.without_v6)
            {
                return Err(batch.refusal(message.sequence, None, errno));
            }
        }
        if moods.busy {
            let before = self.0.lock().unwrap();
            for (family, table) in before.iter() {
                let gone = |chain: &str| {
                    tables
                        .get(family)
                        .is_some_and(|after| !after.chains.contains_key(chain))
                };
                if tables.contains_key(family) && table.chains.keys().any(|chain| gone(chain) && table.refers_to(chain))
                {
                    return Err(batch.refusal(0, None, libc::EBUSY));
                }
            }
        }
        let mut elements = tables.values().flat_map(|table| table.elements.values());
        if elements.any(|(_, comment)| moods.bad.contains(comment)) {
            // The message that begins a batch is nobody's.
            return Err(batch.refusal(0, None, libc::ENOMEM));
        }
        *self.0.lock().unwrap() = tables;
        Ok(())
    }

    fn observe(&mut self, family: Family, _: &str) -> io::Result<Option<Observed>> {
        let tables = self.0.lock().unwrap();
        let Some(table) = tables.get(&family_number(family)) else {
            return Ok(None);
        };
        let map = |name: &str| Map::ALL.into_iter().find(|map| map.name() == name).unwrap();
        let lasting = table.elements.iter().filter(|((set, _), _)| set != "affinity");
        let entries = lasting.map(|((set, key), (data, comment))| Entry {
            place: Place {
                family,
                map: map(set),
                key: Bytes::new(key).unwrap(),
            },
            data: data.clone(),
            comment: comment.as_str().into(),
            owner: Batch::SHARED,
        });
        let mut entries: Vec<Entry> = entries.collect();
        difference::sort(&mut entries);
        Ok(Some(Observed {
            sound: true,
            chains: table.chains.values().cloned().collect(),
            entries,
        }))
    }

    fn takes(&mut self, family: Family, _: &NftOptions) -> io::Result<bool> {
        Ok(family == Family::V4 || !self.1.lock().unwrap().without_v6)
    }

    fn affinity(&mut self, family: Family, _: &str) -> io::Result<Vec<Element>> {
        let tables = self.0.lock().unwrap();
        let elements = tables
            .get(&family_number(family))
            .into_iter()
            .flat_map(|table| &table.elements);
        let clients = elements.filter(|((set, _), _)| set == "affinity");
        let element = |((_, key), (data, _)): (&(String, Vec<u8>), &(Data, String))| Element {
            key: Bytes::new(key).unwrap(),
            data: data.clone(),
            comment: None,
        };
        Ok(clients.map(element).collect())
    }
}

fn carry_out(
    tables: &mut BTreeMap<u8, FakeTable>,
    kind: u8,
    message: &Message<'_>,
    without_v6: bool,
) -> Result<(), i32> {
    let family = message.family().unwrap();
    let a = message.attributes();
    assert_eq!(a.text(NFTA_TABLE_NAME), Some("portolan"));
    match kind {
        NFT_MSG_NEWTABLE if without_v6 && family == NFPROTO_IPV6 => return Err(libc::EOPNOTSUPP),
        NFT_MSG_NEWTABLE => {
            tables.entry(family).or_default();
            return Ok(());
        }
        NFT_MSG_DELTABLE => return tables.remove(&family).map(drop).ok_or(libc::ENOENT),
        _ => {}
    }
    let table = tables.get_mut(&family).ok_or(libc::ENOENT)?;
    match kind {
        NFT_MSG_NEWSET => {
            let name = a.text(NFTA_SET_NAME).unwrap();
            table.sets.insert(name.to_owned(), a.be32(NFTA_SET_KEY_LEN).unwrap());
        }
        NFT_MSG_NEWCHAIN => {
            let name: Box<str> = a.text(NFTA_CHAIN_NAME).unwrap().into();
            let hook = a.nested(NFTA_CHAIN_HOOK).map(|hook| Hook::parse(&a, &hook));
            table.chains.entry(name.clone()).or_insert(Chain {
                name,
                hook,
                rules: Vec::new(),
            });
        }
        NFT_MSG_DELCHAIN => {
            let name = a.text(NFTA_CHAIN_NAME).unwrap();
            if table.chains.get(name).ok_or(libc::ENOENT)?.rules.is_empty() && !table.refers_to(name) {
                table.chains.remove(name);
            } else {
                return Err(libc::EBUSY);
            }
        }
        NFT_MSG_NEWRULE => {
            let (chain, rule) = Rule::parse(&a).unwrap();
            assert!(!rule.expressions.is_empty(), "an expression that does not parse");
            let lookups = rule.expressions.iter().filter_map(|e| match e {
                Expr::Lookup { set, .. } => Some(set),
                _ => None,
            });
            if !lookups.clone().all(|set| table.sets.contains_key(&**set)) {
                return Err(libc::ENOENT);
            }
            table.chains.get_mut(&chain).ok_or(libc::ENOENT)?.rules.push(rule);
        }
        NFT_MSG_DELRULE => {
            let chain = a.text(NFTA_RULE_CHAIN).unwrap();
            table.chains.get_mut(chain).ok_or(libc::ENOENT)?.rules.clear();
        }
        NFT_MSG_NEWSETELEM | NFT_MSG_DELSETELEM => {
            let set = a.text(NFTA_SET_ELEM_LIST_SET).unwrap();
            for (_, element) in a.nested(NFTA_SET_ELEM_LIST_ELEMENTS).unwrap() {
                let element = Element::parse(&Attributes::new(element)).unwrap();
                table.element(kind == NFT_MSG_NEWSETELEM, set, element)?;
            }
        }
        kind => panic!("message {kind}"),
    }
    Ok(())
}

// === impl FakeTable ===

impl FakeTable {
    fn element(&mut self, add: bool, set: &str, element: Element) -> Result<(), i32> {
        let length = *self.sets.get(set).ok_or(libc::ENOENT)?;
        if element.key.as_slice().len() != length as usize {
            return Err(libc::EINVAL);
        }
        let key = (set.to_owned(), element.key.as_slice().to_vec());
        if !add {
            return self.elements.remove(&key).map(drop).ok_or(libc::ENOENT);
        }
        if let Data::Verdict(verdict) = &element.data
            && verdict.chain().is_some_and(|chain| !self.chains.contains_key(chain))
        {
            return Err(libc::ENOENT);
        }
        match self
            .elements
            .insert(key, (element.data, element.comment.unwrap_or_default().into()))
        {
            // The real one lets equal elements pass; we never send them.
            Some(_) => Err(libc::EEXIST),
            None => Ok(()),
        }
    }

    fn refers_to(&self, chain: &str) -> bool {
        let is = |verdict: &ChainVerdict| verdict.chain() == Some(chain);
        let rules = self.chains.values().flat_map(|chain| &chain.rules);
        let mut expressions = rules.flat_map(|rule| &rule.expressions);
        expressions.any(|e| matches!(e, Expr::Verdict(verdict) if is(verdict)))
            || self
                .elements
                .values()
                .any(|(data, _)| matches!(data, Data::Verdict(verdict) if is(verdict)))
    }

    /// The table without the order of slots and without clients, which depend on what was there before.
    pub(super) fn without_slots(&self) -> Self {
        let mut table = self.clone();
        table.elements.retain(|(set, _), _| set != "affinity");
        let slotted = [
            Map::Endpoints,
            Map::LocalEndpoints,
            Map::NodePortEndpoints,
            Map::NodePortLocalEndpoints,
        ];
        for map in slotted {
            let name = map.name().to_owned();
            let mut frontends: BTreeMap<Bytes, (Vec<usize>, Vec<Data>)> = BTreeMap::new();
            let keys: Vec<_> = table.elements.keys().filter(|(set, _)| *set == name).cloned().collect();
            for key in keys {
                let (frontend, slot) = split_slot(&Bytes::new(&key.1).unwrap()).unwrap();
                let (slots, values) = frontends.entry(frontend).or_default();
                slots.push(slot);
                values.push(table.elements.remove(&key).unwrap().0);
            }
            for (frontend, (mut slots, mut values)) in frontends {
                slots.sort_unstable();
                assert!(
                    slots.iter().copied().eq(0..slots.len()),
                    "holes in {name} at {frontend:?}: {slots:?}"
                );
                values.sort();
                for (slot, value) in values.into_iter().enumerate() {
                    let key = schema::slot_key(frontend, slot).as_slice().to_vec();
                    table.elements.insert((name.clone(), key), (value, String::new()));
                }
            }
        }
        table
    }

    /// Everything that can become of a packet, over all random numbers.
    pub(super) fn trace(&self, packet: &Packet) -> BTreeSet<Outcome> {
        (0..24).map(|random| Run::new(self, packet, random).enter()).collect()
    }

    /// What becomes of a packet with one random number; clients are remembered.
    pub(super) fn connect(&mut self, packet: &Packet, random: u32) -> Outcome {
        let mut run = Run::new(self, packet, random);
        let outcome = run.enter();
        if let Outcome::Forwarded { to, .. } = outcome {
            run.translated = Some(to);
            let left = run.chain("affinity");
            assert_eq!(left, None, "learning decides nothing");
        }
        if let Some((key, value)) = run.learnt {
            let place = ("affinity".to_owned(), key);
            self.elements
                .entry(place)
                .or_insert((Data::Value(value), String::new()));
        }
        outcome
    }
}

/// A packet on its way through the rules.
struct Run<'a> {
    table: &'a FakeTable,
    packet: &'a Packet,
    random: u32,
    registers: [u8; 64],
    mark: u32,
    /// Its destination has been replaced by this one.
    translated: Option<SocketAddr>,
    /// An element for map `affinity`.
    learnt: Option<(Vec<u8>, Bytes)>,
}

enum Next {
    Rule,
    Expression,
    Return,
    Goto(Box<str>),
    Jump(Box<str>),
    Done(Outcome),
}

impl<'a> Run<'a> {
    fn new(table: &'a FakeTable, packet: &'a Packet, random: u32) -> Self {
        Self {
            table,
            packet,
            random,
            registers: [0; 64],
            mark: 0xa,
            translated: None,
            learnt: None,
        }
    }

    fn enter(&mut self) -> Outcome {
        let hook = if self.packet.local { "output" } else { "prerouting" };
        let outcome = self.chain(hook).unwrap_or(Outcome::Untouched);
        assert_eq!(self.mark & !0x4000, 0xa, "other bits of the mark are not ours");
        outcome
    }

    fn chain(&mut self, name: &str) -> Option<Outcome> {
        let chain = self.table.chains.get(name).unwrap_or_else(|| panic!("no chain {name}"));
        for rule in &chain.rules {
            for expression in &rule.expressions {
                match self.step(expression) {
                    Next::Expression => {}
                    Next::Rule => break,
                    Next::Return => return None,
                    Next::Goto(chain) => return self.chain(&chain),
                    Next::Jump(chain) => match self.chain(&chain) {
                        Some(outcome) => return Some(outcome),
                        None => break,
                    },
                    Next::Done(outcome) => return Some(outcome),
                }
            }
        }
        None
    }

    fn store(&mut self, register: u8, bytes: &[u8]) -> Next {
        let start = usize::from(register) * 4;
        self.registers[start..start + bytes.len().div_ceil(4) * 4].fill(0);
        self.registers[start..start + bytes.len()].copy_from_slice(bytes);
        Next::Expression
    }

    fn load(&self, register: u8, length: usize) -> &[u8] {
        &self.registers[usize::from(register) * 4..][..length]
    }

    fn step(&mut self, expression: &Expr) -> Next {
        let on = |condition: bool| if condition { Next::Expression } else { Next::Rule };
        let packet = self.packet;
        let (to, port) = self
            .translated
            .map_or((packet.to, packet.port), |to| (to.ip(), to.port()));
        match expression {
            Expr::Payload { base, offset, dreg, .. } => {
                let field = match (*base, *offset) {
                    (NFT_PAYLOAD_NETWORK_HEADER, 12 | 8) => address_bytes(packet.from),
                    (NFT_PAYLOAD_NETWORK_HEADER, 16 | 24) => address_bytes(to),
                    (NFT_PAYLOAD_TRANSPORT_HEADER, 2) => Bytes::new(&port.to_be_bytes()).unwrap(),
                    other => panic!("{other:?}"),
                };
                self.store(*dreg, field.as_slice())
            }
            Expr::Meta {
                key: NFT_META_L4PROTO,
                dreg,
            } => self.store(*dreg, &[packet.protocol.number()]),
            Expr::Meta {
                key: NFT_META_IIF,
                dreg,
            } => self.store(*dreg, &u32::from(!packet.local).to_ne_bytes()),
            Expr::Meta {
                key: NFT_META_MARK,
                dreg,
            } => self.store(*dreg, &self.mark.to_ne_bytes()),
            Expr::MetaSet {
                key: NFT_META_MARK,
                sreg,
            } => {
                self.mark = u32::from_ne_bytes(self.load(*sreg, 4).try_into().unwrap());
                Next::Expression
            }
            Expr::Ct { key, dreg, .. } => {
                let field = match *key {
                    NFT_CT_STATUS => Bytes::new(&self.translated.map_or(0, |_| IPS_DST_NAT).to_ne_bytes()).unwrap(),
                    NFT_CT_DST_IP | NFT_CT_DST_IP6 => address_bytes(packet.to),
                    NFT_CT_PROTO_DST => Bytes::new(&packet.port.to_be_bytes()).unwrap(),
                    other => panic!("ct {other}"),
                };
                self.store(*dreg, field.as_slice())
            }
            Expr::Constant { value, dreg } => self.store(*dreg, value),
            Expr::Update { set, key, data, .. } => {
                let key = self.load(*key, self.table.sets[&**set] as usize).to_vec();
                let length = if packet.to.is_ipv4() { 8 } else { 20 };
                self.learnt = Some((key, Bytes::new(self.load(*data, length)).unwrap()));
                Next::Expression
            }
            Expr::Cmp { sreg, not, value } => on((self.load(*sreg, value.len()) == value) != *not),
            Expr::Bitwise { sreg, dreg, mask, xor } => {
                let bytes = self.load(*sreg, mask.len()).iter().zip(mask).zip(xor);
                let bytes: Vec<u8> = bytes.map(|((byte, mask), xor)| (byte & mask) ^ xor).collect();
                self.store(*dreg, &bytes)
            }
            Expr::Lookup { set, sreg, dreg, not } => {
                let key = self.load(*sreg, self.table.sets[&**set] as usize).to_vec();
                let found = self.table.elements.get(&(set.to_string(), key));
                match (found, dreg) {
                    (found, None) => on(found.is_some() != *not),
                    (Some((Data::Value(value), _)), Some(Dreg::Data(dreg))) => self.store(*dreg, value.as_slice()),
                    (Some((Data::Verdict(verdict), _)), Some(Dreg::Verdict)) => act(verdict),
                    (None, _) => Next::Rule,
                    other => panic!("{other:?}"),
                }
            }
            Expr::Random { modulus, dreg } => self.store(*dreg, &(self.random % modulus).to_ne_bytes()),
            Expr::Verdict(verdict) => act(verdict),
            Expr::Dnat { address, port, .. } => {
                assert_eq!(*port, address + if packet.to.is_ipv4() { 1 } else { 4 });
                let length = if packet.to.is_ipv4() { 8 } else { 20 };
                let to = parse_endpoint(&Bytes::new(self.load(*address, length)).unwrap()).unwrap();
                let masquerade = self.mark & 0x4000 != 0;
                Next::Done(Outcome::Forwarded {
                    to: to.into(),
                    masquerade,
                })
            }
            Expr::Reject { tcp_reset: true, .. } => Next::Done(Outcome::Reset),
            Expr::Reject { tcp_reset: false, .. } => Next::Done(Outcome::Unreachable),
            Expr::Redirect { port } => {
                assert_eq!(self.load(*port, 2), [0, 0], "a port where somebody may listen");
                assert!(packet.local, "what comes from elsewhere can be refused");
                Next::Done(Outcome::Unreachable)
            }
            Expr::SourceType { dreg } => {
                let kind: u32 = if packet.local { RTN_LOCAL } else { 1 };
                self.store(*dreg, &kind.to_ne_bytes())
            }
            other => panic!("{other:?} in a chain that packets to Services pass"),
        }
    }
}

fn act(verdict: &ChainVerdict) -> Next {
    match verdict {
        ChainVerdict::Accept => Next::Done(Outcome::Untouched),
        ChainVerdict::Drop => Next::Done(Outcome::Dropped),
        ChainVerdict::Return => Next::Return,
        ChainVerdict::Jump(chain) => Next::Jump(chain.clone()),
        ChainVerdict::Goto(chain) => Next::Goto(chain.clone()),
    }
}

/// What the plan says about a packet to one of its frontends from a source that its routes give `verdict` to.
pub(super) fn expected(port: &PortPlan, frontend: &Frontend, verdict: Verdict, from: IpAddr) -> BTreeSet<Outcome> {
    let let_in = |ranges: &Arc<[IpNet]>| ranges.iter().any(|range| range.contains(&from));
    if !frontend.source_ranges.as_ref().is_none_or(let_in) {
        return [Outcome::Dropped].into();
    }
    match verdict {
        Verdict::Drop => [Outcome::Dropped].into(),
        Verdict::Reject if port.protocol == Protocol::Tcp => [Outcome::Reset].into(),
        Verdict::Reject => [Outcome::Unreachable].into(),
        Verdict::Forward { set, masquerade } => entries::backends(port, set)
            .iter()
            .map(|backend| Outcome::Forwarded {
                to: backend.address,
                masquerade,
            })
            .collect(),
    }
}

/// The key of a frontend in the kernel, to look for it.
pub(super) fn key(port: &PortPlan, frontend: &Frontend) -> (String, Vec<u8>) {
    let map = if frontend.kind == FrontendKind::NodePort {
        Map::NodePorts
    } else {
        Map::Services
    };
    let key = frontend_key(frontend.address, port.protocol, frontend.port);
    (map.name().to_owned(), key.as_slice().to_vec())
}
