//! Reads plain queries without allocating. Strict: whatever is unusual is left to the slow path.

use super::{ClientEdns, Question};
use crate::zone::TYPE_OPT;
use crate::zone::names::Name;

/// The length of a message's header.
pub const HEADER: usize = 12;
/// Class IN.
pub const CLASS_IN: u16 = 1;
/// EDNS option client subnet, whose content the slow path checks.
const OPTION_SUBNET: u16 = 8;

/// What the bytes are.
#[derive(Debug)]
#[allow(
    clippy::large_enum_variant,
    reason = "the large variant is the usual one, and a box would be an allocation a query"
)]
pub enum Parsed {
    /// A query with one question of class IN, and no records but at most one OPT of version 0.
    Plain(Question),
    /// Some other query, perhaps a broken one.
    Other,
    /// Too short for a header, or a response: never answered, lest two servers talk forever.
    Ignore,
}

/// Reads a message.
pub fn parse(packet: &[u8]) -> Parsed {
    let Some(header) = packet.first_chunk::<HEADER>() else {
        return Parsed::Ignore;
    };
    if header[2] & 0x80 != 0 {
        return Parsed::Ignore;
    }
    plain(packet, header).map_or(Parsed::Other, Parsed::Plain)
}

fn plain(packet: &[u8], header: &[u8; HEADER]) -> Option<Question> {
    let opcode = header[2] & 0x78;
    let counts = &header[4..];
    if opcode != 0 || counts[..6] != [0, 1, 0, 0, 0, 0] || counts[6] != 0 {
        return None;
    }
    let (name, end) = Name::read(packet, HEADER).ok()?;
    let question = packet.get(end..end + 4)?;
    if u16_at(question, 2)? != CLASS_IN {
        return None;
    }
    let rest = packet.get(end + 4..)?;
    let edns = match (counts[7], rest) {
        (0, []) => None,
        (1, opt) => Some(client_edns(opt)?),
        _ => return None,
    };
    Some(Question {
        id: u16_at(header, 0)?,
        recursion_desired: header[2] & 1 != 0,
        checking_disabled: header[3] & 0x10 != 0,
        name,
        qtype: u16_at(question, 0)?,
        edns,
    })
}

/// An OPT record of version 0 that ends where the packet ends.
fn client_edns(record: &[u8]) -> Option<ClientEdns> {
    let fixed = record.first_chunk::<{ super::edns::OPT_LENGTH }>()?;
    if fixed[0] != 0 || u16_at(fixed, 1)? != TYPE_OPT || fixed[6] != 0 {
        return None;
    }
    let mut options = record.get(super::edns::OPT_LENGTH..)?;
    if options.len() != usize::from(u16_at(fixed, 9)?) {
        return None;
    }
    while !options.is_empty() {
        if u16_at(options, 0)? == OPTION_SUBNET {
            return None;
        }
        options = options.get(4 + usize::from(u16_at(options, 2)?)..)?;
    }
    Some(ClientEdns {
        payload: u16_at(fixed, 3)?,
        dnssec_ok: fixed[7] & 0x80 != 0,
    })
}

/// The 16 bits at an offset.
pub fn u16_at(bytes: &[u8], offset: usize) -> Option<u16> {
    let pair = bytes.get(offset..)?.first_chunk::<2>()?;
    Some(u16::from_be_bytes(*pair))
}
