//! A query and a Snapshot into a response, or the word that it must be asked upstream.
//!
//! Pure: no I/O, no clock, no chance (the caller says how answers rotate). Two paths give the same messages:
//! [`fast`] reads and writes plain queries without allocating, [`slow`] does everything else with hickory-proto and is
//! what the fast path is tested against.

pub mod edns;
pub mod fast;
pub mod parse;
pub mod slow;
pub mod truncate;
pub mod walk;

use crate::zone::Snapshot;
use crate::zone::names::Name;

pub use edns::ClientEdns;
pub use slow::Ede;

/// How the query came, which bounds the response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// A datagram: at most what the client says, capped at [`edns::MAX_UDP`].
    Udp,
    /// A stream: up to 65535 octets.
    Tcp,
}

/// What a query asks, as far as an answer needs it.
#[derive(Clone, Debug)]
pub struct Question {
    /// The message's id.
    pub id: u16,
    /// Flag RD, which the response repeats.
    pub recursion_desired: bool,
    /// Flag CD, which the response repeats and upstreams are given.
    pub checking_disabled: bool,
    /// The name, in the client's letter case.
    pub name: Name,
    /// The type. The class is IN.
    pub qtype: u16,
    /// What the client said in its OPT record, when it sent one.
    pub edns: Option<ClientEdns>,
}

/// What to ask upstream, and what stands before the reply.
#[derive(Clone, Debug)]
pub struct Forward {
    /// The client's question.
    pub question: Question,
    /// Aliases of ours that lead out of our zones, in order.
    pub aliases: Vec<Alias>,
}

/// An alias of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Alias {
    /// The name that has it, in wire form.
    pub owner: Box<[u8]>,
    /// The name that it stands for, in wire form.
    pub target: Box<[u8]>,
}

/// A response in the buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answered {
    /// How long it is.
    pub length: usize,
    /// The index of the zone that gave it; `None` for errors that no zone gave.
    pub zone: Option<u8>,
}

/// What becomes of a query.
#[derive(Debug)]
pub enum Verdict {
    /// The response is in the buffer.
    Answer(Answered),
    /// Not ours.
    Forward(Box<Forward>),
    /// Nothing may be sent: the bytes are no query.
    Drop,
}

// === impl Question ===

impl Question {
    /// The longest response that the client can take.
    pub fn limit(&self, transport: Transport) -> usize {
        edns::limit(transport, self.edns)
    }
}

// === impl Forward ===

impl Forward {
    /// The name to ask upstream, in wire form.
    pub fn target(&self) -> &[u8] {
        self.aliases
            .last()
            .map_or_else(|| self.question.name.sent(), |alias| &alias.target)
    }
}

/// Answers one query. `rotation` is a number that differs from query to query: it says which record comes first.
///
/// `out` bounds the response as well, so that it may be a fixed buffer; it should hold [`edns::MAX_UDP`] octets for a
/// datagram and 65535 for a stream.
pub fn answer(query: &[u8], snapshot: &Snapshot, transport: Transport, rotation: u32, out: &mut [u8]) -> Verdict {
    match parse::parse(query) {
        parse::Parsed::Ignore => Verdict::Drop,
        parse::Parsed::Plain(question) => match fast::answer(&question, snapshot, transport, rotation, out) {
            fast::Fast::Answer(answered) => Verdict::Answer(answered),
            fast::Fast::NotOurs => Verdict::Forward(Box::new(Forward {
                question,
                aliases: Vec::new(),
            })),
            fast::Fast::TooHard => slow::answer(query, snapshot, transport, rotation, out),
        },
        parse::Parsed::Other => slow::answer(query, snapshot, transport, rotation, out),
    }
}
