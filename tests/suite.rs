//! The suite: every scenario on every subject that can carry it, from manifests and through an API server.
//!
//! `cargo test -p portolan-lab --test suite -- --help` tells the options. It needs root, and fails without.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use portolan_lab::cleanup;
use portolan_lab::differences;
use portolan_lab::rows::{self, Row};
use portolan_lab::run::{Session, Setup};
use portolan_lab::scenario::{ObjectSource, Scenario};
use portolan_lab::subject::{DnsSubject, ProxySubject};

/// Runs the scenarios.
#[derive(Debug, Parser)]
struct Options {
    /// Only scenarios whose name contains one of these.
    filter: Vec<String>,
    /// What makes Services work: nft, userspace, ebpf, kube-proxy; several with commas. Default: nft, ebpf and userspace.
    #[arg(long, value_delimiter = ',')]
    subject: Vec<String>,
    /// What answers DNS: portolan, coredns, none. Default: portolan for our proxies, coredns for kube-proxy.
    #[arg(long)]
    dns: Option<String>,
    /// Where objects come from: manifests, api; both with a comma. Default: both for our proxies.
    #[arg(long, value_delimiter = ',')]
    source: Vec<String>,
    /// Prints what would run.
    #[arg(long)]
    list: bool,
    /// Prints every row of the requirements and what shows it.
    #[arg(long)]
    rows: bool,
    /// Prints where the real kube-proxy does something else, and why (docs/differences.md).
    #[arg(long)]
    differences: bool,
    /// Leaves the lab of a failed scenario in place and tells how to look around.
    #[arg(long)]
    keep: bool,
    /// How many labs are raised at the same time.
    #[arg(long, default_value_t = 4)]
    jobs: usize,
    /// The folder of scenario files.
    #[arg(long, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/scenarios"))]
    scenarios: PathBuf,
    /// Accepted for the sake of `cargo test`, without effect.
    #[arg(long, hide = true)]
    nocapture: bool,
}

/// One session's share: the scenarios that pass through it, in order.
struct Batch {
    setup: Setup,
    scenarios: VecDeque<Scenario>,
}

#[derive(Default)]
struct Tally {
    passed: AtomicUsize,
    failed: AtomicUsize,
    details: Mutex<Vec<String>>,
}

fn main() -> ExitCode {
    cleanup::on_signals();
    let result = run(&Options::parse());
    cleanup::remove_all();
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<bool> {
    let scenarios = Scenario::read_all(&options.scenarios)?;
    if options.rows {
        return print_rows(&scenarios);
    }
    if options.differences {
        print!("{}", differences::table(&scenarios));
        return Ok(true);
    }
    let batches = batches(options, &scenarios)?;
    if options.list {
        return Ok(list(&batches, options));
    }
    // SAFETY: geteuid has no preconditions.
    let user = unsafe { libc::geteuid() };
    ensure!(user == 0, "the scenarios need root: they make network namespaces");
    cleanup::sweep(false);
    build_daemons(&batches)?;
    let start = Instant::now();
    let tally = Tally::default();
    let queue = Mutex::new(batches.into_iter().collect::<VecDeque<_>>());
    std::thread::scope(|scope| {
        for _ in 0..options.jobs.max(1) {
            scope.spawn(|| {
                while let Some(batch) = next(&queue) {
                    run_batch(batch, options, &tally);
                }
            });
        }
    });
    let (passed, failed) = (
        tally.passed.load(Ordering::Relaxed),
        tally.failed.load(Ordering::Relaxed),
    );
    for detail in tally.details.lock().unwrap_or_else(PoisonError::into_inner).iter() {
        println!("\n{detail}");
    }
    println!(
        "\nfinished in {:.1} s\n{passed} passed, {failed} failed",
        start.elapsed().as_secs_f64()
    );
    Ok(failed == 0)
}

/// What is to run, by session. Scenarios that a subject cannot carry are left out of its batch.
fn batches(options: &Options, scenarios: &[Scenario]) -> Result<Vec<Batch>> {
    let subjects: Vec<ProxySubject> = if options.subject.is_empty() {
        vec![ProxySubject::Nft, ProxySubject::Ebpf, ProxySubject::Userspace]
    } else {
        options
            .subject
            .iter()
            .map(|name| ProxySubject::parse(name))
            .collect::<Result<_>>()?
    };
    let mut batches = Vec::new();
    for proxy in subjects {
        let dns = match &options.dns {
            Some(name) => DnsSubject::parse(name)?,
            None if proxy.is_ours() => DnsSubject::Portolan,
            None => DnsSubject::CoreDns,
        };
        for api in sources(options, proxy, dns)? {
            let wanted = |s: &&Scenario| {
                (options.filter.is_empty() || options.filter.iter().any(|part| s.name.contains(part.as_str())))
                    && !s.except.contains_key(&proxy)
                    && s.source.is_none_or(|source| (source == ObjectSource::Api) == api)
                    && !(dns == DnsSubject::None && s.needs_dns())
            };
            let scenarios: VecDeque<Scenario> = scenarios.iter().filter(wanted).cloned().collect();
            if !scenarios.is_empty() {
                batches.push(Batch {
                    setup: Setup { proxy, dns, api },
                    scenarios,
                });
            }
        }
    }
    Ok(batches)
}

/// Whether the objects come from an API server: once, or both ways.
fn sources(options: &Options, proxy: ProxySubject, dns: DnsSubject) -> Result<Vec<bool>> {
    if !proxy.is_ours() || dns == DnsSubject::CoreDns {
        ensure!(
            !options.source.iter().any(|s| s == "manifests"),
            "{} needs --source api",
            proxy.name()
        );
        return Ok(vec![true]);
    }
    if options.source.is_empty() {
        return Ok(vec![false, true]);
    }
    let read = |name: &String| match name.as_str() {
        "manifests" => Ok(false),
        "api" => Ok(true),
        _ => anyhow::bail!("{name:?} is neither manifests nor api"),
    };
    options.source.iter().map(read).collect()
}

/// Prints what would run, and what a subject cannot carry and why.
fn list(batches: &[Batch], options: &Options) -> bool {
    let mut count = 0;
    for batch in batches {
        for scenario in &batch.scenarios {
            println!("{}: test    # {}", test_name(batch.setup, scenario), scenario.title);
            count += 1;
        }
    }
    if let Ok(all) = Scenario::read_all(&options.scenarios) {
        for scenario in &all {
            for (subject, why) in &scenario.except {
                println!("not on {}: {}: {why}", subject.name(), scenario.name);
            }
        }
    }
    println!("{count} tests");
    true
}

/// Prints what this project promises, and by what each row is shown.
fn print_rows(scenarios: &[Scenario]) -> Result<bool> {
    let rows = rows::read_all(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/rows")))?;
    for (name, row) in &rows {
        let (says, by) = match row {
            Row::Scenarios(says) => {
                let covers = |s: &&Scenario| s.covers.iter().any(|row| row == name);
                let by: Vec<&str> = scenarios.iter().filter(covers).map(|s| s.name.as_str()).collect();
                (says, by.join(", "))
            }
            Row::Test { says, test } => (says, test.clone()),
            Row::Not { says, not } => (says, format!("not shown: {not}")),
        };
        println!("{name}: {says}  [{by}]");
    }
    println!("{} rows", rows.len());
    Ok(true)
}

fn test_name(setup: Setup, scenario: &Scenario) -> String {
    let source = if setup.api { "+api" } else { "" };
    format!("scenario::{}{source}::{}", setup.proxy.name(), scenario.name)
}

fn next(queue: &Mutex<VecDeque<Batch>>) -> Option<Batch> {
    queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
}

/// Runs a batch in one session, or in more than one: a scenario that failed may have left anything behind.
fn run_batch(mut batch: Batch, options: &Options, tally: &Tally) {
    let mut session: Option<Session> = None;
    while let Some(scenario) = batch.scenarios.pop_front() {
        let name = test_name(batch.setup, &scenario);
        let ready = match session.take() {
            Some(session) => Ok(session),
            None => Session::start(batch.setup),
        };
        let live = match ready {
            Ok(live) => live,
            Err(error) => {
                // Without a session nothing of this batch can run: all of it has failed, for one reason.
                tally.fail(&name, &format!("no lab: {error:#}"));
                for rest in &batch.scenarios {
                    tally.fail(&test_name(batch.setup, rest), "no lab");
                }
                return;
            }
        };
        match live.run(&scenario) {
            Ok(()) => {
                println!("test {name} ... ok");
                tally.passed.fetch_add(1, Ordering::Relaxed);
                session = Some(live);
            }
            Err(error) => {
                tally.fail(&name, &format!("{}\n{error:#}", scenario.title));
                if options.keep {
                    keep(live);
                }
            }
        }
    }
}

fn keep(session: Session) {
    let lab = session.cluster().lab();
    println!("kept: lab {}, logs in {}", lab.id(), lab.scratch().display());
    println!("  ip netns exec {}-node-1 nft list ruleset", lab.id());
    if let Err(error) = cleanup::keep(lab.id()) {
        eprintln!("{error:#}");
    }
    // Its daemons and pods are killed when they are dropped: they are left to themselves instead.
    std::mem::forget(session);
}

// === impl Tally ===

impl Tally {
    fn fail(&self, name: &str, why: &str) {
        println!("test {name} ... FAILED");
        self.failed.fetch_add(1, Ordering::Relaxed);
        let detail = format!("---- {name}\n{why}");
        self.details.lock().unwrap_or_else(PoisonError::into_inner).push(detail);
    }
}

/// Builds those of our daemons that the run needs and the environment does not name.
fn build_daemons(batches: &[Batch]) -> Result<()> {
    let proxy = batches.iter().any(|b| b.setup.proxy.is_ours()) && std::env::var_os("PORTOLAN_PROXY").is_none();
    let dns = batches.iter().any(|b| b.setup.dns == DnsSubject::Portolan) && std::env::var_os("PORTOLAN_DNS").is_none();
    let wanted = [("portolan-proxy", proxy), ("portolan-dns", dns)];
    let packages = wanted
        .iter()
        .filter(|(_, wanted)| *wanted)
        .flat_map(|(name, _)| ["-p", name]);
    let packages: Vec<&str> = packages.collect();
    if packages.is_empty() {
        return Ok(());
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .context("the crate has no workspace")?;
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .args(["build", "--quiet"])
        .args(&packages)
        .current_dir(root)
        .status();
    ensure!(
        status.context("cargo cannot be started")?.success(),
        "the daemons could not be built"
    );
    Ok(())
}
