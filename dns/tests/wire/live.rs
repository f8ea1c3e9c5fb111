//! A server on loopback, clients for it, and an upstream that does as it is told.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hickory_proto::op::{Message, MessageType, ResponseCode};
use hickory_proto::rr::rdata::{A, SOA};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use portolan_dns::forward::{Forwarder, Limits};
use portolan_dns::metrics::Tallies;
use portolan_dns::server::{Encrypted, Options, Running, Shared, TcpLimits, bind};
use portolan_dns::zone::Zone;

/// Long enough for a busy machine; what is waited for comes at once otherwise.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A running server. It ends when dropped.
pub struct Live {
    pub address: SocketAddr,
    /// Of [`Setup::encrypted`].
    pub encrypted: Vec<SocketAddr>,
    pub shared: Shared,
    runtime: Option<tokio::runtime::Runtime>,
    running: Option<Running>,
}

/// How the server under test is set up.
pub struct Setup {
    pub upstreams: Vec<SocketAddr>,
    pub max_concurrent: usize,
    pub tcp: TcpLimits,
    pub listen: &'static str,
    pub encrypted: Vec<Encrypted>,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            upstreams: Vec::new(),
            max_concurrent: 100,
            tcp: TcpLimits::default(),
            listen: "127.0.0.1:0",
            encrypted: Vec::new(),
        }
    }
}

impl Live {
    pub fn start(zone: &Zone, setup: Setup) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let forwarder = Forwarder::new(Limits {
            max_concurrent: setup.max_concurrent,
            cache_octets: 1 << 20,
        });
        forwarder.set_upstreams(&setup.upstreams);
        let zones = zone.reader().load().config.zones().len();
        let shared = Shared {
            zone: zone.reader(),
            forwarder,
            tallies: Arc::new(Tallies::new(zones)),
            rules: Arc::default(),
        };
        let options = Options {
            listen: vec![setup.listen.parse().unwrap()],
            threads: 2,
            tcp: setup.tcp,
            encrypted: setup.encrypted,
        };
        let guard = runtime.enter();
        let bound = bind(options).unwrap();
        let address = bound.addresses()[0];
        let encrypted = bound.encrypted_addresses();
        let running = bound.serve(&shared).unwrap();
        drop(guard);
        Self {
            address,
            encrypted,
            shared,
            runtime: Some(runtime),
            running: Some(running),
        }
    }

    /// Asks over UDP.
    pub fn udp(&self, query: &Message) -> Message {
        ask_udp(self.address, &query.to_vec().unwrap())
    }

    /// Waits for something that is asynchronous.
    pub fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.as_ref().unwrap().block_on(future)
    }

    /// Asks over TCP.
    pub fn tcp(&self, query: &Message) -> Message {
        ask_tcp(self.address, &query.to_vec().unwrap())
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        if let (Some(runtime), Some(running)) = (self.runtime.take(), self.running.take()) {
            runtime.block_on(running.drain(Duration::from_secs(1)));
            runtime.shutdown_background();
        }
    }
}

/// One datagram out, one in.
pub fn ask_udp(server: SocketAddr, query: &[u8]) -> Message {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    // Connected: a reply from any other address is not heard.
    socket.connect(server).unwrap();
    socket.send(query).unwrap();
    let mut buffer = [0; 65_535];
    let length = socket.recv(&mut buffer).unwrap();
    Message::from_vec(&buffer[..length]).unwrap()
}

/// One message out, one in.
pub fn ask_tcp(server: SocketAddr, query: &[u8]) -> Message {
    let mut stream = connect(server);
    stream.write_all(&framed(query)).unwrap();
    read_tcp(&mut stream).unwrap()
}

pub fn connect(server: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(server).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

pub fn framed(query: &[u8]) -> Vec<u8> {
    [&(query.len() as u16).to_be_bytes()[..], query].concat()
}

/// The next message of a connection; `None` when the server closed it.
pub fn read_tcp(stream: &mut TcpStream) -> Option<Message> {
    let mut length = [0; 2];
    stream.read_exact(&mut length).ok()?;
    let mut buffer = vec![0; u16::from_be_bytes(length).into()];
    stream.read_exact(&mut buffer).unwrap();
    Some(Message::from_vec(&buffer).unwrap())
}

/// An upstream on loopback. What it says depends on the first label of the name:
///
/// `none` NXDOMAIN with a minimum of 7; `servfail`; `cut` TC over UDP; `forged` first a wrong id, a wrong name and
/// noise; `mirror` an alias with every name in full, in the letters of the query; `silent` nothing; `slow` after a while; `brief` with a TTL of 1; `folded` in lower case; anything else 192.0.2.1 with a
/// TTL of 60.
pub struct Upstream {
    pub address: SocketAddr,
    muted: Arc<AtomicBool>,
    counts: Arc<Mutex<HashMap<String, usize>>>,
}

impl Upstream {
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let socket = UdpSocket::bind(address).unwrap();
        let counts: Arc<Mutex<HashMap<String, usize>>> = Arc::default();
        let muted: Arc<AtomicBool> = Arc::default();
        let upstream = Self {
            address,
            muted: muted.clone(),
            counts: counts.clone(),
        };
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok((length, peer)) = socket.recv_from(&mut buffer) {
                if muted.load(Ordering::Relaxed) {
                    continue;
                }
                let query = Message::from_vec(&buffer[..length]).unwrap();
                let name = query.queries[0].name().to_ascii().to_ascii_lowercase();
                *counts.lock().unwrap().entry(name.clone()).or_default() += 1;
                let socket = socket.try_clone().unwrap();
                std::thread::spawn(move || {
                    for reply in replies(&query, &name) {
                        socket.send_to(&reply, peer).unwrap();
                    }
                });
            }
        });
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                while let Some(query) = read_tcp(&mut stream) {
                    let reply = reply(&query).to_vec().unwrap();
                    stream.write_all(&framed(&reply)).unwrap();
                }
            }
        });
        upstream
    }

    /// From now on it says nothing over UDP, as if its machine were gone.
    pub fn mute(&self) {
        self.muted.store(true, Ordering::Relaxed);
    }

    /// How often a name was asked over UDP.
    pub fn count(&self, name: &str) -> usize {
        self.counts.lock().unwrap().get(name).copied().unwrap_or(0)
    }
}

fn reply(query: &Message) -> Message {
    let mut reply = query.clone();
    let name = query.queries[0].name().clone();
    reply.metadata.message_type = MessageType::Response;
    reply.metadata.recursion_available = true;
    // As an authoritative server would: it must not reach our clients.
    reply.metadata.authoritative = true;
    let first = name.iter().next().map(<[u8]>::to_ascii_lowercase);
    if first.as_deref() == Some(b"folded") {
        reply.queries[0].set_name(name.to_lowercase());
    }
    match first.as_deref() {
        Some(b"none") => {
            reply.metadata.response_code = ResponseCode::NXDomain;
            let zone = Name::from_ascii("example.com.").unwrap();
            let soa = SOA::new(zone.clone(), zone.clone(), 1, 2, 3, 4, 7);
            reply.add_authority(Record::from_rdata(zone, 900, RData::SOA(soa)));
        }
        Some(b"servfail") => reply.metadata.response_code = ResponseCode::ServFail,
        _ if query.queries[0].query_type() == RecordType::A => {
            let data = RData::A(A(Ipv4Addr::new(192, 0, 2, 1)));
            let ttl = if name.to_ascii().to_ascii_lowercase().starts_with("brief") {
                1
            } else {
                60
            };
            reply.add_answer(Record::from_rdata(name, ttl, data));
        }
        _ => {}
    }
    reply
}

fn replies(query: &Message, name: &str) -> Vec<Vec<u8>> {
    let right = reply(query);
    let bytes = |message: &Message| message.to_vec().unwrap();
    if name.starts_with("silent.") {
        return Vec::new();
    }
    if name.starts_with("slow.") {
        std::thread::sleep(Duration::from_millis(400));
    }
    if name.starts_with("mirror.") {
        return vec![mirrored(&bytes(&right), query.queries[0].name())];
    }
    if name.starts_with("cut.") {
        let mut cut = right.clone();
        cut.answers.clear();
        cut.metadata.truncation = true;
        return vec![bytes(&cut)];
    }
    if name.starts_with("forged.") {
        let evil = RData::A(A(Ipv4Addr::new(203, 0, 113, 66)));
        let mut id = right.clone();
        id.metadata.id ^= 1;
        id.answers[0].data = evil.clone();
        let mut other = right.clone();
        other.queries[0].set_name(Name::from_ascii("other.example.com.").unwrap());
        other.answers[0].data = evil;
        return vec![bytes(&id), bytes(&other), vec![0; 5], bytes(&right)];
    }
    vec![bytes(&right)]
}

/// A response that compresses nothing: the name is an alias of `web` beside it, which has an address.
fn mirrored(right: &[u8], name: &Name) -> Vec<u8> {
    let labels: Vec<&[u8]> = name.iter().collect();
    let wire = |first: &[u8]| -> Vec<u8> {
        let labels = std::iter::once(first).chain(labels[1..].iter().copied());
        let mut wire: Vec<u8> = labels
            .flat_map(|label| [&[label.len() as u8], label].concat())
            .collect();
        wire.push(0);
        wire
    };
    let (owner, target) = (wire(labels[0]), wire(b"Web"));
    let mut bytes = right[..12 + owner.len() + 4].to_vec();
    bytes[6..12].copy_from_slice(&[0, 2, 0, 0, 0, 0]);
    bytes.extend_from_slice(&owner);
    bytes.extend([0, 5, 0, 1, 0, 0, 0, 60, 0, target.len() as u8]);
    bytes.extend_from_slice(&target);
    bytes.extend_from_slice(&target);
    bytes.extend([0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 1]);
    bytes
}
