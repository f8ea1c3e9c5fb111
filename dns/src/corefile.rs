//! The Corefile: what CoreDNS is configured with, read into what this server does.
//!
//! Nothing is passed over in silence: a plugin or an option that has no counterpart here is a [`Problem`] with its
//! place and what to do. Reading never panics and does no I/O but through [`Surroundings`].

pub mod lex;
pub mod line;
pub mod parse;
pub mod plugins;
pub mod server;

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

pub use lex::Place;
pub use parse::Surroundings;
pub use server::Server;

/// Something in a Corefile that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Where.
    pub place: Place,
    /// The plugin; empty when none is concerned.
    pub plugin: String,
    /// What is wrong.
    pub what: String,
    /// What to do.
    pub advice: String,
}

// === impl Problem ===

impl Problem {
    /// A problem at a place.
    pub fn at(place: &Place, plugin: &str, what: impl Into<String>) -> Self {
        Self {
            place: place.clone(),
            plugin: plugin.to_owned(),
            what: what.into(),
            advice: String::new(),
        }
    }

    /// The same with what to do about it.
    #[must_use]
    pub fn advise(mut self, advice: impl Into<String>) -> Self {
        self.advice = advice.into();
        self
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: ", self.place.file, self.place.line)?;
        if !self.plugin.is_empty() {
            write!(f, "{}: ", self.plugin)?;
        }
        f.write_str(&self.what)?;
        if !self.advice.is_empty() {
            write!(f, "; {}", self.advice)?;
        }
        Ok(())
    }
}

/// A Corefile that can be used.
#[derive(Clone, Debug, Default)]
pub struct Corefile {
    /// The server blocks, in order.
    pub servers: Vec<Server>,
    /// Every file that it was read from, so that a change can be seen.
    pub files: Vec<PathBuf>,
}

// === impl Corefile ===

impl Corefile {
    /// Reads a Corefile and all that it imports. The second half says what is wrong; the first is of use only when
    /// nothing is, but for the files.
    pub fn read(file: &Path, surroundings: &dyn Surroundings) -> (Self, Vec<Problem>) {
        let mut problems = Vec::new();
        let parsed = parse::parse(file, surroundings, &mut problems);
        let servers: Vec<Server> = parsed
            .blocks
            .iter()
            .filter_map(|block| Server::read(block, &mut problems))
            .collect();
        twice(&servers, &mut problems);
        if servers.is_empty() && problems.is_empty() {
            let place = Place {
                file: file.display().to_string().into(),
                line: 1,
            };
            problems.push(Problem::at(&place, "", "there is no server block").advise("write one such as .:53 { ... }"));
        }
        let files = parsed.files;
        (Self { servers, files }, problems)
    }
}

/// Two server blocks for the same zone, port and address contradict each other.
fn twice(servers: &[Server], problems: &mut Vec<Problem>) {
    let mut seen = BTreeSet::new();
    for server in servers {
        let anywhere = [IpAddr::from([0; 4])];
        let addresses = if server.bind.is_empty() {
            &anywhere[..]
        } else {
            &server.bind
        };
        for key in &server.keys {
            for (zone, address) in key
                .zones
                .iter()
                .flat_map(|zone| addresses.iter().map(move |a| (zone, a)))
            {
                if !seen.insert((key.scheme, zone.clone(), key.port, *address)) {
                    let zone = crate::zone::names::text(zone);
                    let what = format!("a second server block for {zone} on port {}", key.port);
                    problems.push(Problem::at(&server.place, "", what).advise("make one of the two"));
                }
            }
        }
    }
}

/// The file system and environment of this process.
#[derive(Clone, Debug, Default)]
pub struct Machine {
    /// What stands for what in the template of NodeLocal DNSCache.
    pub pillars: Vec<(&'static str, String)>,
}

impl Surroundings for Machine {
    fn read(&self, file: &Path) -> std::io::Result<String> {
        std::fs::read_to_string(file)
    }

    fn glob(&self, pattern: &Path) -> Vec<PathBuf> {
        let Some(wanted) = pattern.file_name().and_then(|name| name.to_str()) else {
            return Vec::new();
        };
        let folder = pattern.parent().filter(|folder| !folder.as_os_str().is_empty());
        let Ok(entries) = std::fs::read_dir(folder.unwrap_or(Path::new("."))) else {
            return Vec::new();
        };
        let mut found: Vec<PathBuf> = entries
            .flatten()
            .filter(|entry| entry.file_name().to_str().is_some_and(|name| fits(wanted, name)))
            .map(|entry| pattern.with_file_name(entry.file_name()))
            .filter(|file| file.is_file())
            .collect();
        found.sort();
        found
    }

    fn variable(&self, name: &str) -> Option<String> {
        let pillar = self.pillars.iter().find(|(known, _)| *known == name);
        pillar
            .map(|(_, value)| value.clone())
            .or_else(|| std::env::var(name).ok())
    }
}

/// Whether a name fits a pattern in which `*` stands for anything. Hidden files do not fit.
fn fits(pattern: &str, name: &str) -> bool {
    if name.starts_with('.') && !pattern.starts_with('.') {
        return false;
    }
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = name.strip_prefix(first) else {
        return false;
    };
    let parts: Vec<&str> = parts.collect();
    let Some((last, middle)) = parts.split_last() else {
        return rest.is_empty();
    };
    for part in middle {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests;
