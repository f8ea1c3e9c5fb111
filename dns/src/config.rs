//! The command line: CoreDNS's words where it has one.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Args, Parser, Subcommand, ValueEnum};
use portolan_agent::source::{Config, SourceArgs};
use portolan_agent::telemetry::LogArgs;
use portolan_agent::version::LONG_VERSION;

use crate::zone::config::PodMode;
use crate::zone::{ZoneConfig, ZoneSpec};

/// How long `answer` waits for its source.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// The cluster's DNS server
#[derive(Debug, Parser)]
#[command(name = "portolan-dns", version = LONG_VERSION, args_conflicts_with_subcommands = true)]
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
    /// Answer DNS queries (the default)
    Run(Box<RunArgs>),
    /// Print what one name answers, and end; nothing listens
    Answer(Box<AnswerArgs>),
    /// Read a Corefile, say what is wrong with it, and end
    Check(CheckArgs),
    /// Take away the addresses that a node-local server left which was killed, and end
    Cleanup(CleanupArgs),
}

/// Flags that answers depend on.
#[derive(Args, Clone, Debug)]
pub struct ZoneArgs {
    /// Where objects come from
    #[command(flatten)]
    pub source: SourceArgs,
    /// Zone of the cluster's names; may be given again, the first one is what addresses are named in
    #[arg(long = "cluster-domain", value_name = "ZONE", default_value = "cluster.local")]
    pub cluster_domains: Vec<String>,
    /// Zone of Services that other clusters export (ServiceImports), such as clusterset.local; may be given again
    #[arg(long = "clusterset-domain", value_name = "ZONE")]
    pub clusterset_domains: Vec<String>,
    /// Seconds that clients may keep an answer, and a negative one
    #[arg(long, value_name = "SECONDS", default_value_t = 5, value_parser = clap::value_parser!(u32).range(0..=3600))]
    pub ttl: u32,
    /// Answers for 1-2-3-4.namespace.pod.ZONE: none, any address, or only addresses of pods (which watches all pods)
    #[arg(long, value_enum, value_name = "MODE", default_value = "disabled")]
    pub pods: PodsArg,
    /// Ask upstream for the names of addresses that are not the cluster's; otherwise they do not exist
    #[arg(long, value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set)]
    pub reverse_fallthrough: bool,
    /// The Service that this server is reached through, which NS records name
    #[arg(long, value_name = "NAMESPACE/NAME", default_value = "kube-system/kube-dns")]
    pub dns_service: String,
}

/// `--pods`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[allow(missing_docs, reason = "each value is the mode it names")]
pub enum PodsArg {
    Disabled,
    Insecure,
    Verified,
}

/// Flags of `run`.
#[derive(Args, Clone, Debug)]
pub struct RunArgs {
    /// What answers depend on
    #[command(flatten)]
    pub zone: ZoneArgs,
    /// CoreDNS's configuration file; flags win over it
    #[arg(long, visible_alias = "conf", value_name = "FILE")]
    pub corefile: Option<PathBuf>,
    /// Address and port to answer on, over UDP and TCP, may be given again; default 0.0.0.0:53 and [::]:53, or what the Corefile
    /// says
    #[arg(long, value_name = "ADDR:PORT")]
    pub listen: Vec<SocketAddr>,
    /// Server to ask for other names, may be given again; or a resolv.conf that names them and is followed live
    #[arg(
        long = "upstream",
        value_name = "ADDR[:PORT]|FILE",
        default_value = "/etc/resolv.conf"
    )]
    pub upstreams: Vec<String>,
    /// Queries that may wait for upstreams; more are refused
    #[arg(long, value_name = "COUNT", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..))]
    pub max_concurrent: u32,
    /// Memory for answers of upstreams, in MiB; 0 keeps none
    #[arg(long, value_name = "MIB", default_value_t = 32)]
    pub cache_size: u16,
    /// UDP sockets and threads for each address; default: one for each core
    #[arg(long, value_name = "COUNT")]
    pub threads: Option<std::num::NonZeroU16>,
    /// Seconds to go on answering after SIGTERM while /ready says no; default: 5 in a pod of the cluster, else 0
    #[arg(long, value_name = "SECONDS")]
    pub lameduck: Option<u16>,
    /// Address of /health; default 0.0.0.0:8080, or what the Corefile says
    #[arg(long, value_name = "ADDR:PORT")]
    pub health_bind_address: Option<SocketAddr>,
    /// Address of /ready; default 0.0.0.0:8181, or what the Corefile says
    #[arg(long, value_name = "ADDR:PORT")]
    pub ready_bind_address: Option<SocketAddr>,
    /// Address of /metrics; default 0.0.0.0:9153, or what the Corefile says
    #[arg(long, value_name = "ADDR:PORT")]
    pub metrics_bind_address: Option<SocketAddr>,
    /// /ready says no while the API server has been silent for five seconds; otherwise it says yes once names are known
    #[arg(long)]
    pub ready_needs_source: bool,
    /// Unix socket over which a starting portolan-dns takes the sockets of the running one, so that no query is lost
    #[arg(long, value_name = "FILE")]
    pub handover: Option<PathBuf>,
    /// Node-local mode: answer on these addresses of this machine, which are made and removed; usually 169.254.20.10 and those of
    /// the DNS Service
    #[arg(long, visible_alias = "localip", value_name = "IP,IP", value_delimiter = ',')]
    pub local_ip: Vec<IpAddr>,
}

/// Flags of `check`.
#[derive(Args, Clone, Debug)]
pub struct CheckArgs {
    /// CoreDNS's configuration file
    #[arg(long, visible_alias = "conf", value_name = "FILE")]
    pub corefile: PathBuf,
}

/// Flags of `cleanup`.
#[derive(Args, Clone, Debug)]
pub struct CleanupArgs {
    /// The addresses that were made; needed on kernels before 5.18 without dummy links only, elsewhere they are found
    #[arg(long, visible_alias = "localip", value_name = "IP,IP", value_delimiter = ',')]
    pub local_ip: Vec<IpAddr>,
}

/// Flags of `answer`.
#[derive(Args, Clone, Debug)]
pub struct AnswerArgs {
    /// What answers depend on
    #[command(flatten)]
    pub zone: ZoneArgs,
    /// The whole name, such as web-0.nginx.default.svc.cluster.local, or an address
    pub name: String,
    /// The type; default A, for an address PTR
    #[arg(value_name = "TYPE")]
    pub type_: Option<String>,
}

// === impl ZoneArgs ===

impl ZoneArgs {
    /// What the source must give for these zones.
    pub fn source(&self, zone: &ZoneConfig) -> Config {
        self.source.config(crate::settings::wants(zone), "portolan-dns")
    }

    /// What the zone is told.
    ///
    /// # Errors
    /// Names the flag that cannot be used.
    pub fn zone(&self) -> Result<ZoneConfig> {
        let mut specs = ZoneSpec::usual(&self.cluster_domains);
        specs.extend(self.clusterset_domains.iter().map(|zone| ZoneSpec {
            multicluster: true,
            ..ZoneSpec::new(zone)
        }));
        let mut config = ZoneConfig::from_zones(&specs).context("--cluster-domain or --clusterset-domain")?;
        config.set_ttl(self.ttl, self.ttl);
        config.set_pods(match self.pods {
            PodsArg::Disabled => PodMode::Disabled,
            PodsArg::Insecure => PodMode::Insecure,
            PodsArg::Verified => PodMode::Verified,
        });
        config.set_fallthrough(self.reverse_fallthrough);
        config.dns_service = self.dns_service()?;
        Ok(config)
    }

    /// The DNS Service as labels in wire form.
    ///
    /// # Errors
    /// When the flag names none.
    pub fn dns_service(&self) -> Result<Box<[u8]>> {
        let Some((namespace, name)) = self.dns_service.split_once('/') else {
            bail!("--dns-service {:?} is not NAMESPACE/NAME", self.dns_service);
        };
        let service = portolan_model::ServiceName::new(namespace, name);
        let key = crate::zone::build::service_key(&service);
        Ok((*key.with_context(|| format!("--dns-service {service} cannot stand in DNS"))?).into())
    }
}

// === impl RunArgs ===

impl RunArgs {
    /// Where to listen when no Corefile says it.
    pub fn listen(&self) -> Vec<SocketAddr> {
        if self.listen.is_empty() {
            let ips = if self.local_ip.is_empty() {
                vec![Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()]
            } else {
                self.local_ip.clone()
            };
            return ips.into_iter().map(|ip: IpAddr| SocketAddr::new(ip, 53)).collect();
        }
        self.listen.clone()
    }

    /// How long to go on answering after SIGTERM.
    pub fn lameduck(&self) -> Duration {
        let source = &self.zone.source;
        let outside = source.manifests.is_some() || source.kubeconfig.is_some() || source.master.is_some();
        let default = if outside { 0 } else { 5 };
        Duration::from_secs(self.lameduck.unwrap_or(default).into())
    }

    /// UDP threads for each address.
    pub fn threads(&self) -> usize {
        let cores = || std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        self.threads.map_or_else(cores, |threads| usize::from(threads.get()))
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn flags_are_read() {
        Cli::command().debug_assert();
        let cli = Cli::parse_from([
            "portolan-dns",
            "--manifests",
            "/tmp",
            "--cluster-domain",
            "K8s.example.com",
        ]);
        assert!(cli.command.is_none());
        assert_eq!(
            cli.run.listen(),
            ["0.0.0.0:53".parse().unwrap(), "[::]:53".parse().unwrap()]
        );
        assert_eq!(cli.run.lameduck(), Duration::ZERO);
        assert_eq!(*cli.run.zone.zone().unwrap().primary, *b"\x03k8s\x07example\x03com\x00");
        let cli = Cli::parse_from(["portolan-dns", "run"]);
        let Some(Command::Run(run)) = cli.command else {
            panic!("{cli:?}")
        };
        assert_eq!(run.lameduck(), Duration::from_secs(5));
        let cli = Cli::parse_from(["portolan-dns", "--dns-service", "coredns"]);
        let error = format!("{:#}", cli.run.zone.zone().unwrap_err());
        assert_eq!(error, "--dns-service \"coredns\" is not NAMESPACE/NAME");
        let cli = Cli::parse_from(["portolan-dns", "--cluster-domain", "a..b"]);
        let error = format!("{:#}", cli.run.zone.zone().unwrap_err());
        assert_eq!(
            error,
            "--cluster-domain or --clusterset-domain: zone \"a..b\": a label is empty or longer than 63 octets"
        );
    }
}
