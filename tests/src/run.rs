//! Runs scenarios: one raised cluster with its daemons, through which scenarios pass one after the other.
//!
//! A scenario leaves nothing behind: what it created is deleted, routes and nodes are put back, daemons that it ended are
//! started again, and connection tracking is emptied. After a failure the session must not be used again.

mod evaluate;
mod opened;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};

use crate::cluster::{Cluster, Follower, PodState};
use crate::daemon::Daemon;
use crate::lab::{Lab, Pod};
use crate::object::ObjectKey;
use crate::probe;
use crate::process::{Process, wait_until};
use crate::scenario::check::Check;
use crate::scenario::{Action, DaemonAction, Scenario};
use crate::subject::{DnsSubject, ProxySubject, Source, dns_service};

use self::opened::{Kind, Opened};

/// How long a check may take to hold: the slowest thing that a scenario waits for is a daemon's resync.
const WINDOW: Duration = Duration::from_secs(20);

/// What the world outside the cluster calls itself, for forwarded names.
const OUTSIDE_RECORDS: [&str; 6] = [
    "database.company.com=203.0.113.77",
    "database.company.com=fd00:113::77",
    "www.example.com=198.51.100.80",
    "www.example.com=fd00:51::80",
    "alias.example.com=www.example.com",
    "only4.example.com=198.51.100.81",
];

/// What a session is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Setup {
    /// Which program makes Services work.
    pub proxy: ProxySubject,
    /// Which program answers DNS.
    pub dns: DnsSubject,
    /// Objects on a real API server instead of in a folder.
    pub api: bool,
}

/// A raised cluster with its daemons.
#[derive(Debug)]
pub struct Session {
    setup: Setup,
    proxies: BTreeMap<String, Daemon>,
    dns: Option<Daemon>,
    // Daemons end before the cluster does.
    _upstream: Process,
    // So does whoever else holds the cluster.
    _follower: Option<Follower>,
    cluster: Arc<Cluster>,
}

/// What a scenario has made and has to be undone.
#[derive(Default)]
struct Made {
    objects: BTreeSet<ObjectKey>,
    nodes: BTreeSet<ObjectKey>,
    routes: BTreeSet<String>,
    opened: BTreeMap<String, Opened>,
    servers: Vec<Process>,
    /// The proxies run with another configuration than in the beginning.
    configured: bool,
}

// === impl Session ===

impl Session {
    /// Raises a cluster of three nodes and two outside hosts, starts the daemons and waits until they are ready.
    ///
    /// # Errors
    /// When anything does not start; the message says what and holds the end of its log.
    pub fn start(setup: Setup) -> Result<Self> {
        let lab = Lab::builder()
            .nodes(3)
            .outside(2)
            .second_addresses(true)
            .control_plane(setup.api)
            .build()?;
        let cluster = Arc::new(if setup.api {
            Cluster::with_api_server(lab)?
        } else {
            let dir = lab.scratch().join("manifests");
            Cluster::from_manifests(lab, &dir)?
        });
        let follower = if setup.api { Some(cluster.follow_pods()?) } else { None };
        let upstream = start_upstream(cluster.lab())?;
        let dns = start_dns(&cluster, setup.dns)?;
        let source = cluster.source();
        let start = |node| setup.proxy.start(cluster.lab(), node, &source);
        let proxies: Result<BTreeMap<String, Daemon>> = cluster
            .lab()
            .nodes()
            .iter()
            .map(|node| Ok((node.name.clone(), start(node)?)))
            .collect();
        let session = Self {
            setup,
            proxies: proxies?,
            dns,
            _upstream: upstream,
            _follower: follower,
            cluster,
        };
        for daemon in session.daemons() {
            daemon.wait_ready()?;
        }
        Ok(session)
    }

    /// What it is made of.
    pub fn setup(&self) -> Setup {
        self.setup
    }

    /// The cluster.
    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// Runs one scenario from its objects to its last step and undoes what it did.
    ///
    /// # Errors
    /// When a step fails; the message says which, what was seen instead, and holds the ends of the daemons' logs.
    pub fn run(&self, scenario: &Scenario) -> Result<()> {
        let mut made = Made::default();
        let result = self.run_steps(scenario, &mut made);
        if let Err(error) = result {
            let logs: String = self.daemons().map(|daemon| daemon.log_tail(12)).collect();
            bail!("{error:#}\n{logs}");
        }
        self.undo(made).context("the scenario held, but could not be undone")
    }

    fn daemons(&self) -> impl Iterator<Item = &Daemon> {
        self.proxies.values().chain(&self.dns)
    }

    fn run_steps(&self, scenario: &Scenario, made: &mut Made) -> Result<()> {
        for (machine, listen) in &scenario.servers {
            let place = self.cluster.lab().place(machine)?;
            made.servers.push(
                self.cluster
                    .lab()
                    .serve(&place, &format!("server-{machine}"), machine, listen)?,
            );
        }
        self.apply(&scenario.objects, made).context("objects")?;
        for (n, step) in scenario.steps.iter().enumerate() {
            if !step.except.contains_key(&self.setup.proxy) {
                self.act(&step.action, made)
                    .with_context(|| format!("step {}", n + 1))?;
            }
        }
        Ok(())
    }

    fn act(&self, action: &Action, made: &mut Made) -> Result<()> {
        match action {
            Action::Check(checks) => self.check_all(checks, &mut made.opened),
            Action::Apply(objects) => self.apply(objects, made),
            Action::Patch(list) => list.iter().try_for_each(|(key, patch)| {
                if key.kind == "Node" {
                    made.nodes.insert(key.clone());
                }
                self.cluster.patch(key, patch)
            }),
            Action::Delete(keys) => keys.iter().try_for_each(|key| self.cluster.delete(key)),
            Action::Orphan(keys) => keys.iter().try_for_each(|key| self.cluster.delete_alone(key)),
            Action::Pod(list) => list
                .iter()
                .try_for_each(|(name, state)| self.cluster.set_pod(name, *state)),
            Action::Route(list) => list.iter().try_for_each(|(to, node)| {
                made.routes.insert(to.clone());
                self.cluster.lab().route(to, node.as_deref())
            }),
            Action::Open(list) => self.open(list, made, Kind::Connection),
            Action::Traffic(list) => self.open(list, made, Kind::Traffic),
            Action::Daemon(list) => list
                .iter()
                .try_for_each(|(name, action)| self.act_on_daemon(name, *action)),
            Action::Config(changes) => {
                made.configured = true;
                self.configure(changes)
            }
            Action::Run(list) => list.iter().try_for_each(|(name, text)| self.run_shell(name, text)),
            Action::Pause(duration) => {
                std::thread::sleep(*duration);
                Ok(())
            }
        }
    }

    fn apply(&self, objects: &[Value], made: &mut Made) -> Result<()> {
        for object in objects {
            let key = ObjectKey::of(object)?;
            if key.kind == "Node" {
                made.nodes.insert(key);
            } else {
                made.objects.insert(key);
            }
            self.cluster.apply(object)?;
        }
        Ok(())
    }

    fn open(&self, list: &[(String, Check)], made: &mut Made, kind: Kind) -> Result<()> {
        for (name, check) in list {
            let mut command = self.connect_command(check, kind)?;
            command
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::inherit());
            // What is to be opened may have been applied a moment ago only.
            until(|| {
                made.opened.insert(name.clone(), Opened::start(&mut command, kind)?);
                Ok(())
            })
            .with_context(|| check.to_string())?;
        }
        Ok(())
    }

    /// Runs shell text in a namespace. `MANIFESTS` holds the folder of manifests, where there is one.
    fn run_shell(&self, place: &str, text: &str) -> Result<()> {
        let mut command = self.cluster.lab().place(place)?.command("sh");
        command.args(["-ec", text]).stdin(Stdio::null());
        if let Source::Manifests(dir) = self.cluster.source() {
            command.env("MANIFESTS", dir);
        }
        let output = command.output().context("sh cannot be started")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.success(),
            "{text:?} on {place}: {}: {}",
            output.status,
            said.trim()
        );
        Ok(())
    }

    fn act_on_daemon(&self, name: &str, action: DaemonAction) -> Result<()> {
        let daemon = if name == "dns" {
            self.dns.as_ref()
        } else {
            self.proxies.get(name)
        };
        let daemon = daemon.with_context(|| format!("{name:?} is neither a node nor `dns`"))?;
        match action {
            DaemonAction::Kill => {
                daemon.kill();
                Ok(())
            }
            DaemonAction::Stop => daemon.terminate(),
            DaemonAction::Start => {
                daemon.start_again()?;
                daemon.wait_ready()
            }
        }
    }

    /// Gives every proxy another configuration and starts it again.
    fn configure(&self, changes: &Value) -> Result<()> {
        for node in self.cluster.lab().nodes() {
            self.setup
                .proxy
                .configure(self.cluster.lab(), node, &self.cluster.source(), changes)?;
        }
        for daemon in self.proxies.values() {
            if !daemon.ended() {
                daemon.terminate()?;
            }
            daemon.start_again()?;
        }
        self.proxies.values().try_for_each(Daemon::wait_ready)
    }

    /// Puts the cluster back to what it was before the scenario.
    fn undo(&self, made: Made) -> Result<()> {
        drop((made.opened, made.servers));
        // Services first: their endpoints then go without anyone following them one by one.
        let (services, rest): (Vec<_>, Vec<_>) = made.objects.iter().partition(|key| key.kind == "Service");
        for key in services.into_iter().chain(rest).filter(|key| key.kind != "Namespace") {
            self.cluster.delete(key)?;
        }
        for pod in self
            .cluster
            .lab()
            .pods()
            .iter()
            .filter(|pod| pod.namespace != "kube-system")
        {
            self.cluster.set_pod(&pod.key(), PodState::Gone)?;
        }
        if !made.nodes.is_empty() {
            self.cluster.restore_nodes(&made.nodes)?;
        }
        for route in &made.routes {
            // A route that the scenario took away itself is not there any more.
            let _ = self.cluster.lab().route(route, None);
        }
        if made.configured {
            self.configure(&json!({}))?;
        }
        for daemon in self.daemons().filter(|daemon| daemon.ended()) {
            daemon.start_again()?;
            daemon.wait_ready()?;
        }
        self.await_empty()?;
        self.forget_connections()
    }

    /// Waits until no controller writes slices any more for what was deleted.
    fn await_empty(&self) -> Result<()> {
        let Some(plane) = self.cluster.control_plane() else {
            return Ok(());
        };
        let left = || -> Result<Vec<String>> {
            let slices = plane.api().list("/apis/discovery.k8s.io/v1/endpointslices")?;
            let service = |slice: &Value| {
                let name = slice
                    .pointer("/metadata/labels/kubernetes.io~1service-name")
                    .and_then(Value::as_str)?;
                (!["kubernetes", "kube-dns"].contains(&name)).then(|| name.to_owned())
            };
            Ok(slices.iter().filter_map(service).collect())
        };
        let mut last = Vec::new();
        let empty = wait_until(WINDOW, || {
            last = left().unwrap_or_else(|error| vec![error.to_string()]);
            last.is_empty()
        });
        ensure!(empty, "slices are left of {}", last.join(", "));
        Ok(())
    }

    /// Empties connection tracking on the nodes, so that no flow of one scenario meets another's.
    fn forget_connections(&self) -> Result<()> {
        for node in self.cluster.lab().nodes() {
            node.place.output("conntrack", ["-F"])?;
        }
        Ok(())
    }

    /// The address of a machine or pod in one family: `node-1`, `pod/web-1`; with `/v6` the IPv6 one.
    fn address(&self, host: &str) -> Result<IpAddr> {
        if let Ok(address) = host.trim_matches(['[', ']']).parse() {
            return Ok(address);
        }
        let (name, v6) = host.strip_suffix("/v6").map_or((host, false), |name| (name, true));
        let lab = self.cluster.lab();
        let pair = match name.strip_prefix("pod/") {
            Some(pod) => self.pod(pod)?.address,
            None => match name.strip_suffix("/second") {
                Some(node) => lab.node(node)?.second.context("the lab has no second addresses")?,
                None => {
                    lab.host(name)
                        .with_context(|| format!("the lab has no machine {name:?}"))?
                        .address
                }
            },
        };
        Ok(if v6 { pair.v6.into() } else { pair.v4.into() })
    }

    fn pod(&self, name: &str) -> Result<Arc<Pod>> {
        self.cluster
            .lab()
            .pod(name)
            .with_context(|| format!("pod {name} does not run"))
    }
}

/// Starts the server that answers for names outside the cluster, on the second outside host.
///
/// # Errors
/// When the lab has no such host, or the server does not start.
pub fn start_upstream(lab: &Lab) -> Result<Process> {
    let host = lab.host("outside-2").context("the lab has no second outside host")?;
    let mut command = host.place.command(probe::binary()?);
    let ready = lab.scratch().join("upstream.ready");
    command.arg("dns-serve").arg("--ready-file").arg(&ready);
    for address in host.address.both() {
        command.args(["--listen", &std::net::SocketAddr::new(address, 53).to_string()]);
    }
    for record in OUTSIDE_RECORDS {
        command.args(["--record", record]);
    }
    let process = Process::start("upstream DNS", command, &lab.scratch().join("upstream.log"))?;
    let up = wait_until(WINDOW, || ready.exists() || process.ended().is_some());
    ensure!(
        up && process.ended().is_none(),
        "the upstream DNS server did not start\n{}",
        process.log_tail(10)
    );
    Ok(process)
}

/// Starts the DNS server in a pod behind `kube-system/kube-dns`.
fn start_dns(cluster: &Cluster, subject: DnsSubject) -> Result<Option<Daemon>> {
    if subject == DnsSubject::None {
        return Ok(None);
    }
    cluster.apply(&dns_service())?;
    cluster.apply(&json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": "dns-1", "namespace": "kube-system", "labels": { "k8s-app": "kube-dns" } },
        "spec": { "nodeName": "node-1" },
    }))?;
    let pod = cluster
        .lab()
        .pod("kube-system/dns-1")
        .context("the DNS pod does not run")?;
    let upstream = cluster.lab().host("outside-2").context("no upstream")?.address.v4;
    subject.start(cluster.lab(), &pod, &cluster.source(), upstream.into())
}

/// Runs `attempt` until it succeeds or the window is over; returns the last error then.
fn until(mut attempt: impl FnMut() -> Result<()>) -> Result<()> {
    let start = Instant::now();
    loop {
        match attempt() {
            Ok(()) => return Ok(()),
            Err(error) if start.elapsed() > WINDOW => bail!("{error:#}"),
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}
