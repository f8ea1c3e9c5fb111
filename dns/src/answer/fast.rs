//! Writes answers straight into the response, without allocating.
//!
//! Names inside the response point into the question wherever DNS allows it, so an answer carries the letter case of
//! its question, and only what a question does not say is copied.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::parse::{CLASS_IN, HEADER};
use super::{Answered, Client, Ede, Question};
use crate::zone::config::{ZoneApex, ZoneKind};
use crate::zone::records::{DNS_VERSION_TTL, NameServer, Records, SOA_TIMERS, Srv, rotated};
use crate::zone::reverse::Pointers;
use crate::zone::{
    Found, Outcome, Snapshot, TYPE_A, TYPE_AAAA, TYPE_AXFR, TYPE_IXFR, TYPE_NS, TYPE_PTR, TYPE_SOA, TYPE_SRV, TYPE_TXT,
};

/// What came of a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fast {
    /// The response is in the buffer.
    Answer(Answered),
    /// In no zone of ours.
    NotOurs,
    /// The slow path must answer.
    TooHard,
}

const NXDOMAIN: u8 = 3;
/// A pointer to the question's name.
const OWNER: [u8; 2] = pointer(HEADER);

/// Answers a question from the zone.
pub fn answer(question: &mut Question, snapshot: &Snapshot, client: &Client, out: &mut [u8]) -> Fast {
    let (zone, outcome) = match snapshot.lookup(&question.name, question.qtype) {
        Found::NotOurs if matches!(question.qtype, TYPE_AXFR | TYPE_IXFR) => return Fast::TooHard,
        Found::NotOurs => return Fast::NotOurs,
        Found::NotSynced | Found::Ours(_, Outcome::Cname(_) | Outcome::Refused) => return Fast::TooHard,
        // Perhaps the name is to be completed.
        Found::Ours(_, Outcome::NxDomain) if snapshot.config.policy.autopath.is_some() => return Fast::TooHard,
        Found::Ours(zone, outcome) => (zone, outcome),
    };
    if snapshot.stale {
        question.explain(Ede::Stale);
    }
    let question = &*question;
    let limit = question.limit(client.transport).min(out.len());
    let Some(room) = limit.checked_sub(question.opt_length()) else {
        return Fast::TooHard;
    };
    let rotation = if snapshot.config.policy.shuffle {
        client.rotation
    } else {
        0
    };
    let mut writer = Writer::new(&mut out[..limit], room);
    let mut response = Response {
        question,
        snapshot,
        zone,
        zone_at: HEADER + question.name.start(question.name.labels() - zone.labels),
        counts: [0; 3],
        truncated: false,
        rcode: 0,
    };
    if !writer.put(&[0; HEADER]) || !writer.question(question) {
        return Fast::TooHard;
    }
    match outcome {
        Outcome::Records(records) => response.positive(&mut writer, records, rotation),
        Outcome::NxDomain => response.negative(&mut writer, NXDOMAIN),
        _ => response.negative(&mut writer, 0),
    }
    Fast::Answer(Answered {
        length: response.finish(writer),
        zone: Some(zone.index),
    })
}

const fn pointer(offset: usize) -> [u8; 2] {
    // A question ends at 12 + 255 + 4 at most, well below the 14 bits that a pointer has.
    [0xc0 | (offset >> 8) as u8, offset as u8]
}

/// The response as far as it is written.
struct Response<'a> {
    question: &'a Question,
    snapshot: &'a Snapshot,
    zone: &'a ZoneApex,
    /// Where the zone's name stands in the message.
    zone_at: usize,
    /// Answers, authorities, additionals.
    counts: [u16; 3],
    truncated: bool,
    rcode: u8,
}

// === impl Response ===

impl Response<'_> {
    fn positive(&mut self, writer: &mut Writer<'_>, records: Records<'_>, rotation: u32) {
        let first = records.first(rotation);
        match records {
            Records::A(list) => self.addresses(writer, TYPE_A, list.len(), rotated(list, first).map(Ipv4Addr::octets)),
            Records::Aaaa(list) => {
                self.addresses(
                    writer,
                    TYPE_AAAA,
                    list.len(),
                    rotated(list, first).map(Ipv6Addr::octets),
                );
            }
            Records::Spelled(IpAddr::V4(ip)) => self.addresses(writer, TYPE_A, 1, [ip.octets()].into_iter()),
            Records::Spelled(IpAddr::V6(ip)) => self.addresses(writer, TYPE_AAAA, 1, [ip.octets()].into_iter()),
            Records::Srv(srv) => self.srv(writer, &srv, first),
            Records::Ptr(pointers) => self.ptr(writer, pointers),
            Records::Soa => self.counts[0] += u16::from(self.soa(writer)),
            Records::Ns(server) => self.ns(writer, &server),
            Records::Txt(text) => {
                let length = [text.len() as u8];
                let head = head(OWNER, TYPE_TXT, DNS_VERSION_TTL, text.len() + 1);
                self.counts[0] += u16::from(writer.record(&[&head, &length, text]));
            }
        }
    }

    fn addresses<const N: usize>(
        &mut self,
        writer: &mut Writer<'_>,
        type_: u16,
        count: usize,
        list: impl Iterator<Item = [u8; N]>,
    ) {
        let head = head(OWNER, type_, self.zone.ttl, N);
        // A message counts its answers in 16 bits, and 65535 octets hold fewer than 4096 of them.
        let fitting = writer.room() / (head.len() + N);
        for octets in list.take(fitting) {
            writer.put(&head);
            writer.put(&octets);
        }
        self.counts[0] = count.min(fitting) as u16;
        self.truncated = count > fitting;
    }

    fn srv(&mut self, writer: &mut Writer<'_>, srv: &Srv<'_>, first: usize) {
        let suffix = self.question.name.suffix(srv.depth);
        let weight = srv.weight.to_be_bytes();
        for record in rotated(srv.records, first) {
            let target = srv.target(record);
            let label = target.label.as_ref().map_or(&[][..], |label| label.wire());
            let head = head(OWNER, TYPE_SRV, self.zone.ttl, 6 + label.len() + suffix.len());
            let port = record.port.to_be_bytes();
            // The target of an SRV record must not be compressed (RFC 2782).
            if !writer.record(&[&head, &[0, 0], &weight, &port, label, suffix]) {
                self.truncated = true;
                break;
            }
            self.counts[0] += 1;
        }
        let owner = pointer(HEADER + self.question.name.start(srv.depth));
        let mut last = None;
        for record in rotated(srv.records, first).take(usize::from(self.counts[0])) {
            if last.replace(record.host) == Some(record.host) {
                continue;
            }
            let target = srv.target(record);
            let label = target.label.as_ref().map_or(&[][..], |label| label.wire());
            if !self.glue(writer, label, owner, target.v4, target.v6) {
                return;
            }
        }
    }

    /// Addresses of a target, in the additional section. Says whether all found room.
    fn glue(
        &mut self,
        writer: &mut Writer<'_>,
        label: &[u8],
        owner: [u8; 2],
        v4: &[Ipv4Addr],
        v6: &[Ipv6Addr],
    ) -> bool {
        let ttl = self.zone.ttl;
        for ip in v4 {
            if !writer.record(&[label, &head(owner, TYPE_A, ttl, 4), &ip.octets()]) {
                return false;
            }
            self.counts[2] += 1;
        }
        for ip in v6 {
            if !writer.record(&[label, &head(owner, TYPE_AAAA, ttl, 16), &ip.octets()]) {
                return false;
            }
            self.counts[2] += 1;
        }
        true
    }

    fn ptr(&mut self, writer: &mut Writer<'_>, pointers: Pointers<'_>) {
        let zone = &*self.snapshot.config.primary;
        for pointer in pointers.iter() {
            let label = &pointer.label;
            let label = label.as_ref().map_or(&[][..], |label| label.wire());
            let size = label.len() + pointer.service.len() + 4 + zone.len();
            let head = head(OWNER, TYPE_PTR, self.zone.ttl, size);
            if !writer.record(&[&head, label, pointer.service, b"\x03svc", zone]) {
                self.truncated = true;
                return;
            }
            self.counts[0] += 1;
        }
    }

    fn ns(&mut self, writer: &mut Writer<'_>, server: &NameServer<'_>) {
        let zone = &*self.snapshot.config.primary;
        let labels: [&[u8]; 2] = if server.labels.is_empty() {
            [b"\x02ns", b"\x03dns"]
        } else {
            [server.labels, b"\x03svc"]
        };
        let size = labels[0].len() + labels[1].len() + zone.len();
        let head = head(OWNER, TYPE_NS, self.zone.ttl, size);
        let target = pointer(writer.length + head.len());
        if !writer.record(&[&head, labels[0], labels[1], zone]) {
            return;
        }
        self.counts[0] += 1;
        self.glue(writer, &[], target, server.v4, server.v6);
    }

    /// The SOA record of the question's zone. Says whether it found room.
    fn soa(&self, writer: &mut Writer<'_>) -> bool {
        let zone = pointer(self.zone_at);
        let names: &[u8] = match self.zone.kind {
            ZoneKind::Cluster | ZoneKind::ClusterSet => &zone,
            // A server and a mailbox below in-addr.arpa would be nobody's.
            ZoneKind::Reverse => &self.snapshot.config.primary,
        };
        let (server, mailbox) = (b"\x02ns\x03dns", b"\x0ahostmaster");
        let size = server.len() + mailbox.len() + 2 * names.len() + 20;
        let head = head(zone, TYPE_SOA, self.zone.negative_ttl, size);
        let mut numbers = [0; 20];
        let [refresh, retry, expire] = SOA_TIMERS;
        let values = [self.snapshot.serial, refresh, retry, expire, self.zone.negative_ttl];
        for (to, value) in numbers.chunks_exact_mut(4).zip(values) {
            to.copy_from_slice(&value.to_be_bytes());
        }
        writer.record(&[&head, server, names, mailbox, names, &numbers])
    }

    fn negative(&mut self, writer: &mut Writer<'_>, rcode: u8) {
        self.rcode = rcode;
        self.counts[1] += u16::from(self.soa(writer));
    }

    fn finish(self, mut writer: Writer<'_>) -> usize {
        let mut counts = self.counts;
        if let Some(edns) = &self.question.edns {
            let length = edns.opt_length();
            edns.write_opt(self.question.max_udp, writer.rest(length));
            writer.length += length;
            counts[2] += 1;
        }
        let flags = 0x84 | u8::from(self.truncated) << 1 | u8::from(self.question.recursion_desired);
        let more = 0x80 | u8::from(self.question.checking_disabled) << 4 | self.rcode;
        let [id_high, id_low] = self.question.id.to_be_bytes();
        let [a, b, c] = counts.map(u16::to_be_bytes);
        let header = [id_high, id_low, flags, more, 0, 1, a[0], a[1], b[0], b[1], c[0], c[1]];
        writer.buffer[..HEADER].copy_from_slice(&header);
        writer.length
    }
}

/// The fixed part of a record whose owner is a pointer.
fn head(owner: [u8; 2], type_: u16, ttl: u32, length: usize) -> [u8; 12] {
    let [t0, t1] = type_.to_be_bytes();
    let [c0, c1] = CLASS_IN.to_be_bytes();
    let [s0, s1, s2, s3] = ttl.to_be_bytes();
    // Record data is a name or an address here: below 600 octets.
    let [l0, l1] = (length as u16).to_be_bytes();
    [owner[0], owner[1], t0, t1, c0, c1, s0, s1, s2, s3, l0, l1]
}

/// A buffer that is never overrun.
struct Writer<'a> {
    buffer: &'a mut [u8],
    length: usize,
    /// Where records must end. Behind it there is room for the OPT record.
    end: usize,
}

// === impl Writer ===

impl<'a> Writer<'a> {
    fn new(buffer: &'a mut [u8], end: usize) -> Self {
        Self { buffer, length: 0, end }
    }

    fn room(&self) -> usize {
        self.end - self.length
    }

    /// Writes all of it or nothing.
    fn put(&mut self, bytes: &[u8]) -> bool {
        self.record(&[bytes])
    }

    /// Writes all parts or nothing.
    fn record(&mut self, parts: &[&[u8]]) -> bool {
        if parts.iter().map(|part| part.len()).sum::<usize>() > self.room() {
            return false;
        }
        for part in parts {
            self.append(part);
        }
        true
    }

    /// Writes without looking at the room; the caller has.
    fn append(&mut self, bytes: &[u8]) {
        self.buffer[self.length..self.length + bytes.len()].copy_from_slice(bytes);
        self.length += bytes.len();
    }

    /// The next octets, of which the caller has seen to it that they are there.
    fn rest(&mut self, length: usize) -> &mut [u8] {
        &mut self.buffer[self.length..self.length + length]
    }

    fn question(&mut self, question: &Question) -> bool {
        let [t0, t1] = question.qtype.to_be_bytes();
        let [c0, c1] = CLASS_IN.to_be_bytes();
        self.record(&[question.name.sent(), &[t0, t1, c0, c1]])
    }
}
