//! What one process does: its zones, what it listens on, and what goes where. Made from flags, or from a Corefile and flags.
//!
//! Pure but for the addresses of interfaces that a Corefile names.

mod groups;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use portolan_agent::source::{Config, Wants};

use crate::config::RunArgs;
use crate::corefile::plugins::forward::{Forward, parse_target};
use crate::corefile::plugins::hosts::Hosts;
use crate::corefile::plugins::kubernetes::Kubernetes;
use crate::corefile::plugins::log::Log;
use crate::corefile::plugins::rewrite::Rewrite;
use crate::corefile::plugins::template::Template;
use crate::corefile::{Corefile, Place, Server};
use crate::forward::spec::{Options, Policy};
use crate::server::Encrypted;
use crate::zone::names::text;
use crate::zone::policy::{Autopath, Policy as Treatment};
use crate::zone::{ZoneConfig, ZoneSpec};
use groups::groups;

/// A zone's name in wire form and lower case.
type ZoneName = Box<[u8]>;

/// What one process does.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The cluster's zones; `None` when no server block has any.
    pub zone: Option<ZoneConfig>,
    /// How queries are treated, with or without such zones.
    pub policy: Arc<Treatment>,
    /// Where the cluster's objects come from.
    pub source: Option<Config>,
    /// Listeners, each with what it answers.
    pub groups: Vec<Group>,
    /// Address of `/health`.
    pub health: Option<SocketAddr>,
    /// How long to go on answering after SIGTERM.
    pub lameduck: Duration,
    /// Address of `/ready`.
    pub ready: Option<SocketAddr>,
    /// Address of `/metrics`.
    pub metrics: Option<SocketAddr>,
    /// How often the Corefile is looked at.
    pub reload: Option<Duration>,
    /// The Corefile and what it imports.
    pub files: Vec<PathBuf>,
    /// Plugins by server block, for metrics.
    pub plugins: BTreeSet<(String, String)>,
}

/// Addresses that are answered alike.
#[derive(Clone, Debug)]
pub struct Group {
    /// Addresses for UDP and TCP.
    pub listen: Vec<SocketAddr>,
    /// Addresses on which queries are encrypted.
    pub encrypted: Vec<Encrypted>,
    /// Whether the cluster's zones are answered.
    pub cluster: bool,
    /// What is done with other names.
    pub blocks: Vec<Block>,
    /// Whether upstreams are examined for loops.
    pub detect_loops: bool,
}

/// What a server block does with names that are not the cluster's.
#[derive(Clone, Debug)]
pub struct Block {
    /// Its zone.
    pub zone: ZoneName,
    /// Who is asked.
    pub forwards: Vec<Forward>,
    /// How answers are kept, and only for names in these zones.
    pub cache: Option<(crate::cache::policy::Policy, Vec<ZoneName>)>,
    /// Names under other names.
    pub rewrites: Vec<Rewrite>,
    /// Answers from patterns.
    pub templates: Vec<Template>,
    /// Answers from files.
    pub hosts: Vec<Hosts>,
    /// What is logged.
    pub log: Vec<Log>,
}

// === impl Settings ===

impl Settings {
    /// What the flags alone say.
    ///
    /// # Errors
    /// Names the flag that cannot be used.
    pub fn from_flags(args: &RunArgs) -> Result<Self> {
        let zone = args.zone.zone()?;
        let forward = upstreams(&args.upstreams)?;
        let block = Block {
            zone: Box::new([0]),
            forwards: vec![forward],
            cache: (args.cache_size > 0).then(|| (crate::cache::policy::Policy::default(), Vec::new())),
            rewrites: Vec::new(),
            templates: Vec::new(),
            hosts: Vec::new(),
            log: Vec::new(),
        };
        Ok(Self {
            source: Some(args.zone.source(&zone)),
            policy: zone.policy.clone(),
            zone: Some(zone),
            groups: vec![Group {
                listen: args.listen(),
                encrypted: Vec::new(),
                cluster: true,
                blocks: vec![block],
                detect_loops: true,
            }],
            health: Some(args.health_bind_address.unwrap_or(([0, 0, 0, 0], 8080).into())),
            lameduck: args.lameduck(),
            ready: Some(args.ready_bind_address.unwrap_or(([0, 0, 0, 0], 8181).into())),
            metrics: Some(args.metrics_bind_address.unwrap_or(([0, 0, 0, 0], 9153).into())),
            reload: None,
            files: Vec::new(),
            plugins: ["cache", "forward", "kubernetes"]
                .map(|plugin| (".".to_owned(), plugin.to_owned()))
                .into(),
        })
    }

    /// What a Corefile says, and the flags that win over it.
    ///
    /// # Errors
    /// When both together make no sense.
    pub fn from_corefile(args: &RunArgs, corefile: &Corefile) -> Result<Self> {
        let servers = &corefile.servers;
        let mut plugins = BTreeSet::new();
        for server in servers {
            for zone in server.zones() {
                plugins.extend(server.plugins.iter().map(|plugin| (text(zone), plugin.clone())));
            }
        }
        let first = |what: fn(&Server) -> Option<SocketAddr>| servers.iter().find_map(what);
        let health = servers.iter().find_map(|server| server.health);
        let zone = zones(args, servers)?;
        let source = zone
            .as_ref()
            .map(|(zone, kubernetes)| source(args, zone, kubernetes.as_ref()));
        Ok(Self {
            groups: groups(args, servers, zone.is_some())?,
            zone: zone.map(|(zone, _)| zone),
            policy: Arc::new(treatment(args, servers)),
            source,
            health: args.health_bind_address.or(health.map(|(address, _)| address)),
            lameduck: match args.lameduck {
                Some(seconds) => Duration::from_secs(seconds.into()),
                None => health.map_or(Duration::ZERO, |(_, lameduck)| lameduck),
            },
            ready: args.ready_bind_address.or(first(|server| server.ready)),
            metrics: args.metrics_bind_address.or(first(|server| server.prometheus)),
            reload: servers.iter().filter_map(|server| server.reload).min(),
            files: corefile.files.clone(),
            plugins,
        })
    }

    /// Every address, for UDP and TCP.
    pub fn listen(&self) -> Vec<SocketAddr> {
        self.groups
            .iter()
            .flat_map(|group| group.listen.iter().copied())
            .collect()
    }

    /// What a running process cannot change to, in words; empty when it can.
    pub fn beyond(&self, running: &Self) -> Vec<&'static str> {
        let addresses = |settings: &Self| -> Vec<_> {
            let groups = settings.groups.iter();
            groups
                .map(|g| (g.listen.clone(), g.encrypted.clone(), g.cluster))
                .collect()
        };
        let names = |settings: &Self| {
            settings
                .zone
                .as_ref()
                .map(|zone| zone.zones().iter().map(|z| z.wire.clone()).collect::<Vec<_>>())
        };
        let source = |settings: &Self| settings.source.as_ref().map(|source| format!("{source:?}"));
        // Of endpoints only what names depend on is kept.
        let more = |settings: &Self| {
            let naming = settings.zone.as_ref().map(|zone| &zone.naming);
            naming.map_or((false, false), |naming| (naming.zonal, naming.endpoint_pod_names))
        };
        let mut found = Vec::new();
        let mut say = |differs: bool, what| found.extend(differs.then_some(what));
        say(addresses(self) != addresses(running), "the addresses of server blocks");
        say(names(self) != names(running), "the zones of kubernetes");
        say(source(self) != source(running), "what is read from the API server");
        say(more(self) != more(running), "zonal or endpoint_pod_names of kubernetes");
        say(self.health != running.health, "the address of health");
        say(self.ready != running.ready, "the address of ready");
        say(self.metrics != running.metrics, "the address of prometheus");
        found
    }
}

/// `--upstream` as a `forward`.
fn upstreams(values: &[String]) -> Result<Forward> {
    let (mut to, mut files) = (Vec::new(), Vec::new());
    for value in values {
        match parse_target(value) {
            Some(target) => to.push(target),
            None if value.contains('/') && !value.contains("://") => files.push(PathBuf::from(value)),
            None => bail!(
                "--upstream {value:?} is neither an address such as 192.0.2.1, 192.0.2.1:5353, [2001:db8::1]:53, tls://192.0.2.1 or \
                 https://192.0.2.1 nor a path"
            ),
        }
    }
    if !files.is_empty() && (!to.is_empty() || files.len() > 1) {
        bail!("--upstream takes either addresses or one resolv.conf, not both");
    }
    Ok(Forward {
        place: Place {
            file: "--upstream".into(),
            line: 1,
        },
        from: vec![Box::new([0])],
        except: Vec::new(),
        to,
        files,
        options: Options {
            policy: Policy::Sequential,
            ..Options::default()
        },
    })
}

/// The cluster's zones, and the plugin that names them. In node-local mode there need be no plugin: the zones are those of
/// `--cluster-domain`.
fn zones(args: &RunArgs, servers: &[Server]) -> Result<Option<(ZoneConfig, Option<Kubernetes>)>> {
    let mut named = servers
        .iter()
        .filter_map(|server| server.kubernetes.as_ref().map(|k| (server, k)));
    let Some((server, first)) = named.next() else {
        if args.local_ip.is_empty() {
            return Ok(None);
        }
        let mut zone = args.zone.zone()?;
        zone.policy = Arc::new(treatment(args, servers));
        return Ok(Some((zone, None)));
    };
    let mut specs = Vec::new();
    for (_, kubernetes) in std::iter::once((server, first)).chain(named) {
        let alike = (kubernetes.namespaces == first.namespaces)
            && kubernetes.labels == first.labels
            && kubernetes.namespace_labels == first.namespace_labels
            && kubernetes.kubeconfig == first.kubeconfig
            && kubernetes.endpoint == first.endpoint
            && kubernetes.noendpoints == first.noendpoints
            && kubernetes.zonal == first.zonal
            && kubernetes.endpoint_pod_names == first.endpoint_pod_names
            && kubernetes.ignore_empty_service == first.ignore_empty_service;
        if !alike {
            let Place { file, line } = &kubernetes.place;
            bail!(
                "{file}:{line}: kubernetes: reads other objects than the one before; one process reads one cluster in one way"
            );
        }
        let fallthrough = match &kubernetes.fallthrough {
            None => Vec::new(),
            Some(zones) if zones.is_empty() => vec![".".to_owned()],
            Some(zones) => zones.iter().map(|zone| text(zone)).collect(),
        };
        specs.extend(kubernetes.zones.iter().map(|zone| ZoneSpec {
            name: text(zone),
            multicluster: kubernetes.multicluster.contains(zone),
            ttl: kubernetes.ttl,
            negative_ttl: kubernetes.ttl,
            pods: kubernetes.pods,
            fallthrough: fallthrough.clone(),
        }));
    }
    let mut zone = ZoneConfig::from_zones(&specs).with_context(|| {
        let Place { file, line } = &first.place;
        format!("{file}:{line}: kubernetes")
    })?;
    zone.naming.endpoint_pod_names = first.endpoint_pod_names;
    zone.naming.endpoints = !first.noendpoints;
    zone.naming.zonal = first.zonal;
    zone.naming.empty_services = !first.ignore_empty_service;
    zone.naming.namespaces = first.namespaces.iter().cloned().collect();
    let selector = |text: &Option<String>, what: &str| match text {
        None => Ok(portolan_model::Selector::default()),
        Some(text) => portolan_model::Selector::parse(text).map_err(|error| {
            let Place { file, line } = &first.place;
            anyhow::anyhow!("{file}:{line}: kubernetes: {what} {text:?}: {error}")
        }),
    };
    zone.naming.labels = selector(&first.labels, "labels")?;
    zone.naming.namespace_labels = selector(&first.namespace_labels, "namespace_labels")?;
    zone.dns_service = args.zone.dns_service()?;
    zone.policy = Arc::new(treatment(args, servers));
    // A server block without the plugin, for a zone inside one of ours: its names are not ours.
    let others = servers.iter().filter(|server| server.kubernetes.is_none());
    zone.set_elsewhere(others.flat_map(Server::zones).map(|zone| text(zone)));
    Ok(Some((zone, Some(first.clone()))))
}

/// How queries are treated: what the server blocks say together.
fn treatment(args: &RunArgs, servers: &[Server]) -> Treatment {
    let mut treatment = Treatment::default();
    // The rules of a closer server block come first.
    let mut servers: Vec<&Server> = servers.iter().collect();
    servers.sort_by_key(|server| std::cmp::Reverse(server.zones().map(|zone| zone.len()).max()));
    for server in &servers {
        treatment.acl.extend(server.acl.iter().cloned());
        treatment.transfer.extend(server.transfers.iter().cloned());
        if let Some(nsid) = &server.nsid {
            treatment.nsid.get_or_insert_with(|| nsid.clone().into());
        }
        if let Some(size) = server.bufsize {
            treatment.bufsize = size;
        }
        if server.autopath {
            treatment.autopath.get_or_insert_with(Autopath::default);
        }
    }
    // The template of NodeLocal DNSCache leaves it to the central DNS server.
    treatment.shuffle = !args.local_ip.is_empty() || servers.iter().any(|server| server.loadbalance);
    treatment
}

/// Where objects come from: flags win over the Corefile.
fn source(args: &RunArgs, zone: &ZoneConfig, kubernetes: Option<&Kubernetes>) -> Config {
    let mut source = args.zone.source.clone();
    if let Some(kubernetes) = kubernetes
        && source.manifests.is_none()
        && source.kubeconfig.is_none()
        && source.master.is_none()
    {
        source.kubeconfig.clone_from(&kubernetes.kubeconfig);
        source.master.clone_from(&kubernetes.endpoint);
    }
    source.config(wants(zone), "portolan-dns")
}

/// What the zones need to know.
pub fn wants(zone: &ZoneConfig) -> Wants {
    Wants {
        pods: zone.needs_pods(),
        imports: zone.needs_imports(),
        labels: zone.naming.labels.clone(),
        ..Wants::naming()
    }
}
