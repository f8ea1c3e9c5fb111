//! UDP: a flow for each client address, with a socket of its own towards one endpoint.
//!
//! A flow ends when it was idle for too long, when its endpoint says that nobody is there, when the plan no longer lets it
//! have that endpoint, or when there are too many and it was idle longest. The client's next datagram starts another.

use std::collections::HashMap;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use portolan_plan::Verdict;
use socket2::SockRef;
use tokio::net::UdpSocket;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep, sleep_until};

use super::listener::Alive;
use super::shared::{Buffer, Count, Shared};
use super::socket;
use super::target::Target;

/// Datagrams taken in before other tasks get their turn.
const BATCH: usize = 64;
/// Pause after receiving failed for a reason that may last.
const PAUSE: Duration = Duration::from_millis(10);

/// A frontend's socket and its flows.
struct Frontend {
    flows: Mutex<HashMap<SocketAddr, Arc<Flow>>>,
    shared: Arc<Shared>,
    socket: UdpSocket,
    // After the socket: see listener::Closing.
    _alive: Alive,
}

/// One client's traffic with one endpoint.
struct Flow {
    endpoint: SocketAddr,
    upstream: UdpSocket,
    last: Mutex<Instant>,
    /// The endpoint has answered.
    stream: AtomicBool,
    ended: Notify,
}

/// Relays datagrams until the target's sender is gone.
pub(super) async fn serve(
    alive: Alive,
    socket: UdpSocket,
    at: SocketAddr,
    mut target: watch::Receiver<Arc<Target>>,
    shared: Arc<Shared>,
) {
    let frontend = Arc::new(Frontend {
        flows: Mutex::default(),
        shared,
        socket,
        _alive: alive,
    });
    let latest = target.clone();
    loop {
        tokio::select! {
            biased;
            changed = target.changed() => {
                if changed.is_err() {
                    break;
                }
                let target = target.borrow_and_update().clone();
                frontend.end_where(|client, flow| !frontend.may_stay(&target, client, flow));
            }
            received = frontend.receive(&latest) => if let Err(error) = received {
                // Some systems report here that an earlier reply reached nobody: no reason to stop.
                tracing::debug!("cannot receive on {at}: {error}");
                sleep(PAUSE).await;
            },
        }
    }
    frontend.end_where(|_, _| true);
}

impl Frontend {
    async fn receive(self: &Arc<Self>, target: &watch::Receiver<Arc<Target>>) -> io::Result<()> {
        self.socket.readable().await?;
        let mut buffer = Buffer::take();
        for _ in 0..BATCH {
            match self.socket.try_recv_from(&mut buffer) {
                Ok((length, client)) => {
                    self.forward(client, buffer.get(..length).unwrap_or_default(), &target.borrow());
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        drop(buffer);
        tokio::task::yield_now().await;
        Ok(())
    }

    /// Sends a client's datagram to its endpoint. When that turns out to be gone, once more to another.
    fn forward(self: &Arc<Self>, client: SocketAddr, datagram: &[u8], target: &Target) {
        for _ in 0..2 {
            let found = self.lock().get(&client).cloned();
            let Some(flow) = found.or_else(|| self.start(client, target)) else {
                return;
            };
            match SockRef::from(&flow.upstream).send(datagram) {
                Ok(_) => return flow.touch(),
                // A full queue loses datagrams, here as anywhere.
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(_) => self.end(client, &flow),
            }
        }
    }

    fn start(self: &Arc<Self>, client: SocketAddr, target: &Target) -> Option<Arc<Flow>> {
        let Verdict::Forward { set, .. } = target.verdict(client.ip(), &self.shared.sources) else {
            self.shared.counters.denied.fetch_add(1, Ordering::Relaxed);
            return None;
        };
        let endpoint = target.choose(set, client.ip(), &[])?;
        if self.lock().len() >= self.shared.options.udp_flows {
            self.evict();
        }
        let upstream = match socket::udp_to(endpoint) {
            Ok(upstream) => upstream,
            Err(error) => {
                self.shared
                    .complain(&format!("cannot open a socket towards {endpoint}"), &error);
                // The next datagram shall find a free file.
                self.evict();
                return None;
            }
        };
        target.learn(client.ip(), endpoint);
        let flow = Arc::new(Flow {
            endpoint,
            upstream,
            last: Mutex::new(Instant::now()),
            stream: AtomicBool::new(false),
            ended: Notify::new(),
        });
        self.lock().insert(client, flow.clone());
        tokio::spawn(replies(self.clone(), client, flow.clone()));
        Some(flow)
    }

    /// Whether a flow could have come about under this target.
    fn may_stay(&self, target: &Target, client: SocketAddr, flow: &Flow) -> bool {
        match target.verdict(client.ip(), &self.shared.sources) {
            Verdict::Forward { set, .. } => target.endpoints(set).contains(&flow.endpoint),
            Verdict::Reject | Verdict::Drop => false,
        }
    }

    /// Ends the flow that was idle longest.
    fn evict(&self) {
        let mut flows = self.lock();
        let oldest = flows
            .iter()
            .min_by_key(|(_, flow)| flow.last())
            .map(|(client, _)| *client);
        if let Some(flow) = oldest.and_then(|client| flows.remove(&client)) {
            flow.ended.notify_one();
            self.shared.counters.udp_evicted.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Ends this flow, unless the client has another by now.
    fn end(&self, client: SocketAddr, flow: &Arc<Flow>) {
        let mut flows = self.lock();
        if flows.get(&client).is_some_and(|current| Arc::ptr_eq(current, flow)) {
            flows.remove(&client);
        }
        flow.ended.notify_one();
    }

    fn end_where(&self, ends: impl Fn(SocketAddr, &Flow) -> bool) {
        self.lock().retain(|client, flow| {
            let stays = !ends(*client, flow);
            if !stays {
                flow.ended.notify_one();
            }
            stays
        });
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<SocketAddr, Arc<Flow>>> {
        self.flows.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Flow {
    fn touch(&self) {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    fn last(&self) -> Instant {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn expires(&self, shared: &Shared) -> Instant {
        let idle = if self.stream.load(Ordering::Relaxed) {
            shared.options.udp_stream_idle
        } else {
            shared.options.udp_idle
        };
        self.last() + idle
    }
}

/// Carries an endpoint's datagrams back to the client, from the address that the client sent to, until the flow ends.
async fn replies(frontend: Arc<Frontend>, client: SocketAddr, flow: Arc<Flow>) {
    let _count = Count::up(&frontend.shared.counters.udp_flows);
    loop {
        let expires = flow.expires(&frontend.shared);
        tokio::select! {
            () = flow.ended.notified() => return,
            reply = reply(&frontend, client, &flow) => {
                if reply.is_err() {
                    break;
                }
                tokio::task::coop::consume_budget().await;
            }
            () = sleep_until(expires) => if Instant::now() >= flow.expires(&frontend.shared) {
                break;
            },
        }
    }
    frontend.end(client, &flow);
}

/// # Errors
/// The endpoint is gone (its system answered so). A client that cannot be reached is no error: datagrams get lost.
async fn reply(frontend: &Frontend, client: SocketAddr, flow: &Flow) -> io::Result<()> {
    flow.upstream.readable().await?;
    let mut buffer = Buffer::take();
    match flow.upstream.try_recv(&mut buffer) {
        Ok(length) => {
            flow.stream.store(true, Ordering::Relaxed);
            flow.touch();
            let _ = frontend
                .socket
                .send_to(buffer.get(..length).unwrap_or_default(), client)
                .await;
            Ok(())
        }
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(()),
        Err(error) => Err(error),
    }
}
