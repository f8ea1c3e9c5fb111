//! The servers: how each is told what it needs, and started on a core of its own.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use clap::ValueEnum;
use portolan_lab::binaries;
use portolan_lab::control_plane::ControlPlane;
use portolan_lab::lab::Lab;
use portolan_lab::netns::Netns;
use portolan_lab::process::{Place, Process};

use crate::load::{Kind, OUTSIDE, ask, outside_name};
use crate::objects::{NAMESPACE, Objects, cluster_ip, service_name};

/// The core of the servers; dnsperf has the other.
const SERVER_CORE: &str = "0";
const UPSTREAM_PORT: u16 = 5310;
const PATIENCE: Duration = Duration::from_secs(120);
/// How long a server may settle before its memory is read.
const SETTLE: Duration = Duration::from_secs(1);

/// A server that is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Subject {
    /// portolan-dns
    Portolan,
    /// Knot DNS, an authoritative server
    Knot,
    /// Unbound, a resolver
    Unbound,
    /// The real CoreDNS
    #[value(name = "coredns")]
    CoreDns,
}

/// A server that runs.
#[derive(Debug)]
pub struct Running {
    /// Which one.
    pub subject: Subject,
    /// Where it answers.
    pub address: SocketAddr,
    /// The namespace that it lives in.
    pub netns: Arc<Netns>,
    /// The namespace, and the cgroup, of the clients.
    pub place: Place,
    /// From its start to its first right answer.
    pub ready: Duration,
    /// Resident octets a second later.
    pub memory: u64,
    /// The process.
    pub process: Process,
}

// === impl Subject ===

impl Subject {
    /// Its name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Portolan => "portolan",
            Self::Knot => "knot",
            Self::Unbound => "unbound",
            Self::CoreDns => "coredns",
        }
    }

    fn port(self) -> u16 {
        match self {
            Self::Portolan => 5301,
            Self::Knot => 5302,
            Self::Unbound => 5303,
            Self::CoreDns => 5304,
        }
    }

    /// Whether it can answer a load.
    pub fn serves(self, kind: Kind) -> bool {
        self != Self::Knot || kind != Kind::Cached
    }

    /// Whether it follows the API server.
    pub fn follows(self) -> bool {
        matches!(self, Self::Portolan | Self::CoreDns)
    }

    /// Starts it and waits for its first right answer.
    ///
    /// # Errors
    /// When a program is missing or the server does not come up.
    pub fn start(self, lab: &Lab, plane: &ControlPlane, objects: &Objects) -> Result<Running> {
        let node = lab.node("node-1")?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, self.port()));
        let dir = lab.scratch().join(format!("bench-{}", self.name()));
        std::fs::create_dir_all(&dir)?;
        let kubeconfig = plane.kubeconfig("portolan-dns");
        let (program, args) = match self {
            Self::Portolan => portolan(address, &kubeconfig)?,
            Self::Knot => knot(address, &dir, &zone_file(objects))?,
            Self::Unbound => unbound(address, &dir, objects)?,
            Self::CoreDns => core_dns(address, &dir, &kubeconfig)?,
        };
        let begun = Instant::now();
        let process = start(&node.place, self.name(), &program, &args, &dir)?;
        let mut running = Running {
            subject: self,
            address,
            netns: Arc::clone(&node.place.netns),
            place: node.place.clone(),
            ready: Duration::ZERO,
            memory: 0,
            process,
        };
        let last = objects.services - 1;
        let name = format!("{}.{NAMESPACE}.svc.cluster.local", service_name(last));
        while !ask(&running, &name).is_ok_and(|found| found == [cluster_ip(last)]) {
            if running.process.ended().is_some() || begun.elapsed() > PATIENCE {
                bail!("{} does not answer\n{}", self.name(), running.process.log_tail(30));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        running.ready = begun.elapsed();
        std::thread::sleep(SETTLE);
        running.memory = running.resident().context("the server has no memory")?;
        Ok(running)
    }
}

// === impl Running ===

impl Running {
    fn resident(&self) -> Option<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.pid())).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        let kib: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
        Some(kib << 10)
    }

    /// CPU time of all its threads so far.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub fn cpu(&self) -> Result<Duration> {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.process.pid()))?;
        let mut nanos = 0;
        for task in tasks.flatten() {
            let text = std::fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
            let first = text
                .split_whitespace()
                .next()
                .and_then(|digits| digits.parse::<u64>().ok());
            nanos += first.unwrap_or(0);
        }
        Ok(Duration::from_nanos(nanos))
    }
}

/// Starts the server of the outside world, which the resolvers forward to.
///
/// # Errors
/// When Knot is missing.
pub fn start_upstream(lab: &Lab, objects: &Objects) -> Result<Process> {
    let node = lab.node("node-1")?;
    let dir = lab.scratch().join("bench-upstream");
    std::fs::create_dir_all(&dir)?;
    let mut zone = format!("{OUTSIDE}. 3600 SOA ns.{OUTSIDE}. admin.{OUTSIDE}. 1 7200 1800 86400 3600\n");
    let _ = writeln!(zone, "{OUTSIDE}. 3600 NS ns.{OUTSIDE}.\nns.{OUTSIDE}. 3600 A 127.0.0.1");
    for number in 0..objects.services.min(5000) {
        let _ = writeln!(zone, "{}. 3600 A 192.0.2.{}", outside_name(number), number % 250 + 1);
    }
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, UPSTREAM_PORT));
    let (program, args) = knot_for(OUTSIDE, address, &dir, &zone)?;
    start(&node.place, "upstream", &program, &args, &dir)
}

fn start(place: &Place, name: &str, program: &Path, args: &[OsString], dir: &Path) -> Result<Process> {
    let mut command = place.command("taskset");
    command.args(["-c", SERVER_CORE]).arg(program).args(args);
    Process::start(name, command, &dir.join("log"))
}

fn portolan(address: SocketAddr, kubeconfig: &Path) -> Result<(PathBuf, Vec<OsString>)> {
    let program = binaries::find("PORTOLAN_DNS", "portolan-dns")?;
    let flags = format!(
        "run --listen {address} --threads 1 --ttl 30 --pods insecure --upstream 127.0.0.1:{UPSTREAM_PORT} \
         --health-bind-address 127.0.0.1:5381 --ready-bind-address 127.0.0.1:5382 --metrics-bind-address 127.0.0.1:5383"
    );
    let mut args: Vec<OsString> = flags.split(' ').map(OsString::from).collect();
    args.extend(["--kubeconfig".into(), kubeconfig.into()]);
    Ok((program, args))
}

/// CoreDNS with kubeadm's Corefile; ports and the forwarding target apart.
fn core_dns(address: SocketAddr, dir: &Path, kubeconfig: &Path) -> Result<(PathBuf, Vec<OsString>)> {
    let corefile = format!(
        ".:{} {{\n  bind {}\n  errors\n  health 127.0.0.1:5391 {{\n    lameduck 5s\n  }}\n  ready 127.0.0.1:5392\n  kubernetes \
         cluster.local in-addr.arpa ip6.arpa {{\n    kubeconfig {}\n    pods insecure\n    fallthrough in-addr.arpa ip6.arpa\n    \
         ttl 30\n  }}\n  prometheus 127.0.0.1:5393\n  forward . 127.0.0.1:{UPSTREAM_PORT} {{\n    max_concurrent 1000\n  }}\n  \
         cache 30 {{\n    disable success cluster.local\n    disable denial cluster.local\n  }}\n  loop\n  reload\n  \
         loadbalance\n}}\n",
        address.port(),
        address.ip(),
        kubeconfig.display()
    );
    let file = dir.join("Corefile");
    std::fs::write(&file, corefile)?;
    Ok((binaries::peer("coredns")?, vec!["-conf".into(), file.into()]))
}

/// The names of the cluster as a zone file: Services, their ports and endpoints.
fn zone_file(objects: &Objects) -> String {
    let mut zone = String::from(
        "cluster.local. 30 SOA ns.dns.cluster.local. hostmaster.cluster.local. 1 7200 1800 86400 30\n\
         cluster.local. 30 NS ns.dns.cluster.local.\nns.dns.cluster.local. 30 A 127.0.0.1\n",
    );
    for line in cluster_records(objects) {
        zone.push_str(&line);
        zone.push('\n');
    }
    zone
}

fn cluster_records(objects: &Objects) -> impl Iterator<Item = String> {
    (0..objects.services).flat_map(|number| {
        let name = format!("{}.{NAMESPACE}.svc.cluster.local.", service_name(number));
        let mut lines = vec![
            format!("{name} 30 A {}", cluster_ip(number)),
            format!("_http._tcp.{name} 30 SRV 0 100 80 {name}"),
        ];
        let endpoints = objects.addresses(number).into_iter().map(|ip| {
            let label = ip.to_string().replace('.', "-");
            format!("{label}.{name} 30 A {ip}")
        });
        lines.extend(endpoints);
        lines
    })
}

fn knot(address: SocketAddr, dir: &Path, zone: &str) -> Result<(PathBuf, Vec<OsString>)> {
    knot_for("cluster.local", address, dir, zone)
}

fn knot_for(name: &str, address: SocketAddr, dir: &Path, zone: &str) -> Result<(PathBuf, Vec<OsString>)> {
    std::fs::write(dir.join("zone"), zone)?;
    let config = format!(
        "server:\n  rundir: \"{dir}\"\n  listen: {}@{}\n  udp-workers: 1\n  tcp-workers: 1\n  background-workers: 1\n\
         database:\n  storage: \"{dir}\"\ntemplate:\n- id: default\n  storage: \"{dir}\"\n  zonefile-sync: -1\n  \
         journal-content: none\nzone:\n- domain: {name}\n  file: zone\n",
        address.ip(),
        address.port(),
        dir = dir.display()
    );
    let file = dir.join("knot.conf");
    std::fs::write(&file, config)?;
    Ok((tool("knotd")?, vec!["-c".into(), file.into()]))
}

fn unbound(address: SocketAddr, dir: &Path, objects: &Objects) -> Result<(PathBuf, Vec<OsString>)> {
    let mut config = format!(
        "server:\n  interface: {}\n  port: {}\n  num-threads: 1\n  so-reuseport: yes\n  do-daemonize: no\n  chroot: \"\"\n  \
         username: \"\"\n  pidfile: \"{dir}/pid\"\n  directory: \"{dir}\"\n  use-syslog: no\n  module-config: \"iterator\"\n  \
         do-not-query-localhost: no\n  access-control: 127.0.0.0/8 allow\n  local-zone: \"cluster.local.\" static\n",
        address.ip(),
        address.port(),
        dir = dir.display()
    );
    let records = zone_file(objects);
    for line in records.lines() {
        let _ = writeln!(config, "  local-data: \"{line}\"");
    }
    let _ = writeln!(
        config,
        "remote-control:\n  control-enable: no\nforward-zone:\n  name: \".\"\n  forward-addr: 127.0.0.1@{UPSTREAM_PORT}"
    );
    let file = dir.join("unbound.conf");
    std::fs::write(&file, config)?;
    Ok((tool("unbound")?, vec!["-d".into(), "-c".into(), file.into()]))
}

/// A program of a Debian package: on PATH, or where daemons are.
pub fn tool(name: &str) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let daemons = ["/usr/sbin".into(), "/usr/local/sbin".into()];
    let found = std::env::split_paths(&path)
        .chain(daemons)
        .map(|dir| dir.join(name))
        .find(|file| file.is_file());
    found.with_context(|| format!("{name} was not found; `cargo xtask doctor --for bench-dns --install` provides it"))
}
