//! The userspace backend: relays TCP and UDP in this process, on every operating system that Rust's std supports.
//!
//! For laptops, and for nodes where nothing else can run. The plans are those of the other backends; what differs is what
//! a program can do that only opens sockets:
//!
//! - It listens on a frontend's address where that is this machine's, otherwise on a loopback address that `status`
//!   prints. A node port is served on those of its addresses that are this machine's.
//! - Endpoints see this machine's address, not the client's. The PROXY protocol (version 2, TCP only) can tell them.
//! - Sources are told apart by address alone: pods by the ranges in [`NodePlan::pods`](portolan_plan::NodePlan::pods),
//!   the node by its own addresses. Where pods are told by their interface, they count as outside.
//! - *Reject*: when every client is to be refused the listener is closed, and the system refuses. When only some are,
//!   they get a reset. UDP clients get silence in that case.
//! - *Drop*, and sources out of range: the system has already accepted the connection, so it is left unanswered for a
//!   while, then closed. See the `tcp` module.
//! - SCTP is not carried. Unused addresses of the Service range are not ours to drop.
//! - Everything lives in this process: when it ends, so do its connections.
//!
//! It decides nothing that a plan could have decided, and a change of endpoints never closes a listener or a TCP
//! connection. A frontend that cannot be served is reported in the log and in `status`, and tried again with each change
//! and every few seconds; it is no failed apply, since applying again could not mend it.

mod affinity;
mod claim;
mod frontend;
mod limit;
mod listener;
mod proxy_protocol;
mod shared;
mod socket;
mod stand_in;
mod table;
mod target;
mod tcp;
#[cfg(test)]
mod tests;
mod udp;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError, Weak};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use self::shared::Shared;
use self::table::Table;
use super::{Backend, BackendError, Change, Report};

/// What the operator can choose.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UserspaceOptions {
    /// Begin each TCP connection to an endpoint with a PROXY protocol v2 header. Every endpoint must expect it.
    pub proxy_protocol: bool,
    /// How long an endpoint may take to accept a connection before another is tried.
    pub connect_timeout: Duration,
    /// How many endpoints are tried for one connection.
    pub connect_attempts: usize,
    /// How long a UDP flow may be idle while its endpoint has not answered.
    pub udp_idle: Duration,
    /// How long a UDP flow may be idle once its endpoint has answered.
    pub udp_stream_idle: Duration,
    /// UDP flows of one frontend. Beyond it the flow that was idle longest ends.
    pub udp_flows: usize,
    /// How often listeners that could not be opened are tried again.
    pub retry: Duration,
}

impl Default for UserspaceOptions {
    fn default() -> Self {
        Self {
            proxy_protocol: false,
            connect_timeout: Duration::from_secs(5),
            connect_attempts: 3,
            udp_idle: Duration::from_secs(60),
            udp_stream_idle: Duration::from_secs(180),
            udp_flows: 4096,
            retry: Duration::from_secs(10),
        }
    }
}

/// See the module.
#[derive(Debug)]
pub struct UserspaceBackend {
    table: Arc<Mutex<Table>>,
    shared: Arc<Shared>,
    retry: JoinHandle<()>,
}

impl UserspaceBackend {
    /// A backend with no listener yet, whose relays run on `handle`. Raises the limit of open files as far as allowed.
    pub fn new(options: UserspaceOptions, handle: Handle) -> Self {
        let open_files = limit::raise();
        if !socket::tells_own() {
            tracing::warn!(
                "this system binds addresses that are not its own (net.ipv4.ip_nonlocal_bind?): \
                 frontends are not moved to loopback addresses, and every source counts as the node"
            );
        }
        let period = options.retry;
        let shared = Arc::new(Shared::new(options, open_files));
        let table = Arc::new(Mutex::new(Table::new(handle.clone(), shared.clone())));
        let retry = handle.spawn(retry(Arc::downgrade(&table), period));
        Self { table, shared, retry }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Backend for UserspaceBackend {
    fn name(&self) -> &'static str {
        "userspace"
    }

    fn apply(&mut self, change: &Change) -> Result<Report, BackendError> {
        let start = Instant::now();
        let mut report = self.table().apply(change);
        report.took = start.elapsed();
        Ok(report)
    }

    fn status(&self) -> Vec<(String, String)> {
        let counters = &self.shared.counters;
        let line = |key: &str, value: &AtomicU64| (key.to_owned(), value.load(Ordering::Relaxed).to_string());
        let limit = self.shared.open_files;
        let mut lines = vec![
            line("tcp connections open", &counters.tcp_open),
            line("tcp connections relayed", &counters.tcp_relayed),
            line("tcp accepts that failed", &counters.tcp_not_accepted),
            line(
                "tcp connections without a reachable endpoint",
                &counters.tcp_unreachable,
            ),
            line("udp flows open", &counters.udp_flows),
            line("udp flows evicted", &counters.udp_evicted),
            line("refused or dropped by policy", &counters.denied),
            (
                "open files limit".to_owned(),
                limit.map_or_else(|| "none".to_owned(), |limit| limit.to_string()),
            ),
        ];
        lines.extend(self.table().status());
        lines
    }

    /// Closes every listener and ends every UDP flow. TCP connections go on for as long as the process does.
    fn stop(&mut self) {
        self.retry.abort();
        self.table().close();
    }
}

impl Drop for UserspaceBackend {
    fn drop(&mut self) {
        self.retry.abort();
    }
}

async fn retry(table: Weak<Mutex<Table>>, period: Duration) {
    loop {
        tokio::time::sleep(period).await;
        let Some(table) = table.upgrade() else {
            return;
        };
        match table.try_lock() {
            Ok(mut table) => table.retry(),
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner().retry(),
            // A change is being applied, which tries them too. It may wait for tasks of this runtime: never wait for it.
            Err(TryLockError::WouldBlock) => {}
        }
    }
}
