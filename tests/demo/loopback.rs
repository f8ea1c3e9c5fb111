//! The demo on the loopback address: no root, any operating system.
//!
//! Pods are threads of this program with a loopback address each (where the system has only one they share it, with other
//! ports). Cluster IPs are nobody's address here, so the userspace backend listens in their place on loopback ports, which
//! it names in its status; the client below goes there, as `portolan-proxy status` tells a developer to.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use hickory_proto::op::{Message, MessageType, OpCode, Query};
use hickory_proto::rr::{Name, RData, RecordType};
use serde_json::{Value, json};

use crate::Options;
use crate::app::{self, Answers, GetOptions, split_url};
use crate::checks::{self, Pods, Site, Story};
use crate::manifests::{Manifests, NAMESPACE, labels, port, text};

const NODE: &str = "this-machine";
/// What a name is tried with, as the kubelet's resolv.conf says.
const SEARCH: [&str; 3] = ["shop.svc.cluster.local", "svc.cluster.local", "cluster.local"];

/// The application on this machine.
struct Loopback {
    folder: PathBuf,
    manifests: Manifests,
    pods: Vec<Pod>,
    daemons: Arc<Mutex<Vec<Daemon>>>,
    proxy: PathBuf,
    /// Where the proxy's status is served, and where the DNS server listens.
    status: SocketAddr,
    dns: SocketAddr,
}

/// A thread that stands for a pod.
struct Pod {
    name: String,
    object: Value,
    address: SocketAddr,
    ready: Mutex<bool>,
}

struct Daemon {
    name: &'static str,
    child: Child,
    log: PathBuf,
}

/// Runs the demo on this machine.
pub fn run(options: &Options) -> Result<ExitCode> {
    let mut story = Story::new();
    story.step(&format!(
        "the application's manifests, to read and to edit: {}",
        options.manifests.display()
    ));
    let site = Loopback::raise(&options.manifests, &story)?;
    story.step("waiting until the application answers");
    checks::wait_until_up(&site, &site.manifests)?;
    checks::run(&site, &site.manifests, &mut story)?;
    let good = story.end();
    if options.keep {
        site.stay();
    }
    drop(site);
    story.step("everything is taken down");
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

// === impl Loopback ===

impl Loopback {
    fn raise(folder: &Path, story: &Story) -> Result<Self> {
        let manifests = Manifests::read(folder)?;
        let near = std::env::current_exe()?
            .with_file_name("portolan-proxy")
            .with_extension(std::env::consts::EXE_EXTENSION);
        let site = Loopback {
            folder: folder.to_owned(),
            pods: pods(&manifests)?,
            manifests,
            daemons: Arc::default(),
            proxy: near,
            status: free_port()?,
            dns: free_port()?,
        };
        site.write(
            "node",
            &json!({
                "apiVersion": "v1", "kind": "Node", "metadata": { "name": NODE },
                "status": { "addresses": [{ "type": "InternalIP", "address": "127.0.0.1" }] },
            }),
        )?;
        for pod in &site.pods {
            site.write_pod(pod)?;
        }
        let places: Vec<String> = site
            .pods
            .iter()
            .map(|pod| format!("{} at {}", pod.name, pod.address))
            .collect();
        story.step(&format!("pods, each a thread: {}", places.join(", ")));
        site.start_daemons()?;
        story.step("portolan-proxy (userspace backend) and portolan-dns");
        Ok(site)
    }

    fn start_daemons(&self) -> Result<()> {
        end_on_signals(Arc::clone(&self.daemons))?;
        // Every port of both is a free one: the usual ones may be in use on a developer's machine.
        let free = || free_port().map(|address| address.to_string());
        self.start(
            "portolan-proxy",
            &[
                ("--node-name", NODE.to_owned()),
                ("--backend", "userspace".to_owned()),
                ("--metrics-bind-address", self.status.to_string()),
                ("--healthz-bind-address", free()?),
            ],
        )?;
        self.start(
            "portolan-dns",
            &[
                ("--listen", self.dns.to_string()),
                ("--health-bind-address", free()?),
                ("--ready-bind-address", free()?),
                ("--metrics-bind-address", free()?),
                // Only the cluster's names are asked for, and there need not be a resolv.conf.
                ("--upstream", free()?),
            ],
        )
    }

    fn start(&self, name: &'static str, flags: &[(&str, String)]) -> Result<()> {
        let program = self
            .proxy
            .with_file_name(name)
            .with_extension(std::env::consts::EXE_EXTENSION);
        let log = self.folder.join(format!("{name}.log"));
        let out = std::fs::File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
        let mut command = Command::new(&program);
        command.arg("--manifests").arg(&self.folder);
        command
            .args(flags.iter().flat_map(|(flag, value)| [*flag, value.as_str()]))
            .stdin(Stdio::null())
            .stdout(out.try_clone()?)
            .stderr(out);
        let child = command
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        lock(&self.daemons).push(Daemon { name, child, log });
        Ok(())
    }

    fn write(&self, name: &str, object: &Value) -> Result<()> {
        let file = self.folder.join(format!("generated.{name}.json"));
        // Written beside and renamed: whoever follows the folder never reads half of it.
        let draft = file.with_extension("draft");
        std::fs::write(&draft, serde_json::to_vec_pretty(object)?)?;
        std::fs::rename(&draft, &file).with_context(|| format!("cannot write {}", file.display()))
    }

    fn write_pod(&self, pod: &Pod) -> Result<()> {
        let ready = if *lock(&pod.ready) { "True" } else { "False" };
        let ip = pod.address.ip();
        let mut object = pod.object.clone();
        object["status"] = json!({
            "phase": "Running", "podIP": ip, "podIPs": [{ "ip": ip }], "conditions": [{ "type": "Ready", "status": ready }],
        });
        self.write(&format!("pod.{}", pod.name), &object)
    }

    /// Where the proxy really listens for each frontend that is not this machine's own address.
    fn relays(&self) -> Result<BTreeMap<SocketAddr, SocketAddr>> {
        let status = Command::new(&self.proxy)
            .args(["status", "--output", "json", "--address", &self.status.to_string()])
            .output()
            .with_context(|| format!("cannot start {}", self.proxy.display()))?;
        let status: Value =
            serde_json::from_slice(&status.stdout).context("portolan-proxy status printed no JSON yet")?;
        let lines: Vec<(String, String)> =
            serde_json::from_value(status.get("programmed").cloned().unwrap_or_default()).unwrap_or_default();
        Ok(lines.iter().filter_map(|(key, value)| relay(key, value)).collect())
    }

    /// Asks the cluster's DNS, with the search list for a short name.
    fn resolve(&self, name: &str) -> Result<BTreeSet<IpAddr>> {
        let listed = SEARCH.iter().map(|domain| format!("{name}.{domain}."));
        for full in listed.chain([format!("{name}.")]) {
            let found = query(self.dns, &full)?;
            if !found.is_empty() {
                return Ok(found);
            }
        }
        bail!("{name} does not resolve at {}", self.dns)
    }

    /// Stays up until Ctrl-C ends the program.
    fn stay(&self) {
        println!("\nThe application stays up until Ctrl-C.");
        println!(
            "  where Services are:  {} status --address {}",
            self.proxy.display(),
            self.status
        );
        println!(
            "  names:               dig @{} -p {} backend.{NAMESPACE}.svc.cluster.local",
            self.dns.ip(),
            self.dns.port()
        );
        println!(
            "  the objects:         {} (edit them: the daemons follow)",
            self.folder.display()
        );
        loop {
            std::thread::park();
        }
    }
}

impl Drop for Loopback {
    fn drop(&mut self) {
        end(&self.daemons);
    }
}

impl Site for Loopback {
    fn pods(&self, service: &str) -> Result<Pods> {
        let selector = self.manifests.service(service)?.selector;
        let selected = self.pods.iter().filter(|pod| {
            let own = labels(&pod.object, "/metadata/labels");
            *lock(&pod.ready) && selector.iter().all(|(name, value)| own.get(name) == Some(value))
        });
        Ok(selected.map(|pod| (pod.name.clone(), pod.address.ip())).collect())
    }

    fn lookup(&self, _: &str, name: &str) -> Result<BTreeSet<IpAddr>> {
        self.resolve(name)
    }

    fn resolver(&self, _: &str) -> String {
        format!("as a pod's resolver does, by portolan-dns at {}", self.dns)
    }

    fn get(&self, _: &str, url: &str, count: u32) -> Result<Answers> {
        let (host, port, path) = split_url(url)?;
        let ip = match host.parse() {
            Ok(ip) => ip,
            Err(_) => self.resolve(host)?.into_iter().next().context("no address")?,
        };
        let wanted = SocketAddr::new(ip, port);
        let at = self.relays()?.get(&wanted).copied().unwrap_or(wanted);
        Ok(app::get(&GetOptions {
            url: format!("http://{at}/{path}"),
            count,
        }))
    }

    fn nodes(&self) -> Vec<(String, IpAddr)> {
        vec![(NODE.to_owned(), IpAddr::V4(Ipv4Addr::LOCALHOST))]
    }

    fn host(&self) -> String {
        NODE.to_owned()
    }

    fn outside(&self) -> String {
        NODE.to_owned()
    }

    fn set_ready(&self, pod: &str, ready: bool) -> Result<()> {
        let pod = self
            .pods
            .iter()
            .find(|one| one.name == pod)
            .with_context(|| format!("there is no pod {pod}"))?;
        *lock(&pod.ready) = ready;
        self.write_pod(pod)
    }

    fn dead(&self) -> Option<String> {
        let mut daemons = lock(&self.daemons);
        let daemon = daemons
            .iter_mut()
            .find_map(|daemon| daemon.child.try_wait().ok().flatten().map(|_| &*daemon))?;
        let log = std::fs::read_to_string(&daemon.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        let end = lines.get(lines.len().saturating_sub(15)..).unwrap_or_default();
        Some(format!("{} has ended\n{}", daemon.name, end.join("\n")))
    }
}

/// The pods of the manifests' workloads, each serving already.
fn pods(manifests: &Manifests) -> Result<Vec<Pod>> {
    let mut pods = Vec::new();
    for workload in manifests.workloads() {
        let name = text(workload, "/metadata/name");
        let replicas = workload.pointer("/spec/replicas").and_then(Value::as_u64).unwrap_or(1);
        for index in 0..replicas {
            pods.push(pod(workload, &name, index, pods.len()).with_context(|| format!("workload {name}"))?);
        }
    }
    Ok(pods)
}

fn pod(workload: &Value, workload_name: &str, index: u64, number: usize) -> Result<Pod> {
    let name = format!("{workload_name}-{index}");
    let wanted =
        port(workload, "/spec/template/spec/containers/0/ports/0/containerPort").context("no containerPort")?;
    let listener = listen(number, wanted)?;
    let address = listener.local_addr()?;
    let mut object = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": name, "namespace": NAMESPACE, "labels": labels(workload, "/spec/template/metadata/labels") },
        "spec": { "nodeName": NODE, "containers": [{
            "name": "thread", "image": "portolan-demo",
            "ports": [{ "containerPort": address.port(), "name": text(workload, "/spec/template/spec/containers/0/ports/0/name") }],
        }]},
    });
    if text(workload, "/kind") == "StatefulSet" {
        object["spec"]["hostname"] = json!(name);
        object["spec"]["subdomain"] = json!(text(workload, "/spec/serviceName"));
    }
    let server = name.clone();
    std::thread::spawn(move || app::serve(&listener, &server));
    Ok(Pod {
        name,
        object,
        address,
        ready: Mutex::new(true),
    })
}

/// An address of its own for each pod where the system has many, then the port that the manifest names, then any.
fn listen(number: usize, wanted: u16) -> Result<TcpListener> {
    let own = Ipv4Addr::new(127, 10, 244, u8::try_from(number + 1).unwrap_or(u8::MAX));
    let places = [(own, wanted), (Ipv4Addr::LOCALHOST, wanted), (Ipv4Addr::LOCALHOST, 0)];
    let listener = places.iter().find_map(|place| TcpListener::bind(place).ok());
    listener.context("no loopback port is free")
}

fn free_port() -> Result<SocketAddr> {
    // Both protocols are tried, because a DNS server needs both.
    for _ in 0..16 {
        let address = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
        if UdpSocket::bind(address).is_ok() {
            return Ok(address);
        }
    }
    bail!("no loopback port is free for TCP and UDP")
}

/// `shop/backend:http (cluster IP) 10.96.3.4:80/tcp` and `listening on 127.0.0.1:20443 (…)`: a client of the first goes to
/// the second.
fn relay(key: &str, value: &str) -> Option<(SocketAddr, SocketAddr)> {
    let frontend = key.rsplit(' ').next()?.strip_suffix("/tcp")?.parse().ok()?;
    let at = value.strip_prefix("listening on ")?.split(' ').next()?.parse().ok()?;
    Some((frontend, at))
}

/// The A records of a name; none for a name that does not exist.
fn query(server: SocketAddr, name: &str) -> Result<BTreeSet<IpAddr>> {
    const ID: u16 = 4711;
    let mut message = Message::new(ID, MessageType::Query, OpCode::Query);
    message.add_query(Query::query(Name::from_ascii(name)?, RecordType::A));
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    socket.connect(server)?;
    socket.set_read_timeout(Some(Duration::from_secs(2)))?;
    socket.send(&message.to_vec()?)?;
    let mut buffer = [0; 4096];
    let length = socket
        .recv(&mut buffer)
        .with_context(|| format!("DNS server {server} does not answer"))?;
    let reply = Message::from_vec(buffer.get(..length).unwrap_or_default())?;
    ensure!(reply.metadata.id == ID, "the DNS server answered another question");
    let addresses = reply.answers.iter().filter_map(|record| match &record.data {
        RData::A(a) => Some(IpAddr::V4(a.0)),
        _ => None,
    });
    Ok(addresses.collect())
}

/// Ends the daemons when this program is told to end.
fn end_on_signals(daemons: Arc<Mutex<Vec<Daemon>>>) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::spawn(move || {
        runtime.block_on(told_to_end());
        eprintln!("taking everything down");
        end(&daemons);
        std::process::exit(130);
    });
    Ok(())
}

#[cfg(unix)]
async fn told_to_end() {
    use tokio::signal::unix::{SignalKind, signal};
    match signal(SignalKind::terminate()) {
        Ok(mut terminate) => tokio::select! {
            _ = tokio::signal::ctrl_c() => {}
            _ = terminate.recv() => {}
        },
        Err(_) => drop(tokio::signal::ctrl_c().await),
    }
}

#[cfg(not(unix))]
async fn told_to_end() {
    drop(tokio::signal::ctrl_c().await);
}

fn end(daemons: &Mutex<Vec<Daemon>>) {
    for mut daemon in lock(daemons).drain(..) {
        let _ = daemon.child.kill();
        let _ = daemon.child.wait();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_tells_where_a_frontend_is() {
        let check = |key, value, expect: Option<(&str, &str)>| {
            let expect = expect.map(|(from, to)| (from.parse().expect("an address"), to.parse().expect("an address")));
            assert_eq!(relay(key, value), expect, "{key}: {value}");
        };
        let key = "shop/backend:http (cluster IP) 10.96.3.4:80/tcp";
        let elsewhere = "listening on 127.0.0.1:20443 (10.96.3.4 cannot be bound on this machine)";
        check(key, elsewhere, Some(("10.96.3.4:80", "127.0.0.1:20443")));
        check(
            "shop/frontend:http (node port) 127.0.0.1:30080/tcp",
            "listening on 127.0.0.1:30080",
            Some(("127.0.0.1:30080", "127.0.0.1:30080")),
        );
        check(key, "not listening: no endpoint, connections are refused", None);
        check(
            "kube-system/dns (cluster IP) 10.96.0.10:53/udp",
            "listening on 127.0.0.1:20053",
            None,
        );
        check("udp flows", "0", None);
    }
}
