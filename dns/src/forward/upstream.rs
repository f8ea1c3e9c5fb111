//! Which upstreams there are: named on the command line, in a Corefile or in a resolv.conf that is followed live, and
//! how each has been doing.
//!
//! An upstream that is this server itself is refused: its queries would go round for ever.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use thiserror::Error;

use super::https::Https;
use super::spec::Target;
use super::stream::Stream;

/// Upstreams of a resolv.conf beyond these are not asked (CoreDNS's limit).
const MAX_UPSTREAMS: usize = 15;
/// An upstream that has not answered for so long gets company, at most and at least.
const HEDGE: (Duration, Duration) = (Duration::from_millis(150), Duration::from_millis(30));
const DNS_PORT: u16 = 53;

/// An upstream that is this server.
#[derive(Debug, Error)]
#[error(
    "upstream {0} is this server itself: queries would go round for ever; name another upstream, or the resolv.conf of the node \
     (with systemd-resolved /run/systemd/resolve/resolv.conf)"
)]
pub struct LoopError(pub Target);

/// One upstream and how it has been doing.
#[derive(Debug)]
pub struct Upstream {
    /// Where it listens, and how it is spoken to.
    pub target: Target,
    pub(super) stream: Stream,
    pub(super) https: Https,
    /// Failures since the last answer.
    failures: AtomicU32,
    /// Smoothed time of an answer, in microseconds; 0: not known.
    took: AtomicU32,
    /// Its queries come back to us.
    looping: AtomicBool,
    /// It answers in another letter case than it was asked in.
    folds_case: AtomicBool,
    /// Someone probes it.
    probed: AtomicBool,
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
pub fn without_loops(upstreams: Vec<Target>, listening: &[SocketAddr]) -> (Vec<Target>, Vec<LoopError>) {
    let mut refused = Vec::new();
    let kept = upstreams.into_iter().filter(|upstream| {
        let own = listening.iter().any(|listen| reaches(upstream.address, *listen));
        if own {
            refused.push(LoopError(upstream.clone()));
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
    pub fn new(target: Target) -> Self {
        Self {
            target,
            stream: Stream::default(),
            https: Https::default(),
            failures: AtomicU32::new(0),
            took: AtomicU32::new(0),
            looping: AtomicBool::new(false),
            folds_case: AtomicBool::new(false),
            probed: AtomicBool::new(false),
        }
    }

    /// Notes an answer and how long it took.
    pub fn answered(&self, took: Duration) {
        self.failures.store(0, Ordering::Relaxed);
        let new = u32::try_from(took.as_micros()).unwrap_or(u32::MAX).max(1);
        let old = self.took.load(Ordering::Relaxed);
        let smoothed = if old == 0 { new } else { old - old / 8 + new / 8 };
        self.took.store(smoothed.max(1), Ordering::Relaxed);
    }

    /// Notes that no answer came. True when that makes `max_fails` in a row.
    pub fn failed(&self, max_fails: u32) -> bool {
        self.failures.fetch_add(1, Ordering::Relaxed).saturating_add(1) == max_fails
    }

    /// Whether it should be asked last.
    pub fn is_down(&self, max_fails: u32) -> bool {
        max_fails > 0 && self.failures.load(Ordering::Relaxed) >= max_fails
    }

    /// How long to wait before another is asked as well: several times what it usually takes.
    pub fn hedge_after(&self) -> Duration {
        match self.took.load(Ordering::Relaxed) {
            0 => HEDGE.0,
            took => (Duration::from_micros(took.into()) * 6).clamp(HEDGE.1, HEDGE.0),
        }
    }

    /// Whether its queries come back to us.
    pub fn is_looping(&self) -> bool {
        self.looping.load(Ordering::Relaxed)
    }

    /// Notes whether its queries come back to us. True when that is news.
    pub fn set_looping(&self, looping: bool) -> bool {
        self.looping.swap(looping, Ordering::Relaxed) != looping
    }

    /// Whether it answers in the letter case that it was asked in, as far as is known.
    pub fn keeps_case(&self) -> bool {
        !self.folds_case.load(Ordering::Relaxed)
    }

    /// Notes over a stream, where nobody can forge it, that it does not keep letter case.
    pub fn folds_case(&self) {
        if !self.folds_case.swap(true, Ordering::Relaxed) {
            tracing::info!(upstream = %self.target, "the upstream does not keep letter case; going on without that check");
        }
    }

    /// Takes the right to probe it; false when someone has it.
    pub fn begin_probing(&self) -> bool {
        !self.probed.swap(true, Ordering::Relaxed)
    }

    /// Gives that right back.
    pub fn end_probing(&self) {
        self.probed.store(false, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
            let (kept, refused) = without_loops(
                vec![Target::plain(upstream.parse().unwrap())],
                &[listen.parse().unwrap()],
            );
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
    fn an_upstream_is_down_after_its_failures() {
        let upstream = Upstream::new(Target::plain("192.0.2.1:53".parse().unwrap()));
        assert!(!upstream.failed(2) && !upstream.is_down(2));
        assert!(upstream.failed(2) && upstream.is_down(2) && !upstream.is_down(0));
        assert!(!upstream.failed(2));
        upstream.answered(Duration::from_millis(1));
        assert!(!upstream.is_down(2));
        assert_eq!(upstream.hedge_after(), HEDGE.1);
        let slow = Upstream::new(Target::plain("192.0.2.2:53".parse().unwrap()));
        assert_eq!(slow.hedge_after(), HEDGE.0);
        slow.answered(Duration::from_secs(1));
        assert_eq!(slow.hedge_after(), HEDGE.0);
    }
}
