//! Zone transfers (RFC 5936, RFC 1995): every record of a zone, as several messages.
//!
//! It knows no record of its own: it lists the names of the zone and asks [`Snapshot::lookup`] what they hold, so a transfer
//! holds what queries answer. Names that exist for every address (`pods insecure`) cannot be listed and are left out.

use std::sync::Arc;

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::Record;

use super::slow::{Writer, response};
use super::{Client, Question, Transport};
use crate::zone::config::ZoneApex;
use crate::zone::listing::{HELD_TYPES, names_of};
use crate::zone::names::Name;
use crate::zone::{Found, Outcome, Snapshot, TYPE_AXFR, TYPE_IXFR};

/// Octets of records after which a message is sent.
const FULL: usize = 16 << 10;

/// A transfer that has been allowed.
#[derive(Debug)]
pub struct Transfer {
    question: Question,
    snapshot: Arc<Snapshot>,
    /// The client has this serial already.
    current: bool,
}

/// What becomes of a question for a transfer.
#[derive(Debug)]
pub(super) enum Asked {
    /// It may be had.
    Allowed(Box<Transfer>),
    /// The SOA record alone: the client has it all, or must come again over TCP (RFC 1995 section 4).
    SoaOnly,
    /// Not for this client, or no zone of ours.
    Refused,
}

/// Decides about a question for a transfer. `known` is the serial of the client's zone (IXFR).
pub(super) fn asked(question: &Question, snapshot: &Snapshot, client: &Client, known: Option<u32>) -> Asked {
    let apex = snapshot.config.zone_of(&question.name);
    let ours = apex.is_some_and(|zone| zone.labels == question.name.labels());
    if !ours || !snapshot.config.policy.may_transfer(&question.name, client.address) {
        return Asked::Refused;
    }
    let current = known == Some(snapshot.serial);
    match (client.transport, question.qtype) {
        (Transport::Udp, TYPE_IXFR) => Asked::SoaOnly,
        (Transport::Udp, _) => Asked::Refused,
        (Transport::Tcp, TYPE_AXFR | TYPE_IXFR) => Asked::Allowed(Box::new(Transfer {
            question: question.clone(),
            snapshot: Arc::new(snapshot.clone()),
            current,
        })),
        (Transport::Tcp, _) => Asked::Refused,
    }
}

// === impl Transfer ===

impl Transfer {
    /// The index of the zone.
    pub fn zone(&self) -> Option<u8> {
        self.snapshot.config.zone_of(&self.question.name).map(|zone| zone.index)
    }

    /// A refusal in its place, for transports that carry one message only.
    pub fn refused(&self) -> Vec<u8> {
        let message = response(&self.question, hickory_proto::rr::DNSClass::IN, ResponseCode::Refused);
        message.to_vec().unwrap_or_default()
    }

    /// Hands every message to `send`, which says whether the client takes more.
    pub async fn run<F: Future<Output = bool>>(&self, mut send: impl FnMut(Vec<u8>) -> F) {
        let Some(zone) = self.snapshot.config.zone_of(&self.question.name) else {
            return;
        };
        let mut page = Page::new(&self.question);
        let apex = Lister {
            snapshot: &self.snapshot,
            zone,
        };
        let soa = apex.writer(&self.question.name).soa();
        page.push(soa.clone());
        if !self.current {
            for names in names_of(&self.snapshot, zone) {
                for wire in names {
                    apex.list(&wire, &mut page);
                }
                for message in std::mem::take(&mut page.ready) {
                    if !send(message).await {
                        return;
                    }
                }
            }
            page.push(soa);
        }
        for message in std::mem::take(&mut page.ready) {
            if !send(message).await {
                return;
            }
        }
        if !page.records.is_empty() {
            send(page.take()).await;
        }
    }
}

/// A message that is being filled.
struct Page<'a> {
    question: &'a Question,
    records: Vec<Record>,
    octets: usize,
    first: bool,
    /// Messages that are full.
    ready: Vec<Vec<u8>>,
}

// === impl Page ===

impl<'a> Page<'a> {
    fn new(question: &'a Question) -> Self {
        Self {
            question,
            records: Vec::new(),
            octets: 0,
            first: true,
            ready: Vec::new(),
        }
    }

    fn push(&mut self, record: Record) {
        // A bound, not a length: names are compressed when they are written.
        self.octets += record.name.len() + 64;
        self.records.push(record);
        if self.octets >= FULL {
            let message = self.take();
            self.ready.push(message);
        }
    }

    fn take(&mut self) -> Vec<u8> {
        let mut message = response(self.question, hickory_proto::rr::DNSClass::IN, ResponseCode::NoError);
        message.metadata.authoritative = true;
        message.metadata.recursion_available = false;
        if !std::mem::take(&mut self.first) {
            message.queries.clear();
            message.edns = None;
        }
        message.add_answers(self.records.drain(..));
        self.octets = 0;
        encode(message)
    }
}

fn encode(message: Message) -> Vec<u8> {
    // A page is far below the limit of a message, and every name in it was read from one.
    message.to_vec().unwrap_or_default()
}

/// Turns names into records.
struct Lister<'a> {
    snapshot: &'a Snapshot,
    zone: &'a ZoneApex,
}

// === impl Lister ===

impl Lister<'_> {
    fn writer<'a>(&'a self, name: &'a Name) -> Writer<'a> {
        Writer {
            snapshot: self.snapshot,
            zone: self.zone,
            name,
        }
    }

    fn list(&self, wire: &[u8], page: &mut Page<'_>) {
        let Ok(name) = Name::from_wire(wire) else { return };
        let writer = self.writer(&name);
        for qtype in HELD_TYPES {
            let Found::Ours(zone, outcome) = self.snapshot.lookup(&name, qtype) else {
                continue;
            };
            if zone.index != self.zone.index {
                // A zone of its own below this one.
                return;
            }
            let mut message = Message::response(0, hickory_proto::op::OpCode::Query);
            match outcome {
                Outcome::Records(records) => writer.records(&mut message, records, 0),
                Outcome::Cname(target) => {
                    page.push(writer.alias(target));
                    return;
                }
                Outcome::NoData | Outcome::NxDomain | Outcome::Refused => continue,
            }
            for record in message.answers {
                page.push(record);
            }
        }
    }
}
