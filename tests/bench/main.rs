//! The bench: what a proxy costs on a node, ours beside the real kube-proxy on the same API server. `cargo xtask bench` starts it.
//!
//! # What is measured
//!
//! `sync`, the default, at each size of `--services`:
//!
//! - *cold load*: from the start of the process to the first connection through the Service that was created last and stands
//!   last in every list;
//! - *one endpoint replaced*: from the sending of the PATCH that replaces one of that Service's endpoints to the first
//!   connection that the new endpoint answers. The API server's own answer to the PATCH is shown beside it;
//! - *one endpoint more*: the same for a PATCH that adds one, so that their number changes;
//! - *listing the rules*: `nft list ruleset` or `iptables-save` after the load;
//! - CPU time until the proxy is idle again, with every process that it starts (kube-proxy runs `nft` or `iptables`), as the
//!   kernel counts it for the node's cgroup, in microseconds;
//! - memory: the highest and the idle resident size, with every process that it starts.
//!
//! `path`, at each size: the time that `connect` takes from a pod, and connections a second from one thread, through cluster
//! IPs of the first, middle and last Services, beside direct connections to the same pods from a node without any proxy.
//!
//! # How it is kept fair
//!
//! - One API server, one set of objects, one run; the subjects take turns and every repeat begins with another one. Ratios
//!   are taken within a repeat.
//! - Each subject has a node and a client pod of its own. A node is clean when its proxy starts: no tables, no conntrack
//!   entries. That no connection succeeds before the start is part of the measurement.
//! - The client tries every millisecond from a thread of its own, each time from a fresh port; earlier attempts may still
//!   succeed. It resets what it opened, so that nothing is left in TIME_WAIT, and the nodes' connection tracking forgets
//!   vain attempts after a second, so that none of them stands in the way of a later one. To find the new endpoint among the others it
//!   asks who answers, pausing a hundredth of the time that has passed: the resolution is one per cent or better than 1 ms.
//! - The Services that are asked have real pods behind them; all others have endpoints at addresses where nobody is.
//! - kube-proxy logs at its default verbosity.
//!
//! Time and memory of the API server are not counted. What the figures are worth depends on the machine being idle: the
//! bench waits until it is, and says so where it never was.

#[cfg(target_os = "linux")]
mod client;
#[cfg(target_os = "linux")]
mod idle;
#[cfg(target_os = "linux")]
mod meter;
#[cfg(target_os = "linux")]
mod path;
#[cfg(target_os = "linux")]
mod report;
#[cfg(target_os = "linux")]
mod scale;
#[cfg(target_os = "linux")]
mod site;
#[cfg(target_os = "linux")]
mod store;
#[cfg(target_os = "linux")]
mod sync;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, ValueEnum};

/// Measures portolan-proxy beside the real kube-proxy on one API server
#[derive(Debug, Parser)]
#[command(name = "portolan-bench", bin_name = "cargo xtask bench", version)]
pub struct Options {
    /// What to measure
    #[arg(value_enum, default_value_t = What::Sync)]
    what: What,
    /// Sizes, each larger than the one before [default: 1000,10000]
    #[arg(long, value_name = "N,N", value_delimiter = ',', value_parser = clap::value_parser!(u32).range(3..=60_000))]
    services: Vec<u32>,
    /// Endpoints of each Service
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u8).range(2..=50))]
    endpoints: u8,
    /// How often each subject is measured at each size [default: 3; path: 10]
    #[arg(long, value_name = "N")]
    repeats: Option<u32>,
    /// Endpoint changes after each cold load
    #[arg(long, value_name = "N", default_value_t = 3)]
    changes: u32,
    /// Connections in each repeat of `path`
    #[arg(long, value_name = "N", default_value_t = 2000)]
    connections: u32,
    /// The programs, in the words of the lab's suite; ratios are to the first [default: nft,kube-proxy; path: also kube-proxy-iptables]
    #[arg(long, value_name = "NAME,NAME", value_delimiter = ',')]
    subjects: Vec<String>,
    /// A small run of everything that is measured, to see that it works: its times mean nothing
    #[arg(long)]
    quick: bool,
    /// Also write every single value into this file, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// What to measure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum What {
    /// Cold load and single changes
    Sync,
    /// Connections through the programmed rules
    Path,
}

// === impl Options ===

impl Options {
    /// The sizes, in increasing order.
    fn sizes(&self) -> Vec<u32> {
        let mut sizes = match (self.services.is_empty(), self.quick) {
            (false, _) => self.services.clone(),
            (true, true) => vec![20, 100],
            (true, false) => vec![1000, 10_000],
        };
        sizes.sort_unstable();
        sizes.dedup();
        sizes
    }

    /// How often each subject is measured at each size.
    fn repeats(&self) -> u32 {
        let usual = if self.what == What::Path { 10 } else { 3 };
        self.repeats.unwrap_or(if self.quick { 1 } else { usual }).max(1)
    }

    /// How many changes follow a cold load.
    fn changes(&self) -> u32 {
        if self.quick { 1 } else { self.changes.max(1) }
    }

    /// How many connections make one repeat of `path`.
    fn connections(&self) -> u32 {
        if self.quick { 100 } else { self.connections.max(10) }
    }
}

#[cfg(target_os = "linux")]
fn main() -> ExitCode {
    portolan_lab::cleanup::on_signals();
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(not(target_os = "linux"))]
fn main() -> ExitCode {
    let _ = Options::parse();
    eprintln!("error: the bench needs the lab, and the lab needs Linux");
    ExitCode::FAILURE
}

#[cfg(target_os = "linux")]
fn run(options: &Options) -> anyhow::Result<()> {
    portolan_lab::cleanup::sweep(false);
    let mut site = site::Site::raise(options)?;
    let measured = match options.what {
        What::Sync => sync::run(&mut site, options)?,
        What::Path => path::run(&mut site, options)?,
    };
    measured.complete()?;
    measured.print();
    if let Some(file) = &options.json {
        measured.write(file)?;
    }
    Ok(())
}
