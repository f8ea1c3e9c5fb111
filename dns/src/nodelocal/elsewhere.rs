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
    pub fn set_up(_: &[IpAddr]) -> std::io::Result<Self> {
        Err(unsupported())
    }

    /// Leads queries here.
    ///
    /// # Errors
    /// Never: there is none.
    pub fn take_queries(&mut self, _: &[SocketAddr]) -> std::io::Result<()> {
        match *self {}
    }

    /// Leads queries elsewhere.
    pub fn leave_queries(&mut self) {
        match *self {}
    }
}

/// Takes leftovers away.
///
/// # Errors
/// Always.
pub fn cleanup(_: &[IpAddr]) -> std::io::Result<Vec<IpAddr>> {
    Err(unsupported())
}

fn unsupported() -> std::io::Error {
    std::io::Error::new(std::io::ErrorKind::Unsupported, "node-local mode needs Linux")
}
