//! Makes the kernel hold what plans say: differences in, transactions out, and what to do when the kernel refuses.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::io;
use std::time::Instant;

use portolan_model::{Family, ServiceName};
use portolan_plan::{NodePlan, ServicePlan};
use tracing::{info, warn};

use super::NftOptions;
use super::affinity;
use super::difference::Difference;
use super::mirror::{Mirror, Plans};
use super::netlink::batch::{BatchError, Refusal};
use super::observe::{Kernel, Observed};
use crate::backend::{BackendError, Change, Report};

/// How often a complete change is tried again without the Services that the kernel refused, before they are divided.
const ROUNDS: usize = 16;
/// Refusals one after the other, while Services are divided, after which it is not the Services.
const REFUSALS: usize = 64;

/// Services that the kernel refuses, with its reason.
type Refused = Vec<(ServiceName, String)>;

/// The backend without its sockets' surroundings.
pub(super) struct Programmer<K> {
    pub(super) kernel: K,
    options: NftOptions,
    mirror: Mirror,
    /// The mirror is what the kernel holds. Not so before the first complete change and after a failure.
    known: bool,
    /// Families that the kernel has nf_tables for.
    families: Vec<Family>,
}

/// What a change has come to so far.
#[derive(Default)]
struct Outcome {
    report: Report,
    refused: Refused,
    /// Endpoints have gone that clients may stay with.
    forget: bool,
}

// === impl Programmer ===

impl<K: Kernel> Programmer<K> {
    pub(super) fn new(kernel: K, options: NftOptions) -> Self {
        Self {
            kernel,
            options,
            mirror: Mirror::default(),
            known: false,
            families: Family::ALL.to_vec(),
        }
    }

    pub(super) fn options(&self) -> &NftOptions {
        &self.options
    }

    /// What is programmed is somebody else's business now: a complete change has to come next.
    pub(super) fn forget(&mut self) {
        self.known = false;
        self.mirror = Mirror::default();
    }

    pub(super) fn apply(&mut self, change: &Change) -> Result<Report, BackendError> {
        let start = Instant::now();
        let contested = self.mirror.claims().contested().count();
        let mut outcome = if change.complete {
            self.apply_complete(change)?
        } else if self.known {
            self.apply_changes(change)?
        } else {
            return Err(BackendError::System {
                what: "what is programmed is not known".into(),
                source: io::Error::other("a complete change has to come first"),
            });
        };
        outcome.report.took = start.elapsed();
        if self.mirror.claims().contested().count() != contested {
            for (frontend, holder, waiting) in self.mirror.claims().contested() {
                let waiting: Vec<String> = waiting.iter().map(ToString::to_string).collect();
                let waiting = waiting.join(", ");
                warn!(%frontend, %holder, waiting, "several Services ask for one frontend; the first by name has it");
            }
        }
        if outcome.refused.is_empty() {
            Ok(outcome.report)
        } else {
            Err(BackendError::Services(outcome.refused))
        }
    }

    /// Observes, then changes what differs.
    fn apply_complete(&mut self, change: &Change) -> Result<Outcome, BackendError> {
        // What is thrown away makes room for what is read.
        self.forget();
        let mut refused: Refused = Vec::new();
        let mut rebuild = false;
        for _ in 0..ROUNDS {
            let restricted = self.restrict_all(&change.plans);
            let plans = restricted.as_deref().unwrap_or(&change.plans).iter();
            let left = plans.filter(|plan| !refused.iter().any(|(service, _)| *service == plan.service));
            match self.reconcile(left.clone(), change.node.as_ref(), rebuild)? {
                Ok(mut report) => {
                    report.removed += self.forget_clients()?;
                    self.known = true;
                    return Ok(Outcome {
                        report,
                        refused,
                        forget: false,
                    });
                }
                Err(refusals) => {
                    let owners: Vec<ServiceName> = left.map(|plan| plan.service.clone()).collect();
                    let guilty = guilty(&refusals, &owners);
                    if guilty.is_empty() && !self.learn_families(&refusals)? {
                        if rebuild {
                            // The kernel does not say who is to blame.
                            break;
                        }
                        // What was found does not fit. Begin with empty tables.
                        rebuild = true;
                    }
                    refused.extend(guilty);
                }
            }
        }
        self.apply_divided(change, refused)
    }

    /// The kernel refuses everything together without a word about whom it means: tables without a Service first, then
    /// Services in groups, until it is known.
    fn apply_divided(&mut self, change: &Change, refused: Refused) -> Result<Outcome, BackendError> {
        warn!("the kernel refuses the rules of all Services together: finding out which ones");
        let report = match self.reconcile(std::iter::empty(), change.node.as_ref(), true)? {
            Ok(report) => report,
            Err(refusals) => return Err(self.refusal(&refusals)),
        };
        self.known = true;
        let left = change.plans.iter();
        let left = left.filter(|plan| !refused.iter().any(|(bad, _)| *bad == plan.service));
        let plans = left.map(|plan| (plan.service.clone(), Some(self.restrict(plan).into_owned())));
        let plans = plans.collect();
        let mut outcome = Outcome {
            report,
            refused,
            forget: true,
        };
        self.replace(plans, None, &mut outcome)?;
        self.finish(outcome)
    }

    /// Makes what was observed what the plans say, or says what the kernel refused. Owners are places of plans.
    fn reconcile<'a>(
        &mut self,
        plans: impl Iterator<Item = &'a ServicePlan> + Clone,
        node: Option<&NodePlan>,
        rebuild: bool,
    ) -> Result<Result<Report, Vec<Refusal>>, BackendError> {
        let mut observed = self.observe()?;
        if rebuild {
            let found = observed.iter_mut().filter_map(|(_, found)| found.as_mut());
            found.for_each(|found| found.sound = false);
        }
        let node = node.map(|node| self.restrict_node(node)).unwrap_or_default();
        let (mirror, difference) = Mirror::adopt(plans, node, observed, &self.options);
        self.mirror = mirror;
        match self.commit(difference) {
            Ok(report) => Ok(Ok(report)),
            Err(BatchError::Refused(refusals)) => Ok(Err(refusals)),
            Err(BatchError::Io(source)) => Err(self.io("program the tables", source)),
        }
    }

    /// Changes what the plans change.
    fn apply_changes(&mut self, change: &Change) -> Result<Outcome, BackendError> {
        let changed = change.plans.iter().map(|plan| self.restrict(plan).into_owned());
        let mut plans: Plans = changed.map(|plan| (plan.service.clone(), Some(plan))).collect();
        for plan in plans.iter_mut().filter_map(|(_, plan)| plan.as_mut()) {
            self.mirror.assign_slots(plan);
        }
        plans.extend(change.removed.iter().map(|service| (service.clone(), None)));
        let node = change.node.as_ref().map(|node| self.restrict_node(node));
        let mut outcome = Outcome::default();
        self.replace(plans, node, &mut outcome)?;
        self.finish(outcome)
    }

    /// Replaces plans: all in one transaction, and where the kernel refuses that, without those that it names. Where it
    /// names none they are divided, so that the others do not wait for the one that it means.
    fn replace(&mut self, plans: Plans, node: Option<NodePlan>, outcome: &mut Outcome) -> Result<(), BackendError> {
        let mut refusals_in_a_row = 0;
        let mut groups = vec![(plans, node)];
        while let Some((plans, node)) = groups.pop() {
            let replacement = self.mirror.replace(plans, node, &self.options);
            let refusals = match self.commit(replacement.difference) {
                Ok(report) => {
                    outcome.report.written += report.written;
                    outcome.report.removed += report.removed;
                    outcome.report.messages += report.messages;
                    outcome.forget |= replacement.forget;
                    refusals_in_a_row = 0;
                    continue;
                }
                Err(BatchError::Io(source)) => {
                    self.forget();
                    return Err(self.io("change the tables", source));
                }
                Err(BatchError::Refused(refusals)) => refusals,
            };
            let guilty = guilty(&refusals, &replacement.owners);
            let undone = self
                .mirror
                .replace(replacement.old_plans, replacement.old_node, &self.options);
            let (mut plans, node) = (undone.old_plans, undone.old_node);
            refusals_in_a_row += 1;
            if refusals_in_a_row > REFUSALS || plans.is_empty() {
                self.forget();
                return Err(self.refusal(&refusals));
            }
            // A Service that is only affected by the change of another one cannot be left out.
            let before = plans.len();
            plans.retain(|(service, _)| !guilty.iter().any(|(bad, _)| bad == service));
            if plans.len() < before {
                outcome.refused.extend(guilty);
                groups.push((plans, node));
            } else if node.is_some() {
                groups.push((plans, None));
                groups.push((Vec::new(), node));
            } else if let [(service, _)] = plans.as_slice() {
                let reason = refusals.first().map(Refusal::to_string).unwrap_or_default();
                outcome.refused.push((service.clone(), reason));
            } else {
                let second = plans.split_off(plans.len() / 2);
                groups.push((second, None));
                groups.push((plans, None));
            }
        }
        Ok(())
    }

    fn finish(&mut self, mut outcome: Outcome) -> Result<Outcome, BackendError> {
        if outcome.forget {
            self.known = false;
            outcome.report.removed += self.forget_clients()?;
            self.known = true;
        }
        Ok(outcome)
    }

    /// Finds out whether the kernel refused a family as such; whether it is left out from now on.
    fn learn_families(&mut self, refusals: &[Refusal]) -> Result<bool, BackendError> {
        let unknown = |refusal: &Refusal| [libc::EOPNOTSUPP, libc::EAFNOSUPPORT].contains(&refusal.errno);
        if !refusals.iter().any(unknown) {
            return Ok(false);
        }
        let mut taken = Vec::new();
        for family in &self.families {
            match self.kernel.takes(*family, &self.options) {
                Ok(true) => taken.push(*family),
                Ok(false) => {}
                Err(source) => return Err(self.io("try out", source)),
            }
        }
        let fewer = !taken.is_empty() && taken.len() < self.families.len();
        if fewer {
            for family in self.families.iter().filter(|family| !taken.contains(family)) {
                warn!(%family, "the kernel has no nf_tables for this family: its Services are not served here");
            }
            self.families = taken;
        }
        Ok(fewer)
    }

    /// What of the plans the kernel can hold; `None` when that is all of them.
    fn restrict_all(&self, plans: &[ServicePlan]) -> Option<Vec<ServicePlan>> {
        let fewer = self.families.len() < Family::ALL.len();
        fewer.then(|| plans.iter().map(|plan| self.restrict(plan).into_owned()).collect())
    }

    /// What of a plan the kernel can hold.
    fn restrict<'a>(&self, plan: &'a ServicePlan) -> Cow<'a, ServicePlan> {
        if plan.ports.iter().all(|port| self.families.contains(&port.family)) {
            return Cow::Borrowed(plan);
        }
        let mut plan = plan.clone();
        plan.ports.retain(|port| self.families.contains(&port.family));
        Cow::Owned(plan)
    }

    fn restrict_node(&self, node: &NodePlan) -> NodePlan {
        let mut node = node.clone();
        node.node_port_addresses
            .retain(|address| self.families.contains(&Family::of(address)));
        node
    }

    /// Forgets which clients stay with endpoints that serve no more. Yields how many were forgotten.
    fn forget_clients(&mut self) -> Result<usize, BackendError> {
        let mut forgotten = 0;
        for family in self.families.clone() {
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
        for family in self.families.clone() {
            match self.kernel.observe(family, &self.options.table) {
                Ok(found) => observed.push((family, found)),
                Err(source) => return Err(self.io("read the tables", source)),
            }
        }
        Ok(observed)
    }

    fn commit(&mut self, difference: Difference) -> Result<Report, BatchError> {
        let size = difference.size();
        let table = &self.options.table;
        let batch = difference.batch(table);
        let messages = batch.messages();
        for family in &difference.delete_tables {
            info!(%family, table, "the table is not as it has to be: it is made anew");
        }
        // The kernel needs as much memory again for what it takes over.
        let spare = (!difference.delete_chains.is_empty()).then_some(difference);
        match (self.kernel.commit(batch), spare) {
            // Some kernels count an element's reference to a chain until the transaction that deletes it is over.
            (Err(BatchError::Refused(refusals)), Some(difference))
                if refusals.iter().all(|refusal| refusal.errno == libc::EBUSY) =>
            {
                self.kernel.commit(difference.batch_but_chains(table))?;
                self.kernel.commit(difference.batch_of_chains(table))?;
            }
            (outcome, _) => outcome?,
        }
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

    pub(super) fn status(&self) -> Vec<(String, String)> {
        let line = |key: &str, value: String| (key.to_owned(), value);
        let table = |family: &Family| match family {
            Family::V4 => format!("ip {}", self.options.table),
            Family::V6 => format!("ip6 {}", self.options.table),
        };
        let tables: Vec<String> = self.families.iter().map(table).collect();
        vec![
            line("tables", tables.join(", ")),
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
fn guilty(refusals: &[Refusal], owners: &[ServiceName]) -> Refused {
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
