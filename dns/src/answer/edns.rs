//! EDNS(0) (RFC 6891): sizes, and the OPT record of a response.

use super::Transport;
use crate::zone::TYPE_OPT;

/// The largest datagram sent, so that none is fragmented (DNS flag day 2020). Also what we announce.
pub const MAX_UDP: usize = 1232;
/// The largest datagram for a client without EDNS (RFC 1035 section 4.2.1).
pub const MIN_UDP: usize = 512;
/// The largest message in a stream.
pub const MAX_TCP: usize = 65_535;
/// The length of an OPT record without options.
pub const OPT_LENGTH: usize = 11;

/// What a client says in its OPT record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientEdns {
    /// The largest datagram that it takes.
    pub payload: u16,
    /// Flag DO, which the response repeats and upstreams are given.
    pub dnssec_ok: bool,
}

/// The longest response that may be sent.
pub fn limit(transport: Transport, edns: Option<ClientEdns>) -> usize {
    match transport {
        Transport::Tcp => MAX_TCP,
        Transport::Udp => edns.map_or(MIN_UDP, |edns| usize::from(edns.payload).clamp(MIN_UDP, MAX_UDP)),
    }
}

/// Our OPT record without options.
pub fn opt_record(edns: ClientEdns) -> [u8; OPT_LENGTH] {
    let [type_high, type_low] = TYPE_OPT.to_be_bytes();
    let [size_high, size_low] = (MAX_UDP as u16).to_be_bytes();
    let flags = if edns.dnssec_ok { 0x80 } else { 0 };
    [0, type_high, type_low, size_high, size_low, 0, 0, flags, 0, 0, 0]
}
