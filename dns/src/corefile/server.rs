//! A server block and what its plugins say, typed.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::Problem;
use super::lex::{Place, Word};
use super::line::{Line, ZoneName, parse_zone};
use super::parse::{Block, Directive};
use super::plugins::{acl, cache, forward, hosts, kubernetes, log, rewrite, small, template};
use crate::server::TlsFiles;
use crate::zone::config::Domain;
use crate::zone::names::text;
use crate::zone::policy::{AclRule, Transfer};

/// How clients speak to a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scheme {
    /// UDP and TCP.
    Dns,
    /// DNS over TLS (RFC 7858).
    Tls,
    /// DNS over HTTPS (RFC 8484).
    Https,
    /// DNS over QUIC (RFC 9250).
    Quic,
}

/// One key of a server block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    /// How clients speak.
    pub scheme: Scheme,
    /// The zones; more than one for a range of addresses.
    pub zones: Vec<ZoneName>,
    /// The port.
    pub port: u16,
}

/// What a server block says.
#[derive(Clone, Debug)]
pub struct Server {
    /// Where it begins.
    pub place: Place,
    /// Zones, ports and transports.
    pub keys: Vec<Key>,
    /// The names of its plugins, in order.
    pub plugins: Vec<String>,
    /// Addresses to listen on; all when empty.
    pub bind: Vec<IpAddr>,
    /// Plugin `acl`.
    pub acl: Vec<AclRule>,
    /// Plugin `autopath`: it completes from pods (`@kubernetes`).
    pub autopath: bool,
    /// Plugin `bufsize`: the cap on datagrams.
    pub bufsize: Option<u16>,
    /// Plugin `cache`.
    pub cache: Option<cache::Cache>,
    /// Plugins `forward`, in order.
    pub forwards: Vec<forward::Forward>,
    /// Plugin `health`: where, and how long to go on at the end.
    pub health: Option<(SocketAddr, Duration)>,
    /// Plugin `hosts`.
    pub hosts: Vec<hosts::Hosts>,
    /// Plugin `kubernetes`.
    pub kubernetes: Option<kubernetes::Kubernetes>,
    /// Plugin `loadbalance`: answers rotate.
    pub loadbalance: bool,
    /// Plugin `log`.
    pub log: Vec<log::Log>,
    /// Plugin `loop`.
    pub detect_loops: bool,
    /// Plugin `nsid`.
    pub nsid: Option<Vec<u8>>,
    /// Plugin `prometheus`.
    pub prometheus: Option<SocketAddr>,
    /// Plugin `ready`.
    pub ready: Option<SocketAddr>,
    /// Plugin `reload`: how often to look.
    pub reload: Option<Duration>,
    /// Plugin `rewrite`, in order.
    pub rewrites: Vec<rewrite::Rewrite>,
    /// Plugin `template`, in order.
    pub templates: Vec<template::Template>,
    /// Plugin `tls`: certificate, key, and the authorities of clients.
    pub tls: Option<TlsFiles>,
    /// Plugin `transfer`.
    pub transfers: Vec<Transfer>,
}

// === impl Server ===

impl Server {
    /// Reads a block.
    pub fn read(block: &Block, problems: &mut Vec<Problem>) -> Option<Self> {
        let place = block.keys.first()?.place.clone();
        let keys: Vec<Key> = block.keys.iter().filter_map(|word| key(word, problems)).collect();
        let mut server = Self {
            place,
            plugins: Vec::new(),
            bind: Vec::new(),
            acl: Vec::new(),
            autopath: false,
            bufsize: None,
            cache: None,
            forwards: Vec::new(),
            health: None,
            hosts: Vec::new(),
            kubernetes: None,
            loadbalance: false,
            log: Vec::new(),
            detect_loops: false,
            nsid: None,
            prometheus: None,
            ready: None,
            reload: None,
            rewrites: Vec::new(),
            templates: Vec::new(),
            tls: None,
            transfers: Vec::new(),
            keys,
        };
        for directive in &block.directives {
            server.directive(directive, problems);
        }
        Some(server)
    }

    /// Every zone of the block.
    pub fn zones(&self) -> impl Iterator<Item = &ZoneName> {
        self.keys.iter().flat_map(|key| &key.zones)
    }

    fn directive(&mut self, directive: &Directive, problems: &mut Vec<Problem>) {
        let zones: Vec<ZoneName> = self.zones().cloned().collect();
        let domains: Vec<Domain> = zones.iter().filter_map(|zone| Domain::new(&text(zone)).ok()).collect();
        let mut line = Line::new(directive, problems);
        let again = self.plugins.contains(&directive.name.text);
        match directive.name.text.as_str() {
            "acl" => self.acl.extend(acl::read(&mut line, &domains)),
            "autopath" => self.autopath = small::autopath(&mut line),
            "bind" => self.bind.extend(small::bind(&mut line)),
            "bufsize" => self.bufsize = small::bufsize(&mut line),
            "cache" => self.cache = Some(cache::read(&mut line)),
            "errors" => small::errors(&mut line),
            "forward" => self.forwards.extend(forward::read(&mut line)),
            "health" => self.health = Some(small::health(&mut line)),
            "hosts" => self.hosts.extend(hosts::read(&mut line, &zones)),
            "kubernetes" => self.kubernetes = Some(kubernetes::read(&mut line, &zones)),
            "loadbalance" => self.loadbalance = small::loadbalance(&mut line),
            "log" => self.log.push(log::read(&mut line)),
            "loop" => {
                line.end();
                self.detect_loops = true;
            }
            "nsid" => self.nsid = Some(small::nsid(&mut line)),
            "prometheus" => self.prometheus = small::one_listen(&mut line, "127.0.0.1:9153"),
            "ready" => self.ready = small::ready(&mut line),
            "reload" => self.reload = Some(small::reload(&mut line)),
            "rewrite" => self.rewrites.extend(rewrite::read(&mut line)),
            "template" => self.templates.extend(template::read(&mut line, &zones)),
            "tls" => self.tls = small::tls(&mut line),
            "transfer" => self.transfers.extend(small::transfer(&mut line, &domains)),
            // What they do is always done here: sockets for each core, loop-free metadata, time-outs, no debugging port.
            "multisocket" | "metadata" | "cancel" | "debug" | "minimal" | "root" | "timeouts" => {}
            other => {
                let advice = advice(other);
                let known = !advice.is_empty();
                let what = if known { "is not supported" } else { "is no plugin" };
                line.say(
                    what,
                    if known {
                        advice
                    } else {
                        "look for a misspelling, or remove the line"
                    },
                );
            }
        }
        let single = [
            "cache",
            "health",
            "kubernetes",
            "prometheus",
            "ready",
            "reload",
            "autopath",
            "bufsize",
        ];
        if again && single.contains(&directive.name.text.as_str()) {
            line.say("stands twice in one server block", "keep one of them");
        }
        self.plugins.push(directive.name.text.clone());
    }
}

/// What to do without a plugin of CoreDNS that has no counterpart here; empty when it is no plugin of CoreDNS.
fn advice(plugin: &str) -> &'static str {
    match plugin {
        "any" => "ANY is answered with what there is to say already; remove the line",
        "auto" | "file" | "secondary" | "sign" | "route53" | "azure" | "clouddns" | "etcd" | "nomad" => {
            "serve that zone by a server of its own and forward the zone to it: zone { forward . ADDRESS }"
        }
        "dns64" => "let the upstream do it, and forward to that",
        "dnssec" | "dnstap" | "trace" | "pprof" | "erratic" | "whoami" | "chaos" | "geoip" | "local" => {
            "remove the line; nothing of the cluster's names depends on it"
        }
        "grpc" => "use forward with tls:// or https://",
        "header" => "remove the line; flags are set as RFC 1035 says",
        "k8s_external" => "publish these addresses from a zone of their own",
        "on" | "tsig" | "view" | "shed" => "remove the line",
        _ => "",
    }
}

/// `[SCHEME://]ZONE[:PORT]`
fn key(word: &Word, problems: &mut Vec<Problem>) -> Option<Key> {
    let mut say = |what: String, advice: &str| {
        problems.push(Problem::at(&word.place, "", what).advise(advice));
    };
    let (scheme, rest) = match word.text.split_once("://") {
        None => (Scheme::Dns, word.text.as_str()),
        Some(("dns", rest)) => (Scheme::Dns, rest),
        Some(("tls", rest)) => (Scheme::Tls, rest),
        Some(("https", rest)) => (Scheme::Https, rest),
        Some(("quic", rest)) => (Scheme::Quic, rest),
        Some((other, _)) => {
            say(
                format!("{other}:// is no transport"),
                "use dns://, tls://, https:// or quic://",
            );
            return None;
        }
    };
    let (zone, port) = match rest
        .rsplit_once(':')
        .filter(|(_, port)| port.bytes().all(|b| b.is_ascii_digit()))
    {
        Some((zone, port)) => (zone, Some(port)),
        None => (rest, None),
    };
    let default = match scheme {
        Scheme::Dns => 53,
        Scheme::Tls | Scheme::Quic => 853,
        Scheme::Https => 443,
    };
    let Ok(port) = port.map_or(Ok(default), str::parse) else {
        say(format!("{:?} has no port", word.text), "write a port from 1 to 65535");
        return None;
    };
    let zone = if zone.is_empty() { "." } else { zone };
    match parse_zone(zone) {
        Some(zones) => Some(Key { scheme, zones, port }),
        None => {
            say(format!("{zone:?} is no zone"), "write one such as example.org or .");
            None
        }
    }
}
