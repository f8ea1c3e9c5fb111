//! One datagram at a time, for systems without recvmmsg. Replies leave from the address that routing chooses.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};

use crate::answer::edns::LARGEST_UDP;

const QUERY: usize = 4096;

/// Room for one datagram and its reply.
pub(super) struct Batch {
    query: Vec<u8>,
    length: usize,
    reply: Vec<u8>,
    reply_length: usize,
    peer: Option<SocketAddr>,
}

/// Where a query came from.
pub(super) struct Origin(Option<SocketAddr>);

/// Nothing to prepare.
pub(super) fn prepare(_socket: &UdpSocket, _address: SocketAddr) -> io::Result<()> {
    Ok(())
}

// === impl Origin ===

impl Origin {
    pub(super) fn send(&self, socket: &UdpSocket, reply: &[u8]) -> io::Result<()> {
        match self.0 {
            Some(peer) => socket.send_to(reply, peer).map(|_| ()),
            None => Ok(()),
        }
    }
}

// === impl Batch ===

impl Batch {
    pub(super) fn new() -> Self {
        Self {
            query: vec![0; QUERY],
            length: 0,
            reply: vec![0; LARGEST_UDP],
            reply_length: 0,
            peer: None,
        }
    }

    /// How many datagrams came: none when nothing did for a while.
    pub(super) fn receive(&mut self, socket: &UdpSocket) -> io::Result<usize> {
        self.reply_length = 0;
        match socket.recv_from(&mut self.query) {
            Ok((length, peer)) => {
                (self.length, self.peer) = (length, Some(peer));
                Ok(1)
            }
            // An earlier reply found no one there: Windows says so at the next receive.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(0),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => Ok(0),
            Err(error) => Err(error),
        }
    }

    pub(super) fn peer(&self, _index: usize) -> IpAddr {
        self.peer.map_or(Ipv4Addr::UNSPECIFIED.into(), |peer| peer.ip())
    }

    pub(super) fn pair(&mut self, _index: usize) -> (&[u8], &mut [u8]) {
        (&self.query[..self.length], &mut self.reply)
    }

    pub(super) fn reply(&mut self, _index: usize, length: usize) {
        self.reply_length = length.min(self.reply.len());
    }

    pub(super) fn origin(&self, _index: usize) -> Origin {
        Origin(self.peer)
    }

    pub(super) fn send(&mut self, socket: &UdpSocket) {
        if let (Some(peer), 1..) = (self.peer, self.reply_length) {
            // A client that cannot be reached is its own affair.
            let _ = socket.send_to(&self.reply[..self.reply_length], peer);
        }
    }
}
