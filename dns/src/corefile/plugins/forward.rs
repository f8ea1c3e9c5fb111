//! Plugin `forward`: who is asked for what is not ours.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use super::super::Place;
use super::super::line::{Line, ZoneName, parse_zone};
use crate::forward::spec::{Options, Policy, Target, Transport};

/// What it says.
#[derive(Clone, Debug)]
pub struct Forward {
    /// Where it stands.
    pub place: Place,
    /// Names in these zones are forwarded.
    pub from: Vec<ZoneName>,
    /// But not those in these.
    pub except: Vec<ZoneName>,
    /// To these, and to what these files name.
    pub to: Vec<Target>,
    /// Files that name upstreams, followed live.
    pub files: Vec<PathBuf>,
    /// How.
    pub options: Options,
}

/// CoreDNS's limit.
const MAX_UPSTREAMS: usize = 15;
const KNOWN: &str = "except, force_tcp, prefer_udp, expire, max_fails, max_connect_attempts, max_idle_conns, max_age, tls, \
                     tls_servername, policy, health_check, max_concurrent, next, failover, next_on_nodata, \
                     failfast_all_unhealthy_upstreams";

/// Reads the plugin. `None` when nothing of it can be used.
pub fn read(line: &mut Line<'_>) -> Option<Forward> {
    let from = line.one("the zone to forward, such as .")?;
    let Some(from) = parse_zone(from) else {
        line.say(format!("{from:?} is no zone"), "write . for everything");
        return None;
    };
    let mut found = Forward {
        place: line.place().clone(),
        from,
        except: Vec::new(),
        to: Vec::new(),
        files: Vec::new(),
        options: Options::default(),
    };
    let targets = line.rest();
    if targets.is_empty() {
        line.say(
            "names no upstream",
            "write an address such as 192.0.2.1, or /etc/resolv.conf",
        );
    }
    for text in targets {
        match parse_target(text) {
            Some(target) => found.to.push(target),
            // NodeLocal DNSCache's template: what the node itself uses.
            None if text == "__PILLAR__UPSTREAM__SERVERS__" => found.files.push("/etc/resolv.conf".into()),
            // NodeLocal DNSCache's template: the central DNS server, which is not asked for what we know ourselves.
            None if text == "__PILLAR__CLUSTER__DNS__" => {}
            None if text.starts_with('/') => found.files.push(text.into()),
            None => line.say(
                format!("{text:?} is no upstream"),
                "write an address such as 192.0.2.1, 192.0.2.1:5353, tls://192.0.2.1 or https://192.0.2.1, or a file",
            ),
        }
    }
    if found.to.len() > MAX_UPSTREAMS {
        line.say("names more than 15 upstreams", "keep 15 of them");
    }
    line.each(|line| option(line, &mut found));
    if found.options.server_name.is_none() {
        return Some(found);
    }
    for target in &mut found.to {
        if target.server_name.is_none() {
            target.server_name.clone_from(&found.options.server_name);
        }
    }
    Some(found)
}

/// `[dns://|tls://|https://]ADDRESS[:PORT][%SERVERNAME]`
pub fn parse_target(text: &str) -> Option<Target> {
    let (transport, rest) = match text.split_once("://") {
        None => (Transport::Dns, text),
        Some(("dns", rest)) => (Transport::Dns, rest),
        Some(("tls", rest)) => (Transport::Tls, rest),
        Some(("https", rest)) => (Transport::Https, rest),
        Some(_) => return None,
    };
    let (rest, path) = match rest.find('/') {
        Some(at) if transport == Transport::Https => (&rest[..at], &rest[at..]),
        Some(_) => return None,
        None => (rest, "/dns-query"),
    };
    // An IPv6 zone (fe80::1%eth0) looks the same; only encrypted upstreams have a server name.
    let (address, name) = match rest.split_once('%') {
        Some((address, name)) if transport != Transport::Dns => (address, Some(name.to_owned())),
        Some((address, _)) => (address, None),
        None => (rest, None),
    };
    let bare = address
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
        .unwrap_or(address);
    let address = match bare.parse::<IpAddr>() {
        Ok(ip) => SocketAddr::new(ip, transport.port()),
        Err(_) => address.parse().ok()?,
    };
    Some(Target {
        address,
        transport,
        server_name: name,
        path: path.to_owned(),
    })
}

fn option(line: &mut Line<'_>, found: &mut Forward) {
    let options = &mut found.options;
    match line.name.text.as_str() {
        "except" => found.except = line.zones(),
        "force_tcp" => options.force_tcp = true,
        "prefer_udp" => options.prefer_udp = true,
        "expire" => options.expire = line.duration().unwrap_or(options.expire),
        "max_fails" => options.max_fails = line.parse("a number").unwrap_or(options.max_fails),
        // Connections are made as they are needed, one for each upstream.
        "max_connect_attempts" | "max_idle_conns" => drop(line.parse::<u32>("a number")),
        "max_age" => drop(line.duration()),
        "tls_servername" => options.server_name = line.one("a name").map(str::to_owned),
        "tls" => match &line.rest()[..] {
            [] => {}
            [ca] => options.ca = Some(ca.into()),
            [certificate, key] => options.client = Some((certificate.into(), key.into())),
            [certificate, key, ca] => {
                options.client = Some((certificate.into(), key.into()));
                options.ca = Some(ca.into());
            }
            _ => line.say("names more than three files", "give CERTIFICATE KEY CA, or CA"),
        },
        "policy" => match line.one("random, round_robin or sequential") {
            Some("random") => options.policy = Policy::Random,
            Some("round_robin") => options.policy = Policy::RoundRobin,
            Some("sequential") => options.policy = Policy::Sequential,
            Some(other) => line.say(
                format!("{other:?} is no policy"),
                "give random, round_robin or sequential",
            ),
            None => {}
        },
        "health_check" => health_check(line, options),
        "max_concurrent" => options.max_concurrent = line.parse("a number").filter(|most| *most > 0),
        "failfast_all_unhealthy_upstreams" => options.fail_fast = true,
        // The next upstream is asked after these codes, and after those the next forward.
        "failover" => rcodes(line, &mut options.failover),
        "next" => rcodes(line, &mut options.next),
        "next_on_nodata" => options.next_on_nodata = true,
        _ => {
            line.rest();
            line.unknown(KNOWN);
        }
    }
    line.end();
}

fn health_check(line: &mut Line<'_>, options: &mut Options) {
    options.health_check = line
        .duration()
        .unwrap_or(options.health_check)
        .max(Duration::from_millis(10));
    while let Some(word) = line.word() {
        match word {
            "no_rec" => options.probe_recursion = false,
            "domain" => match line.one("a name").and_then(parse_zone).as_deref() {
                Some([name]) => options.probe_name = name.clone(),
                _ => line.say("domain names no domain", "give one such as example.org"),
            },
            other => line.say(
                format!("takes no {other:?}"),
                "it takes DURATION [no_rec] [domain NAME]",
            ),
        }
    }
}

fn rcodes(line: &mut Line<'_>, into: &mut Vec<u8>) {
    for word in line.rest() {
        match crate::forward::spec::parse_rcode(word) {
            Some(0) => line.say(
                "names NOERROR, which is no failure",
                "write next_on_nodata for answers without records",
            ),
            Some(code) => into.push(code),
            None => line.say(
                format!("{word:?} is no response code"),
                "give one such as SERVFAIL or NXDOMAIN",
            ),
        }
    }
}
