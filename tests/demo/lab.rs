//! The demo on three nodes: network namespaces, the real daemons, and this program as every node's kubelet.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use portolan_lab::control_plane::ControlPlane;
use portolan_lab::lab::{Lab, Pod, PodRequest};
use portolan_lab::object::ObjectKey;
use portolan_lab::process::{Place, Process};
use portolan_lab::{binaries, cleanup};
use serde_json::json;

use crate::Options;
use crate::app::Answers;
use crate::checks::{self, Site, Story};
use crate::manifests::{self, Manifests, NAMESPACE};

/// The raised cluster. Its parts are dropped in the order in which they stand: clients before servers, the lab last.
struct Nodes {
    folder: PathBuf,
    program: PathBuf,
    processes: Vec<Process>,
    pods: Vec<Arc<Pod>>,
    control_plane: Option<ControlPlane>,
    lab: Lab,
}

/// Runs the demo in the lab.
pub fn run(options: &Options) -> Result<ExitCode> {
    cleanup::on_signals();
    for id in cleanup::sweep(false) {
        println!("removed {id}, which an earlier run could not");
    }
    let mut story = Story::new();
    let manifests = Manifests::read(&options.manifests)?;
    story.step(&format!("the application's manifests, to read and to edit: {}", options.manifests.display()));
    let nodes = Nodes::raise(options, &manifests, &story)?;
    story.step("waiting until the application answers");
    checks::wait_until_up(&nodes, &manifests)?;
    checks::run(&nodes, &manifests, &mut story)?;
    let good = story.end();
    if options.keep {
        nodes.keep(&manifests)?;
    } else {
        drop(nodes);
        story.step("everything is taken down");
    }
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Takes down what `--keep` left up.
pub fn down() -> Result<()> {
    let gone = cleanup::sweep(true);
    println!("{} labs taken down {}", gone.len(), gone.join(" "));
    Ok(())
}

// === impl Nodes ===

impl Nodes {
    fn raise(options: &Options, manifests: &Manifests, story: &Story) -> Result<Self> {
        story.step("a lab of three nodes and one host outside, each a network namespace");
        let lab = Lab::builder().nodes(3).outside(1).control_plane(options.api_server).build()?;
        let mut nodes = Nodes {
            folder: options.manifests.canonicalize().context("the folder of manifests")?,
            program: std::env::current_exe()?,
            processes: Vec::new(),
            pods: Vec::new(),
            control_plane: None,
            lab,
        };
        if options.api_server {
            story.step("etcd, kube-apiserver, kube-controller-manager");
            nodes.start_control_plane(manifests, story)?;
        }
        for pod in &manifests.pods {
            nodes.start_pod(pod)?;
        }
        let names: Vec<&str> = manifests.pods.iter().map(|pod| pod.name.as_str()).collect();
        story.step(&format!("pods, each with a network namespace of its own: {}", names.join(" ")));
        nodes.start_proxies(&options.backend)?;
        story.step(&format!("portolan-proxy --backend {} on every node", options.backend));
        Ok(nodes)
    }

    fn start_control_plane(&mut self, manifests: &Manifests, story: &Story) -> Result<()> {
        let plane = ControlPlane::start(&self.lab)?;
        let host = self.lab.control_plane().context("the lab has no control plane")?;
        let folder = self.folder.display().to_string();
        let said = plane.kubectl(host, &["apply", "-f", &folder])?;
        story.step(&format!("kubectl apply -f {folder}: {} objects", said.lines().count()));
        for pod in &manifests.pods {
            // What a kubelet reports once the containers run.
            plane.api().patch_status(&pod_key(&pod.namespace, &pod.name), &json!({ "status": pod.status }))?;
        }
        self.control_plane = Some(plane);
        Ok(())
    }

    /// The flags that tell a daemon where the cluster's objects are.
    fn source(&self, user: &str) -> [String; 2] {
        match &self.control_plane {
            Some(plane) => ["--kubeconfig".to_owned(), plane.kubeconfig(user).display().to_string()],
            None => ["--manifests".to_owned(), self.folder.display().to_string()],
        }
    }

    fn start_pod(&mut self, pod: &manifests::Pod) -> Result<()> {
        let started = self.lab.start_pod(&PodRequest {
            namespace: pod.namespace.clone(),
            name: pod.name.clone(),
            hostname: pod.hostname.clone(),
            node: pod.node.clone(),
            address: Some(pod.address),
            ..PodRequest::default()
        })?;
        let mut place = started.place.clone();
        if !pod.cluster_dns {
            place.resolv_conf = None;
        }
        let listen = SocketAddr::from((pod.address, pod.port)).to_string();
        let command = match pod.image.as_str() {
            "portolan-demo" => {
                let mut command = place.command(&self.program);
                command.args(&pod.args).args(["--name", &pod.name, "--listen", &listen]);
                command
            }
            "portolan-dns" => {
                let mut command = place.command(binaries::find("PORTOLAN_DNS", "portolan-dns")?);
                command.args(&pod.args).args(self.source("portolan-dns")).args(["--listen", &listen]);
                command
            }
            image => anyhow::bail!("pod {}: the demo has no image {image:?}, only portolan-demo and portolan-dns", pod.name),
        };
        let log = self.lab.scratch().join(format!("{}.log", pod.name));
        self.processes.push(Process::start(&pod.name, command, &log)?);
        self.pods.push(started);
        Ok(())
    }

    fn start_proxies(&mut self, backend: &str) -> Result<()> {
        let program = binaries::find("PORTOLAN_PROXY", "portolan-proxy")?;
        for node in self.lab.nodes() {
            let mut command = node.place.command(&program);
            command.args(self.source("system:kube-proxy")).args(["--node-name", &node.name, "--backend", backend]);
            if let Some(cgroup) = &node.place.cgroup {
                command.arg("--cgroup").arg(cgroup);
            }
            let name = format!("portolan-proxy on {}", node.name);
            let log = self.lab.scratch().join(format!("portolan-proxy-{}.log", node.name));
            self.processes.push(Process::start(&name, command, &log)?);
        }
        Ok(())
    }

    fn place(&self, name: &str) -> Result<Place> {
        match self.lab.pod(&format!("{NAMESPACE}/{name}")) {
            Some(pod) => Ok(pod.place.clone()),
            None => self.lab.place(name),
        }
    }

    /// Leaves everything running and prints how to look at it.
    fn keep(self, manifests: &Manifests) -> Result<()> {
        let pid = |name: &str| self.processes.iter().find(|process| process.name() == name).map(Process::pid);
        let client = manifests.pods_of("frontend")?.into_iter().next().context("no pod of the frontend is ready")?;
        let (node, program) = (self.lab.node("node-1")?, self.program.display());
        let port = manifests.node_port("frontend")?;
        println!("\nThe cluster stays up. Logs are in {}.", self.lab.scratch().display());
        println!("From outside:      ip netns exec {} {program} get http://{}:{port}/", self.netns("outside-1")?, node.address.v4);
        if let Some(pid) = pid(&client) {
            println!("In a pod:          nsenter -t {pid} -n -m -u {program} get http://backend/");
        }
        println!("A node's rules:    ip netns exec {} nft list ruleset", self.netns("node-1")?);
        println!("Edit and watch:    {}", self.folder.display());
        if let Some(plane) = &self.control_plane {
            let (config, host) = (plane.kubeconfig("admin"), self.netns("control-plane")?);
            println!("The API server:    ip netns exec {host} kubectl --kubeconfig {} get all -A", config.display());
        }
        println!("Take it down:      cargo xtask demo --down");
        std::mem::forget((self.processes, self.pods, self.control_plane));
        self.lab.keep()
    }

    fn netns(&self, name: &str) -> Result<String> {
        Ok(self.lab.place(name)?.netns.name().to_owned())
    }
}

impl Site for Nodes {
    fn lookup(&self, from: &str, name: &str) -> Result<BTreeSet<IpAddr>> {
        let text = self.place(from)?.output(&self.program, ["lookup", name])?;
        Ok(serde_json::from_str(&text)?)
    }

    fn get(&self, from: &str, url: &str, count: u32) -> Result<Answers> {
        let text = self.place(from)?.output(&self.program, ["get", url, "--count", &count.to_string()])?;
        Ok(serde_json::from_str(&text)?)
    }

    fn node_addresses(&self) -> Vec<(String, IpAddr)> {
        self.lab.nodes().iter().map(|node| (node.name.clone(), IpAddr::V4(node.address.v4))).collect()
    }

    fn host(&self) -> String {
        "node-3".to_owned()
    }

    fn outside(&self) -> String {
        "outside-1".to_owned()
    }

    fn set_ready(&self, pod: &str, ready: bool) -> Result<String> {
        if let Some(plane) = &self.control_plane {
            let status = if ready { "True" } else { "False" };
            let patch = json!({ "status": { "conditions": [{ "type": "Ready", "status": status }] } });
            plane.api().patch_status(&pod_key(NAMESPACE, pod), &patch)?;
            return Ok(format!("its status at the API server says Ready: {status}"));
        }
        let (from, to) = (manifests::ready_condition(!ready), manifests::ready_condition(ready));
        let file = manifests::edit_pod(&self.folder, pod, |text| text.replace(&from, &to))?;
        Ok(format!("{} now says {to}", file.display()))
    }

    fn dead(&self) -> Option<String> {
        let process = self.processes.iter().find(|process| process.ended().is_some())?;
        Some(format!("{} has ended\n{}", process.name(), process.log_tail(15)))
    }
}

fn pod_key(namespace: &str, name: &str) -> ObjectKey {
    ObjectKey::namespaced("Pod", namespace, name)
}
