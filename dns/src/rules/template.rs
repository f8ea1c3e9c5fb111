//! Answers made from a pattern (plugin `template`): empty ones, fixed ones, and those that repeat parts of the name.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::rdata::opt::EdnsOption;
use hickory_proto::rr::rdata::{A, AAAA, CNAME, MX, NS, PTR, SOA, SRV, TXT};
use hickory_proto::rr::{Name as ProtoName, RData, Record};
use hickory_proto::serialize::binary::BinDecodable;
use regex::Captures;

use crate::answer::{Question, slow};
use crate::corefile::plugins::template::Template;
use crate::forward::route::inside;
use crate::zone::names::{text, wire_from_text};

const OPTION_EDE: u16 = 15;

/// The answer of a template, if it is for the question.
pub fn answer(template: &Template, question: &Question) -> Option<Message> {
    let name = &question.name;
    let zone = template
        .zones
        .iter()
        .filter(|zone| inside(name, zone))
        .max_by_key(|zone| zone.len())?;
    if template.type_.is_some_and(|wanted| wanted != question.qtype) {
        return None;
    }
    let dotted = text(name.sent());
    let lower = dotted.to_ascii_lowercase();
    let mut captures = None;
    if !template.matches.is_empty() {
        captures = template.matches.iter().find_map(|regex| regex.captures(&lower));
        // Whether or not it falls through: in CoreDNS as here the next plugin is asked.
        captures.as_ref()?;
    }
    let mut message = slow::empty(question);
    message.metadata.authoritative = true;
    message.metadata.response_code = ResponseCode::from(0, template.rcode);
    let type_ = hickory_proto::rr::RecordType::from(question.qtype).to_string();
    let values = [
        ("Name", dotted),
        ("Type", type_),
        ("Class", "IN".to_owned()),
        ("Zone", text(zone)),
    ];
    let made = |pattern: &String| read_record(&fill(pattern, &values, captures.as_ref()));
    let section = |patterns: &[String]| patterns.iter().map(made).collect::<Option<Vec<_>>>();
    let sections = (
        section(&template.answers),
        section(&template.authorities),
        section(&template.additionals),
    );
    let (Some(answers), Some(authorities), Some(additionals)) = sections else {
        // What the client sent does not make a record.
        message.metadata.response_code = ResponseCode::ServFail;
        return Some(message);
    };
    message.add_answers(answers);
    message.add_authorities(authorities);
    message.add_additionals(additionals);
    if let (Some((code, text)), Some(edns)) = (&template.ede, &mut message.edns) {
        let data = [&code.to_be_bytes(), text.as_bytes()].concat();
        edns.options_mut().insert(EdnsOption::Unknown(OPTION_EDE, data));
    }
    Some(message)
}

/// A pattern filled with something, so that it can be seen whether it will ever be a record.
pub fn sample(pattern: &str) -> String {
    let mut done = String::new();
    let mut rest = pattern;
    while let Some((before, after)) = rest.split_once("{{") {
        done += before;
        let Some((expression, behind)) = after.split_once("}}") else {
            return done;
        };
        done += match expression.trim() {
            ".Type" => "A",
            ".Class" => "IN",
            ".Name" | ".Zone" => "a.",
            // A part of a name or of an address.
            _ => "1",
        };
        rest = behind;
    }
    done + rest
}

fn fill(pattern: &str, values: &[(&str, String)], captures: Option<&Captures<'_>>) -> String {
    let mut done = String::new();
    let mut rest = pattern;
    while let Some((before, after)) = rest.split_once("{{") {
        done += before;
        let Some((expression, behind)) = after.split_once("}}") else {
            return done;
        };
        let name = expression.trim().trim_start_matches('.');
        if let Some((_, value)) = values.iter().find(|(known, _)| *known == name) {
            done += value;
        } else if let (Some(group), Some(captures)) = (name.strip_prefix("Group."), captures) {
            let found = group
                .parse()
                .ok()
                .map_or_else(|| captures.name(group), |index| captures.get(index));
            done += found.map_or("", |found| found.as_str());
        } else if let (Some(index), Some(captures)) = (name.strip_prefix("index .Match "), captures) {
            let found = index.parse().ok().and_then(|index| captures.get(index));
            done += found.map_or("", |found| found.as_str());
        }
        rest = behind;
    }
    done + rest
}

/// Reads `NAME TTL [IN] TYPE DATA`.
pub fn read_record(text: &str) -> Option<Record> {
    let mut words = text.split_whitespace().peekable();
    let owner = name(words.next()?)?;
    let mut ttl = 3600;
    if let Some(seconds) = words.peek().and_then(|word| word.parse().ok()) {
        ttl = seconds;
        words.next();
    }
    if words.peek().is_some_and(|word| word.eq_ignore_ascii_case("IN")) {
        words.next();
    }
    let type_ = words.next()?.to_ascii_uppercase();
    let rest: Vec<&str> = words.collect();
    let number = |index: usize| rest.get(index)?.parse::<u32>().ok();
    let short = |index: usize| number(index).and_then(|n| u16::try_from(n).ok());
    let data = match (type_.as_str(), rest.len()) {
        ("A", 1) => RData::A(A(Ipv4Addr::from_str(rest[0]).ok()?)),
        ("AAAA", 1) => RData::AAAA(AAAA(Ipv6Addr::from_str(rest[0]).ok()?)),
        ("CNAME", 1) => RData::CNAME(CNAME(name(rest[0])?)),
        ("PTR", 1) => RData::PTR(PTR(name(rest[0])?)),
        ("NS", 1) => RData::NS(NS(name(rest[0])?)),
        ("MX", 2) => RData::MX(MX::new(short(0)?, name(rest[1])?)),
        ("SRV", 4) => RData::SRV(SRV::new(short(0)?, short(1)?, short(2)?, name(rest[3])?)),
        ("TXT", 1..) => {
            let text = text.split_once(&*type_).or_else(|| text.split_once("txt"))?.1.trim();
            let text = text
                .strip_prefix('"')
                .and_then(|text| text.strip_suffix('"'))
                .unwrap_or(text);
            let parts: Vec<&[u8]> = text.as_bytes().chunks(255).collect();
            RData::TXT(TXT::from_bytes(parts))
        }
        ("SOA", 7) => RData::SOA(SOA::new(
            name(rest[0])?,
            name(rest[1])?,
            number(2)?,
            number(3)? as i32,
            number(4)? as i32,
            number(5)? as i32,
            number(6)?,
        )),
        _ => return None,
    };
    Some(Record::from_rdata(owner, ttl, data))
}

fn name(text: &str) -> Option<ProtoName> {
    ProtoName::from_bytes(&wire_from_text(text).ok()?).ok()
}
