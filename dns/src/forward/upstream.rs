//! Which upstreams there are: named on the command line or in a resolv.conf that is followed live.
//!
//! An upstream that is this server itself is refused: its queries would go round for ever.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use thiserror::Error;

/// Upstreams of a resolv.conf beyond these are not asked (CoreDNS's limit).
const MAX_UPSTREAMS: usize = 15;
/// Failures in a row after which an upstream is asked last (CoreDNS's `max_fails`).
const MAX_FAILS: u32 = 2;
/// After this time an upstream that failed is asked in its turn again.
const RETRY_AFTER: Duration = Duration::from_secs(10);
const DNS_PORT: u16 = 53;

/// Where upstreams are named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// On the command line.
    Addresses(Vec<SocketAddr>),
    /// In a file.
    ResolvConf(PathBuf),
}

/// Why upstreams cannot be used.
#[derive(Debug, Error)]
pub enum UpstreamError {
    /// It is neither an address nor a file name.
    #[error("--upstream {0:?} is neither an address such as 192.0.2.1, 192.0.2.1:5353 or [2001:db8::1]:53 nor a path")]
    Unreadable(String),
    /// Addresses and a file, or two files.
    #[error("--upstream takes either addresses or one resolv.conf, not both")]
    Mixed,
    /// It is this server.
    #[error(
        "upstream {0} is this server itself: queries would go round for ever; name another upstream, or the \
         resolv.conf of the node (with systemd-resolved /run/systemd/resolve/resolv.conf)"
    )]
    Loop(SocketAddr),
    /// The file cannot be read.
    #[error("cannot read upstreams from {}: {cause}", file.display())]
    File {
        /// The file.
        file: PathBuf,
        /// Why not.
        #[source]
        cause: std::io::Error,
    },
}

/// One upstream and how it has been doing.
#[derive(Debug)]
pub struct Upstream {
    /// Where it listens.
    pub address: SocketAddr,
    /// Failures since the last answer.
    failures: AtomicU32,
    /// When the last failure was, in milliseconds since `epoch`.
    failed_at: AtomicU64,
    epoch: Instant,
}

// === impl Source ===

impl Source {
    /// Reads the values of `--upstream`.
    ///
    /// # Errors
    /// Says which value is wrong.
    pub fn parse(values: &[String]) -> Result<Self, UpstreamError> {
        let mut addresses = Vec::new();
        let mut file = None;
        for value in values {
            match parse_address(value) {
                Some(address) => addresses.push(address),
                None if !value.contains('/') => return Err(UpstreamError::Unreadable(value.clone())),
                None if file.is_some() => return Err(UpstreamError::Mixed),
                None => file = Some(PathBuf::from(value)),
            }
        }
        match file {
            Some(_) if !addresses.is_empty() => Err(UpstreamError::Mixed),
            Some(file) => Ok(Self::ResolvConf(file)),
            None => Ok(Self::Addresses(addresses)),
        }
    }

    /// The upstreams that are named now.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn read(&self) -> Result<Vec<SocketAddr>, UpstreamError> {
        match self {
            Self::Addresses(addresses) => Ok(addresses.clone()),
            Self::ResolvConf(file) => {
                let text = std::fs::read_to_string(file).map_err(|cause| UpstreamError::File {
                    file: file.clone(),
                    cause,
                })?;
                Ok(parse_resolv_conf(&text))
            }
        }
    }

    /// The file that is to be followed.
    pub fn file(&self) -> Option<&Path> {
        match self {
            Self::Addresses(_) => None,
            Self::ResolvConf(file) => Some(file),
        }
    }
}

fn parse_address(text: &str) -> Option<SocketAddr> {
    let bare = text
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
        .unwrap_or(text);
    let ip = || bare.parse::<IpAddr>().ok();
    text.parse()
        .ok()
        .or_else(|| ip().map(|ip| SocketAddr::new(ip, DNS_PORT)))
}

/// The `nameserver` lines, in order. What cannot be read is passed over, as resolvers do.
pub fn parse_resolv_conf(text: &str) -> Vec<SocketAddr> {
    let mut found = Vec::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        if words.next() != Some("nameserver") {
            continue;
        }
        let Some(word) = words.next() else { continue };
        let word = word.split('%').next().unwrap_or(word);
        if let Ok(ip) = word.parse::<IpAddr>() {
            let address = SocketAddr::new(ip, DNS_PORT);
            if !found.contains(&address) && found.len() < MAX_UPSTREAMS {
                found.push(address);
            }
        }
    }
    found
}

/// Parts upstreams from those that are this server itself, given where it listens.
pub fn without_loops(upstreams: Vec<SocketAddr>, listening: &[SocketAddr]) -> (Vec<SocketAddr>, Vec<UpstreamError>) {
    let mut refused = Vec::new();
    let kept = upstreams.into_iter().filter(|upstream| {
        let own = listening.iter().any(|listen| reaches(*upstream, *listen));
        if own {
            refused.push(UpstreamError::Loop(*upstream));
        }
        !own
    });
    (kept.collect(), refused)
}

fn reaches(upstream: SocketAddr, listen: SocketAddr) -> bool {
    if upstream.port() != listen.port() || upstream.is_ipv4() != listen.is_ipv4() {
        return false;
    }
    let own = |ip: IpAddr| ip.is_loopback() || ip.is_unspecified() || is_local(ip);
    upstream.ip() == listen.ip()
        || (listen.ip().is_unspecified() && own(upstream.ip()))
        || (upstream.ip().is_unspecified() && own(listen.ip()))
}

/// Whether an address is one of this machine's: only those can be bound.
fn is_local(ip: IpAddr) -> bool {
    std::net::UdpSocket::bind(SocketAddr::new(ip, 0)).is_ok()
}

/// An unspecified address of the family of another one, to send from.
pub fn any_of(address: SocketAddr) -> SocketAddr {
    let ip = if address.is_ipv4() {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED)
    } else {
        IpAddr::V6(Ipv6Addr::UNSPECIFIED)
    };
    SocketAddr::new(ip, 0)
}

// === impl Upstream ===

impl Upstream {
    /// An upstream of which nothing is known yet.
    pub fn new(address: SocketAddr) -> Self {
        Self {
            address,
            failures: AtomicU32::new(0),
            failed_at: AtomicU64::new(0),
            epoch: Instant::now(),
        }
    }

    /// Notes an answer.
    pub fn answered(&self) {
        self.failures.store(0, Ordering::Relaxed);
    }

    /// Notes that no answer came. True when it is now counted as down and was not before.
    pub fn failed(&self) -> bool {
        self.failed_at
            .store(self.epoch.elapsed().as_millis() as u64, Ordering::Relaxed);
        self.failures.fetch_add(1, Ordering::Relaxed) + 1 == MAX_FAILS
    }

    /// Whether it should be asked last.
    pub fn is_down(&self) -> bool {
        let since = Duration::from_millis(self.failed_at.load(Ordering::Relaxed));
        self.failures.load(Ordering::Relaxed) >= MAX_FAILS && self.epoch.elapsed().saturating_sub(since) < RETRY_AFTER
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn upstreams_are_read_from_flags() {
        let parse = |values: &[&str]| Source::parse(&values.iter().map(|v| (*v).to_owned()).collect::<Vec<_>>());
        let addresses = |list: &[&str]| Source::Addresses(list.iter().map(|a| a.parse().unwrap()).collect());
        assert_eq!(
            parse(&["192.0.2.1", "192.0.2.2:5353"]).unwrap(),
            addresses(&["192.0.2.1:53", "192.0.2.2:5353"])
        );
        assert_eq!(
            parse(&["2001:db8::1", "[2001:db8::2]"]).unwrap(),
            addresses(&["[2001:db8::1]:53", "[2001:db8::2]:53"])
        );
        assert_eq!(
            parse(&["/etc/resolv.conf"]).unwrap(),
            Source::ResolvConf("/etc/resolv.conf".into())
        );
        assert!(matches!(parse(&["dns.example.com"]), Err(UpstreamError::Unreadable(_))));
        assert!(matches!(
            parse(&["192.0.2.1", "/etc/resolv.conf"]),
            Err(UpstreamError::Mixed)
        ));
    }

    #[test]
    fn resolv_conf_is_read_as_resolvers_do() {
        let text = "# comment\nsearch example.com\nnameserver 192.0.2.1\nnameserver\nnameserver x\n\
                    nameserver fe80::1%eth0\n nameserver 192.0.2.1\noptions ndots:5\n";
        let found: Vec<String> = parse_resolv_conf(text).iter().map(ToString::to_string).collect();
        assert_eq!(found, ["192.0.2.1:53", "[fe80::1]:53"]);
    }

    #[test]
    fn this_server_is_no_upstream() {
        let refused = |upstream: &str, listen: &str| {
            let (kept, refused) = without_loops(vec![upstream.parse().unwrap()], &[listen.parse().unwrap()]);
            assert_eq!(kept.len() + refused.len(), 1);
            !refused.is_empty()
        };
        assert!(refused("127.0.0.1:53", "0.0.0.0:53"));
        assert!(refused("127.0.0.53:53", "0.0.0.0:53"));
        assert!(refused("127.0.0.1:5353", "127.0.0.1:5353"));
        assert!(refused("[::1]:53", "[::]:53"));
        assert!(refused("0.0.0.0:53", "127.0.0.1:53"));
        assert!(!refused("127.0.0.1:53", "0.0.0.0:5353"));
        assert!(!refused("127.0.0.53:53", "127.0.0.1:53"));
        assert!(!refused("192.0.2.1:53", "0.0.0.0:53"));
    }

    #[test]
    fn an_upstream_is_down_after_two_failures() {
        let upstream = Upstream::new("192.0.2.1:53".parse().unwrap());
        assert!(!upstream.failed() && !upstream.is_down());
        assert!(upstream.failed() && upstream.is_down());
        assert!(!upstream.failed());
        upstream.answered();
        assert!(!upstream.is_down());
    }
}
