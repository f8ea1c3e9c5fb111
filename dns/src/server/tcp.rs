//! TCP (RFC 7766): several queries on a connection, answered as they become ready, within bounds.

use std::cell::RefCell;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{Shared, TcpLimits};
use crate::answer::edns::MAX_TCP;
use crate::answer::{Answered, Client, Forward, Transport, Verdict, answer};
use crate::metrics::{Observed, Tally};

/// How long the rest of a query may take once its length is there (CoreDNS's read time-out).
const READ: Duration = Duration::from_secs(3);
/// How long a client may take to take a reply (CoreDNS's write time-out).
const WRITE: Duration = Duration::from_secs(5);
/// A pause after accepting failed, for want of file descriptors most likely.
const BREATH: Duration = Duration::from_millis(100);

/// One listener.
#[derive(Clone)]
pub(super) struct Server {
    pub(super) shared: Shared,
    pub(super) tally: Arc<Tally>,
    pub(super) limits: TcpLimits,
    /// One for each connection of all listeners.
    pub(super) slots: Arc<Semaphore>,
    pub(super) shutdown: CancellationToken,
    pub(super) tasks: TaskTracker,
}

thread_local! {
    /// The largest response fits; what is sent is copied out.
    static RESPONSE: RefCell<Vec<u8>> = RefCell::new(vec![0; MAX_TCP]);
}

// === impl Server ===

impl Server {
    /// Accepts until shutdown.
    pub(super) async fn run(self, listener: TcpListener) {
        loop {
            let accepted = tokio::select! {
                () = self.shutdown.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "accepting a connection failed");
                    tokio::time::sleep(BREATH).await;
                    continue;
                }
            };
            // Without a slot the connection is closed at once: the client may come again.
            let Ok(slot) = self.slots.clone().try_acquire_owned() else {
                continue;
            };
            let connection = self.clone().connection(stream);
            self.tasks.spawn(async move {
                connection.await;
                drop(slot);
            });
        }
    }

    async fn connection(self, stream: TcpStream) {
        // Small replies must not wait for each other.
        let _ = stream.set_nodelay(true);
        let Ok(peer) = stream.peer_addr() else { return };
        let (reader, writer) = stream.into_split();
        let (replies, inbox) = mpsc::channel(self.limits.pipelined);
        let read = async {
            self.read(reader, &replies, peer.ip()).await;
            // The writer ends when the last query that still waits has dropped its sender.
            drop(replies);
        };
        tokio::join!(read, write(inbox, writer));
    }

    async fn read(&self, mut reader: OwnedReadHalf, replies: &mpsc::Sender<Vec<u8>>, peer: IpAddr) {
        let v6 = peer.is_ipv6();
        let waiting = Arc::new(Semaphore::new(self.limits.pipelined));
        loop {
            let length = tokio::select! {
                () = self.shutdown.cancelled() => return,
                () = replies.closed() => return,
                length = timeout(self.limits.idle, reader.read_u16()) => length,
            };
            let Ok(Ok(length)) = length else { return };
            let mut query = vec![0; length.into()];
            let Ok(Ok(_)) = timeout(READ, reader.read_exact(&mut query)).await else {
                return;
            };
            let begun = Instant::now();
            let (verdict, reply) = self.answer(&query, peer);
            let request = query.len();
            match verdict {
                Verdict::Answer(Answered { zone, .. }) => {
                    self.observe(v6, zone, request, &reply, begun);
                    if replies.send(framed(&reply)).await.is_err() {
                        return;
                    }
                }
                // What is no query ends the connection.
                Verdict::Drop => return,
                Verdict::Forward(forward) => {
                    let Ok(permit) = waiting.clone().acquire_owned().await else {
                        return;
                    };
                    let (server, replies) = (self.clone(), replies.clone());
                    self.tasks.spawn(async move {
                        let reply = server.forward(&forward).await;
                        server.observe(v6, None, request, &reply, begun);
                        // The client went away: fine.
                        let _ = replies.send(framed(&reply)).await;
                        drop(permit);
                    });
                }
            }
        }
    }

    fn answer(&self, query: &[u8], peer: IpAddr) -> (Verdict, Vec<u8>) {
        let client = Client {
            transport: Transport::Tcp,
            address: peer,
            rotation: rand::random(),
            now: super::now(),
        };
        let snapshot = self.shared.zone.load();
        RESPONSE.with_borrow_mut(|buffer| {
            let verdict = answer(query, &snapshot, &client, buffer);
            let reply = match &verdict {
                Verdict::Answer(answered) => buffer.get(..answered.length).unwrap_or_default().to_vec(),
                Verdict::Forward(_) | Verdict::Drop => Vec::new(),
            };
            (verdict, reply)
        })
    }

    async fn forward(&self, forward: &Forward) -> Vec<u8> {
        let forwarder = &self.shared.forwarder;
        let cached = RESPONSE.with_borrow_mut(|buffer| {
            let length = forwarder.cached(forward, Transport::Tcp, buffer)?;
            buffer.get(..length).map(<[u8]>::to_vec)
        });
        match (cached, forwarder.slot()) {
            (Some(reply), _) => reply,
            (None, Some(slot)) => forwarder.resolve(forward, Transport::Tcp, slot).await,
            (None, None) => forwarder.overloaded(&forward.question, Transport::Tcp),
        }
    }

    fn observe(&self, v6: bool, zone: Option<u8>, request: usize, response: &[u8], begun: Instant) {
        self.tally.observe(&Observed {
            transport: Transport::Tcp,
            v6,
            zone,
            request,
            response,
            took: begun.elapsed(),
        });
    }
}

/// A message with its length before it. Responses are never longer than the length can say.
fn framed(message: &[u8]) -> Vec<u8> {
    let mut framed = Vec::with_capacity(message.len() + 2);
    framed.extend_from_slice(&(message.len() as u16).to_be_bytes());
    framed.extend_from_slice(message);
    framed
}

async fn write(mut inbox: mpsc::Receiver<Vec<u8>>, mut writer: OwnedWriteHalf) {
    while let Some(reply) = inbox.recv().await {
        let Ok(Ok(())) = timeout(WRITE, writer.write_all(&reply)).await else {
            return;
        };
    }
}
