//! What a backend is.
//!
//! A backend makes plans real. It never looks at the World and decides nothing that a plan could have decided.

#[cfg(target_os = "linux")]
mod claims;
#[cfg(target_os = "linux")]
pub mod ebpf;
#[cfg(target_os = "linux")]
pub mod loopback;
#[cfg(target_os = "linux")]
pub mod nft;
pub mod userspace;

use std::io;
use std::time::Duration;

use portolan_model::ServiceName;
use portolan_plan::{Explanation, NodePlan, ServicePlan};
use prometheus_client::collector::Collector;

/// What has to change. Cost follows its size.
#[derive(Clone, Debug, Default)]
pub struct Change {
    /// The node's plan, when it changed (always in a complete change).
    pub node: Option<NodePlan>,
    /// Plans of Services that are new or changed, sorted by name.
    pub plans: Vec<ServicePlan>,
    /// Services that are gone, sorted by name.
    pub removed: Vec<ServiceName>,
    /// `plans` holds every Service there is. The backend first observes what is really programmed (by an earlier
    /// process, or damaged by someone else), then changes only what differs and removes everything that is in no plan.
    pub complete: bool,
}

/// What an apply did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Objects (elements, rules, listeners) that were added or changed.
    pub written: usize,
    /// Objects that were removed.
    pub removed: usize,
    /// Messages sent to the kernel.
    pub messages: usize,
    /// Time from the call to the kernel's consent.
    pub took: Duration,
    /// Flows whose endpoint serves no more, that were ended.
    pub flows_ended: usize,
    /// Time that it took to find and end them; zero where the backend need not.
    pub flows_took: Duration,
}

/// What the kernel holds for one connection.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Inspection {
    /// What is there as it has to be, in the order in which the connection meets it.
    pub found: Vec<String>,
    /// What is not.
    pub differences: Vec<String>,
}

/// Why an apply failed.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// The kernel or the system refused. What was programmed before is still programmed.
    #[error("{what}: {source}")]
    System {
        /// What was being done, to which object.
        what: String,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// Some Services could not be programmed; all the others were.
    #[error("{} Services could not be programmed, first {}: {}", .0.len(), .0[0].0, .0[0].1)]
    Services(Vec<(ServiceName, String)>),
}

/// Someone else touched what we programmed, or we can no longer be sure: the daemon answers with a complete change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disturbance {
    /// For the log: what was seen.
    pub reason: String,
}

/// A way to make plans real.
///
/// Calls block (netlink round trips); the sync loop makes them outside the reactor.
pub trait Backend: Send {
    /// The word that `/proxyMode` answers and `--backend` takes: `nftables`, `userspace`, `ebpf`.
    fn name(&self) -> &'static str;

    /// Makes the change real: all of it at once as far as packets can see, or nothing.
    ///
    /// # Errors
    /// The old state stays; the caller retries with a complete change.
    fn apply(&mut self, change: &Change) -> Result<Report, BackendError>;

    /// For `status`: lines of `key: value` about what is programmed, such as counts or where the userspace backend
    /// really listens.
    fn status(&self) -> Vec<(String, String)>;

    /// Metrics that are read from where they are counted, when somebody asks.
    fn collector(&self) -> Option<Box<dyn Collector>> {
        None
    }

    /// What in the kernel is programmed, in a word: two processes that say the same must not do it both at once. `None`
    /// when everything lives in this process.
    fn programs(&self) -> Option<String> {
        None
    }

    /// Compares what the kernel holds for a connection with what was planned; `None` when there is nothing to compare.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    fn inspect(&mut self, explanation: &Explanation, node: &NodePlan) -> Option<io::Result<Inspection>> {
        let _ = (explanation, node);
        None
    }

    /// Another process programs this node from now on: lets go of whatever only one of them can have. Kernel state stays.
    /// When it is this one's turn again a complete change comes.
    fn stand_by(&mut self) {}

    /// Stops what lives in this process only. Kernel state stays in place: traffic goes on without us.
    fn stop(&mut self) {}
}
