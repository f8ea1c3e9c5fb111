//! The lab: nodes, pods and outside hosts as network namespaces around one routed fabric.
//!
//! ```text
//!   outside-1 ----+               +---- node-1 ---- pods 10.244.1.2, .3, ...
//!   outside-2 ----+--- fabric ----+---- node-2 ---- pods 10.244.2.2, ...
//!   control-plane +   (routes)    +---- node-3 ---- pods 10.244.3.2, ...
//! ```
//!
//! Every link is a veth pair and everything is routed: there is no bridge, so a packet from one node to another really
//! passes the fabric, and a pod's packet really passes its node. A pod has a /32 (and a /128) and reaches the world through
//! the gateway address 10.244.N.1 that its node holds on the node's end of the pair, as the `ptp` CNI plugin does it.
//! The fabric knows the nodes, the pod ranges and the outside hosts; load balancer addresses and cluster IPs only after
//! [`Lab::route`] said which node takes them.
//!
//! The lab never touches an address, route or rule outside the namespaces that it made.

mod pod;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU8, AtomicU32};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, Result};

use crate::addresses::{self, Pair};
use crate::netns::{self, Netns};
use crate::process::Place;
use crate::{cgroup, cleanup};

pub use self::pod::{Listen, Pod, PodRequest};

/// Settings of a machine that forwards packets: a node or the fabric. Redirects are off because they share the kernel's
/// per-peer limit with the rejects that the scenarios look at.
const ROUTER: [(&str, &str); 4] = [
    ("net.ipv4.ip_forward", "1"),
    ("net.ipv6.conf.all.forwarding", "1"),
    ("net.ipv4.conf.all.send_redirects", "0"),
    ("net.ipv4.conf.default.send_redirects", "0"),
];

/// What a lab is made of. Start with [`Lab::builder`].
#[derive(Debug, Clone)]
pub struct Builder {
    nodes: u8,
    outside: u8,
    second_addresses: bool,
    control_plane: bool,
}

/// A machine with a namespace of its own: a node, an outside host or the control plane.
#[derive(Debug)]
pub struct Host {
    /// Its name in the lab: `node-1`, `outside-1`, `control-plane`.
    pub name: String,
    /// Its number among its kind, counted from 1.
    pub index: u8,
    /// Where its processes live.
    pub place: Place,
    /// Its primary addresses.
    pub address: Pair,
    /// Its second addresses, when the lab was built with them.
    pub second: Option<Pair>,
}

/// A raised lab. Dropping it removes everything it made.
#[derive(Debug)]
pub struct Lab {
    id: String,
    scratch: PathBuf,
    fabric: Netns,
    nodes: Vec<Host>,
    outside: Vec<Host>,
    control_plane: Option<Host>,
    pods: Mutex<BTreeMap<String, Arc<Pod>>>,
    next_pod_host: Vec<AtomicU8>,
    next_link: AtomicU32,
    keep: bool,
}

// === impl Builder ===

impl Builder {
    /// How many nodes (default 3, at most 199).
    #[must_use]
    pub fn nodes(mut self, nodes: u8) -> Self {
        self.nodes = nodes;
        self
    }

    /// How many hosts outside the cluster (default 1).
    #[must_use]
    pub fn outside(mut self, hosts: u8) -> Self {
        self.outside = hosts;
        self
    }

    /// Gives every node a second address on its fabric link (default off).
    #[must_use]
    pub fn second_addresses(mut self, yes: bool) -> Self {
        self.second_addresses = yes;
        self
    }

    /// Adds the namespace in which a control plane can run (default off).
    #[must_use]
    pub fn control_plane(mut self, yes: bool) -> Self {
        self.control_plane = yes;
        self
    }

    /// Raises the lab.
    ///
    /// # Errors
    /// When the caller is not root, or iproute2 or cgroup2 are missing.
    pub fn build(self) -> Result<Lab> {
        let (id, scratch) = cleanup::claim()?;
        // From here on everything that was made goes away again, whichever step fails.
        let guard = RemoveOnDrop(&id);
        let lab = self.raise(&id, &scratch).context("the lab cannot be raised")?;
        std::mem::forget(guard);
        Ok(lab)
    }

    fn raise(&self, id: &str, scratch: &Path) -> Result<Lab> {
        let node_names: Vec<String> = (1..=self.nodes).map(|n| format!("node-{n}")).collect();
        let groups = cgroup::create(id, &node_names)?;
        let full = |name: &str| format!("{id}-{name}");
        let mut fabric = netns::create(&[full("fabric")], &ROUTER)?;
        let fabric = fabric.pop().context("no fabric")?;

        let host = |name: String, index: u8, settings: &[(&str, &str)], address, second, cgroup| -> Result<Host> {
            let mut made = netns::create(&[full(&name)], settings)?;
            let netns = Arc::new(made.pop().context("no namespace")?);
            let place = Place {
                netns,
                cgroup,
                hostname: Some(name.clone()),
                resolv_conf: None,
            };
            Ok(Host {
                name,
                index,
                place,
                address,
                second,
            })
        };
        let mut nodes = Vec::new();
        for (n, name) in (1..).zip(&node_names) {
            let second = self.second_addresses.then(|| addresses::node_second(n));
            nodes.push(host(
                name.clone(),
                n,
                &ROUTER,
                addresses::node(n),
                second,
                Some(groups.join(name)),
            )?);
        }
        let mut outside = Vec::new();
        for k in 1..=self.outside {
            outside.push(host(format!("outside-{k}"), k, &[], addresses::outside(k), None, None)?);
        }
        let control_plane = if self.control_plane {
            Some(host(
                "control-plane".to_owned(),
                1,
                &[],
                addresses::CONTROL_PLANE,
                None,
                None,
            )?)
        } else {
            None
        };
        let lab = Lab {
            id: id.to_owned(),
            scratch: scratch.to_owned(),
            fabric,
            next_pod_host: nodes.iter().map(|_| AtomicU8::new(2)).collect(),
            nodes,
            outside,
            control_plane,
            pods: Mutex::default(),
            next_link: AtomicU32::new(1),
            keep: false,
        };
        lab.connect()?;
        Ok(lab)
    }
}

// === impl Lab ===

impl Lab {
    /// A lab of three nodes and one outside host, unless the builder is told otherwise.
    pub fn builder() -> Builder {
        Builder {
            nodes: 3,
            outside: 1,
            second_addresses: false,
            control_plane: false,
        }
    }

    /// The lab's id, the prefix of its namespaces: `pl4711-0`.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The lab's directory for logs and configuration; it goes with the lab.
    pub fn scratch(&self) -> &Path {
        &self.scratch
    }

    /// The nodes, in order.
    pub fn nodes(&self) -> &[Host] {
        &self.nodes
    }

    /// The outside hosts, in order.
    pub fn outside(&self) -> &[Host] {
        &self.outside
    }

    /// The control plane's host, when the lab was built with one.
    pub fn control_plane(&self) -> Option<&Host> {
        self.control_plane.as_ref()
    }

    /// The machine called `name`: `node-2`, `outside-1` (or `outside` for the first), `control-plane`.
    pub fn host(&self, name: &str) -> Option<&Host> {
        let name = if name == "outside" { "outside-1" } else { name };
        self.nodes
            .iter()
            .chain(&self.outside)
            .chain(&self.control_plane)
            .find(|host| host.name == name)
    }

    /// The node called `name`.
    ///
    /// # Errors
    /// When the lab has no such node.
    pub fn node(&self, name: &str) -> Result<&Host> {
        self.nodes.iter().find(|node| node.name == name).with_context(|| {
            let known: Vec<&str> = self.nodes.iter().map(|node| node.name.as_str()).collect();
            format!("the lab has no node {name:?}, only {}", known.join(", "))
        })
    }

    /// Where processes of `name` live: a machine, or a pod as `name` (namespace default) or `namespace/name`.
    ///
    /// # Errors
    /// When there is nothing of that name.
    pub fn place(&self, name: &str) -> Result<Place> {
        if let Some(host) = self.host(name) {
            return Ok(host.place.clone());
        }
        self.pod(name)
            .map(|pod| pod.place.clone())
            .with_context(|| format!("the lab has no machine or pod {name:?}"))
    }

    /// The pod `name` or `namespace/name`, while it exists.
    pub fn pod(&self, name: &str) -> Option<Arc<Pod>> {
        self.pods
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&pod::key(name))
            .cloned()
    }

    /// All pods that exist, by `namespace/name`.
    pub fn pods(&self) -> Vec<Arc<Pod>> {
        self.pods
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .values()
            .cloned()
            .collect()
    }

    /// Sends everything for `destination` (an address or a prefix) that passes the fabric to `node`; `None` takes the route
    /// away. This is what the network around a cluster does with load balancer addresses.
    ///
    /// # Errors
    /// When the lab has no such node or the destination is not an address.
    pub fn route(&self, destination: &str, node: Option<&str>) -> Result<()> {
        let v6 = destination.contains(':');
        let family = if v6 { "-6" } else { "-4" };
        let command = match node {
            Some(name) => {
                let via = self.node(name)?.address;
                let via: IpAddr = if v6 { via.v6.into() } else { via.v4.into() };
                format!("route replace {destination} via {via}")
            }
            None => format!("route del {destination}"),
        };
        let output = std::process::Command::new("ip")
            .args(["-n", self.fabric.name(), family])
            .args(command.split(' '))
            .output()
            .context("the ip command cannot be started")?;
        anyhow::ensure!(
            output.status.success(),
            "{command}: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
        Ok(())
    }

    /// Leaves the lab in place when this handle is dropped, and when this process ends. [`cleanup::sweep`] with
    /// `also_kept` removes it later.
    ///
    /// # Errors
    /// When the mark that says so cannot be written.
    pub fn keep(mut self) -> Result<()> {
        cleanup::keep(&self.id)?;
        self.keep = true;
        // The pods' processes are killed by their owner when they are dropped: they are left to themselves instead.
        std::mem::forget(self);
        Ok(())
    }

    /// Makes every link, address and route between the fabric and the machines.
    fn connect(&self) -> Result<()> {
        let machines: Vec<&Host> = self
            .nodes
            .iter()
            .chain(&self.outside)
            .chain(&self.control_plane)
            .collect();
        let fabric = self.fabric.name();
        let mut links = String::new();
        let mut routes = String::from("link set lo up\n");
        for host in &machines {
            let (name, inside) = (&host.name, host.place.netns.name());
            links += &format!("link add name eth0 netns {inside} type veth peer name {name} netns {fabric}\n");
            routes += &fabric_side(host);
        }
        netns::batch(None, &links)?;
        std::thread::scope(|scope| -> Result<()> {
            let work: Vec<_> = machines
                .iter()
                .map(|host| scope.spawn(move || host.place.netns.ip(&machine_side(host))))
                .collect();
            self.fabric.ip(&routes)?;
            for thread in work {
                thread
                    .join()
                    .map_err(|_| anyhow::anyhow!("a thread that connects the lab panicked"))??;
            }
            Ok(())
        })
    }

    /// Writes a file into the scratch directory and returns its path.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, name: &str, text: &str) -> Result<PathBuf> {
        let file = self.scratch.join(name);
        fs::write(&file, text).with_context(|| format!("{} cannot be written", file.display()))?;
        Ok(file)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if !self.keep {
            self.pods.lock().unwrap_or_else(PoisonError::into_inner).clear();
            cleanup::remove(&self.id);
        }
    }
}

/// Removes a half-raised lab.
struct RemoveOnDrop<'a>(&'a str);

impl Drop for RemoveOnDrop<'_> {
    fn drop(&mut self) {
        cleanup::remove(self.0);
    }
}

fn fabric_side(host: &Host) -> String {
    let Host {
        name,
        address: Pair { v4, v6 },
        ..
    } = host;
    let Pair { v4: gw4, v6: gw6 } = addresses::FABRIC;
    let mut text = format!(
        "address add {gw4}/32 dev {name}\naddress add {gw6}/64 dev {name} nodad\nlink set {name} up\n\
         route add {v4}/32 dev {name}\nroute add {v6}/128 dev {name}\n"
    );
    if let Some(second) = host.second {
        text += &format!(
            "route add {}/32 dev {name}\nroute add {}/128 dev {name}\n",
            second.v4, second.v6
        );
    }
    if host.place.cgroup.is_some() {
        let [pods4, pods6] = addresses::pod_ranges(host.index);
        text += &format!("route add {pods4} via {v4}\nroute add {pods6} via {v6}\n");
    }
    text
}

fn machine_side(host: &Host) -> String {
    let Host {
        address: Pair { v4, v6 },
        ..
    } = host;
    let Pair { v4: gw4, v6: gw6 } = addresses::FABRIC;
    let mut text = format!(
        "link set lo up\naddress add {v4}/32 dev eth0\naddress add {v6}/128 dev eth0 nodad\nlink set eth0 up\n\
         route add {gw4}/32 dev eth0 scope link src {v4}\nroute add default via {gw4} dev eth0 src {v4}\n\
         route add default via {gw6} dev eth0 src {v6}\n"
    );
    if let Some(second) = host.second {
        text += &format!(
            "address add {}/32 dev eth0\naddress add {}/128 dev eth0 nodad\n",
            second.v4, second.v6
        );
    }
    text
}
