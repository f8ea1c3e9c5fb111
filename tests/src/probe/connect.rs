//! The client: a number of connections or datagrams to one target, counted by who answered.

use std::io::{self, BufRead as _, BufReader, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, ToSocketAddrs as _, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;
use socket2::{Domain, Protocol, Socket, Type};

use super::{Failure, FailureKind, Hello, Report};

/// What to connect to and how.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// `address:port`, `[address]:port` or `name:port`; a name is resolved by the system's resolver for every attempt.
    pub target: String,
    /// Datagrams instead of connections.
    #[arg(long)]
    pub udp: bool,
    /// How many attempts.
    #[arg(long, default_value_t = 1)]
    pub count: u32,
    /// How long one attempt may take, in milliseconds.
    #[arg(long, default_value_t = 2000)]
    pub timeout_ms: u64,
    /// Sends so many bytes in each attempt, and wants as many back.
    #[arg(long, default_value_t = 0)]
    pub size: usize,
    /// Sends every attempt from this port.
    #[arg(long)]
    pub source_port: Option<u16>,
    /// Sends every attempt from this address.
    #[arg(long)]
    pub source: Option<IpAddr>,
    /// Uses only the addresses of this family, 4 or 6, when the target is a name.
    #[arg(long)]
    pub family: Option<u8>,
    /// Sends each datagram with its address instead of connecting the socket. The answer must come from that address.
    #[arg(long, requires = "udp")]
    pub unconnected: bool,
    /// Asks an IPv4 address over an IPv6 socket.
    #[arg(long)]
    pub mapped: bool,
    /// Goes on after a failed attempt; otherwise the first failure ends the run.
    #[arg(long)]
    pub keep_going: bool,
    /// Goes on until standard input is closed, for the count at least, with this pause between attempts in milliseconds.
    #[arg(long)]
    pub until_stdin_closes: Option<u64>,
}

/// Makes the attempts and returns what came of them.
///
/// # Errors
/// Never for a failed attempt: those are part of the report.
pub fn run(options: &Options) -> Result<Report> {
    let mut report = Report::default();
    let stop = stop_flag(options.until_stdin_closes.is_some());
    loop {
        report.attempts += 1;
        match attempt(options) {
            Ok(hello) => {
                *report.answers.entry(hello.name).or_default() += 1;
                *report.sources.entry(hello.client_address).or_default() += 1;
            }
            Err(failure) => {
                report.failures.push(failure);
                if !options.keep_going {
                    return Ok(report);
                }
            }
        }
        match options.until_stdin_closes {
            Some(_) if stop.load(Ordering::Relaxed) && report.attempts >= options.count => return Ok(report),
            Some(pause) => std::thread::sleep(Duration::from_millis(pause)),
            None if report.attempts >= options.count => return Ok(report),
            None => {}
        }
    }
}

/// A flag that turns true once standard input is closed.
fn stop_flag(watch: bool) -> Arc<AtomicBool> {
    let stop = Arc::new(AtomicBool::new(false));
    if watch {
        let flag = Arc::clone(&stop);
        std::thread::spawn(move || {
            let _ = io::copy(&mut io::stdin().lock(), &mut io::sink());
            flag.store(true, Ordering::Relaxed);
        });
    }
    stop
}

fn attempt(options: &Options) -> Result<Hello, Failure> {
    let start = Instant::now();
    let millis = || u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX);
    let target = resolve(&options.target, options.family).map_err(|error| Failure {
        kind: FailureKind::Name,
        errno: error.raw_os_error(),
        message: error.to_string(),
        millis: millis(),
    })?;
    let timeout = Duration::from_millis(options.timeout_ms);
    let answer = if options.unconnected {
        unconnected_socket(target, options)
            .and_then(|socket| exchange_with(&socket, mapped(target, options), timeout, options.size))
    } else if options.udp {
        udp_socket(target, options).and_then(|socket| exchange_datagram(&socket, timeout, options.size))
    } else {
        tcp_stream(target, options, timeout).and_then(|stream| exchange_line(&mut BufReader::new(stream), options.size))
    };
    answer.map_err(|error| Failure::new(&error, millis()))
}

/// The first address of the target in the wanted family.
pub(super) fn resolve(target: &str, family: Option<u8>) -> io::Result<SocketAddr> {
    let wanted = |at: &SocketAddr| match family {
        Some(4) => at.is_ipv4(),
        Some(6) => at.is_ipv6(),
        _ => true,
    };
    let missing = || {
        io::Error::new(
            io::ErrorKind::NotFound,
            format!("{target} has no address of the family"),
        )
    };
    target.to_socket_addrs()?.find(wanted).ok_or_else(missing)
}

/// A connected stream whose reads and writes end after `timeout`.
pub(super) fn tcp_stream(target: SocketAddr, options: &Options, timeout: Duration) -> io::Result<TcpStream> {
    let target = mapped(target, options);
    let socket = Socket::new(Domain::for_address(target), Type::STREAM, Some(Protocol::TCP))?;
    bind(&socket, target, options)?;
    socket.connect_timeout(&target.into(), timeout)?;
    let stream: TcpStream = socket.into();
    expect_peer(stream.peer_addr()?, target)?;
    stream.set_read_timeout(Some(timeout))?;
    stream.set_write_timeout(Some(timeout))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// A socket connected to the target, so that errors which come back are reported.
pub(super) fn udp_socket(target: SocketAddr, options: &Options) -> io::Result<UdpSocket> {
    let target = mapped(target, options);
    let socket: UdpSocket = unconnected_socket(target, options)?;
    socket.connect(target)?;
    expect_peer(socket.peer_addr()?, target)?;
    Ok(socket)
}

fn unconnected_socket(target: SocketAddr, options: &Options) -> io::Result<UdpSocket> {
    let target = mapped(target, options);
    let socket = Socket::new(Domain::for_address(target), Type::DGRAM, Some(Protocol::UDP))?;
    bind(&socket, target, options)?;
    Ok(socket.into())
}

/// The target as the socket is told it.
fn mapped(target: SocketAddr, options: &Options) -> SocketAddr {
    match target.ip() {
        IpAddr::V4(v4) if options.mapped => SocketAddr::new(v4.to_ipv6_mapped().into(), target.port()),
        _ => target,
    }
}

/// Whatever was done to a connection on its way, its owner sees whom it asked for.
fn expect_peer(peer: SocketAddr, target: SocketAddr) -> io::Result<()> {
    // Connecting to the unspecified address means the machine itself.
    if peer == target || target.ip().is_unspecified() {
        return Ok(());
    }
    Err(io::Error::other(format!(
        "the socket's peer is {peer} instead of {target}"
    )))
}

fn bind(socket: &Socket, target: SocketAddr, options: &Options) -> io::Result<()> {
    if options.source.is_none() && options.source_port.is_none() {
        return Ok(());
    }
    let any = if target.is_ipv4() {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED)
    } else {
        IpAddr::V6(Ipv6Addr::UNSPECIFIED)
    };
    let from = SocketAddr::new(options.source.unwrap_or(any), options.source_port.unwrap_or(0));
    socket.set_reuse_address(true)?;
    socket.bind(&from.into())
}

/// Sends one line of at least `size` bytes and reads the server's answer, which is as long.
pub(super) fn exchange_line(stream: &mut BufReader<TcpStream>, size: usize) -> io::Result<Hello> {
    stream.get_mut().write_all(&question(size))?;
    let mut line = String::new();
    if stream.read_line(&mut line)? == 0 {
        return Err(io::Error::new(
            io::ErrorKind::UnexpectedEof,
            "the connection was closed without an answer",
        ));
    }
    read_answer(line.as_bytes(), size)
}

/// Sends one datagram of at least `size` bytes and reads the server's answer, which is as long.
pub(super) fn exchange_datagram(socket: &UdpSocket, timeout: Duration, size: usize) -> io::Result<Hello> {
    socket.set_read_timeout(Some(timeout))?;
    socket.send(&question(size))?;
    let mut buffer = vec![0; super::LARGEST_DATAGRAM];
    let length = socket.recv(&mut buffer)?;
    read_answer(buffer.get(..length).unwrap_or_default(), size)
}

fn question(size: usize) -> Vec<u8> {
    let mut text = b"hello".to_vec();
    text.resize(text.len().max(size.saturating_sub(1)), b'.');
    text.push(b'\n');
    text
}

fn read_answer(line: &[u8], size: usize) -> io::Result<Hello> {
    if line.len() < size {
        return Err(io::Error::other(format!(
            "{size} bytes were sent, {} came back",
            line.len()
        )));
    }
    serde_json::from_slice(line).map_err(io::Error::other)
}

/// The same with a socket that is not connected.
fn exchange_with(socket: &UdpSocket, target: SocketAddr, timeout: Duration, size: usize) -> io::Result<Hello> {
    socket.set_read_timeout(Some(timeout))?;
    socket.send_to(&question(size), target)?;
    let mut buffer = vec![0; super::LARGEST_DATAGRAM];
    let (length, from) = socket.recv_from(&mut buffer)?;
    expect_peer(from, target)?;
    read_answer(buffer.get(..length).unwrap_or_default(), size)
}
