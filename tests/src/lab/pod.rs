//! Pods of the lab: a namespace beside its node, two addresses, and one process that stands for its containers.

use std::net::IpAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};

use super::{Host, Lab};
use crate::addresses::{self, Pair};
use crate::netns;
use crate::probe;
use crate::process::{Place, Process, wait_until};

/// A port that the pod's server listens on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listen {
    /// `TCP` or `UDP`.
    pub protocol: String,
    /// The port.
    pub port: u16,
}

/// What a pod should be.
#[derive(Debug, Clone, Default)]
pub struct PodRequest {
    /// The Kubernetes namespace.
    pub namespace: String,
    /// The pod's name, which its server answers with.
    pub name: String,
    /// The host name that its processes see; the pod's name when empty.
    pub hostname: String,
    /// The node that it runs on.
    pub node: String,
    /// Uses the node's own network.
    pub host_network: bool,
    /// Its IPv4 address, inside the node's range; the next free one when `None`. The IPv6 address has the same last number.
    pub address: Option<std::net::Ipv4Addr>,
    /// What its server listens on. With nothing to listen on the pod runs no process.
    pub listen: Vec<Listen>,
}

/// A running pod. Dropping the last handle kills its process; its namespace goes with [`Lab::remove_pod`] or the lab.
#[derive(Debug)]
pub struct Pod {
    /// The Kubernetes namespace.
    pub namespace: String,
    /// The name.
    pub name: String,
    /// The node.
    pub node: String,
    /// Its addresses: the node's for a pod with `host_network`.
    pub address: Pair,
    /// Where its processes live.
    pub place: Place,
    host_network: bool,
    server: Option<Process>,
}

// === impl Pod ===

impl Pod {
    /// `namespace/name`.
    pub fn key(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    /// The process that stands for its containers, when it has one.
    pub fn server(&self) -> Option<&Process> {
        self.server.as_ref()
    }
}

impl Lab {
    /// Starts a pod: its namespace, addresses, routes and, when it listens on something, its server. Returns once the
    /// server listens.
    ///
    /// # Errors
    /// When the node does not exist, a pod of that name runs already, or no address is left.
    pub fn start_pod(&self, request: &PodRequest) -> Result<Arc<Pod>> {
        let name = format!("{}/{}", request.namespace, request.name);
        ensure!(self.pod(&name).is_none(), "pod {name} runs already");
        let node = self.node(&request.node).with_context(|| format!("pod {name}"))?;
        let (place, address) = if request.host_network {
            (node.place.clone(), node.address)
        } else {
            self.pod_network(node, request).with_context(|| format!("pod {name}"))?
        };
        let file = format!("{}.{}", request.namespace, request.name);
        let server = match request.listen.as_slice() {
            [] => None,
            listen => Some(self.serve(&place, &file, &request.name, listen)?),
        };
        let pod = Arc::new(Pod {
            namespace: request.namespace.clone(),
            name: request.name.clone(),
            node: request.node.clone(),
            address,
            place,
            host_network: request.host_network,
            server,
        });
        self.pods
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(name, Arc::clone(&pod));
        Ok(pod)
    }

    /// Ends a pod's process and takes its namespace away; silent when there is no such pod.
    pub fn remove_pod(&self, name: &str) {
        let removed = self
            .pods
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&key(name));
        let Some(pod) = removed else { return };
        if let Some(server) = &pod.server {
            server.kill();
        }
        if !pod.host_network {
            for pid in pod.place.netns.pids() {
                // SAFETY: a plain system call; the process was just seen inside the pod's own namespace.
                unsafe {
                    libc::kill(pid, libc::SIGKILL);
                }
            }
            // The node's end is deleted by name: the namespace itself lives on while anyone still holds it open.
            let _ = pod.place.netns.ip("link del eth0\n");
            netns::remove(pod.place.netns.name());
        }
    }

    fn pod_network(&self, node: &Host, request: &PodRequest) -> Result<(Place, Pair)> {
        let host = match request.address {
            Some(address) => match address.octets() {
                [10, 244, n, host] if n == node.index && host > 1 => host,
                _ => bail!("address {address} is not in {}", addresses::pod_ranges(node.index)[0]),
            },
            None => self.next_free(node)?,
        };
        let address = addresses::pod(node.index, host);
        ensure!(
            !self
                .pods()
                .iter()
                .any(|pod| !pod.host_network && pod.address == address),
            "address {} is in use by another pod",
            address.v4
        );
        let inside = format!("{}-{}.{}", self.id(), request.namespace, request.name);
        let mut made = netns::create(std::slice::from_ref(&inside), &[])?;
        let netns = Arc::new(made.pop().context("no namespace")?);
        let link = format!("pod{}", self.next_link.fetch_add(1, Ordering::Relaxed));
        let outside = node.place.netns.name();
        netns::batch(
            None,
            &format!("link add name eth0 netns {inside} type veth peer name {link} netns {outside}\n"),
        )?;
        let Pair { v4, v6 } = address;
        let Pair { v4: gw4, v6: gw6 } = addresses::pod(node.index, 1);
        netns.ip(&format!(
            "link set lo up\naddress add {v4}/32 dev eth0\naddress add {v6}/128 dev eth0 nodad\nlink set eth0 up\n\
             route add {gw4}/32 dev eth0 scope link src {v4}\nroute add default via {gw4} dev eth0 src {v4}\n\
             route add {gw6}/128 dev eth0\nroute add default via {gw6} dev eth0 src {v6}\n"
        ))?;
        node.place.netns.ip(&format!(
            "address add {gw4}/32 dev {link}\naddress add {gw6}/128 dev {link} nodad\nlink set {link} up\n\
             route add {v4}/32 dev {link} src {gw4}\nroute add {v6}/128 dev {link} src {gw6}\n"
        ))?;
        let hostname = if request.hostname.is_empty() {
            &request.name
        } else {
            &request.hostname
        };
        let place = Place {
            netns,
            cgroup: node.place.cgroup.clone(),
            hostname: Some(hostname.clone()),
            resolv_conf: Some(self.resolv_conf(&request.namespace)?),
        };
        Ok((place, address))
    }

    /// The next number that no pod of the node has, in turn, so that a number is not used again soon.
    fn next_free(&self, node: &Host) -> Result<u8> {
        let next = self
            .next_pod_host
            .get(usize::from(node.index) - 1)
            .context("no such node")?;
        let used: Vec<IpAddr> = self.pods().iter().map(|pod| IpAddr::V4(pod.address.v4)).collect();
        for _ in 0..253 {
            let host = next.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| {
                Some(if n >= 254 { 2 } else { n + 1 })
            });
            let host = host.unwrap_or(2);
            if !used.contains(&IpAddr::V4(addresses::pod(node.index, host).v4)) {
                return Ok(host);
            }
        }
        bail!("no address is left on {}", node.name)
    }

    /// Starts a server that answers with `name`, and returns once it listens.
    ///
    /// # Errors
    /// When a port is taken.
    pub fn serve(&self, place: &Place, file: &str, name: &str, listen: &[Listen]) -> Result<Process> {
        let mut command = place.command(probe::binary()?);
        command.args(["serve", "--name", name]);
        for Listen { protocol, port } in listen {
            let flag = if protocol.eq_ignore_ascii_case("udp") {
                "--udp"
            } else {
                "--tcp"
            };
            command.args([flag, &port.to_string()]);
        }
        let ready = self.scratch().join(format!("{file}.ready"));
        let _ = std::fs::remove_file(&ready);
        command.arg("--ready-file").arg(&ready);
        let process = Process::start(file, command, &self.scratch().join(format!("{file}.log")))?;
        let up = wait_until(Duration::from_secs(20), || ready.exists() || process.ended().is_some());
        ensure!(
            up && process.ended().is_none(),
            "the server {file} did not start\n{}",
            process.log_tail(20)
        );
        Ok(process)
    }

    /// The resolver configuration of pods of `namespace`, as the kubelet writes it for `dnsPolicy: ClusterFirst`.
    fn resolv_conf(&self, namespace: &str) -> Result<std::path::PathBuf> {
        self.write(
            &format!("resolv.conf.{namespace}"),
            &format!(
                "search {namespace}.svc.cluster.local svc.cluster.local cluster.local\nnameserver {}\noptions ndots:5\n",
                addresses::DNS_SERVICE.v4
            ),
        )
    }
}

/// `web-1` means `default/web-1`.
pub(super) fn key(name: &str) -> String {
    if name.contains('/') {
        name.to_owned()
    } else {
        format!("default/{name}")
    }
}
