//! UDP: one thread and one SO_REUSEPORT socket for each core, batches of datagrams in and out.
//!
//! An answer from the zone or the cache never leaves the thread. Only what must be asked upstream becomes a task.

#[cfg(target_os = "linux")]
#[path = "udp/linux.rs"]
mod batch;
#[cfg(not(target_os = "linux"))]
#[path = "udp/portable.rs"]
mod batch;

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, ArcSwapOption, Cache};
use socket2::Type;
use tokio_util::task::TaskTracker;

use super::{Shared, Stop, bind_socket};
use crate::answer::{Answered, Client, Forward, Question, Transport, Verdict};
use crate::forward::Forwarder;
use crate::metrics::{Observed, Tally};
use crate::rules::{Rules, ruled};
use crate::zone::Snapshot;
use batch::{Batch, Origin};

/// How long a thread sleeps at most before it looks whether it should stop.
const WAKE: Duration = Duration::from_millis(200);
/// Room for bursts while a thread is busy. The kernel gives what it allows.
const BUFFER: usize = 1 << 20;

/// A socket for one thread.
pub(super) fn bind(address: SocketAddr) -> std::io::Result<UdpSocket> {
    let socket = bind_socket(address, Type::DGRAM, true)?;
    // Refused on some systems: then their default does.
    let _ = socket.set_recv_buffer_size(BUFFER);
    let _ = socket.set_send_buffer_size(BUFFER);
    socket.set_read_timeout(Some(WAKE))?;
    let socket: UdpSocket = socket.into();
    batch::prepare(&socket, address)?;
    Ok(socket)
}

/// What one thread works with.
pub(super) struct Worker {
    socket: Arc<UdpSocket>,
    v6: bool,
    zone: Cache<Arc<ArcSwap<Snapshot>>, Arc<Snapshot>>,
    rules: Cache<Arc<ArcSwapOption<Rules>>, Option<Arc<Rules>>>,
    forwarder: Forwarder,
    tally: Arc<Tally>,
    stop: Arc<Stop>,
    runtime: tokio::runtime::Handle,
    tasks: TaskTracker,
    rotation: Rotation,
    /// Where every query is read into.
    question: Box<Question>,
}

/// A number that differs from query to query, and between threads and restarts (xorshift64*).
struct Rotation(u64);

// === impl Rotation ===

impl Rotation {
    fn next(&mut self) -> u32 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32) as u32
    }
}

/// What becomes of one datagram.
enum Done {
    Reply(Answered),
    Waits,
    Nothing,
}

// === impl Worker ===

impl Worker {
    pub(super) fn new(
        socket: UdpSocket,
        shared: &Shared,
        stop: Arc<Stop>,
        tasks: TaskTracker,
    ) -> std::io::Result<Self> {
        Ok(Self {
            v6: socket.local_addr()?.is_ipv6(),
            socket: Arc::new(socket),
            zone: Cache::new(shared.zone.clone()),
            rules: Cache::new(shared.rules.clone()),
            forwarder: shared.forwarder.clone(),
            tally: shared.tallies.tally(),
            stop,
            runtime: tokio::runtime::Handle::current(),
            tasks,
            rotation: Rotation(rand::random::<u64>() | 1),
            question: Box::default(),
        })
    }

    /// Answers until told to stop and nothing waits any more.
    pub(super) fn run(mut self) {
        let mut batch = Batch::new();
        while !self.stop.leave.load(Ordering::Relaxed) {
            match batch.receive(&self.socket) {
                Ok(0) if self.stop.drain.load(Ordering::Relaxed) => return,
                Ok(0) => {}
                Ok(count) => {
                    let begun = Instant::now();
                    let now = super::now();
                    for index in 0..count {
                        self.one(&mut batch, index, begun, now);
                    }
                    batch.send(&self.socket);
                }
                Err(error) => {
                    tracing::warn!(%error, "receiving datagrams failed");
                    std::thread::sleep(WAKE);
                }
            }
        }
    }

    fn one(&mut self, batch: &mut Batch, index: usize, begun: Instant, now: u32) {
        let done = catch_unwind(AssertUnwindSafe(|| self.answer(batch, index, now)));
        match done {
            Ok(Done::Reply(answered)) => {
                batch.reply(index, answered.length);
                let peer = batch.peer(index);
                let (query, reply) = batch.pair(index);
                let (request, response) = (query.len(), reply.get(..answered.length).unwrap_or_default());
                let took = begun.elapsed();
                self.tally.observe(&Observed {
                    transport: Transport::Udp,
                    v6: self.v6,
                    zone: answered.zone,
                    request,
                    response,
                    took,
                });
                if let Some(rules) = self.rules.load().as_deref() {
                    rules.log(peer, Transport::Udp, request, response, took);
                }
            }
            Ok(Done::Waits | Done::Nothing) => {}
            Err(_) => self.tally.panicked(),
        }
    }

    fn answer(&mut self, batch: &mut Batch, index: usize, now: u32) -> Done {
        let client = Client {
            transport: Transport::Udp,
            address: batch.peer(index),
            rotation: self.rotation.next(),
            now,
        };
        let (snapshot, rules) = (self.zone.load(), self.rules.load().as_deref());
        let (query, reply) = batch.pair(index);
        let forward = match ruled(rules, &mut self.question, query, snapshot, &client, reply) {
            Verdict::Answer(answered) => return Done::Reply(answered),
            // Zones go over TCP only.
            Verdict::Drop | Verdict::Transfer(_) => return Done::Nothing,
            Verdict::Forward(forward) => forward,
        };
        let unzoned = |length| Done::Reply(Answered { length, zone: None });
        if forward.completion.is_none()
            && let Some(length) = self.forwarder.cached(&forward, Transport::Udp, reply)
        {
            return unzoned(length);
        }
        let Some(slot) = self.forwarder.slot(&forward) else {
            let refused = self.forwarder.overloaded(&forward.question, Transport::Udp);
            return match reply.get_mut(..refused.len()) {
                Some(place) => {
                    place.copy_from_slice(&refused);
                    unzoned(refused.len())
                }
                None => Done::Nothing,
            };
        };
        let request = query.len();
        let origin = batch.origin(index);
        let later = Later {
            socket: self.socket.clone(),
            v6: self.v6,
            forwarder: self.forwarder.clone(),
            tally: self.tally.clone(),
            forward: *forward,
            origin,
            peer: client.address,
            rules: self.rules.load().clone(),
            request,
        };
        self.tasks.spawn_on(resolve(later, slot), &self.runtime);
        Done::Waits
    }
}

/// A query that waits for upstreams.
struct Later {
    socket: Arc<UdpSocket>,
    v6: bool,
    forwarder: Forwarder,
    tally: Arc<Tally>,
    forward: Forward,
    origin: Origin,
    peer: IpAddr,
    rules: Option<Arc<Rules>>,
    request: usize,
}

async fn resolve(later: Later, slot: crate::forward::Slot) {
    let begun = Instant::now();
    let reply = super::reply::resolve(&later.forwarder, &later.forward, Transport::Udp, slot).await;
    // A client that cannot be reached is its own affair.
    let _ = later.origin.send(&later.socket, &reply);
    later.tally.observe(&Observed {
        transport: Transport::Udp,
        v6: later.v6,
        zone: None,
        request: later.request,
        response: &reply,
        took: begun.elapsed(),
    });
    if let Some(rules) = &later.rules {
        rules.log(later.peer, Transport::Udp, later.request, &reply, begun.elapsed());
    }
}
