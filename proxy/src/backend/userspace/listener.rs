//! An open listener, seen from outside: hand it another target, or close it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::watch;

use super::shared::Shared;
use super::socket::Bound;
use super::target::Target;
use super::{tcp, udp};

/// Longest wait for a listener to close. It takes microseconds unless the runtime is starved.
const CLOSE_WAIT: Duration = Duration::from_secs(2);

/// A listener that runs. Dropping it closes it.
#[derive(Debug)]
pub(super) struct Listener {
    /// Where it really listens.
    pub(super) at: SocketAddr,
    target: watch::Sender<Arc<Target>>,
    closing: Closing,
}

/// Its other end is dropped after the socket, so it tells when the socket is closed.
#[derive(Debug)]
pub(super) struct Closing(mpsc::Receiver<()>);

/// Lives as long as the listener's socket; see [`Closing`].
#[derive(Debug)]
pub(super) struct Alive(#[allow(dead_code, reason = "held for its drop")] mpsc::Sender<()>);

impl Listener {
    /// Starts to serve a bound socket.
    pub(super) fn open(
        bound: Bound,
        at: SocketAddr,
        target: Arc<Target>,
        shared: Arc<Shared>,
        handle: &Handle,
    ) -> Self {
        let (sender, receiver) = watch::channel(target);
        let (alive, closing) = mpsc::channel();
        let alive = Alive(alive);
        match bound {
            Bound::Tcp(listener) => drop(handle.spawn(tcp::serve(alive, listener, at, receiver, shared))),
            Bound::Udp(socket) => drop(handle.spawn(udp::serve(alive, socket, at, receiver, shared))),
        }
        Self {
            at,
            target: sender,
            closing: Closing(closing),
        }
    }

    /// Swaps the target in one step; connections stay as they are. Says whether anything changed.
    pub(super) fn retarget(&self, target: &Arc<Target>) -> bool {
        self.target.send_if_modified(|current| {
            let changed = **current != **target;
            if changed {
                *current = target.clone();
            }
            changed
        })
    }

    /// Begins to close. Connections that were accepted live on.
    pub(super) fn close(self) -> Closing {
        self.closing
    }
}

impl Closing {
    /// Waits until the socket is closed, so that its address can be bound again.
    pub(super) fn wait(self) {
        // Nothing is ever sent: it ends by disconnection.
        if self.0.recv_timeout(CLOSE_WAIT) == Err(mpsc::RecvTimeoutError::Timeout) {
            tracing::warn!("a listener did not close within {CLOSE_WAIT:?}: its address may seem taken");
        }
    }
}
