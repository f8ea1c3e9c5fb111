//! Plugin `hosts`: names from a file and from lines of the Corefile.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::super::line::{Line, ZoneName};

/// What it says.
#[derive(Clone, Debug)]
pub struct Hosts {
    /// The file, followed live.
    pub file: Option<PathBuf>,
    /// Only names in these zones.
    pub zones: Vec<ZoneName>,
    /// Lines of the Corefile, which win over the file.
    pub inline: Vec<(IpAddr, Vec<String>)>,
    /// Seconds that clients may keep an answer.
    pub ttl: u32,
    /// Whether addresses are named too.
    pub reverse: bool,
    /// How often the file is looked at.
    pub reload: Duration,
    /// In these zones, or in all when empty, ask on when there is no such name.
    pub fallthrough: Option<Vec<ZoneName>>,
}

/// Reads the plugin; without a file only its lines count, unless there are none: then it is /etc/hosts.
pub fn read(line: &mut Line<'_>, block: &[ZoneName]) -> Option<Hosts> {
    let file = line.word().map(PathBuf::from);
    let mut zones = line.zones();
    if zones.is_empty() {
        zones = block.to_vec();
    }
    let mut found = Hosts {
        file,
        zones,
        inline: Vec::new(),
        ttl: 3600,
        reverse: true,
        reload: Duration::from_secs(5),
        fallthrough: None,
    };
    line.each(|line| option(line, &mut found));
    if found.file.is_none() && found.inline.is_empty() {
        found.file = Some("/etc/hosts".into());
    }
    Some(found)
}

fn option(line: &mut Line<'_>, found: &mut Hosts) {
    match line.name.text.as_str() {
        "ttl" => found.ttl = line.parse("seconds").unwrap_or(found.ttl),
        "no_reverse" => found.reverse = false,
        "reload" => found.reload = line.duration().unwrap_or(found.reload),
        "fallthrough" => found.fallthrough = Some(line.zones()),
        word => match word.parse() {
            Ok(ip) => {
                let names: Vec<String> = line.rest().into_iter().map(str::to_owned).collect();
                if names.is_empty() {
                    line.say("names no host", "write ADDRESS NAME...");
                }
                found.inline.push((ip, names));
            }
            Err(_) => {
                line.rest();
                line.unknown("lines of ADDRESS NAME..., ttl, no_reverse, reload, fallthrough");
            }
        },
    }
    line.end();
}
