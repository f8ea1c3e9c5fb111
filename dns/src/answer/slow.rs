//! Answers what the fast path leaves: aliases, errors, unusual but valid queries. Reads and writes with hickory-proto.
//!
//! It knows no rule of its own about names: it asks the same [`Snapshot::lookup`]. Given a plain query it gives the
//! same message as the fast path, which is how that one is tested.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::opt::EdnsOption;
use hickory_proto::rr::rdata::{A, AAAA, CNAME, NS, PTR, SOA, SRV, TXT};
use hickory_proto::rr::{DNSClass, Name as ProtoName, RData, Record};
use hickory_proto::serialize::binary::BinDecodable;

use super::edns::{OPTION_COOKIE, OPTION_NSID, OPTION_SUBNET};
use super::parse::HEADER;
use super::parse::is_cookie;
use super::transfer::{self, Asked};
use super::{Alias, Answered, Client, ClientEdns, Completion, Forward, Question, Verdict, truncate};
use crate::zone::complete::candidates;
use crate::zone::config::{ZoneApex, ZoneKind};
use crate::zone::names::Name;
use crate::zone::policy::AclAction;
use crate::zone::records::{DNS_VERSION_TTL, NameServer, Records, SOA_TIMERS, Srv, rotated};
use crate::zone::reverse::Pointer;
use crate::zone::{Found, Outcome, Snapshot, TYPE_AXFR, TYPE_CNAME, TYPE_IXFR, TYPE_SOA};

/// The longest chain of aliases that is followed.
pub const MAX_ALIASES: usize = 10;

/// An extended error (RFC 8914), sent to clients that use EDNS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ede {
    /// The store has not been filled yet.
    NotSynced,
    /// A chain of aliases never ends.
    AliasChain,
    /// No upstream answered.
    UpstreamDown,
    /// More queries are being forwarded than allowed.
    Overloaded,
    /// There is no upstream to ask.
    NoUpstream,
    /// Every upstream sends queries back to us.
    Looping,
    /// The answer is old, because upstreams are silent.
    StaleAnswer,
    /// No server block has the name.
    NotServed,
    /// The server block that has the name forwards it to nobody.
    NoForward,
    /// The source of the cluster's names is lost: what is said may be out of date.
    Stale,
    /// A rule forbids the question.
    Blocked,
    /// A rule hides the answer.
    Filtered,
}

// === impl Ede ===

impl Ede {
    /// The code that RFC 8914 gives it.
    pub fn code(self) -> u16 {
        match self {
            Self::Stale => 3,
            Self::Blocked => 15,
            Self::Filtered => 17,
            Self::NotSynced => 14,
            Self::AliasChain | Self::Overloaded => 0,
            Self::UpstreamDown | Self::NoUpstream | Self::Looping => 22,
            Self::StaleAnswer => 3,
            Self::NotServed | Self::NoForward => 20,
        }
    }

    /// What it says to people.
    pub fn text(self) -> &'static str {
        match self {
            Self::Stale => "the source of the cluster's names is lost",
            Self::Blocked => "a rule forbids this",
            Self::Filtered => "a rule hides this",
            Self::NotSynced => "not synced",
            Self::AliasChain => "alias chain longer than 10",
            Self::UpstreamDown => "upstream down",
            Self::Overloaded => "too many queries in flight",
            Self::NoUpstream => "no upstream configured",
            Self::Looping => "upstream loops back",
            Self::StaleAnswer => "upstream down, answer is stale",
            Self::NotServed => "no server block for this name",
            Self::NoForward => "the server block has no forward for this name",
        }
    }
}

/// Answers any message that is a query.
pub fn answer(query: &[u8], snapshot: &Snapshot, client: &Client, out: &mut [u8]) -> Verdict {
    let Some(header) = query.first_chunk::<HEADER>() else {
        return Verdict::Drop;
    };
    if header[2] & 0x80 != 0 {
        return Verdict::Drop;
    }
    if header[2] & 0x78 != 0 {
        return put(&bare(header, ResponseCode::NotImp), None, out);
    }
    if header[4..6] != [0, 1] {
        return put(&bare(header, ResponseCode::FormErr), None, out);
    }
    let message = Message::from_vec(query).ok();
    let Some((mut question, class, version)) = message.as_ref().and_then(read) else {
        return put(&bare(header, ResponseCode::FormErr), None, out);
    };
    question.prepare(snapshot, client);
    let limit = question.limit(client.transport).min(out.len());
    let reply = |code| truncate::encode(response(&question, class, code), limit);
    if version > 0 {
        return put(&reply(ResponseCode::BADVERS), None, out);
    }
    if class != DNSClass::IN {
        return put(&reply(ResponseCode::Refused), None, out);
    }
    let mut denied = |code, ede| put(&truncate::encode(failure(&question, code, ede), limit), None, out);
    match snapshot
        .config
        .policy
        .verdict(&question.name, question.qtype, client.address)
    {
        AclAction::Allow => {}
        AclAction::Block => return denied(ResponseCode::Refused, Ede::Blocked),
        AclAction::Filter => return denied(ResponseCode::NoError, Ede::Filtered),
        AclAction::Drop => return Verdict::Drop,
    }
    let mut asked = question.qtype;
    if matches!(asked, TYPE_AXFR | TYPE_IXFR) && snapshot.synced {
        match transfer::asked(&question, snapshot, client, message.as_ref().and_then(known_serial)) {
            Asked::Allowed(transfer) => return Verdict::Transfer(transfer),
            Asked::SoaOnly => asked = TYPE_SOA,
            Asked::Refused => {}
        }
    }
    match resolve(&question, asked, snapshot, client) {
        Resolved::Message(message) => {
            let zone = snapshot.config.zone_of(&question.name).map(|zone| zone.index);
            put(&truncate::encode(*message, limit), zone, out)
        }
        Resolved::Elsewhere(aliases) => Verdict::Forward(Box::new(Forward {
            question,
            aliases,
            completion: None,
            undo: None,
        })),
        Resolved::Completed(targets, otherwise) => {
            let otherwise = truncate::encode(*otherwise, limit);
            Verdict::Forward(Box::new(Forward {
                question,
                aliases: Vec::new(),
                completion: Some(Completion { targets, otherwise }),
                undo: None,
            }))
        }
    }
}

fn put(bytes: &[u8], zone: Option<u8>, out: &mut [u8]) -> Verdict {
    match out.get_mut(..bytes.len()) {
        Some(place) => {
            place.copy_from_slice(bytes);
            Verdict::Answer(Answered {
                length: bytes.len(),
                zone,
            })
        }
        None => Verdict::Drop,
    }
}

/// A response to a message of which only the header can be trusted.
fn bare(header: &[u8; HEADER], code: ResponseCode) -> Vec<u8> {
    // QR, and of the query's flags the opcode and RD.
    let flags = 0x80 | header[2] & 0x79;
    vec![header[0], header[1], flags, code.low(), 0, 0, 0, 0, 0, 0, 0, 0]
}

/// The one question of a message, its class and its EDNS version.
fn read(message: &Message) -> Option<(Question, DNSClass, u8)> {
    let [query] = &message.queries[..] else { return None };
    let edns = message.edns.as_ref().map(|edns| ClientEdns {
        payload: edns.max_payload(),
        dnssec_ok: edns.flags().dnssec_ok,
        wants_nsid: edns.options().get(OPTION_NSID.into()).is_some(),
        cookie: cookie(edns).flatten(),
        ..ClientEdns::default()
    });
    let question = Question {
        id: message.metadata.id,
        recursion_desired: message.metadata.recursion_desired,
        checking_disabled: message.metadata.checking_disabled,
        name: wire_name(query.name())?,
        qtype: query.query_type().into(),
        edns,
        ..Question::default()
    };
    let version = message.edns.as_ref().map_or(0, Edns::version);
    // RFC 7871 section 7.1.2: a query with a broken subnet is refused; one with a good subnet is answered without it.
    // RFC 7873 section 5.2.2: so is one with a cookie of a wrong length.
    let broken =
        |edns: &Edns| edns.options().get(OPTION_SUBNET.into()).is_some_and(|o| o.len() < 4) || cookie(edns).is_none();
    if message.edns.as_ref().is_some_and(broken) {
        return None;
    }
    Some((question, query.query_class(), version))
}

/// The client's cookie, if it sent one; `None` when it is none.
fn cookie(edns: &Edns) -> Option<Option<[u8; 8]>> {
    let Some(option) = edns.options().get(OPTION_COOKIE.into()) else {
        return Some(None);
    };
    let data = Vec::<u8>::try_from(option).unwrap_or_default();
    is_cookie(&data).then(|| data.first_chunk().copied())
}

fn wire_name(name: &ProtoName) -> Option<Name> {
    let mut wire = Vec::with_capacity(name.len() + 1);
    for label in name {
        crate::zone::names::push_label(&mut wire, label).ok()?;
    }
    wire.push(0);
    Name::from_wire(&wire).ok()
}

/// A name that was checked when it was made. The root stands for one that hickory-proto refuses nevertheless.
pub(crate) fn proto_name(wire: &[u8]) -> ProtoName {
    ProtoName::from_bytes(wire).unwrap_or_else(|_| ProtoName::root())
}

/// A response without records. Authority is claimed for our own answers only, which the caller says.
pub(super) fn response(question: &Question, class: DNSClass, code: ResponseCode) -> Message {
    let mut message = Message::new(question.id, MessageType::Response, OpCode::Query);
    message.metadata.recursion_desired = question.recursion_desired;
    message.metadata.recursion_available = true;
    message.metadata.checking_disabled = question.checking_disabled;
    message.metadata.response_code = code;
    let mut query = Query::query(proto_name(question.name.sent()), question.qtype.into());
    query.set_query_class(class);
    message.add_query(query);
    if let Some(client) = &question.edns {
        let mut edns = Edns::new();
        edns.set_max_payload(question.max_udp);
        edns.set_dnssec_ok(client.dnssec_ok);
        for (code, data) in client.reply.iter() {
            let option = EdnsOption::Unknown(code, data.to_vec());
            edns.options_mut().insert(option);
        }
        message.set_edns(edns);
    }
    message
}

/// An error response, with the reason for clients that use EDNS.
pub fn failure(question: &Question, code: ResponseCode, ede: Ede) -> Message {
    let mut question = question.clone();
    question.explain(ede);
    response(&question, DNSClass::IN, code)
}

/// A response that says nothing but NOERROR.
pub fn empty(question: &Question) -> Message {
    response(question, DNSClass::IN, ResponseCode::NoError)
}

/// The query that asks a question.
pub fn query(question: &Question) -> Option<Vec<u8>> {
    let mut message = empty(question);
    message.metadata.message_type = MessageType::Query;
    message.metadata.recursion_available = false;
    if let (Some(edns), Some(client)) = (&mut message.edns, question.edns) {
        edns.set_max_payload(client.payload);
    }
    message.to_vec().ok()
}

/// The question of a query of class IN and EDNS version 0.
pub fn read_question(message: &Message) -> Option<Question> {
    let (question, class, version) = read(message)?;
    (class == DNSClass::IN && version == 0 && message.metadata.op_code == OpCode::Query).then_some(question)
}

enum Resolved {
    Message(Box<Message>),
    /// Aliases that lead out of our zones; none when the question itself is not ours.
    Elsewhere(Vec<Alias>),
    /// Names in a pod's search list that are not ours, and what to say when none exists.
    Completed(Vec<Alias>, Box<Message>),
}

/// The serial of the zone that the client has (RFC 1995 section 3).
fn known_serial(message: &Message) -> Option<u32> {
    message.authorities.iter().find_map(|record| match &record.data {
        RData::SOA(soa) => Some(soa.serial),
        _ => None,
    })
}

/// `qtype` is what is looked for: the question's type, or the SOA that stands for a transfer.
fn resolve(question: &Question, qtype: u16, snapshot: &Snapshot, client: &Client) -> Resolved {
    let rotation = match snapshot.config.policy.shuffle {
        true => client.rotation,
        false => 0,
    };
    let mut elsewhere = Vec::new();
    let mut explained = question.clone();
    if snapshot.stale {
        explained.explain(Ede::Stale);
    }
    let mut message = response(&explained, DNSClass::IN, ResponseCode::NoError);
    message.metadata.authoritative = true;
    let mut aliases = Vec::new();
    let mut name = question.name.clone();
    loop {
        let (zone, outcome) = match snapshot.lookup(&name, qtype) {
            // Zones of others are not fetched for anyone.
            Found::NotOurs if matches!(qtype, TYPE_AXFR | TYPE_IXFR) => {
                message.metadata.authoritative = false;
                message.metadata.response_code = ResponseCode::Refused;
                break;
            }
            Found::NotOurs => return Resolved::Elsewhere(aliases),
            Found::NotSynced => {
                let failed = failure(question, ResponseCode::ServFail, Ede::NotSynced);
                return Resolved::Message(Box::new(failed));
            }
            Found::Ours(zone, outcome) => (zone, outcome),
        };
        let writer = Writer {
            snapshot,
            zone,
            name: &name,
        };
        match outcome {
            Outcome::Records(records) => writer.records(&mut message, records, rotation),
            Outcome::Cname(target) => {
                message.add_answer(writer.alias(target));
                let Ok(next) = Name::from_wire(target) else { break };
                aliases.push(Alias {
                    owner: name.sent().into(),
                    target: target.into(),
                    ttl: zone.ttl,
                });
                if qtype == TYPE_CNAME {
                    break;
                }
                if aliases.len() > MAX_ALIASES {
                    let failed = failure(question, ResponseCode::ServFail, Ede::AliasChain);
                    return Resolved::Message(Box::new(failed));
                }
                name = next;
                continue;
            }
            Outcome::NoData => writer.negative(&mut message),
            Outcome::NxDomain => {
                if aliases.is_empty() {
                    // The first name that exists is the answer; what lies elsewhere is asked in the same order.
                    let search = candidates(snapshot, question, client.address);
                    let (ours, others) = split_at_ours(snapshot, qtype, search, zone.ttl);
                    elsewhere = others;
                    if let (Some(alias), true) = (ours, elsewhere.is_empty()) {
                        message.add_answer(writer.alias(&alias.target));
                        let Ok(next) = Name::from_wire(&alias.target) else {
                            break;
                        };
                        aliases.push(alias);
                        name = next;
                        continue;
                    }
                }
                message.metadata.response_code = ResponseCode::NXDomain;
                writer.negative(&mut message);
            }
            Outcome::Refused => {
                message.metadata.authoritative = false;
                message.metadata.response_code = ResponseCode::Refused;
            }
        }
        break;
    }
    match elsewhere.is_empty() {
        true => Resolved::Message(Box::new(message)),
        false => Resolved::Completed(elsewhere, Box::new(message)),
    }
}

/// The first of the names that is ours and exists, and those before it that are not ours. Names of ours that do not exist
/// are passed over. When there is one elsewhere nothing behind it counts: whoever asks again with it finds the rest.
fn split_at_ours(snapshot: &Snapshot, qtype: u16, names: Vec<Box<[u8]>>, ttl: u32) -> (Option<Alias>, Vec<Alias>) {
    let mut elsewhere = Vec::new();
    let owner: Box<[u8]> = names.first().cloned().unwrap_or_default();
    for target in names.into_iter().skip(1) {
        let Ok(name) = Name::from_wire(&target) else { continue };
        let alias = Alias {
            owner: owner.clone(),
            target,
            ttl,
        };
        match snapshot.lookup(&name, qtype) {
            Found::NotOurs => elsewhere.push(alias),
            Found::Ours(_, Outcome::NxDomain) | Found::NotSynced => {}
            Found::Ours(..) if elsewhere.is_empty() => return (Some(alias), elsewhere),
            Found::Ours(..) => break,
        }
    }
    (None, elsewhere)
}

/// The response to a question whose aliases lead out of our zones, given what upstream said about their target.
pub fn relay(forward: &Forward, upstream: &Message) -> Message {
    let mut message = response(&forward.question, DNSClass::IN, upstream.metadata.response_code);
    // AA speaks of the first owner name, which is ours (RFC 1035 section 4.1.1).
    message.metadata.authoritative = true;
    for alias in &forward.aliases {
        let data = RData::CNAME(CNAME(proto_name(&alias.target)));
        message.add_answer(Record::from_rdata(proto_name(&alias.owner), alias.ttl, data));
    }
    message.add_answers(upstream.answers.iter().cloned());
    message.add_authorities(upstream.authorities.iter().cloned());
    message
}

/// Turns what a name holds into records.
pub(super) struct Writer<'a> {
    pub(super) snapshot: &'a Snapshot,
    pub(super) zone: &'a ZoneApex,
    pub(super) name: &'a Name,
}

// === impl Writer ===

impl Writer<'_> {
    fn owner(&self) -> ProtoName {
        proto_name(self.name.sent())
    }

    fn record(&self, data: RData) -> Record {
        Record::from_rdata(self.owner(), self.zone.ttl, data)
    }

    pub(super) fn alias(&self, target: &[u8]) -> Record {
        self.record(RData::CNAME(CNAME(proto_name(target))))
    }

    pub(super) fn records(&self, message: &mut Message, records: Records<'_>, rotation: u32) {
        let first = records.first(rotation);
        match records {
            Records::A(list) => {
                message.add_answers(rotated(list, first).map(|ip| self.record(RData::A(A(*ip)))));
            }
            Records::Aaaa(list) => {
                message.add_answers(rotated(list, first).map(|ip| self.record(RData::AAAA(AAAA(*ip)))));
            }
            Records::Spelled(IpAddr::V4(ip)) => {
                message.add_answer(self.record(RData::A(A(ip))));
            }
            Records::Spelled(IpAddr::V6(ip)) => {
                message.add_answer(self.record(RData::AAAA(AAAA(ip))));
            }
            Records::Srv(srv) => self.srv(message, &srv, first),
            Records::Ptr(list) => {
                message.add_answers(list.iter().map(|pointer| self.ptr(&pointer)));
            }
            Records::Soa => {
                message.add_answer(self.soa());
            }
            Records::Ns(server) => self.ns(message, &server),
            Records::Txt(text) => {
                let mut record = self.record(RData::TXT(TXT::from_bytes(vec![text])));
                record.ttl = DNS_VERSION_TTL;
                message.add_answer(record);
            }
        }
    }

    fn srv(&self, message: &mut Message, srv: &Srv<'_>, first: usize) {
        let mut last = None;
        for record in rotated(srv.records, first) {
            let target = srv.target(record);
            let mut wire = Vec::new();
            if let Some(label) = &target.label {
                wire.extend_from_slice(label.wire());
            }
            let glue_owner = [&wire[..], &self.name.sent()[self.name.start(srv.depth)..]].concat();
            wire.extend_from_slice(self.name.suffix(srv.depth));
            let data = SRV::new(0, srv.weight, record.port, proto_name(&wire));
            message.add_answer(self.record(RData::SRV(data)));
            if last.replace(record.host) != Some(record.host) {
                self.glue(message, &proto_name(&glue_owner), target.v4, target.v6);
            }
        }
    }

    fn glue(&self, message: &mut Message, owner: &ProtoName, v4: &[Ipv4Addr], v6: &[Ipv6Addr]) {
        let ttl = self.zone.ttl;
        let v4 = v4.iter().map(|ip| RData::A(A(*ip)));
        let v6 = v6.iter().map(|ip| RData::AAAA(AAAA(*ip)));
        message.add_additionals(v4.chain(v6).map(|data| Record::from_rdata(owner.clone(), ttl, data)));
    }

    fn ptr(&self, pointer: &Pointer<'_>) -> Record {
        let mut wire = Vec::new();
        if let Some(label) = &pointer.label {
            wire.extend_from_slice(label.wire());
        }
        wire.extend_from_slice(pointer.service);
        wire.extend_from_slice(b"\x03svc");
        wire.extend_from_slice(&self.snapshot.config.primary);
        self.record(RData::PTR(PTR(proto_name(&wire))))
    }

    fn ns(&self, message: &mut Message, server: &NameServer<'_>) {
        let labels = if server.labels.is_empty() {
            b"\x02ns\x03dns".to_vec()
        } else {
            [server.labels, b"\x03svc"].concat()
        };
        let target = proto_name(&[&labels[..], &self.snapshot.config.primary].concat());
        message.add_answer(self.record(RData::NS(NS(target.clone()))));
        self.glue(message, &target, server.v4, server.v6);
    }

    pub(super) fn soa(&self) -> Record {
        let apex = &self.name.sent()[self.name.start(self.name.labels() - self.zone.labels)..];
        let config = &self.snapshot.config;
        let zone = match self.zone.kind {
            ZoneKind::Cluster | ZoneKind::ClusterSet => apex,
            ZoneKind::Reverse => &config.primary,
        };
        let below = |labels: &[u8]| proto_name(&[labels, zone].concat());
        let [refresh, retry, expire] = SOA_TIMERS.map(|seconds| seconds as i32);
        let serial = self.snapshot.serial;
        let minimum = self.zone.negative_ttl;
        let (server, mailbox) = (below(b"\x02ns\x03dns"), below(b"\x0ahostmaster"));
        let data = SOA::new(server, mailbox, serial, refresh, retry, expire, minimum);
        Record::from_rdata(proto_name(apex), minimum, RData::SOA(data))
    }

    fn negative(&self, message: &mut Message) {
        message.add_authority(self.soa());
    }
}
