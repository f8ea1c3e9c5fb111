//! Node-local mode: the addresses that every pod of the node asks are this machine's own, and reach this process.
//!
//! The addresses stand on a link of their own, or on `lo` where the kernel has no dummy links, and go when the process ends.
//! Packets to and from them are not tracked, so that no rule of kube-proxy or portolan-proxy sends them to a central DNS
//! server. Those rules come once the cluster's names are known and go before the last query is answered, and they hang on an
//! open socket of this process: when it dies in whatever way, the kernel removes them, and queries to the DNS Service's
//! address go to the central DNS server again, if there is one. The last process that answers on a node takes the addresses
//! away; after one that was killed the next one finds them, or [`cleanup`] removes them.

#[cfg(target_os = "linux")]
mod message;
#[cfg(target_os = "linux")]
#[path = "nodelocal/linux.rs"]
mod system;
#[cfg(not(target_os = "linux"))]
#[path = "nodelocal/elsewhere.rs"]
mod system;

pub use system::{NodeLocal, cleanup};

/// The link that the addresses stand on (NodeLocal DNSCache's `-interfacename`).
pub const LINK: &str = "portolan-dns";
