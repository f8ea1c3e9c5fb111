//! Sockets: how listeners are bound and connections are tuned. Everything here works on every system std knows.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use portolan_model::{Family, Protocol};
use socket2::{Domain, SockRef, Socket, TcpKeepalive, Type};
use tokio::net::{TcpListener, TcpStream, UdpSocket};

/// Connections that may wait for us to accept them.
const BACKLOG: i32 = 1024;
/// Silence after which the system asks whether the other side is still there.
const KEEPALIVE: Duration = Duration::from_secs(120);

/// A bound socket.
#[derive(Debug)]
pub(super) enum Bound {
    /// Listens.
    Tcp(TcpListener),
    /// Receives.
    Udp(UdpSocket),
}

/// Binds exactly `address` (port 0: any free one). Must be called inside a tokio runtime's context.
///
/// # Errors
/// The system's own; [`io::ErrorKind::AddrNotAvailable`] when the address is not this machine's.
pub(super) fn bind(protocol: Protocol, address: SocketAddr) -> io::Result<Bound> {
    let stream = match protocol {
        Protocol::Tcp => true,
        Protocol::Udp => false,
        Protocol::Sctp => return Err(ErrorKind::Unsupported.into()),
    };
    // Wine binds UDP sockets to any address.
    if !stream && cfg!(windows) && !is_own(address.ip()) {
        return Err(ErrorKind::AddrNotAvailable.into());
    }
    let kind = if stream { Type::STREAM } else { Type::DGRAM };
    let socket = Socket::new(Domain::for_address(address), kind, None)?;
    socket.set_nonblocking(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    // On Windows the option means that anyone may take the port from us; elsewhere that old connections do not block it.
    if stream && cfg!(not(windows)) {
        socket.set_reuse_address(true)?;
    }
    socket.bind(&address.into())?;
    if stream {
        socket.listen(BACKLOG)?;
        TcpListener::from_std(socket.into()).map(Bound::Tcp)
    } else {
        UdpSocket::from_std(socket.into()).map(Bound::Udp)
    }
}

impl Bound {
    /// Where the socket is bound.
    pub(super) fn local_addr(&self) -> io::Result<SocketAddr> {
        match self {
            Self::Tcp(listener) => listener.local_addr(),
            Self::Udp(socket) => socket.local_addr(),
        }
    }
}

/// A UDP socket with a port of its own whose only peer is `endpoint`. Must be called inside a runtime's context.
pub(super) fn udp_to(endpoint: SocketAddr) -> io::Result<UdpSocket> {
    let any: IpAddr = match endpoint {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = std::net::UdpSocket::bind((any, 0))?;
    socket.connect(endpoint)?;
    socket.set_nonblocking(true)?;
    UdpSocket::from_std(socket)
}

/// Whether this is one of the machine's own addresses: those, and only those, can be bound.
///
/// With `net.ipv4.ip_nonlocal_bind` set, Linux lets everyone bind everything: see [`tells_own`].
pub(super) fn is_own(address: IpAddr) -> bool {
    let address = SocketAddr::new(address, 0);
    // By TCP, for Wine's sake as above.
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None);
    socket.is_ok_and(|socket| socket.bind(&address.into()).is_ok())
}

/// Whether [`is_own`] can tell anything here: an address of the reserved class E is nobody's.
pub(super) fn tells_own() -> bool {
    !is_own(Ipv4Addr::new(240, 0, 0, 1).into())
}

/// The address that stands in for a frontend's address when that is not this machine's.
pub(super) fn loopback(family: Family) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::LOCALHOST.into(),
        Family::V6 => Ipv6Addr::LOCALHOST.into(),
    }
}

/// Sends small writes at once and notices peers that vanished. A system that refuses loses nothing but that.
pub(super) fn tune(stream: &TcpStream) {
    let _ = stream.set_nodelay(true);
    let _ = SockRef::from(stream).set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE));
}

/// Closes so that the peer sees a reset.
pub(super) fn reset(stream: TcpStream) {
    let _ = stream.set_zero_linger();
    drop(stream);
}
