//! What a scenario is tried on: which program makes Services work on a node, and which one answers DNS.
//!
//! The expectations of the scenarios are the reference's: kube-proxy in nftables mode and CoreDNS. Our own daemons run in
//! their place with the same objects and the same checks.

use std::ffi::OsString;
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

use crate::addresses::{DNS_SERVICE, LOAD_BALANCER_RANGES, POD_RANGES, SERVICE_RANGES};
use crate::binaries;
use crate::daemon::{Daemon, DaemonSpec};
use crate::lab::{Host, Lab, Pod};
use crate::object::merge;

/// Where a daemon gets its objects from.
#[derive(Debug, Clone)]
pub enum Source {
    /// A folder of manifests.
    Manifests(PathBuf),
    /// An API server; the folder of its kubeconfigs, one a user.
    Api(PathBuf),
}

/// Which program programs the nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ProxySubject {
    /// portolan-proxy, nftables backend.
    Nft,
    /// portolan-proxy, userspace backend.
    Userspace,
    /// portolan-proxy, eBPF backend.
    Ebpf,
    /// The real kube-proxy in nftables mode.
    KubeProxy,
    /// The real kube-proxy in iptables mode, with the machine's own iptables.
    KubeProxyIptables,
}

/// Which program answers DNS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum DnsSubject {
    /// portolan-dns.
    Portolan,
    /// The real CoreDNS.
    CoreDns,
    /// None: scenarios that ask for names do not run.
    None,
}

// === impl Source ===

impl Source {
    /// The word that `--source` takes.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Manifests(_) => "manifests",
            Self::Api(_) => "api",
        }
    }

    fn args(&self, user: &str) -> [OsString; 2] {
        match self {
            Self::Manifests(dir) => ["--manifests".into(), dir.into()],
            Self::Api(dir) => [
                "--kubeconfig".into(),
                dir.join(format!("{}.kubeconfig", user.replace(':', "-"))).into(),
            ],
        }
    }

    fn kubeconfig(&self, who: &str) -> Result<PathBuf> {
        match self {
            Self::Api(_) => Ok(PathBuf::from(&self.args(who)[1])),
            Self::Manifests(_) => bail!("{who} needs an API server (--source api)"),
        }
    }
}

// === impl ProxySubject ===

impl ProxySubject {
    /// All of them, in the order in which the suite runs them.
    pub const ALL: [Self; 5] = [
        Self::Nft,
        Self::Userspace,
        Self::Ebpf,
        Self::KubeProxy,
        Self::KubeProxyIptables,
    ];

    /// The word that `--subject` and a scenario's `except` take.
    pub fn name(self) -> &'static str {
        match self {
            Self::Nft => "nft",
            Self::Userspace => "userspace",
            Self::Ebpf => "ebpf",
            Self::KubeProxy => "kube-proxy",
            Self::KubeProxyIptables => "kube-proxy-iptables",
        }
    }

    /// The subject of that name.
    ///
    /// # Errors
    /// When there is none.
    pub fn parse(name: &str) -> Result<Self> {
        let known = || Self::ALL.map(Self::name).join(", ");
        Self::ALL
            .into_iter()
            .find(|s| s.name() == name)
            .with_context(|| format!("{name:?} is none of {}", known()))
    }

    /// Whether it is one of ours, which also run from manifests.
    pub fn is_ours(self) -> bool {
        !matches!(self, Self::KubeProxy | Self::KubeProxyIptables)
    }

    /// Starts the program on a node.
    ///
    /// # Errors
    /// When the program is missing or the node cannot be prepared.
    pub fn start(self, lab: &Lab, node: &Host, source: &Source) -> Result<Daemon> {
        Daemon::start(self.prepare(lab, node, source)?)
    }

    /// Prepares the node and says how the program is to be started on it.
    ///
    /// # Errors
    /// When the program is missing or the node cannot be prepared.
    pub fn prepare(self, lab: &Lab, node: &Host, source: &Source) -> Result<DaemonSpec> {
        self.configure(lab, node, source, &json!({}))?;
        let (program, args) = match self {
            Self::KubeProxy | Self::KubeProxyIptables => {
                let mut flag = OsString::from("--config=");
                flag.push(config_file(lab, node));
                (binaries::peer("kube-proxy")?, vec![flag, "-v=2".into()])
            }
            Self::Nft | Self::Userspace | Self::Ebpf => self.portolan(lab, node, source)?,
        };
        if self == Self::Userspace {
            make_frontends_local(node)?;
        }
        Ok(DaemonSpec {
            name: format!("{} on {}", self.name(), node.name),
            place: node.place.clone(),
            program,
            args,
            ready_url: "http://127.0.0.1:10256/healthz".to_owned(),
            log: lab.scratch().join(format!("proxy-{}.log", node.name)),
        })
    }

    /// Writes the configuration file that the program on `node` reads when it starts: kube-proxy's own kind, for ours as well.
    /// `changes` are merged into what every lab has.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn configure(self, lab: &Lab, node: &Host, source: &Source, changes: &Value) -> Result<()> {
        let mode = if self == Self::KubeProxyIptables {
            "iptables"
        } else {
            "nftables"
        };
        let mut config = json!({
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration", "mode": mode,
            "clusterCIDR": POD_RANGES.join(","), "hostnameOverride": node.name, "bindAddress": "0.0.0.0",
            "healthzBindAddress": "0.0.0.0:10256", "metricsBindAddress": "127.0.0.1:10249",
            // The limits are the machine's, not a network namespace's.
            "conntrack": { "maxPerCore": 0, "min": 0 },
        });
        if let Source::Api(_) = source {
            config["clientConnection"] = json!({ "kubeconfig": source.kubeconfig("system:kube-proxy")? });
        }
        merge(&mut config, changes);
        let file = config_file(lab, node);
        std::fs::write(&file, config.to_string()).with_context(|| format!("{} cannot be written", file.display()))
    }

    fn portolan(self, lab: &Lab, node: &Host, source: &Source) -> Result<(PathBuf, Vec<OsString>)> {
        let program = binaries::find("PORTOLAN_PROXY", "portolan-proxy")
            .context("build it with `cargo build -p portolan-proxy` or name another one")?;
        let mut args: Vec<OsString> = vec!["run".into()];
        if let Source::Manifests(_) = source {
            args.extend(source.args(""));
        }
        let mut flag = |name: &str, value: OsString| args.extend([name.into(), value]);
        flag("--config", config_file(lab, node).into());
        flag("--backend", self.name().into());
        if self == Self::Ebpf {
            flag(
                "--cgroup",
                node.place.cgroup.clone().context("a node has a cgroup")?.into(),
            );
            // The daemon mounts a BPF file system there; it goes with the lab.
            let pins = lab.scratch().join(format!("bpffs-{}", node.name));
            flag("--bpffs", pins.into());
        }
        Ok((program, args))
    }
}

/// The userspace backend relays what reaches the node's own sockets: its frontends have to be local addresses there.
fn make_frontends_local(node: &Host) -> Result<()> {
    let ranges = SERVICE_RANGES.iter().chain(&LOAD_BALANCER_RANGES);
    let routes: String = ranges
        .map(|range| format!("route replace local {range} dev lo\n"))
        .collect();
    node.place.netns.ip(&routes)?;
    // IPv6 binds to an address of its own interfaces only, unless it is told that a route is enough.
    node.place.netns.sysctl(&[("net.ipv6.ip_nonlocal_bind", "1")])
}

fn config_file(lab: &Lab, node: &Host) -> PathBuf {
    lab.scratch().join(format!("proxy-{}.json", node.name))
}

// === impl DnsSubject ===

impl DnsSubject {
    /// The word that `--dns` takes.
    pub fn name(self) -> &'static str {
        match self {
            Self::Portolan => "portolan",
            Self::CoreDns => "coredns",
            Self::None => "none",
        }
    }

    /// The subject of that name.
    ///
    /// # Errors
    /// When there is none.
    pub fn parse(name: &str) -> Result<Self> {
        let all = [Self::Portolan, Self::CoreDns, Self::None];
        all.into_iter()
            .find(|s| s.name() == name)
            .with_context(|| format!("{name:?} is none of portolan, coredns, none"))
    }

    /// Starts the server in a pod that stands behind `kube-system/kube-dns`; `upstream` answers for the outside world.
    ///
    /// # Errors
    /// When the program is missing.
    pub fn start(self, lab: &Lab, pod: &Pod, source: &Source, upstream: std::net::IpAddr) -> Result<Option<Daemon>> {
        let (program, args) = match self {
            Self::None => return Ok(None),
            Self::CoreDns => core_dns(lab, source, upstream)?,
            Self::Portolan => {
                let program = binaries::find("PORTOLAN_DNS", "portolan-dns")
                    .context("build it with `cargo build -p portolan-dns` or name another one")?;
                let mut args: Vec<OsString> = vec!["run".into()];
                args.extend(source.args("portolan-dns"));
                // The same TTL and pod names as CoreDNS is given below.
                let flags =
                    "--listen 0.0.0.0:53 --listen [::]:53 --cluster-domain cluster.local --ttl 30 --pods insecure";
                args.extend(flags.split(' ').map(OsString::from));
                args.extend(["--upstream".into(), upstream.to_string().into()]);
                (program, args)
            }
        };
        let daemon = Daemon::start(DaemonSpec {
            name: format!("{} DNS in {}", self.name(), pod.key()),
            place: crate::process::Place {
                resolv_conf: None,
                ..pod.place.clone()
            },
            program,
            args,
            ready_url: "http://127.0.0.1:8181/ready".to_owned(),
            log: lab.scratch().join(format!("dns-{}.log", pod.name)),
        })?;
        Ok(Some(daemon))
    }
}

/// CoreDNS with the Corefile that kubeadm installs, the forwarding target apart.
fn core_dns(lab: &Lab, source: &Source, upstream: std::net::IpAddr) -> Result<(PathBuf, Vec<OsString>)> {
    let kubeconfig = source.kubeconfig("portolan-dns")?;
    let corefile = format!(
        ".:53 {{\n    errors\n    health {{\n       lameduck 5s\n    }}\n    ready\n    kubernetes cluster.local in-addr.arpa \
         ip6.arpa {{\n       kubeconfig {}\n       pods insecure\n       fallthrough in-addr.arpa ip6.arpa\n       ttl \
         30\n    }}\n    prometheus :9153\n    forward . {upstream}\n    cache 30 {{\n       disable success \
         cluster.local\n       disable denial cluster.local\n    }}\n    loop\n    reload\n    loadbalance\n}}\n",
        kubeconfig.display()
    );
    let file = lab.write("Corefile", &corefile)?;
    Ok((binaries::peer("coredns")?, vec!["-conf".into(), file.into()]))
}

/// The Service that DNS is reached through; its endpoints are the pods with this label.
pub fn dns_service() -> Value {
    let port = |name: &str, protocol: &str| json!({ "name": name, "port": 53, "protocol": protocol, "targetPort": 53 });
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": { "name": "kube-dns", "namespace": "kube-system", "labels": { "k8s-app": "kube-dns" } },
        "spec": {
            "selector": { "k8s-app": "kube-dns" }, "clusterIP": DNS_SERVICE.v4.to_string(),
            "clusterIPs": [DNS_SERVICE.v4.to_string(), DNS_SERVICE.v6.to_string()],
            "ipFamilies": ["IPv4", "IPv6"], "ipFamilyPolicy": "RequireDualStack",
            "ports": [port("dns", "UDP"), port("dns-tcp", "TCP")],
        },
    })
}
