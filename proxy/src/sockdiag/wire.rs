//! `sock_diag` messages: `linux/inet_diag.h`, `linux/sock_diag.h`. Names are theirs.

use std::io::{self, Read as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use socket2::{Domain, Protocol, Socket, Type};

use super::Connected;

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_DUMP: u16 = 0x300;
/// A connected datagram socket is in the state of an established connection.
const ESTABLISHED: u32 = 1 << 1;

/// `nlmsghdr`.
const HEADER: usize = 16;
/// Length of `inet_diag_sockid`.
const ID: usize = 48;
/// Where `inet_diag_msg` has its `inet_diag_sockid`.
const ID_AT: usize = 4;
/// Datagrams of a dump are smaller.
const RECEIVE: usize = 64 * 1024;

/// What names a socket: its family and `inet_diag_sockid`, as the kernel wrote it.
#[derive(Clone, Copy, Debug)]
pub(super) struct SocketId {
    family: u8,
    id: [u8; ID],
}

/// A socket that asks about sockets.
pub(super) struct Diag {
    raw: Socket,
    buffer: Vec<u8>,
    sequence: u32,
}

// === impl Diag ===

impl Diag {
    /// Asks about the calling thread's network namespace.
    pub(super) fn open() -> io::Result<Self> {
        let protocol = Protocol::from(libc::NETLINK_SOCK_DIAG);
        Ok(Self {
            raw: Socket::new(Domain::from(libc::AF_NETLINK), Type::RAW, Some(protocol))?,
            buffer: vec![0; RECEIVE],
            sequence: 0,
        })
    }

    /// All connected UDP sockets.
    pub(super) fn connected(&mut self) -> io::Result<Vec<(Connected, SocketId)>> {
        let mut found = Vec::new();
        for family in [libc::AF_INET, libc::AF_INET6] {
            let family = u8::try_from(family).unwrap_or(0);
            let everything = SocketId { family, id: [0; ID] };
            self.send(SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST | NLM_F_DUMP, &everything)?;
            self.receive(|kind, payload| {
                if kind == SOCK_DIAG_BY_FAMILY {
                    found.extend(parse(payload));
                }
            })?;
        }
        Ok(found)
    }

    /// Destroys a socket; `false` when it is gone already.
    pub(super) fn destroy(&mut self, id: &SocketId) -> io::Result<bool> {
        self.send(SOCK_DESTROY, NLM_F_REQUEST | NLM_F_ACK, id)?;
        match self.receive(|_, _| {}) {
            Ok(()) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Sends an `inet_diag_req_v2`.
    fn send(&mut self, kind: u16, flags: u16, socket: &SocketId) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let length = u32::try_from(HEADER + 8 + ID).unwrap_or(0);
        let mut request = Vec::with_capacity(HEADER + 8 + ID);
        request.extend(length.to_ne_bytes());
        request.extend(kind.to_ne_bytes());
        request.extend(flags.to_ne_bytes());
        request.extend(self.sequence.to_ne_bytes());
        request.extend(0u32.to_ne_bytes());
        request.extend([socket.family, u8::try_from(libc::IPPROTO_UDP).unwrap_or(0), 0, 0]);
        request.extend(ESTABLISHED.to_ne_bytes());
        request.extend(socket.id);
        self.raw.send(&request).map(drop)
    }

    /// Hands each message of the answer to `each`, up to its end.
    fn receive(&mut self, mut each: impl FnMut(u16, &[u8])) -> io::Result<()> {
        loop {
            let length = match (&self.raw).read(&mut self.buffer) {
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            let mut rest = self.buffer.get(..length).unwrap_or_default();
            while let Some((kind, sequence, payload, next)) = message(rest) {
                rest = next;
                if sequence != self.sequence {
                    continue;
                }
                match kind {
                    NLMSG_DONE | NLMSG_ERROR => {
                        let errno = payload.first_chunk::<4>().map_or(0, |errno| i32::from_ne_bytes(*errno));
                        return match errno {
                            0 => Ok(()),
                            errno => Err(io::Error::from_raw_os_error(errno.saturating_neg())),
                        };
                    }
                    kind => each(kind, payload),
                }
            }
        }
    }
}

/// The first message of a datagram: type, sequence number, payload and what follows it.
fn message(bytes: &[u8]) -> Option<(u16, u32, &[u8], &[u8])> {
    let number = |at: usize| Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk::<4>()?));
    let length = usize::try_from(number(0)?).ok()?;
    let kind = u16::from_ne_bytes(*bytes.get(4..)?.first_chunk::<2>()?);
    let payload = bytes.get(HEADER..length)?;
    let next = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    Some((kind, number(8)?, payload, next))
}

/// An `inet_diag_msg`; `None` when it is none.
pub(super) fn parse(payload: &[u8]) -> Option<(Connected, SocketId)> {
    let family = *payload.first()?;
    let id: [u8; ID] = *payload.get(ID_AT..)?.first_chunk()?;
    let port = |at: usize| Some(u16::from_be_bytes(*id.get(at..)?.first_chunk::<2>()?));
    let address = |at: usize| -> Option<IpAddr> {
        match i32::from(family) {
            libc::AF_INET => Some(Ipv4Addr::from(*id.get(at..)?.first_chunk::<4>()?).into()),
            libc::AF_INET6 => Some(Ipv6Addr::from(*id.get(at..)?.first_chunk::<16>()?).to_canonical()),
            _ => None,
        }
    };
    let cookie = u64::from_ne_bytes(*id.get(40..)?.first_chunk::<8>()?);
    let connected = Connected {
        local: (address(4)?, port(0)?).into(),
        remote: (address(20)?, port(2)?).into(),
        cookie,
    };
    Some((connected, SocketId { family, id }))
}
