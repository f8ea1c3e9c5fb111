//! What the maps really say of a connection: for `explain`, from the pins alone.

use std::fmt::Write as _;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use portolan_abi::{
    Address, Backend, BackendKey, Counters, Frontend, FrontendKey, Plain, Set, address, frontend, scope, verdict,
};
use portolan_model::Protocol;

use super::compile;
use super::pins::Pins;
use super::sys;

/// Endpoints that are listed at most.
const SHOWN: u32 = 20;

/// What the programs that are attached do with a new connection of a socket, as text; `None` when none are.
///
/// `from_node` tells a socket of the node's own network namespace from a pod's.
///
/// # Errors
/// The kernel's, and when what is pinned is of another build's layout.
pub fn live(bpffs: &Path, from_node: bool, to: SocketAddr, protocol: Protocol) -> io::Result<Option<String>> {
    let Some(pins) = Pins::existing(bpffs) else {
        return Ok(None);
    };
    if pins.linked().is_empty() {
        return Ok(None);
    }
    let Some(generation) = pins.generations().pop() else {
        return Err(io::Error::other("the programs in use are of another build"));
    };
    let Some(protocol) = compile::protocol(protocol) else {
        return Ok(Some(
            "left to the packet path: not a protocol of the socket hooks".into(),
        ));
    };
    let maps = Maps { pins, generation };
    maps.explain(from_node, to, protocol).map(Some)
}

struct Maps {
    pins: Pins,
    generation: u32,
}

// === impl Maps ===

impl Maps {
    fn open(&self, name: &str) -> io::Result<OwnedFd> {
        sys::open(&self.pins.map(self.generation, name))
    }

    fn look<K: Plain, V: Plain>(&self, map: &str, key: &K) -> io::Result<Option<V>> {
        sys::lookup(self.open(map)?.as_fd(), key)
    }

    fn explain(&self, from_node: bool, to: SocketAddr, protocol: u8) -> io::Result<String> {
        let at = compile::address(to.ip());
        let Some(flags) = self.look::<Address, u32>("ADDRESSES", &at)? else {
            return Ok("not in the maps: the connection goes on as it is".into());
        };
        if flags & address::LOOPBACK != 0 && !from_node {
            return Ok("a pod's own loopback: the connection goes on as it is".into());
        }
        let mut key = FrontendKey {
            address: at,
            port: to.port().to_be(),
            protocol,
            zero: 0,
        };
        let mut found: Option<Frontend> = self.look("FRONTENDS", &key)?;
        if found.is_none() && flags & address::NODE_PORT != 0 {
            key.address = at.unspecified();
            found = self.look("FRONTENDS", &key)?;
        }
        match found {
            Some(frontend) => self.frontend(&frontend, from_node),
            None if flags & address::CLUSTER_IP != 0 => Ok("refused: a live cluster IP, but no Service port".into()),
            None => Ok("no frontend has this port: the connection goes on as it is".into()),
        }
    }

    fn frontend(&self, found: &Frontend, from_node: bool) -> io::Result<String> {
        if found.flags & frontend::RESTRICTED != 0 {
            return Ok("left to the packet path, because the frontend has source ranges".into());
        }
        if found.flags & frontend::MASQUERADED != 0 {
            return Ok("left to the packet path, because everything is to be masqueraded".into());
        }
        let route = if from_node {
            found.routes[scope::NODE]
        } else {
            found.routes[scope::POD]
        };
        match route.verdict {
            verdict::FORWARD => {}
            verdict::REJECT => return Ok(format!("refused: no endpoint (Service port number {})", found.port)),
            _ => return Ok("left to the packet path, which drops it".into()),
        }
        let count = self.look::<u32, Set>("SETS", &route.set)?.unwrap_or_default().count;
        let mut text = format!(
            "sent to one of {count} endpoints (Service port number {}, set {})",
            found.port, route.set
        );
        let counters = self.open("ENDPOINT_COUNTERS")?;
        let processors = aya::util::nr_cpus().map_err(|(_, error)| error)?;
        for slot in 0..count.min(SHOWN) {
            let key = BackendKey { set: route.set, slot };
            let Some(backend) = self.look::<BackendKey, Backend>("BACKENDS", &key)? else {
                continue;
            };
            let each: Vec<Counters> = sys::lookup_each(counters.as_fd(), backend.counter, processors)?;
            let connections: u64 = each.iter().map(|one| one.connections).sum();
            let at = SocketAddr::new(compile::ip(&backend.address), u16::from_be(backend.port));
            let _ = write!(text, "\n          {at}, {connections} connections so far");
        }
        if count > SHOWN {
            let _ = write!(text, "\n          and {} more", count - SHOWN);
        }
        Ok(text)
    }
}
