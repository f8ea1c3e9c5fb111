//! Batches of datagrams by recvmmsg and sendmmsg.
//!
//! On a wildcard address every datagram tells which of our addresses it was sent to (IP_PKTINFO), and its reply leaves
//! from there: clients drop replies that come from another address.

use std::io;
use std::mem::{size_of, zeroed};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::ptr;

use crate::answer::edns::LARGEST_UDP;

/// Datagrams in a batch.
const DATAGRAMS: usize = 32;
/// Octets of a query; what is longer is cut and will not parse.
const QUERY: usize = 2048;
/// Room for one pktinfo control message, aligned as the kernel wants it.
type Control = [u64; 8];

/// Room for a batch and its replies. The message headers are made anew for every call, so no pointer is kept.
pub(super) struct Batch {
    queries: Box<[[u8; QUERY]]>,
    replies: Box<[[u8; LARGEST_UDP]]>,
    slots: Box<[Slot]>,
}

#[derive(Clone, Copy)]
struct Slot {
    peer: libc::sockaddr_storage,
    peer_length: libc::socklen_t,
    control: Control,
    control_length: usize,
    query_length: usize,
    /// 0: no reply.
    reply_length: usize,
}

/// Where a query came from, and which of our addresses it was sent to.
pub(super) struct Origin(Slot);

/// Asks for the address that each datagram was sent to, when there is more than one.
pub(super) fn prepare(socket: &UdpSocket, address: SocketAddr) -> io::Result<()> {
    if !address.ip().is_unspecified() {
        return Ok(());
    }
    let (level, option) = if address.is_ipv4() {
        (libc::IPPROTO_IP, libc::IP_PKTINFO)
    } else {
        (libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO)
    };
    let on: libc::c_int = 1;
    // SAFETY: `on` lives through the call and its size is given.
    let result = unsafe {
        let value = ptr::from_ref(&on).cast();
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            value,
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

// === impl Slot ===

impl Slot {
    fn new() -> Self {
        Self {
            // SAFETY: plain data, for which all zeros is a value (family AF_UNSPEC).
            peer: unsafe { zeroed() },
            peer_length: 0,
            control: [0; 8],
            control_length: 0,
            query_length: 0,
            reply_length: 0,
        }
    }

    /// A header for this slot's peer and control message, with one buffer.
    fn header(&mut self, iov: &mut libc::iovec, peer_length: usize, control_length: usize) -> libc::msghdr {
        // SAFETY: plain data, for which all zeros is a value; every pointer is set below or null with length 0.
        let mut header: libc::msghdr = unsafe { zeroed() };
        header.msg_name = ptr::from_mut(&mut self.peer).cast();
        header.msg_namelen = peer_length as libc::socklen_t;
        header.msg_iov = iov;
        header.msg_iovlen = 1;
        if control_length > 0 {
            header.msg_control = self.control.as_mut_ptr().cast();
            header.msg_controllen = control_length as _;
        }
        header
    }

    /// Turns the control message of a query into that of its reply: the same address, but no interface unless the
    /// address means nothing without one. Routing chooses the interface.
    fn aim(&mut self) {
        if self.control_length < size_of::<libc::cmsghdr>() {
            self.control_length = 0;
            return;
        }
        let control = self.control.as_mut_ptr();
        // SAFETY: the kernel wrote `control_length` octets, at least one header, into aligned memory of 64 octets, and
        // both kinds of pktinfo fit into what follows the header: 16 + 12 and 16 + 20 octets.
        unsafe {
            let header = &*control.cast::<libc::cmsghdr>();
            let data = libc::CMSG_DATA(header);
            match (header.cmsg_level, header.cmsg_type) {
                (libc::IPPROTO_IP, libc::IP_PKTINFO) => (*data.cast::<libc::in_pktinfo>()).ipi_ifindex = 0,
                (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                    let info = &mut *data.cast::<libc::in6_pktinfo>();
                    let [first, second, ..] = info.ipi6_addr.s6_addr;
                    if !(first == 0xfe && second & 0xc0 == 0x80) {
                        info.ipi6_ifindex = 0;
                    }
                }
                _ => self.control_length = 0,
            }
        }
    }
}

// === impl Origin ===

impl Origin {
    /// Sends a reply that took longer than its batch. Does not wait: a full socket drops it, as UDP does.
    pub(super) fn send(mut self, socket: &UdpSocket, reply: &[u8]) -> io::Result<()> {
        let mut iov = libc::iovec {
            iov_base: reply.as_ptr().cast_mut().cast(),
            iov_len: reply.len(),
        };
        let (peer, control) = (self.0.peer_length as usize, self.0.control_length);
        let header = self.0.header(&mut iov, peer, control);
        // SAFETY: the header points to `self`, `iov` and `reply`, which live through the call; sending writes to none.
        let sent = unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const header, libc::MSG_DONTWAIT) };
        if sent < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(())
        }
    }
}

// === impl Batch ===

impl Batch {
    pub(super) fn new() -> Self {
        Self {
            queries: vec![[0; QUERY]; DATAGRAMS].into(),
            replies: vec![[0; LARGEST_UDP]; DATAGRAMS].into(),
            slots: vec![Slot::new(); DATAGRAMS].into(),
        }
    }

    /// Waits for a datagram and takes what else is there. None when nothing came for a while.
    pub(super) fn receive(&mut self, socket: &UdpSocket) -> io::Result<usize> {
        // SAFETY: plain data, for which all zeros is a value.
        let (mut iovs, mut headers): ([libc::iovec; DATAGRAMS], [libc::mmsghdr; DATAGRAMS]) = unsafe { zeroed() };
        let places = iovs.iter_mut().zip(headers.iter_mut());
        for ((iov, header), (slot, query)) in places.zip(self.slots.iter_mut().zip(self.queries.iter_mut())) {
            iov.iov_base = query.as_mut_ptr().cast();
            iov.iov_len = QUERY;
            header.msg_hdr = slot.header(iov, size_of::<libc::sockaddr_storage>(), size_of::<Control>());
        }
        // SAFETY: each header points to its own slot, buffer and iovec, all of which live through the call, with their
        // true lengths.
        let count = unsafe {
            let flags = libc::MSG_WAITFORONE;
            libc::recvmmsg(
                socket.as_raw_fd(),
                headers.as_mut_ptr(),
                DATAGRAMS as u32,
                flags as _,
                ptr::null_mut(),
            )
        };
        let Ok(count) = usize::try_from(count) else {
            let error = io::Error::last_os_error();
            return match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted => Ok(0),
                // An earlier reply found no one there; the next call is clear of it.
                io::ErrorKind::ConnectionRefused => Ok(0),
                _ => Err(error),
            };
        };
        for (slot, header) in self.slots.iter_mut().zip(&headers).take(count) {
            slot.peer_length = header.msg_hdr.msg_namelen;
            slot.control_length = header.msg_hdr.msg_controllen.min(size_of::<Control>());
            slot.query_length = (header.msg_len as usize).min(QUERY);
            slot.reply_length = 0;
            slot.aim();
        }
        Ok(count)
    }

    /// A query, and room for its reply.
    pub(super) fn pair(&mut self, index: usize) -> (&[u8], &mut [u8]) {
        (
            &self.queries[index][..self.slots[index].query_length],
            &mut self.replies[index],
        )
    }

    /// Where a query came from.
    pub(super) fn peer(&self, index: usize) -> IpAddr {
        let peer = &self.slots[index].peer;
        // SAFETY: the storage is large enough and aligned for both kinds of address, and the family says which one the
        // kernel wrote; all bit patterns are addresses.
        unsafe {
            match libc::c_int::from(peer.ss_family) {
                libc::AF_INET6 => {
                    let peer = &*ptr::from_ref(peer).cast::<libc::sockaddr_in6>();
                    Ipv6Addr::from(peer.sin6_addr.s6_addr).into()
                }
                _ => {
                    let peer = &*ptr::from_ref(peer).cast::<libc::sockaddr_in>();
                    Ipv4Addr::from(u32::from_be(peer.sin_addr.s_addr)).into()
                }
            }
        }
    }

    /// Says how long the reply is.
    pub(super) fn reply(&mut self, index: usize, length: usize) {
        self.slots[index].reply_length = length.min(LARGEST_UDP);
    }

    /// Where a query came from, for a reply that takes longer.
    pub(super) fn origin(&self, index: usize) -> Origin {
        Origin(self.slots[index])
    }

    /// Sends all replies of the batch.
    pub(super) fn send(&mut self, socket: &UdpSocket) {
        // SAFETY: plain data, for which all zeros is a value.
        let (mut iovs, mut headers): ([libc::iovec; DATAGRAMS], [libc::mmsghdr; DATAGRAMS]) = unsafe { zeroed() };
        let mut count = 0;
        let places = iovs.iter_mut().zip(headers.iter_mut());
        let replies = self
            .slots
            .iter_mut()
            .zip(self.replies.iter_mut())
            .filter(|(slot, _)| slot.reply_length > 0);
        for ((iov, header), (slot, reply)) in places.zip(replies) {
            iov.iov_base = reply.as_mut_ptr().cast();
            iov.iov_len = slot.reply_length;
            header.msg_hdr = slot.header(iov, slot.peer_length as usize, slot.control_length);
            slot.reply_length = 0;
            count += 1;
        }
        let mut sent = 0;
        while sent < count {
            // SAFETY: each header points to its own slot, buffer and iovec, all of which live through the call; the
            // part from `sent` on is inside the array.
            let done = unsafe {
                let rest = headers.as_mut_ptr().add(sent);
                libc::sendmmsg(socket.as_raw_fd(), rest, (count - sent) as u32, 0)
            };
            match usize::try_from(done) {
                Ok(0) => return,
                Ok(done) => sent += done,
                Err(_) if io::Error::last_os_error().kind() == io::ErrorKind::Interrupted => {}
                // That one cannot be sent; the others may.
                Err(_) => sent += 1,
            }
        }
    }
}
