//! TCP (RFC 7766), alone and below TLS (RFC 7858): several queries on a connection, answered as they become ready, within
//! bounds.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::reply::{Answerer, Reply};
use super::{TcpLimits, https, tls};

/// How long the rest of a query may take once its length is there (CoreDNS's read time-out), and a handshake.
pub(super) const READ: Duration = Duration::from_secs(3);
/// How long a client may take to take a reply (CoreDNS's write time-out).
const WRITE: Duration = Duration::from_secs(5);
/// A pause after accepting failed, for want of file descriptors most likely.
const BREATH: Duration = Duration::from_millis(100);

/// What a connection carries.
#[derive(Clone)]
pub(super) enum Carries {
    /// Messages with their length before them.
    Messages,
    /// The same below TLS.
    Tls(tls::Acceptor),
    /// HTTP requests below TLS.
    Https(tls::Acceptor),
}

/// One listener.
#[derive(Clone)]
pub(super) struct Server {
    pub(super) answerer: Answerer,
    pub(super) carries: Carries,
    pub(super) limits: TcpLimits,
    /// One for each connection of all listeners.
    pub(super) slots: Arc<Semaphore>,
    pub(super) shutdown: CancellationToken,
    pub(super) tasks: TaskTracker,
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
            let (stream, peer) = match accepted {
                Ok((stream, peer)) => (stream, peer.ip()),
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
            let connection = self.clone().connection(stream, peer);
            self.tasks.spawn(async move {
                connection.await;
                drop(slot);
            });
        }
    }

    async fn connection(self, stream: TcpStream, peer: IpAddr) {
        // Small replies must not wait for each other.
        let _ = stream.set_nodelay(true);
        match &self.carries {
            Carries::Messages => {
                let (reader, writer) = stream.into_split();
                self.messages(reader, writer, peer).await;
            }
            Carries::Tls(acceptor) => {
                // A client that cannot agree on a cipher or a certificate is told by TLS itself.
                if let Some(stream) = acceptor.accept(stream).await {
                    let (reader, writer) = tokio::io::split(stream);
                    self.messages(reader, writer, peer).await;
                }
            }
            Carries::Https(acceptor) => {
                if let Some(stream) = acceptor.accept(stream).await {
                    https::serve(stream, self.answerer, peer, self.limits, self.shutdown).await;
                }
            }
        }
    }

    async fn messages(self, reader: impl AsyncRead + Unpin, writer: impl AsyncWrite + Unpin, peer: IpAddr) {
        let (replies, inbox) = mpsc::channel(self.limits.pipelined);
        let read = async {
            self.read(reader, &replies, peer).await;
            // The writer ends when the last query that still waits has dropped its sender.
            drop(replies);
        };
        tokio::join!(read, write(inbox, writer));
    }

    async fn read(&self, mut reader: impl AsyncRead + Unpin, replies: &mpsc::Sender<Vec<u8>>, peer: IpAddr) {
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
            match self.answerer.reply(&query, peer, begun) {
                Reply::Message(reply) => {
                    if replies.send(framed(&reply)).await.is_err() {
                        return;
                    }
                }
                // What is no query ends the connection.
                Reply::Nothing => return,
                Reply::Transfer(transfer) => {
                    // One after the other: the messages of two transfers must not mix.
                    let send = |message: Vec<u8>| {
                        self.answerer
                            .observe(peer, transfer.zone(), query.len(), &message, begun);
                        async move { replies.send(framed(&message)).await.is_ok() }
                    };
                    transfer.run(send).await;
                }
                Reply::Forward(forward) => {
                    let Ok(permit) = waiting.clone().acquire_owned().await else {
                        return;
                    };
                    let (answerer, replies) = (self.answerer.clone(), replies.clone());
                    self.tasks.spawn(async move {
                        let reply = answerer.forward(&forward, peer, query.len(), begun).await;
                        // The client went away: fine.
                        let _ = replies.send(framed(&reply)).await;
                        drop(permit);
                    });
                }
            }
        }
    }
}

/// A message with its length before it. Responses are never longer than the length can say.
pub(super) fn framed(message: &[u8]) -> Vec<u8> {
    let mut framed = Vec::with_capacity(message.len() + 2);
    framed.extend_from_slice(&(message.len() as u16).to_be_bytes());
    framed.extend_from_slice(message);
    framed
}

async fn write(mut inbox: mpsc::Receiver<Vec<u8>>, mut writer: impl AsyncWrite + Unpin) {
    while let Some(reply) = inbox.recv().await {
        let sent = async {
            writer.write_all(&reply).await?;
            // Below TLS, what is not flushed is not sent.
            writer.flush().await
        };
        let Ok(Ok(())) = timeout(WRITE, sent).await else {
            return;
        };
    }
    // TLS says goodbye, so that the client knows that nothing was cut off.
    let _ = timeout(WRITE, writer.shutdown()).await;
}
