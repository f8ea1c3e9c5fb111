//! Node-local mode beside a Service proxy: one node answers its own pods, the others keep their central DNS server, and what
//! happens when the local server is stopped, killed, replaced or started twice.
//!
//! Needs root and nft; beside the real kube-proxy also the programs of `cargo xtask kube-assets`.

use std::ffi::OsString;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use portolan_lab::cluster::Cluster;
use portolan_lab::daemon::{Daemon, DaemonSpec, get};
use portolan_lab::lab::{Host, Lab};
use portolan_lab::probe::{self, dns::Response};
use portolan_lab::process::{Place, Process, wait_until};
use portolan_lab::run::start_upstream;
use portolan_lab::subject::{DnsSubject, ProxySubject, Source, dns_service};
use portolan_lab::{binaries, cleanup};
use serde_json::json;

/// How long a change may take to show, on a machine that does much else.
const PATIENCE: Duration = Duration::from_secs(60);
/// NodeLocal DNSCache's address, and the cluster IPs of kube-dns.
const LINK_LOCAL: &str = "169.254.20.10";
const SERVICE: [&str; 2] = ["10.96.0.10", "fd00:96::a"];
/// A name of the cluster, one of elsewhere, and the address that each has.
const NAMES: [[&str; 2]; 2] = [
    ["web.default.svc.cluster.local.", "10.96.0.80"],
    ["only4.example.com.", "198.51.100.81"],
];

#[test]
fn beside_the_nft_backend() -> Result<()> {
    a_life(ProxySubject::Nft)
}

#[test]
fn beside_the_ebpf_backend() -> Result<()> {
    a_life(ProxySubject::Ebpf)
}

#[test]
fn beside_the_real_kube_proxy() -> Result<()> {
    a_life(ProxySubject::KubeProxy)
}

/// Everything that happens to a node-local server, in one cluster.
fn a_life(subject: ProxySubject) -> Result<()> {
    cleanup::on_signals();
    let site = Site::raise(subject)?;
    let outcome = live(&site);
    outcome.with_context(|| {
        let logs: String = site.daemons().map(|daemon| daemon.log_tail(15)).collect();
        format!("beside {}\n{logs}", subject.name())
    })
}

fn live(site: &Site) -> Result<()> {
    site.eventually("the central server answers", || {
        site.asked_centrally(&site.client(1)?, &SERVICE[..1], true)
    })?;

    let local = site.start_local("first")?;
    site.answered_locally().context("after the start")?;
    others_keep_their_server(site)?;
    a_second_one_takes_nothing_away(site)?;
    let refusal = site
        .cleanup()
        .err()
        .map(|error| format!("{error:#}"))
        .unwrap_or_default();
    ensure!(
        refusal.contains("answers on this node"),
        "cleanup did not refuse: {refusal:?}"
    );
    site.answered_locally().context("after a second start and a cleanup")?;

    local.kill();
    // The very next question: nobody waits for anything.
    for from in [site.client(1)?, site.node()?.place.clone()] {
        site.asked_centrally(&from, &SERVICE, true)
            .context("right after kill -9")?;
    }
    ensure!(site.has_addresses()?, "the addresses of a killed process stay");
    ensure!(
        site.tables()?.is_empty(),
        "the rules of a killed process are left: {:?}",
        site.tables()?
    );

    local.start_again()?;
    local.wait_ready()?;
    site.answered_locally().context("after kill -9 and a start")?;

    let successor = handed_over_under_load(site, &local)?;
    site.answered_locally().context("after the hand-over")?;
    stopped_under_load(site, &successor)?;

    let last = site.start_local("last")?;
    site.answered_locally().context("after a stop and a start")?;
    last.kill();
    let said = site.cleanup()?;
    for address in [LINK_LOCAL, SERVICE[0], SERVICE[1]] {
        ensure!(said.contains(&format!("removed {address}\n")), "{said}");
    }
    ensure!(!site.has_addresses()?, "cleanup has left addresses");
    let said = site.cleanup()?;
    ensure!(said.contains("nothing was left"), "{said}");
    site.asked_centrally(&site.client(1)?, &SERVICE, true)
        .context("after the cleanup")
}

fn others_keep_their_server(site: &Site) -> Result<()> {
    let before = site.local_count()?;
    site.asked_centrally(&site.client(2)?, &SERVICE, true)
        .context("from another node")?;
    let after = site.local_count()?;
    ensure!(before == after, "another node's questions came to this one");
    Ok(())
}

/// The same command once more, by mistake: it says what is wrong, and the first one goes on.
fn a_second_one_takes_nothing_away(site: &Site) -> Result<()> {
    let spec = site.local_spec("second", false)?;
    let output = spec.place.command(&spec.program).args(&spec.args).output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(!output.status.success() && said.contains("in use"), "{said}");
    ensure!(
        site.has_addresses()?,
        "a second start has taken the addresses away: {said}"
    );
    Ok(())
}

fn handed_over_under_load(site: &Site, local: &Daemon) -> Result<Daemon> {
    let load = Load::start(site, &[LINK_LOCAL, SERVICE[0], SERVICE[1]])?;
    load.go_on(20)?;
    let successor = site.start_local("successor")?;
    let ended = wait_until(PATIENCE, || local.ended());
    ensure!(ended, "the predecessor goes on\n{}", local.log_tail(20));
    load.go_on(20)?;
    println!("{} questions over a hand-over, none lost", load.finish()?);
    ensure!(site.has_addresses()?, "the predecessor has taken the addresses along");
    Ok(successor)
}

fn stopped_under_load(site: &Site, local: &Daemon) -> Result<()> {
    let load = Load::start(site, &SERVICE)?;
    load.go_on(20)?;
    local.terminate()?;
    load.go_on(20)?;
    println!("{} questions over a stop, none lost", load.finish()?);
    ensure!(!site.has_addresses()?, "a stop has left addresses");
    ensure!(site.tables()?.is_empty(), "a stop has left rules: {:?}", site.tables()?);
    site.asked_centrally(&site.client(1)?, &SERVICE, true)
        .context("after the stop")
}

struct Site {
    // Daemons end before the cluster does.
    proxies: Vec<Daemon>,
    central: Daemon,
    _upstream: Process,
    cluster: Cluster,
}

// === impl Site ===

impl Site {
    /// Two nodes with a proxy and a pod each; the central DNS server runs on the second.
    fn raise(subject: ProxySubject) -> Result<Self> {
        let api = !subject.is_ours();
        let lab = Lab::builder().nodes(2).outside(2).control_plane(api).build()?;
        let cluster = if api {
            Cluster::with_api_server(lab)?
        } else {
            let dir = lab.scratch().join("manifests");
            Cluster::from_manifests(lab, &dir)?
        };
        cluster.apply(&dns_service())?;
        for (namespace, name, node, app) in [
            ("default", "client-1", "node-1", "client"),
            ("default", "client-2", "node-2", "client"),
            ("kube-system", "dns", "node-2", "kube-dns"),
        ] {
            cluster.apply(&json!({
                "apiVersion": "v1", "kind": "Pod",
                "metadata": {"name": name, "namespace": namespace, "labels": {"k8s-app": app}},
                "spec": {"nodeName": node, "containers": [{"name": "c", "image": "none"}]},
            }))?;
        }
        cluster.apply(&json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "namespace": "default"},
            "spec": {"clusterIP": "10.96.0.80", "ports": [{"port": 80}]},
        }))?;
        let (lab, source) = (cluster.lab(), cluster.source());
        let upstream = start_upstream(lab)?;
        let pod = lab.pod("kube-system/dns").context("the DNS server has no pod")?;
        let central = DnsSubject::Portolan.start(lab, &pod, &source, Self::upstream(lab)?.parse()?)?;
        let central = central.context("no DNS server")?;
        let proxies: Result<Vec<Daemon>> = lab
            .nodes()
            .iter()
            .map(|node| subject.start(lab, node, &source))
            .collect();
        let site = Self {
            proxies: proxies?,
            central,
            _upstream: upstream,
            cluster,
        };
        site.daemons().try_for_each(Daemon::wait_ready)?;
        Ok(site)
    }

    fn daemons(&self) -> impl Iterator<Item = &Daemon> {
        self.proxies.iter().chain([&self.central])
    }

    fn upstream(lab: &Lab) -> Result<String> {
        let host = lab.host("outside-2").context("no upstream")?;
        Ok(host.address.v4.to_string())
    }

    fn node(&self) -> Result<&Host> {
        self.cluster.lab().node("node-1")
    }

    fn client(&self, node: u8) -> Result<Place> {
        self.cluster.lab().place(&format!("client-{node}"))
    }

    fn local_spec(&self, name: &str, handover: bool) -> Result<DaemonSpec> {
        let lab = self.cluster.lab();
        let mut args: Vec<OsString> = vec!["run".into()];
        match self.cluster.source() {
            Source::Manifests(dir) => args.extend(["--manifests".into(), dir.into()]),
            Source::Api(dir) => args.extend(["--kubeconfig".into(), dir.join("portolan-dns.kubeconfig").into()]),
        }
        let addresses = [LINK_LOCAL, SERVICE[0], SERVICE[1]].join(",");
        args.extend(["--local-ip".into(), addresses.into()]);
        args.extend(["--upstream".into(), Self::upstream(lab)?.into()]);
        for (flag, port) in [("health", 8080), ("ready", 8181), ("metrics", 9253)] {
            args.extend([
                format!("--{flag}-bind-address").into(),
                format!("{LINK_LOCAL}:{port}").into(),
            ]);
        }
        if handover {
            args.extend(["--handover".into(), lab.scratch().join("handover.sock").into()]);
        }
        Ok(DaemonSpec {
            name: format!("{name} DNS server of node-1"),
            place: self.node()?.place.clone(),
            program: binaries::find("PORTOLAN_DNS", "portolan-dns")?,
            args,
            ready_url: format!("http://{LINK_LOCAL}:8181/ready"),
            log: lab.scratch().join(format!("dns-node-1-{name}.log")),
        })
    }

    fn start_local(&self, name: &str) -> Result<Daemon> {
        let daemon = Daemon::start(self.local_spec(name, true)?)?;
        daemon.wait_ready()?;
        Ok(daemon)
    }

    /// What `portolan-dns cleanup` says.
    fn cleanup(&self) -> Result<String> {
        let program = binaries::find("PORTOLAN_DNS", "portolan-dns")?;
        self.node()?.place.output(program, ["cleanup"])
    }

    /// Whether the node has the addresses: all of them, or none.
    fn has_addresses(&self) -> Result<bool> {
        let text = self.node()?.place.output("ip", ["-o", "address", "show"])?;
        let found: Vec<bool> = [LINK_LOCAL, SERVICE[0], SERVICE[1]]
            .iter()
            .map(|address| text.contains(&format!(" {address}/")))
            .collect();
        ensure!(
            found.iter().all(|has| *has == found[0]),
            "some addresses are there: {text}"
        );
        Ok(found[0])
    }

    /// The tables that node-local servers have on the node.
    fn tables(&self) -> Result<Vec<String>> {
        let text = self.node()?.place.output("nft", ["list", "tables"])?;
        let ours = text.lines().filter(|line| line.contains("portolan-dns"));
        Ok(ours.map(str::to_owned).collect())
    }

    /// Asks both names at addresses, over UDP and TCP. Every answer has to be right. Says how many questions that were.
    fn ask_all(&self, from: &Place, servers: &[&str], tcp: bool) -> Result<u64> {
        let mut asked = 0;
        for server in servers {
            for [name, address] in NAMES {
                for over_tcp in [false, true] {
                    if over_tcp && !tcp {
                        continue;
                    }
                    let response = ask(from, server, name, over_tcp);
                    let what = || format!("{name} at {server}, {}", if over_tcp { "TCP" } else { "UDP" });
                    let response = response.with_context(what)?;
                    let answers: Vec<&str> = response.answers.iter().map(|answer| &*answer.data).collect();
                    ensure!(answers == [address], "{}: {response:?}", what());
                    asked += 1;
                }
            }
        }
        Ok(asked)
    }

    /// Questions from there are answered, and all of them by the central server.
    fn asked_centrally(&self, from: &Place, servers: &[&str], tcp: bool) -> Result<()> {
        let before = self.central_count()?;
        let asked = self.ask_all(from, servers, tcp)?;
        let counted = self.central_count()? - before;
        ensure!(
            counted == asked,
            "the central server was asked {counted} of {asked} questions"
        );
        Ok(())
    }

    /// Questions of the node and its pods are answered on the node, at every address, and leave no trace in connection
    /// tracking. A proxy that translates at the socket takes a moment to see that the addresses are the node's.
    fn answered_locally(&self) -> Result<()> {
        let all = [LINK_LOCAL, SERVICE[0], SERVICE[1]];
        self.eventually("the node answers", || {
            let before = self.central_count()?;
            for server in all {
                ask(&self.client(1)?, server, NAMES[0][0], false)?;
            }
            let counted = self.central_count()? - before;
            ensure!(counted == 0, "{counted} of 3 questions went to the central server");
            Ok(())
        })?;
        self.node()?.place.output("conntrack", ["-F"])?;
        let (central, local) = (self.central_count()?, self.local_count()?);
        let mut asked = 0;
        for from in [self.client(1)?, self.node()?.place.clone()] {
            asked += self.ask_all(&from, &all, true)?;
        }
        let (centrally, locally) = (self.central_count()? - central, self.local_count()? - local);
        ensure!(
            (centrally, locally) == (0, asked),
            "of {asked} questions {locally} were answered here, {centrally} centrally"
        );
        for family in ["ipv4", "ipv6"] {
            let tracked = self.node()?.place.output("conntrack", ["-L", "-f", family])?;
            let seen = tracked.lines().find(|line| {
                let words: Vec<&str> = line.split_whitespace().collect();
                // The metrics, which tell who answered, are asked at the same address.
                words.contains(&"dport=53") && all.iter().any(|address| words.contains(&&*format!("dst={address}")))
            });
            ensure!(seen.is_none(), "a question was tracked: {seen:?}");
        }
        Ok(())
    }

    fn central_count(&self) -> Result<u64> {
        let pod = self.cluster.lab().place("kube-system/dns")?;
        requests(&pod, "http://127.0.0.1:9153/metrics")
    }

    fn local_count(&self) -> Result<u64> {
        requests(&self.node()?.place, &format!("http://{LINK_LOCAL}:9253/metrics"))
    }

    /// Waits until `check` holds, and says why not when it never does.
    fn eventually(&self, what: &str, mut check: impl FnMut() -> Result<()>) -> Result<()> {
        let mut last = Ok(());
        let held = wait_until(PATIENCE, || {
            last = check();
            last.is_ok()
        });
        if held {
            return Ok(());
        }
        last.with_context(|| format!("never seen: {what}"))
    }
}

fn ask(from: &Place, server: &str, name: &str, tcp: bool) -> Result<Response> {
    let server = if server.contains(':') {
        format!("[{server}]:53")
    } else {
        format!("{server}:53")
    };
    let mut args = vec!["dns", &*server, name, "A", "--timeout-ms", "10000"];
    args.extend(tcp.then_some("--tcp"));
    let text = from.output(probe::binary()?, args)?;
    serde_json::from_str(&text).with_context(|| format!("the probe said {text:?}"))
}

/// How many queries a server has had.
fn requests(place: &Place, url: &str) -> Result<u64> {
    let at = url.to_owned();
    let page = place.netns.run(move || get(&at))?;
    let lines = page
        .body
        .lines()
        .filter(|line| line.starts_with("coredns_dns_requests_total{"));
    let values = lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
    Ok(values.sum::<f64>() as u64)
}

/// Questions from the node's pod all the time, one after the other, each asked once.
struct Load {
    stop: Arc<AtomicBool>,
    asked: Arc<std::sync::atomic::AtomicU64>,
    thread: std::thread::JoinHandle<Result<u64>>,
}

// === impl Load ===

impl Load {
    fn start(site: &Site, servers: &[&'static str]) -> Result<Self> {
        let (stop, asked) = (Arc::<AtomicBool>::default(), Arc::default());
        let (stopped, count): (_, Arc<std::sync::atomic::AtomicU64>) = (stop.clone(), Arc::clone(&asked));
        let (place, servers) = (site.client(1)?, servers.to_vec());
        let thread = std::thread::spawn(move || {
            for server in servers.iter().cycle() {
                if stopped.load(Ordering::Relaxed) {
                    break;
                }
                let [name, address] = NAMES[0];
                let number = count.load(Ordering::Relaxed) + 1;
                let response =
                    ask(&place, server, name, false).with_context(|| format!("question {number} to {server}"))?;
                ensure!(
                    response.answers.iter().any(|a| a.data == address),
                    "{server}: {response:?}"
                );
                count.store(number, Ordering::Relaxed);
            }
            Ok(count.load(Ordering::Relaxed))
        });
        Ok(Self { stop, asked, thread })
    }

    /// Waits until so many more questions are answered.
    fn go_on(&self, more: u64) -> Result<()> {
        let until = self.asked.load(Ordering::Relaxed) + more;
        let done = || self.asked.load(Ordering::Relaxed) >= until || self.thread.is_finished();
        ensure!(wait_until(PATIENCE, done), "{more} more questions take too long");
        Ok(())
    }

    /// Ends it: how many questions there were.
    fn finish(self) -> Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        match self.thread.join() {
            Ok(outcome) => outcome,
            Err(_) => bail!("the load panicked"),
        }
    }
}
