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
mod mirror;
mod monitor;
mod netlink;
mod observe;
mod packed;
mod probe;
mod program;
mod rules;
mod schema;

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::io;
use std::time::Instant;

use portolan_model::{Family, ServiceName};
use tokio::sync::mpsc::Sender;
use tracing::{debug, info, warn};

pub use probe::{cleanup, probe};

use self::conntrack::Conntrack;
use self::difference::Difference;
use self::mirror::{Mirror, Plans};
use self::monitor::Monitor;
use self::netlink::batch::{BatchError, Refusal};
use self::netlink::socket::Socket;
use self::observe::{Kernel, Netlink, Observed};
use super::{Backend, BackendError, Change, Disturbance, Report};

/// How often a change is tried again without the Services that the kernel refused.
const ROUNDS: usize = 16;

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
        })
    }
}

impl Backend for NftBackend {
    fn name(&self) -> &'static str {
        "nftables"
    }

    /// Connection tracking follows the rules: a flow that is ended before them would come back the old way.
    fn apply(&mut self, change: &Change) -> Result<Report, BackendError> {
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

    fn stop(&mut self) {
        self.programmer.kernel.monitor.stop();
    }
}

/// The backend without its sockets' surroundings.
struct Programmer<K> {
    kernel: K,
    options: NftOptions,
    mirror: Mirror,
    /// The mirror is what the kernel holds. Not so before the first complete change and after a failure.
    known: bool,
}

// === impl Programmer ===

impl<K: Kernel> Programmer<K> {
    fn new(kernel: K, options: NftOptions) -> Self {
        Self {
            kernel,
            options,
            mirror: Mirror::default(),
            known: false,
        }
    }

    fn apply(&mut self, change: &Change) -> Result<Report, BackendError> {
        let start = Instant::now();
        let contested = self.mirror.claims().contested().count();
        let (mut report, refused) = if change.complete {
            self.apply_complete(change)?
        } else if self.known {
            self.apply_changes(change)?
        } else {
            return Err(BackendError::System {
                what: "what is programmed is not known".into(),
                source: io::Error::other("a complete change has to come first"),
            });
        };
        report.took = start.elapsed();
        if self.mirror.claims().contested().count() != contested {
            for (frontend, holder, waiting) in self.mirror.claims().contested() {
                let waiting: Vec<String> = waiting.iter().map(ToString::to_string).collect();
                let waiting = waiting.join(", ");
                warn!(%frontend, %holder, waiting, "several Services ask for one frontend; the first by name has it");
            }
        }
        if refused.is_empty() {
            Ok(report)
        } else {
            Err(BackendError::Services(refused))
        }
    }

    /// Observes, then changes what differs.
    fn apply_complete(&mut self, change: &Change) -> Result<(Report, Vec<(ServiceName, String)>), BackendError> {
        self.known = false;
        // What is thrown away makes room for what is read.
        self.mirror = Mirror::default();
        let node = change.node.clone().unwrap_or_default();
        let mut refused: Vec<(ServiceName, String)> = Vec::new();
        let mut rebuild = false;
        for _ in 0..ROUNDS {
            let mut observed = self.observe()?;
            if rebuild {
                observed
                    .iter_mut()
                    .filter_map(|(_, found)| found.as_mut())
                    .for_each(|found| found.sound = false);
            }
            let left = change
                .plans
                .iter()
                .filter(|plan| !refused.iter().any(|(service, _)| *service == plan.service));
            let (mirror, difference) = Mirror::adopt(left.clone(), node.clone(), observed, &self.options);
            self.mirror = mirror;
            match self.commit(difference) {
                Ok(mut report) => {
                    report.removed += self.forget_clients()?;
                    self.known = true;
                    return Ok((report, refused));
                }
                Err(BatchError::Io(source)) => return Err(self.io("program the tables", source)),
                Err(BatchError::Refused(refusals)) => {
                    let owners: Vec<ServiceName> = left.map(|plan| plan.service.clone()).collect();
                    let guilty = guilty(&refusals, &owners);
                    if guilty.is_empty() && rebuild {
                        return Err(self.refusal(&refusals));
                    }
                    // Nobody is to blame: what was found does not fit. Begin with empty tables.
                    rebuild |= guilty.is_empty();
                    refused.extend(guilty);
                }
            }
        }
        Err(BackendError::Services(refused))
    }

    /// Changes what the plans change.
    fn apply_changes(&mut self, change: &Change) -> Result<(Report, Vec<(ServiceName, String)>), BackendError> {
        let mut refused: Vec<(ServiceName, String)> = Vec::new();
        for _ in 0..ROUNDS {
            let is_left = |service: &ServiceName| !refused.iter().any(|(bad, _)| bad == service);
            let mut plans: Plans = Vec::with_capacity(change.plans.len() + change.removed.len());
            for plan in change.plans.iter().filter(|plan| is_left(&plan.service)) {
                let mut plan = plan.clone();
                self.mirror.assign_slots(&mut plan);
                plans.push((plan.service.clone(), Some(plan)));
            }
            let removed = change.removed.iter().filter(|service| is_left(service));
            plans.extend(removed.map(|service| (service.clone(), None)));
            let replacement = self.mirror.replace(plans, change.node.clone(), &self.options);
            match self.commit(replacement.difference) {
                Ok(mut report) => {
                    if replacement.forget {
                        self.known = false;
                        report.removed += self.forget_clients()?;
                        self.known = true;
                    }
                    return Ok((report, refused));
                }
                Err(BatchError::Io(source)) => {
                    self.known = false;
                    return Err(self.io("change the tables", source));
                }
                Err(BatchError::Refused(refusals)) => {
                    let guilty = guilty(&refusals, &replacement.owners);
                    self.mirror
                        .replace(replacement.old_plans, replacement.old_node, &self.options);
                    // A Service that is only affected by the change of another one cannot be left out.
                    let changed = |service: &ServiceName| {
                        change.plans.iter().any(|plan| plan.service == *service) || change.removed.contains(service)
                    };
                    let before = refused.len();
                    refused.extend(guilty.into_iter().filter(|(service, _)| changed(service)));
                    if refused.len() == before {
                        self.known = false;
                        return Err(self.refusal(&refusals));
                    }
                }
            }
        }
        Err(BackendError::Services(refused))
    }

    /// Forgets which clients stay with endpoints that serve no more. Yields how many were forgotten.
    fn forget_clients(&mut self) -> Result<usize, BackendError> {
        let mut forgotten = 0;
        for family in Family::ALL {
            // An element that expires meanwhile makes the kernel refuse its deletion, and that of all others with it.
            for _ in 0..ROUNDS {
                let elements = match self.kernel.affinity(family, &self.options.table) {
                    Ok(elements) => elements,
                    Err(source) => return Err(self.io("read the clients of", source)),
                };
                let difference = Difference {
                    remove: affinity::stale(family, &elements, self.mirror.members()),
                    ..Difference::default()
                };
                match self.kernel.commit(difference.batch(&self.options.table)) {
                    Ok(()) => {
                        forgotten += difference.remove.len();
                        break;
                    }
                    Err(BatchError::Refused(_)) => {}
                    Err(BatchError::Io(source)) => return Err(self.io("forget clients of", source)),
                }
            }
        }
        Ok(forgotten)
    }

    fn observe(&mut self) -> Result<Vec<(Family, Option<Observed>)>, BackendError> {
        let mut observed = Vec::new();
        for family in Family::ALL {
            match self.kernel.observe(family, &self.options.table) {
                Ok(found) => observed.push((family, found)),
                Err(source) => return Err(self.io("read the tables", source)),
            }
        }
        Ok(observed)
    }

    fn commit(&mut self, difference: Difference) -> Result<Report, BatchError> {
        let size = difference.size();
        let batch = difference.batch(&self.options.table);
        let messages = batch.messages();
        for family in &difference.delete_tables {
            info!(%family, table = self.options.table, "the table is not as it has to be: it is made anew");
        }
        // The kernel needs as much memory again for what it takes over.
        drop(difference);
        self.kernel.commit(batch)?;
        Ok(Report {
            written: size.written,
            removed: size.removed,
            messages,
            ..Report::default()
        })
    }

    fn io(&self, what: &str, source: io::Error) -> BackendError {
        let what = format!("cannot {what} ip {0} and ip6 {0}", self.options.table);
        BackendError::System { what, source }
    }

    fn refusal(&self, refusals: &[Refusal]) -> BackendError {
        let text = refusals.first().map(Refusal::to_string).unwrap_or_default();
        self.io("change", io::Error::other(text))
    }

    fn status(&self) -> Vec<(String, String)> {
        let line = |key: &str, value: String| (key.to_owned(), value);
        vec![
            line("tables", format!("ip {0}, ip6 {0}", self.options.table)),
            line("in sync", if self.known { "yes" } else { "no" }.into()),
            line("services", self.mirror.services().to_string()),
            line("frontends", self.mirror.claims().len().to_string()),
            line(
                "contested frontends",
                self.mirror.claims().contested().count().to_string(),
            ),
            line("endpoints", self.mirror.endpoints().to_string()),
            line("chains", self.mirror.chains().to_string()),
        ]
    }
}

/// The Services whose objects were refused, each once, with the kernel's reason.
fn guilty(refusals: &[Refusal], owners: &[ServiceName]) -> Vec<(ServiceName, String)> {
    let mut seen = BTreeSet::new();
    let known = refusals.iter().filter_map(|refusal| {
        let owner = usize::try_from(refusal.owner?).ok()?;
        Some((owners.get(owner)?, refusal))
    });
    let first = known.filter(|(service, _)| seen.insert((*service).clone()));
    first
        .map(|(service, refusal)| (service.clone(), refusal.to_string()))
        .collect()
}
