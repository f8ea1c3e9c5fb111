//! `portolan-proxy run`: the daemon.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use portolan_agent::admin::Admin;
use portolan_agent::{shutdown, source};
use prometheus_client::registry::Registry;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::backend::userspace::{UserspaceBackend, UserspaceOptions};
use crate::backend::{Backend, Disturbance};
use crate::cli::{BackendChoice, RunArgs};
use crate::desired::Desired;
use crate::health::HealthChecks;
use crate::host;
use crate::http::{self, Shared};
use crate::metrics::Metrics;
use crate::state::State;
use crate::sync::Sync;

/// Disturbances that may wait; more of them say nothing new.
const DISTURBANCES: usize = 16;
/// Questions for the status that may wait.
const QUESTIONS: usize = 16;
/// How often an HTTP address that is taken is tried again.
const BIND_INTERVAL: Duration = Duration::from_secs(5);

/// Runs until SIGTERM or SIGINT. What is programmed stays in place.
///
/// # Errors
/// Only before anything was programmed: flags that contradict each other, a source that cannot be, a backend that the
/// kernel refuses.
pub async fn run(args: &RunArgs) -> anyhow::Result<()> {
    let options = args.plan.options()?;
    let stop = shutdown::on_signal().context("cannot listen for signals")?;
    let (disturbed, disturbances) = mpsc::channel(DISTURBANCES);
    let backend = choose_backend(args, disturbed)?;
    let host = host::addresses().context("cannot list this machine's addresses")?;
    let feed = source::start(args.plan.source(), stop.clone()).await?;
    tracing::info!(
        node = options.node_name,
        backend = backend.name(),
        "portolan-proxy starts"
    );

    let mut registry = Registry::default();
    let metrics = Arc::new(Metrics::new(&mut registry));
    let state = Arc::new(State::new());
    let (ask, questions) = mpsc::channel(QUESTIONS);
    let shared = Shared {
        state: state.clone(),
        metrics: metrics.clone(),
        questions: ask,
        mode: backend.name(),
    };
    let health = Admin::new().merge(http::health_routes(shared.clone()));
    let admin = Admin::new()
        .merge(http::admin_routes(shared))
        .metrics(Arc::new(registry))
        .version();
    tokio::spawn(serve(
        health,
        args.healthz_bind_address,
        "--healthz-bind-address",
        stop.clone(),
    ));
    tokio::spawn(serve(
        admin,
        args.metrics_bind_address,
        "--metrics-bind-address",
        stop.clone(),
    ));

    // With manifests, the machine is its own Node where no file says otherwise.
    let stand_in = args.plan.source.manifests.is_some();
    let node = stand_in.then(|| host::node_from_machine(&options.node_name, &host));
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
    };
    sync.run(stop).await;
    Ok(())
}

/// Forwarding matters more than being looked at: an address that is taken is tried again, not fatal.
async fn serve(routes: Admin, address: SocketAddr, flag: &'static str, stop: CancellationToken) {
    let mut told = false;
    loop {
        match routes.clone().bind(address).await {
            Ok(bound) => return bound.serve(stop).await,
            Err(error) if !told => {
                tracing::error!("{error}; trying again every {} s (see {flag})", BIND_INTERVAL.as_secs());
                told = true;
            }
            Err(_) => {}
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(BIND_INTERVAL) => {}
        }
    }
}

/// The backend that was asked for, or with `auto` the best one that the kernel proves able to run.
fn choose_backend(args: &RunArgs, disturbed: mpsc::Sender<Disturbance>) -> anyhow::Result<Box<dyn Backend>> {
    match args.backend {
        BackendChoice::Userspace => Ok(Box::new(userspace(args))),
        BackendChoice::Ebpf => anyhow::bail!("--backend ebpf: this version has nft and userspace"),
        BackendChoice::Nft => kernel::nft(args, disturbed),
        BackendChoice::Auto => match kernel::probe() {
            Ok(()) => {
                tracing::info!("backend nftables: the kernel took all rules that a probe made");
                kernel::nft(args, disturbed)
            }
            Err(cause) => {
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
    use crate::backend::loopback::WithLoopback;
    use crate::backend::nft::{self, NftBackend, NftOptions};

    /// Whether the kernel takes our rules from us.
    pub fn probe() -> anyhow::Result<()> {
        nft::probe(&NftOptions::default()).context("nftables over netlink (this needs CAP_NET_ADMIN and nf_tables)")
    }

    pub fn nft(args: &RunArgs, disturbed: mpsc::Sender<Disturbance>) -> anyhow::Result<Box<dyn Backend>> {
        let options = NftOptions {
            masquerade_bit: args.masquerade_bit,
            ..NftOptions::default()
        };
        let backend = NftBackend::new(options, disturbed)
            .context("backend nft: the kernel refused (it needs CAP_NET_ADMIN; try --backend userspace without)")?;
        let relay = UserspaceBackend::new(UserspaceOptions::default(), Handle::current());
        Ok(Box::new(WithLoopback::new(backend, relay)))
    }
}

#[cfg(not(target_os = "linux"))]
mod kernel {
    use super::*;

    pub fn probe() -> anyhow::Result<()> {
        anyhow::bail!("nftables is a part of Linux")
    }

    pub fn nft(_: &RunArgs, _: mpsc::Sender<Disturbance>) -> anyhow::Result<Box<dyn Backend>> {
        anyhow::bail!("--backend nft needs Linux; --backend userspace runs here")
    }
}
