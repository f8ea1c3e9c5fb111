//! The demo on three nodes: the lab's namespaces, pods and control plane, and the real daemons.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use portolan_lab::cleanup;
use portolan_lab::cluster::{Cluster, PodState};
use portolan_lab::daemon::Daemon;
use portolan_lab::lab::{Host, Lab};
use portolan_lab::object::{ObjectKey, merge};
use portolan_lab::process::{Place, Process, wait_until};
use portolan_lab::subject::{DnsSubject, ProxySubject, dns_service};
use serde_json::{Value, json};

use crate::Options;
use crate::app::Answers;
use crate::checks::{self, Pods, Site, Story};
use crate::manifests::{Manifests, NAMESPACE, labels, text};

/// How long the controllers may take to make the application's pods.
const PATIENCE: Duration = Duration::from_secs(60);
/// The pod that the DNS server runs in.
const DNS_POD: &str = "dns";

/// The raised cluster. Fields are dropped in this order: the daemons end before the objects and the lab go.
struct Nodes {
    daemons: Vec<Daemon>,
    program: PathBuf,
    manifests: Manifests,
    cluster: Cluster,
}

/// Runs the demo in the lab.
pub fn run(options: &Options) -> Result<ExitCode> {
    cleanup::on_signals();
    for id in cleanup::sweep(false) {
        println!("removed {id}, which an earlier run could not");
    }
    let mut story = Story::new();
    story.step(&format!(
        "the application's manifests, to read and to edit: {}",
        options.manifests.display()
    ));
    let nodes = Nodes::raise(options, &story)?;
    story.step("waiting until the application answers");
    checks::wait_until_up(&nodes, &nodes.manifests)?;
    checks::run(&nodes, &nodes.manifests, &mut story)?;
    let good = story.end();
    if options.keep {
        nodes.keep(&options.manifests)?;
    } else {
        drop(nodes);
        story.step("everything is taken down");
    }
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Takes down what `--keep` left up.
pub fn down() {
    let gone = cleanup::sweep(true);
    println!("{} labs taken down {}", gone.len(), gone.join(" "));
}

// === impl Nodes ===

impl Nodes {
    fn raise(options: &Options, story: &Story) -> Result<Self> {
        let manifests = Manifests::read(&options.manifests)?;
        let subjects = subjects(options)?;
        story.step("a lab: three nodes and one host outside, each a network namespace");
        let lab = Lab::builder()
            .nodes(3)
            .outside(1)
            .control_plane(options.api_server)
            .build()?;
        let cluster = if options.api_server {
            story.step("etcd, kube-apiserver, kube-controller-manager");
            Cluster::with_api_server(lab)?
        } else {
            let folder = options.manifests.canonicalize().context("the folder of manifests")?;
            Cluster::from_manifests(lab, &folder)?
        };
        let mut nodes = Nodes {
            daemons: Vec::new(),
            program: std::env::current_exe()?,
            manifests,
            cluster,
        };
        nodes.apply(&options.manifests, story)?;
        nodes.start_daemons(subjects, story)?;
        Ok(nodes)
    }

    /// Applies the application and makes its pods run.
    fn apply(&self, folder: &Path, story: &Story) -> Result<()> {
        match self.cluster.control_plane() {
            Some(plane) => {
                let host = self
                    .cluster
                    .lab()
                    .control_plane()
                    .context("the lab has no control plane")?;
                let folder = folder.display().to_string();
                story.step(&format!("kubectl apply -f {folder}"));
                let said = plane.kubectl(host, &["apply", "-f", &folder])?;
                said.lines().for_each(|line| println!("             {line}"));
                self.schedule()?;
            }
            None => {
                // What the folder says and the lab would otherwise write again.
                for object in self.manifests.objects() {
                    if matches!(
                        text(object, "/kind").as_str(),
                        "Namespace" | "Deployment" | "StatefulSet"
                    ) {
                        self.cluster.adopt(object)?;
                    }
                }
                for workload in self.manifests.workloads() {
                    self.cluster.apply(workload)?;
                }
            }
        }
        let pods = self.cluster.lab().pods();
        let running: Vec<String> = pods.iter().map(|pod| format!("{} on {}", pod.name, pod.node)).collect();
        story.step(&format!("pods, each a network namespace: {}", running.join(", ")));
        self.cluster.apply(&dns_service())?;
        self.cluster.apply(&json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": { "name": DNS_POD, "namespace": "kube-system", "labels": { "k8s-app": "kube-dns" } },
            "spec": { "nodeName": "node-1", "dnsPolicy": "Default" },
        }))
    }

    /// The scheduler's part: waits for the pods that the controllers make and gives each the node with the fewest. They run then.
    fn schedule(&self) -> Result<()> {
        let api = self
            .cluster
            .control_plane()
            .context("the lab has no control plane")?
            .api();
        let wanted: u64 = self
            .manifests
            .workloads()
            .filter_map(|set| set.pointer("/spec/replicas")?.as_u64())
            .sum();
        let path = format!("/api/v1/namespaces/{NAMESPACE}/pods");
        let mut pods = Vec::new();
        // A StatefulSet makes its next pod when the one before it is ready: run what is there, then look again.
        let all = wait_until(PATIENCE, || {
            pods = api.list(&path).unwrap_or_default();
            let placed = pods.iter().all(|pod| match self.place_pod(pod) {
                Ok(()) => true,
                Err(error) => {
                    println!("             {error:#}");
                    false
                }
            });
            placed && u64::try_from(pods.len()).is_ok_and(|found| found >= wanted)
        });
        ensure!(all, "the controllers made {} of {wanted} pods", pods.len());
        Ok(())
    }

    fn place_pod(&self, pod: &Value) -> Result<()> {
        let name = text(pod, "/metadata/name");
        if self.cluster.lab().pod(&format!("{NAMESPACE}/{name}")).is_some() {
            return Ok(());
        }
        let lab = self.cluster.lab();
        let load = |node: &&Host| lab.pods().iter().filter(|pod| pod.node == node.name).count();
        let node = &lab
            .nodes()
            .iter()
            .min_by_key(load)
            .context("the lab has no nodes")?
            .name;
        let api = self
            .cluster
            .control_plane()
            .context("the lab has no control plane")?
            .api();
        api.bind(&ObjectKey::namespaced("Pod", NAMESPACE, &name), node)?;
        let mut spec = pod.get("spec").cloned().unwrap_or_default();
        merge(&mut spec, &json!({ "nodeName": node }));
        self.cluster.apply(&json!({
            "apiVersion": "v1", "kind": "Pod", "spec": spec,
            "metadata": { "name": name, "namespace": NAMESPACE, "labels": pod.pointer("/metadata/labels") },
        }))
    }

    fn start_daemons(&mut self, (proxy, dns): (ProxySubject, DnsSubject), story: &Story) -> Result<()> {
        let (lab, source) = (self.cluster.lab(), self.cluster.source());
        let pod = lab
            .pod(&format!("kube-system/{DNS_POD}"))
            .context("the DNS server has no pod")?;
        // Nobody resolves names of the world outside here; the first outside host would be asked for them.
        let upstream = lab.outside().first().context("the lab has no outside host")?.address.v4;
        self.daemons.extend(dns.start(lab, &pod, &source, upstream.into())?);
        for node in lab.nodes() {
            self.daemons.push(proxy.start(lab, node, &source)?);
        }
        for daemon in &self.daemons {
            daemon.wait_ready()?;
        }
        story.step(&format!(
            "{} on every node and {} DNS in a pod are ready",
            proxy.name(),
            dns.name()
        ));
        Ok(())
    }

    fn place(&self, name: &str) -> Result<Place> {
        let lab = self.cluster.lab();
        lab.pod(&format!("{NAMESPACE}/{name}"))
            .map_or_else(|| lab.place(name), |pod| Ok(pod.place.clone()))
    }

    /// Leaves everything running and prints how to look at it.
    fn keep(self, folder: &Path) -> Result<()> {
        let lab = self.cluster.lab();
        let netns = |name: &str| self.place(name).map(|place| place.netns.name().to_owned());
        let client = self
            .pods("frontend")?
            .into_keys()
            .next()
            .context("no pod of the frontend is ready")?;
        let server = lab
            .pod(&format!("{NAMESPACE}/{client}"))
            .and_then(|pod| pod.server().map(Process::pid));
        let (program, address) = (self.program.display(), lab.node("node-1")?.address.v4);
        let port = self.manifests.service("frontend")?.node_port.unwrap_or_default();
        println!("\nThe cluster stays up.");
        println!(
            "  from outside:    ip netns exec {} {program} get http://{address}:{port}/",
            netns("outside-1")?
        );
        if let Some(pid) = server {
            println!("  in pod {client}: nsenter -t {pid} -n -m -u {program} get http://backend/");
        }
        println!("  a node's rules:  ip netns exec {} nft list ruleset", netns("node-1")?);
        println!("  logs:            {}", lab.scratch().display());
        if let Some(plane) = self.cluster.control_plane() {
            let (config, host) = (plane.kubeconfig("admin"), netns("control-plane")?);
            println!(
                "  the API server:  ip netns exec {host} kubectl --kubeconfig {} get all -A",
                config.display()
            );
        } else {
            println!(
                "  the objects:     {} (edit them: the daemons follow)",
                folder.display()
            );
        }
        println!("  take it down:    cargo xtask demo --down");
        cleanup::keep(lab.id())?;
        // Dropping would end what is to stay.
        std::mem::forget(self);
        Ok(())
    }
}

impl Site for Nodes {
    fn pods(&self, service: &str) -> Result<Pods> {
        let selector = self.manifests.service(service)?.selector;
        let mut found = Pods::new();
        for pod in self
            .cluster
            .lab()
            .pods()
            .iter()
            .filter(|pod| pod.namespace == NAMESPACE)
        {
            let key = ObjectKey::namespaced("Pod", NAMESPACE, &pod.name);
            let object = self.cluster.get(&key)?.with_context(|| format!("there is no {key}"))?;
            let own = labels(&object, "/metadata/labels");
            if is_ready(&object) && selector.iter().all(|(name, value)| own.get(name) == Some(value)) {
                found.insert(pod.name.clone(), IpAddr::V4(pod.address.v4));
            }
        }
        Ok(found)
    }

    fn lookup(&self, from: &str, name: &str) -> Result<BTreeSet<IpAddr>> {
        Ok(serde_json::from_str(
            &self.place(from)?.output(&self.program, ["lookup", name])?,
        )?)
    }

    fn resolver(&self, from: &str) -> String {
        format!("in pod {from} by the system's own resolver")
    }

    fn get(&self, from: &str, url: &str, count: u32) -> Result<Answers> {
        let count = count.to_string();
        Ok(serde_json::from_str(
            &self
                .place(from)?
                .output(&self.program, ["get", url, "--count", &count])?,
        )?)
    }

    fn nodes(&self) -> Vec<(String, IpAddr)> {
        let nodes = self.cluster.lab().nodes();
        nodes
            .iter()
            .map(|node| (node.name.clone(), IpAddr::V4(node.address.v4)))
            .collect()
    }

    fn host(&self) -> String {
        "node-3".to_owned()
    }

    fn outside(&self) -> String {
        "outside-1".to_owned()
    }

    fn set_ready(&self, pod: &str, ready: bool) -> Result<()> {
        self.cluster.set_pod(
            &format!("{NAMESPACE}/{pod}"),
            if ready { PodState::Ready } else { PodState::NotReady },
        )
    }

    fn dead(&self) -> Option<String> {
        let daemon = self.daemons.iter().find(|daemon| daemon.ended())?;
        Some(format!("{} has ended\n{}", daemon.name(), daemon.log_tail(15)))
    }
}

fn is_ready(object: &Value) -> bool {
    let conditions = object.pointer("/status/conditions").and_then(Value::as_array);
    conditions
        .into_iter()
        .flatten()
        .any(|c| text(c, "/type") == "Ready" && text(c, "/status") == "True")
}

/// Which programs run: ours, or with `kube-proxy` the real kube-proxy and CoreDNS in their place, to see the same story.
fn subjects(options: &Options) -> Result<(ProxySubject, DnsSubject)> {
    let proxy = match options.backend.as_str() {
        "auto" => ProxySubject::Nft,
        other => ProxySubject::parse(other)?,
    };
    if proxy.is_ours() {
        return Ok((proxy, DnsSubject::Portolan));
    }
    ensure!(options.api_server, "the real kube-proxy and CoreDNS need --api-server");
    Ok((proxy, DnsSubject::CoreDns))
}
