//! Listens and answers: UDP in threads of its own, TCP in tasks.
//!
//! Ports are bound before anything else happens; queries wait in the kernel until [`Bound::serve`].

mod https;
mod quic;
mod reply;
mod tcp;
mod tls;
mod udp;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use socket2::{Domain, Protocol, Socket, Type};
use thiserror::Error;
use tokio_util::sync::CancellationToken;

use crate::forward::Forwarder;
use crate::handover::{Estate, Inherited};
use crate::metrics::Tallies;
use crate::rules::Rules;
use crate::zone::Snapshot;

pub use tls::{TlsError, TlsFiles};

/// What UDP threads and TCP connections share.
#[derive(Clone, Debug)]
pub struct Shared {
    /// What is served.
    pub zone: Arc<ArcSwap<Snapshot>>,
    /// Who is asked for the rest.
    pub forwarder: Forwarder,
    /// Where queries are counted.
    pub tallies: Arc<Tallies>,
    /// What comes before the zones, if anything does.
    pub rules: Arc<ArcSwapOption<Rules>>,
}

/// What to listen on.
#[derive(Clone, Debug)]
pub struct Options {
    /// Addresses, each for UDP and TCP.
    pub listen: Vec<SocketAddr>,
    /// UDP sockets and threads for each address.
    pub threads: usize,
    /// Bounds of TCP connections, those below TLS included, and of QUIC connections.
    pub tcp: TcpLimits,
    /// Addresses on which queries are encrypted.
    pub encrypted: Vec<Encrypted>,
}

/// An address on which queries are encrypted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encrypted {
    /// The address.
    pub address: SocketAddr,
    /// How.
    pub scheme: Scheme,
    /// What this server proves its name with.
    pub tls: TlsFiles,
}

/// How queries are encrypted, as a Corefile says it: `tls://`, `https://`, `quic://`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// DNS over TLS (RFC 7858), by default on port 853.
    Tls,
    /// DNS over HTTPS (RFC 8484), by default on port 443.
    Https,
    /// DNS over QUIC (RFC 9250), by default on port 853.
    Quic,
}

/// Bounds of TCP connections.
#[derive(Clone, Copy, Debug)]
pub struct TcpLimits {
    /// Connections at a time; more are closed at once.
    pub connections: usize,
    /// Queries of one connection that may wait for upstreams; then no more are read.
    pub pipelined: usize,
    /// How long a connection may say nothing.
    pub idle: Duration,
}

impl Default for TcpLimits {
    fn default() -> Self {
        Self {
            connections: 1024,
            pipelined: 64,
            idle: Duration::from_secs(10),
        }
    }
}

/// Why an address cannot be listened on.
#[derive(Debug, Error)]
pub enum ListenError {
    /// The system does not let us have it.
    #[error("cannot listen on {address}/{transport}: {}", advice(*address, cause))]
    Address {
        /// The address.
        address: SocketAddr,
        /// `udp` or `tcp`.
        transport: &'static str,
        /// What the kernel said.
        cause: std::io::Error,
    },
    /// There is nothing to encrypt with.
    #[error("cannot listen on {address}: {cause}")]
    Tls {
        /// The address.
        address: SocketAddr,
        /// What is wrong with the certificate.
        cause: TlsError,
    },
}

fn advice(address: SocketAddr, cause: &std::io::Error) -> String {
    let port = address.port();
    match cause.kind() {
        std::io::ErrorKind::AddrInUse => format!(
            "port {port} is in use by another program (`ss -lnup sport = :{port}` names it; often systemd-resolved or \
             dnsmasq): stop that, or give --listen another address or port"
        ),
        std::io::ErrorKind::PermissionDenied => format!(
            "not permitted: ports below 1024 need root or the capability NET_BIND_SERVICE; or give --listen a port \
             such as {}",
            u32::from(port) + 5300
        ),
        std::io::ErrorKind::AddrNotAvailable => "this machine has no such address".to_owned(),
        _ => cause.to_string(),
    }
}

/// Sockets that are bound and not served yet.
#[derive(Debug)]
pub struct Bound {
    udp: Vec<std::net::UdpSocket>,
    tcp: Vec<std::net::TcpListener>,
    encrypted: Vec<BoundEncrypted>,
    addresses: Vec<SocketAddr>,
    options: Options,
}

#[derive(Debug)]
struct BoundEncrypted {
    socket: Socket,
    scheme: Scheme,
    tls: rustls::ServerConfig,
}

/// A server that answers.
#[derive(Debug)]
pub struct Running {
    threads: Vec<std::thread::JoinHandle<()>>,
    stop: Arc<Stop>,
    shutdown: CancellationToken,
    tasks: tokio_util::task::TaskTracker,
}

/// How the threads are to end.
#[derive(Debug, Default)]
struct Stop {
    /// When nothing waits in their sockets any more.
    drain: AtomicBool,
    /// After the batch in hand: a successor reads the same sockets, or time is up.
    leave: AtomicBool,
}

/// Binds every address for UDP and TCP.
///
/// # Errors
/// Names the address that cannot be bound, why, and what to do.
pub fn bind(options: Options) -> Result<Bound, ListenError> {
    bind_or_inherit(options, &mut Inherited::default())
}

/// The same with the sockets of a predecessor where it has them.
///
/// # Errors
/// As [`bind`].
pub fn bind_or_inherit(options: Options, inherited: &mut Inherited) -> Result<Bound, ListenError> {
    let (mut udp, mut tcp, mut addresses) = (Vec::new(), Vec::new(), Vec::new());
    for wanted in &options.listen {
        let sockets = inherited.take_udp(*wanted);
        if let Some(stream) = inherited.take_tcp(*wanted).filter(|_| !sockets.is_empty()) {
            udp.extend(sockets);
            tcp.push(stream);
            addresses.push(*wanted);
            continue;
        }
        // Someone else's socket with SO_REUSEPORT must not go unnoticed: the first socket is tried without it.
        let probe = if wanted.port() == 0 { None } else { Some(*wanted) };
        if let Some(address) = probe {
            bind_socket(address, Type::DGRAM, false).map_err(|cause| failed(address, "udp", cause))?;
        }
        let stream = bind_socket(*wanted, Type::STREAM, false).map_err(|cause| failed(*wanted, "tcp", cause))?;
        stream.listen(1024).map_err(|cause| failed(*wanted, "tcp", cause))?;
        let stream: std::net::TcpListener = stream.into();
        let address = stream.local_addr().map_err(|cause| failed(*wanted, "tcp", cause))?;
        for _ in 0..options.threads.max(1) {
            let socket = udp::bind(address).map_err(|cause| failed(address, "udp", cause))?;
            udp.push(socket);
            if !cfg!(unix) {
                break;
            }
        }
        tcp.push(stream);
        addresses.push(address);
    }
    let encrypted: Result<Vec<_>, _> = options
        .encrypted
        .iter()
        .map(|wanted| bind_encrypted(wanted, inherited))
        .collect();
    Ok(Bound {
        udp,
        tcp,
        encrypted: encrypted?,
        addresses,
        options,
    })
}

fn failed(address: SocketAddr, transport: &'static str, cause: std::io::Error) -> ListenError {
    ListenError::Address {
        address,
        transport,
        cause,
    }
}

fn bind_encrypted(wanted: &Encrypted, inherited: &mut Inherited) -> Result<BoundEncrypted, ListenError> {
    let address = wanted.address;
    let (type_, transport, protocols): (_, _, &[&[u8]]) = match wanted.scheme {
        Scheme::Tls => (Type::STREAM, "tcp", &[b"dot"]),
        Scheme::Https => (Type::STREAM, "tcp", &[b"h2", b"http/1.1"]),
        Scheme::Quic => (Type::DGRAM, "udp", &[b"doq"]),
    };
    let tls = tls::server_config(&wanted.tls, protocols).map_err(|cause| ListenError::Tls { address, cause })?;
    let refused = |cause| failed(address, transport, cause);
    let known = match type_ {
        Type::STREAM => inherited.take_tcp(address).map(Socket::from),
        _ => inherited.take_udp(address).pop().map(Socket::from),
    };
    let socket = match known {
        Some(socket) => socket,
        None => {
            let socket = bind_socket(address, type_, false).map_err(refused)?;
            if type_ == Type::STREAM {
                socket.listen(1024).map_err(refused)?;
            }
            socket
        }
    };
    Ok(BoundEncrypted {
        socket,
        scheme: wanted.scheme,
        tls,
    })
}

/// Seconds since 1970.
fn now() -> u32 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| since.as_secs() as u32)
}

/// A bound socket. IPv6 sockets take no IPv4, so that `[::]` and `0.0.0.0` can both be listened on.
fn bind_socket(address: SocketAddr, type_: Type, shared: bool) -> std::io::Result<Socket> {
    let protocol = if type_ == Type::STREAM {
        Protocol::TCP
    } else {
        Protocol::UDP
    };
    let socket = Socket::new(Domain::for_address(address), type_, Some(protocol))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    #[cfg(unix)]
    {
        if type_ == Type::STREAM {
            socket.set_reuse_address(true)?;
        }
        if shared {
            socket.set_reuse_port(true)?;
        }
    }
    #[cfg(not(unix))]
    let _ = shared;
    socket.bind(&address.into())?;
    Ok(socket)
}

// === impl Bound ===

impl Bound {
    /// Where it listens; real ports where port 0 was asked for.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// The same of the addresses on which queries are encrypted, in the order given.
    pub fn encrypted_addresses(&self) -> Vec<SocketAddr> {
        let local = |bound: &BoundEncrypted| bound.socket.local_addr().ok()?.as_socket();
        self.encrypted.iter().filter_map(local).collect()
    }

    /// Copies of the sockets, for a successor.
    ///
    /// # Errors
    /// When there are no descriptors left.
    pub fn estate(&self, into: &mut Estate) -> std::io::Result<()> {
        for socket in &self.udp {
            into.udp.push(socket.try_clone()?);
        }
        for socket in &self.tcp {
            into.tcp.push(socket.try_clone()?);
        }
        for BoundEncrypted { socket, scheme, .. } in &self.encrypted {
            let socket = socket.try_clone()?;
            match scheme {
                Scheme::Tls | Scheme::Https => into.tcp.push(socket.into()),
                Scheme::Quic => into.udp.push(socket.into()),
            }
        }
        Ok(())
    }

    /// Starts to answer. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// When the system gives no threads.
    pub fn serve(self, shared: &Shared) -> std::io::Result<Running> {
        let stop = Arc::new(Stop::default());
        let shutdown = CancellationToken::new();
        let tasks = tokio_util::task::TaskTracker::new();
        let mut threads = Vec::new();
        for (index, socket) in self.udp.into_iter().enumerate() {
            let worker = udp::Worker::new(socket, shared, stop.clone(), tasks.clone())?;
            let thread = std::thread::Builder::new().name(format!("udp-{index}"));
            threads.push(thread.spawn(move || worker.run())?);
        }
        let slots = Arc::new(tokio::sync::Semaphore::new(self.options.tcp.connections));
        let limits = self.options.tcp;
        let answerer = || reply::Answerer {
            shared: shared.clone(),
            tally: shared.tallies.tally(),
        };
        let tcp = |listener: std::net::TcpListener, carries| -> std::io::Result<()> {
            listener.set_nonblocking(true)?;
            let listener = tokio::net::TcpListener::from_std(listener)?;
            let server = tcp::Server {
                answerer: answerer(),
                carries,
                limits,
                slots: slots.clone(),
                shutdown: shutdown.clone(),
                tasks: tasks.clone(),
            };
            tasks.spawn(server.run(listener));
            Ok(())
        };
        for listener in self.tcp {
            tcp(listener, tcp::Carries::Messages)?;
        }
        for BoundEncrypted { socket, scheme, tls } in self.encrypted {
            match scheme {
                Scheme::Tls => tcp(socket.into(), tcp::Carries::Tls(tls::Acceptor::new(tls)))?,
                Scheme::Https => tcp(socket.into(), tcp::Carries::Https(tls::Acceptor::new(tls)))?,
                Scheme::Quic => {
                    socket.set_nonblocking(true)?;
                    let endpoint = quic::endpoint(socket.into(), tls, limits)?;
                    let server = quic::Server {
                        answerer: answerer(),
                        slots: slots.clone(),
                        shutdown: shutdown.clone(),
                        tasks: tasks.clone(),
                    };
                    tasks.spawn(server.run(endpoint));
                }
            }
        }
        Ok(Running {
            threads,
            stop,
            shutdown,
            tasks,
        })
    }
}

// === impl Running ===

impl Running {
    /// Stops taking queries, answers those that have come, and ends. Waits at most `patience`.
    pub async fn drain(self, patience: Duration) {
        self.stop.drain.store(true, Ordering::Relaxed);
        self.shutdown.cancel();
        self.tasks.close();
        let mut threads = tokio::task::spawn_blocking(move || {
            for thread in self.threads {
                // A thread that panicked has said so.
                let _ = thread.join();
            }
        });
        if tokio::time::timeout(patience, &mut threads).await.is_err() {
            // Queries come without end. What was read is answered.
            self.stop.leave.store(true, Ordering::Relaxed);
            let _ = threads.await;
        }
        if tokio::time::timeout(patience, self.tasks.wait()).await.is_err() {
            tracing::warn!(?patience, "some queries were still waiting for upstreams");
        }
    }

    /// Leaves the sockets to a successor that reads them already, answers what was read, and ends.
    pub async fn hand_over(self, patience: Duration) {
        self.stop.leave.store(true, Ordering::Relaxed);
        self.drain(patience).await;
    }
}
