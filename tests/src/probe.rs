//! The probe: the server in every pod and the client of every check, one small program (`portolan-probe`).
//!
//! A server answers each line (or datagram) with one line of JSON that says who it is and whom it saw, and an HTTP GET
//! with the same as text. A client makes connections, counts who answered and says in what way the others failed. The
//! types below are what the two print, so a test reads them back instead of parsing text.

pub mod connect;
pub mod dns;
pub mod hold;
pub mod http;
pub mod ping;
pub mod serve;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

/// The most that a datagram over IPv4 can carry.
const LARGEST_DATAGRAM: usize = 65_507;

/// What a server says about one connection or datagram.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The server's name: its pod's.
    pub name: String,
    /// The client's address as the server saw it.
    pub client_address: IpAddr,
    /// The client's port as the server saw it.
    pub client_port: u16,
    /// `tcp` or `udp`.
    pub protocol: String,
    /// The server's own address on this connection; the wildcard for UDP.
    pub local_address: IpAddr,
    /// The server's own port.
    pub local_port: u16,
}

/// In what way an attempt failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FailureKind {
    /// Connection refused: a reset or a port unreachable error came back.
    Refused,
    /// Nothing came back in time.
    Timeout,
    /// The connection was made and then cut.
    Reset,
    /// No route: host, network or prohibited.
    Unreachable,
    /// The sender's own kernel dropped the packet and said so (EPERM).
    Denied,
    /// The name did not resolve.
    Name,
    /// Something else; the message says what.
    Other,
}

/// One failed attempt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// The kind.
    pub kind: FailureKind,
    /// The system's error number, where there was one.
    pub errno: Option<i32>,
    /// The system's words.
    pub message: String,
    /// Milliseconds from the start of the attempt to its failure.
    pub millis: u64,
}

/// What a client saw in all its attempts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// How many connections or datagrams were tried.
    pub attempts: u32,
    /// How often each server answered, by its name.
    pub answers: BTreeMap<String, u32>,
    /// Which client addresses the servers saw, and how often.
    pub sources: BTreeMap<IpAddr, u32>,
    /// The attempts that failed.
    pub failures: Vec<Failure>,
}

// === impl Failure ===

impl Failure {
    /// Sorts an I/O error into its kind.
    pub fn new(error: &std::io::Error, millis: u64) -> Self {
        use std::io::ErrorKind;
        let kind = match error.kind() {
            ErrorKind::ConnectionRefused => FailureKind::Refused,
            ErrorKind::TimedOut | ErrorKind::WouldBlock => FailureKind::Timeout,
            ErrorKind::ConnectionReset | ErrorKind::BrokenPipe | ErrorKind::UnexpectedEof => FailureKind::Reset,
            ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable => FailureKind::Unreachable,
            ErrorKind::PermissionDenied => FailureKind::Denied,
            _ => FailureKind::Other,
        };
        Self {
            kind,
            errno: error.raw_os_error(),
            message: error.to_string(),
            millis,
        }
    }
}

/// Where the program is: `PORTOLAN_PROBE`, or beside the running program (or above it, for a test in `deps/`).
///
/// # Errors
/// When it was not built.
pub fn binary() -> Result<PathBuf> {
    crate::binaries::find("PORTOLAN_PROBE", "portolan-probe")
        .context("build it with `cargo build -p portolan-lab --bin portolan-probe`")
}
