//! The server: TCP and UDP on any number of ports, IPv4 and IPv6 together.
//!
//! A connection may send lines, each of which is answered by one [`Hello`]; an HTTP request, which is answered as the
//! Kubernetes tutorials' echo server answers; or nothing, and then one [`Hello`] is sent unasked after a moment, for `nc`.
//! It ends with status 0 on SIGTERM.

use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream, UdpSocket};

use super::Hello;

/// How long a silent TCP client waits for the unasked greeting.
const GREET_AFTER: Duration = Duration::from_millis(300);

/// What to serve.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// The name that every answer carries.
    #[arg(long)]
    pub name: String,
    /// A TCP port; may be repeated.
    #[arg(long)]
    pub tcp: Vec<u16>,
    /// A UDP port; may be repeated.
    #[arg(long)]
    pub udp: Vec<u16>,
    /// The addresses to listen on; all of the machine's when absent.
    #[arg(long)]
    pub address: Vec<IpAddr>,
    /// A file that is written once every port is open.
    #[arg(long)]
    pub ready_file: Option<PathBuf>,
}

/// Serves until SIGTERM.
///
/// # Errors
/// When a port is taken.
pub fn run(options: &Options) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(serve(options))
}

async fn serve(options: &Options) -> Result<()> {
    let mut term = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    let name: Arc<str> = options.name.as_str().into();
    let any = [IpAddr::V6(Ipv6Addr::UNSPECIFIED)];
    let addresses = if options.address.is_empty() {
        &any[..]
    } else {
        &options.address
    };
    for ip in addresses {
        for port in &options.tcp {
            let at = SocketAddr::new(*ip, *port);
            let listener = tcp_listener(at).with_context(|| format!("TCP port {at} cannot be opened"))?;
            tokio::spawn(accept(listener, Arc::clone(&name)));
        }
        for port in &options.udp {
            let at = SocketAddr::new(*ip, *port);
            let socket = udp_socket(at).with_context(|| format!("UDP port {at} cannot be opened"))?;
            tokio::spawn(answer_datagrams(socket, Arc::clone(&name)));
        }
    }
    if let Some(file) = &options.ready_file {
        std::fs::write(file, "ready\n")?;
    }
    term.recv().await;
    Ok(())
}

async fn accept(listener: TcpListener, name: Arc<str>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let name = Arc::clone(&name);
                tokio::spawn(async move {
                    // A client that goes away in the middle is its own business.
                    let _ = converse(stream, &name).await;
                });
            }
            // Out of descriptors: wait for some to close instead of spinning.
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

async fn converse(stream: TcpStream, name: &str) -> io::Result<()> {
    let hello = hello(name, "tcp", stream.peer_addr()?, stream.local_addr()?);
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    if tokio::time::timeout(GREET_AFTER, stream.fill_buf()).await.is_err() {
        stream.write_all(json_line(&hello, 0).as_bytes()).await?;
    }
    loop {
        line.clear();
        if stream.read_line(&mut line).await? == 0 {
            return Ok(());
        }
        let mut words = line.split_whitespace();
        if let (Some(method @ ("GET" | "HEAD")), Some(path)) = (words.next(), words.next()) {
            let response = http_response(&hello, method, path);
            read_head(&mut stream).await?;
            stream.write_all(response.as_bytes()).await?;
            return stream.shutdown().await;
        }
        stream.write_all(json_line(&hello, line.len()).as_bytes()).await?;
    }
}

/// Reads the header fields of a request up to the empty line.
async fn read_head(stream: &mut BufReader<TcpStream>) -> io::Result<()> {
    let mut line = String::new();
    loop {
        line.clear();
        if stream.read_line(&mut line).await? == 0 || line.trim_end().is_empty() {
            return Ok(());
        }
    }
}

async fn answer_datagrams(socket: UdpSocket, name: Arc<str>) {
    let mut buffer = vec![0; super::LARGEST_DATAGRAM];
    loop {
        let Ok((length, peer)) = socket.recv_from(&mut buffer).await else {
            continue;
        };
        let Ok(local) = socket.local_addr() else { continue };
        let hello = hello(&name, "udp", peer, local);
        let _ = socket.send_to(json_line(&hello, length).as_bytes(), peer).await;
    }
}

fn hello(name: &str, protocol: &str, client: SocketAddr, local: SocketAddr) -> Hello {
    Hello {
        name: name.to_owned(),
        client_address: client.ip().to_canonical(),
        client_port: client.port(),
        protocol: protocol.to_owned(),
        local_address: local.ip().to_canonical(),
        local_port: local.port(),
    }
}

/// The answer, as long as the question: a large one has to pass in both directions.
fn json_line(hello: &Hello, length: usize) -> String {
    let text = serde_json::to_string(hello).unwrap_or_default();
    format!("{text:0$}\n", length.saturating_sub(1))
}

/// The body of the Kubernetes tutorials' echo server: first `CLIENT VALUES:`, then who asked.
fn http_response(hello: &Hello, method: &str, path: &str) -> String {
    let body = format!(
        "CLIENT VALUES:\nclient_address={}\ncommand={method}\nreal path={path}\nhostname={}\n",
        hello.client_address, hello.name
    );
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    if method == "HEAD" { head } else { head + &body }
}

fn tcp_listener(at: SocketAddr) -> io::Result<TcpListener> {
    let socket = socket(at, Type::STREAM, Protocol::TCP)?;
    socket.listen(1024)?;
    TcpListener::from_std(socket.into())
}

fn udp_socket(at: SocketAddr) -> io::Result<UdpSocket> {
    UdpSocket::from_std(socket(at, Type::DGRAM, Protocol::UDP)?.into())
}

fn socket(at: SocketAddr, kind: Type, protocol: Protocol) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(at), kind, Some(protocol))?;
    if at.is_ipv6() {
        socket.set_only_v6(!at.ip().is_unspecified())?;
    }
    if kind == Type::STREAM {
        socket.set_reuse_address(true)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&at.into())?;
    Ok(socket)
}
