//! A batch: messages that the kernel carries out together or not at all.
//!
//! All of a batch goes in one datagram and nf_tables works it off inside the call that sends it, so that its answers
//! wait in the socket when the call returns. Every object remembers whom it is for: a refusal names its culprits.

use std::fmt;
use std::io;

use super::attr::Writer;
use super::constants::*;
use super::message::{self, Messages, nft};
use super::socket::Socket;

/// A list of elements is one attribute, which holds less than 64 KiB. Leaves room for one more element of any size.
const LIST_LIMIT: usize = 60 * 1024;

/// Messages for one transaction.
#[derive(Debug)]
pub(crate) struct Batch {
    buffer: Vec<u8>,
    /// Where each message starts, by sequence number minus one.
    starts: Vec<usize>,
    /// Where each element starts in the buffer and whom it is for: ascending.
    owners: Vec<(usize, u32)>,
    list: Option<OpenList>,
}

/// A list of elements that still grows.
#[derive(Debug)]
struct OpenList {
    message: usize,
    attribute: usize,
    kind: u8,
    family: u8,
    set: &'static str,
}

/// What the kernel refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) errno: i32,
    /// The kernel's own words.
    pub(crate) text: Option<String>,
    /// The owner of the object, when the kernel said which it is.
    pub(crate) owner: Option<u32>,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the kernel refused it: {}", io::Error::from_raw_os_error(self.errno))?;
        self.text.iter().try_for_each(|text| write!(f, " ({text})"))
    }
}

/// Why a batch was not carried out.
#[derive(Debug)]
pub(crate) enum BatchError {
    /// The kernel refused some of its messages.
    Refused(Vec<Refusal>),
    /// It could not be sent, or the answer could not be read.
    Io(io::Error),
}

impl From<io::Error> for BatchError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl Batch {
    /// Nobody's object: part of the frame that all share.
    pub(crate) const SHARED: u32 = u32::MAX;

    pub(crate) fn new() -> Self {
        let mut buffer = Vec::new();
        message::write(
            &mut buffer,
            NFNL_MSG_BATCH_BEGIN,
            0,
            0,
            (0, NFNL_SUBSYS_NFTABLES),
            |_| {},
        );
        Self {
            buffer,
            starts: Vec::new(),
            owners: Vec::new(),
            list: None,
        }
    }

    /// How many messages there are, without those that begin and end the batch.
    pub(crate) fn messages(&self) -> usize {
        self.starts.len()
    }

    /// How many bytes there are.
    pub(crate) fn len(&self) -> usize {
        self.buffer.len()
    }

    /// Adds a message about one object.
    pub(crate) fn message(&mut self, kind: u8, flags: u16, family: u8, owner: u32, fill: impl FnOnce(&mut Writer<'_>)) {
        let start = self.open(kind, flags, family);
        self.owners.push((start, owner));
        fill(&mut Writer(&mut self.buffer));
        message::close(&mut self.buffer, start);
    }

    fn open(&mut self, kind: u8, flags: u16, family: u8) -> usize {
        self.close_list();
        let sequence = u32::try_from(self.starts.len() + 1).unwrap_or(u32::MAX);
        let start = message::open(&mut self.buffer, nft(kind), flags, sequence, (family, 0));
        self.starts.push(start);
        start
    }

    /// Adds one element to a set or deletes it (`kind`). Elements of one set that follow each other share messages.
    pub(crate) fn element(
        &mut self,
        kind: u8,
        family: u8,
        (table, set): (&str, &'static str),
        owner: u32,
        fill: impl FnOnce(&mut Writer<'_>),
    ) {
        let fits = self.list.as_ref().is_some_and(|list| {
            (list.kind, list.family, list.set) == (kind, family, set) && self.buffer.len() - list.attribute < LIST_LIMIT
        });
        if !fits {
            let flags = if kind == NFT_MSG_NEWSETELEM { NLM_F_CREATE } else { 0 };
            let message = self.open(kind, flags, family);
            let mut writer = Writer(&mut self.buffer);
            writer.text(NFTA_SET_ELEM_LIST_TABLE, table);
            writer.text(NFTA_SET_ELEM_LIST_SET, set);
            let attribute = writer.open_nest(NFTA_SET_ELEM_LIST_ELEMENTS);
            self.list = Some(OpenList {
                message,
                attribute,
                kind,
                family,
                set,
            });
        }
        self.owners.push((self.buffer.len(), owner));
        Writer(&mut self.buffer).nest(NFTA_LIST_ELEM, fill);
    }

    fn close_list(&mut self) {
        if let Some(list) = self.list.take() {
            Writer(&mut self.buffer).close(list.attribute);
            message::close(&mut self.buffer, list.message);
        }
    }

    /// Completes the batch: the bytes to send.
    fn finish(&mut self) -> &[u8] {
        self.close_list();
        // The answer to the last message tells that the kernel has read the batch to its end.
        if let Some(flags) = self
            .starts
            .last()
            .and_then(|start| self.buffer.get_mut(start + 6..start + 8))
        {
            flags.copy_from_slice(
                &(u16::from_ne_bytes([flags.first().copied().unwrap_or(0), flags.get(1).copied().unwrap_or(0)])
                    | NLM_F_ACK)
                    .to_ne_bytes(),
            );
        }
        message::write(
            &mut self.buffer,
            NFNL_MSG_BATCH_END,
            0,
            0,
            (0, NFNL_SUBSYS_NFTABLES),
            |_| {},
        );
        &self.buffer
    }

    /// Has the kernel carry out the batch. An empty one is not sent.
    pub(crate) fn commit(mut self, socket: &mut Socket) -> Result<(), BatchError> {
        if self.starts.is_empty() {
            return Ok(());
        }
        self.finish();
        drain(socket)?;
        socket.grow(self.buffer.len() + self.buffer.len() / 8)?;
        socket.send(&self.buffer)?;
        self.answer(socket)
    }

    /// Reads what the kernel said.
    fn answer(&self, socket: &mut Socket) -> Result<(), BatchError> {
        let last = u32::try_from(self.starts.len()).unwrap_or(u32::MAX);
        let mut acknowledged = false;
        let mut refusals = Vec::new();
        socket.set_nonblocking(true)?;
        loop {
            let datagram = match socket.receive() {
                Ok(datagram) => datagram,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                // More errors than the socket holds: those that were read are enough to go on with.
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) && !refusals.is_empty() => break,
                Err(error) => return Err(error.into()),
            };
            for message in Messages(datagram).filter(|message| message.kind == NLMSG_ERROR) {
                let Some(answer) = message.acknowledgement() else {
                    continue;
                };
                if answer.errno == 0 {
                    acknowledged |= message.sequence == last;
                } else {
                    refusals.push(Refusal {
                        errno: answer.errno,
                        owner: self.owner(message.sequence, answer.offset),
                        text: answer.text,
                    });
                }
            }
        }
        match (refusals.is_empty(), acknowledged) {
            (true, true) => Ok(()),
            (true, false) => Err(BatchError::Io(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the kernel did not answer the batch",
            ))),
            (false, _) => Err(BatchError::Refused(refusals)),
        }
    }

    /// Whom the object at an offset of a message is for.
    fn owner(&self, sequence: u32, offset: Option<u32>) -> Option<u32> {
        let index = usize::try_from(sequence).ok()?.checked_sub(1)?;
        let start = *self.starts.get(index)?;
        let end = self.starts.get(index + 1).copied().unwrap_or(self.buffer.len());
        let first = self.owners.partition_point(|(at, _)| *at < start);
        let last = self.owners.partition_point(|(at, _)| *at < end);
        let owners = self.owners.get(first..last)?;
        if let [(_, only)] = owners {
            return Some(*only);
        }
        // The offset points at the element or into it.
        let at = start + usize::try_from(offset?).ok()?;
        let next = owners.partition_point(|(element, _)| *element <= at);
        owners.get(next.checked_sub(1)?).map(|(_, owner)| *owner)
    }
}

/// Throws away late answers to an earlier batch, so that they are not taken for ours.
fn drain(socket: &mut Socket) -> io::Result<()> {
    socket.set_nonblocking(true)?;
    loop {
        match socket.receive() {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // An overrun is reported once; what is still queued can be read after it.
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
impl Batch {
    /// The bytes as they would be sent.
    pub(crate) fn bytes(&mut self) -> &[u8] {
        self.finish()
    }

    /// A refusal of a message, as the kernel's answer would become one.
    pub(crate) fn refusal(&self, sequence: u32, offset: Option<u32>, errno: i32) -> BatchError {
        let owner = self.owner(sequence, offset);
        BatchError::Refused(vec![Refusal {
            errno,
            text: None,
            owner,
        }])
    }
}
