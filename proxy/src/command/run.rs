//! `portolan-proxy run`: the daemon.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use axum::Router;
use portolan_agent::admin::Admin;
use portolan_agent::events::{Notice, Recorder, Severity};
use portolan_agent::{shutdown, source};
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::backend::userspace::{UserspaceBackend, UserspaceOptions};
use crate::backend::{Backend, Disturbance};
use crate::cli::{BackendChoice, CleanupArgs, RunArgs};
use crate::command::cleanup;
use crate::config::{self, KubeProxyConfiguration, Settings};
use crate::desired::Desired;
use crate::health::HealthChecks;
use crate::host;
use crate::http::{self, Shared};
use crate::lease::Lease;
use crate::limits::{self, Kernel};
use crate::metrics::{Metrics, SourceMetrics};
use crate::state::State;
use crate::sync::Sync;

/// Disturbances that may wait; more of them say nothing new.
const DISTURBANCES: usize = 16;
/// Questions for the status that may wait.
const QUESTIONS: usize = 16;
/// How often an HTTP address that is taken is tried again.
const BIND_INTERVAL: Duration = Duration::from_secs(5);
/// How long the end waits for what is being programmed, or asked of a kernel, a name server or another process.
const END_WAIT: Duration = Duration::from_secs(3);
/// How often the configuration file is looked at.
const CONFIG_INTERVAL: Duration = Duration::from_secs(10);

/// Runs until SIGTERM or SIGINT. What is programmed stays in place.
///
/// # Errors
/// Before anything was programmed: flags that contradict each other, a source that cannot be, a backend that the kernel
/// refuses. Later only an address that is taken, with `bindAddressHardFail`, and a configuration file that changed.
pub async fn run(args: &RunArgs, settings: Settings) -> anyhow::Result<()> {
    settings.notes.iter().for_each(|note| tracing::warn!("{note}"));
    if let Some(file) = &args.kube_proxy.write_config_to {
        return write_config(file, &settings.config);
    }
    if args.kube_proxy.cleanup {
        return cleanup::run(&CleanupArgs {
            bpffs: args.bpffs.clone(),
            kube_proxy: false,
            force: false,
        });
    }
    prepare_node(args, &settings);
    if args.kube_proxy.init_only {
        return Ok(());
    }
    let options = settings.options.clone();
    let stop = shutdown::on_signal().context("cannot listen for signals")?;
    tokio::spawn(end_in_any_case(stop.clone()));
    let (disturbed, disturbances) = mpsc::channel(DISTURBANCES);
    let mut missing = Vec::new();
    let backend = choose_backend(args, &settings, disturbed, &mut missing)?;
    let host = host::addresses().context("cannot list this machine's addresses")?;
    let source = args.plan.source(&settings);
    let events = Recorder::start(&source.origin, "kube-proxy", options.node_name.clone(), stop.clone()).await?;
    let feed = source::start(source, stop.clone()).await?;
    tracing::info!(
        node = options.node_name,
        backend = backend.name(),
        "portolan-proxy starts"
    );
    events.record(starting(&options.node_name, backend.name()));

    let mut registry = Registry::default();
    portolan_agent::process::register(&mut registry);
    registry.register_collector(Box::new(SourceMetrics(feed.health())));
    let metrics = Arc::new(Metrics::new(&mut registry));
    for feature in missing {
        registry.register(
            format!("portolan_missing_{feature}"),
            format!("1: this node cannot run {feature}, and another backend took its place; the log says why"),
            ConstGauge::new(1_i64),
        );
    }
    if let Some(collector) = backend.collector() {
        registry.register_collector(collector);
    }
    let state = Arc::new(State::new(settings.patience));
    let (ask, questions) = mpsc::channel(QUESTIONS);
    let shared = Shared {
        state: state.clone(),
        metrics: metrics.clone(),
        questions: ask,
        mode: backend.name(),
        config: Arc::new(settings.config),
    };
    let health = Admin::new().merge(http::health_routes(shared.clone()));
    // Whoever reaches the page sees every Service of the cluster.
    let shown = args.expose_page || settings.metrics.is_some_and(|address| address.ip().is_loopback());
    let page = if shown {
        http::page::routes(shared.clone())
    } else {
        Router::new()
    };
    let admin = Admin::new()
        .merge(http::admin_routes(shared))
        .merge(page)
        .metrics(Arc::new(registry))
        .version();
    let hard_fail = settings.bind_address_hard_fail;
    let (fatal, mut failures) = mpsc::channel(1);
    let servers = [
        (health, settings.healthz, "--healthz-bind-address"),
        (admin, settings.metrics, "--metrics-bind-address"),
    ];
    for (routes, address, flag) in servers {
        if let Some(address) = address {
            let fatal = hard_fail.then(|| fatal.clone());
            tokio::spawn(serve(routes, address, flag, fatal, stop.clone()));
        }
    }
    if let Some(file) = args.plan.config.clone() {
        tokio::spawn(stop.clone().run_until_cancelled_owned(watch_config(file, fatal)));
    }

    // With manifests, the machine is its own Node where no file says otherwise.
    let stand_in = args.plan.source.manifests.is_some();
    let node = stand_in.then(|| host::node_from_machine(&options.node_name, &host));
    let findings = kernel::rivals();
    findings.iter().for_each(|rival| tracing::warn!("{rival}"));
    let (lease, turns) = Lease::new(backend.programs());
    let sync = Sync {
        feed,
        desired: Desired::new(options, host, node),
        backend,
        disturbances,
        health_checks: HealthChecks::new(state.healthy_flag()),
        state,
        questions,
        metrics,
        stand_in,
        events,
        findings,
        lease,
        turns,
    };
    let ended = stop.clone();
    let failure = async {
        // Whoever could send may have nothing to watch, or be gone: only the signal ends the wait then.
        let failure = tokio::select! {
            Some(failure) = failures.recv() => Some(failure),
            () = ended.cancelled() => None,
        };
        ended.cancel();
        failure
    };
    let ((), failure) = tokio::join!(sync.run(stop), failure);
    failure.map_or(Ok(()), Err)
}

/// A signal ends the daemon whatever it is busy with: forwarding is whole between any two system calls, so nothing is lost
/// by not waiting.
async fn end_in_any_case(stop: CancellationToken) {
    stop.cancelled().await;
    tokio::time::sleep(END_WAIT).await;
    tracing::warn!("still busy after {END_WAIT:?}: ending at once; what is programmed stays");
    // Whoever started this process shall start it again when it was the configuration that ended it.
    std::process::exit(1);
}

/// kube-proxy's Event, so that whoever looks at the Node sees when its proxy started, and which one it is.
fn starting(node: &str, backend: &str) -> Notice {
    Notice {
        kind: "Node",
        namespace: String::new(),
        name: node.into(),
        severity: Severity::Normal,
        reason: "Starting",
        action: "StartKubeProxy",
        note: format!(
            "portolan-proxy {} starts with backend {backend}",
            portolan_agent::version::VERSION
        ),
    }
}

fn write_config(file: &Path, config: &KubeProxyConfiguration) -> anyhow::Result<()> {
    let text = serde_saphyr::to_string(config).context("the configuration cannot be written as YAML")?;
    std::fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))?;
    println!("wrote {}", file.display());
    Ok(())
}

/// Limits of the node, which are kube-proxy's to raise. A machine that plays cluster from a folder keeps its own unless a
/// configuration asks.
fn prepare_node(args: &RunArgs, settings: &Settings) {
    let kernel = Kernel::default();
    let in_a_cluster = args.plan.source.manifests.is_none();
    if !cfg!(target_os = "linux") || !(in_a_cluster || args.plan.config.is_some() || args.kube_proxy.init_only) {
        return;
    }
    let cores = std::thread::available_parallelism().map_or(1, |cores| u32::try_from(cores.get()).unwrap_or(1));
    for problem in limits::raise_conntrack(&kernel, &settings.conntrack, cores) {
        tracing::warn!("conntrack: {problem} (conntrack.maxPerCore 0 and time-outs of 0s leave the node's own)");
    }
    if let Err(problem) = limits::set_oom_score_adj(&kernel, settings.oom_score_adj) {
        tracing::info!("{problem}");
    }
    if let Some(problem) = limits::forwarding(&kernel) {
        tracing::warn!("{problem}");
    }
}

/// As kube-proxy, the daemon ends when its configuration changes: whoever started it starts it again, and forwarding goes
/// on meanwhile. A change that could not be started with is only reported.
async fn watch_config(file: PathBuf, changed: mpsc::Sender<anyhow::Error>) {
    let known = tokio::fs::read(&file).await.ok();
    let mut refused = None;
    loop {
        tokio::time::sleep(CONFIG_INTERVAL).await;
        let Ok(text) = tokio::fs::read(&file).await else {
            continue;
        };
        if known.as_ref() == Some(&text) || refused.as_ref() == Some(&text) {
            continue;
        }
        let checked = config::file::load(&file).map_err(anyhow::Error::from);
        match checked.and_then(|loaded| Settings::new(loaded, "", true)) {
            Ok(_) => {
                let change = anyhow::anyhow!("{} has changed; start again to take it up", file.display());
                // Nobody listens any more at shutdown.
                let _ = changed.send(change).await;
                return;
            }
            Err(error) => {
                tracing::error!("the configuration changed, and is not taken up: {error:#}");
                refused = Some(text);
            }
        }
    }
}

/// Forwarding matters more than being looked at: an address that is taken is tried again, not fatal, unless
/// `bindAddressHardFail` says so.
async fn serve(
    routes: Admin,
    address: SocketAddr,
    flag: &'static str,
    fatal: Option<mpsc::Sender<anyhow::Error>>,
    stop: CancellationToken,
) {
    let mut told = false;
    loop {
        match (routes.clone().bind(address).await, &fatal) {
            (Ok(bound), _) => return bound.serve(stop).await,
            (Err(error), Some(fatal)) => {
                // Nobody listens any more at shutdown.
                let _ = fatal.send(anyhow::anyhow!("{error} (see {flag})")).await;
                return;
            }
            (Err(error), None) if !told => {
                tracing::error!("{error}; trying again every {} s (see {flag})", BIND_INTERVAL.as_secs());
                told = true;
            }
            (Err(_), None) => {}
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(BIND_INTERVAL) => {}
        }
    }
}

/// The backend that was asked for, or with `auto` the best one that the kernel proves able to run; better ones that it
/// cannot run are added to `missing`.
fn choose_backend(
    args: &RunArgs,
    settings: &Settings,
    disturbed: mpsc::Sender<Disturbance>,
    missing: &mut Vec<&'static str>,
) -> anyhow::Result<Box<dyn Backend>> {
    match args.backend(settings) {
        BackendChoice::Userspace => {
            kernel::forget_programs(args);
            Ok(Box::new(userspace(args)))
        }
        BackendChoice::Ebpf => kernel::ebpf(args, settings, disturbed),
        BackendChoice::Nft => {
            kernel::forget_programs(args);
            kernel::nft(settings, disturbed)
        }
        BackendChoice::Auto => match kernel::probe() {
            Ok(()) => match kernel::probe_ebpf(args) {
                Ok(proof) => {
                    tracing::info!("backend ebpf: {proof}");
                    kernel::ebpf(args, settings, disturbed)
                }
                Err(cause) => {
                    tracing::info!(
                        "backend nftables: the kernel took all rules that a probe made; not ebpf: {cause:#}"
                    );
                    missing.push("ebpf");
                    kernel::forget_programs(args);
                    kernel::nft(settings, disturbed)
                }
            },
            Err(cause) => {
                missing.extend(["ebpf", "nftables"]);
                tracing::warn!("backend userspace, because the kernel cannot be programmed: {cause:#}");
                Ok(Box::new(userspace(args)))
            }
        },
    }
}

fn userspace(args: &RunArgs) -> UserspaceBackend {
    let options = UserspaceOptions {
        proxy_protocol: args.proxy_protocol,
        ..UserspaceOptions::default()
    };
    UserspaceBackend::new(options, Handle::current())
}

/// Backends that program the kernel.
#[cfg(target_os = "linux")]
mod kernel {
    use super::*;
    use crate::backend::ebpf::{self, EbpfBackend, EbpfOptions, Proof};
    use crate::backend::loopback::WithLoopback;
    use crate::backend::nft::{self, NftBackend, NftOptions};
    use crate::cli::SocketLb;

    /// Whether the kernel takes our rules from us.
    pub fn probe() -> anyhow::Result<()> {
        nft::probe(&NftOptions::default()).context("nftables over netlink (this needs CAP_NET_ADMIN and nf_tables)")
    }

    /// Who else translates Services here.
    pub fn rivals() -> Vec<String> {
        crate::rivals::find().iter().map(ToString::to_string).collect()
    }

    pub fn nft(settings: &Settings, disturbed: mpsc::Sender<Disturbance>) -> anyhow::Result<Box<dyn Backend>> {
        Ok(Box::new(rules(settings, disturbed)?))
    }

    /// Programs of an earlier process that ran another backend would go on with what they last knew. The rules underneath
    /// them are in place, so that nothing is lost.
    pub fn forget_programs(args: &RunArgs) {
        match ebpf::cleanup(&args.bpffs) {
            Ok(0) => {}
            Ok(programs) => tracing::info!(programs, "took away the eBPF programs of an earlier process"),
            Err(error) => tracing::warn!(%error, "cannot take away the eBPF programs of an earlier process"),
        }
    }

    /// Whether the kernel takes our programs, and connections go through them.
    pub fn probe_ebpf(args: &RunArgs) -> anyhow::Result<Proof> {
        ebpf::probe(&ebpf_options(args))
    }

    pub fn ebpf(
        args: &RunArgs,
        settings: &Settings,
        disturbed: mpsc::Sender<Disturbance>,
    ) -> anyhow::Result<Box<dyn Backend>> {
        let net = rules(settings, disturbed)?;
        let backend = EbpfBackend::new(&ebpf_options(args), net).context("backend ebpf")?;
        Ok(Box::new(backend))
    }

    fn ebpf_options(args: &RunArgs) -> EbpfOptions {
        EbpfOptions {
            cgroup: args.cgroup.clone(),
            bpffs: args.bpffs.clone(),
            host_only: args.socket_lb == SocketLb::Host,
            map_size: args.ebpf_map_size,
        }
    }

    fn rules(settings: &Settings, disturbed: mpsc::Sender<Disturbance>) -> anyhow::Result<WithLoopback<NftBackend>> {
        let options = NftOptions {
            masquerade_bit: settings.masquerade_bit,
            ..NftOptions::default()
        };
        let backend = NftBackend::new(options, disturbed)
            .context("backend nft: the kernel refused (it needs CAP_NET_ADMIN; try --backend userspace without)")?;
        let relay = UserspaceBackend::new(UserspaceOptions::default(), Handle::current());
        Ok(WithLoopback::new(backend, relay))
    }
}

#[cfg(not(target_os = "linux"))]
mod kernel {
    use super::*;

    pub fn probe() -> anyhow::Result<()> {
        anyhow::bail!("nftables is a part of Linux")
    }

    pub fn rivals() -> Vec<String> {
        Vec::new()
    }

    pub fn nft(_: &Settings, _: mpsc::Sender<Disturbance>) -> anyhow::Result<Box<dyn Backend>> {
        anyhow::bail!("--backend nft needs Linux; --backend userspace runs here")
    }

    pub fn forget_programs(_: &RunArgs) {}

    pub fn probe_ebpf(_: &RunArgs) -> anyhow::Result<String> {
        anyhow::bail!("eBPF is a part of Linux")
    }

    pub fn ebpf(_: &RunArgs, _: &Settings, _: mpsc::Sender<Disturbance>) -> anyhow::Result<Box<dyn Backend>> {
        anyhow::bail!("--backend ebpf needs Linux; --backend userspace runs here")
    }
}
