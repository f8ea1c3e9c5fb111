//! One query to one upstream: over UDP from a random port with a random id, and over TCP when the answer is cut.
//!
//! Datagrams that do not answer the very question are passed over: they may be forged.

use std::net::SocketAddr;
use std::time::Duration;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query};
use hickory_proto::rr::Name as ProtoName;
use hickory_proto::serialize::binary::BinDecodable;
use thiserror::Error;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

use super::upstream::any_of;
use crate::answer::edns::MAX_UDP;
use crate::answer::parse::{CLASS_IN, HEADER, u16_at};
use crate::zone::names::Name;

/// How long one upstream may take (CoreDNS's `read_timeout`).
pub const PATIENCE: Duration = Duration::from_secs(2);

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
}

/// Why an upstream gave no answer.
#[derive(Debug, Error)]
pub enum ExchangeError {
    /// Nothing came in time.
    #[error("{0} did not answer in time")]
    TimedOut(SocketAddr),
    /// The network or the upstream's host said no.
    #[error("{address}: {cause}")]
    Io {
        /// The upstream.
        address: SocketAddr,
        /// What was said.
        #[source]
        cause: std::io::Error,
    },
    /// An answer that is none.
    #[error("{0} sent something that does not answer the question")]
    Garbage(SocketAddr),
    /// The question cannot be written, although it could be read.
    #[error("the question cannot be encoded")]
    Encode,
}

/// Asks one upstream.
///
/// # Errors
/// When it gave no answer in time.
pub async fn exchange(address: SocketAddr, asked: &Asked) -> Result<Vec<u8>, ExchangeError> {
    let id = rand::random::<u16>();
    let query = encode(id, asked)?;
    let io = |cause| ExchangeError::Io { address, cause };
    let both = async {
        let answer = over_udp(address, &query, id, asked).await.map_err(io)?;
        if answer.get(2).is_some_and(|flags| flags & 2 != 0) {
            let answer = over_tcp(address, &query).await.map_err(io)?;
            return if answers(&answer, id, asked) {
                Ok(answer)
            } else {
                Err(ExchangeError::Garbage(address))
            };
        }
        Ok(answer)
    };
    timeout(PATIENCE, both)
        .await
        .unwrap_or(Err(ExchangeError::TimedOut(address)))
}

fn encode(id: u16, asked: &Asked) -> Result<Vec<u8>, ExchangeError> {
    let name = ProtoName::from_bytes(&asked.name).map_err(|_| ExchangeError::Encode)?;
    let mut message = Message::new(id, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.metadata.checking_disabled = asked.checking_disabled;
    message.add_query(Query::query(name, asked.qtype.into()));
    let mut edns = Edns::new();
    edns.set_max_payload(MAX_UDP as u16);
    edns.set_dnssec_ok(asked.dnssec_ok);
    message.set_edns(edns);
    message.to_vec().map_err(|_| ExchangeError::Encode)
}

/// The kernel takes the port at random, and a connected socket hears from that upstream only.
async fn over_udp(address: SocketAddr, query: &[u8], id: u16, asked: &Asked) -> std::io::Result<Vec<u8>> {
    let socket = UdpSocket::bind(any_of(address)).await?;
    socket.connect(address).await?;
    socket.send(query).await?;
    let mut buffer = vec![0; 4096];
    loop {
        let length = socket.recv(&mut buffer).await?;
        if answers(&buffer[..length], id, asked) {
            buffer.truncate(length);
            return Ok(buffer);
        }
    }
}

async fn over_tcp(address: SocketAddr, query: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(address).await?;
    let length = u16::try_from(query.len()).map_err(std::io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes(), query].concat()).await?;
    let length = stream.read_u16().await?;
    let mut answer = vec![0; length.into()];
    stream.read_exact(&mut answer).await?;
    Ok(answer)
}

/// Whether a message answers the question: response, id, and the question itself.
fn answers(message: &[u8], id: u16, asked: &Asked) -> bool {
    let Some(header) = message.first_chunk::<HEADER>() else {
        return false;
    };
    if u16_at(header, 0) != Some(id) || header[2] & 0xf8 != 0x80 || header[4..6] != [0, 1] {
        return false;
    }
    let Ok((name, end)) = Name::read(message, HEADER) else {
        return false;
    };
    name.lower().eq_ignore_ascii_case(&asked.name)
        && u16_at(message, end) == Some(asked.qtype)
        && u16_at(message, end + 2) == Some(CLASS_IN)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::zone::names::wire_from_text;

    #[test]
    fn only_the_answer_to_the_question_counts() {
        let asked = Asked {
            name: wire_from_text("www.Example.com").unwrap(),
            qtype: 1,
            dnssec_ok: true,
            checking_disabled: false,
        };
        let query = encode(77, &asked).unwrap();
        assert!(!answers(&query, 77, &asked), "a query is no answer");
        let mut answer = query.clone();
        answer[2] |= 0x80;
        assert!(answers(&answer, 77, &asked));
        assert!(!answers(&answer, 78, &asked), "another id");
        for (at, what) in [(13, "name"), (30, "type"), (31, "class"), (5, "count"), (2, "opcode")] {
            let mut forged = answer.clone();
            forged[at] ^= 0x08;
            assert!(!answers(&forged, 77, &asked), "{what}");
        }
        for length in 0..33 {
            assert!(!answers(&answer[..length], 77, &asked), "{length}");
        }
    }
}
