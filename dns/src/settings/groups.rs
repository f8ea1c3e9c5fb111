//! Server blocks into groups of listeners: addresses whose server blocks are the same are answered alike.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::{Result, bail};

use super::{Block, Group, ZoneName};
use crate::config::RunArgs;
use crate::corefile::server::Scheme;
use crate::corefile::{Place, Server};
use crate::server::{self, Encrypted};

/// The listeners: addresses whose server blocks are the same are one group.
pub(super) fn groups(args: &RunArgs, servers: &[Server], cluster: bool) -> Result<Vec<Group>> {
    let mut answered: BTreeMap<(Scheme, SocketAddr), Vec<(ZoneName, usize)>> = BTreeMap::new();
    for (index, server) in servers.iter().enumerate() {
        for key in &server.keys {
            let addresses = addresses(args, server, key.scheme, key.port);
            for (address, zone) in addresses
                .iter()
                .flat_map(|a| key.zones.iter().map(move |zone| (*a, zone)))
            {
                let answers = answered.entry((key.scheme, address)).or_default();
                // With --listen the blocks of several ports meet; the first one for a zone counts.
                if !answers.iter().any(|(known, _)| known == zone) {
                    answers.push((zone.clone(), index));
                }
            }
        }
    }
    let mut groups: Vec<(Vec<(ZoneName, usize)>, Group)> = Vec::new();
    for ((scheme, address), answers) in answered {
        let position = groups.iter().position(|(known, _)| *known == answers);
        let group = match position {
            Some(position) => &mut groups[position].1,
            None => {
                let group = group(servers, &answers, cluster && !args.local_ip.is_empty());
                groups.push((answers.clone(), group));
                let last = groups.len() - 1;
                &mut groups[last].1
            }
        };
        let scheme = match scheme {
            Scheme::Dns => {
                group.listen.push(address);
                continue;
            }
            Scheme::Tls => server::Scheme::Tls,
            Scheme::Https => server::Scheme::Https,
            Scheme::Quic => server::Scheme::Quic,
        };
        let tls = answers.iter().find_map(|(_, index)| servers[*index].tls.clone());
        let Some(tls) = tls else {
            let Place { file, line } = &servers[answers[0].1].place;
            bail!("{file}:{line}: an encrypted server block has no certificate; add a line: tls CERTIFICATE KEY");
        };
        group.encrypted.push(Encrypted { address, scheme, tls });
    }
    Ok(groups.into_iter().map(|(_, group)| group).collect())
}

fn group(servers: &[Server], answers: &[(ZoneName, usize)], cluster: bool) -> Group {
    let blocks = answers.iter().map(|(zone, index)| {
        let server = &servers[*index];
        Block {
            zone: zone.clone(),
            forwards: server.forwards.clone(),
            cache: server
                .cache
                .as_ref()
                .map(|cache| (cache.policy.clone(), cache.zones.clone())),
            rewrites: server.rewrites.clone(),
            templates: server.templates.clone(),
            hosts: server.hosts.clone(),
            log: server.log.clone(),
        }
    });
    Group {
        listen: Vec::new(),
        encrypted: Vec::new(),
        cluster: cluster || answers.iter().any(|(_, index)| servers[*index].kubernetes.is_some()),
        blocks: blocks.collect(),
        detect_loops: answers.iter().any(|(_, index)| servers[*index].detect_loops),
    }
}

/// Where a server block listens.
fn addresses(args: &RunArgs, server: &Server, scheme: Scheme, port: u16) -> Vec<SocketAddr> {
    if scheme == Scheme::Dns && !args.listen.is_empty() {
        return args.listen.clone();
    }
    let ips: Vec<IpAddr> = if !args.local_ip.is_empty() {
        args.local_ip.clone()
    } else if server.bind.is_empty() {
        vec![Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()]
    } else {
        server.bind.clone()
    };
    ips.into_iter().map(|ip| SocketAddr::new(ip, port)).collect()
}
