//! The few netlink messages that node-local mode needs: a link, its addresses, and a table of rules that switch tracking off.
//!
//! Pure: it makes and reads bytes. Numbers are those of linux/netlink.h, rtnetlink.h, if_addr.h, if_link.h and nf_tables.h.

use std::net::{IpAddr, SocketAddr};

const REQUEST: u16 = 1;
const ACK: u16 = 4;
const EXCL: u16 = 0x200;
const DUMP: u16 = 0x300;
const CREATE: u16 = 0x400;
const NESTED: u16 = 0x8000;
const FAMILY_INET: u8 = 1;
const FAMILY_V4: u8 = 2;
const FAMILY_V6: u8 = 10;
/// Before connection tracking (NF_IP_PRI_RAW).
const PRIORITY_RAW: i32 = -300;
const UDP: u8 = 17;
const TCP: u8 = 6;
/// Who made an address (IFA_PROTO, since Linux 5.18; passed over by older kernels): a number that nobody else uses.
const MADE_BY_US: u8 = 53;
/// RTM_NEWADDR
const NEW_ADDRESS: u16 = 20;
/// NFT_MSG_NEWTABLE of the subsystem nf_tables.
const NEW_TABLE: u16 = 10 << 8;

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

/// One message of the kernel: its kind and what it holds.
#[derive(Debug)]
pub struct Told<'a> {
    /// The kind of message (`nlmsg_type`).
    pub kind: u16,
    /// What stands behind the header.
    pub content: &'a [u8],
}

/// The messages in what one read of a netlink socket gave. What is cut off is passed over.
pub fn told(mut bytes: &[u8]) -> impl Iterator<Item = Told<'_>> {
    std::iter::from_fn(move || {
        let header = bytes.first_chunk::<16>()?;
        let size = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
        let kind = u16::from_ne_bytes([header[4], header[5]]);
        let content = bytes.get(16..size)?;
        bytes = bytes.get(size.next_multiple_of(4)..).unwrap_or_default();
        Some(Told { kind, content })
    })
}

/// The attributes of a message, flags of their kinds taken away.
fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let header = bytes.first_chunk::<4>()?;
        let size = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let kind = u16::from_ne_bytes([header[2], header[3]]) & 0x3fff;
        let content = bytes.get(4..size)?;
        bytes = bytes.get(size.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, content))
    })
}

/// Every address of this machine, please.
pub fn list_addresses() -> Messages {
    let mut messages = Messages::default();
    // RTM_GETADDR
    messages.push(22, DUMP, |into| into.extend([0; 8]));
    messages
}

/// The address and the link's number in an answer to [`list_addresses`], when one of ours made it.
pub fn our_address(told: &Told<'_>) -> Option<(IpAddr, u32)> {
    let (head, rest) = told.content.split_first_chunk::<8>()?;
    let index = u32::from_ne_bytes([head[4], head[5], head[6], head[7]]);
    let mut found = (None, None);
    let mut ours = false;
    for (kind, value) in attributes(rest) {
        match kind {
            1 => found.0 = ip(value),
            2 => found.1 = ip(value),
            11 => ours = value == [MADE_BY_US],
            _ => {}
        }
    }
    let address = found.1.or(found.0)?;
    (told.kind == NEW_ADDRESS && ours).then_some((address, index))
}

fn ip(octets: &[u8]) -> Option<IpAddr> {
    let v4 = || <[u8; 4]>::try_from(octets).ok().map(IpAddr::from);
    v4().or_else(|| <[u8; 16]>::try_from(octets).ok().map(IpAddr::from))
}

/// Every table of nf_tables, please.
pub fn list_tables() -> Messages {
    let mut messages = Messages::default();
    // NFT_MSG_GETTABLE
    messages.push(NEW_TABLE | 1, DUMP, |into| into.extend([0; 4]));
    messages
}

/// The table's name in an answer to [`list_tables`].
pub fn table_name(told: &Told<'_>) -> Option<String> {
    let rest = told.content.get(4..).filter(|_| told.kind == NEW_TABLE)?;
    let (_, name) = attributes(rest).find(|(kind, _)| *kind == 1)?;
    let name = name.strip_suffix(&[0]).unwrap_or(name);
    Some(String::from_utf8_lossy(name).into_owned())
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
    let (kind, flags) = if there {
        (NEW_ADDRESS, ACK | CREATE | EXCL)
    } else {
        (21, ACK)
    };
    messages.push(kind, flags, |into| {
        // Nobody else looks for it (IFA_F_NODAD), and it is never the source of other connections (RT_SCOPE_HOST).
        let (flags, scope) = if ip.is_ipv4() { (0, 254) } else { (2, 0) };
        into.extend([family, (octets.len() * 8) as u8, flags, scope]);
        into.extend(index.to_ne_bytes());
        attribute(into, 2, |into| into.extend_from_slice(&octets));
        attribute(into, 1, |into| into.extend_from_slice(&octets));
        attribute(into, 11, |into| into.push(MADE_BY_US));
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
    let nft = |kind: u16| NEW_TABLE | kind;
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_address_is_read_as_it_is_written() {
        for ip in ["169.254.20.10", "fd00:96::a"] {
            let ip: IpAddr = ip.parse().unwrap();
            let written = address(ip, 7, true);
            let told: Vec<Told<'_>> = told(written.as_bytes()).collect();
            assert_eq!(told.len(), 1);
            assert_eq!(our_address(&told[0]), Some((ip, 7)));
        }
    }

    #[test]
    fn a_table_is_read_as_it_is_written() {
        let written = untracked("portolan-dns-1", &["10.96.0.10:53".parse().unwrap()]);
        let names: Vec<String> = told(written.as_bytes()).filter_map(|told| table_name(&told)).collect();
        assert_eq!(names, ["portolan-dns-1"]);
        // Of the batch only what is between its ends is answered: a table, two chains, and three rules for each protocol.
        assert_eq!(written.answers, 1 + 2 + 2 * 3);
    }

    proptest! {
        #[test]
        fn nothing_that_is_told_makes_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            for told in told(&bytes) {
                let _ = (our_address(&told), table_name(&told));
            }
        }
    }
}
