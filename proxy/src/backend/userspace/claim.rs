//! From a Service's plan to claims: which frontend it wants at which address, and what it would do with clients there.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use portolan_model::{Family, Protocol, ServiceName};
use portolan_plan::{FrontendKind, PortPlan, ServicePlan};

use super::affinity::Affinity;
use super::target::Target;

/// Where a frontend is by the plan. It may be served elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct FrontendKey {
    /// Address and port.
    pub(super) address: SocketAddr,
    /// Transport protocol.
    pub(super) protocol: Protocol,
}

/// Who wants a frontend. When several do the first in this order has it: cluster IPs before addresses that anyone may
/// write into a Service, node ports last, then by name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Claimant {
    pub(super) kind: FrontendKind,
    pub(super) service: ServiceName,
    pub(super) port_name: Box<str>,
}

/// What one Service wants, with what has to outlive its plans.
#[derive(Debug, Default)]
pub(super) struct Claims {
    wishes: Vec<Wish>,
    affinity: BTreeMap<PortKey, Arc<Affinity>>,
}

type PortKey = (Box<str>, Protocol, Family);

#[derive(Debug)]
struct Wish {
    claimant: Claimant,
    protocol: Protocol,
    family: Family,
    /// `None` is each of the node port addresses.
    address: Option<IpAddr>,
    port: u16,
    target: Arc<Target>,
}

impl Claims {
    /// What the plan wants. Affinity of ports that are still there goes on; entries of endpoints that are gone end.
    pub(super) fn new(plan: &ServicePlan, mut before: Self) -> Self {
        let mut claims = Self::default();
        for port in &plan.ports {
            let key = (port.name.clone(), port.protocol, port.family);
            let table = port.affinity_seconds.map(|seconds| {
                let table = before.affinity.remove(&key).unwrap_or_default();
                table.keep(|endpoint| port.cluster.iter().chain(&port.local).any(|b| b.address == *endpoint));
                claims.affinity.insert(key, table.clone());
                (table, Duration::from_secs(seconds.into()))
            });
            claims.add_port(plan, port, table.as_ref());
        }
        claims
    }

    fn add_port(&mut self, plan: &ServicePlan, port: &PortPlan, affinity: Option<&(Arc<Affinity>, Duration)>) {
        let cluster: Arc<[SocketAddr]> = port.cluster.iter().map(|backend| backend.address).collect();
        let local: Arc<[SocketAddr]> = port.local.iter().map(|backend| backend.address).collect();
        for frontend in &port.frontends {
            let target = Arc::new(Target {
                service: plan.service.clone(),
                port_name: port.name.clone(),
                routes: frontend.routes,
                source_ranges: frontend.source_ranges.clone(),
                cluster: cluster.clone(),
                local: local.clone(),
                affinity: affinity.cloned(),
            });
            self.wishes.push(Wish {
                claimant: Claimant {
                    kind: frontend.kind,
                    service: plan.service.clone(),
                    port_name: port.name.clone(),
                },
                protocol: port.protocol,
                family: port.family,
                address: frontend.address,
                port: frontend.port,
                target,
            });
        }
    }

    /// Every frontend that is claimed, given the addresses that serve node ports.
    pub(super) fn frontends(&self, node_ports: &[IpAddr]) -> Vec<(FrontendKey, Claimant, Arc<Target>)> {
        let mut frontends = Vec::with_capacity(self.wishes.len());
        for wish in &self.wishes {
            let addresses = wish.address.as_ref().map_or(node_ports, std::slice::from_ref);
            for address in addresses.iter().filter(|address| Family::of(address) == wish.family) {
                let key = FrontendKey {
                    address: SocketAddr::new(*address, wish.port),
                    protocol: wish.protocol,
                };
                frontends.push((key, wish.claimant.clone(), wish.target.clone()));
            }
        }
        frontends
    }

    /// Endpoints on a loopback address: programs beside us, whose ports no listener of ours may take.
    pub(super) fn loopback_endpoints(&self) -> impl Iterator<Item = FrontendKey> {
        self.wishes.iter().flat_map(|wish| {
            let endpoints = wish.target.cluster.iter().chain(wish.target.local.iter());
            let loopback = endpoints.filter(|endpoint| endpoint.ip().is_loopback());
            loopback.map(|endpoint| FrontendKey {
                address: *endpoint,
                protocol: wish.protocol,
            })
        })
    }
}

impl fmt::Display for FrontendKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.protocol.lower())
    }
}

/// `default/web:http (cluster IP)`
impl fmt::Display for Claimant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.service)?;
        if !self.port_name.is_empty() {
            write!(f, ":{}", self.port_name)?;
        }
        write!(f, " ({})", self.kind)
    }
}
