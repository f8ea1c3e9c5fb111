//! The nftables backend: Services as elements of a few maps in our own tables `ip portolan` and `ip6 portolan`.
//!
//! [`NftBackend`] keeps a [`mirror`] of what is programmed, turns a change into the elements and chains that differ
//! ([`difference`]) and hands them to the kernel in one batch for both families, so that a packet sees the old state or
//! the new one. It touches no table but its own, runs no `nft` and walks what is programmed only in a complete change.

mod affinity;
mod conntrack;
mod difference;
mod entries;
mod frame;
pub mod inspect;
mod leftovers;
mod mirror;
mod monitor;
mod netlink;
mod observe;
mod packed;
mod probe;
mod program;
mod programmer;
mod rules;
mod schema;

#[cfg(test)]
mod tests;

use std::io;
use std::time::Instant;

use portolan_plan::{Explanation, NodePlan};
use tokio::sync::mpsc::Sender;
use tracing::{debug, warn};

pub use leftovers::{is_programmed, remove_kube_proxy};
pub(crate) use probe::all_chains;
pub use probe::{cleanup, probe};

use self::conntrack::Conntrack;
use self::monitor::Monitor;
use self::netlink::socket::Socket;
use self::observe::Netlink;
use self::programmer::Programmer;
use super::{Backend, BackendError, Change, Disturbance, Inspection, Report};

/// Choices of the operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NftOptions {
    /// Name of our tables.
    pub table: String,
    /// The bit of the packet mark that asks for masquerading, 0 to 31 (`iptablesMasqueradeBit`). Other bits are left
    /// alone.
    pub masquerade_bit: u8,
}

impl Default for NftOptions {
    fn default() -> Self {
        Self {
            table: "portolan".into(),
            masquerade_bit: 14,
        }
    }
}

impl NftOptions {
    fn masquerade_bit(&self) -> u32 {
        1 << self.masquerade_bit.min(31)
    }
}

/// The nftables backend of one network namespace.
pub struct NftBackend {
    programmer: Programmer<Netlink>,
    conntrack: Conntrack,
    /// Another process programs the tables: what happens to them is its business.
    standing_by: bool,
}

// === impl NftBackend ===

impl NftBackend {
    /// Opens the netlink sockets in the calling thread's network namespace. Changes that others make to our tables go
    /// to `disturbances`.
    ///
    /// # Errors
    /// Without CAP_NET_ADMIN, or in a kernel without netfilter.
    pub fn new(options: NftOptions, disturbances: Sender<Disturbance>) -> io::Result<Self> {
        let socket = Socket::open()?;
        let monitor = Monitor::start(&options.table, socket.port_id()?, disturbances)?;
        Ok(Self {
            programmer: Programmer::new(Netlink { socket, monitor }, options),
            conntrack: Conntrack::open()?,
            standing_by: false,
        })
    }
}

impl Backend for NftBackend {
    fn name(&self) -> &'static str {
        "nftables"
    }

    /// Connection tracking follows the rules: a flow that is ended before them would come back the old way.
    fn apply(&mut self, change: &Change) -> Result<Report, BackendError> {
        if std::mem::replace(&mut self.standing_by, false)
            && let Err(error) = self.programmer.kernel.monitor.resume()
        {
            warn!(%error, "what others do to our tables will not be noticed");
        }
        let mut outcome = self.programmer.apply(change);
        if matches!(outcome, Err(BackendError::System { .. })) {
            return outcome;
        }
        let start = Instant::now();
        let ended = match self.conntrack.follow(change) {
            Ok(ended) => ended,
            Err(error) => {
                warn!(%error, "cannot end flows of endpoints that serve no more; they end by themselves");
                0
            }
        };
        if ended > 0 {
            debug!(ended, "ended flows whose endpoint serves no more");
        }
        if let Ok(report) = &mut outcome {
            report.flows_ended = ended;
            report.flows_took = start.elapsed();
        }
        outcome
    }

    fn status(&self) -> Vec<(String, String)> {
        self.programmer.status()
    }

    fn programs(&self) -> Option<String> {
        Some(format!("nftables {}", self.programmer.options().table))
    }

    fn inspect(&mut self, explanation: &Explanation, node: &NodePlan) -> Option<io::Result<Inspection>> {
        Some(inspect::inspect(&explanation.into(), node, self.programmer.options()))
    }

    fn stand_by(&mut self) {
        self.standing_by = true;
        self.programmer.forget();
        if let Err(error) = self.programmer.kernel.monitor.pause() {
            warn!(%error, "what the newer portolan-proxy does will be taken for damage");
        }
    }

    fn stop(&mut self) {
        self.programmer.kernel.monitor.stop();
    }
}
