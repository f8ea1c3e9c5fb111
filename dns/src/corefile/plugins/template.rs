//! Plugin `template`: answers made from a pattern, most often empty ones.

use regex::Regex;

use super::super::line::{Line, ZoneName};
use crate::metrics::type_number;

/// What it says.
#[derive(Clone, Debug)]
pub struct Template {
    /// Only names in these zones.
    pub zones: Vec<ZoneName>,
    /// Only this type; any when `None`.
    pub type_: Option<u16>,
    /// Only names that one of these takes, with the dot at their end; any when empty.
    pub matches: Vec<Regex>,
    /// Records as text with `{{ .Name }}`, `{{ .Type }}`, `{{ .Class }}`, `{{ .Zone }}` and `{{ .Group.x }}`.
    pub answers: Vec<String>,
    /// Records of the authority section.
    pub authorities: Vec<String>,
    /// Records of the additional section.
    pub additionals: Vec<String>,
    /// The response code.
    pub rcode: u8,
    /// An extended error (RFC 8914).
    pub ede: Option<(u16, String)>,
    /// In these zones, or in all when empty, go on when no name matches.
    pub fallthrough: Option<Vec<ZoneName>>,
}

const KNOWN: &str = "match, answer, authority, additional, rcode, ederror, fallthrough";

/// Reads the plugin: `CLASS TYPE [ZONE...]`.
pub fn read(line: &mut Line<'_>, block: &[ZoneName]) -> Option<Template> {
    let class = line.one("a class: IN or ANY")?;
    if !matches!(class.to_ascii_uppercase().as_str(), "IN" | "ANY") {
        line.say(format!("{class:?} is never answered"), "write IN");
    }
    let type_ = line.one("a type such as AAAA or ANY")?;
    let number = type_number(type_);
    if number.is_none() {
        line.say(format!("{type_:?} is no record type"), "write one such as AAAA, or ANY");
    }
    let mut zones = line.zones();
    if zones.is_empty() {
        zones = block.to_vec();
    }
    let mut found = Template {
        zones,
        type_: number.filter(|number| *number != 255),
        matches: Vec::new(),
        answers: Vec::new(),
        authorities: Vec::new(),
        additionals: Vec::new(),
        rcode: 0,
        ede: None,
        fallthrough: None,
    };
    line.each(|line| option(line, &mut found));
    Some(found)
}

fn option(line: &mut Line<'_>, found: &mut Template) {
    match line.name.text.as_str() {
        "match" => {
            for text in line.rest() {
                match regex::RegexBuilder::new(text).size_limit(1 << 20).build() {
                    Ok(regex) => found.matches.push(regex),
                    Err(_) => line.say(format!("{text:?} is no regular expression"), "mend the expression"),
                }
            }
        }
        "answer" => records(line, &mut found.answers),
        "authority" => records(line, &mut found.authorities),
        "additional" => records(line, &mut found.additionals),
        "rcode" => match line.one("a response code").map(crate::forward::spec::parse_rcode) {
            Some(Some(code)) => found.rcode = code,
            Some(None) => line.say("is no response code", "write one such as NXDOMAIN or NOERROR"),
            None => {}
        },
        "ederror" => {
            let code = line.parse("a number of RFC 8914").unwrap_or(0);
            let text = line.rest().join(" ");
            found.ede = Some((code, text));
        }
        "fallthrough" => found.fallthrough = Some(line.zones()),
        _ => {
            line.rest();
            line.unknown(KNOWN);
        }
    }
    line.end();
}

fn records(line: &mut Line<'_>, into: &mut Vec<String>) {
    for text in line.rest() {
        // What it will be is not known yet; what can never be read is.
        if crate::rules::template::read_record(&crate::rules::template::sample(text)).is_none() {
            line.say(
                format!("{text:?} is no record"),
                "write \"NAME TTL IN TYPE DATA\" with A, AAAA, CNAME, TXT, MX, NS, PTR, SRV or SOA",
            );
        } else {
            into.push(text.to_owned());
        }
    }
}
