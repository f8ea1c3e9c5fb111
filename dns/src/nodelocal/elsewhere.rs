//! Addresses are made on Linux only.

use std::net::{IpAddr, SocketAddr};

/// Never made.
#[derive(Debug)]
pub enum NodeLocal {}

// === impl NodeLocal ===

impl NodeLocal {
    /// Makes the addresses.
    ///
    /// # Errors
    /// Always.
    pub fn set_up(_: &[IpAddr], _: &[SocketAddr]) -> std::io::Result<Self> {
        Err(std::io::Error::new(
            std::io::ErrorKind::Unsupported,
            "node-local mode needs Linux",
        ))
    }

    /// Leaves the addresses to a successor.
    pub fn keep(self) {
        match self {}
    }
}
