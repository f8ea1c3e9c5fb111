//! The lease as a listening socket with an abstract name.
//!
//! Such a name belongs to the network namespace that the rules are in, needs no file and no folder, and the kernel frees
//! it when its holder dies in whatever way. Only processes of the same user and of root are heeded: anybody may bind or
//! connect such a name.

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};
use tracing::{info, warn};

use super::Turn;

/// "Stand by, I am newer."
const TAKE: u8 = b'T';
/// "Tell me by closing this when you end."
const WAIT: u8 = b'W';
/// "I stand by."
const GIVEN: u8 = b'G';
/// How long a holder may take to finish what it is programming.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long somebody who connected may take to say what for.
const MANNERS: Duration = Duration::from_secs(1);
/// Between two attempts to get a name that somebody is giving up.
const PAUSE: Duration = Duration::from_millis(20);
/// Attempts, each after a holder has changed.
const ATTEMPTS: usize = 500;

/// Takes the lease from whoever has it, and holds it from now on.
pub(super) async fn take(name: &str, turns: &mpsc::Sender<Turn>) -> io::Result<()> {
    for _ in 0..ATTEMPTS {
        if let Some(listener) = bind(name)? {
            tokio::spawn(hold(name.to_owned(), listener, turns.clone(), None));
            return Ok(());
        }
        let Some((mut stream, pid)) = ask(name, TAKE).await? else {
            tokio::time::sleep(PAUSE).await;
            continue;
        };
        info!(pid, "an older portolan-proxy programs this node: taking over");
        match tokio::time::timeout(PATIENCE, is_given(&mut stream)).await {
            // It gave up the name or its life. As long as this stream is open it stands by.
            Ok(_) => {
                let listener = await_name(name).await?;
                tokio::spawn(hold(name.to_owned(), listener, turns.clone(), Some(stream)));
            }
            Err(_) => {
                warn!(pid, "the older portolan-proxy does not answer; going on without it");
                tokio::spawn(take_late(name.to_owned(), stream, turns.clone()));
            }
        }
        return Ok(());
    }
    Err(io::Error::other("its holder changes all the time"))
}

/// A holder that did not answer in time may do so later.
async fn take_late(name: String, mut stream: UnixStream, turns: mpsc::Sender<Turn>) {
    is_given(&mut stream).await;
    match await_name(&name).await {
        Ok(listener) => hold(name, listener, turns, Some(stream)).await,
        Err(error) => warn!(%error, "cannot tell a newer portolan-proxy that this one programs the node"),
    }
}

/// Holds the lease, gives it away when asked, gets it back when it is free; for ever. `predecessor` stands by as long as
/// it can read from its stream.
async fn hold(name: String, mut listener: UnixListener, turns: mpsc::Sender<Turn>, predecessor: Option<UnixStream>) {
    let mut waiting: Vec<UnixStream> = predecessor.into_iter().collect();
    loop {
        let Ok((mut stream, _)) = listener.accept().await else {
            tokio::time::sleep(PAUSE).await;
            continue;
        };
        let Ok(pid) = trusted(&stream) else { continue };
        let mut word = [0];
        match tokio::time::timeout(MANNERS, stream.read_exact(&mut word)).await {
            Ok(Ok(_)) if word == [TAKE] => {}
            Ok(Ok(_)) if word == [WAIT] => {
                // Whoever does not wait any more has closed its end.
                waiting.retain(|stream| !matches!(stream.try_read(&mut [0]), Ok(0)));
                waiting.push(stream);
                continue;
            }
            _ => continue,
        }
        let (done, stands_by) = oneshot::channel();
        if turns.send(Turn::StandBy(pid, done)).await.is_err() || stands_by.await.is_err() {
            // The daemon is ending, and with it this task.
            return;
        }
        drop(listener);
        // When it is gone already the wait is a short one.
        let _ = stream.write_all(&[GIVEN]).await;
        listener = match await_end(&name, stream).await {
            Ok(listener) => listener,
            Err(error) => {
                warn!(%error, "cannot find out when the newer portolan-proxy ends; standing by until a restart");
                return;
            }
        };
        info!("no other portolan-proxy programs this node any more: going on");
        if turns.send(Turn::GoOn).await.is_err() {
            return;
        }
    }
}

/// Waits until nobody has the lease, beginning with the process at the other end of `stream`, and takes it.
async fn await_end(name: &str, mut stream: UnixStream) -> io::Result<UnixListener> {
    loop {
        // Nothing comes but the end.
        while matches!(stream.read(&mut [0]).await, Ok(1..)) {}
        stream = loop {
            if let Some(listener) = bind(name)? {
                return Ok(listener);
            }
            match ask(name, WAIT).await? {
                Some((next, _)) => break next,
                None => tokio::time::sleep(PAUSE).await,
            }
        };
    }
}

/// Binds a name that somebody is giving up.
async fn await_name(name: &str) -> io::Result<UnixListener> {
    for _ in 0..ATTEMPTS {
        match bind(name)? {
            Some(listener) => return Ok(listener),
            None => tokio::time::sleep(PAUSE).await,
        }
    }
    Err(io::ErrorKind::AddrInUse.into())
}

/// Whether the holder answered; `false` when it ended instead.
async fn is_given(stream: &mut UnixStream) -> bool {
    let mut word = [0];
    stream.read_exact(&mut word).await.is_ok() && word == [GIVEN]
}

pub(super) fn address(name: &str) -> io::Result<net::SocketAddr> {
    net::SocketAddr::from_abstract_name(format!("portolan-proxy {name}"))
}

/// `None` when somebody else has the name.
fn bind(name: &str) -> io::Result<Option<UnixListener>> {
    let listener = match net::UnixListener::bind_addr(&address(name)?) {
        Ok(listener) => listener,
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => return Ok(None),
        Err(error) => return Err(error),
    };
    listener.set_nonblocking(true)?;
    UnixListener::from_std(listener).map(Some)
}

/// Says a word to the holder; `None` when there is none.
async fn ask(name: &str, word: u8) -> io::Result<Option<(UnixStream, Option<i32>)>> {
    let stream = match net::UnixStream::connect_addr(&address(name)?) {
        Ok(stream) => stream,
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => return Ok(None),
        Err(error) => return Err(error),
    };
    stream.set_nonblocking(true)?;
    let mut stream = UnixStream::from_std(stream)?;
    let pid = trusted(&stream)?;
    match stream.write_all(&[word]).await {
        Ok(()) => Ok(Some((stream, pid))),
        Err(_) => Ok(None),
    }
}

/// The other end's process id, if it is one to be heeded.
fn trusted(stream: &UnixStream) -> io::Result<Option<i32>> {
    let other = stream.peer_cred()?;
    // SAFETY: takes nothing and cannot fail.
    let own = unsafe { libc::geteuid() };
    match other.uid() {
        0 => Ok(other.pid()),
        uid if uid == own => Ok(other.pid()),
        uid => Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            format!("a process of user {uid} holds its name"),
        )),
    }
}
