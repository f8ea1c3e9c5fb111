//! Plugins that say one thing.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;

use super::super::line::{Line, parse_listen};
use crate::server::TlsFiles;
use crate::zone::config::Domain;
use crate::zone::policy::Transfer;

/// `errors`, which is always on. Its options thin repeated lines out, as is always done here.
pub fn errors(line: &mut Line<'_>) {
    line.rest();
    line.each(|line| {
        let known = matches!(line.name.text.as_str(), "consolidate" | "stacktrace");
        line.rest();
        if !known {
            line.unknown("consolidate, stacktrace");
        }
    });
}

/// `bind ADDRESS|INTERFACE...`
pub fn bind(line: &mut Line<'_>) -> Vec<IpAddr> {
    let mut found = Vec::new();
    for word in line.rest() {
        // Of NodeLocal DNSCache's template: the addresses that --local-ip names.
        if word.starts_with("__PILLAR__") {
            continue;
        }
        match word.parse() {
            Ok(ip) => found.push(ip),
            Err(_) => {
                let addresses = if_addrs::get_if_addrs().unwrap_or_default();
                let named: Vec<IpAddr> = addresses
                    .iter()
                    .filter(|i| i.name == word)
                    .map(if_addrs::Interface::ip)
                    .collect();
                if named.is_empty() {
                    line.say(
                        format!("{word:?} is no address and no interface here"),
                        "write an address",
                    );
                }
                found.extend(named);
            }
        }
    }
    line.each(|line| {
        line.rest();
        line.say("is not supported", "name the addresses instead");
    });
    found
}

/// `bufsize [SIZE]`
pub fn bufsize(line: &mut Line<'_>) -> Option<u16> {
    if line.peek().is_none() {
        return Some(1232);
    }
    match line.parse("octets from 512 to 4096") {
        Some(size @ 512..=4096) => Some(size),
        Some(_) => {
            line.say("is out of range", "give octets from 512 to 4096");
            None
        }
        None => None,
    }
}

/// `health [ADDRESS] { lameduck DURATION }`
pub fn health(line: &mut Line<'_>) -> (SocketAddr, Duration) {
    let address = match line.peek() {
        Some(_) => line.listen("an address"),
        None => parse_listen(":8080"),
    };
    let mut lameduck = Duration::ZERO;
    line.each(|line| {
        if line.name.text == "lameduck" {
            lameduck = line.duration().unwrap_or_default();
        } else {
            line.rest();
            line.unknown("lameduck");
        }
    });
    line.end();
    (address.unwrap_or_else(|| ([0, 0, 0, 0], 8080).into()), lameduck)
}

/// `ready [ADDRESS]`
pub fn ready(line: &mut Line<'_>) -> Option<SocketAddr> {
    let found = match line.peek() {
        Some(_) => line.listen("an address"),
        None => parse_listen(":8181"),
    };
    line.each(|line| {
        let words = line.rest();
        if line.name.text != "monitor" || !matches!(words[..], ["continuously" | "until-ready"]) {
            line.unknown("monitor continuously, monitor until-ready");
        }
    });
    line.end();
    found
}

/// `[ADDRESS]`
pub fn one_listen(line: &mut Line<'_>, default: &str) -> Option<SocketAddr> {
    let found = match line.peek() {
        Some(_) => line.listen("an address"),
        None => parse_listen(default),
    };
    line.each(|line| {
        line.rest();
        line.unknown("none");
    });
    line.end();
    found
}

/// `reload [INTERVAL] [JITTER]`
pub fn reload(line: &mut Line<'_>) -> Duration {
    let mut interval = Duration::from_secs(30);
    if line.peek().is_some() {
        interval = line.duration().unwrap_or(interval);
    }
    if line.peek().is_some() {
        line.duration();
    }
    line.end();
    if interval < Duration::from_secs(2) {
        line.say("looks more often than every 2s", "give 2s or more");
    }
    interval.max(Duration::from_secs(2))
}

/// `loadbalance [round_robin]`
pub fn loadbalance(line: &mut Line<'_>) -> bool {
    match line.word() {
        None | Some("round_robin") => {}
        Some(other) => line.say(format!("{other:?} is no policy"), "give round_robin"),
    }
    line.each(|line| {
        line.rest();
        line.unknown("none");
    });
    line.end();
    true
}

/// `nsid [DATA]`
pub fn nsid(line: &mut Line<'_>) -> Vec<u8> {
    let words = line.rest();
    if words.is_empty() {
        return gethostname::gethostname().to_string_lossy().into_owned().into_bytes();
    }
    words.join(" ").into_bytes()
}

/// `autopath [ZONE...] @kubernetes`
pub fn autopath(line: &mut Line<'_>) -> bool {
    let words = line.rest();
    let on = words.last() == Some(&"@kubernetes");
    if !on {
        line.say("takes its search list from a file", "write autopath @kubernetes");
    }
    on
}

/// `tls CERTIFICATE KEY [CA]`
pub fn tls(line: &mut Line<'_>) -> Option<TlsFiles> {
    let certificate = line.one("a certificate")?.into();
    let key = line.one("a key")?.into();
    let client_ca = line.word().map(PathBuf::from);
    line.each(|line| {
        line.rest();
        line.say("is not supported", "remove the line");
    });
    line.end();
    Some(TlsFiles {
        certificate,
        key,
        client_ca,
    })
}

/// `transfer [ZONE...] { to ADDRESS... }`
pub fn transfer(line: &mut Line<'_>, block: &[Domain]) -> Option<Transfer> {
    let mut zones = line.domains();
    if zones.is_empty() {
        zones = block.to_vec();
    }
    let mut to = Vec::new();
    line.each(|line| {
        if line.name.text != "to" {
            line.rest();
            return line.unknown("to");
        }
        for word in line.rest() {
            let net = portolan_model::parse::parse_cidr(word).ok();
            let host = || {
                word.parse()
                    .or_else(|_| word.parse().map(|a: SocketAddr| a.ip()))
                    .ok()
                    .map(IpNet::from)
            };
            match (word, net.or_else(host)) {
                ("*", _) => to.extend(["0.0.0.0/0", "::/0"].iter().filter_map(|net| net.parse::<IpNet>().ok())),
                (_, Some(net)) => to.push(net),
                (_, None) => line.say(format!("{word:?} is no address"), "write * or an address or a range"),
            }
        }
    });
    Some(Transfer { zones, to })
}
