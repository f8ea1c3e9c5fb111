//! The DNS bench: portolan-dns beside Knot DNS, Unbound and the real CoreDNS in one run. `cargo xtask bench dns` starts it.
//!
//! # What is measured
//!
//! With `--services` Services of `--endpoints` endpoints each on a real API server:
//!
//! - *ready*: from the start of the process to the first right answer about the Service that was made last, and the resident
//!   memory a second later. portolan-dns and CoreDNS read the API server, Knot and Unbound a file with the same names;
//! - *load*: queries a second and CPU time of the server for each query, as many as one dnsperf thread keeps in flight. The
//!   server has one core, dnsperf the other. Then, at a fixed small rate, the median and the 99th percentile of the answer time;
//! - *change*: from the moment the watch says that one EndpointSlice was changed to the first answer that shows it, and from the
//!   sending of the PATCH.
//!
//! The loads: `positive` asks for addresses of Services; `mixed` is 45 % A, 45 % AAAA without data, 10 % names that do not
//! exist; `cached` asks for names of the outside world, which have been asked for before (Knot has no cache and is left out).
//!
//! # How it is kept fair
//!
//! One API server, one set of names, one run: in every round each server gets every load, and every round begins with another
//! server. All have one core and one thread for queries; each reads what its own documentation says it should read. CoreDNS
//! has kubeadm's Corefile. Figures count only when the machine does nothing else: the bench waits until it is idle.

#[path = "../bench/idle.rs"]
mod idle;
mod load;
mod objects;
#[path = "../bench/store.rs"]
mod store;
mod subject;

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::Parser;
use portolan_lab::cluster::Cluster;
use portolan_lab::lab::Lab;

use load::{Kind, Loaded};
use objects::Objects;
use subject::{Running, Subject};

/// Measures portolan-dns beside Knot DNS, Unbound and the real CoreDNS on one API server
#[derive(Debug, Parser)]
#[command(name = "portolan-bench-dns", bin_name = "cargo xtask bench dns", version)]
pub struct Options {
    /// Services
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(10..=60_000))]
    services: u32,
    /// Endpoints of each Service
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=100))]
    endpoints: u32,
    /// Rounds; the median of each figure is shown
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Seconds of each load
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    seconds: u32,
    /// The servers; ratios are to the second
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Subject::Portolan, Subject::Knot, Subject::Unbound, Subject::CoreDns])]
    subjects: Vec<Subject>,
    /// The loads
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Kind::Positive, Kind::Mixed, Kind::Cached])]
    loads: Vec<Kind>,
    /// A small run of everything, to see that it works: its figures mean nothing
    #[arg(long)]
    quick: bool,
}

fn main() -> ExitCode {
    portolan_lab::cleanup::on_signals();
    let mut options = Options::parse();
    if options.quick {
        (options.services, options.endpoints, options.rounds, options.seconds) = (50, 3, 1, 1);
    }
    match run(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<()> {
    portolan_lab::cleanup::sweep(false);
    let lab = Lab::builder().nodes(1).outside(0).control_plane(true).build()?;
    let cluster = Cluster::with_api_server(lab)?;
    let plane = cluster.control_plane().context("the cluster has no control plane")?;
    let objects = Objects::make(cluster.lab(), plane, options.services, options.endpoints)?;
    println!(
        "{} Services x {} endpoints are on the API server",
        options.services, options.endpoints
    );
    let files = load::write_files(cluster.lab(), &objects)?;
    let upstream = subject::start_upstream(cluster.lab(), &objects)?;
    println!("{}", idle::settle(IDLE_PATIENCE)?);
    let mut running = Vec::new();
    println!("\n{:12} {:>10} {:>10}", "", "ready", "memory");
    for subject in &options.subjects {
        let _idle = idle::settle(IDLE_PATIENCE)?;
        let server = subject.start(cluster.lab(), plane, &objects)?;
        println!(
            "{:12} {:>8.2} s {:>6.1} MiB",
            subject.name(),
            server.ready.as_secs_f64(),
            server.memory as f64 / f64::from(1 << 20)
        );
        running.push(server);
    }
    let loaded = rounds(options, &running, &files)?;
    print_loads(options, &loaded);
    change(options, &running, plane, &objects)?;
    drop((running, upstream));
    Ok(())
}

/// How long the machine may take to come to rest before a server is started.
const IDLE_PATIENCE: Duration = Duration::from_secs(180);

type Figures = BTreeMap<(Kind, Subject), Vec<Loaded>>;

fn rounds(options: &Options, running: &[Running], files: &load::Files) -> Result<Figures> {
    let mut figures = Figures::new();
    for kind in &options.loads {
        for server in running.iter().filter(|server| server.subject.serves(*kind)) {
            // What can be cached is; what can be warm is.
            load::warm(server, files.of(*kind))?;
        }
        for round in 0..options.rounds as usize {
            for turn in 0..running.len() {
                let server = &running[(round + turn) % running.len()];
                if server.subject.serves(*kind) {
                    let loaded = load::run(server, files.of(*kind), options.seconds)?;
                    figures.entry((*kind, server.subject)).or_default().push(loaded);
                }
            }
        }
    }
    Ok(figures)
}

fn print_loads(options: &Options, figures: &Figures) {
    for kind in &options.loads {
        println!(
            "\n{:12} {:>12} {:>12} {:>10} {:>10} {:>8}",
            kind.name(),
            "queries/s",
            "CPU a query",
            "p50",
            "p99",
            "lost"
        );
        for subject in &options.subjects {
            let Some(all) = figures.get(&(*kind, *subject)) else {
                continue;
            };
            let median = |value: fn(&Loaded) -> f64| {
                let mut values: Vec<f64> = all.iter().map(value).collect();
                values.sort_by(f64::total_cmp);
                values.get(values.len() / 2).copied().unwrap_or_default()
            };
            println!(
                "{:12} {:>12.0} {:>9.2} us {:>7.0} us {:>7.0} us {:>8.0}",
                subject.name(),
                median(|l| l.rate),
                median(|l| l.cpu_micros),
                median(|l| l.p50_micros),
                median(|l| l.p99_micros),
                median(|l| l.lost as f64),
            );
        }
    }
}

/// Shows how long one change takes to be seen.
fn change(
    options: &Options,
    running: &[Running],
    plane: &portolan_lab::control_plane::ControlPlane,
    objects: &Objects,
) -> Result<()> {
    println!(
        "\n{:12} {:>18} {:>18}",
        "one change", "after the watch", "after the PATCH"
    );
    for server in running.iter().filter(|server| server.subject.follows()) {
        let mut watched = Vec::new();
        let mut patched = Vec::new();
        for _ in 0..options.rounds.max(3) * 3 {
            let seen = objects.change(plane, server)?;
            watched.push(seen.after_watch);
            patched.push(seen.after_patch);
        }
        watched.sort_by(f64::total_cmp);
        patched.sort_by(f64::total_cmp);
        println!(
            "{:12} {:>15.2} ms {:>15.2} ms",
            server.subject.name(),
            watched.get(watched.len() / 2).copied().unwrap_or_default(),
            patched.get(patched.len() / 2).copied().unwrap_or_default()
        );
    }
    Ok(())
}
