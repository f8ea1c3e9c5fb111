//! Network namespaces for tests: the node, its pods, and servers and clients in them.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::thread;
use std::time::Duration;

use super::ip;

/// Runs the test on a thread that has a network namespace to itself. The namespace goes when the thread does.
pub(in crate::backend::nft) fn in_namespace(test: impl FnOnce() + Send + 'static) {
    let thread = thread::spawn(move || {
        // SAFETY: changes the network namespace of this thread only.
        let result = unsafe { libc::unshare(libc::CLONE_NEWNET) };
        assert_eq!(result, 0, "these tests need root: {}", io::Error::last_os_error());
        run("ip", &["link", "set", "lo", "up"]);
        test();
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

pub(in crate::backend::nft) fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {:?} {}",
        output.status,
        text(&output.stderr)
    );
    text(&output.stdout)
}

/// A server on a free port of an address of this namespace, which sends its name to everyone who connects.
pub(super) fn server(address: &str, name: &'static str) -> SocketAddr {
    let listener = TcpListener::bind((ip(address), 0)).unwrap();
    let bound = listener.local_addr().unwrap();
    // Ends with the test's process.
    thread::spawn(move || {
        for stream in listener.incoming() {
            let _ = stream.and_then(|mut stream| stream.write_all(name.as_bytes()));
        }
    });
    bound
}

/// What a client hears who connects to the address.
pub(super) fn ask(address: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address.parse().unwrap(), Duration::from_secs(1))?;
    let mut heard = String::new();
    stream.read_to_string(&mut heard)?;
    Ok(heard)
}

/// Makes this namespace the node: its addresses and those of two pods, and a route for everything else.
pub(super) fn be_the_node() {
    run("ip", &["link", "add", "uplink", "type", "veth", "peer", "name", "far"]);
    for address in [
        "172.18.0.1/24",
        "fd00:18::1/64",
        "10.244.1.5/24",
        "10.244.1.6/24",
        "fd00:244:0:1::5/64",
    ] {
        let nodad: &[&str] = if address.contains("::") { &["nodad"] } else { &[] };
        run("ip", &[&["address", "add", address, "dev", "uplink"], nodad].concat());
    }
    for link in ["uplink", "far"] {
        run("ip", &["link", "set", link, "up"]);
    }
    run(
        "ip",
        &[
            "route",
            "add",
            "default",
            "via",
            "172.18.0.254",
            "dev",
            "uplink",
            "src",
            "172.18.0.1",
        ],
    );
    run(
        "ip",
        &[
            "-6",
            "route",
            "add",
            "default",
            "via",
            "fd00:18::fe",
            "dev",
            "uplink",
            "src",
            "fd00:18::1",
        ],
    );
}

/// A pod in a network namespace of its own, behind a link to the calling thread's.
pub(super) struct Pod {
    work: std::sync::mpsc::Sender<Box<dyn FnOnce() + Send>>,
}

impl Pod {
    pub(super) fn new(name: &str, address: &str, gateway: &str) -> Self {
        let (work, received) = std::sync::mpsc::channel::<Box<dyn FnOnce() + Send>>();
        let (told, id) = std::sync::mpsc::channel();
        thread::spawn(move || {
            // SAFETY: changes the network namespace of this thread only; gettid cannot fail.
            let thread_id = unsafe {
                assert_eq!(libc::unshare(libc::CLONE_NEWNET), 0);
                libc::gettid()
            };
            told.send(thread_id).unwrap();
            received.into_iter().for_each(|work| work());
        });
        let id = id.recv().unwrap().to_string();
        run(
            "ip",
            &[
                "link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", &id,
            ],
        );
        run("ip", &["address", "add", gateway, "peer", address, "dev", name]);
        run("ip", &["link", "set", name, "up"]);
        let pod = Self { work };
        let (address, gateway) = (address.to_owned(), gateway.to_owned());
        pod.run(move || {
            run("ip", &["link", "set", "lo", "up"]);
            run("ip", &["address", "add", &address, "peer", &gateway, "dev", "eth0"]);
            run("ip", &["link", "set", "eth0", "up"]);
            run("ip", &["route", "add", "default", "via", &gateway]);
        });
        pod
    }

    /// Does something in the pod.
    pub(super) fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let (told, answer) = std::sync::mpsc::channel();
        self.work.send(Box::new(move || told.send(work()).unwrap())).unwrap();
        answer.recv().unwrap()
    }
}

/// A server that tells each client the address that it sees.
pub(super) fn echo_source(address: &str) -> SocketAddr {
    let listener = TcpListener::bind((ip(address), 0)).unwrap();
    let bound = listener.local_addr().unwrap();
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let source = stream.peer_addr().unwrap().ip().to_string();
            let _ = stream.write_all(source.as_bytes());
        }
    });
    bound
}
