//! Reads plain queries without allocating. Strict: whatever is unusual is left to the slow path.

use super::edns::{OPT_LENGTH, OPTION_COOKIE, OPTION_NSID, OPTION_SUBNET};
use super::{ClientEdns, Question};
use crate::zone::TYPE_OPT;

/// The length of a message's header.
pub const HEADER: usize = 12;
/// Class IN.
pub const CLASS_IN: u16 = 1;

/// What the bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parsed {
    /// A query with one question of class IN, and no records but at most one OPT of version 0.
    Plain,
    /// Some other query, perhaps a broken one.
    Other,
    /// Too short for a header, or a response: never answered, lest two servers talk forever.
    Ignore,
}

/// Reads a message into `question`, which holds nothing of use unless the message is plain.
pub fn parse(packet: &[u8], question: &mut Question) -> Parsed {
    let Some(header) = packet.first_chunk::<HEADER>() else {
        return Parsed::Ignore;
    };
    if header[2] & 0x80 != 0 {
        return Parsed::Ignore;
    }
    match plain(packet, header, question) {
        Some(()) => Parsed::Plain,
        None => Parsed::Other,
    }
}

fn plain(packet: &[u8], header: &[u8; HEADER], question: &mut Question) -> Option<()> {
    let opcode = header[2] & 0x78;
    let counts = &header[4..];
    if opcode != 0 || counts[..6] != [0, 1, 0, 0, 0, 0] || counts[6] != 0 {
        return None;
    }
    let end = question.name.read_into(packet, HEADER).ok()?;
    let fixed = packet.get(end..end + 4)?;
    if u16_at(fixed, 2)? != CLASS_IN {
        return None;
    }
    let rest = packet.get(end + 4..)?;
    match (counts[7], rest) {
        (0, []) => question.edns = None,
        (1, opt) => client_edns(opt, question.edns.get_or_insert_default())?,
        _ => return None,
    }
    question.id = u16_at(header, 0)?;
    question.recursion_desired = header[2] & 1 != 0;
    question.checking_disabled = header[3] & 0x10 != 0;
    question.qtype = u16_at(fixed, 0)?;
    Some(())
}

/// An OPT record of version 0 that ends where the packet ends.
fn client_edns(record: &[u8], edns: &mut ClientEdns) -> Option<()> {
    let (fixed, mut options) = record.split_first_chunk::<OPT_LENGTH>()?;
    if fixed[0] != 0 || u16_at(fixed, 1)? != TYPE_OPT || fixed[6] != 0 {
        return None;
    }
    if options.len() != usize::from(u16_at(fixed, 9)?) {
        return None;
    }
    (edns.wants_nsid, edns.cookie) = (false, None);
    while !options.is_empty() {
        let (head, tail) = options.split_first_chunk::<4>()?;
        let (data, rest) = tail.split_at_checked(usize::from(u16_at(head, 2)?))?;
        match u16_at(head, 0)? {
            // Their content has rules, which the slow path checks.
            OPTION_SUBNET => return None,
            OPTION_COOKIE if !is_cookie(data) || edns.cookie.is_some() => return None,
            OPTION_COOKIE => edns.cookie = data.first_chunk().copied(),
            OPTION_NSID => edns.wants_nsid = true,
            _ => {}
        }
        options = rest;
    }
    edns.payload = u16_at(fixed, 3)?;
    edns.dnssec_ok = fixed[7] & 0x80 != 0;
    edns.reply.clear();
    Some(())
}

/// Whether an option's content is a client's cookie, alone or before a server's (RFC 7873 section 4).
pub fn is_cookie(data: &[u8]) -> bool {
    matches!(data.len(), 8 | 16..=40)
}

/// The 16 bits at an offset.
pub fn u16_at(bytes: &[u8], offset: usize) -> Option<u16> {
    let pair = bytes.get(offset..)?.first_chunk::<2>()?;
    Some(u16::from_be_bytes(*pair))
}
