//! Hands the listening sockets of one process to the next, so that no query is lost when a daemon is replaced.
//!
//! A successor connects to its predecessor's Unix socket and is given the very sockets: what waits in them waits for the
//! successor, and both may read for a moment. When the successor answers it says so, and the predecessor ends. A successor
//! that dies before that changes nothing.

#[cfg(not(target_os = "linux"))]
mod elsewhere;
#[cfg(target_os = "linux")]
mod linux;

use std::net::{SocketAddr, TcpListener, UdpSocket};

#[cfg(not(target_os = "linux"))]
pub use elsewhere::{Predecessor, ask, listen};
#[cfg(target_os = "linux")]
pub use linux::{Predecessor, ask, listen};

/// Sockets of a predecessor.
#[derive(Debug, Default)]
pub struct Inherited {
    /// UDP sockets, bound.
    pub udp: Vec<UdpSocket>,
    /// TCP sockets, listening.
    pub tcp: Vec<TcpListener>,
    /// Who is told when they are served.
    pub predecessor: Option<Predecessor>,
}

/// What is handed on: copies of the sockets that are served.
#[derive(Debug, Default)]
pub struct Estate {
    /// UDP sockets.
    pub udp: Vec<UdpSocket>,
    /// TCP sockets.
    pub tcp: Vec<TcpListener>,
}

// === impl Inherited ===

impl Inherited {
    /// The UDP sockets that are bound to an address.
    pub fn take_udp(&mut self, address: SocketAddr) -> Vec<UdpSocket> {
        let is = |socket: &mut UdpSocket| socket.local_addr().is_ok_and(|local| local == address);
        self.udp.extract_if(.., is).collect()
    }

    /// The TCP socket that listens on an address.
    pub fn take_tcp(&mut self, address: SocketAddr) -> Option<TcpListener> {
        let is = |socket: &TcpListener| socket.local_addr().is_ok_and(|local| local == address);
        let position = self.tcp.iter().position(is)?;
        Some(self.tcp.swap_remove(position))
    }
}
