//! Sockets are handed on by Unix sockets only.

use std::io;
use std::path::{Path, PathBuf};

use tokio_util::sync::CancellationToken;

use super::{Estate, Inherited};

/// Nobody.
#[derive(Debug)]
pub enum Predecessor {}

// === impl Predecessor ===

impl Predecessor {
    /// There is none.
    ///
    /// # Errors
    /// Never.
    pub fn dismiss(self) -> io::Result<()> {
        match self {}
    }
}

/// Asks the predecessor for its sockets.
///
/// # Errors
/// Always: this system has no way to hand them on.
pub fn ask(_: &Path) -> io::Result<Inherited> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Listens for a successor.
///
/// # Errors
/// Always: this system has no way to hand them on.
pub fn listen(_: PathBuf, _: Estate, _: CancellationToken) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}
