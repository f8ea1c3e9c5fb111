//! The program itself: from a folder of manifests to answers, live, and to a clean end.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::fixture::{CLUSTER, query};
use crate::live::{PATIENCE, Upstream, ask_udp};

const PROGRAM: &str = env!("CARGO_BIN_EXE_portolan-dns");

/// A running daemon; killed when dropped.
struct Daemon {
    child: Child,
    dns: SocketAddr,
    http: SocketAddr,
}

impl Daemon {
    fn start(manifests: &Path, upstream: &str) -> Self {
        let any = "127.0.0.1:0";
        let mut child = Command::new(PROGRAM)
            .args(["run", "--manifests"])
            .arg(manifests)
            .args(["--upstream", upstream, "--listen", any, "--threads", "1"])
            .args([
                "--health-bind-address",
                any,
                "--ready-bind-address",
                any,
                "--metrics-bind-address",
                any,
            ])
            .env_remove("RUST_LOG")
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap()).lines();
        let mut find = |what: &str| {
            let line = log
                .find_map(|line| line.ok().filter(|line| line.contains(what)))
                .expect(what);
            let (_, address) = line.split_once("address=").expect(&line);
            address.split_whitespace().next().unwrap().parse().unwrap()
        };
        let dns = find("answering over UDP and TCP");
        let http = find("serving HTTP");
        // The rest of the log must not fill the pipe.
        std::thread::spawn(move || log.for_each(drop));
        Self { child, dns, http }
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
    let mut daemon = Daemon::start(folder.path(), &upstream.address.to_string());
    daemon.wait_for("web.shop.svc A", &["10.96.0.20"]);
    daemon.wait_for("www.example.com. A", &["192.0.2.1"]);
    let service = "apiVersion: v1\nkind: Service\nmetadata: {name: later, namespace: shop}\n\
                   spec: {clusterIP: 10.96.0.99, ports: [{port: 80}]}\n";
    std::fs::write(folder.path().join("later.yaml"), service).unwrap();
    daemon.wait_for("later.shop.svc A", &["10.96.0.99"]);
    daemon.wait_for("99.0.96.10.in-addr.arpa. PTR", &["later.shop.svc.cluster.local."]);
    std::fs::remove_file(folder.path().join("later.yaml")).unwrap();
    daemon.wait_for("later.shop.svc A", &[]);
    let first = get(daemon.http, "/version");
    assert!(first.starts_with("HTTP/1.1 "), "{first}");
    let status = Command::new("kill")
        .args(["-TERM", &daemon.child.id().to_string()])
        .status()
        .unwrap();
    assert!(status.success());
    assert!(daemon.child.wait().unwrap().success(), "SIGTERM is a clean end");
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
