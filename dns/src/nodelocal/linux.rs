//! Speaks netlink with the kernel.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;

use rustix::net::netlink::{self, SocketAddrNetlink};
use rustix::net::{AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType};

use super::LINK;
use super::message::{Messages, address, delete_link, new_link, untracked};

const LOOPBACK: u32 = 1;
/// NLMSG_ERROR: what every request is answered with.
const ANSWER: u16 = 2;

/// The addresses that were made. The kernel removes the rules when this is dropped or the process dies.
#[derive(Debug)]
pub struct NodeLocal {
    addresses: Vec<IpAddr>,
    /// The link that they stand on.
    index: u32,
    routes: Netlink,
    rules: Netlink,
}

/// A netlink socket.
#[derive(Debug)]
struct Netlink(OwnedFd);

// === impl NodeLocal ===

impl NodeLocal {
    /// Makes the addresses, and sees to it that packets between clients and `listen` are left alone.
    ///
    /// # Errors
    /// Says what could not be made, and what is needed for it.
    pub fn set_up(addresses: &[IpAddr], listen: &[SocketAddr]) -> io::Result<Self> {
        let needs = |what: &str, error: io::Error| {
            let advice = match error.kind() {
                io::ErrorKind::PermissionDenied => {
                    "; node-local mode needs root or the capability NET_ADMIN in the node's network"
                }
                _ => "",
            };
            io::Error::new(error.kind(), format!("cannot make {what}: {error}{advice}"))
        };
        let routes = Netlink::open(None).map_err(|error| needs("a netlink socket", error))?;
        let index = link(&routes).map_err(|error| needs("a link", error))?;
        let mut made = Vec::new();
        for ip in addresses {
            match routes.ask(&address(*ip, index, true)) {
                Ok(()) => {}
                // A process that was killed left it, or it is handed on by one that ends.
                Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {}
                Err(error) => {
                    for ip in made {
                        let _ = routes.ask(&address(ip, index, false));
                    }
                    return Err(needs(&format!("the address {ip}"), error));
                }
            }
            made.push(*ip);
        }
        let rules = Netlink::open(Some(netlink::NETFILTER)).map_err(|error| needs("a netlink socket", error))?;
        let table = format!("{LINK}-{}", std::process::id());
        let node_local = Self {
            addresses: made,
            index,
            routes,
            rules,
        };
        if let Err(error) = node_local.rules.ask(&untracked(&table, listen)) {
            let error = needs("rules that switch connection tracking off", error);
            return Err(error);
        }
        tracing::info!(
            ?addresses,
            on = if index == LOOPBACK { "lo" } else { LINK },
            table,
            "node-local: these addresses are answered here"
        );
        Ok(node_local)
    }

    /// Leaves the addresses to a successor.
    pub fn keep(mut self) {
        self.addresses.clear();
        self.index = LOOPBACK;
    }
}

impl Drop for NodeLocal {
    /// Takes the addresses and the rules away.
    fn drop(&mut self) {
        for ip in &self.addresses {
            if let Err(error) = self.routes.ask(&address(*ip, self.index, false)) {
                tracing::warn!(%ip, %error, "cannot remove an address");
            }
        }
        if self.index != LOOPBACK
            && let Err(error) = self.routes.ask(&delete_link(self.index))
        {
            tracing::warn!(link = LINK, %error, "cannot remove the link");
        }
    }
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
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::DGRAM, None)?;
    Ok(rustix::net::netdevice::name_to_index(&socket, LINK)?)
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
        let kernel = SocketAddrNetlink::new(0, 0);
        rustix::net::sendto(&self.0, messages.as_bytes(), SendFlags::empty(), &kernel)?;
        let mut answers = 0;
        let mut buffer = vec![0; 1 << 15];
        while answers < messages.answers {
            let (length, _) = rustix::net::recv(&self.0, &mut buffer[..], RecvFlags::empty())?;
            let mut rest = buffer.get(..length).unwrap_or_default();
            while let Some(header) = rest.first_chunk::<16>() {
                let size = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
                let kind = u16::from_ne_bytes([header[4], header[5]]);
                let code = rest
                    .get(16..20)
                    .map_or(0, |code| i32::from_ne_bytes([code[0], code[1], code[2], code[3]]));
                if kind == ANSWER {
                    if code != 0 {
                        return Err(io::Error::from_raw_os_error(-code));
                    }
                    answers += 1;
                }
                rest = rest.get(size.next_multiple_of(4).max(16)..).unwrap_or_default();
            }
        }
        Ok(())
    }
}
