//! A netlink socket to the kernel's netfilter subsystem. The only unsafe code of the nftables backend.

use std::io::{self, Read as _};
use std::mem;
use std::os::fd::AsRawFd as _;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket as RawSocket, Type};

/// Large enough for any datagram of a dump (the kernel makes at most 32 KiB) and any acknowledgement (they are capped).
const RECEIVE: usize = 128 * 1024;
/// The smallest buffers that we ask for.
const BUFFER: usize = 1 << 20;

/// A socket that talks to the kernel.
#[derive(Debug)]
pub(crate) struct Socket {
    raw: RawSocket,
    buffer: Box<[u8]>,
}

impl Socket {
    /// Opens a socket in the calling thread's network namespace.
    pub(crate) fn open() -> io::Result<Self> {
        let protocol = Protocol::from(libc::NETLINK_NETFILTER);
        let raw = RawSocket::new(Domain::from(libc::AF_NETLINK), Type::RAW, Some(protocol))?;
        let socket = Self {
            raw,
            buffer: vec![0; RECEIVE].into_boxed_slice(),
        };
        // Both came before nf_tables did: no kernel that matters lacks them.
        socket.option(libc::SOL_NETLINK, libc::NETLINK_CAP_ACK, 1)?;
        socket.option(libc::SOL_NETLINK, libc::NETLINK_EXT_ACK, 1)?;
        socket.grow(BUFFER)?;
        socket.bind()?;
        Ok(socket)
    }

    /// Makes room to send and to receive this much. The limits of the system do not bind us (CAP_NET_ADMIN).
    pub(crate) fn grow(&self, bytes: usize) -> io::Result<()> {
        let bytes = libc::c_int::try_from(bytes.max(BUFFER)).unwrap_or(libc::c_int::MAX);
        self.option(libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, bytes)?;
        self.option(libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, bytes)
    }

    /// Receives the notifications of a group from now on.
    pub(crate) fn join(&self, group: u32) -> io::Result<()> {
        let group = libc::c_int::try_from(group).map_err(io::Error::other)?;
        self.option(libc::SOL_NETLINK, libc::NETLINK_ADD_MEMBERSHIP, group)
    }

    /// Receives them no more.
    pub(crate) fn leave(&self, group: u32) -> io::Result<()> {
        let group = libc::c_int::try_from(group).map_err(io::Error::other)?;
        self.option(libc::SOL_NETLINK, libc::NETLINK_DROP_MEMBERSHIP, group)
    }

    /// The same socket once more, to send and to set options while another thread receives.
    pub(crate) fn sender(&self) -> io::Result<Self> {
        Ok(Self {
            raw: self.raw.try_clone()?,
            buffer: Box::default(),
        })
    }

    /// How long [`Socket::receive`] waits; `None` for ever.
    pub(crate) fn set_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        self.raw.set_read_timeout(timeout)
    }

    pub(crate) fn set_nonblocking(&self, nonblocking: bool) -> io::Result<()> {
        self.raw.set_nonblocking(nonblocking)
    }

    /// Sends one datagram. nf_tables has worked it off, and answered, when this returns.
    pub(crate) fn send(&self, datagram: &[u8]) -> io::Result<()> {
        match self.raw.send(datagram)? {
            sent if sent == datagram.len() => Ok(()),
            sent => Err(io::Error::new(
                io::ErrorKind::WriteZero,
                format!("the kernel took {sent} of {} bytes", datagram.len()),
            )),
        }
    }

    /// The next datagram.
    pub(crate) fn receive(&mut self) -> io::Result<&[u8]> {
        let length = (&self.raw).read(&mut self.buffer)?;
        Ok(self.buffer.get(..length).unwrap_or_default())
    }

    fn option(&self, level: libc::c_int, name: libc::c_int, value: libc::c_int) -> io::Result<()> {
        let length = size_of_val(&value) as libc::socklen_t;
        // SAFETY: the descriptor is open as long as `self` lives; the kernel reads `length` bytes of `value`, which
        // lives until the call returns.
        let result = unsafe { libc::setsockopt(self.raw.as_raw_fd(), level, name, (&raw const value).cast(), length) };
        if result == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    }

    /// Lets the kernel choose our port id.
    fn bind(&self) -> io::Result<()> {
        // SAFETY: sockaddr_nl is plain numbers, for which zero is valid.
        let mut address: libc::sockaddr_nl = unsafe { mem::zeroed() };
        address.nl_family = libc::AF_NETLINK as libc::sa_family_t;
        let length = size_of_val(&address) as libc::socklen_t;
        // SAFETY: the descriptor is open; the kernel reads `length` bytes of `address`.
        let result = unsafe { libc::bind(self.raw.as_raw_fd(), (&raw const address).cast(), length) };
        if result == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    }

    /// Our port id: who we are in the kernel's notifications.
    pub(crate) fn port_id(&self) -> io::Result<u32> {
        // SAFETY: as above.
        let mut address: libc::sockaddr_nl = unsafe { mem::zeroed() };
        let mut length = size_of_val(&address) as libc::socklen_t;
        // SAFETY: the descriptor is open; the kernel writes at most `length` bytes into `address`.
        let result = unsafe { libc::getsockname(self.raw.as_raw_fd(), (&raw mut address).cast(), &raw mut length) };
        if result == 0 {
            Ok(address.nl_pid)
        } else {
            Err(io::Error::last_os_error())
        }
    }
}
