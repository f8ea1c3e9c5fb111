//! [`Settings`]: what a configuration means to us, checked once before anything starts.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;
use portolan_model::parse::{parse_cidr, parse_ip};
use portolan_plan::{NodePortAddresses, Options, PodDetection};

use super::{Conntrack, KubeProxyConfiguration, Loaded};

/// kube-proxy's ports.
const HEALTHZ_PORT: u16 = 10256;
const METRICS_PORT: u16 = 10249;

/// Fields that say how kube-proxy does things that we do otherwise or not at all. By prefix; a prefix that ends in a dot
/// stands for everything below.
const WITHOUT_MEANING: [&str; 18] = [
    "clientConnection.acceptContentTypes",
    "clientConnection.burst",
    "clientConnection.contentType",
    "clientConnection.qps",
    "configSyncPeriod",
    "enableProfiling",
    "featureGates",
    "iptables.minSyncPeriod",
    "iptables.snatNodeInternalIP",
    "ipvs.",
    "logging.flushFrequency",
    "logging.options",
    "logging.vmodule",
    "nftables.minSyncPeriod",
    "portRange",
    "showHiddenMetricsForVersion",
    "windowsRunAsService",
    "winkernel.",
];

/// What the daemon does.
#[derive(Clone, Debug)]
pub struct Settings {
    /// For the planner.
    pub options: Options,
    /// What `mode` asks for.
    pub mode: Mode,
    /// Bit of the packet mark that asks for masquerading.
    pub masquerade_bit: u8,
    /// Where `/healthz` and `/livez` are served.
    pub healthz: Option<SocketAddr>,
    /// Where `/metrics` and the rest are served.
    pub metrics: Option<SocketAddr>,
    /// An address that cannot be listened on ends the daemon.
    pub bind_address_hard_fail: bool,
    /// How long a change may wait before the proxy calls itself unhealthy: twice `syncPeriod`.
    pub patience: Duration,
    /// `oom_score_adj` of this process.
    pub oom_score_adj: i32,
    /// Limits of connection tracking.
    pub conntrack: Conntrack,
    /// For `/configz`.
    pub config: KubeProxyConfiguration,
    /// What is to be logged once.
    pub notes: Vec<String>,
}

/// `mode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Not set: the best backend there is.
    Unset,
    /// `nftables`.
    Nftables,
    /// `iptables`, `ipvs` or `kernelspace`: the best backend there is, with that mode's defaults.
    Other,
}

// === impl Settings ===

impl Settings {
    /// Checks a configuration. `external_ips` is ours alone.
    ///
    /// # Errors
    /// Names the field that cannot be.
    pub fn new(loaded: Loaded, node_name: &str, external_ips: bool) -> anyhow::Result<Self> {
        let Loaded {
            mut config,
            file,
            set,
            unknown,
        } = loaded;
        let mut notes: Vec<String> = Vec::new();
        let from = file
            .as_ref()
            .map(|file| format!("{}: ", file.display()))
            .unwrap_or_default();
        if !unknown.is_empty() {
            notes.push(format!(
                "{from}these fields are unknown and change nothing: {}",
                unknown.join(", ")
            ));
        }
        let idle = without_meaning(&config, &set);
        if !idle.is_empty() {
            notes.push(format!(
                "{from}these fields have no meaning for portolan-proxy: {}",
                idle.join(", ")
            ));
        }
        // A file without a mode means kube-proxy's default, with what that implies for node ports.
        if file.is_some() && config.mode.is_empty() {
            config.mode = "iptables".into();
        }
        let mode = mode(&config.mode)?;
        if mode == Mode::Other {
            notes.push(format!(
                "{from}mode {:?} is kube-proxy's; the best backend of this node takes its place",
                config.mode
            ));
        }
        let (bit, all, sync_period) = match mode {
            Mode::Nftables => (
                config.nftables.masquerade_bit,
                config.nftables.masquerade_all,
                config.nftables.sync_period,
            ),
            _ => (
                config.iptables.masquerade_bit,
                config.iptables.masquerade_all,
                config.iptables.sync_period,
            ),
        };
        anyhow::ensure!(bit < 32, "{from}masqueradeBit: {bit} is not within 0 to 31");
        anyhow::ensure!(!sync_period.is_zero(), "{from}syncPeriod: must be greater than 0");
        anyhow::ensure!(
            (-1000..=1000).contains(&config.oom_score_adj),
            "{from}oomScoreAdj: {} is not within -1000 to 1000",
            config.oom_score_adj
        );
        let bind = parse_ip(&config.bind_address).map_err(|cause| anyhow::anyhow!("{from}bindAddress: {cause}"))?;
        if bind.is_ipv6() && file.is_some() {
            default_to_ipv6(&mut config, &set);
        }
        let node_ip = Some(bind).filter(|ip| !ip.is_unspecified());
        let options = Options {
            node_name: node_name.into(),
            masquerade_all: all,
            pod_detection: pod_detection(&config, &from)?,
            node_port_addresses: node_port_addresses(&config, mode, &from, &mut notes)?,
            external_ips,
            node_ip,
            localhost_node_ports: config.iptables.localhost_node_ports,
        };
        Ok(Self {
            options,
            mode,
            masquerade_bit: bit,
            healthz: address(&config.healthz_bind_address, HEALTHZ_PORT)
                .map_err(|cause| anyhow::anyhow!("{from}healthzBindAddress: {cause}"))?,
            metrics: address(&config.metrics_bind_address, METRICS_PORT)
                .map_err(|cause| anyhow::anyhow!("{from}metricsBindAddress: {cause}"))?,
            bind_address_hard_fail: config.bind_address_hard_fail,
            patience: sync_period.0 * 2,
            oom_score_adj: config.oom_score_adj,
            conntrack: config.conntrack.clone(),
            config,
            notes,
        })
    }
}

/// Fields that a file sets to something else than the default, and that do nothing here.
fn without_meaning(config: &KubeProxyConfiguration, set: &[(String, u64)]) -> Vec<String> {
    let value = |config: &KubeProxyConfiguration, path: &str| {
        let value = serde_json::to_value(config).unwrap_or_default();
        value.pointer(&format!("/{}", path.replace('.', "/"))).cloned()
    };
    let default = KubeProxyConfiguration::default();
    let idle = |path: &str| {
        WITHOUT_MEANING.iter().any(|known| match known.strip_suffix('.') {
            Some(_) => path.starts_with(known),
            None => path == *known || path.strip_prefix(known).is_some_and(|rest| rest.starts_with('.')),
        })
    };
    let changed = |path: &str| value(config, path) != value(&default, path);
    let found = set.iter().filter(|(path, _)| idle(path) && changed(path));
    found.map(|(path, line)| format!("{path} (line {line})")).collect()
}

fn mode(text: &str) -> anyhow::Result<Mode> {
    match text {
        "" => Ok(Mode::Unset),
        "nftables" => Ok(Mode::Nftables),
        "iptables" | "ipvs" | "kernelspace" => Ok(Mode::Other),
        other => anyhow::bail!("mode: {other:?} is none of nftables, iptables, ipvs, kernelspace"),
    }
}

/// kube-proxy's defaults follow the family of `bindAddress`.
fn default_to_ipv6(config: &mut KubeProxyConfiguration, set: &[(String, u64)]) {
    let default = KubeProxyConfiguration::default();
    let is_set = |path: &str| set.iter().any(|(known, _)| known == path);
    if config.healthz_bind_address == default.healthz_bind_address && !is_set("healthzBindAddress") {
        config.healthz_bind_address = SocketAddr::from((Ipv6Addr::UNSPECIFIED, HEALTHZ_PORT)).to_string();
    }
    if config.metrics_bind_address == default.metrics_bind_address && !is_set("metricsBindAddress") {
        config.metrics_bind_address = SocketAddr::from((Ipv6Addr::LOCALHOST, METRICS_PORT)).to_string();
    }
}

fn pod_detection(config: &KubeProxyConfiguration, from: &str) -> anyhow::Result<PodDetection> {
    let named = |field: &str, flag: &str, value: &str| {
        anyhow::ensure!(
            !value.is_empty(),
            "{from}detectLocalMode {} needs detectLocal.{field} ({flag})",
            config.detect_local_mode
        );
        Ok(value.to_string())
    };
    let detection = match &*config.detect_local_mode {
        "" | "ClusterCIDR" => PodDetection::ClusterCidr(cidrs(config.cluster_cidr.split(','), from, "clusterCIDR")?),
        "NodeCIDR" => PodDetection::NodeCidr,
        "BridgeInterface" => {
            let name = &config.detect_local.bridge_interface;
            PodDetection::BridgeInterface(named("bridgeInterface", "--pod-bridge-interface", name)?)
        }
        "InterfaceNamePrefix" => {
            let prefix = &config.detect_local.interface_name_prefix;
            PodDetection::InterfaceNamePrefix(named("interfaceNamePrefix", "--pod-interface-name-prefix", prefix)?)
        }
        other => anyhow::bail!(
            "{from}detectLocalMode: {other:?} is none of ClusterCIDR, NodeCIDR, BridgeInterface, InterfaceNamePrefix"
        ),
    };
    Ok(detection)
}

fn cidrs<'a>(texts: impl Iterator<Item = &'a str>, from: &str, field: &str) -> anyhow::Result<Vec<IpNet>> {
    let texts = texts.map(str::trim).filter(|text| !text.is_empty());
    let cidrs: Result<Vec<IpNet>, String> = texts.map(parse_cidr).collect();
    cidrs.map_err(|cause| anyhow::anyhow!("{from}{field}: {cause}"))
}

/// `primary`, or ranges; the words `localhost` and `all` stand for ranges. Where nothing is set, the mode decides as in
/// kube-proxy: iptables and ipvs serve every address of the node, everything else its primary ones.
fn node_port_addresses(
    config: &KubeProxyConfiguration,
    mode: Mode,
    from: &str,
    notes: &mut Vec<String>,
) -> anyhow::Result<NodePortAddresses> {
    let given = &config.node_port_addresses;
    let everything = ["0.0.0.0/0", "::/0"];
    if given.is_empty() {
        if mode != Mode::Other {
            return Ok(NodePortAddresses::Primary);
        }
        notes.push(format!(
            "{from}nodePortAddresses is unset: node ports are served on every address of this node, as kube-proxy's mode \
             {:?} does; consider `primary`",
            config.mode
        ));
        return Ok(NodePortAddresses::Cidrs(cidrs(
            everything.into_iter(),
            from,
            "nodePortAddresses",
        )?));
    }
    if given.iter().any(|text| text == "primary") {
        anyhow::ensure!(given.len() == 1, "{from}nodePortAddresses: `primary` stands alone");
        return Ok(NodePortAddresses::Primary);
    }
    let texts = given.iter().flat_map(|text| match &**text {
        "all" => everything.to_vec(),
        "localhost" => vec!["127.0.0.0/8", "::1/128"],
        range => vec![range],
    });
    Ok(NodePortAddresses::Cidrs(cidrs(texts, from, "nodePortAddresses")?))
}

/// `ADDR:PORT`, or an address alone, which gets kube-proxy's port. Empty means nowhere.
fn address(text: &str, port: u16) -> Result<Option<SocketAddr>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    let alone = || {
        text.trim_matches(['[', ']'])
            .parse::<IpAddr>()
            .map(|ip| SocketAddr::new(ip, port))
    };
    // Go takes `:10256` for every address.
    let every = || {
        text.strip_prefix(':')?
            .parse()
            .ok()
            .map(|port| SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)))
    };
    let parsed = text.parse().ok().or_else(|| alone().ok()).or_else(every);
    parsed
        .map(Some)
        .ok_or_else(|| format!("{text:?} is not ADDR:PORT, such as 0.0.0.0:{port}"))
}
