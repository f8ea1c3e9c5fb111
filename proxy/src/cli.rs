//! The command line: kube-proxy's names where it has one.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use ipnet::IpNet;
use portolan_agent::source::{Config, NodeSelection, SourceArgs, Wants};
use portolan_agent::version::LONG_VERSION;
use portolan_model::Protocol;
use portolan_model::parse::{parse_cidr, parse_ip};
use portolan_plan::{NodePortAddresses, Options, Packet, PodDetection};

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
    pub log: portolan_agent::telemetry::LogArgs,
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
    /// Remove everything that this program ever programmed on this node
    Cleanup,
}

/// Flags that plans depend on.
#[derive(Args, Clone, Debug)]
pub struct PlanFlags {
    /// Where objects come from
    #[command(flatten)]
    pub source: SourceArgs,
    /// Name of this node's Node object; endpoints that carry it are local
    #[arg(long, alias = "hostname-override", env = "NODE_NAME", value_name = "NAME", default_value_t = host_name())]
    pub node_name: String,
    /// Ranges of all pods' addresses, one of each family; default: the Node's own spec.podCIDRs
    #[arg(long, value_name = "CIDR,CIDR", value_delimiter = ',', value_parser = cidr)]
    pub cluster_cidr: Vec<IpNet>,
    /// How packets from pods are recognised
    #[arg(long, value_name = "MODE", default_value = "ClusterCIDR")]
    pub detect_local_mode: DetectLocalMode,
    /// Bridge that pods are behind, for --detect-local-mode BridgeInterface
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
    pub pod_bridge_interface: String,
    /// Start of pods' interface names, for --detect-local-mode InterfaceNamePrefix
    #[arg(long, value_name = "PREFIX", default_value = "", hide_default_value = true)]
    pub pod_interface_name_prefix: String,
    /// Ranges of this node's addresses that node ports are served on, or `primary`
    #[arg(
        long,
        value_name = "CIDR,CIDR|primary",
        value_delimiter = ',',
        default_value = "primary"
    )]
    pub nodeport_addresses: Vec<String>,
    /// Masquerade all traffic to cluster IPs
    #[arg(long)]
    pub masquerade_all: bool,
    /// Do not serve spec.externalIPs (whoever may write Services can claim any address with them, CVE-2020-8554)
    #[arg(long)]
    pub no_external_ips: bool,
}

/// `detectLocalMode`, in kube-proxy's spelling.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[allow(missing_docs, reason = "the words of the option")]
pub enum DetectLocalMode {
    #[value(name = "ClusterCIDR")]
    ClusterCidr,
    #[value(name = "NodeCIDR")]
    NodeCidr,
    #[value(name = "BridgeInterface")]
    BridgeInterface,
    #[value(name = "InterfaceNamePrefix")]
    InterfaceNamePrefix,
}

/// Which backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum BackendChoice {
    /// The best one that the kernel proves able to run
    Auto,
    /// Kernel rules over netlink (Linux, needs CAP_NET_ADMIN)
    #[value(alias = "nftables")]
    Nft,
    /// Not in this version
    #[value(hide = true)]
    Ebpf,
    /// Relays in this process: any operating system, no privilege; backends see this node's address
    Userspace,
}

/// Flags of `run`.
#[derive(Args, Clone, Debug)]
pub struct RunArgs {
    /// What plans depend on
    #[command(flatten)]
    pub plan: PlanFlags,
    /// How to make Services work
    #[arg(long, alias = "proxy-mode", value_name = "BACKEND", default_value = "auto")]
    pub backend: BackendChoice,
    /// Bit of the packet mark that asks for masquerading
    #[arg(long, alias = "iptables-masquerade-bit", value_name = "BIT", default_value_t = 14,
          value_parser = clap::value_parser!(u8).range(0..32))]
    pub masquerade_bit: u8,
    /// Send PROXY protocol v2 to endpoints (userspace backend only; every endpoint must expect it)
    #[arg(long)]
    pub proxy_protocol: bool,
    /// The node's cgroup2 directory; only the eBPF backend, which this version lacks, looks at it
    #[arg(long, value_name = "DIR", hide = true)]
    pub cgroup: Option<PathBuf>,
    /// Where maps and links are pinned; only the eBPF backend, which this version lacks, looks at it
    #[arg(long, value_name = "DIR", hide = true)]
    pub bpffs: Option<PathBuf>,
    /// Where /healthz and /livez are served
    #[arg(long, value_name = "ADDR:PORT", default_value = "0.0.0.0:10256")]
    pub healthz_bind_address: SocketAddr,
    /// Where /metrics, /status and /proxyMode are served
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:10249")]
    pub metrics_bind_address: SocketAddr,
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

/// Output format of `status`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[allow(missing_docs, reason = "the words of the option")]
pub enum Output {
    Text,
    Json,
}

fn cidr(text: &str) -> Result<IpNet, String> {
    parse_cidr(text)
}

fn destination(text: &str) -> Result<(SocketAddr, Protocol), String> {
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
    /// The planner's options.
    ///
    /// # Errors
    /// Names the flag that does not fit.
    pub fn options(&self) -> anyhow::Result<Options> {
        let named = |flag: &str, value: &str| {
            anyhow::ensure!(
                !value.is_empty(),
                "--detect-local-mode {:?} needs {flag}",
                self.detect_local_mode
            );
            Ok(value.to_string())
        };
        let pod_detection = match self.detect_local_mode {
            DetectLocalMode::ClusterCidr => PodDetection::ClusterCidr(self.cluster_cidr.clone()),
            DetectLocalMode::NodeCidr => PodDetection::NodeCidr,
            DetectLocalMode::BridgeInterface => {
                PodDetection::BridgeInterface(named("--pod-bridge-interface", &self.pod_bridge_interface)?)
            }
            DetectLocalMode::InterfaceNamePrefix => {
                let prefix = named("--pod-interface-name-prefix", &self.pod_interface_name_prefix)?;
                PodDetection::InterfaceNamePrefix(prefix)
            }
        };
        Ok(Options {
            node_name: self.node_name.clone(),
            masquerade_all: self.masquerade_all,
            pod_detection,
            node_port_addresses: self.node_port_addresses()?,
            external_ips: !self.no_external_ips,
        })
    }

    fn node_port_addresses(&self) -> anyhow::Result<NodePortAddresses> {
        if self.nodeport_addresses.iter().any(|text| text == "primary") {
            anyhow::ensure!(
                self.nodeport_addresses.len() == 1,
                "--nodeport-addresses: `primary` stands alone"
            );
            return Ok(NodePortAddresses::Primary);
        }
        let cidrs: Result<Vec<IpNet>, String> = self.nodeport_addresses.iter().map(|text| parse_cidr(text)).collect();
        cidrs
            .map(NodePortAddresses::Cidrs)
            .map_err(|cause| anyhow::anyhow!("--nodeport-addresses: {cause}"))
    }

    /// What to read: what kube-proxy reads.
    pub fn source(&self) -> Config {
        let wants = Wants {
            nodes: NodeSelection::Named(self.node_name.clone()),
            ..Wants::forwarding()
        };
        self.source.config(wants, "portolan-proxy")
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
        let options = cli.run.plan.options().expect("options");
        assert_eq!(options.node_name, "n1");
        assert!(matches!(options.pod_detection, PodDetection::ClusterCidr(cidrs) if cidrs.len() == 2));
        assert!(matches!(options.node_port_addresses, NodePortAddresses::Cidrs(cidrs) if cidrs.len() == 2));
    }

    #[test]
    fn a_mode_without_its_value_names_the_flag() {
        let cli = Cli::parse_from(["portolan-proxy", "--detect-local-mode", "BridgeInterface"]);
        let error = cli.run.plan.options().expect_err("a flag is missing").to_string();
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
