//! DNS over QUIC (RFC 9250): a stream for each query.

use std::net::UdpSocket;
use std::sync::Arc;
use std::time::Instant;

use quinn::crypto::rustls::QuicServerConfig;
use quinn::{Connection, Endpoint, EndpointConfig, RecvStream, SendStream, ServerConfig, TransportConfig, VarInt};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::TcpLimits;
use super::reply::{Answerer, Reply};
use super::tcp::{READ, framed};

/// DOQ_NO_ERROR.
const DONE: VarInt = VarInt::from_u32(0);
/// DOQ_PROTOCOL_ERROR.
const PROTOCOL_ERROR: VarInt = VarInt::from_u32(2);

/// One listener.
#[derive(Clone)]
pub(super) struct Server {
    pub(super) answerer: Answerer,
    pub(super) slots: Arc<Semaphore>,
    pub(super) shutdown: CancellationToken,
    pub(super) tasks: TaskTracker,
}

/// What quinn needs of a listener.
pub(super) fn endpoint(socket: UdpSocket, tls: rustls::ServerConfig, limits: TcpLimits) -> std::io::Result<Endpoint> {
    let tls = QuicServerConfig::try_from(tls).map_err(std::io::Error::other)?;
    let mut config = ServerConfig::with_crypto(Arc::new(tls));
    let mut transport = TransportConfig::default();
    transport.max_concurrent_bidi_streams(VarInt::from_u32(limits.pipelined as u32));
    transport.max_concurrent_uni_streams(VarInt::from_u32(0));
    transport.max_idle_timeout(limits.idle.try_into().ok());
    config.transport_config(Arc::new(transport));
    let runtime = quinn::default_runtime().ok_or_else(|| std::io::Error::other("there is no runtime"))?;
    Endpoint::new(EndpointConfig::default(), Some(config), socket, runtime)
}

// === impl Server ===

impl Server {
    /// Accepts until shutdown.
    pub(super) async fn run(self, endpoint: Endpoint) {
        loop {
            let incoming = tokio::select! {
                () = self.shutdown.cancelled() => break,
                incoming = endpoint.accept() => incoming,
            };
            let Some(incoming) = incoming else { return };
            let Ok(slot) = self.slots.clone().try_acquire_owned() else {
                incoming.refuse();
                continue;
            };
            let server = self.clone();
            self.tasks.spawn(async move {
                if let Ok(Ok(connection)) = timeout(READ, async { incoming.await }).await {
                    server.connection(connection).await;
                }
                drop(slot);
            });
        }
        endpoint.close(DONE, b"");
        endpoint.wait_idle().await;
    }

    async fn connection(&self, connection: Connection) {
        let mut waiting = tokio::task::JoinSet::new();
        loop {
            let stream = tokio::select! {
                () = self.shutdown.cancelled() => break,
                stream = connection.accept_bi() => stream,
                Some(_) = waiting.join_next(), if !waiting.is_empty() => continue,
            };
            let Ok((mut send, receive)) = stream else { return };
            let (server, connection) = (self.clone(), connection.clone());
            waiting.spawn(async move {
                // The stream is still open then: it must not look like an empty reply.
                if server.query(&connection, &mut send, receive).await.is_none() {
                    connection.close(PROTOCOL_ERROR, b"");
                }
            });
        }
        waiting.join_all().await;
        connection.close(DONE, b"");
    }

    /// Answers one stream. `None` when the client breaks the rules of the protocol.
    async fn query(&self, connection: &Connection, send: &mut SendStream, mut receive: RecvStream) -> Option<()> {
        let peer = connection.remote_address().ip();
        // The client ends its side of the stream behind the query (section 4.2).
        let message = timeout(READ, receive.read_to_end(2 + usize::from(u16::MAX)))
            .await
            .ok()?
            .ok()?;
        let (length, query) = message.split_first_chunk::<2>()?;
        // The message id is always 0 (section 4.2.1).
        if usize::from(u16::from_be_bytes(*length)) != query.len() || query.get(..2)? != [0, 0] {
            return None;
        }
        let begun = Instant::now();
        let reply = match self.answerer.reply(query, peer, begun) {
            Reply::Message(reply) => reply,
            Reply::Forward(forward) => self.answerer.forward(&forward, peer, query.len(), begun).await,
            Reply::Transfer(transfer) => transfer.refused(),
            Reply::Nothing => return None,
        };
        // A client that takes no answer is its own affair.
        let _ = timeout(READ, send.write_all(&framed(&reply))).await;
        let _ = send.finish();
        Some(())
    }
}
