//! Every frontend and its listener: what the plans want, what is open, and the way from one to the other.
//!
//! Listeners are diffed. One whose Service changed is handed the new target; only one that nobody wants any more, or at
//! which everyone would be refused, is closed. One that cannot be opened never holds up another.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use portolan_model::{Family, Protocol, ServiceName};
use portolan_plan::ServicePlan;
use tokio::runtime::Handle;

use super::claim::{Claims, FrontendKey};
use super::frontend::{Frontend, State, explain};
use super::listener::{Closing, Listener};
use super::shared::Shared;
use super::socket::{self, Bound};
use super::stand_in;
use super::target::Target;
use crate::backend::{Change, Report};

/// See the module.
#[derive(Debug)]
pub(super) struct Table {
    handle: Handle,
    shared: Arc<Shared>,
    services: BTreeMap<ServiceName, Claims>,
    node_ports: Vec<IpAddr>,
    frontends: BTreeMap<FrontendKey, Frontend>,
    /// Which frontend has which loopback address in its stead, also while it is not listening.
    stand_ins: HashMap<FrontendKey, FrontendKey>,
    /// Loopback endpoints, by how many Service ports use them.
    loopback_endpoints: HashMap<FrontendKey, usize>,
    /// Frontends that want a listener and have none.
    unbound: BTreeSet<FrontendKey>,
}

impl Table {
    pub(super) fn new(handle: Handle, shared: Arc<Shared>) -> Self {
        Self {
            handle,
            shared,
            services: BTreeMap::new(),
            node_ports: Vec::new(),
            frontends: BTreeMap::new(),
            stand_ins: HashMap::new(),
            loopback_endpoints: HashMap::new(),
            unbound: BTreeSet::new(),
        }
    }

    /// Makes a change real. Listeners that are to go are closed when this returns.
    pub(super) fn apply(&mut self, change: &Change) -> Report {
        let mut touched = BTreeSet::new();
        if let Some(node) = &change.node {
            self.shared.sources.update(node);
            if self.node_ports != node.node_port_addresses {
                self.move_node_ports(&node.node_port_addresses, &mut touched);
            }
        }
        if change.complete {
            let planned: BTreeSet<_> = change.plans.iter().map(|plan| &plan.service).collect();
            let gone = self.services.keys().filter(|service| !planned.contains(service));
            for service in gone.cloned().collect::<Vec<_>>() {
                self.set_claims(&service, None, &mut touched);
            }
        }
        for service in &change.removed {
            self.set_claims(service, None, &mut touched);
        }
        for plan in &change.plans {
            self.set_claims(&plan.service, Some(plan), &mut touched);
        }
        if change.complete {
            touched.extend(self.frontends.keys());
        }
        touched.extend(&self.unbound);
        self.settle(&touched, change.complete)
    }

    /// Tries again what could not be opened.
    pub(super) fn retry(&mut self) {
        if !self.unbound.is_empty() {
            self.settle(&self.unbound.clone(), false);
        }
    }

    /// Closes every listener and forgets every plan.
    pub(super) fn close(&mut self) {
        self.services.clear();
        self.stand_ins.clear();
        self.loopback_endpoints.clear();
        self.unbound.clear();
        let frontends = std::mem::take(&mut self.frontends).into_values();
        let closing: Vec<_> = frontends.filter_map(|mut frontend| frontend.close()).collect();
        closing.into_iter().for_each(Closing::wait);
    }

    /// A line for each frontend: where it is by the plan, and how it is reached.
    pub(super) fn status(&self) -> Vec<(String, String)> {
        let mut lines = Vec::with_capacity(self.frontends.len());
        for (key, frontend) in &self.frontends {
            let mut claimants = frontend.claims.keys();
            if let Some(winner) = claimants.next() {
                lines.push((format!("{winner} {key}"), frontend.state.describe(key)));
            }
            lines.extend(claimants.map(|loser| {
                let winner = frontend.claims.keys().next().map(ToString::to_string);
                let taken = format!("not served: {} has this address and port", winner.unwrap_or_default());
                (format!("{loser} {key}"), taken)
            }));
        }
        lines.sort();
        lines
    }

    // === what is wanted ===

    fn set_claims(&mut self, service: &ServiceName, plan: Option<&ServicePlan>, touched: &mut BTreeSet<FrontendKey>) {
        let before = self.services.remove(service).unwrap_or_default();
        self.retract(&before, touched);
        if let Some(plan) = plan {
            let claims = Claims::new(plan, before);
            self.claim(&claims, touched);
            self.services.insert(service.clone(), claims);
        }
    }

    fn move_node_ports(&mut self, addresses: &[IpAddr], touched: &mut BTreeSet<FrontendKey>) {
        let services = std::mem::take(&mut self.services);
        services.values().for_each(|claims| self.retract(claims, touched));
        self.node_ports = addresses.to_vec();
        services.values().for_each(|claims| self.claim(claims, touched));
        self.services = services;
    }

    fn retract(&mut self, claims: &Claims, touched: &mut BTreeSet<FrontendKey>) {
        for (key, claimant, _) in claims.frontends(&self.node_ports) {
            if let Some(frontend) = self.frontends.get_mut(&key) {
                frontend.claims.remove(&claimant);
            }
            touched.insert(key);
        }
        for endpoint in claims.loopback_endpoints() {
            if let Some(count) = self.loopback_endpoints.get_mut(&endpoint) {
                *count -= 1;
                if *count == 0 {
                    self.loopback_endpoints.remove(&endpoint);
                }
            }
        }
    }

    fn claim(&mut self, claims: &Claims, touched: &mut BTreeSet<FrontendKey>) {
        for (key, claimant, target) in claims.frontends(&self.node_ports) {
            self.frontends.entry(key).or_default().claims.insert(claimant, target);
            touched.insert(key);
        }
        for endpoint in claims.loopback_endpoints() {
            *self.loopback_endpoints.entry(endpoint).or_default() += 1;
            touched.extend(self.stand_ins.get(&endpoint));
        }
    }

    // === what is open ===

    /// Closes first, so that addresses are free; then the frontends that have an address of this machine; the rest gets
    /// loopback addresses that are left.
    fn settle(&mut self, touched: &BTreeSet<FrontendKey>, complete: bool) -> Report {
        let mut report = Report::default();
        let mut closing = Vec::new();
        let mut missing = Vec::new();
        for key in touched {
            self.unbound.remove(key);
            let Some(frontend) = self.frontends.get_mut(key) else {
                continue;
            };
            let Some(target) = frontend.target() else {
                closing.extend(frontend.close());
                self.forget(key);
                continue;
            };
            let evicted = frontend.stand_in.filter(|at| {
                let at = FrontendKey { address: *at, ..*key };
                self.loopback_endpoints.contains_key(&at)
            });
            if let Some(address) = evicted {
                frontend.stand_in = None;
                self.stand_ins.remove(&FrontendKey { address, ..*key });
            }
            if target.refuses_everyone() || evicted.is_some() {
                closing.extend(frontend.close());
            }
            match &frontend.state {
                State::Open(listener) => {
                    report.written += usize::from(listener.retarget(&target));
                    // The address may be this machine's by now.
                    if complete && frontend.stand_in.is_some() {
                        missing.push((*key, target));
                    }
                }
                _ if target.refuses_everyone() => frontend.state = State::Refusing,
                _ => missing.push((*key, target)),
            }
        }
        report.removed = closing.len();
        closing.into_iter().for_each(Closing::wait);
        report.written += self.open(missing);
        report
    }

    fn open(&mut self, missing: Vec<(FrontendKey, Arc<Target>)>) -> usize {
        let handle = self.handle.clone();
        let _context = handle.enter();
        let mut opened = 0;
        let mut elsewhere = Vec::new();
        for (key, target) in missing {
            match self.bind_own(&key, &target, &mut elsewhere) {
                Ok(bound) => {
                    self.forget_stand_in(&key);
                    self.serve(key, bound, key.address, target);
                    opened += 1;
                }
                // Its stand-in goes on.
                Err(_) if self.frontends.get(&key).is_some_and(Frontend::is_open) => {}
                Err(Refusal::Elsewhere) => elsewhere.push((key, target)),
                Err(Refusal::Failed(cause)) => self.fail(key, cause),
            }
        }
        for (key, target) in elsewhere {
            match self.bind_stand_in(&key, &target) {
                Ok((bound, at)) => {
                    self.serve(key, bound, at, target);
                    opened += 1;
                }
                Err(error) => {
                    let loopback = socket::loopback(Family::of(&key.address.ip()));
                    let cause = format!("no port of {loopback} can be bound in its stead: {error}");
                    self.fail(key, cause);
                }
            }
        }
        opened
    }

    /// Binds the frontend's own address. One of our stand-ins that happens to be there makes room and is noted.
    fn bind_own(
        &mut self,
        key: &FrontendKey,
        target: &Target,
        displaced: &mut Vec<(FrontendKey, Arc<Target>)>,
    ) -> Result<Bound, Refusal> {
        if key.protocol == Protocol::Sctp {
            return Err(Refusal::failed(
                "not carried: the userspace backend relays TCP and UDP only",
            ));
        }
        if target.has_endpoint(key.address) {
            return Err(Refusal::failed("not needed: this is the address of its own endpoint"));
        }
        let node_port = self.frontends.get(key).is_some_and(Frontend::is_node_port);
        let mut bound = socket::bind(key.protocol, key.address);
        if let Err(error) = &bound
            && error.kind() == ErrorKind::AddrInUse
            && let Some(owner) = self.stand_ins.get(key).copied()
            && let Some(frontend) = self.frontends.get_mut(&owner)
        {
            if let Some(closing) = frontend.close() {
                closing.wait();
                displaced.extend(frontend.target().map(|target| (owner, target)));
            }
            self.forget_stand_in(&owner);
            bound = socket::bind(key.protocol, key.address);
        }
        bound.map_err(|error| match error.kind() {
            ErrorKind::AddrNotAvailable if node_port => Refusal::failed(
                "not served: this is not an address of this machine (check the Node's addresses and nodePortAddresses)",
            ),
            ErrorKind::AddrNotAvailable | ErrorKind::PermissionDenied if !node_port => Refusal::Elsewhere,
            _ => Refusal::Failed(explain(&error)),
        })
    }

    /// Binds the loopback address that the frontend had, or one that nobody has.
    fn bind_stand_in(&mut self, key: &FrontendKey, target: &Target) -> io::Result<(Bound, SocketAddr)> {
        let had = self.frontends.get(key).and_then(|frontend| frontend.stand_in);
        let mut last = io::Error::from(ErrorKind::AddrInUse);
        for address in had.into_iter().chain(stand_in::candidates(key, target)) {
            let candidate = FrontendKey { address, ..*key };
            if !self.is_free(&candidate, key) {
                continue;
            }
            match socket::bind(key.protocol, address) {
                Ok(bound) => {
                    let at = bound.local_addr()?;
                    if self.is_free(&FrontendKey { address: at, ..*key }, key) {
                        return Ok((bound, at));
                    }
                }
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// Whether no frontend wants this address for itself or as its stand-in, and no endpoint has it.
    fn is_free(&self, at: &FrontendKey, by: &FrontendKey) -> bool {
        !self.frontends.contains_key(at)
            && !self.loopback_endpoints.contains_key(at)
            && self.stand_ins.get(at).is_none_or(|owner| owner == by)
    }

    fn serve(&mut self, key: FrontendKey, bound: Bound, at: SocketAddr, target: Arc<Target>) {
        let Some(frontend) = self.frontends.get_mut(&key) else {
            return;
        };
        if at != key.address {
            frontend.stand_in = Some(at);
            self.stand_ins.insert(FrontendKey { address: at, ..key }, key);
        }
        let listener = Listener::open(bound, at, target, self.shared.clone(), &self.handle);
        frontend.state = State::Open(listener);
        tracing::debug!("{key}: {}", frontend.state.describe(&key));
    }

    /// Reports a cause once, not at each retry.
    fn fail(&mut self, key: FrontendKey, cause: String) {
        let Some(frontend) = self.frontends.get_mut(&key) else {
            return;
        };
        self.unbound.insert(key);
        let known = matches!(&frontend.state, State::Failed(before) if *before == cause);
        if !known {
            let claimant = frontend.claims.keys().next().map(ToString::to_string);
            tracing::warn!("{} {key}: {cause}", claimant.unwrap_or_default());
        }
        frontend.state = State::Failed(cause);
    }

    fn forget(&mut self, key: &FrontendKey) {
        self.forget_stand_in(key);
        self.frontends.remove(key);
    }

    fn forget_stand_in(&mut self, key: &FrontendKey) {
        if let Some(address) = self
            .frontends
            .get_mut(key)
            .and_then(|frontend| frontend.stand_in.take())
        {
            self.stand_ins.remove(&FrontendKey { address, ..*key });
        }
    }
}

/// Why a frontend's own address was not bound.
enum Refusal {
    /// A loopback address can stand in.
    Elsewhere,
    /// With the way out.
    Failed(String),
}

impl Refusal {
    fn failed(cause: &str) -> Self {
        Self::Failed(cause.to_owned())
    }
}
