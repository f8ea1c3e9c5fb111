//! The program itself: from a folder of manifests to answers, live, and to a clean end.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use crate::fixture::{CLUSTER, query, said};
use crate::live::{PATIENCE, Upstream, ask_udp};

const PROGRAM: &str = env!("CARGO_BIN_EXE_portolan-dns");

/// A running daemon; killed when dropped.
struct Daemon {
    child: Child,
    dns: SocketAddr,
    /// The rest of its log.
    log: mpsc::Receiver<String>,
    http: SocketAddr,
}

impl Daemon {
    fn start(source: [&OsStr; 2], upstream: &str) -> Self {
        Self::with(source, &["--upstream", upstream, "--listen", "127.0.0.1:0"])
    }

    fn with(source: [&OsStr; 2], flags: &[&str]) -> Self {
        let any = "127.0.0.1:0";
        // One port for all three, which a moment ago was free.
        let http = TcpListener::bind(any).unwrap().local_addr().unwrap().to_string();
        let mut child = Command::new(PROGRAM)
            .arg("run")
            .args(source)
            .args(flags)
            .args(["--threads", "1"])
            .args([
                "--health-bind-address",
                &http,
                "--ready-bind-address",
                &http,
                "--metrics-bind-address",
                &http,
            ])
            .env_remove("RUST_LOG")
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let (sender, log) = mpsc::channel();
        std::thread::spawn(move || lines.map_while(Result::ok).try_for_each(|line| sender.send(line)));
        let mut daemon = Self {
            child,
            dns: any.parse().unwrap(),
            log,
            http: http.parse().unwrap(),
        };
        let line = daemon.wait_for_line("answering over UDP and TCP");
        let (_, address) = line.split_once("address=").expect(&line);
        daemon.dns = address.split_whitespace().next().unwrap().parse().unwrap();
        daemon.wait_for_line("serving HTTP");
        daemon
    }

    fn manifests(folder: &Path, upstream: &str) -> Self {
        Self::start(["--manifests".as_ref(), folder.as_ref()], upstream)
    }

    fn wait_for_line(&self, what: &str) -> String {
        loop {
            let line = self
                .log
                .recv_timeout(PATIENCE)
                .unwrap_or_else(|e| panic!("{what}: {e}"));
            if line.contains(what) {
                return line;
            }
        }
    }

    fn signal(&self, signal: &str) {
        let status = Command::new("kill")
            .args([signal, &self.child.id().to_string()])
            .status();
        assert!(status.unwrap().success());
    }

    /// Asks until the answer is as expected, or fails with the last one.
    fn wait_for(&self, question: &str, expect: &[&str]) {
        let begun = Instant::now();
        loop {
            let reply = ask_udp(self.dns, &query(question).to_vec().unwrap());
            let mut said: Vec<_> = reply.answers.iter().map(|record| record.data.to_string()).collect();
            said.sort();
            if said == expect {
                return;
            }
            assert!(begun.elapsed() < PATIENCE, "{question}: {said:?}, not {expect:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn get(address: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

#[test]
fn manifests_are_served_live() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("cluster.yaml"), CLUSTER).unwrap();
    let upstream = Upstream::start();
    let mut daemon = Daemon::manifests(folder.path(), &upstream.address.to_string());
    daemon.wait_for("web.shop.svc A", &["10.96.0.20"]);
    daemon.wait_for("www.example.com. A", &["192.0.2.1"]);
    let service = "apiVersion: v1\nkind: Service\nmetadata: {name: later, namespace: shop}\n\
                   spec: {clusterIP: 10.96.0.99, ports: [{port: 80}]}\n";
    std::fs::write(folder.path().join("later.yaml"), service).unwrap();
    daemon.wait_for("later.shop.svc A", &["10.96.0.99"]);
    daemon.wait_for("99.0.96.10.in-addr.arpa. PTR", &["later.shop.svc.cluster.local."]);
    std::fs::remove_file(folder.path().join("later.yaml")).unwrap();
    daemon.wait_for("later.shop.svc A", &[]);
    let ready = get(daemon.http, "/ready");
    assert!(ready.starts_with("HTTP/1.1 200 ") && ready.ends_with("OK"), "{ready}");
    assert!(get(daemon.http, "/health").starts_with("HTTP/1.1 200 "));
    let metrics = get(daemon.http, "/metrics");
    for line in [
        "coredns_dns_responses_total{server=\"dns://:0\",zone=\"cluster.local.\",view=\"\",rcode=\"NOERROR\",plugin=\"kubernetes\"}",
        "coredns_dns_request_duration_seconds_bucket{",
        "coredns_forward_max_concurrent_rejects_total 0",
        "coredns_cache_entries{server=\"dns://:0\",type=\"success\",zones=\".\",view=\"\"} 1",
        "portolan_dns_synced 1",
    ] {
        assert!(metrics.contains(line), "{line} is not in {metrics}");
    }
    let status = Command::new("kill")
        .args(["-TERM", &daemon.child.id().to_string()])
        .status()
        .unwrap();
    assert!(status.success());
    assert!(daemon.child.wait().unwrap().success(), "SIGTERM is a clean end");
}

#[test]
fn nothing_is_said_without_a_source() {
    let folder = tempfile::tempdir().unwrap();
    let kubeconfig = folder.path().join("kubeconfig");
    // Port 1 refuses.
    let text = "{apiVersion: v1, kind: Config, current-context: x, users: [{name: x, user: {token: x}}],\n\
                clusters: [{name: x, cluster: {server: \"http://127.0.0.1:1\"}}],\n\
                contexts: [{name: x, context: {cluster: x, user: x}}]}\n";
    std::fs::write(&kubeconfig, text).unwrap();
    let upstream = Upstream::start();
    let daemon = Daemon::start(
        ["--kubeconfig".as_ref(), kubeconfig.as_ref()],
        &upstream.address.to_string(),
    );
    for name in ["web.shop.svc A", "10.0.96.10.in-addr.arpa. PTR"] {
        let reply = ask_udp(daemon.dns, &query(name).to_vec().unwrap());
        assert_eq!(said(&reply), ["SERVFAIL".to_owned()].into(), "{name}");
    }
    assert_eq!(upstream.count("10.0.96.10.in-addr.arpa."), 0, "nothing of ours leaks");
    daemon.wait_for("www.example.com. A", &["192.0.2.1"]);
    let ready = get(daemon.http, "/ready");
    assert!(
        ready.starts_with("HTTP/1.1 503 ") && ready.contains("Service ("),
        "{ready}"
    );
    assert!(get(daemon.http, "/health").starts_with("HTTP/1.1 200 "));
}

#[test]
fn resolv_conf_is_followed() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("resolv.conf");
    std::fs::write(&file, "nameserver 192.0.2.1\n").unwrap();
    let daemon = Daemon::manifests(folder.path(), file.to_str().unwrap());
    std::fs::write(&file, "nameserver 192.0.2.2\nnameserver 2001:db8::2\n").unwrap();
    let line = daemon.wait_for_line("upstreams changed");
    assert!(line.contains("192.0.2.2:53, [2001:db8::2]:53"), "{line}");
}

#[test]
fn answer_prints_what_a_name_answers() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("cluster.yaml"), CLUSTER).unwrap();
    let answer = |args: &[&str]| {
        let output = Command::new(PROGRAM)
            .args(["answer", "--manifests"])
            .arg(folder.path())
            .args(args)
            .output();
        let output = output.unwrap();
        let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        (output.status.success(), text)
    };
    let (good, text) = answer(&["web-0.nginx.default.svc.cluster.local"]);
    assert!(
        good && text.contains("web-0.nginx.default.svc.cluster.local.\t5\tIN\tA\t10.244.1.6\n"),
        "{text}"
    );
    let (good, text) = answer(&["10.96.0.20"]);
    assert!(
        good && text.contains("\tIN\tPTR\tweb.shop.svc.cluster.local.\n"),
        "{text}"
    );
    let (good, text) = answer(&["gone.shop.svc.cluster.local", "aaaa"]);
    assert!(
        good && text.starts_with(";; status: NXDOMAIN, flags: qr aa\n"),
        "{text}"
    );
    let (good, text) = answer(&["external.shop.svc.cluster.local"]);
    assert!(
        good && text.contains("CNAME\tdatabase.example.com.\n") && text.contains("upstream"),
        "{text}"
    );
    let (good, text) = answer(&["web.shop", "NONSENSE"]);
    assert!(!good && text.contains("\"NONSENSE\" is no record type"), "{text}");
}

#[test]
fn a_loop_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let run = |upstream: &str| {
        let listen = "127.0.0.1:5399";
        let mut command = Command::new(PROGRAM);
        command
            .args(["run", "--listen", listen, "--upstream", upstream, "--manifests"])
            .arg(folder.path());
        command.output().unwrap()
    };
    let output = run("127.0.0.1:5399");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success());
    assert!(text.contains("upstream 127.0.0.1:5399 is this server itself"), "{text}");
    let output = run("nonsense");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        !output.status.success() && text.contains("--upstream \"nonsense\" is neither"),
        "{text}"
    );
}

/// A folder with the cluster of the fixture, and a Corefile beside it.
fn site(corefile: &str) -> (tempfile::TempDir, std::path::PathBuf, std::path::PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let manifests = folder.path().join("manifests");
    std::fs::create_dir(&manifests).unwrap();
    std::fs::write(manifests.join("cluster.yaml"), CLUSTER).unwrap();
    let file = folder.path().join("Corefile");
    std::fs::write(&file, corefile).unwrap();
    (folder, manifests, file)
}

#[test]
fn a_corefile_is_followed_and_a_broken_one_changes_nothing() {
    let (first, second) = (Upstream::start(), Upstream::start());
    let corefile = |ttl: u32, upstream: &Upstream, more: &str| {
        format!(
            ".:53 {{\n errors\n health {{\n  lameduck 0s\n }}\n ready\n kubernetes cluster.local in-addr.arpa ip6.arpa {{\n  pods insecure\n\
             fallthrough in-addr.arpa ip6.arpa\n  ttl {ttl}\n }}\n prometheus :9153\n forward . {}\n cache 30\n loop\n reload 2s\n \
             loadbalance\n{more}}}\n",
            upstream.address
        )
    };
    let (_folder, manifests, file) = site(&corefile(30, &first, ""));
    let flags = ["--listen", "127.0.0.1:0", "--corefile", file.to_str().unwrap()];
    let daemon = Daemon::with(["--manifests".as_ref(), manifests.as_ref()], &flags);
    daemon.wait_for("web.shop.svc A", &["10.96.0.20"]);
    let ttl = |question: &str| ask_udp(daemon.dns, &query(question).to_vec().unwrap()).answers[0].ttl;
    assert_eq!(ttl("web.shop.svc A"), 30);
    daemon.wait_for("www.example.com. A", &["192.0.2.1"]);
    assert_eq!(first.count("www.example.com."), 1);
    assert!((25..=30).contains(&ttl("www.example.com. A")), "`cache 30` lowers 60");

    std::fs::write(&file, corefile(30, &second, " nonsense\n")).unwrap();
    daemon.signal("-HUP");
    let line = daemon.wait_for_line("the old one stays in force");
    assert!(line.contains("nonsense: is no plugin"), "{line}");
    daemon.wait_for("web.shop.svc A", &["10.96.0.20"]);
    assert!(!get(daemon.http, "/metrics").contains("coredns_reload_failed_total 0"));

    let hosts = " hosts {\n  192.0.2.77 one.example\n  fallthrough\n }\n";
    std::fs::write(&file, corefile(7, &second, hosts)).unwrap();
    daemon.wait_for_line("another Corefile is in force");
    daemon.wait_for("one.example. A", &["192.0.2.77"]);
    daemon.wait_for("next.example.com. A", &["192.0.2.1"]);
    assert_eq!(
        (first.count("next.example.com."), second.count("next.example.com.")),
        (0, 1)
    );
    let begun = Instant::now();
    while ttl("web.shop.svc A") != 7 {
        assert!(begun.elapsed() < PATIENCE);
    }
    let metrics = get(daemon.http, "/metrics");
    for line in [
        "zone=\".\",view=\"\",name=\"kubernetes\"} 1",
        "coredns_build_info{",
        "coredns_reload_version_info{",
        "coredns_cache_misses_total{",
        "coredns_forward_healthcheck_broken_total 0",
        "portolan_dns_stale 0",
    ] {
        assert!(metrics.contains(line), "{line} is not in {metrics}");
    }
    // What takes a restart is said.
    std::fs::write(
        &file,
        corefile(7, &second, "").replace("cluster.local in-addr", "other.local in-addr"),
    )
    .unwrap();
    let line = daemon.wait_for_line("the old one stays in force");
    assert!(line.contains("the zones of kubernetes: that takes a restart"), "{line}");
}

#[test]
fn a_corefile_can_be_checked() {
    let check = |corefile: &str| {
        let (_folder, _, file) = site(corefile);
        let output = Command::new(PROGRAM)
            .args(["check", "--corefile"])
            .arg(file)
            .output()
            .unwrap();
        let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        (output.status.success(), text)
    };
    let (good, text) = check(include_str!("../../src/corefile/tests/kubeadm.Corefile"));
    assert!(
        good && text.contains("the cluster's names in cluster.local., in-addr.arpa., ip6.arpa."),
        "{text}"
    );
    assert!(text.contains(". to /etc/resolv.conf"), "{text}");
    let (good, text) = check(include_str!("../../src/corefile/tests/nodelocaldns.Corefile"));
    assert!(good && text.contains("on 10.96.0.10:53, 169.254.20.10:53:"), "{text}");
    let (good, text) = check(".:53 {\n forward . 192.0.2.1\n etcd\n}\n");
    assert!(
        !good && text.contains("Corefile:3: etcd: is not supported; serve that zone"),
        "{text}"
    );
}

#[test]
fn several_blocks_each_have_their_names() {
    let (stub, root) = (Upstream::start(), Upstream::start());
    let (stub_at, root_at) = (stub.address, root.address);
    let (_folder, manifests, file) = site(&format!(
        "corp.example:53 {{\n forward . {stub_at}\n}}\n244.10.in-addr.arpa:53 {{\n forward . {stub_at}\n}}\n\
         .:53 {{\n kubernetes cluster.local in-addr.arpa {{\n  fallthrough in-addr.arpa\n }}\n forward . {root_at}\n}}\n"
    ));
    let flags = ["--listen", "127.0.0.1:0", "--corefile", file.to_str().unwrap()];
    let daemon = Daemon::with(["--manifests".as_ref(), manifests.as_ref()], &flags);
    daemon.wait_for("www.corp.example. A", &["192.0.2.1"]);
    daemon.wait_for("www.example.com. A", &["192.0.2.1"]);
    assert_eq!(
        (stub.count("www.corp.example."), root.count("www.corp.example.")),
        (1, 0)
    );
    assert_eq!((stub.count("www.example.com."), root.count("www.example.com.")), (0, 1));
    // The closer block has it, although the address is a pod's.
    daemon.wait_for("20.0.96.10.in-addr.arpa. PTR", &["web.shop.svc.cluster.local."]);
    daemon.wait_for("6.1.244.10.in-addr.arpa. PTR", &[]);
    assert!(stub.count("6.1.244.10.in-addr.arpa.") > 0);
}

/// Queries without a pause until told to stop: how many there were, and how many got no good answer.
fn load(server: SocketAddr, stop: &std::sync::atomic::AtomicBool) -> (usize, usize) {
    use std::sync::atomic::Ordering;
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
    socket.connect(server).unwrap();
    let (mut sent, mut lost) = (0, 0);
    let mut buffer = [0; 512];
    while !stop.load(Ordering::Relaxed) {
        sent += 1;
        let mut question = query(if sent % 2 == 0 {
            "web.shop.svc A"
        } else {
            "www.example.com. A"
        });
        question.metadata.id = sent as u16;
        socket.send(&question.to_vec().unwrap()).unwrap();
        let good = socket.recv(&mut buffer).is_ok_and(|length| {
            let reply = hickory_proto::op::Message::from_vec(&buffer[..length]).unwrap();
            reply.metadata.id == question.metadata.id && reply.answers.len() == 1
        });
        lost += usize::from(!good);
    }
    (sent, lost)
}

#[test]
fn a_successor_takes_over_under_load_and_nothing_is_lost() {
    use std::sync::atomic::{AtomicBool, Ordering};
    let (folder, manifests, _) = site("");
    let upstream = Upstream::start();
    let address = upstream.address.to_string();
    let handover = folder.path().join("handover");
    let handover = handover.to_str().unwrap();
    let flags = [
        "--upstream",
        &address,
        "--listen",
        "127.0.0.1:0",
        "--handover",
        handover,
    ];
    let mut daemon = Daemon::with(["--manifests".as_ref(), manifests.as_ref()], &flags);
    let dns = daemon.dns;
    daemon.wait_for("web.shop.svc A", &["10.96.0.20"]);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..2).map(|_| scope.spawn(|| load(dns, &stop))).collect();
        for _ in 0..3 {
            let listen = dns.to_string();
            let flags = ["--upstream", &address, "--listen", &listen, "--handover", handover];
            let mut successor = Daemon::with(["--manifests".as_ref(), manifests.as_ref()], &flags);
            successor.wait_for("web.shop.svc A", &["10.96.0.20"]);
            assert!(daemon.child.wait().unwrap().success(), "the predecessor ends by itself");
            std::mem::swap(&mut daemon, &mut successor);
        }
        // SIGTERM finds nobody to take over: what was asked is answered first.
        stop.store(true, Ordering::Relaxed);
        for client in clients {
            let (sent, lost) = client.join().unwrap();
            assert!(sent > 100, "{sent}");
            assert_eq!(lost, 0, "of {sent}");
        }
    });
    daemon.signal("-TERM");
    assert!(daemon.child.wait().unwrap().success());
    assert!(!Path::new(handover).exists());
}

#[test]
fn what_the_disk_has_is_answered_before_the_api_server_is_there() {
    use clap::Parser;
    use portolan_dns::config::Cli;
    use portolan_dns::settings::Settings;
    let folder = tempfile::tempdir().unwrap();
    let kubeconfig = folder.path().join("kubeconfig");
    let text = "{apiVersion: v1, kind: Config, current-context: x, users: [{name: x, user: {token: x}}],\n\
                clusters: [{name: x, cluster: {server: \"http://127.0.0.1:1\"}}],\n\
                contexts: [{name: x, context: {cluster: x, user: x}}]}\n";
    std::fs::write(&kubeconfig, text).unwrap();
    let (kubeconfig, state) = (kubeconfig.to_str().unwrap(), folder.path().join("state"));
    let state = state.to_str().unwrap();
    let flags = [
        "--state-dir",
        state,
        "--upstream",
        "192.0.2.9",
        "--listen",
        "127.0.0.1:0",
    ];
    // What a process that had read the cluster would have left.
    let cli = Cli::parse_from([&["portolan-dns", "--kubeconfig", kubeconfig], &flags[..]].concat());
    let source = Settings::from_flags(&cli.run).unwrap().source.unwrap();
    let mut store = portolan_dns::run::store(&cli.run, &source).unwrap();
    let mut world = portolan_model::World::default();
    for event in crate::fixture::events(CLUSTER) {
        world.apply(event, &mut portolan_model::Delta::default());
    }
    store.replace(&world).unwrap();
    let daemon = Daemon::with(["--kubeconfig".as_ref(), kubeconfig.as_ref()], &flags);
    let reply = ask_udp(
        daemon.dns,
        &crate::fixture::with_edns(query("web.shop.svc A"), 1232)
            .to_vec()
            .unwrap(),
    );
    assert_eq!(reply.answers[0].data.to_string(), "10.96.0.20");
    assert!(
        format!("{:?}", reply.edns.unwrap().options()).contains("[0, 3, "),
        "EDE 3: stale"
    );
    assert!(get(daemon.http, "/ready").starts_with("HTTP/1.1 200 "));
    assert!(get(daemon.http, "/metrics").contains("portolan_dns_stale 1"));
    drop(daemon);
    // Damaged: said, and not used.
    let file = store.file().to_owned();
    let mut bytes = std::fs::read(&file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&file, bytes).unwrap();
    let flags = [&flags[..], &["--ready-needs-source"]].concat();
    let daemon = Daemon::with(["--kubeconfig".as_ref(), kubeconfig.as_ref()], &flags);
    let reply = ask_udp(daemon.dns, &query("web.shop.svc A").to_vec().unwrap());
    assert_eq!(said(&reply), ["SERVFAIL".to_owned()].into());
    assert!(get(daemon.http, "/ready").starts_with("HTTP/1.1 503 "));
}
