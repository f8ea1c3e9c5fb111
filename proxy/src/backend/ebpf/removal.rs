//! Connected UDP sockets whose endpoint is gone: they are destroyed, so that their owners notice and connect again.
//!
//! A socket that was connected through a hook holds its endpoint's address itself: no rule and no map turns it elsewhere.
//! Unconnected ones ask anew with every datagram, and TCP connections end by themselves.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use portolan_abi::{Member, MemberKey, ReverseKey, ReverseValue, SETS_OF_A_PORT, UDP, set};
use tracing::{debug, warn};

use super::compile;
use super::elements::Difference;
use super::sys;
use crate::sockdiag::{self, Connected};

/// The maps that tell which sockets to destroy.
#[derive(Debug)]
struct Maps {
    reverse: OwnedFd,
    members: OwnedFd,
}

/// Destroys sockets in the background: it walks all network namespaces, and a change need not wait for that.
#[derive(Debug)]
pub(crate) struct Removal {
    maps: Arc<Mutex<Option<Maps>>>,
    wake: SyncSender<()>,
}

// === impl Removal ===

impl Removal {
    /// Starts the thread; it ends with this value.
    ///
    /// # Errors
    /// When there can be no thread.
    pub(crate) fn start() -> io::Result<Self> {
        let maps = Arc::new(Mutex::new(None));
        // One request waits at most: it covers whatever was removed before it is taken up.
        let (wake, woken) = sync_channel(1);
        let shared = Arc::clone(&maps);
        thread::Builder::new()
            .name("sockets".into())
            .spawn(move || run(&shared, &woken))?;
        Ok(Self { maps, wake })
    }

    /// Looks into the maps of another generation from now on.
    pub(crate) fn switch(&self, reverse: OwnedFd, members: OwnedFd) {
        *self.maps.lock().unwrap_or_else(PoisonError::into_inner) = Some(Maps { reverse, members });
    }

    /// Has sockets destroyed when a change took endpoints away that flows may have stayed with.
    pub(crate) fn follow(&self, difference: &Difference) {
        let serving = |key: &MemberKey| key.set % SETS_OF_A_PORT == set::SERVING;
        if difference.gone_members.iter().any(serving) {
            self.look();
        }
    }

    /// Has every socket looked at.
    pub(crate) fn look(&self) {
        // Full: a request waits already.
        let _ = self.wake.try_send(());
    }
}

fn run(maps: &Mutex<Option<Maps>>, woken: &Receiver<()>) {
    while woken.recv().is_ok() {
        let maps = maps.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(maps) = maps.as_ref() else { continue };
        match sockdiag::destroy(&|socket| maps.is_stuck(socket)) {
            Ok(done) if done.sockets > 0 => {
                debug!(
                    sockets = done.sockets,
                    namespaces = done.namespaces,
                    "destroyed UDP sockets whose endpoint is gone"
                );
            }
            Ok(_) => {}
            Err(error) => {
                warn!(%error, "cannot destroy UDP sockets whose endpoint is gone; their owners have to notice");
            }
        }
    }
}

// === impl Maps ===

impl Maps {
    /// Whether a hook connected the socket to an endpoint that its Service port has no more. A socket whose owner asked for
    /// the endpoint's own address is in no map.
    fn is_stuck(&self, socket: &Connected) -> bool {
        let (address, port) =
            compile::endpoint(SocketAddr::new(socket.remote.ip().to_canonical(), socket.remote.port()));
        let key = ReverseKey {
            cookie: socket.cookie,
            address,
            port,
            protocol: UDP,
            zero: [0; 5],
        };
        let Ok(Some(known)) = sys::lookup::<_, ReverseValue>(self.reverse.as_fd(), &key) else {
            return false;
        };
        let member = MemberKey {
            set: known.service_port * SETS_OF_A_PORT + set::SERVING,
            port,
            zero: 0,
            address,
        };
        matches!(sys::lookup::<_, Member>(self.members.as_fd(), &member), Ok(None))
    }
}
