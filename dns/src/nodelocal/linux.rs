//! Speaks netlink with the kernel.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;

use rustix::net::netlink::{self, SocketAddrNetlink};
use rustix::net::{AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType};

use super::LINK;
use super::message::{
    Messages, Told, address, delete_link, list_addresses, list_tables, new_link, our_address, table_name, told,
    untracked,
};

const LOOPBACK: u32 = 1;
/// NLMSG_ERROR: what every request is answered with.
const ANSWER: u16 = 2;
/// NLMSG_DONE: the end of a list.
const DONE: u16 = 3;

/// The addresses that were made, and the rules that lead queries here.
#[derive(Debug)]
pub struct NodeLocal {
    addresses: Vec<IpAddr>,
    routes: Netlink,
    /// The table's name, and the socket that it lives as long as.
    rules: Option<(String, Netlink)>,
}

/// A netlink socket.
#[derive(Debug)]
struct Netlink(OwnedFd);

// === impl NodeLocal ===

impl NodeLocal {
    /// Makes the addresses. Queries to those that are a Service's still go where the Service says, until
    /// [`NodeLocal::take_queries`].
    ///
    /// # Errors
    /// Says what could not be made, and what is needed for it.
    pub fn set_up(addresses: &[IpAddr]) -> io::Result<Self> {
        let routes = Netlink::open(None).map_err(|error| needs("a netlink socket", &error))?;
        if others()?.is_empty() {
            // What a process that was killed left, and this one is not asked for.
            let left = ours(&routes)?;
            let unasked = left.iter().filter(|(ip, _)| !addresses.contains(ip));
            for (ip, index) in unasked {
                routes.ask(&address(*ip, *index, false))?;
            }
        }
        let mut node_local = Self {
            addresses: Vec::new(),
            routes,
            rules: None,
        };
        let index = node_local.make(addresses)?;
        let on = if index == LOOPBACK { "lo" } else { LINK };
        tracing::info!(?addresses, on, "node-local: these addresses are this node's");
        Ok(node_local)
    }

    /// Makes what is not there yet, on a link of our own or on `lo`; says which.
    fn make(&mut self, addresses: &[IpAddr]) -> io::Result<u32> {
        let index = link(&self.routes).map_err(|error| needs("a link", &error))?;
        for ip in addresses {
            match self.routes.ask(&address(*ip, index, true)) {
                Ok(()) => {}
                // A process that was killed left it, or one that is about to end has it.
                Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {}
                Err(error) => return Err(needs(&format!("the address {ip}"), &error)),
            }
            if !self.addresses.contains(ip) {
                self.addresses.push(*ip);
            }
        }
        Ok(index)
    }

    /// From now on queries to `listen` are answered here, whatever rules for Services say.
    ///
    /// # Errors
    /// Says what could not be made, and what is needed for it.
    pub fn take_queries(&mut self, listen: &[SocketAddr]) -> io::Result<()> {
        if self.rules.is_some() {
            return Ok(());
        }
        // A predecessor that ended meanwhile has taken them along.
        let addresses = self.addresses.clone();
        self.make(&addresses)?;
        let rules =
            Netlink::open(Some(netlink::NETFILTER)).map_err(|error| needs("a netlink socket for nf_tables", &error))?;
        // Process ids repeat from container to container.
        let table = format!("{LINK}-{:08x}", rand::random::<u32>());
        rules
            .ask(&untracked(&table, listen))
            .map_err(|error| needs("rules that switch connection tracking off", &error))?;
        tracing::info!(table, "node-local: queries to these addresses are answered here");
        self.rules = Some((table, rules));
        Ok(())
    }

    /// Queries to the DNS Service go where the Service says again. What has come is still answered.
    pub fn leave_queries(&mut self) {
        // The kernel removes the table when its socket is closed.
        self.rules = None;
    }
}

impl Drop for NodeLocal {
    /// Takes rules and addresses away, unless another process answers on them.
    fn drop(&mut self) {
        self.leave_queries();
        let removed = match others() {
            Ok(others) if !others.is_empty() => return,
            Ok(_) => remove(&self.routes, &self.addresses).map(drop),
            Err(error) => Err(error),
        };
        if let Err(error) = removed {
            tracing::warn!(%error, addresses = ?self.addresses, "cannot remove the addresses: portolan-dns cleanup does");
        }
    }
}

/// Takes away what a process that was killed left: the link with its addresses, addresses that one of ours made on `lo`, and
/// these. Returns the addresses that went.
///
/// # Errors
/// When a portolan-dns answers on this node, or the kernel refuses.
pub fn cleanup(addresses: &[IpAddr]) -> io::Result<Vec<IpAddr>> {
    let others = others()?;
    if let Some(table) = others.first() {
        return Err(io::Error::other(format!(
            "a portolan-dns answers on this node (nft table inet {table}): end it first, it takes its addresses along"
        )));
    }
    let routes = Netlink::open(None).map_err(|error| needs("a netlink socket", &error))?;
    remove(&routes, addresses)
}

/// Removes the link and every address of ours, and these.
fn remove(routes: &Netlink, addresses: &[IpAddr]) -> io::Result<Vec<IpAddr>> {
    let mut gone = Vec::new();
    let own = own_link()?;
    let mut all = ours(routes)?;
    for ip in addresses {
        // An older kernel does not tell who made an address.
        if !all.iter().any(|(known, _)| known == ip) {
            all.push((*ip, own.unwrap_or(LOOPBACK)));
        }
    }
    for (ip, index) in all {
        match routes.ask(&address(ip, index, false)) {
            Ok(()) => gone.push(ip),
            Err(error) if error.raw_os_error() == Some(libc::EADDRNOTAVAIL) => {}
            Err(error) => return Err(needs(&format!("the address {ip} go"), &error)),
        }
    }
    if let Some(index) = own {
        routes
            .ask(&delete_link(index))
            .map_err(|error| needs(&format!("the link {LINK} go"), &error))?;
    }
    Ok(gone)
}

/// The addresses that one of ours made, whoever that was, and the links that they stand on.
fn ours(routes: &Netlink) -> io::Result<Vec<(IpAddr, u32)>> {
    let mut found = Vec::new();
    routes.list(&list_addresses(), |told| found.extend(our_address(told)))?;
    Ok(found)
}

/// The tables of processes that answer on this node.
fn others() -> io::Result<Vec<String>> {
    let rules =
        Netlink::open(Some(netlink::NETFILTER)).map_err(|error| needs("a netlink socket for nf_tables", &error))?;
    let mut found = Vec::new();
    let prefix = format!("{LINK}-");
    rules
        .list(&list_tables(), |told| {
            let name = table_name(told).filter(|name| name.starts_with(&prefix));
            found.extend(name);
        })
        .map_err(|error| needs("a list of the tables of nf_tables", &error))?;
    Ok(found)
}

fn needs(what: &str, error: &io::Error) -> io::Error {
    let advice = match error.kind() {
        io::ErrorKind::PermissionDenied => {
            "; node-local mode needs root or the capability NET_ADMIN in the node's network"
        }
        _ => "",
    };
    io::Error::new(error.kind(), format!("cannot make {what}: {error}{advice}"))
}

/// The link: one of our own, which may be left from another process, or `lo`.
fn link(routes: &Netlink) -> io::Result<u32> {
    match routes.ask(&new_link(LINK)) {
        Ok(()) => {}
        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {}
        // No dummy links here.
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => return Ok(LOOPBACK),
        Err(error) => return Err(error),
    }
    Ok(own_link()?.unwrap_or(LOOPBACK))
}

/// The number of the link of our own, when there is one.
fn own_link() -> io::Result<Option<u32>> {
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::DGRAM, None)?;
    Ok(rustix::net::netdevice::name_to_index(&socket, LINK).ok())
}

// === impl Netlink ===

impl Netlink {
    /// `None` is NETLINK_ROUTE, whose number is 0.
    fn open(protocol: Option<Protocol>) -> io::Result<Self> {
        let socket = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, protocol)?;
        rustix::net::bind(&socket, &SocketAddrNetlink::new(0, 0))?;
        Ok(Self(socket))
    }

    /// Sends messages and waits until each is answered.
    fn ask(&self, messages: &Messages) -> io::Result<()> {
        let mut answers = 0;
        self.exchange(messages, |told| {
            if told.kind == ANSWER {
                refusal(told)?;
                answers += 1;
            }
            Ok(answers == messages.answers)
        })
    }

    /// Sends a request for a list, and passes on what is told until the list ends.
    fn list(&self, messages: &Messages, mut each: impl FnMut(&Told<'_>)) -> io::Result<()> {
        self.exchange(messages, |told| {
            match told.kind {
                ANSWER => refusal(told)?,
                DONE => return Ok(true),
                _ => each(told),
            }
            Ok(false)
        })
    }

    /// Sends messages, and takes answers until one of them was the last.
    fn exchange(&self, messages: &Messages, mut each: impl FnMut(&Told<'_>) -> io::Result<bool>) -> io::Result<()> {
        let kernel = SocketAddrNetlink::new(0, 0);
        rustix::net::sendto(&self.0, messages.as_bytes(), SendFlags::empty(), &kernel)?;
        let mut buffer = vec![0; 1 << 16];
        loop {
            let (length, _) = rustix::net::recv(&self.0, &mut buffer[..], RecvFlags::empty())?;
            for told in told(buffer.get(..length).unwrap_or_default()) {
                if each(&told)? {
                    return Ok(());
                }
            }
        }
    }
}

/// The error in an answer, if it is one.
fn refusal(told: &Told<'_>) -> io::Result<()> {
    let code = told.content.first_chunk::<4>();
    match code.map_or(0, |code| i32::from_ne_bytes(*code)) {
        0 => Ok(()),
        code => Err(io::Error::from_raw_os_error(-code)),
    }
}
