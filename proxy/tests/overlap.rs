//! Two daemons on one node, as during a rolling update: the real program, the real kernel, in a network namespace (root).

#![cfg(target_os = "linux")]

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Output};
use std::thread;
use std::time::{Duration, Instant};

/// How long a state may take to come about.
const WINDOW: Duration = Duration::from_secs(30);

struct Daemon {
    child: Child,
    address: &'static str,
}

impl Daemon {
    fn start(manifests: &Path, health: &str, address: &'static str) -> Self {
        let child = Command::new(env!("CARGO_BIN_EXE_portolan-proxy"))
            .args(["run", "--backend", "nft", "--node-name", "n1", "--manifests"])
            .arg(manifests)
            .args(["--healthz-bind-address", health, "--metrics-bind-address", address])
            .spawn()
            .expect("portolan-proxy starts");
        Self { child, address }
    }

    fn ask(&self, arguments: &[&str], address_flag: &str) -> Output {
        Command::new(env!("CARGO_BIN_EXE_portolan-proxy"))
            .args(arguments)
            .args([address_flag, self.address])
            .output()
            .expect("portolan-proxy runs")
    }

    fn status(&self) -> String {
        let output = self.ask(&["status"], "--address");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < WINDOW, "not so in time: {what}");
        thread::sleep(Duration::from_millis(50));
    }
}

fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().expect(program);
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A server that says its name to everyone who connects; ends with the test's process.
fn server(address: &str, name: &'static str) {
    let listener = TcpListener::bind(address).expect("a server");
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let _ = stream.write_all(name.as_bytes());
        }
    });
}

fn heard(address: &str) -> Option<String> {
    let address = address.parse().expect("an address");
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(1)).ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    Some(text)
}

fn write(manifests: &Path, endpoint: &str) {
    let text = format!(
        "apiVersion: v1
kind: Node
metadata: {{name: n1}}
spec: {{podCIDRs: [10.244.1.0/24]}}
status: {{addresses: [{{type: InternalIP, address: 172.18.0.1}}]}}
---
apiVersion: v1
kind: Service
metadata: {{name: web}}
spec: {{type: NodePort, clusterIP: 10.96.0.80, ports: [{{port: 80, targetPort: 8080, nodePort: 30080}}]}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: web-1, labels: {{kubernetes.io/service-name: web}}}}
addressType: IPv4
ports: [{{port: 8080}}]
endpoints: [{{addresses: [{endpoint}], nodeName: n1}}]
"
    );
    let next = manifests.with_extension("next");
    std::fs::write(&next, text).expect("a manifest");
    std::fs::rename(next, manifests.join("web.yaml")).expect("a manifest");
}

#[test]
fn the_newest_programs_the_node_and_those_before_stand_by() {
    let test = || {
        // SAFETY: changes the network namespace of this thread only.
        let apart = unsafe { libc::unshare(libc::CLONE_NEWNET) };
        assert_eq!(apart, 0, "this test needs root");
        run("ip", &["link", "set", "lo", "up"]);
        for address in ["172.18.0.1/32", "10.244.1.5/32", "10.244.1.6/32"] {
            run("ip", &["address", "add", address, "dev", "lo"]);
        }
        run("ip", &["route", "add", "default", "dev", "lo"]);
        server("10.244.1.5:8080", "five");
        server("10.244.1.6:8080", "six");
        let folder = tempfile::tempdir().expect("a folder");
        let manifests = folder.path().join("manifests");
        std::fs::create_dir(&manifests).expect("a folder");
        write(&manifests, "10.244.1.5");
        let everywhere = |name: &str| {
            let addresses = ["10.96.0.80:80", "172.18.0.1:30080", "127.0.0.1:30080"];
            until(&format!("{name} answers"), || {
                addresses.iter().all(|address| heard(address).as_deref() == Some(name))
            });
        };

        let older = Daemon::start(&manifests, "127.0.0.1:10256", "127.0.0.1:10249");
        everywhere("five");
        assert!(!older.status().contains("standing by"));
        let explained = older.ask(
            &["explain", "--from", "10.244.1.5", "--to", "10.96.0.80:80"],
            "--daemon",
        );
        let text = String::from_utf8_lossy(&explained.stdout).into_owned();
        assert!(
            explained.status.success() && text.contains("kernel:   agrees"),
            "{text}"
        );

        let newer = Daemon::start(&manifests, "127.0.0.1:11256", "127.0.0.1:11249");
        until("the older one stands by", || older.status().contains("standing by"));
        everywhere("five");
        write(&manifests, "10.244.1.6");
        everywhere("six");
        assert!(!newer.status().contains("standing by"));
        // Nobody undoes the other's work: after everything has come to rest the ruleset does not change any more.
        let ruleset = || run("nft", &["-a", "list", "table", "ip", "portolan"]);
        let before = ruleset();
        thread::sleep(Duration::from_millis(500));
        assert_eq!(ruleset(), before);
        run("nft", &["flush", "ruleset"]);
        everywhere("six");

        // The newer one dies without a word.
        drop(newer);
        until("the older one goes on", || !older.status().contains("standing by"));
        write(&manifests, "10.244.1.5");
        everywhere("five");

        // From the folder, without any daemon: what the kernel holds is compared as well.
        let live = |endpoint: &str| {
            write(&manifests, endpoint);
            Command::new(env!("CARGO_BIN_EXE_portolan-proxy"))
                .args([
                    "explain",
                    "--live",
                    "--output",
                    "json",
                    "--node-name",
                    "n1",
                    "--manifests",
                ])
                .arg(&manifests)
                .args(["--from", "10.244.1.5", "--to", "10.96.0.80:80"])
                .output()
                .expect("portolan-proxy runs")
        };
        drop(older);
        let agrees = live("10.244.1.5");
        let text = String::from_utf8_lossy(&agrees.stdout).into_owned();
        assert!(
            agrees.status.success(),
            "{text}{}",
            String::from_utf8_lossy(&agrees.stderr)
        );
        let json: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(json["service"], "default/web");
        assert_eq!(json["kernel"]["differences"], serde_json::json!([]));
        let differs = live("10.244.1.6");
        let text = String::from_utf8_lossy(&differs.stdout).into_owned();
        assert!(
            !differs.status.success() && text.contains("instead of 10.244.1.6:8080"),
            "{text}"
        );
    };
    if let Err(panic) = thread::spawn(test).join() {
        std::panic::resume_unwind(panic);
    }
}
