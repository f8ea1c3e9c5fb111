//! One line of a `check` step: `from -> target => expectation`. The grammar is in `tests/README.md`.

use std::fmt;

use anyhow::{Context as _, Result, bail, ensure};

/// One check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// The line as it was written.
    pub text: String,
    /// Who asks: a pod, a machine, or the name of something that an earlier step opened.
    pub from: String,
    /// What is asked; `None` for something opened earlier.
    pub target: Option<Target>,
    /// What must come of it.
    pub expect: Expect,
}

/// What a check asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// Connections or datagrams.
    Connect(Connect),
    /// A page.
    Http(String),
    /// An echo request.
    Ping(String),
    /// A DNS query.
    Dns {
        /// The record type.
        kind: String,
        /// The name, taken as fully qualified.
        name: String,
        /// The server; the cluster's DNS Service when `None`.
        server: Option<String>,
        /// Over TCP.
        tcp: bool,
    },
}

/// Connections or datagrams to one place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Connect {
    /// Datagrams.
    pub udp: bool,
    /// An address, a machine (`node-1`, `node-1/v6`), a pod (`pod/web-1`) or a name.
    pub host: String,
    /// The port.
    pub port: u16,
    /// Sends from this port.
    pub source_port: Option<u16>,
    /// Sends from this address.
    pub source: Option<String>,
    /// Sends so many bytes, and wants as many back.
    pub size: usize,
    /// The kind of socket, when it is not the usual one.
    pub socket: Option<SocketKind>,
}

/// A kind of socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SocketKind {
    /// Datagrams are sent with an address each, and the answer must come from that address.
    Unconnected,
    /// An IPv6 socket that asks an IPv4 address.
    Mapped,
}

/// What must come of a check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expect {
    /// These servers answer.
    Answers(Answers),
    /// The attempt fails in this way.
    Fails(Failing),
    /// So many attempts fail in this way, one after the other.
    FailsAlways(Failing, u32),
    /// The echo reply comes.
    Reply,
    /// A page with this status and this text in its body.
    Page {
        /// The status.
        status: u16,
        /// A part of the body.
        body: Option<String>,
    },
    /// A DNS response.
    Dns(DnsExpect),
}

/// Which servers answer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Answers {
    /// Their names; none when only their number is known.
    pub names: Vec<String>,
    /// How many of them there are.
    pub count: usize,
    /// How the answers spread over them.
    pub spread: Spread,
    /// Which client address they see: a pod, a machine (any of its addresses) or an address.
    pub source: Option<String>,
}

/// How answers spread over servers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Spread {
    /// Every one of them answers, and no other.
    #[default]
    All,
    /// Every one of them, in roughly equal parts.
    Even,
    /// Some of them, and no other.
    Any,
    /// One of them gives every answer.
    One,
}

/// In what way an attempt fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failing {
    /// A refusal comes back.
    Refused,
    /// Nothing comes back; or the sender's own kernel drops the packet and says so.
    Timeout,
    /// The connection is cut.
    Reset,
    /// No route to it.
    Unreachable,
    /// In any way.
    AnyWay,
}

/// What a DNS response holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DnsExpect {
    /// The response code.
    pub rcode: String,
    /// The answer section in any order: data alone for the type that was asked, `TYPE data` for another.
    pub records: Vec<String>,
    /// The number of answers, when the records themselves are not named.
    pub count: Option<usize>,
    /// The TTL of every answer.
    pub ttl: Option<u32>,
    /// Flags that must be set: `aa`, `tc`.
    pub flags: Vec<String>,
    /// Whether the authority section must hold a SOA record.
    pub soa: bool,
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

// === impl Check ===

impl Check {
    /// Reads `from -> target => expectation`, or `opened => expectation`.
    ///
    /// # Errors
    /// When the line is not of that form; the message quotes it.
    pub fn parse(line: &str) -> Result<Self> {
        Self::read(line).with_context(|| format!("check {line:?}"))
    }

    /// Reads `from -> target`, for connections that are opened now and checked later.
    ///
    /// # Errors
    /// When the line is not of that form.
    pub fn parse_target(line: &str) -> Result<Self> {
        let read = || -> Result<Self> {
            let (from, target) = line.split_once("->").context("there is no `->`")?;
            let target = Target::parse(target.trim())?;
            ensure!(
                matches!(target, Target::Connect(_)),
                "only connections and datagrams can be opened"
            );
            let expect = Expect::Answers(Answers::default());
            Ok(Self {
                text: line.to_owned(),
                from: from.trim().to_owned(),
                target: Some(target),
                expect,
            })
        };
        read().with_context(|| format!("{line:?}"))
    }

    /// Whether it asks for a name.
    pub fn needs_dns(&self) -> bool {
        match &self.target {
            Some(Target::Dns { server, .. }) => server.is_none(),
            Some(Target::Connect(connect)) => connect.is_name(),
            _ => false,
        }
    }

    fn read(line: &str) -> Result<Self> {
        let mut sides = line.split("=>");
        let (Some(left), Some(right), None) = (sides.next(), sides.next(), sides.next()) else {
            bail!("there must be one `=>`");
        };
        let (from, target) = match left.split_once("->") {
            Some((from, target)) => (from, Some(Target::parse(target.trim())?)),
            None => (left, None),
        };
        let from = from.trim().to_owned();
        ensure!(!from.is_empty() && !from.contains(' '), "{from:?} is no name");
        let expect = Expect::parse(right.trim(), target.as_ref())?;
        Ok(Self {
            text: line.to_owned(),
            from,
            target,
            expect,
        })
    }
}

// === impl Target ===

impl Target {
    fn parse(text: &str) -> Result<Self> {
        let words: Vec<&str> = text.split_whitespace().collect();
        match words.as_slice() {
            ["http", url] => Ok(Self::Http(format!("http://{}", url.trim_start_matches("http://")))),
            ["ping", host] => Ok(Self::Ping((*host).to_owned())),
            ["dns", "tcp", rest @ ..] => Self::dns(rest, true),
            ["dns", rest @ ..] => Self::dns(rest, false),
            ["udp", rest @ ..] => Connect::parse(rest, true).map(Self::Connect),
            ["tcp", rest @ ..] => Connect::parse(rest, false).map(Self::Connect),
            rest => Connect::parse(rest, false).map(Self::Connect),
        }
    }

    fn dns(words: &[&str], tcp: bool) -> Result<Self> {
        let (kind, name, server) = match words {
            [kind, name] => (kind, name, None),
            [kind, name, server] => (
                kind,
                name,
                Some(server.strip_prefix('@').context("the server is written @address")?),
            ),
            _ => bail!("a DNS query is `dns TYPE NAME` with `@server` if need be"),
        };
        ensure!(
            kind.chars().all(|c| c.is_ascii_uppercase()),
            "{kind:?} is no record type"
        );
        let (kind, name) = ((*kind).to_owned(), (*name).to_owned());
        Ok(Self::Dns {
            kind,
            name,
            server: server.map(str::to_owned),
            tcp,
        })
    }
}

// === impl Connect ===

impl Connect {
    /// Whether the host is a name that DNS has to resolve.
    pub fn is_name(&self) -> bool {
        let host = self.host.trim_matches(['[', ']']);
        let machine = host.starts_with("node-") || host.starts_with("outside") || host == "localhost";
        !machine && !host.starts_with("pod/") && host.parse::<std::net::IpAddr>().is_err()
    }

    fn parse(words: &[&str], udp: bool) -> Result<Self> {
        let Some((place, options)) = words.split_first() else {
            bail!("there is no target after `->`")
        };
        let (host, port) = place
            .rsplit_once(':')
            .with_context(|| format!("{place:?} is not host:port"))?;
        let port = port.parse().with_context(|| format!("{port:?} is no port"))?;
        let mut connect = Self {
            udp,
            host: host.to_owned(),
            port,
            source_port: None,
            source: None,
            size: 0,
            socket: None,
        };
        let mut rest = options;
        while let [word, value, tail @ ..] = rest {
            match *word {
                "port" => connect.source_port = Some(value.parse().with_context(|| format!("{value:?} is no port"))?),
                "from" => connect.source = Some((*value).to_owned()),
                "size" => connect.size = value.parse().with_context(|| format!("{value:?} is no size"))?,
                "socket" => {
                    connect.socket = Some(match *value {
                        "unconnected" => SocketKind::Unconnected,
                        "mapped" => SocketKind::Mapped,
                        other => bail!("{other:?} is neither unconnected nor mapped"),
                    });
                }
                other => bail!("{other:?} is none of `port N`, `from ADDRESS`, `size BYTES`, `socket KIND`"),
            }
            rest = tail;
        }
        ensure!(rest.is_empty(), "{:?} has no value", rest.join(" "));
        Ok(connect)
    }
}

// === impl Expect ===

impl Expect {
    fn parse(text: &str, target: Option<&Target>) -> Result<Self> {
        ensure!(!text.is_empty(), "there is nothing after `=>`");
        match target {
            Some(Target::Dns { .. }) => DnsExpect::parse(text).map(Self::Dns),
            Some(Target::Http(_)) if text.starts_with(|c: char| c.is_ascii_digit()) => {
                let (status, body) = text
                    .split_once(", body ")
                    .map_or((text, None), |(s, b)| (s, Some(b.to_owned())));
                Ok(Self::Page {
                    status: status.trim().parse().context("the status is a number")?,
                    body,
                })
            }
            Some(Target::Ping(_)) if text == "reply" => Ok(Self::Reply),
            _ => match text.split_whitespace().collect::<Vec<_>>()[..] {
                [word, count, "times"] if let Some(failing) = Failing::parse(word) => {
                    let count = count.parse().context("the number of attempts is a number")?;
                    Ok(Self::FailsAlways(failing, count))
                }
                _ => match Failing::parse(text) {
                    Some(failing) => Ok(Self::Fails(failing)),
                    None => Answers::parse(text).map(Self::Answers),
                },
            },
        }
    }
}

// === impl Failing ===

impl Failing {
    fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "refused" => Self::Refused,
            "timeout" => Self::Timeout,
            "reset" => Self::Reset,
            "unreachable" => Self::Unreachable,
            "fails" => Self::AnyWay,
            _ => return None,
        })
    }
}

// === impl Answers ===

impl Answers {
    fn parse(text: &str) -> Result<Self> {
        let mut clauses = text.split(',').map(str::trim);
        let mut answers = Self::default();
        let first = clauses.next().unwrap_or_default();
        let names = if let Some(rest) = first.strip_prefix("any of ") {
            answers.spread = Spread::Any;
            rest
        } else if let Some(rest) = first.strip_prefix("one of ") {
            answers.spread = Spread::One;
            rest
        } else {
            first
        };
        if let [number, "servers"] = names.split_whitespace().collect::<Vec<_>>()[..] {
            answers.count = number.parse().context("the number of servers is a number")?;
        } else {
            answers.names = names.split_whitespace().map(str::to_owned).collect();
            answers.count = answers.names.len();
        }
        ensure!(answers.count > 0, "no server is named");
        for clause in clauses {
            match clause.split_whitespace().collect::<Vec<_>>()[..] {
                ["even"] => answers.spread = Spread::Even,
                ["source", source] => answers.source = Some(source.to_owned()),
                _ => bail!("{clause:?} is none of `even`, `source NAME`"),
            }
        }
        Ok(answers)
    }
}

// === impl DnsExpect ===

impl DnsExpect {
    fn parse(text: &str) -> Result<Self> {
        let mut expect = Self {
            rcode: "NOERROR".to_owned(),
            ..Self::default()
        };
        for clause in text.split(',').map(str::trim) {
            match clause.split_whitespace().collect::<Vec<_>>()[..] {
                [rcode @ ("NXDOMAIN" | "SERVFAIL" | "REFUSED" | "FORMERR" | "NOTIMP")] => {
                    rcode.clone_into(&mut expect.rcode);
                }
                ["NODATA"] => expect.rcode = "NOERROR".to_owned(),
                ["ttl", seconds] => expect.ttl = Some(seconds.parse().context("the TTL is a number")?),
                [flag @ ("aa" | "tc" | "ra")] => expect.flags.push(flag.to_owned()),
                ["soa"] => expect.soa = true,
                [number, "records"] => {
                    expect.count = Some(number.parse().context("the number of records is a number")?);
                }
                [] => bail!("an empty clause"),
                ref words => expect.records.push(words.join(" ")),
            }
        }
        expect.records.sort();
        Ok(expect)
    }
}

#[cfg(test)]
mod tests;
