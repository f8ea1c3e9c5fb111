//! Plugin `acl`: who may ask what.

use ipnet::IpNet;

use super::super::line::Line;
use crate::metrics::type_number;
use crate::zone::config::Domain;
use crate::zone::policy::{AclAction, AclRule};

/// Reads the plugin.
pub fn read(line: &mut Line<'_>, block: &[Domain]) -> Vec<AclRule> {
    let mut zones = line.domains();
    if zones.is_empty() {
        zones = block.to_vec();
    }
    let mut rules = Vec::new();
    line.each(|line| {
        let action = match line.name.text.as_str() {
            "allow" => AclAction::Allow,
            "block" => AclAction::Block,
            "filter" => AclAction::Filter,
            "drop" => AclAction::Drop,
            _ => {
                line.rest();
                return line.unknown("allow, block, filter, drop");
            }
        };
        let mut rule = AclRule {
            zones: zones.clone(),
            action,
            types: Vec::new(),
            sources: Vec::new(),
        };
        let mut section = "";
        for word in line.rest() {
            match (word, section) {
                ("type" | "net", _) => section = word,
                ("*", _) => {}
                (word, "type") => match type_number(word) {
                    Some(number) => rule.types.push(number),
                    None => line.say(format!("{word:?} is no record type"), "give one such as A or ANY"),
                },
                (word, "net") => match portolan_model::parse::parse_cidr(word).or_else(|e| host(word).ok_or(e)) {
                    Ok(net) => rule.sources.push(net),
                    Err(_) => line.say(format!("{word:?} is no range"), "give one such as 10.0.0.0/8"),
                },
                (word, _) => line.say(format!("takes no {word:?}"), "it takes [type TYPE...] [net RANGE...]"),
            }
        }
        rules.push(rule);
    });
    rules
}

fn host(word: &str) -> Option<IpNet> {
    word.parse::<std::net::IpAddr>().ok().map(IpNet::from)
}
