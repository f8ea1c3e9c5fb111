//! What forwarding is told: upstreams, how to speak to them, in what order, within which bounds.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// How an upstream is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Transport {
    /// UDP, and TCP when the answer is cut.
    Dns,
    /// DNS over TLS (RFC 7858).
    Tls,
    /// DNS over HTTPS (RFC 8484).
    Https,
}

/// One upstream as it was named.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Target {
    /// Where it listens.
    pub address: SocketAddr,
    /// How it is spoken to.
    pub transport: Transport,
    /// The name that its certificate must have; its address when none is given.
    pub server_name: Option<String>,
    /// The path of DNS over HTTPS.
    pub path: String,
}

/// Which upstream is asked first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Policy {
    /// Any.
    #[default]
    Random,
    /// Each in its turn.
    RoundRobin,
    /// The first one that is well.
    Sequential,
}

/// How upstreams are asked. The defaults are CoreDNS's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// TCP even for what fits into a datagram.
    pub force_tcp: bool,
    /// UDP also for clients that came over TCP, which is what is always done.
    pub prefer_udp: bool,
    /// Connections that are idle for so long are closed.
    pub expire: Duration,
    /// Failures in a row after which an upstream is asked last; 0: never.
    pub max_fails: u32,
    /// Which is asked first.
    pub policy: Policy,
    /// Time between probes of an upstream that failed.
    pub health_check: Duration,
    /// Whether probes ask for recursion.
    pub probe_recursion: bool,
    /// The name whose NS records probes ask for, in wire form.
    pub probe_name: Box<[u8]>,
    /// Queries in flight; more are refused. `None`: the bound that the whole server has.
    pub max_concurrent: Option<usize>,
    /// The name that certificates must have.
    pub server_name: Option<String>,
    /// Authorities of certificates; the system's when `None`.
    pub ca: Option<PathBuf>,
    /// Our own certificate and key.
    pub client: Option<(PathBuf, PathBuf)>,
    /// SERVFAIL at once when every upstream is down, instead of asking one all the same.
    pub fail_fast: bool,
    /// Response codes after which the next upstream is asked, beside SERVFAIL, NOTIMP and REFUSED, which always are.
    pub failover: Vec<u8>,
    /// Response codes after which the next `forward` of the server block is asked.
    pub next: Vec<u8>,
    /// It is asked also when the name holds nothing of the type.
    pub next_on_nodata: bool,
}

// === impl Transport ===

impl Transport {
    /// The port when none is named.
    pub fn port(self) -> u16 {
        match self {
            Self::Dns => 53,
            Self::Tls => 853,
            Self::Https => 443,
        }
    }
}

// === impl Target ===

impl Target {
    /// An upstream of plain DNS.
    pub fn plain(address: SocketAddr) -> Self {
        Self {
            address,
            transport: Transport::Dns,
            server_name: None,
            path: String::new(),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let address = self.address;
        match self.transport {
            Transport::Dns => write!(f, "{address}"),
            Transport::Tls => write!(f, "tls://{address}"),
            Transport::Https => write!(f, "https://{address}{}", self.path),
        }
    }
}

impl Default for Options {
    fn default() -> Self {
        Self {
            force_tcp: false,
            prefer_udp: false,
            expire: Duration::from_secs(10),
            max_fails: 2,
            policy: Policy::Random,
            health_check: Duration::from_millis(500),
            probe_recursion: true,
            probe_name: Box::new([0]),
            max_concurrent: None,
            server_name: None,
            ca: None,
            client: None,
            fail_fast: false,
            failover: Vec::new(),
            next: Vec::new(),
            next_on_nodata: false,
        }
    }
}

/// A response code by name.
pub fn parse_rcode(text: &str) -> Option<u8> {
    let upper = text.to_ascii_uppercase();
    let known = crate::metrics::RCODES.iter().position(|name| *name == upper)?;
    u8::try_from(known).ok()
}
