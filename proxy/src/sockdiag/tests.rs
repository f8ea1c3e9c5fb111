//! On the kernel of this machine, as root.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use proptest::prelude::*;

use super::*;

fn run(arguments: &[&str]) {
    let status = std::process::Command::new("ip").args(arguments).status().expect("ip");
    assert!(status.success(), "{arguments:?}");
}

/// A network namespace that others can find, as a container runtime makes them: kept by name, or by a process only.
enum Place {
    Kept(String),
    Process(std::process::Child),
}

impl Place {
    fn kept(n: usize) -> Self {
        let name = format!("portolan-sockdiag-{}-{n}", std::process::id());
        run(&["netns", "add", &name]);
        Self::Kept(name)
    }

    fn process() -> Self {
        let mut command = std::process::Command::new("unshare");
        let child = command.args(["--net", "sleep", "60"]).spawn().expect("unshare");
        let own = namespaces::own().expect("our namespace");
        let path = format!("/proc/{}/ns/net", child.id());
        while namespaces::id(Path::new(&path)).is_ok_and(|id| id == own) {
            thread::sleep(Duration::from_millis(10));
        }
        Self::Process(child)
    }

    fn path(&self) -> PathBuf {
        match self {
            Self::Kept(name) => Path::new("/run/netns").join(name),
            Self::Process(child) => format!("/proc/{}/ns/net", child.id()).into(),
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        match self {
            Self::Kept(name) => run(&["netns", "delete", name]),
            Self::Process(child) => {
                child.kill().expect("killed");
                child.wait().expect("ended");
            }
        }
    }
}

/// A thread in a network namespace, with a socket that is connected to `to`. Yields what its owner reads after it was told
/// to.
fn owner(place: &Place, from: &'static str, to: SocketAddr) -> (mpsc::Sender<()>, mpsc::Receiver<Result<(), i32>>) {
    let (go, wait) = mpsc::channel();
    let (tell, told) = mpsc::channel();
    let path = place.path();
    thread::spawn(move || {
        let file = File::open(path).expect("a namespace");
        // SAFETY: changes the network namespace of this thread only.
        let entered = unsafe { libc::setns(file.as_raw_fd(), libc::CLONE_NEWNET) };
        assert_eq!(entered, 0, "these tests need root");
        run(&["link", "set", "lo", "up"]);
        let socket = UdpSocket::bind(from).expect("a socket");
        socket.connect(to).expect("connect");
        socket
            .set_read_timeout(Some(Duration::from_millis(200)))
            .expect("a time-out");
        tell.send(Ok(())).expect("told");
        while wait.recv().is_ok() {
            let read = socket.recv(&mut [0; 9]).map(drop);
            tell.send(read.map_err(|error| error.raw_os_error().unwrap_or(0)))
                .expect("told");
        }
    });
    told.recv().expect("an owner").expect("connected");
    (go, told)
}

#[test]
fn sockets_of_other_namespaces_are_destroyed_and_no_others() {
    assert_eq!(probe(), Ok(()));
    let address = |text: &str| -> SocketAddr { text.parse().expect("an address") };
    let (gone, gone6, stays) = (
        address("127.0.0.1:4053"),
        address("[::1]:4053"),
        address("127.0.0.1:4054"),
    );
    let places = [Place::kept(0), Place::kept(1), Place::process()];
    let owners = [
        (owner(&places[0], "127.0.0.1:0", gone), Err(libc::ECONNABORTED)),
        (owner(&places[1], "[::1]:0", gone6), Err(libc::ECONNABORTED)),
        // A socket of both families.
        (
            owner(&places[2], "[::ffff:127.0.0.1]:0", address("[::ffff:127.0.0.1]:4053")),
            Err(libc::ECONNABORTED),
        ),
        (owner(&places[2], "127.0.0.1:0", stays), Err(libc::EAGAIN)),
    ];
    let destroyed = destroy(&|socket| [gone, gone6].contains(&socket.remote)).expect("sock_diag");
    assert_eq!(destroyed.sockets, 3, "{destroyed:?}");
    assert!(destroyed.namespaces > 3, "{destroyed:?}");
    for ((go, told), wanted) in owners {
        go.send(()).expect("an owner");
        assert_eq!(told.recv().expect("an answer"), wanted);
    }
    let again = destroy(&|socket| [gone, gone6].contains(&socket.remote)).expect("sock_diag");
    assert_eq!(again.sockets, 0, "{again:?}");
}

#[test]
fn a_socket_is_named_by_its_cookie() -> io::Result<()> {
    let sockets = [UdpSocket::bind("127.0.0.1:0")?, UdpSocket::bind("127.0.0.1:0")?];
    let peer: SocketAddr = "127.0.0.1:4055".parse().expect("an address");
    for socket in &sockets {
        socket.connect(peer)?;
    }
    let locals = [sockets[0].local_addr()?, sockets[1].local_addr()?];
    let found: Vec<Connected> = connected_here()?
        .into_iter()
        .filter(|found| found.remote == peer)
        .collect();
    let first = found.iter().find(|found| found.local == locals[0]).expect("the first");
    assert!(
        found
            .iter()
            .any(|found| found.local == locals[1] && found.cookie != first.cookie),
        "{found:?}"
    );
    assert_eq!(destroy(&|socket| socket.cookie == first.cookie)?.sockets, 1);
    let left: Vec<SocketAddr> = connected_here()?
        .into_iter()
        .filter(|f| f.remote == peer)
        .map(|f| f.local)
        .collect();
    assert_eq!(left, [locals[1]]);
    Ok(())
}

proptest! {
    #[test]
    fn nothing_that_the_kernel_might_say_makes_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..96)) {
        let _ = wire::parse(&bytes);
    }
}
