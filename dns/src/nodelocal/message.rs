//! The few netlink messages that node-local mode needs: a link, its addresses, and a table of rules that switch tracking off.
//!
//! Pure: it makes bytes. Numbers are those of linux/netlink.h, rtnetlink.h, if_addr.h, if_link.h and nf_tables.h.

use std::net::{IpAddr, SocketAddr};

const REQUEST: u16 = 1;
const ACK: u16 = 4;
const EXCL: u16 = 0x200;
const CREATE: u16 = 0x400;
const NESTED: u16 = 0x8000;
const FAMILY_INET: u8 = 1;
const FAMILY_V4: u8 = 2;
const FAMILY_V6: u8 = 10;
/// Before connection tracking (NF_IP_PRI_RAW).
const PRIORITY_RAW: i32 = -300;
const UDP: u8 = 17;
const TCP: u8 = 6;

/// Netlink messages, one behind the other.
#[derive(Debug, Default)]
pub struct Messages {
    bytes: Vec<u8>,
    /// How many answers there will be.
    pub answers: usize,
}

// === impl Messages ===

impl Messages {
    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    fn push(&mut self, kind: u16, flags: u16, content: impl FnOnce(&mut Vec<u8>)) {
        let start = self.bytes.len();
        self.bytes.extend([0; 16]);
        content(&mut self.bytes);
        let length = (self.bytes.len() - start) as u32;
        self.answers += usize::from(flags & ACK != 0);
        let sequence = self.answers as u32;
        let header = &mut self.bytes[start..start + 16];
        header[..4].copy_from_slice(&length.to_ne_bytes());
        header[4..6].copy_from_slice(&kind.to_ne_bytes());
        header[6..8].copy_from_slice(&(flags | REQUEST).to_ne_bytes());
        header[8..12].copy_from_slice(&sequence.to_ne_bytes());
    }
}

fn attribute(into: &mut Vec<u8>, kind: u16, content: impl FnOnce(&mut Vec<u8>)) {
    let start = into.len();
    into.extend([0; 4]);
    content(into);
    let length = (into.len() - start) as u16;
    into[start..start + 2].copy_from_slice(&length.to_ne_bytes());
    into[start + 2..start + 4].copy_from_slice(&kind.to_ne_bytes());
    into.resize(into.len().next_multiple_of(4), 0);
}

fn text(into: &mut Vec<u8>, kind: u16, text: &str) {
    attribute(into, kind, |into| {
        into.extend_from_slice(text.as_bytes());
        into.push(0);
    });
}

fn number(into: &mut Vec<u8>, kind: u16, number: u32) {
    attribute(into, kind, |into| into.extend(number.to_be_bytes()));
}

/// A dummy link that is up.
pub fn new_link(name: &str) -> Messages {
    let mut messages = Messages::default();
    // RTM_NEWLINK
    messages.push(16, ACK | CREATE | EXCL, |into| {
        interface(into, 0, true);
        text(into, 3, name);
        attribute(into, 18 | NESTED, |into| text(into, 1, "dummy"));
    });
    messages
}

/// No such link any more.
pub fn delete_link(index: u32) -> Messages {
    let mut messages = Messages::default();
    // RTM_DELLINK
    messages.push(17, ACK, |into| interface(into, index, false));
    messages
}

fn interface(into: &mut Vec<u8>, index: u32, up: bool) {
    into.extend([0; 4]);
    into.extend(index.to_ne_bytes());
    into.extend(u32::from(up).to_ne_bytes());
    into.extend(u32::from(up).to_ne_bytes());
}

/// An address of a link, or of the link no longer.
pub fn address(ip: IpAddr, index: u32, there: bool) -> Messages {
    let (family, octets) = family(ip);
    let mut messages = Messages::default();
    // RTM_NEWADDR, RTM_DELADDR
    let (kind, flags) = if there { (20, ACK | CREATE | EXCL) } else { (21, ACK) };
    messages.push(kind, flags, |into| {
        // Nobody else looks for it (IFA_F_NODAD), and it is never the source of other connections (RT_SCOPE_HOST).
        let (flags, scope) = if ip.is_ipv4() { (0, 254) } else { (2, 0) };
        into.extend([family, (octets.len() * 8) as u8, flags, scope]);
        into.extend(index.to_ne_bytes());
        attribute(into, 2, |into| into.extend_from_slice(&octets));
        attribute(into, 1, |into| into.extend_from_slice(&octets));
    });
    messages
}

fn family(ip: IpAddr) -> (u8, Vec<u8>) {
    match ip {
        IpAddr::V4(ip) => (FAMILY_V4, ip.octets().to_vec()),
        IpAddr::V6(ip) => (FAMILY_V6, ip.octets().to_vec()),
    }
}

/// A table, owned by the socket that sends it, in which packets to and from the addresses are not tracked.
pub fn untracked(table: &str, addresses: &[SocketAddr]) -> Messages {
    let mut messages = Messages::default();
    let batch = |into: &mut Vec<u8>| into.extend([0, 0, 0, 10]);
    messages.push(0x10, 0, batch);
    let nft = |kind: u16| 10 << 8 | kind;
    let head = |into: &mut Vec<u8>| into.extend([FAMILY_INET, 0, 0, 0]);
    messages.push(nft(0), ACK | CREATE | EXCL, |into| {
        head(into);
        text(into, 1, table);
        // NFT_TABLE_F_OWNER
        number(into, 2, 2);
    });
    for (chain, hook) in [("prerouting", 0), ("output", 3)] {
        messages.push(nft(3), ACK | CREATE, |into| {
            head(into);
            text(into, 1, table);
            text(into, 3, chain);
            attribute(into, 4 | NESTED, |into| {
                number(into, 1, hook);
                attribute(into, 2, |into| into.extend(PRIORITY_RAW.to_be_bytes()));
            });
            text(into, 7, "filter");
        });
    }
    for address in addresses {
        for protocol in [UDP, TCP] {
            // Queries from elsewhere, queries from here, and answers.
            for (chain, destination) in [("prerouting", true), ("output", true), ("output", false)] {
                messages.push(nft(6), ACK | CREATE | 0x800, |into| {
                    head(into);
                    text(into, 1, table);
                    text(into, 2, chain);
                    attribute(into, 4 | NESTED, |into| rule(into, *address, protocol, destination));
                });
            }
        }
    }
    messages.push(0x11, 0, batch);
    messages
}

/// Packets of a protocol whose destination (or source) is the address are not tracked.
fn rule(into: &mut Vec<u8>, address: SocketAddr, protocol: u8, destination: bool) {
    let (family, octets) = family(address.ip());
    let (source_at, destination_at) = if family == FAMILY_V4 { (12, 16) } else { (8, 24) };
    // NFT_META_NFPROTO, NFT_META_L4PROTO
    meta(into, 15);
    compare(into, &[family]);
    meta(into, 16);
    compare(into, &[protocol]);
    // The network header, then the transport header.
    payload(
        into,
        1,
        if destination { destination_at } else { source_at },
        octets.len(),
    );
    compare(into, &octets);
    payload(into, 2, if destination { 2 } else { 0 }, 2);
    compare(into, &address.port().to_be_bytes());
    expression(into, "notrack", |_| {});
}

fn expression(into: &mut Vec<u8>, name: &str, content: impl FnOnce(&mut Vec<u8>)) {
    attribute(into, 1 | NESTED, |into| {
        text(into, 1, name);
        attribute(into, 2 | NESTED, content);
    });
}

fn meta(into: &mut Vec<u8>, key: u32) {
    expression(into, "meta", |into| {
        number(into, 1, 1);
        number(into, 2, key);
    });
}

fn payload(into: &mut Vec<u8>, base: u32, offset: u32, length: usize) {
    expression(into, "payload", |into| {
        number(into, 1, 1);
        number(into, 2, base);
        number(into, 3, offset);
        number(into, 4, length as u32);
    });
}

fn compare(into: &mut Vec<u8>, value: &[u8]) {
    expression(into, "cmp", |into| {
        number(into, 1, 1);
        number(into, 2, 0);
        attribute(into, 3 | NESTED, |into| {
            attribute(into, 1, |into| into.extend_from_slice(value));
        });
    });
}
