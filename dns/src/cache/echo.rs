//! Where an answer repeats the letters of the question's name.
//!
//! Queries go upstream in random letter case, and servers repeat it in names that they did not compress. Clients must see
//! their own letters, also those that are answered from the cache. Never trusts the message.

use crate::answer::parse::{HEADER, u16_at};
use crate::answer::walk::{RawRecord, records};
use crate::zone::{TYPE_CNAME, TYPE_NS, TYPE_PTR, TYPE_SOA, TYPE_SRV};

const TYPE_MX: u16 = 15;
const TYPE_DNAME: u16 = 39;
/// More labels than a name has, so that pointers that go in a circle end.
const MOST: usize = 128;

/// A place where labels of the question's name stand again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Echo {
    /// Offset in the message.
    at: u16,
    /// Offset in the question's name, in wire form.
    from: u8,
    length: u8,
}

/// Places behind the question where names end as `name` does, in the same letters.
pub fn echoes(message: &[u8], name: &[u8]) -> Vec<Echo> {
    let Some(walk) = records(message) else {
        return Vec::new();
    };
    let starts = starts(name);
    let mut found = Vec::new();
    for record in walk {
        for at in names_of(&record, message) {
            note(message, at, name, &starts, &mut found);
        }
    }
    found
}

/// Writes the letters of another name, equal to the first but for letter case, where the first one's stand.
pub fn rewrite(message: &mut [u8], echoes: &[Echo], name: &[u8]) {
    for echo in echoes {
        let (at, from, length) = (usize::from(echo.at), usize::from(echo.from), usize::from(echo.length));
        let place = message.get_mut(at..at + length);
        if let (Some(place), Some(letters)) = (place, name.get(from..from + length))
            && place.eq_ignore_ascii_case(letters)
        {
            place.copy_from_slice(letters);
        }
    }
}

/// Replaces the question's name, equal but for letter case, wherever a message has it.
pub fn rename(message: &mut [u8], old: &[u8], new: &[u8]) {
    let echoes = echoes(message, old);
    rewrite(message, &echoes, new);
    if let Some(question) = message.get_mut(HEADER..HEADER + new.len())
        && question.eq_ignore_ascii_case(new)
    {
        question.copy_from_slice(new);
    }
}

/// Where the labels of a name in wire form begin.
fn starts(name: &[u8]) -> Vec<usize> {
    let mut starts = Vec::new();
    let mut at = 0;
    while let Some(length) = name.get(at).filter(|length| **length > 0) {
        starts.push(at);
        at += 1 + usize::from(*length);
    }
    starts
}

/// Offsets of the names in a record: its owner, and those in its data that servers may compress.
fn names_of(record: &RawRecord, message: &[u8]) -> Vec<usize> {
    let data = record.data;
    let mut names = vec![record.start];
    match record.type_ {
        TYPE_CNAME | TYPE_NS | TYPE_PTR | TYPE_DNAME => names.push(data),
        TYPE_MX => names.push(data + 2),
        TYPE_SRV => names.push(data + 6),
        TYPE_SOA => {
            names.push(data);
            names.extend(crate::answer::walk::skip_name(message, data));
        }
        _ => {}
    }
    names.retain(|at| *at < record.end);
    names
}

fn note(message: &[u8], start: usize, name: &[u8], starts: &[usize], found: &mut Vec<Echo>) {
    let mut labels: Vec<(usize, usize)> = Vec::new();
    // How many stand here and not where a pointer leads.
    let mut own = None;
    let mut at = start;
    loop {
        match message.get(at).map(|length| usize::from(*length)) {
            Some(0) => break,
            Some(length @ 1..=63) if labels.len() < MOST => {
                labels.push((at, 1 + length));
                at += 1 + length;
            }
            Some(192..) => {
                let Some(to) = u16_at(message, at).map(|pointer| usize::from(pointer & 0x3fff)) else {
                    return;
                };
                // A pointer leads back (RFC 1035 section 4.1.4), so this ends.
                if to >= at {
                    return;
                }
                own.get_or_insert(labels.len());
                at = to;
            }
            _ => return,
        }
    }
    let own = own.unwrap_or(labels.len());
    let pairs = labels.iter().enumerate().rev().zip(starts.iter().rev());
    for ((index, (at, length)), from) in pairs {
        let letters = name.get(*from..*from + *length);
        if letters.is_none() || message.get(*at..*at + *length) != letters {
            return;
        }
        // Offsets in a message are below 65536, and in a name below 256.
        if index < own {
            found.push(Echo {
                at: *at as u16,
                from: *from as u8,
                length: *length as u8,
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::zone::names::wire_from_text;

    /// A message with one question and records of type CNAME, owner and target as they stand.
    fn message(question: &str, records: &[(&[u8], &[u8])]) -> Vec<u8> {
        let mut bytes = vec![0, 1, 0x81, 0x80, 0, 1, 0, records.len() as u8, 0, 0, 0, 0];
        bytes.extend_from_slice(&wire_from_text(question).unwrap());
        bytes.extend([0, 1, 0, 1]);
        for (owner, target) in records {
            bytes.extend_from_slice(owner);
            bytes.extend([0, 5, 0, 1, 0, 0, 0, 60, 0, target.len() as u8]);
            bytes.extend_from_slice(target);
        }
        bytes
    }

    #[test]
    fn letters_of_the_question_are_replaced_and_no_others() {
        let wire = |text: &str| wire_from_text(text).unwrap().into_vec();
        let check = |sent: &str, asked: &str, before: &[(&[u8], &[u8])], after: &[(&[u8], &[u8])]| {
            let mut bytes = message(sent, before);
            rename(&mut bytes, &wire(sent), &wire(asked));
            assert_eq!(bytes, message(asked, after), "{sent} -> {asked}");
        };
        let pointer: &[u8] = &[0xc0, 12];
        // A server that compresses nothing.
        check(
            "wWw.eXample.Com",
            "www.example.com",
            &[(&wire("wWw.eXample.Com"), &wire("web.eXample.Com"))],
            &[(&wire("www.example.com"), &wire("web.example.com"))],
        );
        // The target's letters are the server's own as far as they differ: then nothing of it is the question's.
        check(
            "wWw.eXample.Com",
            "www.example.com",
            &[(pointer, &wire("WEB.EXAMPLE.Com"))],
            &[(pointer, &wire("WEB.EXAMPLE.com"))],
        );
        check(
            "a.B",
            "A.b",
            &[(pointer, &wire("a.B.c")), (pointer, &wire("a.b"))],
            &[(pointer, &wire("a.B.c")), (pointer, &wire("a.b"))],
        );
        // A label before a pointer that leads into the question.
        check(
            "wWw.eX",
            "www.ex",
            &[(b"\x03wWw\xc0\x10", pointer)],
            &[(b"\x03www\xc0\x10", pointer)],
        );
        check(
            "wWw.eX",
            "www.ex",
            &[(b"\x03www\xc0\x10", pointer)],
            &[(b"\x03www\xc0\x10", pointer)],
        );
    }

    proptest! {
        #[test]
        fn no_message_makes_it_panic(
            bytes in proptest::collection::vec(any::<u8>(), 0..120),
            owners in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..12), 0..4),
        ) {
            let name = wire_from_text("a.bb.c").unwrap();
            let mut noise = bytes.clone();
            rename(&mut noise, &name, &name);
            prop_assert_eq!(&noise, &bytes);
            let records: Vec<(&[u8], &[u8])> = owners.iter().map(|owner| (&owner[..], &bytes[..bytes.len().min(20)])).collect();
            let mut built = message("a.BB.c", &records);
            rename(&mut built, b"\x01a\x02BB\x01c\x00", &name);
        }
    }
}
