//! Names from /etc/hosts-like files and from lines of the Corefile (plugin `hosts`).

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use arc_swap::ArcSwap;
use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, PTR};
use hickory_proto::rr::{RData, Record};

use crate::answer::{Question, slow};
use crate::corefile::plugins::hosts as spec;
use crate::forward::route::inside;
use crate::zone::names::{Name, Reverse, parse_reverse, wire_from_text};
use crate::zone::{TYPE_A, TYPE_AAAA, TYPE_PTR};

/// What one `hosts` knows.
#[derive(Debug)]
pub struct Hosts {
    spec: spec::Hosts,
    table: ArcSwap<Table>,
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Table {
    /// By name in wire form and lower case.
    forward: HashMap<Box<[u8]>, Vec<IpAddr>>,
    /// Names in wire form, in the letter case of the file.
    reverse: HashMap<IpAddr, Vec<Box<[u8]>>>,
}

// === impl Hosts ===

impl Hosts {
    /// Reads the file.
    pub fn new(spec: spec::Hosts) -> Self {
        let hosts = Self {
            spec,
            table: ArcSwap::default(),
        };
        hosts.look();
        hosts
    }

    /// The file that is followed, and how often it is looked at; not at all when 0.
    pub fn file(&self) -> Option<(&PathBuf, Duration)> {
        let file = self.spec.file.as_ref()?;
        (!self.spec.reload.is_zero()).then_some((file, self.spec.reload))
    }

    /// Reads the file again. What was known stays when it cannot be read.
    pub fn look(&self) {
        let text = match self.spec.file.as_ref().map(std::fs::read_to_string) {
            None => String::new(),
            Some(Ok(text)) => text,
            Some(Err(error)) => {
                let file = self.spec.file.as_deref().unwrap_or("".as_ref());
                tracing::warn!(file = %file.display(), %error, "cannot read hosts; what is known stays in force");
                if !self.table.load().forward.is_empty() {
                    return;
                }
                String::new()
            }
        };
        let mut table = Table::default();
        // Lines of the Corefile win: a name that they give is not added to.
        for (ip, names) in &self.spec.inline {
            table.add(*ip, names.iter().map(String::as_str), self.spec.reverse);
        }
        let mut more = Table::default();
        for (ip, names) in lines(&text) {
            more.add(ip, names.into_iter(), self.spec.reverse);
        }
        for (name, addresses) in more.forward {
            table.forward.entry(name).or_insert(addresses);
        }
        for (ip, names) in more.reverse {
            table.reverse.entry(ip).or_insert(names);
        }
        if **self.table.load() != table {
            self.table.store(table.into());
        }
    }

    /// The answer, if the name is known here, or must not be asked for elsewhere.
    pub fn answer(&self, question: &Question) -> Option<Message> {
        let name = &question.name;
        if !self.spec.zones.iter().any(|zone| inside(name, zone)) {
            return None;
        }
        let table = self.table.load();
        let owner = slow::proto_name(name.sent());
        let mut message = slow::empty(question);
        message.metadata.authoritative = true;
        let mut add = |data| {
            message.add_answer(Record::from_rdata(owner.clone(), self.spec.ttl, data));
        };
        let known = if let Reverse::Address(ip) = parse_reverse(name) {
            let names = table.reverse.get(&ip);
            if question.qtype == TYPE_PTR {
                for name in names.into_iter().flatten() {
                    add(RData::PTR(PTR(slow::proto_name(name))));
                }
            }
            names.is_some()
        } else {
            let addresses = table.forward.get(name.lower());
            for ip in addresses.into_iter().flatten() {
                match (ip, question.qtype) {
                    (IpAddr::V4(ip), TYPE_A) => add(RData::A(A(*ip))),
                    (IpAddr::V6(ip), TYPE_AAAA) => add(RData::AAAA(AAAA(*ip))),
                    _ => {}
                }
            }
            addresses.is_some()
        };
        match (&self.spec.fallthrough, known) {
            (_, true) => Some(message),
            (Some(zones), false) if zones.is_empty() || zones.iter().any(|zone| inside(name, zone)) => None,
            (_, false) => {
                message.metadata.response_code = ResponseCode::NXDomain;
                Some(message)
            }
        }
    }
}

// === impl Table ===

impl Table {
    fn add<'a>(&mut self, ip: IpAddr, names: impl Iterator<Item = &'a str>, reverse: bool) {
        for text in names {
            let Ok(wire) = wire_from_text(text) else { continue };
            let Ok(name) = Name::from_wire(&wire) else { continue };
            let addresses = self.forward.entry(name.lower().into()).or_default();
            if !addresses.contains(&ip) {
                addresses.push(ip);
            }
            let names = self.reverse.entry(ip).or_default();
            if reverse && !names.contains(&wire) {
                names.push(wire);
            }
        }
        if !reverse {
            self.reverse.clear();
        }
    }
}

/// The lines of a hosts file. What cannot be read is passed over, as resolvers do.
fn lines(text: &str) -> impl Iterator<Item = (IpAddr, Vec<&str>)> {
    text.lines().filter_map(|line| {
        let mut words = line.split('#').next()?.split_whitespace();
        let ip = words.next()?.split('%').next()?.parse().ok()?;
        Some((ip, words.collect()))
    })
}
