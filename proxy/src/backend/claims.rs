//! Who has a frontend when several Services ask for the same one: the first by name. The others wait.

use std::collections::HashMap;
use std::net::IpAddr;

use portolan_model::{Family, Protocol, ServiceName};
use portolan_plan::{Frontend, PortPlan, ServicePlan};

/// What makes a frontend unique on a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct FrontendId {
    family: Family,
    /// `None` for a node port.
    address: Option<IpAddr>,
    protocol: Protocol,
    port: u16,
}

impl FrontendId {
    pub(crate) fn new(port: &PortPlan, frontend: &Frontend) -> Self {
        Self {
            family: port.family,
            address: frontend.address,
            protocol: port.protocol,
            port: frontend.port,
        }
    }
}

impl std::fmt::Display for FrontendId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.address {
            Some(address) => write!(f, "{address} port {}/{}", self.port, self.protocol),
            None => write!(f, "node port {}/{} ({})", self.port, self.protocol, self.family),
        }
    }
}

/// Who asks for which frontend.
#[derive(Debug, Default)]
pub(crate) struct Claims {
    holders: HashMap<FrontendId, ServiceName>,
    /// Those who wait, sorted: rarely anyone.
    waiting: HashMap<FrontendId, Vec<ServiceName>>,
}

impl Claims {
    pub(crate) fn holds(&self, service: &ServiceName, frontend: &FrontendId) -> bool {
        self.holders.get(frontend) == Some(service)
    }

    /// How many frontends there are.
    pub(crate) fn len(&self) -> usize {
        self.holders.len()
    }

    /// Each frontend that some Service waits for, with the one that has it.
    pub(crate) fn contested(&self) -> impl Iterator<Item = (&FrontendId, &ServiceName, &[ServiceName])> {
        let all = self.waiting.iter();
        all.filter_map(|(id, waiting)| Some((id, self.holders.get(id)?, waiting.as_slice())))
    }

    /// Everyone who asks for the frontend.
    pub(crate) fn claimants(&self, frontend: FrontendId) -> impl Iterator<Item = &ServiceName> {
        let waiting = self.waiting.get(&frontend).into_iter().flatten();
        self.holders.get(&frontend).into_iter().chain(waiting)
    }

    /// Enters all frontends of a plan.
    pub(crate) fn claim(&mut self, plan: &ServicePlan) {
        for id in frontends(plan) {
            match self.holders.get_mut(&id) {
                None => {
                    self.holders.insert(id, plan.service.clone());
                }
                Some(holder) if *holder == plan.service => {}
                Some(holder) => {
                    let mut waits = plan.service.clone();
                    if plan.service < *holder {
                        std::mem::swap(&mut waits, holder);
                    }
                    let waiting = self.waiting.entry(id).or_default();
                    if let Err(place) = waiting.binary_search(&waits) {
                        waiting.insert(place, waits);
                    }
                }
            }
        }
    }

    /// Takes back all frontends of a plan: whoever waited first by name has them now.
    pub(crate) fn release(&mut self, plan: &ServicePlan) {
        for id in frontends(plan) {
            let held = self.holders.get(&id) == Some(&plan.service);
            let mut next = None;
            if let Some(waiting) = self.waiting.get_mut(&id) {
                waiting.retain(|service| *service != plan.service);
                if held && !waiting.is_empty() {
                    next = Some(waiting.remove(0));
                }
                if waiting.is_empty() {
                    self.waiting.remove(&id);
                }
            }
            match next {
                Some(next) => drop(self.holders.insert(id, next)),
                None if held => drop(self.holders.remove(&id)),
                None => {}
            }
        }
    }
}

/// The frontends that a plan asks for.
pub(crate) fn frontends(plan: &ServicePlan) -> impl Iterator<Item = FrontendId> + '_ {
    let ports = plan.ports.iter();
    ports.flat_map(|port| port.frontends.iter().map(|frontend| FrontendId::new(port, frontend)))
}
