//! Connected UDP sockets that stick to an endpoint which serves no more: found and destroyed over `sock_diag`.
//!
//! Where connection tracking translates, ending its entry is enough: the socket's next datagram is translated anew. Where
//! the *socket* was connected to the endpoint (the eBPF backend rewrites `connect`), nothing but the socket holds the
//! flow: its owner goes on sending into the void and hears nothing. A destroyed socket reports `ECONNABORTED` to its owner,
//! who asks the name or connects again.
//!
//! Sockets live in network namespaces. [`destroy`] walks this one and all that it can find: those of visible processes
//! (`hostPID`) and those that the container runtime keeps below `/run/netns`. It never destroys a socket that `select` did
//! not name: a backend has to know its sockets (by cookie), because an application may well have connected to an
//! endpoint's own address.

mod namespaces;
mod wire;

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::OnceLock;
use std::thread;

use self::wire::Diag;

pub use self::namespaces::Namespace;

/// A connected UDP socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Connected {
    /// The socket's own address.
    pub local: SocketAddr,
    /// Whom it is connected to. A socket of both families that is connected to an IPv4 address has that address here.
    pub remote: SocketAddr,
    /// The kernel's number of the socket (`SO_COOKIE`), unique while the machine runs.
    pub cookie: u64,
}

/// What was done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Destroyed {
    /// Sockets that are no more.
    pub sockets: usize,
    /// Network namespaces that were looked at.
    pub namespaces: usize,
    /// Network namespaces that could not be looked at: they went meanwhile, or we may not enter them.
    pub left_out: usize,
}

/// Whether the kernel destroys sockets (`CONFIG_INET_DIAG_DESTROY`) and lets us: tried once, on a socket of our own.
///
/// # Errors
/// Why not, in words for a user.
pub fn probe() -> Result<(), String> {
    static OUTCOME: OnceLock<Result<(), String>> = OnceLock::new();
    OUTCOME
        .get_or_init(|| {
            try_on_own_socket().map_err(|error| {
                let cause = match error.raw_os_error() {
                    Some(libc::EOPNOTSUPP) => "it was built without CONFIG_INET_DIAG_DESTROY".into(),
                    Some(libc::EPERM | libc::EACCES) => "this needs CAP_NET_ADMIN".into(),
                    Some(libc::EPROTONOSUPPORT | libc::ENOENT) => "it lacks CONFIG_INET_UDP_DIAG".into(),
                    _ => error.to_string(),
                };
                format!("the kernel does not destroy sockets for us: {cause}")
            })
        })
        .clone()
}

fn try_on_own_socket() -> io::Result<()> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    // The discard port: connecting a datagram socket sends nothing.
    socket.connect((Ipv4Addr::LOCALHOST, 9))?;
    let local = socket.local_addr()?;
    let mut diag = Diag::open()?;
    let own = diag.connected()?.into_iter().find(|(found, _)| found.local == local);
    let (_, id) = own.ok_or_else(|| io::Error::from_raw_os_error(libc::ENOENT))?;
    diag.destroy(&id).map(drop)
}

/// Destroys the connected UDP sockets that `select` names, in this network namespace and in all others that can be found.
///
/// Blocks for a few system calls a process; call it outside the reactor.
///
/// # Errors
/// When not even this namespace's sockets can be listed. Others that cannot be entered are counted only.
pub fn destroy(select: &(dyn Fn(&Connected) -> bool + Sync)) -> io::Result<Destroyed> {
    let mut all = Destroyed::default();
    all.sockets += destroy_here(select)?;
    all.namespaces += 1;
    let own = namespaces::own()?;
    let others: Vec<Namespace> = namespaces::all().into_iter().filter(|found| found.id != own).collect();
    // Entering a namespace concerns one thread, which must not be one of the runtime's.
    let entered = thread::scope(|scope| {
        scope
            .spawn(|| {
                others.iter().for_each(|namespace| match destroy_in(namespace, select) {
                    Ok(sockets) => {
                        all.sockets += sockets;
                        all.namespaces += 1;
                    }
                    Err(error) => {
                        tracing::debug!(namespace = %namespace.path.display(), %error, "cannot look at its sockets");
                        all.left_out += 1;
                    }
                });
                all
            })
            .join()
    });
    entered.map_err(|_| io::Error::other("the thread that looks at other namespaces failed"))
}

/// The sockets that `select` names, in this network namespace.
///
/// # Errors
/// The kernel's.
pub fn connected_here() -> io::Result<BTreeSet<Connected>> {
    Ok(Diag::open()?
        .connected()?
        .into_iter()
        .map(|(socket, _)| socket)
        .collect())
}

fn destroy_in(namespace: &Namespace, select: &(dyn Fn(&Connected) -> bool + Sync)) -> io::Result<usize> {
    let file = File::open(&namespace.path)?;
    // SAFETY: changes the network namespace of the calling thread only; the descriptor is open.
    let result = unsafe { libc::setns(file.as_raw_fd(), libc::CLONE_NEWNET) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    destroy_here(select)
}

fn destroy_here(select: &(dyn Fn(&Connected) -> bool + Sync)) -> io::Result<usize> {
    let mut diag = Diag::open()?;
    let mut destroyed = 0;
    for (socket, id) in diag.connected()? {
        if select(&socket) && diag.destroy(&id)? {
            destroyed += 1;
        }
    }
    Ok(destroyed)
}
