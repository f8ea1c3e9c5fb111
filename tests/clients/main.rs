//! Resolvers that are not ours, in a pod of the lab: dig, glibc, musl and busybox ask portolan-dns through its Service.
//!
//! Needs root, nft, dig, busybox and musl-gcc.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use portolan_lab::cleanup;
use portolan_lab::cluster::Cluster;
use portolan_lab::daemon::Daemon;
use portolan_lab::lab::Lab;
use portolan_lab::process::{Place, Process};
use portolan_lab::run::start_upstream;
use portolan_lab::subject::{DnsSubject, ProxySubject, dns_service};
use serde_json::{Value, json};

/// As many A records as a message of 65,535 bytes has room for, beside a question of this length.
const MOST: usize = 4090;

struct Site {
    _daemons: Vec<Daemon>,
    _upstream: Process,
    cluster: Cluster,
    client: Place,
    musl: PathBuf,
}

#[test]
fn every_resolver_finds_what_there_is() -> Result<()> {
    cleanup::on_signals();
    let site = Site::raise()?;
    small_answers(&site).context("small answers")?;
    let hundred = site.headless("hundred", 100)?;
    large_answer(&site, &hundred).context("a hundred endpoints")?;
    let thousands = site.headless("thousands", 5000)?;
    huge_answer(&site, &thousands).context("five thousand endpoints")
}

/// Services, aliases, pods of a headless Service; by every form of a name, forth and back; and what does not exist.
fn small_answers(site: &Site) -> Result<()> {
    for transport in ["+notcp", "+tcp"] {
        let dig = |args: &[&str]| site.dig(&[&["+short", transport], args].concat());
        equal(&dig(&["web.default.svc.cluster.local"])?, &["10.96.0.80"])?;
        equal(&dig(&["AAAA", "web.default.svc.cluster.local"])?, &["fd00:96::80"])?;
        equal(&dig(&["+search", "web"])?, &["10.96.0.80"])?;
        equal(&dig(&["-x", "10.96.0.80"])?, &["web.default.svc.cluster.local."])?;
        equal(&dig(&["-x", "fd00:96::80"])?, &["web.default.svc.cluster.local."])?;
        let srv = dig(&["SRV", "_http._tcp.peers.default.svc.cluster.local"])?;
        equal(&srv, &["0 100 8080 one.peers.default.svc.cluster.local."])?;
        let alias = dig(&["alias.default.svc.cluster.local"])?;
        equal(&alias, &["10.96.0.80", "web.default.svc.cluster.local."])?;
    }
    let missing = site.dig(&["missing.default.svc.cluster.local"])?;
    ensure!(
        missing.contains("status: NXDOMAIN") && missing.contains("SOA"),
        "{missing}"
    );

    // glibc by its own words, and both C libraries by getaddrinfo. Every form goes through the search list first.
    for name in [
        "web",
        "web.default",
        "web.default.svc",
        "web.default.svc.cluster.local",
        "alias",
    ] {
        let both = ["10.96.0.80", "fd00:96::80"];
        equal(&first_column(&site.run("getent", &["ahosts", name])?), &both)?;
        equal(&site.musl(name)?, &both)?;
    }
    for (name, addresses) in [
        ("web", &["10.96.0.80", "fd00:96::80"][..]),
        ("alias", &["10.96.0.80", "fd00:96::80"]),
        ("peers", &["10.244.1.41"]),
    ] {
        equal(&site.busybox(&format!("{name}.default.svc.cluster.local"))?, addresses)?;
    }
    let reverse = site.run("getent", &["hosts", "10.96.0.80"])?;
    ensure!(reverse.contains("web.default.svc.cluster.local"), "{reverse}");
    for (name, address) in [
        ("four", "10.96.0.84"),
        ("one.peers", "10.244.1.41"),
        ("peers", "10.244.1.41"),
    ] {
        equal(&first_column(&site.run("getent", &["ahosts", name])?), &[address])?;
        equal(&site.musl(name)?, &[address])?;
    }
    for name in ["missing", "missing.default.svc.cluster.local", "web.missing"] {
        ensure!(site.run("getent", &["ahosts", name]).is_err(), "glibc found {name}");
        let answer = site.run(&site.musl, &[name])?;
        ensure!(answer.contains("failed: Name does not resolve"), "musl: {answer}");
    }
    Ok(())
}

/// Too much for a datagram: cut over UDP to some that are right, whole over TCP, where resolvers go by themselves.
fn large_answer(site: &Site, all: &BTreeSet<String>) -> Result<()> {
    let name = "hundred.default.svc.cluster.local";
    let cut = site.dig(&["+notcp", "+ignore", name])?;
    ensure!(header_has(&cut, "tc"), "{cut}");
    some_of(&records(&cut), all, 1)?;
    for args in [&["+tcp", name][..], &[name]] {
        let whole = site.dig(args)?;
        ensure!(
            !header_has(&whole, "tc") && records(&whole) == *all,
            "{args:?}: {whole}"
        );
    }
    let glibc = lines(&first_column(&site.run("getent", &["ahostsv4", "hundred"])?));
    ensure!(glibc == *all, "glibc: {} of {}", glibc.len(), all.len());
    // musl asks over UDP and takes what fits, or goes on over TCP, as its version is; it keeps at most 48.
    some_of(&lines(&site.musl("hundred")?), all, 10)?;
    some_of(&lines(&site.busybox(name)?), all, 10)
}

/// Too much for any message: as many as fit, and each of them right.
fn huge_answer(site: &Site, all: &BTreeSet<String>) -> Result<()> {
    let name = "thousands.default.svc.cluster.local";
    let cut = site.dig(&["+notcp", "+ignore", name])?;
    ensure!(header_has(&cut, "tc"), "{cut}");
    some_of(&records(&cut), all, 1)?;
    let most = site.dig(&["+tcp", name])?;
    some_of(&records(&most), all, MOST)?;
    let glibc = lines(&first_column(&site.run("getent", &["ahostsv4", "thousands"])?));
    some_of(&glibc, all, MOST)?;
    some_of(&lines(&site.musl("thousands")?), all, 10)
}

// === impl Site ===

impl Site {
    /// One node with proxy and DNS server, and a pod to ask from.
    fn raise() -> Result<Self> {
        let lab = Lab::builder().nodes(1).outside(2).build()?;
        let dir = lab.scratch().join("manifests");
        let musl = compile(lab.scratch())?;
        let cluster = Cluster::from_manifests(lab, &dir)?;
        cluster.apply(&dns_service())?;
        let pod = |namespace: &str, name: &str, labels: Value, spec: Value| {
            let mut object = json!({
                "apiVersion": "v1", "kind": "Pod", "spec": spec,
                "metadata": {"name": name, "namespace": namespace, "labels": labels},
            });
            object["spec"]["nodeName"] = "node-1".into();
            object
        };
        let mut one = pod(
            "default",
            "one",
            json!({"app": "peers"}),
            json!({"hostname": "one", "subdomain": "peers"}),
        );
        one["metadata"]["annotations"] = json!({"lab.portolan.dev/address": "10.244.1.41"});
        cluster.apply(&one)?;
        cluster.apply(&pod("default", "client", json!({}), json!({})))?;
        cluster.apply(&pod("kube-system", "dns", json!({"k8s-app": "kube-dns"}), json!({})))?;
        let service = |name: &str, spec: Value| json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec});
        let ports = json!([{"name": "http", "port": 80, "targetPort": 8080}]);
        for object in [
            service(
                "web",
                json!({"ports": ports, "clusterIP": "10.96.0.80", "clusterIPs": ["10.96.0.80", "fd00:96::80"],
                       "ipFamilyPolicy": "RequireDualStack"}),
            ),
            service("four", json!({"ports": ports, "clusterIP": "10.96.0.84"})),
            service(
                "peers",
                json!({"ports": ports, "clusterIP": "None", "selector": {"app": "peers"}}),
            ),
            service(
                "alias",
                json!({"type": "ExternalName", "externalName": "web.default.svc.cluster.local"}),
            ),
        ] {
            cluster.apply(&object)?;
        }
        let (lab, source) = (cluster.lab(), cluster.source());
        let dns_pod = lab.pod("kube-system/dns").context("the DNS server has no pod")?;
        let upstream_process = start_upstream(lab)?;
        let upstream = lab.host("outside-2").context("no upstream")?.address.v4;
        let dns = DnsSubject::Portolan.start(lab, &dns_pod, &source, upstream.into())?;
        let proxy = ProxySubject::Nft.start(lab, lab.node("node-1")?, &source)?;
        let daemons: Vec<Daemon> = dns.into_iter().chain([proxy]).collect();
        daemons.iter().try_for_each(Daemon::wait_ready)?;
        let client = lab.place("client")?;
        Ok(Self {
            _daemons: daemons,
            _upstream: upstream_process,
            cluster,
            client,
            musl,
        })
    }

    /// A headless Service with so many endpoints, known to the DNS server when this returns; its addresses.
    fn headless(&self, name: &str, count: usize) -> Result<BTreeSet<String>> {
        let addresses: Vec<String> = (0..count)
            .map(|n| format!("10.200.{}.{}", n / 200, n % 200 + 1))
            .collect();
        self.cluster.apply(&json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
            "spec": {"clusterIP": "None", "ports": [{"name": "http", "port": 80}]},
        }))?;
        for (n, part) in addresses.chunks(1000).enumerate() {
            let endpoints: Vec<Value> = part.iter().map(|address| json!({"addresses": [address]})).collect();
            self.cluster.apply(&json!({
                "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
                "metadata": {"name": format!("{name}-{n}"), "labels": {"kubernetes.io/service-name": name}},
                "ports": [{"name": "http", "port": 80, "protocol": "TCP"}], "endpoints": endpoints,
            }))?;
        }
        let last = addresses.last().context("no address")?;
        let reverse = || self.dig(&["+short", "-x", last]).is_ok_and(|text| text.contains(name));
        let known = portolan_lab::process::wait_until(std::time::Duration::from_secs(20), reverse);
        ensure!(known, "{last} has no name");
        Ok(addresses.into_iter().collect())
    }

    fn run<S: AsRef<std::ffi::OsStr>>(&self, program: S, args: &[&str]) -> Result<String> {
        self.client.output(program, args)
    }

    fn dig(&self, args: &[&str]) -> Result<String> {
        self.run("dig", args)
    }

    /// What musl's getaddrinfo finds.
    fn musl(&self, name: &str) -> Result<String> {
        let text = self.run(&self.musl, &[name])?;
        ensure!(!text.contains("failed"), "musl: {text}");
        Ok(text.split_whitespace().skip(1).collect::<Vec<_>>().join("\n"))
    }

    /// What busybox nslookup finds. It asks for complete names only.
    fn busybox(&self, name: &str) -> Result<String> {
        let text = self.run("busybox", &["nslookup", name])?;
        // The server comes first, with a port.
        let addresses = text.lines().filter_map(|line| line.strip_prefix("Address: "));
        Ok(addresses.collect::<Vec<_>>().join("\n"))
    }
}

fn equal(text: &str, expect: &[&str]) -> Result<()> {
    let expect: BTreeSet<String> = expect.iter().map(ToString::to_string).collect();
    ensure!(lines(text) == expect, "{text:?} is not {expect:?}");
    Ok(())
}

fn some_of(found: &BTreeSet<String>, all: &BTreeSet<String>, least: usize) -> Result<()> {
    ensure!(found.len() >= least, "{} addresses, fewer than {least}", found.len());
    let strange: Vec<&String> = found.difference(all).take(3).collect();
    ensure!(strange.is_empty(), "nobody's addresses: {strange:?}");
    Ok(())
}

/// Links the small client of this folder with musl.
fn compile(scratch: &Path) -> Result<PathBuf> {
    let program = scratch.join("resolve-musl");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("clients/resolve.c");
    let mut command = Command::new("musl-gcc");
    command.args(["-O1", "-static", "-o"]).arg(&program).arg(source);
    let output = command
        .output()
        .context("musl-gcc cannot be started: cargo xtask doctor --for test")?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(program)
}

fn lines(text: &str) -> BTreeSet<String> {
    text.lines().map(str::to_owned).collect()
}

fn first_column(text: &str) -> String {
    let words = text.lines().filter_map(|line| line.split_whitespace().next());
    words.collect::<Vec<_>>().join("\n")
}

/// The data of the A records in what dig prints.
fn records(text: &str) -> BTreeSet<String> {
    let rows = text.lines().filter(|line| !line.starts_with(';'));
    rows.filter_map(|line| match line.split_whitespace().collect::<Vec<_>>()[..] {
        [_, _, "IN", "A", data] => Some(data.to_owned()),
        _ => None,
    })
    .collect()
}

fn header_has(text: &str, flag: &str) -> bool {
    let flags = text.lines().find_map(|line| line.strip_prefix(";; flags: "));
    flags.is_some_and(|line| {
        line.split(';')
            .next()
            .is_some_and(|list| list.split(' ').any(|word| word == flag))
    })
}
