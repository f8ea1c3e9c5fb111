//! One writer a node: which of several portolan-proxies in one network namespace programs the kernel. The newest does.
//!
//! During a rolling update two of them overlap. Two writers would undo each other's work, so the one that started last asks
//! the other to stand by, and that one does as soon as what it is programming is done. Rules stay in place meanwhile. When
//! the newer one ends, an older one that still runs takes its place back. Nobody waits for anybody who cannot answer.

#[cfg(target_os = "linux")]
mod socket;
#[cfg(all(test, target_os = "linux"))]
mod tests;

use tokio::sync::{mpsc, oneshot};

/// What the holder has to do.
#[derive(Debug)]
pub enum Turn {
    /// A newer process, with this id, takes over: stop programming, then send the answer.
    StandBy(Option<i32>, oneshot::Sender<()>),
    /// Nobody else programs any more: go on, with a complete change.
    GoOn,
}

/// Where turns arrive.
pub type Turns = mpsc::Receiver<Turn>;

/// The lease, or a part in the queue for it.
#[derive(Debug)]
pub struct Lease {
    /// What is programmed; `None`: nothing that another process could program as well.
    name: Option<String>,
    turns: mpsc::Sender<Turn>,
}

impl Lease {
    /// A lease that is not taken yet, on what [`crate::backend::Backend::programs`] says.
    pub fn new(name: Option<String>) -> (Self, Turns) {
        let (turns, received) = mpsc::channel(1);
        (Self { name, turns }, received)
    }

    /// Takes the lease from whoever has it, the first time; before anything is programmed. Afterwards [`Turns`] say whose
    /// turn it is.
    pub async fn take(&mut self) {
        let Some(name) = self.name.take() else { return };
        #[cfg(target_os = "linux")]
        if let Err(error) = socket::take(&name, &self.turns).await {
            tracing::warn!(
                %error,
                "cannot find out whether another portolan-proxy programs this node; going on as if there were none"
            );
        }
        #[cfg(not(target_os = "linux"))]
        drop(name);
    }
}
