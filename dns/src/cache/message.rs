//! A message of an upstream: checked, made fit to be kept and to be given to whoever asks.

use std::sync::Arc;

use super::echo::{Echo, echoes, rewrite};
use super::policy::{Kind, Policy};
use crate::answer::parse::HEADER;
use crate::answer::walk::{Section, records};
use crate::answer::{Ede, Question, Transport, truncate};
use crate::zone::{TYPE_OPT, TYPE_SOA};

/// A message of an upstream that may be given to clients and kept.
#[derive(Clone, Debug)]
pub struct Prepared {
    /// Without an OPT record; AA clear, RA set.
    pub message: Arc<[u8]>,
    /// Offsets of every TTL.
    pub(super) ttls: Arc<[u16]>,
    /// Where the letters of the question's name stand again.
    echoes: Arc<[Echo]>,
    /// Seconds that it says it may be kept; `None` when it does not say.
    pub(super) seconds: Option<u32>,
    /// What it is to the cache; `None` when it is not for keeping.
    pub(super) kind: Option<Kind>,
}

/// Checks a message of an upstream and makes it fit to be given to clients. `None` when it cannot be read.
pub fn prepare(mut message: Vec<u8>) -> Option<Prepared> {
    let mut walk = records(&message)?;
    let start = walk.start();
    let all: Vec<_> = walk.by_ref().collect();
    if !walk.is_complete() {
        return None;
    }
    let mut end = start;
    let mut additionals = 0u16;
    let (mut ttls, mut lowest, mut negative_ttl) = (Vec::new(), None::<u32>, None);
    let answers = all.iter().filter(|record| record.section == Section::Answer).count();
    for record in &all {
        if record.type_ == TYPE_OPT {
            if record.section != Section::Additional {
                return None;
            }
            // Whatever follows goes as well: names behind it may not be moved.
            break;
        }
        end = record.end;
        additionals += u16::from(record.section == Section::Additional);
        ttls.push(u16::try_from(record.ttl_at).ok()?);
        lowest = Some(lowest.unwrap_or(u32::MAX).min(record.ttl));
        if record.type_ == TYPE_SOA && record.section == Section::Authority {
            let minimum = message.get(record.end.checked_sub(4)?..record.end)?;
            let minimum = u32::from_be_bytes(minimum.try_into().ok()?);
            negative_ttl = Some(record.ttl.min(minimum));
        }
    }
    message.truncate(end);
    message[2] &= !0x06;
    message[3] |= 0x80;
    message[10..12].copy_from_slice(&additionals.to_be_bytes());
    let kind = crate::forward::kind_of(message[3] & 15, answers);
    let seconds = match kind {
        Some(Kind::Success) => lowest,
        // Without an SOA nobody said for how long (RFC 2308 section 5).
        Some(Kind::Denial) => negative_ttl.map(|ttl| ttl.min(lowest.unwrap_or(0))),
        Some(Kind::Failure) | None => None,
    };
    if let (Some(Kind::Denial), Some(ttl)) = (kind, negative_ttl) {
        for at in &ttls {
            cap_ttl(&mut message, *at, ttl);
        }
    }
    let name = message.get(HEADER..start.checked_sub(4)?)?;
    let echoes = echoes(&message, name).into();
    Some(Prepared {
        message: message.into(),
        ttls: ttls.into(),
        echoes,
        seconds,
        kind,
    })
}

// === impl Prepared ===

impl Prepared {
    /// The response code, without the bits that an OPT record would add.
    pub fn rcode(&self) -> u8 {
        self.message.get(3).map_or(0, |flags| flags & 15)
    }

    /// Whether the name exists and holds nothing of the type.
    pub fn is_empty(&self) -> bool {
        self.rcode() == 0 && self.message.get(6..8) == Some(&[0, 0])
    }

    /// The response to a question, with a word on it for clients that use EDNS.
    pub fn answer(&self, question: &Question, transport: Transport, ede: Option<Ede>, out: &mut [u8]) -> Option<usize> {
        fit(self, 0, ede, question, transport, out)
    }

    /// The same with TTLs within the bounds of a policy.
    pub fn within(&self, policy: &Policy) -> Self {
        let Some(kind) = self.kind else { return self.clone() };
        let most = policy.most(kind);
        let mut message = self.message.to_vec();
        for at in &*self.ttls {
            cap_ttl(&mut message, *at, most);
        }
        Self {
            message: message.into(),
            ..self.clone()
        }
    }

    /// The same after so many seconds, with TTLs of at least `least`.
    pub(super) fn aged(&self, age: u32, least: u32) -> Self {
        let mut message = self.message.to_vec();
        age_ttls(&mut message, &self.ttls, age);
        for at in &*self.ttls {
            if let Some(ttl) = ttl_at(&mut message, *at) {
                *ttl = u32::from_be_bytes(*ttl).max(least).to_be_bytes();
            }
        }
        Self {
            message: message.into(),
            ..self.clone()
        }
    }
}

fn ttl_at(message: &mut [u8], at: u16) -> Option<&mut [u8; 4]> {
    message.get_mut(usize::from(at)..)?.first_chunk_mut()
}

fn cap_ttl(message: &mut [u8], at: u16, most: u32) {
    if let Some(ttl) = ttl_at(message, at) {
        *ttl = u32::from_be_bytes(*ttl).min(most).to_be_bytes();
    }
}

fn age_ttls(message: &mut [u8], ttls: &[u16], age: u32) {
    for at in ttls {
        if let Some(ttl) = ttl_at(message, *at) {
            *ttl = u32::from_be_bytes(*ttl).saturating_sub(age).to_be_bytes();
        }
    }
}

/// Turns a kept message into the response to a question.
pub(super) fn fit(
    prepared: &Prepared,
    age: u32,
    ede: Option<Ede>,
    question: &Question,
    transport: Transport,
    out: &mut [u8],
) -> Option<usize> {
    let (message, ttls) = (&*prepared.message, &*prepared.ttls);
    let mut explained = None;
    let question = match ede {
        Some(ede) => {
            let explained = explained.insert(question.clone());
            explained.explain(ede);
            &*explained
        }
        None => question,
    };
    let reserve = question.opt_length();
    let room = question.limit(transport).min(out.len()).checked_sub(reserve)?;
    let mut length = message.len();
    if length > room {
        let mut aged = message.to_vec();
        age_ttls(&mut aged, ttls, age);
        truncate::cut(&mut aged, room);
        length = aged.len();
        out.get_mut(..length)?.copy_from_slice(&aged);
    } else {
        out.get_mut(..length)?.copy_from_slice(message);
        age_ttls(out.get_mut(..length)?, ttls, age);
    }
    let header = out.first_chunk_mut::<12>()?;
    header[..2].copy_from_slice(&question.id.to_be_bytes());
    header[2] = header[2] & !1 | u8::from(question.recursion_desired);
    header[3] = header[3] & !0x10 | u8::from(question.checking_disabled) << 4;
    if let Some(client) = &question.edns {
        let count = u16::from_be_bytes([header[10], header[11]]) + 1;
        header[10..].copy_from_slice(&count.to_be_bytes());
        client.write_opt(question.max_udp, out.get_mut(length..length + reserve)?);
    }
    // The question in the letter case of this client, and whatever repeats it.
    let name = question.name.sent();
    out.get_mut(HEADER..HEADER + name.len())?.copy_from_slice(name);
    rewrite(out.get_mut(..length)?, &prepared.echoes, name);
    Some(length + reserve)
}
