//! Netlink messages: the frame around attributes, in what we send and in what the kernel answers.

use super::attr::{Attributes, Writer, align};
use super::constants::*;

/// `struct nlmsghdr`.
const HEADER: usize = 16;
/// `struct nfgenmsg`.
const NFGEN: usize = 4;

/// Appends one message.
pub(crate) fn write(
    buffer: &mut Vec<u8>,
    kind: u16,
    flags: u16,
    sequence: u32,
    (family, resource): (u8, u16),
    fill: impl FnOnce(&mut Writer<'_>),
) {
    let start = open(buffer, kind, flags, sequence, (family, resource));
    fill(&mut Writer(buffer));
    close(buffer, start);
}

/// Starts a message; [`close`] completes it.
pub(crate) fn open(buffer: &mut Vec<u8>, kind: u16, flags: u16, sequence: u32, (family, resource): (u8, u16)) -> usize {
    let start = buffer.len();
    buffer.extend_from_slice(&[0; 4]);
    buffer.extend_from_slice(&kind.to_ne_bytes());
    buffer.extend_from_slice(&(flags | NLM_F_REQUEST).to_ne_bytes());
    buffer.extend_from_slice(&sequence.to_ne_bytes());
    buffer.extend_from_slice(&[0; 4]);
    buffer.extend_from_slice(&[family, 0]);
    buffer.extend_from_slice(&resource.to_be_bytes());
    start
}

/// Writes the length of the message that starts at `start`.
pub(crate) fn close(buffer: &mut [u8], start: usize) {
    let length = u32::try_from(buffer.len() - start).unwrap_or(u32::MAX);
    if let Some(field) = buffer.get_mut(start..start + 4) {
        field.copy_from_slice(&length.to_ne_bytes());
    }
}

/// The type of an nf_tables message.
pub(crate) fn nft(kind: u8) -> u16 {
    (NFNL_SUBSYS_NFTABLES << 8) | u16::from(kind)
}

/// The type of a connection tracking message.
pub(crate) fn conntrack(kind: u8) -> u16 {
    (NFNL_SUBSYS_CTNETLINK << 8) | u16::from(kind)
}

/// A message that the kernel sent.
#[derive(Clone)]
pub(crate) struct Message<'a> {
    pub(crate) kind: u16,
    pub(crate) flags: u16,
    pub(crate) sequence: u32,
    /// The port id of whoever caused it.
    pub(crate) port_id: u32,
    payload: &'a [u8],
}

/// What the kernel said about one of our messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Acknowledgement {
    /// 0 for consent, otherwise an errno.
    pub(crate) errno: i32,
    /// Where in our message the culprit is.
    pub(crate) offset: Option<u32>,
    /// The kernel's own words.
    pub(crate) text: Option<String>,
}

impl<'a> Message<'a> {
    /// The nf_tables message type, if it is one.
    pub(crate) fn nft_kind(&self) -> Option<u8> {
        let [low, high] = self.kind.to_le_bytes();
        (u16::from(high) == NFNL_SUBSYS_NFTABLES).then_some(low)
    }

    /// The address family in `struct nfgenmsg`.
    pub(crate) fn family(&self) -> Option<u8> {
        self.payload.first().copied()
    }

    /// The attributes behind `struct nfgenmsg`.
    pub(crate) fn attributes(&self) -> Attributes<'a> {
        Attributes::new(self.payload.get(NFGEN..).unwrap_or_default())
    }

    /// The content of an `NLMSG_ERROR` or of an `NLMSG_DONE` message.
    pub(crate) fn acknowledgement(&self) -> Option<Acknowledgement> {
        let (code, rest) = self.payload.split_first_chunk::<4>()?;
        let mut answer = Acknowledgement {
            errno: i32::from_ne_bytes(*code).saturating_neg(),
            offset: None,
            text: None,
        };
        if self.kind == NLMSG_ERROR && self.flags & NLM_F_ACK_TLVS != 0 {
            // The echo of our header stands before the attributes, whole unless it is capped.
            let echoed = rest.first_chunk::<4>().map_or(0, |length| u32::from_ne_bytes(*length));
            let capped = self.flags & NLM_F_CAPPED != 0;
            let skip = if capped {
                HEADER
            } else {
                usize::try_from(echoed).map_or(usize::MAX, |length| length)
            };
            let attributes = Attributes::new(rest.get(skip..).unwrap_or_default());
            answer.text = attributes.text(NLMSGERR_ATTR_MSG).map(str::to_owned);
            answer.offset = attributes
                .get(NLMSGERR_ATTR_OFFS)
                .and_then(|offset| Some(u32::from_ne_bytes(offset.try_into().ok()?)));
        }
        Some(answer)
    }
}

/// The messages in a datagram. A malformed one ends the list.
pub(crate) struct Messages<'a>(pub(crate) &'a [u8]);

impl<'a> Iterator for Messages<'a> {
    type Item = Message<'a>;

    fn next(&mut self) -> Option<Self::Item> {
        let header = self.0.first_chunk::<HEADER>()?;
        let &[a, b, c, d, k, l, f, g, s, t, u, v, p, q, r, w] = header;
        let length = usize::try_from(u32::from_ne_bytes([a, b, c, d])).ok()?;
        let payload = self.0.get(HEADER..length)?;
        self.0 = self.0.get(align(length)..).unwrap_or_default();
        Some(Message {
            kind: u16::from_ne_bytes([k, l]),
            flags: u16::from_ne_bytes([f, g]),
            sequence: u32::from_ne_bytes([s, t, u, v]),
            port_id: u32::from_ne_bytes([p, q, r, w]),
            payload,
        })
    }
}
