//! Fits responses into what the client takes. TC is set only when an answer is cut, never for additional records.

use hickory_proto::op::Message;
use hickory_proto::rr::Record;

use super::parse::HEADER;
use super::walk::{Section, records};

/// Encodes a message in at most `limit` octets: additional records go first, then answers from the end.
pub fn encode(mut message: Message, limit: usize) -> Vec<u8> {
    let additionals = std::mem::take(&mut message.additionals);
    let answers = std::mem::take(&mut message.answers);
    let authorities = std::mem::take(&mut message.authorities);
    message.answers.clone_from(&answers);
    message.authorities.clone_from(&authorities);
    if let Some(bytes) = fill(&mut message, limit, &additionals, |message| &mut message.additionals) {
        return bytes;
    }
    message.additionals.clear();
    message.authorities.clear();
    message.answers.clear();
    message.metadata.truncation = !answers.is_empty();
    fill(&mut message, limit, &answers, |message| &mut message.answers).unwrap_or_else(|| {
        message.answers.clear();
        message.to_vec().unwrap_or_default()
    })
}

/// Encodes as many of `records` as fit, in order. `None` when not even the rest of the message fits.
fn fill(
    message: &mut Message,
    limit: usize,
    records: &[Record],
    place: impl Fn(&mut Message) -> &mut Vec<Record>,
) -> Option<Vec<u8>> {
    let mut encode = |count: usize| {
        *place(message) = records[..count].to_vec();
        message.to_vec().ok().filter(|bytes| bytes.len() <= limit)
    };
    if let Some(bytes) = encode(records.len()) {
        return Some(bytes);
    }
    let mut best = encode(0)?;
    let (mut fits, mut fails) = (0, records.len());
    while fails - fits > 1 {
        let middle = usize::midpoint(fits, fails);
        match encode(middle) {
            Some(bytes) => (best, fits) = (bytes, middle),
            None => fails = middle,
        }
    }
    Some(best)
}

/// Cuts an encoded response that holds no OPT record to `limit` octets: authority and additional records go, then
/// answers from the end. Names point backwards only, so what is left stays readable.
pub fn cut(response: &mut Vec<u8>, limit: usize) {
    if response.len() <= limit {
        return;
    }
    let Some(walk) = records(response) else {
        return;
    };
    let mut end = walk.start();
    let (mut kept, mut all) = (0u16, 0u16);
    for record in walk.filter(|record| record.section == Section::Answer) {
        all += 1;
        if record.end <= limit {
            (end, kept) = (record.end, all);
        }
    }
    response.truncate(end);
    if response.len() >= HEADER {
        response[2] |= if kept < all { 2 } else { 0 };
        response[6..8].copy_from_slice(&kept.to_be_bytes());
        response[8..12].fill(0);
    }
}
