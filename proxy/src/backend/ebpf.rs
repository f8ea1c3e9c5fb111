//! The eBPF backend: Services at the socket, at the price of a direct connection.
//!
//! [`EbpfBackend`] fills maps from plans ([`mirror`], [`elements`]); programs at a cgroup look a connection's destination up
//! once, when it is made, and replace it by an endpoint's. Maps and links are pinned ([`pins`]): the daemon can be killed and
//! replaced while connections are made.
//!
//! What no socket hook sees (packets from outside, from a runtime outside of the cgroup, frontends with source ranges) is
//! carried by another backend from the same plans: the net underneath.

mod compile;
mod elements;
mod live;
mod load;
mod mirror;
mod node;
mod numbers;
mod object;
mod pins;
mod probe;
mod programs;
mod removal;
mod sight;
mod sys;

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Context;
use portolan_model::ServiceName;
use portolan_plan::{Explanation, NodePlan};
use prometheus_client::collector::Collector;
use tracing::{info, warn};

pub use self::live::live;
pub use self::probe::{Proof, probe};

use self::elements::{Difference, Elements};
use self::load::{Globals, Loaded, Sizes};
use self::mirror::Mirror;
use self::pins::Pins;
use self::removal::Removal;
use self::sight::Sight;
use super::{Backend, BackendError, Change, Inspection, Report};

/// Where maps and links are pinned when nobody says otherwise.
pub const DEFAULT_BPFFS: &str = "/sys/fs/bpf/portolan";

/// The least number of elements that a map is made for.
const LEAST: u32 = 1024;
/// A map is made larger when more than this many parts of a hundred are in use.
const FULL: u64 = 90;

/// Choices of the operator.
#[derive(Clone, Debug)]
pub struct EbpfOptions {
    /// The cgroup2 directory that programs are attached to; `None` is the root of the mounted hierarchy.
    pub cgroup: Option<PathBuf>,
    /// Where maps and links are pinned.
    pub bpffs: PathBuf,
    /// Only the node's own sockets are looked at; pods' connections are left to the net underneath. For meshes that
    /// intercept pods' connections by the Service's address.
    pub host_only: bool,
    /// Elements that a map may grow to. Services that find no room are left to the net underneath.
    pub map_size: u32,
}

/// The eBPF backend of one node.
pub struct EbpfBackend<N> {
    /// The net underneath.
    net: N,
    pins: Pins,
    cgroup: PathBuf,
    globals: Globals,
    mirror: Mirror,
    loaded: Option<Loaded>,
    sizes: Sizes,
    /// Elements that a map may grow to.
    largest: u32,
    /// Services that found no room.
    left_out: BTreeSet<ServiceName>,
    /// How many elements there are.
    counts: Counts,
    sight: Sight,
    removal: Removal,
    /// The mirror is what the maps hold. Not so before the first complete change and after a failure.
    known: bool,
}

/// How many elements each of the plans' maps holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    addresses: usize,
    frontends: usize,
    backends: usize,
    members: usize,
    ports: u32,
    endpoints: u32,
}

// === impl EbpfBackend ===

impl<N: Backend> EbpfBackend<N> {
    /// Prepares the folder of pins. Programs are loaded with the first complete change, when sizes are known.
    ///
    /// # Errors
    /// When this binary has no programs, or the kernel has no cgroup2 or BPF file system for us.
    pub fn new(options: &EbpfOptions, net: N) -> anyhow::Result<Self> {
        object::object()?;
        let cgroup = node::cgroup(options.cgroup.as_deref())?;
        let pins = Pins::open(&options.bpffs)
            .with_context(|| format!("--bpffs {}: cannot pin maps there", options.bpffs.display()))?;
        Ok(Self {
            net,
            pins,
            cgroup,
            globals: Globals {
                node_netns: node::netns_cookie(),
                can_set_retval: true,
                host_only: options.host_only,
            },
            mirror: Mirror::default(),
            loaded: None,
            sizes: Sizes::default(),
            largest: options.map_size,
            left_out: BTreeSet::new(),
            counts: Counts::default(),
            sight: Sight::default(),
            removal: Removal::start().context("cannot start a thread")?,
            known: false,
        })
    }

    fn apply_sockets(&mut self, change: &Change) -> Result<Report, BackendError> {
        let start = Instant::now();
        let difference = if change.complete {
            self.apply_complete(change)
                .map_err(|error| system("cannot program the socket hooks", &error))?
        } else if self.known {
            self.apply_changes(change)
                .map_err(|error| system("cannot change the maps of the socket hooks", &error))?
        } else {
            return Err(BackendError::System {
                what: "what the maps hold is not known".into(),
                source: io::Error::other("a complete change has to come first"),
            });
        };
        self.sight.set_maps(self.counts.beside(&self.sizes));
        if change.complete {
            // Whatever went while nobody watched.
            self.removal.look();
        } else {
            self.removal.follow(&difference);
        }
        let (written, removed) = difference.size();
        Ok(Report {
            written,
            removed,
            took: start.elapsed(),
            ..Report::default()
        })
    }

    /// Reads what the maps hold, makes them what they have to be, and lets the links run our programs.
    fn apply_complete(&mut self, change: &Change) -> anyhow::Result<Difference> {
        self.known = false;
        self.mirror = Mirror::default();
        self.left_out.clear();
        let first = self.loaded.is_none();
        if first {
            let generation = self.pins.generations().pop().unwrap_or(1);
            self.load(generation, Sizes::default())?;
        }
        let found = self.loaded()?.read().context("cannot read the maps")?;
        self.mirror = Mirror::adopt(change, &found);
        if found != Elements::default() {
            self.loaded()?
                .reset_endpoints(self.mirror.fresh())
                .context("cannot reset counters")?;
        }
        self.count();
        let mut difference = None;
        if self.counts.need_more_than(&self.sizes) {
            match self.grow() {
                Ok(filled) => difference = Some(filled),
                Err(error) => self.leave_out_the_last(&error),
            }
        }
        let difference = match difference {
            Some(difference) => difference,
            None => {
                let difference = Difference::between(&found, &self.mirror.elements());
                self.loaded()?.write(&difference).context("cannot write the maps")?;
                if first {
                    self.attach()?;
                }
                difference
            }
        };
        let labels = self.mirror.labels(self.mirror.names());
        self.sight.set_ports(labels.collect());
        self.known = true;
        Ok(difference)
    }

    fn apply_changes(&mut self, change: &Change) -> anyhow::Result<Difference> {
        self.known = false;
        for plan in &change.plans {
            self.left_out.remove(&plan.service);
        }
        for service in &change.removed {
            self.left_out.remove(service);
        }
        let mut difference = self.mirror.change(change);
        self.counts.add(&difference, self.mirror.limits());
        // Names first: a number that another Service had begins to count at zero.
        let labels = self.mirror.labels(change.plans.iter().map(|plan| &plan.service));
        self.sight
            .change_ports(self.mirror.retired(), labels)
            .context("cannot reset counters")?;
        self.loaded()?
            .reset_endpoints(self.mirror.fresh())
            .context("cannot reset counters")?;
        let mut written = false;
        if self.counts.need_more_than(&self.sizes) {
            // Elements are counted anew: numbers that are free again take no room.
            self.count();
            match self.grow() {
                Ok(_) => written = true,
                Err(error) => {
                    self.leave_out(change.plans.iter().map(|plan| plan.service.clone()).collect(), &error);
                    let found = self.loaded()?.read().context("cannot read the maps")?;
                    difference = Difference::between(&found, &self.mirror.elements());
                }
            }
        }
        if !written {
            self.loaded()?.write(&difference).context("cannot write the maps")?;
        }
        self.known = true;
        Ok(difference)
    }

    fn count(&mut self) {
        self.counts = Counts::of(&self.mirror.elements(), self.mirror.limits());
    }

    /// Makes larger maps, fills them, and switches the programs over: nobody sees a map that is not complete. Nothing has
    /// changed when that fails.
    fn grow(&mut self) -> anyhow::Result<Difference> {
        let sizes = self.counts.sizes(self.largest);
        anyhow::ensure!(
            !self.counts.need_more_than(&sizes),
            "an eBPF map may have {} elements at most (--ebpf-map-size)",
            self.largest
        );
        let generation = self.pins.generations().pop().unwrap_or(0) + 1;
        info!(
            generation,
            endpoints = self.counts.backends,
            "the eBPF maps become too small: making larger ones"
        );
        let larger = Loaded::new(&self.pins, generation, &sizes, self.globals);
        let larger = larger.inspect_err(|_| self.pins.remove_generation(generation))?;
        let wanted = self.mirror.elements();
        let difference = Difference::between(&Elements::default(), &wanted);
        if let Err(error) = larger.write(&difference) {
            self.pins.remove_generation(generation);
            return Err(error).context("cannot fill the larger maps");
        }
        let old = self.loaded.take();
        self.take(larger)?;
        self.attach()?;
        // After the switch: what is counted meanwhile is lost to the figures, and to nobody else.
        if let Some(old) = old {
            let (ports, endpoints) = self.mirror.limits();
            self.loaded()?
                .copy_counters(&old, ports, endpoints)
                .context("cannot copy counters")?;
        }
        self.sight.grown();
        Ok(difference)
    }

    /// The maps are full and cannot grow: these Services are carried by the net underneath, packet by packet, until they
    /// change or everything is looked at again.
    fn leave_out(&mut self, services: Vec<ServiceName>, why: &anyhow::Error) {
        let first = services.first().map(ToString::to_string).unwrap_or_default();
        warn!(
            services = services.len(),
            first, "the eBPF maps cannot grow, so Services are left to kernel rules: {why:#}"
        );
        self.mirror.change(&Change {
            removed: services.clone(),
            ..Change::default()
        });
        self.left_out.extend(services);
        self.count();
    }

    /// Leaves Services out, the last ones by name, until the others fit.
    fn leave_out_the_last(&mut self, why: &anyhow::Error) {
        while self.counts.need_more_than(&self.sizes) {
            let names: Vec<ServiceName> = self.mirror.names().cloned().collect();
            let share = (names.len() / 8).max(1);
            let last = names.len().saturating_sub(share);
            let services = names.get(last..).unwrap_or_default().to_vec();
            if services.is_empty() {
                return;
            }
            self.leave_out(services, why);
        }
    }

    fn load(&mut self, generation: u32, sizes: Sizes) -> anyhow::Result<()> {
        let loaded = Loaded::new(&self.pins, generation, &sizes, self.globals)?;
        self.take(loaded)
    }

    fn take(&mut self, loaded: Loaded) -> anyhow::Result<()> {
        self.sizes = loaded.sizes().context("cannot ask for the maps' sizes")?;
        let counters = loaded.map("PORT_COUNTERS")?.try_clone_to_owned();
        self.sight.switch(counters.context("cannot keep the counters open")?);
        let (reverse, members) = (loaded.map("REVERSE")?, loaded.map("MEMBERS")?);
        self.removal
            .switch(reverse.try_clone_to_owned()?, members.try_clone_to_owned()?);
        self.loaded = Some(loaded);
        Ok(())
    }

    fn attach(&mut self) -> anyhow::Result<()> {
        let loaded = self.loaded.as_mut().context("nothing is loaded")?;
        loaded.attach(&self.pins, &self.cgroup)?;
        self.pins.keep_only(loaded.generation);
        Ok(())
    }

    fn loaded(&self) -> anyhow::Result<&Loaded> {
        self.loaded.as_ref().context("nothing is loaded")
    }
}

fn system(what: &str, error: &anyhow::Error) -> BackendError {
    BackendError::System {
        what: what.into(),
        source: io::Error::other(portolan_agent::telemetry::one_line(error.as_ref())),
    }
}

impl<N: Backend> Backend for EbpfBackend<N> {
    fn name(&self) -> &'static str {
        "ebpf"
    }

    /// The net first: what a socket is not sent to an endpoint for, it must already catch.
    fn apply(&mut self, change: &Change) -> Result<Report, BackendError> {
        let net = self.net.apply(change);
        let sockets = self.apply_sockets(change)?;
        let net = net?;
        Ok(Report {
            written: net.written + sockets.written,
            removed: net.removed + sockets.removed,
            took: net.took + sockets.took,
            ..net
        })
    }

    fn status(&self) -> Vec<(String, String)> {
        let line = |key: &str, value: String| (key.to_owned(), value);
        let hooks: Vec<&str> = programs::SOCKET_HOOKS.iter().map(|hook| hook.name).collect();
        let mut lines = vec![
            line("programs", hooks.join(" ")),
            line("cgroup", self.cgroup.display().to_string()),
            line("pinned in", self.pins.root().display().to_string()),
            line("in sync", if self.known { "yes" } else { "no" }.into()),
            line("services", self.mirror.services().to_string()),
            line(
                "contested frontends",
                self.mirror.claims().contested().count().to_string(),
            ),
        ];
        if !self.left_out.is_empty() {
            let left_out = format!("{} Services, for want of room in the maps", self.left_out.len());
            lines.push(line("left to kernel rules", left_out));
        }
        let maps = self.sight.maps().into_iter();
        lines.extend(maps.map(|(name, count, size)| line(&format!("map {name}"), format!("{count} of {size}"))));
        let net = self.net.status().into_iter();
        lines.extend(net.map(|(key, value)| (format!("{} {key}", self.net.name()), value)));
        lines
    }

    fn collector(&self) -> Option<Box<dyn Collector>> {
        Some(Box::new(self.sight.clone()))
    }

    fn programs(&self) -> Option<String> {
        self.net.programs()
    }

    fn inspect(&mut self, explanation: &Explanation, node: &NodePlan) -> Option<io::Result<Inspection>> {
        self.net.inspect(explanation, node)
    }

    /// The newer process takes over the maps or replaces them: what is pinned then is adopted when it is our turn again.
    fn stand_by(&mut self) {
        self.known = false;
        self.loaded = None;
        self.net.stand_by();
    }

    fn stop(&mut self) {
        self.net.stop();
    }
}

// === impl Counts ===

impl Counts {
    fn of(elements: &Elements, (ports, endpoints): (u32, u32)) -> Self {
        Self {
            addresses: elements.addresses.len(),
            frontends: elements.frontends.len(),
            backends: elements.backends.len(),
            members: elements.members.len(),
            ports,
            endpoints,
        }
    }

    /// Takes a change in.
    fn add(&mut self, difference: &Difference, (ports, endpoints): (u32, u32)) {
        let sum = |count: usize, new: usize, gone: usize| (count + new).saturating_sub(gone);
        self.addresses = sum(
            self.addresses,
            difference.new.addresses,
            difference.gone_addresses.len(),
        );
        self.frontends = sum(
            self.frontends,
            difference.new.frontends,
            difference.gone_frontends.len(),
        );
        self.backends = sum(self.backends, difference.new.backends, difference.gone_backends.len());
        self.members = sum(self.members, difference.new.members, difference.gone_members.len());
        self.ports = ports;
        self.endpoints = endpoints;
    }

    /// Each map with its elements and its size.
    fn beside(&self, sizes: &Sizes) -> Vec<(&'static str, usize, u32)> {
        vec![
            ("addresses", self.addresses, sizes.addresses),
            ("frontends", self.frontends, sizes.frontends),
            ("backends", self.backends, sizes.backends),
            ("members", self.members, sizes.members),
            ("ports", self.ports as usize, sizes.ports),
            ("endpoints", self.endpoints as usize, sizes.endpoints),
        ]
    }

    fn need_more_than(&self, sizes: &Sizes) -> bool {
        let full = |count: usize, size: u32| count as u64 * 100 > u64::from(size) * FULL;
        full(self.addresses, sizes.addresses)
            || full(self.frontends, sizes.frontends)
            || full(self.backends, sizes.backends)
            || full(self.members, sizes.members)
            || self.ports > sizes.ports
            || self.endpoints > sizes.endpoints
    }

    /// Twice what is needed now, as far as that is allowed.
    fn sizes(&self, largest: u32) -> Sizes {
        let room = |count: usize| {
            let count = u32::try_from(count).unwrap_or(u32::MAX / 4).min(u32::MAX / 4);
            (count * 2).max(LEAST).next_power_of_two().min(largest)
        };
        let ports = room(self.ports as usize);
        Sizes {
            addresses: room(self.addresses),
            frontends: room(self.frontends),
            sets: ports.saturating_mul(portolan_abi::SETS_OF_A_PORT),
            backends: room(self.backends),
            members: room(self.members),
            ports,
            endpoints: room(self.endpoints as usize),
            ..Sizes::default()
        }
    }
}

/// Removes everything that is pinned in a folder. Yields how many programs ended.
///
/// # Errors
/// Never at present: what cannot be removed is logged.
pub fn cleanup(bpffs: &Path) -> io::Result<usize> {
    match Pins::existing(bpffs) {
        Some(pins) => Ok(pins.remove_all()),
        None => Ok(0),
    }
}
