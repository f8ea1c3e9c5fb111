//! The eBPF backend's life: killed under load, grown under load, taken away. Needs root.
//!
//! `PORTOLAN_RESTARTS` says how often the daemon is killed (10 unless it is set).

use std::ffi::OsString;
use std::io::Read as _;
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use portolan_lab::binaries;
use portolan_lab::cleanup;
use portolan_lab::cluster::Cluster;
use portolan_lab::daemon::{Daemon, get};
use portolan_lab::lab::{Host, Lab};
use portolan_lab::probe::{self, FailureKind, Report};
use portolan_lab::process::{Place, wait_until};
use portolan_lab::subject::ProxySubject;
use serde_json::{Value, json};

/// How long a change may take to show, on a machine that does much else.
const PATIENCE: Duration = Duration::from_secs(60);
/// More Services than the first maps have room for.
const MANY: usize = 1500;

struct Site {
    daemon: Daemon,
    cluster: Cluster,
}

#[test]
fn the_daemon_is_killed_and_started_again_and_no_connection_fails() -> Result<()> {
    cleanup::on_signals();
    let site = Site::raise()?;
    let times: u32 = match std::env::var("PORTOLAN_RESTARTS") {
        Ok(times) => times.parse().context("PORTOLAN_RESTARTS is no number")?,
        Err(_) => 10,
    };
    let client = site.client()?;
    let load = [
        Load::start(&client, &["10.96.0.80:80"])?,
        Load::start(&client, &["--udp", "10.96.0.80:53"])?,
        Load::start(&client, &["--udp", "--unconnected", "10.96.0.80:53"])?,
        Load::start(&site.node()?.place, &["127.0.0.1:30080"])?,
    ];
    for round in 0..times {
        site.daemon.kill();
        site.daemon.start_again()?;
        // Now and then it is killed again at some moment of its start.
        if round % 3 == 1 {
            std::thread::sleep(Duration::from_millis(u64::from(round * 37 % 400)));
        } else {
            site.daemon.wait_ready()?;
        }
    }
    site.daemon.wait_ready()?;
    for load in load {
        let report = load.finish()?;
        ensure!(report.failures.is_empty(), "{times} restarts: {:?}", report.failures);
        println!("{times} restarts, {} connections, none failed", report.attempts);
    }
    Ok(())
}

#[test]
fn maps_grow_under_load_and_a_restart_finds_them() -> Result<()> {
    cleanup::on_signals();
    let site = Site::raise()?;
    let load = Load::start(&site.client()?, &["10.96.0.80:80"])?;
    let before = site.map_size("backends")?;
    let manifests: Vec<String> = (0..MANY).map(|n| service(n).to_string()).collect();
    let file = site.cluster.lab().scratch().join("manifests/many.yaml");
    std::fs::write(&file, manifests.join("\n---\n"))?;
    let mut size = before;
    ensure!(
        wait_until(PATIENCE, || {
            size = site.map_size("backends").unwrap_or(before);
            size > before
        }),
        "the maps still have room for {before} endpoints\n{}",
        site.daemon.log_tail(20)
    );
    site.connects("10.96.16.1:80")?;
    site.daemon.kill();
    site.daemon.start_again()?;
    site.daemon.wait_ready()?;
    ensure!(site.map_size("backends")? == size, "the maps are not those of before");
    site.connects("10.96.16.1:80")?;
    let report = load.finish()?;
    ensure!(report.failures.is_empty(), "{:?}", report.failures);
    println!(
        "from {before} to {size} endpoints, {} connections, none failed",
        report.attempts
    );
    Ok(())
}

#[test]
fn maps_of_another_build_are_replaced_under_load() -> Result<()> {
    cleanup::on_signals();
    let site = Site::raise()?;
    let load = Load::start(&site.client()?, &["10.96.0.80:80"])?;
    let pins = site.pins()?;
    // Up and down: the programs in use have maps that the daemon which starts knows nothing of.
    for other in ["v999", "v0"] {
        site.daemon.kill();
        let own = own_layout(&pins)?;
        std::fs::rename(pins.join(&own), pins.join(other)).context("the maps cannot be renamed")?;
        site.daemon.start_again()?;
        site.daemon.wait_ready()?;
        ensure!(own_layout(&pins)? == own, "maps of another build are left");
    }
    let report = load.finish()?;
    ensure!(report.failures.is_empty(), "{:?}", report.failures);
    println!("{} connections, none failed", report.attempts);
    Ok(())
}

/// The only folder of maps.
fn own_layout(pins: &std::path::Path) -> Result<String> {
    let entries = std::fs::read_dir(pins)?.flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    let mut layouts = names.filter(|name| name.starts_with('v'));
    let first = layouts.next().context("no maps are pinned")?;
    ensure!(layouts.next().is_none(), "there are maps beside {first}");
    Ok(first)
}

#[test]
fn services_that_find_no_room_are_carried_by_rules() -> Result<()> {
    cleanup::on_signals();
    let site = Site::raise_with(&["--ebpf-map-size", "1024"])?;
    let manifests: Vec<String> = (0..MANY).map(|n| service(n).to_string()).collect();
    let file = site.cluster.lab().scratch().join("manifests/many.yaml");
    std::fs::write(&file, manifests.join("\n---\n"))?;
    let mut left_out = None;
    ensure!(
        wait_until(PATIENCE, || {
            left_out = site.status("left to kernel rules").ok();
            left_out.is_some()
        }),
        "nothing was left out\n{}",
        site.daemon.log_tail(20)
    );
    for target in ["10.96.0.80:80", "10.96.16.1:80", "10.96.21.250:80"] {
        site.connects(target)?;
    }
    // With room again, nothing is left out after the next start.
    std::fs::remove_file(&file)?;
    ensure!(
        wait_until(PATIENCE, || site.status("left to kernel rules").is_err()),
        "still left out: {left_out:?}"
    );
    site.connects("10.96.0.80:80")
}

#[test]
fn connections_are_counted_by_service_and_only_those_that_a_hook_made() -> Result<()> {
    cleanup::on_signals();
    for (flags, expect) in [(&[][..], 20), (&["--socket-lb", "host"], 10)] {
        let site = Site::raise_with(flags)?;
        site.cluster.apply(&json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": "none", "namespace": "default"},
            "spec": {"clusterIP": "10.96.0.90", "ports": [{"port": 80}]},
        }))?;
        let refusals = || site.counted("portolan_service_connections_refused_total", "none");
        let refused = || -> Result<bool> {
            let report = site.attempt("10.96.0.90:80")?;
            let refused = report
                .failures
                .first()
                .is_some_and(|failure| failure.kind == FailureKind::Refused);
            // Rules refuse it as well, until the hooks know of it.
            Ok(refused && (!flags.is_empty() || refusals()? > 0))
        };
        ensure!(
            wait_until(PATIENCE, || refused().is_ok_and(|yes| yes)),
            "not refused, or not counted"
        );
        let name = "portolan_service_connections_total";
        let before = site.counted(name, "web")?;
        let probe = probe::binary()?;
        for place in [site.client()?, site.node()?.place.clone()] {
            place.output(&probe, ["connect", "--count", "10", "10.96.0.80:80"])?;
        }
        let counted = site.counted(name, "web")? - before;
        ensure!(
            counted == expect,
            "{flags:?}: {counted} connections instead of {expect}"
        );
        ensure!(
            (refusals()? > 0) == flags.is_empty(),
            "{flags:?}: {} refusals",
            refusals()?
        );
    }
    Ok(())
}

#[test]
fn auto_proves_the_programs_or_says_that_they_are_missing() -> Result<()> {
    cleanup::on_signals();
    for (flags, mode, missing) in [
        (&["--backend", "auto"][..], "ebpf", false),
        (&["--backend", "auto", "--cgroup", "/nowhere"], "nftables", true),
    ] {
        let site = Site::raise_with(flags)?;
        let page = |path: &str| -> Result<String> {
            let url = format!("http://127.0.0.1:10249{path}");
            Ok(site.node()?.place.netns.run(move || get(&url))?.body)
        };
        ensure!(
            page("/proxyMode")? == mode,
            "{flags:?}: not {mode}\n{}",
            site.daemon.log_tail(20)
        );
        ensure!(
            page("/metrics")?.contains("portolan_missing_ebpf 1") == missing,
            "{flags:?}: the metric says otherwise"
        );
    }
    Ok(())
}

#[test]
fn another_backend_takes_the_programs_away() -> Result<()> {
    cleanup::on_signals();
    let site = Site::raise()?;
    let pins = site.pins()?;
    site.daemon.terminate()?;
    let mut spec = ProxySubject::Nft.prepare(site.cluster.lab(), site.node()?, &site.cluster.source())?;
    spec.args.extend(["--bpffs".into(), pins.clone().into_os_string()]);
    let daemon = Daemon::start(spec)?;
    daemon.wait_ready()?;
    ensure!(
        !pins.join("links").exists(),
        "programs are left: {}",
        daemon.log_tail(20)
    );
    site.connects("10.96.0.80:80")
}

#[test]
fn cleanup_leaves_nothing_and_is_no_error_twice() -> Result<()> {
    cleanup::on_signals();
    let site = Site::raise()?;
    let node = site.node()?;
    let pins = site.pins()?;
    ensure!(
        pins.join("links/connect4").exists(),
        "nothing is pinned in {}",
        pins.display()
    );
    site.daemon.terminate()?;
    // Forwarding goes on without the daemon, until it is taken away.
    site.connects("10.96.0.80:80")?;
    let program = binaries::find("PORTOLAN_PROXY", "portolan-proxy")?;
    for _ in 0..2 {
        let args = ["cleanup".into(), "--bpffs".into(), pins.clone().into_os_string()];
        node.place.output(&program, args)?;
        ensure!(!pins.join("links").exists(), "links are left in {}", pins.display());
    }
    ensure!(
        node.place.output("nft", ["list", "tables"])?.is_empty(),
        "tables are left"
    );
    let report = site.attempt("10.96.0.80:80")?;
    ensure!(!report.failures.is_empty(), "a Service is still reached");
    Ok(())
}

/// Replaces the value of a flag, or adds both.
fn set_flag(args: &mut Vec<OsString>, flag: &[&str]) {
    let [name, value] = flag else { return };
    match args.iter().position(|arg| arg == name) {
        Some(place) => args[place + 1] = value.into(),
        None => args.extend([name.into(), value.into()]),
    }
}

/// A Service with an endpoint that a pod really has.
fn service(n: usize) -> Value {
    let (name, address) = (format!("many-{n}"), format!("10.96.{}.{}", 16 + n / 250, n % 250 + 1));
    json!({
        "apiVersion": "v1", "kind": "List", "items": [
            {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
             "spec": {"clusterIP": address, "ports": [{"port": 80}]}},
            {"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
             "metadata": {"name": name, "labels": {"kubernetes.io/service-name": name}},
             "endpoints": [{"addresses": ["10.244.1.2"], "conditions": {"ready": true}}],
             "ports": [{"port": 8080, "protocol": "TCP"}]},
        ],
    })
}

// === impl Site ===

impl Site {
    /// One node with our proxy, two pods that serve and one that asks.
    fn raise() -> Result<Self> {
        Self::raise_with(&[])
    }

    fn raise_with(flags: &[&str]) -> Result<Self> {
        let lab = Lab::builder().nodes(1).outside(1).build()?;
        let dir = lab.scratch().join("manifests");
        let cluster = Cluster::from_manifests(lab, &dir)?;
        for (name, app) in [("web-1", "web"), ("web-2", "web"), ("client", "client")] {
            cluster.apply(&json!({
                "apiVersion": "v1", "kind": "Pod",
                "metadata": {"name": name, "namespace": "default", "labels": {"app": app}},
                "spec": {"nodeName": "node-1", "containers": [{"name": "c", "image": "none", "ports": [
                    {"containerPort": 8080}, {"containerPort": 5353, "protocol": "UDP"}]}]},
            }))?;
        }
        cluster.apply(&json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "namespace": "default"},
            "spec": {"type": "NodePort", "clusterIP": "10.96.0.80", "selector": {"app": "web"}, "ports": [
                {"name": "http", "port": 80, "targetPort": 8080, "nodePort": 30080},
                {"name": "names", "port": 53, "targetPort": 5353, "protocol": "UDP"}]},
        }))?;
        let source = cluster.source();
        let mut spec = ProxySubject::Ebpf.prepare(cluster.lab(), cluster.lab().node("node-1")?, &source)?;
        for flag in flags.chunks(2) {
            set_flag(&mut spec.args, flag);
        }
        let daemon = Daemon::start(spec)?;
        daemon.wait_ready()?;
        let site = Self { daemon, cluster };
        site.connects("10.96.0.80:80")?;
        Ok(site)
    }

    fn node(&self) -> Result<&Host> {
        self.cluster.lab().node("node-1")
    }

    fn client(&self) -> Result<Place> {
        self.cluster.lab().place("client")
    }

    fn pins(&self) -> Result<std::path::PathBuf> {
        Ok(self
            .cluster
            .lab()
            .scratch()
            .join(format!("bpffs-{}", self.node()?.name)))
    }

    fn attempt(&self, target: &str) -> Result<Report> {
        let text = self.client()?.output(probe::binary()?, ["connect", target])?;
        serde_json::from_str(&text).with_context(|| format!("the probe said {text:?}"))
    }

    /// Waits until the client gets an answer.
    fn connects(&self, target: &str) -> Result<()> {
        let mut last = None;
        let up = wait_until(PATIENCE, || {
            last = Some(self.attempt(target));
            last.as_ref()
                .is_some_and(|report| report.as_ref().is_ok_and(|report| report.failures.is_empty()))
        });
        ensure!(up, "{target}: {last:?}\n{}", self.daemon.log_tail(20));
        Ok(())
    }

    /// For how many elements a map has room.
    fn map_size(&self, map: &str) -> Result<usize> {
        let text = self.status(&format!("map {map}"))?;
        let (_, size) = text
            .split_once(" of ")
            .with_context(|| format!("{text:?} tells no size"))?;
        Ok(size.parse()?)
    }

    /// A counter of a Service's ports, summed.
    fn counted(&self, name: &str, service: &str) -> Result<u64> {
        let page = self.node()?.place.netns.run(|| get("http://127.0.0.1:10249/metrics"))?;
        let label = format!("service=\"{service}\"");
        let lines = page
            .body
            .lines()
            .filter(|line| line.starts_with(name) && line.contains(&label));
        let values = lines.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok());
        Ok(values.sum())
    }

    /// A line of what the daemon says of its backend.
    fn status(&self, key: &str) -> Result<String> {
        let page = self.node()?.place.netns.run(|| get("http://127.0.0.1:10249/status"))?;
        let status: Value = serde_json::from_str(&page.body)?;
        let lines = status["programmed"]
            .as_array()
            .context("no list of what is programmed")?;
        let line = lines.iter().find(|line| line[0] == key);
        let text = line.and_then(|line| line[1].as_str());
        Ok(text.with_context(|| format!("no {key:?}"))?.to_owned())
    }
}

/// New connections all the time.
struct Load {
    child: Child,
}

// === impl Load ===

impl Load {
    fn start(place: &Place, target: &[&str]) -> Result<Self> {
        let mut command = place.command(probe::binary()?);
        command
            .args(["connect", "--keep-going", "--until-stdin-closes", "1", "--count", "50"])
            .args(target)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        Ok(Self {
            child: command.spawn().context("the probe cannot be started")?,
        })
    }

    fn finish(mut self) -> Result<Report> {
        drop(self.child.stdin.take());
        let mut text = String::new();
        let mut out = self.child.stdout.take().context("the probe has no output")?;
        out.read_to_string(&mut text)?;
        serde_json::from_str(&text).with_context(|| format!("the probe said {text:?}"))
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
