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
        let any = "127.0.0.1:0";
        // One port for all three, which a moment ago was free.
        let http = TcpListener::bind(any).unwrap().local_addr().unwrap().to_string();
        let mut child = Command::new(PROGRAM)
            .arg("run")
            .args(source)
            .args(["--upstream", upstream, "--listen", any, "--threads", "1"])
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
    assert!(line.contains("upstreams=[192.0.2.2:53, [2001:db8::2]:53]"), "{line}");
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
