//! Walks over the records of an encoded message without decoding them. Never trusts the message.

use super::parse::{HEADER, u16_at};

/// The section that a record stands in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Section {
    /// Records that answer the question.
    Answer,
    /// Records that point to an authority, and the SOA of negative answers.
    Authority,
    /// Records that may help.
    Additional,
}

/// One record of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RawRecord {
    /// Where it stands.
    pub section: Section,
    /// Offset of its owner name.
    pub start: usize,
    /// Its type.
    pub type_: u16,
    /// Offset of its TTL.
    pub ttl_at: usize,
    /// Its TTL.
    pub ttl: u32,
    /// Offset of its data.
    pub data: usize,
    /// Offset behind it.
    pub end: usize,
}

/// The records of a message with one question.
#[derive(Clone, Debug)]
pub struct Walk<'a> {
    message: &'a [u8],
    at: usize,
    left: [u16; 3],
}

/// Begins at the first record. `None` when the message has not exactly one question, or is cut inside it.
pub fn records(message: &[u8]) -> Option<Walk<'_>> {
    if u16_at(message, 4)? != 1 {
        return None;
    }
    let at = skip_name(message, HEADER)? + 4;
    let left = [u16_at(message, 6)?, u16_at(message, 8)?, u16_at(message, 10)?];
    (at <= message.len()).then_some(Walk { message, at, left })
}

// === impl Walk ===

impl Walk<'_> {
    /// Where the next record begins.
    pub fn start(&self) -> usize {
        self.at
    }

    /// Whether every record that the header counts has been seen.
    pub fn is_complete(&self) -> bool {
        self.left == [0; 3]
    }
}

impl Iterator for Walk<'_> {
    type Item = RawRecord;

    fn next(&mut self) -> Option<RawRecord> {
        let section = self.left.iter().position(|left| *left > 0)?;
        let fixed = skip_name(self.message, self.at)?;
        let data = fixed + 10;
        let end = data + usize::from(u16_at(self.message, fixed + 8)?);
        if end > self.message.len() {
            return None;
        }
        let ttl = u32::from(u16_at(self.message, fixed + 4)?) << 16 | u32::from(u16_at(self.message, fixed + 6)?);
        let record = RawRecord {
            section: [Section::Answer, Section::Authority, Section::Additional][section],
            start: self.at,
            type_: u16_at(self.message, fixed)?,
            ttl_at: fixed + 4,
            ttl,
            data,
            end,
        };
        self.left[section] -= 1;
        self.at = end;
        Some(record)
    }
}

/// The offset behind a name, which may end in a pointer.
pub fn skip_name(message: &[u8], mut at: usize) -> Option<usize> {
    loop {
        let length = usize::from(*message.get(at)?);
        match length {
            0 => return Some(at + 1),
            1..=63 => at += 1 + length,
            192.. => return Some(at + 2).filter(|end| *end <= message.len()),
            _ => return None,
        }
    }
}
