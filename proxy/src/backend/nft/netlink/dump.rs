//! Dumps: reading what the kernel holds.

use std::io;

use super::attr::Writer;
use super::constants::*;
use super::message::{self, Message, Messages, nft};
use super::socket::Socket;

/// How often a dump is begun anew because the ruleset changed under it.
const ATTEMPTS: usize = 50;

/// Lists nf_tables objects (`NFT_MSG_GET*`); see [`dump_messages`].
pub(crate) fn dump<T>(
    socket: &mut Socket,
    kind: u8,
    family: u8,
    fill: impl Fn(&mut Writer<'_>),
    each: impl FnMut(&mut T, &Message<'_>),
    new: impl Fn() -> T,
) -> io::Result<Option<T>> {
    dump_messages(socket, nft(kind), family, fill, each, new)
}

/// Asks for one nf_tables object; see [`dump_messages`].
pub(crate) fn get<T>(
    socket: &mut Socket,
    kind: u8,
    family: u8,
    fill: impl Fn(&mut Writer<'_>),
    each: impl FnMut(&mut T, &Message<'_>),
    new: impl Fn() -> T,
) -> io::Result<Option<T>> {
    ask((socket, NLM_F_ACK), nft(kind), family, fill, each, new)
}

/// Lists what messages of type `kind` list. `each` sees every message of one consistent list, in what `new` made; that
/// is made anew when the list has to be begun anew. `None`: what was asked for does not exist.
pub(crate) fn dump_messages<T>(
    socket: &mut Socket,
    kind: u16,
    family: u8,
    fill: impl Fn(&mut Writer<'_>),
    each: impl FnMut(&mut T, &Message<'_>),
    new: impl Fn() -> T,
) -> io::Result<Option<T>> {
    ask((socket, NLM_F_DUMP), kind, family, fill, each, new)
}

fn ask<T>(
    (socket, flags): (&mut Socket, u16),
    kind: u16,
    family: u8,
    fill: impl Fn(&mut Writer<'_>),
    mut each: impl FnMut(&mut T, &Message<'_>),
    new: impl Fn() -> T,
) -> io::Result<Option<T>> {
    socket.set_nonblocking(false)?;
    for attempt in 0..ATTEMPTS {
        let sequence = u32::try_from(attempt + 1).unwrap_or(1);
        let mut request = Vec::new();
        message::write(&mut request, kind, flags, sequence, (family, 0), &fill);
        socket.send(&request)?;
        let mut found = new();
        match read(socket, sequence, |message| each(&mut found, message))? {
            End::Complete => return Ok(Some(found)),
            End::Absent => return Ok(None),
            End::Interrupted => {}
        }
    }
    Err(io::Error::new(
        io::ErrorKind::ResourceBusy,
        format!("the ruleset changed during each of {ATTEMPTS} attempts to read it"),
    ))
}

/// The number of the ruleset: every committed batch, of anyone and to any table, counts it up.
pub(crate) fn generation(socket: &mut Socket) -> io::Result<u32> {
    socket.set_nonblocking(false)?;
    ask_generation(socket)?;
    loop {
        let datagram = match socket.receive() {
            Ok(datagram) => datagram,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        for message in Messages(datagram) {
            if message.nft_kind() == Some(NFT_MSG_NEWGEN)
                && let Some(generation) = message.attributes().be32(NFTA_GEN_ID)
            {
                return Ok(generation);
            }
            if message.kind == NLMSG_ERROR
                && let Some(answer) = message.acknowledgement().filter(|answer| answer.errno != 0)
            {
                return Err(io::Error::from_raw_os_error(answer.errno));
            }
        }
    }
}

/// Asks for the number of the ruleset: whoever receives from the socket gets the answer.
pub(crate) fn ask_generation(socket: &Socket) -> io::Result<()> {
    let mut request = Vec::new();
    message::write(&mut request, nft(NFT_MSG_GETGEN), 0, 0, (0, 0), |_| {});
    socket.send(&request)
}

enum End {
    Complete,
    Absent,
    Interrupted,
}

fn read(socket: &mut Socket, sequence: u32, mut each: impl FnMut(&Message<'_>)) -> io::Result<End> {
    let mut interrupted = false;
    loop {
        let datagram = match socket.receive() {
            Ok(datagram) => datagram,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        for message in Messages(datagram).filter(|message| message.sequence == sequence) {
            interrupted |= message.flags & NLM_F_DUMP_INTR != 0;
            if message.kind == NLMSG_ERROR || message.kind == NLMSG_DONE {
                let errno = message.acknowledgement().map_or(0, |answer| answer.errno);
                return match errno {
                    _ if interrupted => Ok(End::Interrupted),
                    0 => Ok(End::Complete),
                    libc::ENOENT => Ok(End::Absent),
                    libc::EINTR | libc::EAGAIN => Ok(End::Interrupted),
                    errno => Err(io::Error::from_raw_os_error(errno)),
                };
            }
            each(&message);
        }
    }
}
