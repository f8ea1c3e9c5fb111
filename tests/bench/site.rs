//! The place: a lab with an API server, a node for the servers, and for each subject a node with a client pod.

use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use portolan_lab::cluster::Cluster;
use portolan_lab::daemon::Daemon;
use portolan_lab::lab::{Host, Lab, Listen, Pod, PodRequest};
use portolan_lab::subject::ProxySubject;

use crate::meter::Meter;
use crate::scale::{NAMESPACE, SERVER_PORT, Scale};
use crate::store::Store;
use crate::{Options, What, client, idle};

/// The node that the servers run on; it has no proxy.
const SERVER_NODE: &str = "node-1";
/// How long a proxy may take to program everything, or to come to rest afterwards.
const PATIENCE: Duration = Duration::from_secs(900);
/// How long the machine may take to come to rest before a measurement.
const IDLE_PATIENCE: Duration = Duration::from_secs(180);
/// How long a Service must stay out of reach on a clean node before the proxy is started.
const OUT_OF_REACH: Duration = Duration::from_millis(50);

/// The raised lab with everything in it.
#[derive(Debug)]
pub struct Site {
    /// The objects.
    pub scale: Scale,
    /// A seat for each subject, and with `path` one without a proxy.
    pub seats: Vec<Seat>,
    cluster: Cluster,
    begin: Instant,
}

/// A node for one subject, and a pod on it that connects.
#[derive(Debug)]
pub struct Seat {
    /// The subject; `None` on the node without a proxy.
    pub subject: Option<ProxySubject>,
    node: String,
    client: Arc<Pod>,
}

/// A proxy that was started, and what its start has cost.
#[derive(Debug)]
pub struct Loaded {
    /// The running proxy.
    pub daemon: Daemon,
    /// From its start to the first connection through the newest Service.
    pub first_connection: Duration,
    /// CPU time until it was idle.
    pub cpu: Duration,
    /// Highest resident memory until it was idle, in bytes.
    pub peak: u64,
}

// === impl Site ===

impl Site {
    /// Raises the lab and its control plane, without any Service.
    ///
    /// # Errors
    /// When a program is missing or the caller is not root.
    pub fn raise(options: &Options) -> Result<Self> {
        let begin = Instant::now();
        let mut subjects: Vec<Option<ProxySubject>> = subjects(options)?.into_iter().map(Some).collect();
        if options.what == What::Path {
            subjects.insert(0, None);
        }
        print_machine(&subjects)?;
        let nodes = u8::try_from(subjects.len() + 1).context("too many subjects")?;
        let lab = Lab::builder().nodes(nodes).outside(0).control_plane(true).build()?;
        let cluster = Cluster::with_api_server(lab)?;
        let servers: Vec<Arc<Pod>> = (0..=options.endpoints)
            .map(|number| start_pod(cluster.lab(), SERVER_NODE, format!("server-{number}"), true))
            .collect::<Result<_>>()?;
        let seat = |(index, subject): (usize, Option<ProxySubject>)| -> Result<Seat> {
            let node = format!("node-{}", index + 2);
            let client = start_pod(cluster.lab(), &node, format!("client-{}", index + 2), false)?;
            Ok(Seat { subject, node, client })
        };
        let seats = subjects.into_iter().enumerate().map(seat).collect::<Result<_>>()?;
        let plane = cluster.control_plane().context("the cluster has no control plane")?;
        let host = cluster.lab().control_plane().context("the lab has no control plane")?;
        let store = Store::new(Arc::clone(&host.place.netns));
        let scale = Scale::new(plane.api().clone(), store, SERVER_NODE, servers)?;
        let site = Self {
            scale,
            seats,
            cluster,
            begin,
        };
        site.say("a control plane, the nodes and the pods are up");
        Ok(site)
    }

    /// Makes Services until there are `services`.
    ///
    /// # Errors
    /// When the API server refuses one.
    pub fn grow(&mut self, services: u32) -> Result<()> {
        self.scale.grow(services)?;
        self.say(&format!(
            "{services} Services x {} endpoints are on the API server",
            self.scale.endpoints()
        ));
        Ok(())
    }

    /// Prints a line of progress.
    pub fn say(&self, what: &str) {
        println!("[{:6.1} s] {what}", self.begin.elapsed().as_secs_f64());
    }

    /// What the proxy of a seat uses.
    ///
    /// # Errors
    /// When its node has no cgroup.
    pub fn meter(&self, seat: &Seat) -> Result<Meter> {
        let group = self.node(seat)?.place.cgroup.as_deref();
        Ok(Meter::new(group.context("the node has no cgroup")?))
    }

    /// Starts the seat's proxy on its clean node and waits until it has programmed everything and is idle.
    ///
    /// # Errors
    /// When the node is not clean or the proxy does not make the newest Service work.
    pub fn load(&self, seat: &Seat) -> Result<Loaded> {
        let (node, target) = (self.node(seat)?, self.scale.newest()?);
        let subject = seat.subject.context("no proxy belongs to this node")?;
        let mut spec = subject.prepare(self.cluster.lab(), node, &self.cluster.source())?;
        spec.args.retain(|arg| arg != "-v=2");
        let reachable = self.in_client(seat, || client::is_reachable(target, OUT_OF_REACH))?;
        ensure!(
            !reachable,
            "{target} is reachable from {} before {} runs",
            seat.node,
            subject.name()
        );
        forget_attempts_soon(node)?;
        let meter = self.meter(seat)?;
        let (cpu_before, peak) = (meter.cpu()?, meter.watch_peak());
        let stop = AtomicBool::new(false);
        let (started, daemon, connected) = std::thread::scope(|scope| -> Result<_> {
            let waiting = scope.spawn(|| self.in_client(seat, || client::first_connection(target, &stop)));
            let started = Instant::now();
            let daemon = Daemon::start(spec);
            let alive = || daemon.as_ref().is_ok_and(|daemon| !daemon.ended());
            while !waiting.is_finished() && alive() && started.elapsed() < PATIENCE {
                std::thread::sleep(Duration::from_millis(20));
            }
            stop.store(true, Ordering::Relaxed);
            let connected = waiting.join().map_err(|_| anyhow::anyhow!("the client has died"))?;
            Ok((started, daemon?, connected))
        })?;
        let connected =
            connected.with_context(|| format!("{} did not serve\n{}", daemon.name(), daemon.log_tail(20)))?;
        let cpu = meter.quiet(PATIENCE)?.saturating_sub(cpu_before);
        node.place.output("conntrack", ["-F"])?;
        Ok(Loaded {
            daemon,
            first_connection: connected.saturating_duration_since(started),
            cpu,
            peak: peak.finish()?,
        })
    }

    /// How long the system's own tool takes to list the rules of the seat's node.
    ///
    /// # Errors
    /// When it fails.
    pub fn list(&self, seat: &Seat) -> Result<Duration> {
        let place = &self.node(seat)?.place;
        let begin = Instant::now();
        if seat.subject == Some(ProxySubject::KubeProxyIptables) {
            place.output("iptables-save", [] as [&str; 0])?;
        } else {
            place.output("nft", ["list", "ruleset"])?;
        }
        Ok(begin.elapsed())
    }

    /// Ends the seat's proxy and makes its node clean: no tables, no conntrack entries.
    ///
    /// # Errors
    /// When something of it stays.
    pub fn unload(&self, seat: &Seat, daemon: Daemon) -> Result<()> {
        // A proxy with much to do may not find the time to obey; it is killed then, and its rules go all the same.
        let _ = daemon.terminate();
        drop(daemon);
        let place = &self.node(seat)?.place;
        if seat.subject == Some(ProxySubject::KubeProxyIptables) {
            for iptables in ["iptables", "ip6tables"] {
                for table in ["nat", "filter", "mangle"] {
                    place.output(iptables, ["-w", "-t", table, "-F"])?;
                    place.output(iptables, ["-w", "-t", table, "-X"])?;
                }
            }
        }
        // The node is the lab's and only this proxy ran on it, so every table is the proxy's.
        let tables = place.output("nft", ["list", "tables"])?;
        for table in tables.lines() {
            place.output("nft", std::iter::once("delete").chain(table.split_whitespace()))?;
        }
        place.output("conntrack", ["-F"])?;
        let left = place.output("nft", ["list", "tables"])?;
        ensure!(left.trim().is_empty(), "{} is not clean: {left}", seat.node);
        Ok(())
    }

    /// Runs `work` in the network namespace of the seat's client pod.
    ///
    /// # Errors
    /// Those of `work`.
    pub fn in_client<T: Send>(&self, seat: &Seat, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        seat.client.place.netns.run(work)
    }

    /// Waits until the machine is idle, for three minutes at most (no time in a quick run), and says how busy it is.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub fn settle(&self, options: &Options) -> Result<()> {
        let patience = if options.quick { Duration::ZERO } else { IDLE_PATIENCE };
        self.say(&idle::settle(patience)?);
        Ok(())
    }

    fn node(&self, seat: &Seat) -> Result<&Host> {
        self.cluster.lab().node(&seat.node)
    }
}

impl Seat {
    /// The name in progress lines and tables.
    pub fn name(&self) -> &'static str {
        match self.subject {
            None => "direct",
            Some(ProxySubject::Nft) => "portolan nft",
            Some(ProxySubject::KubeProxy) => "kube-proxy nftables",
            Some(ProxySubject::KubeProxyIptables) => "kube-proxy iptables",
            Some(other) => other.name(),
        }
    }
}

fn subjects(options: &Options) -> Result<Vec<ProxySubject>> {
    if !options.subjects.is_empty() {
        return options.subjects.iter().map(|name| ProxySubject::parse(name)).collect();
    }
    let mut subjects = vec![ProxySubject::Nft, ProxySubject::KubeProxy];
    if options.what == What::Path {
        subjects.push(ProxySubject::KubeProxyIptables);
    }
    Ok(subjects)
}

fn start_pod(lab: &Lab, node: &str, name: String, listens: bool) -> Result<Arc<Pod>> {
    let tcp = || Listen {
        protocol: "TCP".to_owned(),
        port: SERVER_PORT,
    };
    lab.start_pod(&PodRequest {
        namespace: NAMESPACE.to_owned(),
        name,
        node: node.to_owned(),
        listen: listens.then(tcp).into_iter().collect(),
        ..PodRequest::default()
    })
}

/// Lets the node's connection tracking forget in a second that a connection was tried in vain.
///
/// It is switched on when a proxy begins to hand rules to the kernel, which for kube-proxy is long before they take effect.
/// Every attempt of that time would leave an entry without translation for two minutes; a later attempt from the same port
/// would meet it and fail although the Service works.
fn forget_attempts_soon(node: &Host) -> Result<()> {
    node.place.output("conntrack", ["-F"])?;
    node.place
        .netns
        .sysctl(&[("net.netfilter.nf_conntrack_tcp_timeout_syn_sent", "1")])
}

/// Prints what the figures depend on.
fn print_machine(subjects: &[Option<ProxySubject>]) -> Result<()> {
    let said = |program: PathBuf, arg: &str| -> String {
        let output = Command::new(&program).arg(arg).output();
        let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
        let first = text
            .unwrap_or_default()
            .lines()
            .next()
            .unwrap_or_default()
            .trim()
            .to_owned();
        if first.is_empty() {
            format!("{} does not run", program.display())
        } else {
            first
        }
    };
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let cpus = std::thread::available_parallelism().map_or(0, usize::from);
    println!("machine: {cpus} CPUs, kernel {}", kernel.trim());
    for subject in subjects.iter().flatten() {
        match subject {
            ProxySubject::KubeProxy => {
                let proxy = said(portolan_lab::binaries::peer("kube-proxy")?, "--version");
                println!("kube-proxy nftables: {proxy} with {}", said("nft".into(), "--version"));
            }
            ProxySubject::KubeProxyIptables => {
                let proxy = said(portolan_lab::binaries::peer("kube-proxy")?, "--version");
                println!(
                    "kube-proxy iptables: {proxy} with {}",
                    said("iptables".into(), "--version")
                );
            }
            ours => {
                let program = portolan_lab::binaries::find("PORTOLAN_PROXY", "portolan-proxy")?;
                println!(
                    "portolan {}: {} ({})",
                    ours.name(),
                    said(program.clone(), "--version"),
                    program.display()
                );
            }
        }
    }
    if subjects.is_empty() {
        bail!("there is nothing to measure");
    }
    Ok(())
}
