//! A query and a Snapshot into a response, or the word that it must be asked upstream.
//!
//! Pure: no I/O, no clock, no chance (the caller says how answers rotate). Two paths give the same messages:
//! [`fast`] reads and writes plain queries without allocating, [`slow`] does everything else with hickory-proto and is
//! what the fast path is tested against.

pub mod cookie;
pub mod edns;
pub mod fast;
pub mod parse;
pub mod slow;
pub mod transfer;
pub mod truncate;
pub mod walk;

use std::net::IpAddr;

use crate::zone::Snapshot;
use crate::zone::names::Name;
use crate::zone::policy::AclAction;

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

/// Who asks, how and when: what an answer depends on beside the query and the zones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Client {
    /// How the query came.
    pub transport: Transport,
    /// Where it came from.
    pub address: IpAddr,
    /// A number that differs from query to query: it says which record comes first.
    pub rotation: u32,
    /// Seconds since 1970, which server cookies carry.
    pub now: u32,
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
    /// The largest datagram that is sent, whatever the client takes.
    pub max_udp: u16,
}

/// What to ask upstream, and what stands before the reply.
#[derive(Clone, Debug)]
pub struct Forward {
    /// The client's question.
    pub question: Question,
    /// Aliases of ours that lead out of our zones, in order.
    pub aliases: Vec<Alias>,
    /// The name was rewritten: what puts the first one back.
    pub undo: Option<Box<crate::rules::Undo>>,
    /// The name is one of a pod's search list: what to ask in its place.
    pub completion: Option<Completion>,
}

/// Names that a pod's search list leads to, to be asked in order until one exists.
#[derive(Clone, Debug)]
pub struct Completion {
    /// The names, each an alias of the question's.
    pub targets: Vec<Alias>,
    /// The response when none exists.
    pub otherwise: Vec<u8>,
}

/// An alias of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Alias {
    /// The name that has it, in wire form.
    pub owner: Box<[u8]>,
    /// The name that it stands for, in wire form.
    pub target: Box<[u8]>,
    /// Seconds that clients may keep it.
    pub ttl: u32,
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
    /// Several messages: a zone.
    Transfer(Box<transfer::Transfer>),
    /// Nothing may be sent: the bytes are no query.
    Drop,
}

// === impl Question ===

impl Question {
    /// The longest response that the client can take.
    pub fn limit(&self, transport: Transport) -> usize {
        edns::limit(transport, self.edns, self.max_udp)
    }

    /// Takes in what the configuration says about responses.
    pub fn prepare(&mut self, snapshot: &Snapshot, client: &Client) {
        self.max_udp = snapshot.config.policy.bufsize;
        if let Some(edns) = &mut self.edns {
            edns.prepare(snapshot, client);
        }
    }

    /// Adds an extended error to the response, for a client that uses EDNS.
    pub fn explain(&mut self, error: Ede) {
        if let Some(edns) = &mut self.edns {
            edns.reply.push_error(error);
        }
    }

    /// The length of the response's OPT record; 0 for a client that does not use EDNS.
    pub fn opt_length(&self) -> usize {
        self.edns.as_ref().map_or(0, ClientEdns::opt_length)
    }
}

impl Default for Question {
    fn default() -> Self {
        Self {
            id: 0,
            recursion_desired: false,
            checking_disabled: false,
            name: Name::root(),
            qtype: 0,
            edns: None,
            max_udp: edns::MAX_UDP as u16,
        }
    }
}

// === impl Client ===

impl Client {
    /// A client that asks once: nothing turns, and it is 1970.
    pub fn new(transport: Transport, address: impl Into<IpAddr>) -> Self {
        Self {
            transport,
            address: address.into(),
            rotation: 0,
            now: 0,
        }
    }

    /// The same with the records in another order.
    pub fn rotated(self, rotation: u32) -> Self {
        Self { rotation, ..self }
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

    /// The same question for one of the names that complete it.
    pub fn towards(&self, alias: &Alias) -> Self {
        Self {
            question: self.question.clone(),
            aliases: vec![alias.clone()],
            completion: None,
            undo: self.undo.clone(),
        }
    }
}

/// Answers one query.
///
/// `out` bounds the response as well, so that it may be a fixed buffer; it should hold [`edns::LARGEST_UDP`] octets for a
/// datagram and 65535 for a stream.
pub fn answer(query: &[u8], snapshot: &Snapshot, client: &Client, out: &mut [u8]) -> Verdict {
    answer_with(&mut Question::default(), query, snapshot, client, out)
}

/// The same with a question to read into, so that a thread uses one for all queries.
pub fn answer_with(
    question: &mut Question,
    query: &[u8],
    snapshot: &Snapshot,
    client: &Client,
    out: &mut [u8],
) -> Verdict {
    match parse::parse(query, question) {
        parse::Parsed::Ignore => return Verdict::Drop,
        parse::Parsed::Other => return slow::answer(query, snapshot, client, out),
        parse::Parsed::Plain => {}
    }
    let policy = &snapshot.config.policy;
    let allowed =
        policy.acl.is_empty() || policy.verdict(&question.name, question.qtype, client.address) == AclAction::Allow;
    if !allowed {
        return slow::answer(query, snapshot, client, out);
    }
    question.prepare(snapshot, client);
    match fast::answer(question, snapshot, client, out) {
        fast::Fast::Answer(answered) => Verdict::Answer(answered),
        fast::Fast::NotOurs => Verdict::Forward(Box::new(Forward {
            question: question.clone(),
            aliases: Vec::new(),
            completion: None,
            undo: None,
        })),
        fast::Fast::TooHard => slow::answer(query, snapshot, client, out),
    }
}
