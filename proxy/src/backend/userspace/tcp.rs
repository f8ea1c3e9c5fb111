//! TCP: accept, decide, connect, copy.
//!
//! What a frontend does with a client it may not forward: a refusal is a reset; a drop is silence, for as long as we can
//! afford it, since the system has already shaken hands. Where *every* client is to be dropped nothing is accepted at all:
//! clients wait in the system's queue, and are served should the plan change in time, as a retried SYN would be.

use std::io::{self, ErrorKind};
use std::net::{Shutdown, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use portolan_plan::{EndpointSet, Verdict};
use socket2::SockRef;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::listener::Alive;
use super::proxy_protocol;
use super::shared::{Buffer, Count, Shared};
use super::socket::{reset, tune};
use super::target::Target;

/// Longest pause after accepting failed.
const MAX_PAUSE: Duration = Duration::from_secs(1);
const FIRST_PAUSE: Duration = Duration::from_millis(10);
/// How long a dropped connection is left unanswered.
const HOLD: Duration = Duration::from_secs(30);

/// Accepts connections until the target's sender is gone.
pub(super) async fn serve(
    alive: Alive,
    listener: TcpListener,
    at: SocketAddr,
    mut target: watch::Receiver<Arc<Target>>,
    shared: Arc<Shared>,
) {
    let mut pause = Duration::ZERO;
    loop {
        let accepting = target.borrow_and_update().answers_someone();
        let accept = async {
            if !pause.is_zero() {
                sleep(pause).await;
            }
            listener.accept().await
        };
        tokio::select! {
            biased;
            changed = target.changed() => if changed.is_err() {
                break;
            },
            accepted = accept, if accepting => match accepted {
                Ok((client, peer)) => {
                    pause = Duration::ZERO;
                    tokio::spawn(relay(client, peer, target.clone(), shared.clone()));
                }
                // The client was gone before we came to it.
                Err(error) if matches!(error.kind(), ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset) => {}
                // Usually no file is left: trying again at once would fail again at once.
                Err(error) => {
                    shared.counters.tcp_not_accepted.fetch_add(1, Ordering::Relaxed);
                    pause = (pause * 2).clamp(FIRST_PAUSE, MAX_PAUSE);
                    shared.complain(&format!("cannot accept connections on {at}"), &error);
                }
            },
        }
    }
    drop(listener);
    drop(alive);
}

/// One connection, from the first decision to the end of both directions.
async fn relay(client: TcpStream, peer: SocketAddr, target: watch::Receiver<Arc<Target>>, shared: Arc<Shared>) {
    let verdict = target.borrow().verdict(peer.ip(), &shared.sources);
    let Verdict::Forward { set, .. } = verdict else {
        shared.counters.denied.fetch_add(1, Ordering::Relaxed);
        match verdict {
            Verdict::Drop => hold(client, &shared).await,
            _ => reset(client),
        }
        return;
    };
    let _open = Count::up(&shared.counters.tcp_open);
    tune(&client);
    let upstream = match connect(&client, peer, set, &target, &shared).await {
        Ok(upstream) => upstream,
        Err(error) => {
            shared.counters.tcp_unreachable.fetch_add(1, Ordering::Relaxed);
            tracing::debug!(service = %target.borrow().service, client = %peer, "no endpoint took the connection: {error}");
            return reset(client);
        }
    };
    // The relay may outlive the Service by days.
    drop(target);
    shared.counters.tcp_relayed.fetch_add(1, Ordering::Relaxed);
    if tokio::try_join!(pump(&client, &upstream), pump(&upstream, &client)).is_err() {
        // Without us the side that is left would have seen the other's reset.
        reset(client);
        reset(upstream);
    }
}

/// Connects to an endpoint. The client has seen nothing yet, so one that does not answer is passed over, a few times.
async fn connect(
    client: &TcpStream,
    peer: SocketAddr,
    set: EndpointSet,
    target: &watch::Receiver<Arc<Target>>,
    shared: &Shared,
) -> io::Result<TcpStream> {
    let mut tried = Vec::new();
    let mut last = io::Error::from(ErrorKind::ConnectionRefused);
    while tried.len() < shared.options.connect_attempts {
        // Endpoints may have changed while we waited for the one before.
        let current = target.borrow().clone();
        let Some(endpoint) = current.choose(set, peer.ip(), &tried) else {
            break;
        };
        match timeout(shared.options.connect_timeout, TcpStream::connect(endpoint)).await {
            Ok(Ok(mut upstream)) => {
                tune(&upstream);
                if shared.options.proxy_protocol {
                    let header = proxy_protocol::header(peer, client.local_addr()?);
                    upstream.write_all(&header).await?;
                }
                current.learn(peer.ip(), endpoint);
                return Ok(upstream);
            }
            Ok(Err(error)) => {
                if !is_endpoints_fault(&error) {
                    shared.complain(&format!("cannot connect to {endpoint}"), &error);
                    return Err(error);
                }
                last = error;
            }
            Err(_) => last = ErrorKind::TimedOut.into(),
        }
        tried.push(endpoint);
    }
    Err(last)
}

/// Whether another endpoint may do better. Otherwise it is we who lack a file or a port.
fn is_endpoints_fault(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::ConnectionRefused
            | ErrorKind::ConnectionReset
            | ErrorKind::ConnectionAborted
            | ErrorKind::HostUnreachable
            | ErrorKind::NetworkUnreachable
            | ErrorKind::TimedOut
    )
}

/// Copies until `from` ends, then ends `to`'s direction: the other direction goes on. Never reads more than it could
/// write, so a slow receiver slows the sender down.
async fn pump(from: &TcpStream, to: &TcpStream) -> io::Result<()> {
    loop {
        from.readable().await?;
        let mut buffer = Buffer::take();
        match from.try_read(&mut buffer) {
            Ok(0) => return SockRef::from(to).shutdown(Shutdown::Write),
            Ok(length) => write_all(to, buffer.get(..length).unwrap_or_default()).await?,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
        drop(buffer);
        tokio::task::coop::consume_budget().await;
    }
}

async fn write_all(to: &TcpStream, mut rest: &[u8]) -> io::Result<()> {
    while !rest.is_empty() {
        match to.try_write(rest) {
            Ok(written) => rest = rest.get(written..).unwrap_or_default(),
            Err(error) if error.kind() == ErrorKind::WouldBlock => to.writable().await?,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Says nothing until the client gives up. When too many are held, or it takes too long, the connection is closed
/// without an answer.
async fn hold(client: TcpStream, shared: &Shared) {
    let Ok(_permit) = shared.held.try_acquire() else {
        return reset(client);
    };
    let gives_up = async {
        while client.readable().await.is_ok() {
            match client.try_read(&mut Buffer::take()) {
                Ok(0) => break,
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(_) => break,
            }
            tokio::task::coop::consume_budget().await;
        }
    };
    let _ = timeout(HOLD, gives_up).await;
}
