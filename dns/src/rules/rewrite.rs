//! Asks for names under other names, and puts the first ones back into the answer (plugin `rewrite`).

use hickory_proto::op::Message;
use hickory_proto::rr::{Name as ProtoName, RData};
use hickory_proto::serialize::binary::BinDecodable;
use regex::Regex;

use crate::answer::truncate;
use crate::corefile::plugins::rewrite::{Match, Rewrite};
use crate::zone::names::{Name, text, wire_from_text};

/// What puts the first names back.
#[derive(Clone, Debug)]
pub struct Undo {
    /// The question's name as the client sent it.
    sent: Box<[u8]>,
    /// The name that was asked for, in text and lower case.
    asked: String,
    /// Rewrites of other names in the answer.
    names: Vec<(Regex, String)>,
    /// An end of names that is put back: as it is, and as it was.
    suffixes: Vec<(String, String)>,
}

/// What a name becomes, if it becomes anything else.
pub fn apply(rules: &[Rewrite], name: &Name) -> Option<(Name, Undo)> {
    let mut now = text(name.lower());
    let mut undo = Undo {
        sent: name.sent().into(),
        asked: String::new(),
        names: Vec::new(),
        suffixes: Vec::new(),
    };
    let mut changed = false;
    for rule in rules {
        let Some(next) = rule.next(&now) else { continue };
        undo.names.extend(rule.answers.iter().cloned());
        if let (true, Match::Suffix(from)) = (rule.auto, &rule.from) {
            undo.suffixes.push((rule.to.clone(), from.clone()));
        }
        now = next;
        changed = true;
        if !rule.go_on {
            break;
        }
    }
    if !changed {
        return None;
    }
    // What would be no name is left alone.
    let name = Name::from_wire(&wire_from_text(&now).ok()?).ok()?;
    undo.asked = now;
    Some((name, undo))
}

// === impl Rewrite ===

impl Rewrite {
    fn next(&self, name: &str) -> Option<String> {
        match &self.from {
            Match::Exact(from) => (name == from).then(|| self.to.clone()),
            Match::Prefix(from) => name
                .strip_prefix(from.as_str())
                .map(|rest| format!("{}{rest}", self.to)),
            Match::Suffix(from) => name
                .strip_suffix(from.as_str())
                .map(|rest| format!("{rest}{}", self.to)),
            Match::Substring(from) => name
                .contains(from.as_str())
                .then(|| name.replace(from.as_str(), &self.to)),
            Match::Regex(regex) => replaced(regex, name, &self.to),
        }
    }
}

/// The replacement with `{1}` and the like filled in, when the expression takes the name.
fn replaced(regex: &Regex, name: &str, to: &str) -> Option<String> {
    let found = regex.captures(name)?;
    let mut done = to.to_owned();
    for (index, group) in found.iter().enumerate() {
        done = done.replace(&format!("{{{index}}}"), group.map_or("", |group| group.as_str()));
    }
    Some(done)
}

// === impl Undo ===

impl Undo {
    /// Puts the first names back into a response, in at most `limit` octets. `None` when it cannot be read.
    pub fn bytes(&self, response: &[u8], limit: usize) -> Option<Vec<u8>> {
        let mut message = Message::from_vec(response).ok()?;
        self.message(&mut message);
        Some(truncate::encode(message, limit))
    }

    /// Puts the first names back into a message.
    pub fn message(&self, message: &mut Message) {
        let Ok(sent) = ProtoName::from_bytes(&self.sent) else {
            return;
        };
        if let Some(query) = message.queries.first_mut() {
            query.set_name(sent.clone());
        }
        let sections = [&mut message.answers, &mut message.authorities, &mut message.additionals];
        for record in sections.into_iter().flatten() {
            if let Some(name) = self.back(&record.name, &sent) {
                record.name = name;
            }
            match &mut record.data {
                RData::CNAME(name) => self.put_back(&mut name.0, &sent),
                RData::PTR(name) => self.put_back(&mut name.0, &sent),
                RData::NS(name) => self.put_back(&mut name.0, &sent),
                RData::MX(data) => self.put_back(&mut data.exchange, &sent),
                RData::SRV(data) => self.put_back(&mut data.target, &sent),
                _ => {}
            }
        }
    }

    fn put_back(&self, name: &mut ProtoName, sent: &ProtoName) {
        if let Some(back) = self.back(name, sent) {
            *name = back;
        }
    }

    fn back(&self, name: &ProtoName, sent: &ProtoName) -> Option<ProtoName> {
        let now = name.to_ascii().to_ascii_lowercase();
        if now == self.asked {
            return Some(sent.clone());
        }
        let regex = self.names.iter().find_map(|(regex, to)| replaced(regex, &now, to));
        let suffix = || {
            let mut suffixes = self.suffixes.iter().rev();
            suffixes.find_map(|(is, was)| now.strip_suffix(is.as_str()).map(|rest| format!("{rest}{was}")))
        };
        let wire = wire_from_text(&regex.or_else(suffix)?).ok()?;
        ProtoName::from_bytes(&wire).ok()
    }
}
