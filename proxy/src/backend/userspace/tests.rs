//! The backend through real sockets on loopback.
//!
//! Addresses: each test's frontends have a loopback address of their own, 127.1.x.y, where Linux lets anyone listen, and
//! 127.0.0.1 elsewhere.
//! 10.96.0.0/16 (cluster IPs) and 192.0.2.0/24 are not this machine's. Endpoints listen on 127.0.0.1, any free port.

mod files;
mod listeners;
mod tcp;
mod udp;
mod verdicts;

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::thread;
use std::time::Duration;

use ipnet::IpNet;
use portolan_model::{Family, Protocol, ServiceName};
use portolan_plan::{
    Backend as Endpoint, EndpointSet, Frontend, FrontendKind, NodePlan, PortPlan, Routes, ServicePlan, Verdict,
};
use socket2::{Domain, Socket, Type};
use tokio::runtime::Runtime;

use super::*;

/// Long enough for any machine; only a failing test waits for it.
const PATIENCE: Duration = Duration::from_secs(20);
/// Long enough to see that nothing comes.
const SILENCE: Duration = Duration::from_millis(300);

const FORWARD: Verdict = Verdict::Forward {
    set: EndpointSet::Cluster,
    masquerade: false,
};

/// A backend that runs.
struct Rig {
    backend: UserspaceBackend,
    _runtime: Runtime,
}

impl Rig {
    fn new() -> Self {
        Self::with(UserspaceOptions::default())
    }

    fn with(options: UserspaceOptions) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let backend = UserspaceBackend::new(options, runtime.handle().clone());
        Self {
            backend,
            _runtime: runtime,
        }
    }

    fn apply(&mut self, plans: &[&ServicePlan]) -> Report {
        let plans = plans.iter().map(|plan| (*plan).clone()).collect();
        self.change(Change {
            plans,
            ..Change::default()
        })
    }

    fn remove(&mut self, plan: &ServicePlan) -> Report {
        self.change(Change {
            removed: vec![plan.service.clone()],
            ..Change::default()
        })
    }

    fn change(&mut self, change: Change) -> Report {
        self.backend.apply(&change).unwrap()
    }

    /// The value of the one status line whose key starts so.
    #[track_caller]
    fn status(&self, key: &str) -> String {
        let mut lines = self.backend.status();
        lines.retain(|line| line.0.starts_with(key));
        assert_eq!(lines.len(), 1, "{key}: {lines:?}");
        lines.remove(0).1
    }

    /// Where a frontend listens by its status line.
    #[track_caller]
    fn listens_on(&self, key: &str) -> SocketAddr {
        let status = self.status(key);
        let place = status.strip_prefix("listening on ").expect(&status);
        place.split(' ').next().unwrap().parse().unwrap()
    }

    #[track_caller]
    fn wait_for(&self, key: &str, value: &str) {
        for _ in 0..PATIENCE.as_millis() / 10 {
            if self.status(key) == value {
                return;
            }
            thread::sleep(Duration::from_millis(10));
        }
        panic!("{key} is {}, not {value}", self.status(key));
    }
}

/// A loopback address that no other test uses, and a port that is free there.
fn own_address() -> SocketAddr {
    static NEXT: AtomicU16 = AtomicU16::new(1);
    let [high, low] = NEXT.fetch_add(1, Ordering::Relaxed).to_be_bytes();
    let ip = if cfg!(target_os = "linux") {
        Ipv4Addr::new(127, 1, high, low)
    } else {
        Ipv4Addr::LOCALHOST
    };
    TcpListener::bind((ip, 0)).unwrap().local_addr().unwrap()
}

/// One Service port, TCP, one frontend.
fn plan(name: &str, frontend: SocketAddr, endpoints: &[SocketAddr]) -> ServicePlan {
    let verdict = if endpoints.is_empty() { Verdict::Reject } else { FORWARD };
    let backend = |address: &SocketAddr| Endpoint {
        address: *address,
        local: false,
    };
    let port = PortPlan {
        name: "".into(),
        protocol: Protocol::Tcp,
        family: Family::of(&frontend.ip()),
        affinity_seconds: None,
        cluster: endpoints.iter().map(backend).collect(),
        local: Vec::new(),
        serving: Vec::new(),
        frontends: vec![Frontend {
            kind: FrontendKind::ClusterIp,
            address: Some(frontend.ip()),
            port: frontend.port(),
            routes: Routes::same(verdict),
            source_ranges: None,
        }],
    };
    ServicePlan {
        service: ServiceName::new("default", name),
        ports: vec![port],
        health_check: None,
        notes: Vec::new(),
    }
}

fn udp_plan(name: &str, frontend: SocketAddr, endpoints: &[SocketAddr]) -> ServicePlan {
    let mut plan = plan(name, frontend, endpoints);
    plan.ports[0].protocol = Protocol::Udp;
    plan
}

/// A TCP server that runs for as long as the test process.
fn tcp_server(serve: impl Fn(TcpStream) + Send + Sync + 'static) -> SocketAddr {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket
        .bind(&"127.0.0.1:0".parse::<SocketAddr>().unwrap().into())
        .unwrap();
    // std's 128 are too few for a server that speaks first: whoever does not fit in hears nothing.
    socket.listen(4096).unwrap();
    let listener = TcpListener::from(socket);
    let address = listener.local_addr().unwrap();
    let serve = Arc::new(serve);
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let serve = serve.clone();
            thread::spawn(move || serve(stream));
        }
    });
    address
}

/// A server that says its name (one letter) at once, then sends back what it gets.
fn echo(name: char) -> SocketAddr {
    tcp_server(move |mut stream| {
        let _ = stream.write_all(&[name as u8]);
        let mut reader = stream.try_clone().unwrap();
        let _ = std::io::copy(&mut reader, &mut stream);
    })
}

/// The frontend takes the connection and resets it. The reset may be there before connect() returns.
#[track_caller]
fn check_reset(frontend: SocketAddr) {
    let read = connect_from([127, 0, 0, 1], frontend).and_then(|mut client| client.read(&mut [0]));
    assert_eq!(read.unwrap_err().kind(), ErrorKind::ConnectionReset);
}

/// An address at which connections are refused for as long as the socket lives.
fn dead() -> (Socket, SocketAddr) {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket
        .bind(&"127.0.0.1:0".parse::<SocketAddr>().unwrap().into())
        .unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    (socket, address)
}

#[track_caller]
fn connect(to: SocketAddr) -> TcpStream {
    connect_from([127, 0, 0, 1], to).unwrap()
}

fn connect_from(source: [u8; 4], to: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.bind(&SocketAddr::from((source, 0)).into())?;
    socket.connect_timeout(&to.into(), PATIENCE)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.set_write_timeout(Some(PATIENCE))?;
    Ok(socket.into())
}

/// The name that the server behind a connection says.
#[track_caller]
fn name(stream: &mut TcpStream) -> char {
    let mut name = [0];
    stream.read_exact(&mut name).unwrap();
    name[0].into()
}

/// Asserts that what is sent comes back.
#[track_caller]
fn check_echo(stream: &mut TcpStream) {
    stream.write_all(b"ping").unwrap();
    let mut back = [0; 4];
    stream.read_exact(&mut back).unwrap();
    assert_eq!(&back, b"ping");
}

#[track_caller]
fn check_refused(to: SocketAddr) {
    let error = connect_from([127, 0, 0, 1], to).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{error}");
}

/// Asserts that the connection says nothing and stays open.
#[track_caller]
fn check_silent(stream: &mut TcpStream) {
    stream.set_read_timeout(Some(SILENCE)).unwrap();
    let error = stream.read(&mut [0]).unwrap_err();
    assert!(
        matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut),
        "{error}"
    );
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
}
