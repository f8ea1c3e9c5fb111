//! One query to one upstream: over UDP from a random port with a random id and random letter case, over TCP when the
//! answer is cut, or over an encrypted stream.
//!
//! Datagrams that do not answer the very question are passed over: they may be forged.

use std::net::SocketAddr;
use std::time::Duration;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query};
use hickory_proto::rr::Name as ProtoName;
use hickory_proto::serialize::binary::BinDecodable;
use thiserror::Error;
use tokio::net::UdpSocket;
use tokio::time::timeout;

use super::spec::{Options, Transport};
use super::upstream::{Upstream, any_of};
use crate::answer::edns::MAX_UDP;
use crate::answer::parse::{CLASS_IN, HEADER, u16_at};
use crate::cache::echo;
use crate::zone::names::Name;

/// How long one upstream is waited for (CoreDNS's `read_timeout`).
pub const PATIENCE: Duration = Duration::from_secs(2);
const FORMERR: u8 = 1;

/// A question on its way upstream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// The name in wire form.
    pub name: Box<[u8]>,
    /// The type.
    pub qtype: u16,
    /// Flag DO.
    pub dnssec_ok: bool,
    /// Flag CD.
    pub checking_disabled: bool,
    /// Flag RD.
    pub recursion_desired: bool,
}

/// Why an upstream gave no answer.
#[derive(Debug, Error)]
pub enum ExchangeError {
    /// Nothing came in time.
    #[error("{0} did not answer in time")]
    TimedOut(String),
    /// The network or the upstream's host said no.
    #[error("{upstream}: {cause}")]
    Io {
        /// The upstream.
        upstream: String,
        /// What was said.
        #[source]
        cause: std::io::Error,
    },
    /// TLS or HTTP failed.
    #[error("{upstream}: {cause}")]
    Secure {
        /// The upstream.
        upstream: String,
        /// What failed.
        cause: String,
    },
    /// An answer that is none.
    #[error("{0} sent something that does not answer the question")]
    Garbage(String),
    /// The question cannot be written, although it could be read.
    #[error("the question cannot be encoded")]
    Encode,
}

/// A query as it goes out.
#[derive(Debug)]
struct Sent {
    bytes: Vec<u8>,
    id: u16,
}

/// How well a message answers a query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Match {
    /// Not at all.
    No,
    /// But for the letter case: forged, or from a server that does not keep it.
    OtherCase,
    /// In everything.
    Yes,
}

/// Asks one upstream.
///
/// # Errors
/// When it gave no answer in time.
pub async fn exchange(upstream: &Upstream, asked: &Asked, options: &Options) -> Result<Vec<u8>, ExchangeError> {
    let answered = timeout(PATIENCE, attempt(upstream, asked, options)).await;
    answered.unwrap_or_else(|_| Err(ExchangeError::TimedOut(upstream.target.to_string())))
}

async fn attempt(upstream: &Upstream, asked: &Asked, options: &Options) -> Result<Vec<u8>, ExchangeError> {
    let mixed = upstream.keeps_case() && upstream.target.transport == Transport::Dns;
    let mut sent = Sent::new(asked, mixed, true)?;
    let mut answer = once(upstream, &sent, options).await?;
    // A server that does not know EDNS says so (RFC 6891 section 7).
    if answer.get(3).is_some_and(|flags| flags & 15 == FORMERR) && !asked.dnssec_ok {
        sent = Sent::new(asked, mixed, false)?;
        answer = once(upstream, &sent, options).await?;
    }
    // Names of the answer get back the letters that were asked for.
    let letters = sent.bytes.get(HEADER..HEADER + asked.name.len()).unwrap_or_default();
    echo::rename(&mut answer, letters, &asked.name);
    Ok(answer)
}

async fn once(upstream: &Upstream, sent: &Sent, options: &Options) -> Result<Vec<u8>, ExchangeError> {
    let garbage = || ExchangeError::Garbage(upstream.target.to_string());
    let io = |cause| ExchangeError::Io {
        upstream: upstream.target.to_string(),
        cause,
    };
    if upstream.target.transport == Transport::Https {
        let answer = upstream.https.ask(&upstream.target, options, &sent.bytes).await?;
        return if sent.matched(&answer) == Match::No {
            Err(garbage())
        } else {
            Ok(answer)
        };
    }
    if upstream.target.transport == Transport::Dns && !options.force_tcp {
        match over_udp(upstream.target.address, sent).await.map_err(io)? {
            (answer, Match::Yes) if answer[2] & 2 == 0 => return Ok(answer),
            // Cut, or doubtful: nobody can put words into a stream without seeing it.
            _ => {}
        }
    }
    let answer = upstream.stream.ask(&upstream.target, options, &sent.bytes).await?;
    match sent.matched(&answer) {
        Match::No => Err(garbage()),
        Match::OtherCase => {
            upstream.folds_case();
            Ok(answer)
        }
        Match::Yes => Ok(answer),
    }
}

/// The kernel takes the port at random, and a connected socket hears from that upstream only.
async fn over_udp(address: SocketAddr, sent: &Sent) -> std::io::Result<(Vec<u8>, Match)> {
    let socket = UdpSocket::bind(any_of(address)).await?;
    socket.connect(address).await?;
    socket.send(&sent.bytes).await?;
    let mut buffer = vec![0; 4096];
    loop {
        let length = socket.recv(&mut buffer).await?;
        let matched = sent.matched(&buffer[..length]);
        if matched != Match::No {
            buffer.truncate(length);
            return Ok((buffer, matched));
        }
    }
}

// === impl Sent ===

impl Sent {
    /// Writes a query: `mixed` with random letter case, `edns` with an OPT record.
    fn new(asked: &Asked, mixed: bool, edns: bool) -> Result<Self, ExchangeError> {
        let id = rand::random::<u16>();
        let mut name = asked.name.to_vec();
        if mixed {
            mix_case(&mut name);
        }
        let name = ProtoName::from_bytes(&name).map_err(|_| ExchangeError::Encode)?;
        let mut message = Message::new(id, MessageType::Query, OpCode::Query);
        message.metadata.recursion_desired = asked.recursion_desired;
        message.metadata.checking_disabled = asked.checking_disabled;
        message.add_query(Query::query(name, asked.qtype.into()));
        if edns {
            let mut edns = Edns::new();
            edns.set_max_payload(MAX_UDP as u16);
            edns.set_dnssec_ok(asked.dnssec_ok);
            message.set_edns(edns);
        }
        let bytes = message.to_vec().map_err(|_| ExchangeError::Encode)?;
        Ok(Self { bytes, id })
    }

    /// Whether a message answers it: response, id, and the question itself.
    fn matched(&self, message: &[u8]) -> Match {
        let Some(header) = message.first_chunk::<HEADER>() else {
            return Match::No;
        };
        if u16_at(header, 0) != Some(self.id) || header[2] & 0xf8 != 0x80 || header[4..6] != [0, 1] {
            return Match::No;
        }
        let (Ok((name, end)), Ok((wanted, wanted_end))) =
            (Name::read(message, HEADER), Name::read(&self.bytes, HEADER))
        else {
            return Match::No;
        };
        let same =
            u16_at(message, end) == u16_at(&self.bytes, wanted_end) && u16_at(message, end + 2) == Some(CLASS_IN);
        if !same || name.lower() != wanted.lower() {
            Match::No
        } else if name.sent() == wanted.sent() {
            Match::Yes
        } else {
            Match::OtherCase
        }
    }
}

/// Letters at random: more to guess for who forges answers (draft-vixie-dnsext-dns0x20).
fn mix_case(name: &mut [u8]) {
    let mut bits = [0; 32];
    rand::fill(&mut bits);
    let mut at = 0;
    for octet in name {
        if octet.is_ascii_alphabetic() {
            if bits[at / 8] >> (at % 8) & 1 == 1 {
                *octet ^= 0x20;
            }
            at += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::zone::names::wire_from_text;

    fn asked() -> Asked {
        Asked {
            name: wire_from_text("www.Example.com").unwrap(),
            qtype: 1,
            dnssec_ok: true,
            checking_disabled: false,
            recursion_desired: true,
        }
    }

    #[test]
    fn only_the_answer_to_the_question_counts() {
        let mut sent = Sent::new(&asked(), false, true).unwrap();
        assert_eq!(sent.matched(&sent.bytes), Match::No, "a query is no answer");
        let mut answer = sent.bytes.clone();
        answer[2] |= 0x80;
        assert_eq!(sent.matched(&answer), Match::Yes);
        for (at, what) in [(13, "name"), (30, "type"), (31, "class"), (5, "count"), (2, "opcode")] {
            let mut forged = answer.clone();
            forged[at] ^= 0x08;
            assert_eq!(sent.matched(&forged), Match::No, "{what}");
        }
        let mut folded = answer.clone();
        folded[13] ^= 0x20;
        assert_eq!(sent.matched(&folded), Match::OtherCase);
        for length in 0..33 {
            assert_eq!(sent.matched(&answer[..length]), Match::No, "{length}");
        }
        sent.id ^= 1;
        assert_eq!(sent.matched(&answer), Match::No, "another id");
    }

    #[test]
    fn letters_are_mixed_and_nothing_else() {
        let mut seen = std::collections::HashSet::new();
        for _ in 0..64 {
            let sent = Sent::new(&asked(), true, true).unwrap();
            let (name, _) = Name::read(&sent.bytes, HEADER).unwrap();
            assert_eq!(name.lower(), &*wire_from_text("www.example.com").unwrap());
            seen.insert(name.sent().to_vec());
        }
        assert!(seen.len() > 32, "{}", seen.len());
    }
}
