//! Domain names in wire form: reading them from packets and text, lower case, labels, addresses in labels.
//!
//! Never allocates for a name that comes from a packet, and never trusts one.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use thiserror::Error;

/// The longest name on the wire with its root label (RFC 1035 section 2.3.4).
pub const MAX_NAME: usize = 255;
/// The longest label.
pub const MAX_LABEL: usize = 63;
const MAX_LABELS: usize = 128;

/// Why bytes or text are not a name.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum NameError {
    /// The packet ends inside the name.
    #[error("the name is cut off")]
    CutOff,
    /// A compression pointer, which a question has no use for, or a label type that does not exist.
    #[error("the name holds a pointer or an unknown label type")]
    NotPlain,
    /// A label is empty or longer than 63 octets.
    #[error("a label is empty or longer than 63 octets")]
    BadLabel,
    /// More than 255 octets.
    #[error("the name is longer than 255 octets")]
    TooLong,
}

/// A name of a packet, as it was sent and in lower case, with the places of its labels.
#[derive(Clone)]
pub struct Name {
    sent: [u8; MAX_NAME],
    lower: [u8; MAX_NAME],
    starts: [u8; MAX_LABELS],
    length: u8,
    labels: u8,
}

// === impl Name ===

impl Name {
    /// The root.
    pub fn root() -> Self {
        Self {
            sent: [0; MAX_NAME],
            lower: [0; MAX_NAME],
            starts: [0; MAX_LABELS],
            length: 1,
            labels: 0,
        }
    }

    /// Reads the name at `offset` of a packet; says where it ends.
    ///
    /// # Errors
    /// When the bytes are no plain name.
    pub fn read(packet: &[u8], offset: usize) -> Result<(Self, usize), NameError> {
        let mut name = Self::root();
        let end = name.read_into(packet, offset)?;
        Ok((name, end))
    }

    /// The same into a name that is there already, whatever it held. On an error it holds nothing of use.
    ///
    /// # Errors
    /// When the bytes are no plain name.
    pub fn read_into(&mut self, packet: &[u8], offset: usize) -> Result<usize, NameError> {
        self.labels = 0;
        let mut at = 0;
        let rest = packet.get(offset..).unwrap_or_default();
        loop {
            let length = usize::from(*rest.get(at).ok_or(NameError::CutOff)?);
            if length == 0 {
                break;
            }
            if length > MAX_LABEL {
                return Err(NameError::NotPlain);
            }
            let next = at + 1 + length;
            if next >= MAX_NAME {
                return Err(NameError::TooLong);
            }
            if next > rest.len() {
                return Err(NameError::CutOff);
            }
            self.note_label(at);
            at = next;
        }
        // `at` is below 255 here and the root label stands at it.
        self.length = at as u8 + 1;
        self.sent[..=at].copy_from_slice(&rest[..=at]);
        self.lower[..=at].copy_from_slice(&rest[..=at]);
        // Lengths are below 64, so that lower-casing the whole name leaves them alone.
        self.lower[..=at].make_ascii_lowercase();
        Ok(offset + at + 1)
    }

    fn note_label(&mut self, at: usize) {
        self.starts[usize::from(self.labels)] = at as u8;
        self.labels += 1;
    }

    /// Reads a name in wire form.
    ///
    /// # Errors
    /// When the bytes are no plain name.
    pub fn from_wire(wire: &[u8]) -> Result<Self, NameError> {
        Self::read(wire, 0).map(|(name, _)| name)
    }

    /// Reads a name as people write it, with or without the dot at its end.
    ///
    /// # Errors
    /// When the text is no name.
    pub fn from_text(text: &str) -> Result<Self, NameError> {
        Self::from_wire(&wire_from_text(text)?)
    }

    /// The name as it was sent, with the root label.
    pub fn sent(&self) -> &[u8] {
        &self.sent[..usize::from(self.length)]
    }

    /// The name in lower case, with the root label.
    pub fn lower(&self) -> &[u8] {
        &self.lower[..usize::from(self.length)]
    }

    /// How many labels the name has, without the root.
    pub fn labels(&self) -> usize {
        usize::from(self.labels)
    }

    /// Where a label begins, counted from the left; the root label's place for the one behind the last.
    pub fn start(&self, label: usize) -> usize {
        if label < self.labels() {
            usize::from(self.starts[label])
        } else {
            usize::from(self.length) - 1
        }
    }

    /// A label in lower case without its length octet; empty behind the last.
    pub fn label(&self, label: usize) -> &[u8] {
        if label < self.labels() {
            &self.lower[self.start(label) + 1..self.start(label + 1)]
        } else {
            &[]
        }
    }

    /// Labels `from..to` in lower case and wire form, without a root label.
    pub fn span(&self, from: usize, to: usize) -> &[u8] {
        let end = self.start(to);
        &self.lower[self.start(from).min(end)..end]
    }

    /// The lower-case name from a label to the root, in wire form.
    pub fn suffix(&self, label: usize) -> &[u8] {
        &self.lower()[self.start(label)..]
    }
}

impl std::fmt::Debug for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&text(self.sent()))
    }
}

impl std::fmt::Display for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&text(self.sent()))
    }
}

/// A name in wire form, in the letter case of the text.
///
/// # Errors
/// When the text is no name.
pub fn wire_from_text(text: &str) -> Result<Box<[u8]>, NameError> {
    let text = text.strip_suffix('.').unwrap_or(text);
    let mut wire = Vec::with_capacity(text.len() + 2);
    for label in text.split('.').filter(|_| !text.is_empty()) {
        push_label(&mut wire, label.as_bytes())?;
    }
    wire.push(0);
    if wire.len() > MAX_NAME {
        return Err(NameError::TooLong);
    }
    Ok(wire.into())
}

/// Appends a label with its length octet.
///
/// # Errors
/// When the label is empty or too long.
pub fn push_label(wire: &mut Vec<u8>, label: &[u8]) -> Result<(), NameError> {
    if label.is_empty() || label.len() > MAX_LABEL {
        return Err(NameError::BadLabel);
    }
    wire.push(label.len() as u8);
    wire.extend_from_slice(label);
    Ok(())
}

/// A name in wire form as people write it, with the dot at its end. Bytes that would confuse a reader are escaped.
pub fn text(wire: &[u8]) -> String {
    let mut out = String::new();
    let mut rest = wire;
    while let Some((&length, tail)) = rest.split_first() {
        let length = usize::from(length).min(tail.len());
        if length == 0 {
            break;
        }
        for &byte in &tail[..length] {
            match byte {
                b'.' | b'\\' | b'"' | b';' => out.extend(['\\', char::from(byte)]),
                0x21..=0x7e => out.push(char::from(byte)),
                _ => out.push_str(&format!("\\{byte:03}")),
            }
        }
        out.push('.');
        rest = &tail[length..];
    }
    if out.is_empty() {
        out.push('.');
    }
    out
}

/// A label made of an address (CoreDNS's form): `10-0-0-1`, `2001-db8--1`, `2001-db8--0`.
#[derive(Clone, Copy)]
pub struct DashedLabel {
    /// The label behind its length octet.
    bytes: [u8; 49],
    length: u8,
}

// === impl DashedLabel ===

impl DashedLabel {
    /// The label of an address.
    pub fn new(ip: IpAddr) -> Self {
        use std::io::Write;
        let mut label = Self {
            bytes: [0; 49],
            length: 0,
        };
        let mut rest = &mut label.bytes[1..];
        // 45 octets are the longest address; writing into the array cannot fail.
        let _ = write!(rest, "{ip}");
        let left = rest.len();
        let mut length = 48 - left;
        for byte in &mut label.bytes[1..=length] {
            if matches!(*byte, b'.' | b':') {
                *byte = b'-';
            }
        }
        if label.bytes[1..=length].last() == Some(&b'-') {
            label.bytes[length + 1] = b'0';
            length += 1;
        }
        label.length = length as u8;
        label.bytes[0] = label.length;
        label
    }

    /// The label without a length octet.
    pub fn as_bytes(&self) -> &[u8] {
        &self.wire()[1..]
    }

    /// The label in wire form.
    pub fn wire(&self) -> &[u8] {
        &self.bytes[..=usize::from(self.length)]
    }
}

/// The address that a dashed label spells, in any spelling of that address.
pub fn parse_dashed(label: &[u8]) -> Option<IpAddr> {
    if label.len() > 45 || !label.iter().all(|c| c.is_ascii_hexdigit() || *c == b'-') {
        return None;
    }
    let mut bytes = [0; 45];
    let bytes = &mut bytes[..label.len()];
    bytes.copy_from_slice(label);
    let v4 = label.iter().filter(|c| **c == b'-').count() == 3 && !label.windows(2).any(|pair| pair == b"--");
    for byte in bytes.iter_mut().filter(|byte| **byte == b'-') {
        *byte = if v4 { b'.' } else { b':' };
    }
    std::str::from_utf8(bytes).ok()?.parse().ok()
}

/// What a name below `in-addr.arpa` or `ip6.arpa` stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reverse {
    /// A whole address.
    Address(IpAddr),
    /// Fewer labels than an address has: an empty non-terminal, when there is something below.
    Prefix,
    /// Nothing.
    None,
}

/// Reads the labels of a reverse name.
pub fn parse_reverse(name: &Name) -> Reverse {
    let Some(labels) = name.labels().checked_sub(2) else {
        return Reverse::None;
    };
    match name.suffix(labels) {
        b"\x07in-addr\x04arpa\x00" => parse_in_addr(name, labels),
        b"\x03ip6\x04arpa\x00" => parse_ip6(name, labels),
        _ => Reverse::None,
    }
}

fn parse_in_addr(name: &Name, labels: usize) -> Reverse {
    let mut octets = [0; 4];
    if labels > octets.len() {
        return Reverse::None;
    }
    for (i, octet) in octets.iter_mut().enumerate().take(labels) {
        let label = name.label(labels - 1 - i);
        let plain = label.iter().all(u8::is_ascii_digit) && (label.len() == 1 || label.first() != Some(&b'0'));
        let Some(value) = std::str::from_utf8(label)
            .ok()
            .filter(|_| plain)
            .and_then(|text| text.parse().ok())
        else {
            return Reverse::None;
        };
        *octet = value;
    }
    if labels == 4 {
        Reverse::Address(Ipv4Addr::from(octets).into())
    } else {
        Reverse::Prefix
    }
}

fn parse_ip6(name: &Name, labels: usize) -> Reverse {
    let mut bits: u128 = 0;
    if labels > 32 {
        return Reverse::None;
    }
    for i in 0..labels {
        let digit = match name.label(labels - 1 - i) {
            [digit] => char::from(*digit).to_digit(16),
            _ => None,
        };
        let Some(digit) = digit else { return Reverse::None };
        bits = bits << 4 | u128::from(digit);
    }
    if labels == 32 {
        Reverse::Address(Ipv6Addr::from(bits).into())
    } else {
        Reverse::Prefix
    }
}

/// The reverse name of an address, in wire form.
pub fn reverse_name(ip: IpAddr) -> Box<[u8]> {
    let mut wire = Vec::new();
    match ip {
        IpAddr::V4(ip) => {
            for octet in ip.octets().iter().rev() {
                let text = octet.to_string();
                wire.push(text.len() as u8);
                wire.extend_from_slice(text.as_bytes());
            }
            wire.extend_from_slice(b"\x07in-addr\x04arpa\x00");
        }
        IpAddr::V6(ip) => {
            for octet in ip.octets().iter().rev() {
                for digit in [octet & 15, octet >> 4] {
                    wire.extend([1, b"0123456789abcdef"[usize::from(digit)]]);
                }
            }
            wire.extend_from_slice(b"\x03ip6\x04arpa\x00");
        }
    }
    wire.into()
}

/// The reverse zones of a range of addresses, in wire form. A range that ends between two labels is several zones.
pub fn reverse_zones(net: &IpNet) -> Vec<Box<[u8]>> {
    let bits = match net {
        IpNet::V4(_) => 8,
        IpNet::V6(_) => 4,
    };
    let labels = net.prefix_len().div_ceil(bits);
    let Ok(subnets) = net.subnets(labels * bits) else {
        return Vec::new();
    };
    let skipped = usize::from(net.max_prefix_len() / bits - labels);
    let zone = |subnet: IpNet| {
        let whole = reverse_name(subnet.network());
        let name = Name::from_wire(&whole).ok()?;
        Some(name.suffix(skipped).into())
    };
    subnets.filter_map(zone).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_from_text_and_wire() {
        let name = Name::from_text("Web.Shop.svc.Cluster.local").unwrap();
        assert_eq!(name.labels(), 5);
        assert_eq!(name.label(0), b"web");
        assert_eq!(name.label(9), b"");
        assert_eq!(name.span(0, 2), b"\x03web\x04shop");
        assert_eq!(name.suffix(3), b"\x07cluster\x05local\x00");
        assert_eq!(name.to_string(), "Web.Shop.svc.Cluster.local.");
        assert_eq!(Name::from_text(".").unwrap().sent(), [0]);
        assert_eq!(Name::from_text("").unwrap().to_string(), ".");
        assert_eq!(Name::from_text("a..b").unwrap_err(), NameError::BadLabel);
        assert_eq!(Name::from_text(&"a.".repeat(128)).unwrap_err(), NameError::TooLong);
        assert_eq!(Name::from_text(&"a.".repeat(127)).unwrap().labels(), 127);
        assert_eq!(Name::read(b"\x03ab", 0).unwrap_err(), NameError::CutOff);
        assert_eq!(Name::read(b"\xc0\x0c", 0).unwrap_err(), NameError::NotPlain);
        assert_eq!(Name::read(b"\x01a\x00", 7).unwrap_err(), NameError::CutOff);
    }

    #[test]
    fn addresses_become_labels_and_back() {
        for (ip, label) in [
            ("10.0.0.1", "10-0-0-1"),
            ("2001:db8::1", "2001-db8--1"),
            ("2001:db8::", "2001-db8--0"),
            ("::1", "--1"),
        ] {
            let ip: IpAddr = ip.parse().unwrap();
            assert_eq!(DashedLabel::new(ip).as_bytes(), label.as_bytes());
            assert_eq!(parse_dashed(label.as_bytes()), Some(ip), "{label}");
        }
        assert_eq!(parse_dashed(b"web-0"), None);
        assert_eq!(parse_dashed(b"10-0-0-256"), None);
        assert_eq!(parse_dashed(b""), None);
    }

    #[test]
    fn reverse_names_are_read_and_written() {
        for ip in ["10.96.0.10", "fd00:96::a", "0.0.0.0", "::"] {
            let ip: IpAddr = ip.parse().unwrap();
            let name = Name::from_wire(&reverse_name(ip)).unwrap();
            assert_eq!(parse_reverse(&name), Reverse::Address(ip), "{name}");
        }
        for (name, reverse) in [
            ("96.10.in-addr.arpa", Reverse::Prefix),
            ("in-addr.arpa", Reverse::Prefix),
            ("1.2.3.4.5.in-addr.arpa", Reverse::None),
            ("01.2.3.4.in-addr.arpa", Reverse::None),
            ("x.ip6.arpa", Reverse::None),
            ("aa.ip6.arpa", Reverse::None),
            ("arpa", Reverse::None),
        ] {
            assert_eq!(parse_reverse(&Name::from_text(name).unwrap()), reverse, "{name}");
        }
    }
}
