//! The command line: kube-proxy's names where it has one.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use portolan_agent::source::{Config, NodeSelection, SourceArgs, Wants};
use portolan_agent::telemetry::{LogArgs, LogFormat};
use portolan_agent::version::LONG_VERSION;
use portolan_model::Protocol;
use portolan_model::parse::parse_ip;
use portolan_plan::Packet;

use crate::config::flags::KubeProxyFlags;
use crate::config::settings::Mode;
use crate::config::{self, KubeProxyConfiguration, Loaded, Settings};

/// How long a one-shot command waits for its source.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Makes Kubernetes Services work on this node
#[derive(Debug, Parser)]
#[command(name = "portolan-proxy", version = LONG_VERSION, args_conflicts_with_subcommands = true)]
pub struct Cli {
    /// What to do; without a word: run
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Flags of `run`
    #[command(flatten)]
    pub run: RunArgs,
    /// How to log
    #[command(flatten)]
    pub log: LogArgs,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Follow the source and keep this node's rules right (the default)
    Run(Box<RunArgs>),
    /// Print what this node would do, Service by Service, and change nothing
    Plan(PlanArgs),
    /// Say what happens to one connection, and why
    Explain(ExplainArgs),
    /// Ask the running daemon how it is doing
    Status(StatusArgs),
    /// Remove everything that this program ever programmed on this node, or what kube-proxy did
    Cleanup(CleanupArgs),
}

/// Flags that plans depend on.
#[derive(Args, Clone, Debug)]
pub struct PlanFlags {
    /// Where objects come from
    #[command(flatten)]
    pub source: SourceArgs,
    /// Name of this node's Node object; endpoints that carry it are local
    /// [default: hostnameOverride of the configuration, else the machine's name]
    #[arg(long, alias = "hostname-override", env = "NODE_NAME", value_name = "NAME")]
    pub node_name: Option<String>,
    /// kube-proxy's configuration (KubeProxyConfiguration, kubeproxy.config.k8s.io/v1alpha1); it wins over the flags
    /// that kube-proxy has, except --node-name, --kubeconfig where it names none, and --master
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Ranges of all pods' addresses, one of each family; default: the Node's own spec.podCIDRs
    #[arg(long, value_name = "CIDR,CIDR")]
    pub cluster_cidr: Option<String>,
    /// How packets from pods are recognised: ClusterCIDR, NodeCIDR, BridgeInterface or InterfaceNamePrefix
    #[arg(long, value_name = "MODE")]
    pub detect_local_mode: Option<String>,
    /// Bridge that pods are behind, for --detect-local-mode BridgeInterface
    #[arg(long, value_name = "NAME")]
    pub pod_bridge_interface: Option<String>,
    /// Start of pods' interface names, for --detect-local-mode InterfaceNamePrefix
    #[arg(long, value_name = "PREFIX")]
    pub pod_interface_name_prefix: Option<String>,
    /// Ranges of this node's addresses that node ports are served on, or `primary`, `localhost`, `all` [default: primary]
    #[arg(long, value_name = "CIDR,CIDR|primary", value_delimiter = ',')]
    pub nodeport_addresses: Vec<String>,
    /// Which kube-proxy mode's defaults to take: nftables, iptables or ipvs
    #[arg(long, value_name = "MODE")]
    pub proxy_mode: Option<String>,
    /// The node's own address, where the Node object's is not the right one
    #[arg(long, value_name = "ADDR")]
    pub bind_address: Option<String>,
    /// Masquerade all traffic to cluster IPs
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub masquerade_all: Option<bool>,
    /// Do not serve spec.externalIPs (whoever may write Services can claim any address with them, CVE-2020-8554)
    #[arg(long)]
    pub no_external_ips: bool,
}

/// Which backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum BackendChoice {
    /// The best one that the kernel proves able to run
    Auto,
    /// Kernel rules over netlink (Linux, needs CAP_NET_ADMIN)
    #[value(alias = "nftables")]
    Nft,
    /// Programs at the node's sockets, which rewrite a connection once, and kernel rules for what no socket of this node
    /// sends (Linux, needs CAP_BPF, CAP_NET_ADMIN and CAP_SYS_ADMIN)
    Ebpf,
    /// Relays in this process: any operating system, no privilege; backends see this node's address
    Userspace,
}

/// Whose sockets the eBPF programs serve.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[allow(missing_docs, reason = "the words of the option")]
pub enum SocketLb {
    All,
    Host,
}

/// Flags of `run`.
#[derive(Args, Clone, Debug)]
pub struct RunArgs {
    /// What plans depend on
    #[command(flatten)]
    pub plan: PlanFlags,
    /// How to make Services work [default: what the configuration's mode asks for, else auto]
    #[arg(long, value_name = "BACKEND")]
    pub backend: Option<BackendChoice>,
    /// Send PROXY protocol v2 to endpoints (userspace backend only; every endpoint must expect it)
    #[arg(long)]
    pub proxy_protocol: bool,
    /// Serve the page for people even where --metrics-bind-address is not a loopback address
    #[arg(long)]
    pub expose_page: bool,
    /// The cgroup2 directory that eBPF programs are attached to; default: the root of the mounted hierarchy
    #[arg(long, value_name = "DIR")]
    pub cgroup: Option<PathBuf>,
    /// Where eBPF maps and links are pinned, so that they outlive this process
    #[arg(long, value_name = "DIR", default_value = "/sys/fs/bpf/portolan")]
    pub bpffs: PathBuf,
    /// Elements that an eBPF map may grow to; Services that find no room in the maps are carried by kernel rules
    #[arg(long, value_name = "N", default_value_t = 4_000_000, value_parser = clap::value_parser!(u32).range(1024..=16_777_216))]
    pub ebpf_map_size: u32,
    /// Whose sockets the eBPF programs serve: everyone's, or the node's own only (for meshes that intercept pods' traffic
    /// by the Service's address); pods are then served by kernel rules
    #[arg(long, value_name = "WHOSE", default_value = "all")]
    pub socket_lb: SocketLb,
    /// How much to log, in kube-proxy's numbers: 4 and more means debug, 6 and more trace
    #[arg(long = "v", value_name = "N", hide_short_help = true)]
    pub klog_verbosity: Option<u32>,
    /// kube-proxy's flags
    #[command(flatten)]
    pub kube_proxy: KubeProxyFlags,
}

/// Flags of `cleanup`.
#[derive(Args, Clone, Debug)]
pub struct CleanupArgs {
    /// Where eBPF maps and links are pinned
    #[arg(long, value_name = "DIR", default_value = "/sys/fs/bpf/portolan")]
    pub bpffs: PathBuf,
    /// Remove kube-proxy's rules (modes nftables and iptables) instead of our own
    #[arg(long)]
    pub kube_proxy: bool,
    /// Remove them even though ours are not there, which leaves this node without Services
    #[arg(long, requires = "kube_proxy")]
    pub force: bool,
}

/// Flags of `plan`.
#[derive(Args, Debug)]
pub struct PlanArgs {
    /// What plans depend on
    #[command(flatten)]
    pub plan: PlanFlags,
    /// Only these Services
    #[arg(value_name = "NAMESPACE/NAME")]
    pub services: Vec<String>,
}

/// Flags of `explain`.
#[derive(Args, Debug)]
pub struct ExplainArgs {
    /// What plans depend on
    #[command(flatten)]
    pub plan: PlanFlags,
    /// Source address of the connection
    #[arg(long, value_name = "ADDR", value_parser = parse_ip)]
    pub from: std::net::IpAddr,
    /// Destination, such as 10.96.0.10:53/udp; TCP without a protocol
    #[arg(long, value_name = "ADDR:PORT[/PROTO]", value_parser = destination)]
    pub to: (SocketAddr, Protocol),
    /// Where the daemon pins its eBPF maps, which are looked at as well
    #[arg(long, value_name = "DIR", default_value = "/sys/fs/bpf/portolan")]
    pub bpffs: PathBuf,
    /// Also read what the kernel of this machine holds, and say whether it agrees (nftables backend)
    #[arg(long, conflicts_with = "daemon")]
    pub live: bool,
    /// Ask the running daemon, which compares with its kernel, instead of reading a source
    #[arg(long, value_name = "ADDR:PORT", num_args = 0..=1, default_missing_value = "127.0.0.1:10249")]
    pub daemon: Option<SocketAddr>,
    /// Output format
    #[arg(long, short, value_name = "FORMAT", default_value = "text")]
    pub output: Output,
}

/// Flags of `status`.
#[derive(Args, Debug)]
pub struct StatusArgs {
    /// Where the daemon serves /status (its --metrics-bind-address)
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:10249")]
    pub address: SocketAddr,
    /// Output format
    #[arg(long, short, value_name = "FORMAT", default_value = "text")]
    pub output: Output,
}

/// Output format of `status` and `explain`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[allow(missing_docs, reason = "the words of the option")]
pub enum Output {
    Text,
    Json,
}

/// A destination as `--to` takes it.
pub(crate) fn destination(text: &str) -> Result<(SocketAddr, Protocol), String> {
    let (address, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let protocol = match protocol.to_ascii_lowercase().as_str() {
        "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        "sctp" => Protocol::Sctp,
        other => return Err(format!("{other:?} is not one of tcp, udp, sctp")),
    };
    let address = address
        .parse()
        .map_err(|_| format!("{address:?} is not ADDR:PORT, such as 10.96.0.10:53"))?;
    Ok((address, protocol))
}

/// The machine's name in lower case, as kubelet registers it.
fn host_name() -> String {
    gethostname::gethostname().to_string_lossy().to_lowercase()
}

// === impl PlanFlags ===

impl PlanFlags {
    /// What the flags and the configuration file say together.
    ///
    /// # Errors
    /// Names the file, the line and the field, or the flag, that cannot be.
    pub fn settings(&self) -> anyhow::Result<Settings> {
        self.settings_with(&KubeProxyFlags::default())
    }

    fn settings_with(&self, flags: &KubeProxyFlags) -> anyhow::Result<Settings> {
        let loaded = match &self.config {
            Some(file) => config::file::load(file)?,
            None => {
                let mut config = KubeProxyConfiguration::default();
                self.fill(&mut config);
                flags.fill(&mut config);
                Loaded {
                    config,
                    ..Loaded::default()
                }
            }
        };
        let named = self.node_name.clone().filter(|name| !name.trim().is_empty());
        let configured = Some(loaded.config.hostname_override.clone()).filter(|name| !name.is_empty());
        let node_name = named.or(configured).unwrap_or_else(host_name).trim().to_lowercase();
        Settings::new(loaded, &node_name, !self.no_external_ips)
    }

    fn fill(&self, config: &mut KubeProxyConfiguration) {
        fn put(field: &mut String, flag: &Option<String>) {
            if let Some(value) = flag {
                field.clone_from(value);
            }
        }
        put(&mut config.cluster_cidr, &self.cluster_cidr);
        put(&mut config.detect_local_mode, &self.detect_local_mode);
        put(&mut config.detect_local.bridge_interface, &self.pod_bridge_interface);
        put(
            &mut config.detect_local.interface_name_prefix,
            &self.pod_interface_name_prefix,
        );
        put(&mut config.mode, &self.proxy_mode);
        put(&mut config.bind_address, &self.bind_address);
        config.node_port_addresses.clone_from(&self.nodeport_addresses);
        config.iptables.masquerade_all = self.masquerade_all.unwrap_or_default();
        config.nftables.masquerade_all = config.iptables.masquerade_all;
    }

    /// What to read: what kube-proxy reads.
    pub fn source(&self, settings: &Settings) -> Config {
        let wants = Wants {
            nodes: NodeSelection::Named(settings.options.node_name.clone()),
            ..Wants::forwarding()
        };
        let mut source = self.source.clone();
        let configured = &settings.config.client_connection.kubeconfig;
        if source.manifests.is_none() && source.kubeconfig.is_none() && !configured.is_empty() {
            source.kubeconfig = Some(configured.into());
        }
        source.config(wants, "portolan-proxy")
    }
}

// === impl RunArgs ===

impl RunArgs {
    /// What the flags and the configuration file say together.
    ///
    /// # Errors
    /// Names the file, the line and the field, or the flag, that cannot be.
    pub fn settings(&self) -> anyhow::Result<Settings> {
        let mut settings = self.plan.settings_with(&self.kube_proxy)?;
        let idle = self.kube_proxy.without_meaning.given();
        if !idle.is_empty() {
            let note = format!("these flags have no meaning for portolan-proxy: {}", idle.join(", "));
            settings.notes.push(note);
        }
        Ok(settings)
    }

    /// The backend to take.
    pub fn backend(&self, settings: &Settings) -> BackendChoice {
        self.backend.unwrap_or(match settings.mode {
            Mode::Nftables => BackendChoice::Nft,
            Mode::Unset | Mode::Other => BackendChoice::Auto,
        })
    }

    /// How to log: the flags, else what the configuration says.
    pub fn log(&self, mut log: LogArgs, settings: &Settings) -> LogArgs {
        let configured = &settings.config.logging;
        let level = self.klog_verbosity.unwrap_or(configured.verbosity);
        let level = match level {
            0..4 => 0,
            4..6 => 1,
            _ => 2,
        };
        log.verbose = log.verbose.max(level);
        if configured.format == "json" {
            log.log_format = LogFormat::Json;
        }
        log
    }
}

impl ExplainArgs {
    /// The connection to explain.
    pub fn packet(&self) -> Packet {
        Packet {
            from: self.from,
            to: self.to.0,
            protocol: self.to.1,
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn flags_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn run_is_the_default_and_flags_become_options() {
        let cli = Cli::parse_from([
            "portolan-proxy",
            "--manifests",
            "/m",
            "--node-name",
            "n1",
            "--cluster-cidr",
            "10.244.0.0/16,fd00:244::/48",
            "--nodeport-addresses",
            "192.168.0.0/16,fd00::/8",
        ]);
        assert!(cli.command.is_none());
        let options = cli.run.settings().expect("settings").options;
        assert_eq!(options.node_name, "n1");
        assert!(matches!(options.pod_detection, portolan_plan::PodDetection::ClusterCidr(cidrs) if cidrs.len() == 2));
        assert!(
            matches!(options.node_port_addresses, portolan_plan::NodePortAddresses::Cidrs(cidrs) if cidrs.len() == 2)
        );
    }

    #[test]
    fn a_mode_without_its_value_names_the_flag() {
        let cli = Cli::parse_from(["portolan-proxy", "--detect-local-mode", "BridgeInterface"]);
        let error = cli.run.settings().expect_err("a flag is missing").to_string();
        assert!(error.contains("--pod-bridge-interface"), "{error}");
    }

    #[test]
    fn destinations() {
        let of = |text| destination(text).map(|(to, protocol)| format!("{to} {protocol}"));
        assert_eq!(of("10.96.0.10:53/udp"), Ok("10.96.0.10:53 UDP".into()));
        assert_eq!(of("[fd00::1]:80"), Ok("[fd00::1]:80 TCP".into()));
        assert!(of("10.96.0.10").is_err() && of("10.96.0.10:53/icmp").is_err());
    }
}
