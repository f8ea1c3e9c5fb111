//! One line of a plugin, read word by word. What is wrong becomes a [`Problem`]; reading goes on.

use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::time::Duration;

use super::Problem;
use super::lex::{Place, Word};
use super::parse::Directive;
use crate::zone::config::Domain;

/// A zone's name in wire form and lower case.
pub type ZoneName = Box<[u8]>;

/// A line whose words are taken from the left.
pub struct Line<'a> {
    /// The plugin that it belongs to, for problems.
    pub plugin: &'a str,
    /// The first word.
    pub name: &'a Word,
    args: &'a [Word],
    /// Lines of its block.
    pub body: &'a [Directive],
    problems: &'a mut Vec<Problem>,
}

// === impl Line ===

impl<'a> Line<'a> {
    /// A directive of a server block.
    pub fn new(directive: &'a Directive, problems: &'a mut Vec<Problem>) -> Self {
        Self {
            plugin: &directive.name.text,
            name: &directive.name,
            args: &directive.args,
            body: &directive.body,
            problems,
        }
    }

    /// The lines of its block, each given to `read`.
    pub fn each(&mut self, mut read: impl FnMut(&mut Line<'_>)) {
        for directive in self.body {
            let mut line = Line {
                plugin: self.plugin,
                name: &directive.name,
                args: &directive.args,
                body: &directive.body,
                problems: self.problems,
            };
            read(&mut line);
            if !line.body.is_empty() {
                line.say("has a block, which it never has", "remove the block");
            }
        }
    }

    /// Where it stands.
    pub fn place(&self) -> &Place {
        &self.name.place
    }

    /// Notes a problem with this line.
    pub fn say(&mut self, what: impl AsRef<str>, advice: impl Into<String>) {
        let option = if self.plugin == self.name.text {
            String::new()
        } else {
            format!("{} ", self.name.text)
        };
        let problem = Problem::at(&self.name.place, self.plugin, format!("{option}{}", what.as_ref()));
        self.problems.push(problem.advise(advice));
    }

    /// An option that the plugin does not have here.
    pub fn unknown(&mut self, known: &str) {
        let what = format!("has no option {:?}", self.name.text);
        let problem = Problem::at(&self.name.place, self.plugin, what);
        self.problems
            .push(problem.advise(format!("it has {known}; remove the line")));
    }

    /// The next word.
    pub fn word(&mut self) -> Option<&'a str> {
        let (first, rest) = self.args.split_first()?;
        self.args = rest;
        Some(&first.text)
    }

    /// The next word without taking it.
    pub fn peek(&self) -> Option<&'a str> {
        self.args.first().map(|word| word.text.as_str())
    }

    /// The next word, which must be there.
    pub fn one(&mut self, what: &str) -> Option<&'a str> {
        let word = self.word();
        if word.is_none() {
            self.say(format!("lacks {what}"), format!("give {what}"));
        }
        word
    }

    /// All words that are left.
    pub fn rest(&mut self) -> Vec<&'a str> {
        std::iter::from_fn(|| self.word()).collect()
    }

    /// Says so if words are left.
    pub fn end(&mut self) {
        if let Some(word) = self.word() {
            self.say(format!("takes no {word:?} here"), "remove it");
        }
    }

    /// The next word as a number or the like.
    pub fn parse<T: FromStr>(&mut self, what: &str) -> Option<T> {
        let word = self.one(what)?;
        let value = word.parse().ok();
        if value.is_none() {
            self.say(format!("{word:?} is not {what}"), format!("give {what}"));
        }
        value
    }

    /// The next word as a duration such as `5s`, `1m30s`, `500ms`; a bare number is seconds.
    pub fn duration(&mut self) -> Option<Duration> {
        let word = self.one("a duration such as 5s")?;
        let value = parse_duration(word);
        if value.is_none() {
            self.say(format!("{word:?} is no duration"), "write one such as 5s, 500ms or 1h");
        }
        value
    }

    /// The next word as an address to listen on: `:8080`, `127.0.0.1:8080`, `localhost:8080`.
    pub fn listen(&mut self, what: &str) -> Option<SocketAddr> {
        let word = self.one(what)?;
        let value = parse_listen(word);
        if value.is_none() {
            self.say(
                format!("{word:?} is no address"),
                "write one such as :8080 or 127.0.0.1:8080",
            );
        }
        value
    }

    /// The words that are left, as zones in wire form.
    pub fn zones(&mut self) -> Vec<ZoneName> {
        self.domains().iter().map(|domain| domain.wire().into()).collect()
    }

    /// The words that are left, as zones. A range of addresses is its reverse zones.
    pub fn domains(&mut self) -> Vec<Domain> {
        let mut found = Vec::new();
        for word in self.rest() {
            match domains(word) {
                Some(zones) => found.extend(zones),
                None => self.say(
                    format!("{word:?} is no zone"),
                    "write one such as cluster.local or 10.0.0.0/8",
                ),
            }
        }
        found
    }
}

/// Reads durations as Go writes them; a bare number is seconds.
pub fn parse_duration(text: &str) -> Option<Duration> {
    if let Ok(seconds) = text.parse::<u32>() {
        return Some(Duration::from_secs(seconds.into()));
    }
    let mut total = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, unit) = rest.split_at(digits);
        let letters = unit.find(|c: char| c.is_ascii_digit()).unwrap_or(unit.len());
        let (unit, after) = unit.split_at(letters);
        let seconds = match unit {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" => 1e-6,
            "ns" => 1e-9,
            _ => return None,
        };
        let part = Duration::try_from_secs_f64(number.parse::<f64>().ok()? * seconds).ok()?;
        total = total.checked_add(part)?;
        rest = after;
    }
    (!text.is_empty()).then_some(total)
}

/// Reads an address to listen on.
pub fn parse_listen(text: &str) -> Option<SocketAddr> {
    if let Ok(address) = text.parse() {
        return Some(address);
    }
    let (host, port) = text.rsplit_once(':')?;
    let ip: IpAddr = match host {
        "" => [0, 0, 0, 0].into(),
        "localhost" => [127, 0, 0, 1].into(),
        _ => return None,
    };
    Some(SocketAddr::new(ip, port.parse().ok()?))
}

/// A zone, or the reverse zones of a range of addresses. A slash stands in ranges only.
fn domains(text: &str) -> Option<Vec<Domain>> {
    if text.contains('/') && portolan_model::parse::parse_cidr(text).is_err() {
        return None;
    }
    Domain::of(text).ok()
}

/// A zone in wire form, or the reverse zones of a range of addresses.
pub fn parse_zone(text: &str) -> Option<Vec<ZoneName>> {
    Some(domains(text)?.iter().map(|domain| domain.wire().into()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::zone::names::text;

    #[test]
    fn durations_are_go_durations() {
        let check = |text: &str, millis: Option<u64>| {
            assert_eq!(parse_duration(text), millis.map(Duration::from_millis), "{text}");
        };
        check("5s", Some(5000));
        check("1m30s", Some(90_000));
        check("0.5s", Some(500));
        check("500ms", Some(500));
        check("30", Some(30_000));
        check("1h", Some(3_600_000));
        for wrong in ["", "s", "5x", "5s5", "-1s", "1e400h"] {
            check(wrong, None);
        }
    }

    #[test]
    fn zones_and_ranges_are_read() {
        let check = |given: &str, expect: &[&str]| {
            let zones = parse_zone(given).unwrap_or_default();
            assert_eq!(
                zones.iter().map(|zone| text(zone)).collect::<Vec<_>>(),
                expect,
                "{given}"
            );
        };
        check("Cluster.Local.", &["cluster.local."]);
        check(".", &["."]);
        check("10.0.0.0/8", &["10.in-addr.arpa."]);
        check("10.96.0.0/15", &["96.10.in-addr.arpa.", "97.10.in-addr.arpa."]);
        check("fd00:96::/32", &["6.9.0.0.0.0.d.f.ip6.arpa."]);
        check("10.0.0.0/0", &["in-addr.arpa."]);
        check("10.0.0.0/33", &[]);
        check("a..b", &[]);
    }
}
