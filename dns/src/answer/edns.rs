//! EDNS(0) (RFC 6891): sizes, what clients ask for in options, and the OPT record of a response.

use super::cookie;
use super::{Client, Transport};
use crate::zone::{Snapshot, TYPE_OPT};

/// The largest datagram that is sent unless the configuration says otherwise, so that none is fragmented (DNS flag day
/// 2020). Also what upstreams are told.
pub const MAX_UDP: usize = 1232;
/// The largest datagram that the configuration may ask for.
pub const LARGEST_UDP: usize = 4096;
/// The largest datagram for a client without EDNS (RFC 1035 section 4.2.1).
pub const MIN_UDP: usize = 512;
/// The largest message in a stream.
pub const MAX_TCP: usize = 65_535;
/// The length of an OPT record without options.
pub const OPT_LENGTH: usize = 11;
/// The longest name of a server that fits beside the other options.
pub const MAX_NSID: usize = 64;

/// Option NSID (RFC 5001).
pub const OPTION_NSID: u16 = 3;
/// Option client subnet (RFC 7871).
pub const OPTION_SUBNET: u16 = 8;
/// Option COOKIE (RFC 7873).
pub const OPTION_COOKIE: u16 = 10;
/// Option extended error (RFC 8914).
pub const OPTION_EDE: u16 = 15;

/// What a client says in its OPT record, and what it is told in ours.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClientEdns {
    /// The largest datagram that it takes.
    pub payload: u16,
    /// Flag DO, which the response repeats and upstreams are given.
    pub dnssec_ok: bool,
    /// It asks for the name of the server.
    pub wants_nsid: bool,
    /// Its cookie.
    pub cookie: Option<[u8; 8]>,
    /// The options of the response.
    pub reply: ReplyOptions,
}

/// Options of a response, in place and in order.
#[derive(Clone, Copy)]
pub struct ReplyOptions {
    bytes: [u8; REPLY_ROOM],
    length: u8,
}

/// Room for the longest NSID, a cookie and an extended error with a line of text.
const REPLY_ROOM: usize = 4 + MAX_NSID + 4 + 24 + 4 + 2 + 80;

/// The longest response that may be sent.
pub fn limit(transport: Transport, edns: Option<ClientEdns>, max_udp: u16) -> usize {
    match transport {
        Transport::Tcp => MAX_TCP,
        Transport::Udp => edns.map_or(MIN_UDP, |edns| {
            let most = usize::from(max_udp).clamp(MIN_UDP, LARGEST_UDP);
            usize::from(edns.payload).clamp(MIN_UDP, most)
        }),
    }
}

// === impl ClientEdns ===

impl ClientEdns {
    /// Says in the response what the client asked for: the name of the server, a cookie.
    pub fn prepare(&mut self, snapshot: &Snapshot, client: &Client) {
        let policy = &snapshot.config.policy;
        if let Some(nsid) = policy.nsid.as_deref().filter(|_| self.wants_nsid) {
            self.reply.push(OPTION_NSID, &[nsid]);
        }
        if let (Some(secret), Some(own)) = (&policy.cookie_secret, &self.cookie) {
            let server = cookie::server_cookie(secret, own, client.address, client.now);
            self.reply.push(OPTION_COOKIE, &[own, &server]);
        }
    }

    /// The length of the response's OPT record.
    pub fn opt_length(&self) -> usize {
        OPT_LENGTH + usize::from(self.reply.length)
    }

    /// Writes the response's OPT record, which announces that datagrams of `max_udp` octets are taken. `out` must hold
    /// [`ClientEdns::opt_length`] octets; nothing is written to one that does not.
    pub fn write_opt(&self, max_udp: u16, out: &mut [u8]) {
        let options = self.reply.as_bytes();
        let Some((fixed, rest)) = out.split_first_chunk_mut::<OPT_LENGTH>() else {
            return;
        };
        let Some(place) = rest.get_mut(..options.len()) else {
            return;
        };
        let [type_high, type_low] = TYPE_OPT.to_be_bytes();
        let [size_high, size_low] = max_udp.to_be_bytes();
        let [length_high, length_low] = (options.len() as u16).to_be_bytes();
        let flags = if self.dnssec_ok { 0x80 } else { 0 };
        *fixed = [
            0,
            type_high,
            type_low,
            size_high,
            size_low,
            0,
            0,
            flags,
            0,
            length_high,
            length_low,
        ];
        place.copy_from_slice(options);
    }
}

// === impl ReplyOptions ===

impl Default for ReplyOptions {
    fn default() -> Self {
        Self {
            bytes: [0; REPLY_ROOM],
            length: 0,
        }
    }
}

impl ReplyOptions {
    /// Takes all options out.
    pub fn clear(&mut self) {
        self.length = 0;
    }

    /// Adds an option; one for which there is no room is left out.
    pub fn push(&mut self, code: u16, parts: &[&[u8]]) {
        let data: usize = parts.iter().map(|part| part.len()).sum();
        let start = usize::from(self.length);
        let Some(mut place) = self.bytes.get_mut(start..start + 4 + data) else {
            return;
        };
        let code = code.to_be_bytes();
        let length = (data as u16).to_be_bytes();
        for part in [&code[..], &length].into_iter().chain(parts.iter().copied()) {
            let (head, tail) = place.split_at_mut(part.len());
            head.copy_from_slice(part);
            place = tail;
        }
        self.length = (start + 4 + data) as u8;
    }

    /// Adds an extended error; its text must be shorter than 80 octets.
    pub fn push_error(&mut self, error: super::Ede) {
        self.push(OPTION_EDE, &[&error.code().to_be_bytes(), error.text().as_bytes()]);
    }

    /// The options as they stand in the OPT record.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.length)]
    }

    /// Each option's code and content.
    pub fn iter(&self) -> impl Iterator<Item = (u16, &[u8])> {
        let mut rest = self.as_bytes();
        std::iter::from_fn(move || {
            let [c0, c1, l0, l1, tail @ ..] = rest else { return None };
            let (data, next) = tail.split_at_checked(u16::from_be_bytes([*l0, *l1]).into())?;
            rest = next;
            Some((u16::from_be_bytes([*c0, *c1]), data))
        })
    }
}

impl PartialEq for ReplyOptions {
    fn eq(&self, other: &Self) -> bool {
        self.as_bytes() == other.as_bytes()
    }
}

impl Eq for ReplyOptions {}

impl std::fmt::Debug for ReplyOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}
