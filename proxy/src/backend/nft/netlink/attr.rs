//! Netlink attributes: writing them into a message and reading them out of a reply.
//!
//! nf_tables takes its numbers in network byte order. Replies come from outside: a malformed attribute ends the list,
//! it never panics.

/// Set in the kind of an attribute that holds attributes.
const NLA_F_NESTED: u16 = 0x8000;
/// What is left of the kind without the two flag bits.
const NLA_TYPE_MASK: u16 = 0x3fff;
const HEADER: usize = 4;

/// Netlink pads attributes and messages to four bytes.
pub(crate) fn align(length: usize) -> usize {
    length.div_ceil(4) * 4
}

/// Appends attributes to a message.
pub(crate) struct Writer<'a>(pub(crate) &'a mut Vec<u8>);

impl Writer<'_> {
    /// An attribute with a payload as it is.
    pub(crate) fn bytes(&mut self, kind: u16, payload: &[u8]) {
        let start = self.open(kind);
        self.0.extend_from_slice(payload);
        self.close(start);
    }

    /// A name: the kernel wants the NUL.
    pub(crate) fn text(&mut self, kind: u16, text: &str) {
        let start = self.open(kind);
        self.0.extend_from_slice(text.as_bytes());
        self.0.push(0);
        self.close(start);
    }

    /// A number in network byte order.
    pub(crate) fn be32(&mut self, kind: u16, value: u32) {
        self.bytes(kind, &value.to_be_bytes());
    }

    /// A number in network byte order.
    pub(crate) fn be64(&mut self, kind: u16, value: u64) {
        self.bytes(kind, &value.to_be_bytes());
    }

    /// An attribute that holds attributes.
    pub(crate) fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Writer<'_>)) {
        let start = self.open(kind | NLA_F_NESTED);
        fill(self);
        self.close(start);
    }

    /// Starts an attribute whose length is not known yet; [`Writer::close`] completes it.
    pub(crate) fn open_nest(&mut self, kind: u16) -> usize {
        self.open(kind | NLA_F_NESTED)
    }

    fn open(&mut self, kind: u16) -> usize {
        let start = self.0.len();
        self.0.extend_from_slice(&[0, 0]);
        self.0.extend_from_slice(&kind.to_ne_bytes());
        start
    }

    /// Writes the length of the attribute that starts at `start` and pads.
    pub(crate) fn close(&mut self, start: usize) {
        let length = self.0.len() - start;
        debug_assert!(length <= usize::from(u16::MAX), "an attribute of {length} bytes");
        let length = u16::try_from(length).unwrap_or(u16::MAX);
        if let Some(field) = self.0.get_mut(start..start + 2) {
            field.copy_from_slice(&length.to_ne_bytes());
        }
        self.0.resize(align(self.0.len()), 0);
    }
}

/// The attributes in `bytes`, as (kind, payload).
#[derive(Clone)]
pub(crate) struct Attributes<'a>(&'a [u8]);

impl<'a> Attributes<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// The first attribute of the kind.
    pub(crate) fn get(&self, kind: u16) -> Option<&'a [u8]> {
        self.clone().find(|(k, _)| *k == kind).map(|(_, payload)| payload)
    }

    /// The attributes inside the attribute of the kind.
    pub(crate) fn nested(&self, kind: u16) -> Option<Attributes<'a>> {
        self.get(kind).map(Attributes)
    }

    pub(crate) fn be32(&self, kind: u16) -> Option<u32> {
        Some(u32::from_be_bytes(self.get(kind)?.try_into().ok()?))
    }

    pub(crate) fn be64(&self, kind: u16) -> Option<u64> {
        Some(u64::from_be_bytes(self.get(kind)?.try_into().ok()?))
    }

    /// A NUL-terminated name.
    pub(crate) fn text(&self, kind: u16) -> Option<&'a str> {
        let payload = self.get(kind)?;
        std::str::from_utf8(payload.strip_suffix(&[0]).unwrap_or(payload)).ok()
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let (&[a, b, c, d], _) = self.0.split_first_chunk::<HEADER>()?;
        let length = usize::from(u16::from_ne_bytes([a, b]));
        let payload = self.0.get(HEADER..length)?;
        self.0 = self.0.get(align(length)..).unwrap_or_default();
        Some((u16::from_ne_bytes([c, d]) & NLA_TYPE_MASK, payload))
    }
}
