//! Queries over one TCP or TLS connection an upstream, many at a time (RFC 7766 section 6.2.1), opened when needed.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::exchange::ExchangeError;
use super::spec::{Options, Target, Transport};
use super::tls;

/// Queries on one connection that wait to be written.
const QUEUE: usize = 64;

/// The connection to one upstream.
#[derive(Debug, Default)]
pub struct Stream {
    open: tokio::sync::Mutex<Option<mpsc::Sender<Order>>>,
}

/// A query to be sent, and where its answer goes.
#[derive(Debug)]
struct Order {
    query: Vec<u8>,
    reply: oneshot::Sender<Vec<u8>>,
}

/// Queries that wait for their answers, by the id that they have on this connection, with the id that they came with.
type Askers = HashMap<u16, ([u8; 2], oneshot::Sender<Vec<u8>>)>;

/// The same for the two halves of a connection.
type Waiting = Arc<Mutex<Askers>>;

// === impl Stream ===

impl Stream {
    /// Sends a query and waits for the answer with its id.
    ///
    /// # Errors
    /// When no connection can be had, or it ends first.
    pub async fn ask(&self, target: &Target, options: &Options, query: &[u8]) -> Result<Vec<u8>, ExchangeError> {
        // A connection that was open may have been closed by the upstream a moment ago.
        for fresh in [false, true] {
            let (sender, opened) = self.sender(target, options).await?;
            let (reply, answer) = oneshot::channel();
            let order = Order {
                query: query.to_vec(),
                reply,
            };
            if sender.send(order).await.is_ok()
                && let Ok(answer) = answer.await
            {
                return Ok(answer);
            }
            if fresh || opened {
                break;
            }
        }
        Err(ExchangeError::Io {
            upstream: target.to_string(),
            cause: io::Error::new(io::ErrorKind::ConnectionReset, "the upstream closed the connection"),
        })
    }

    /// The open connection, or a new one; says which.
    async fn sender(&self, target: &Target, options: &Options) -> Result<(mpsc::Sender<Order>, bool), ExchangeError> {
        let mut open = self.open.lock().await;
        if let Some(sender) = open.as_ref().filter(|sender| !sender.is_closed()) {
            return Ok((sender.clone(), false));
        }
        let io = |cause| ExchangeError::Io {
            upstream: target.to_string(),
            cause,
        };
        let stream = TcpStream::connect(target.address).await.map_err(io)?;
        stream.set_nodelay(true).map_err(io)?;
        let (sender, orders) = mpsc::channel(QUEUE);
        if target.transport == Transport::Tls {
            let stream = tls::connect(target, options, &[b"dot"], stream).await?;
            tokio::spawn(run(stream, orders, options.expire));
        } else {
            tokio::spawn(run(stream, orders, options.expire));
        }
        *open = Some(sender.clone());
        Ok((sender, true))
    }
}

/// Serves a connection until it is idle, broken, or nobody can ask any more.
async fn run<S: AsyncRead + AsyncWrite + Send + 'static>(
    stream: S,
    mut orders: mpsc::Receiver<Order>,
    expire: Duration,
) {
    let (mut reader, mut writer) = tokio::io::split(stream);
    let waiting = Waiting::default();
    let answers = waiting.clone();
    let read = async move {
        // A silence that is long ends it, whether or not someone waits.
        while let Ok(Ok(length)) = timeout(expire, reader.read_u16()).await {
            let mut message = vec![0; length.into()];
            if !matches!(timeout(expire, reader.read_exact(&mut message)).await, Ok(Ok(_))) || message.len() < 2 {
                return;
            }
            let id = u16::from_be_bytes([message[0], message[1]]);
            let asker = lock(&answers).remove(&id);
            if let Some((id, reply)) = asker {
                message[..2].copy_from_slice(&id);
                // Whoever asked has given up: fine.
                let _ = reply.send(message);
            }
        }
    };
    let write = async move {
        while let Some(order) = orders.recv().await {
            let Some(bytes) = enlist(&waiting, order) else { continue };
            if writer.write_all(&bytes).await.is_err() || writer.flush().await.is_err() {
                return;
            }
        }
    };
    // Both end together: dropped askers hear of it.
    tokio::select! {
        () = read => {}
        () = write => {}
    }
}

/// Gives a query an id that no other has here, and frames it.
fn enlist(waiting: &Waiting, order: Order) -> Option<Vec<u8>> {
    let Order { mut query, reply } = order;
    let mut waiting = lock(waiting);
    // Askers that have given up leave.
    if waiting.len() > 1024 {
        waiting.retain(|_, (_, reply)| !reply.is_closed());
    }
    if waiting.len() > 32_768 || query.len() < 2 {
        return None;
    }
    let mut id = rand::random::<u16>();
    while waiting.contains_key(&id) {
        id = id.wrapping_add(1);
    }
    waiting.insert(id, ([query[0], query[1]], reply));
    query[..2].copy_from_slice(&id.to_be_bytes());
    let length = u16::try_from(query.len()).ok()?;
    Some([&length.to_be_bytes(), &query[..]].concat())
}

fn lock(waiting: &Mutex<Askers>) -> std::sync::MutexGuard<'_, Askers> {
    waiting.lock().unwrap_or_else(PoisonError::into_inner)
}
