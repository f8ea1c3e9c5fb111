//! etcd and kube-apiserver on loopback, from the kube assets.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use ::kube::Client;
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::PATIENCE;
use crate::source::kube::{Options, client};

/// Where `cargo xtask kube-assets` puts what it builds.
const KUBE_ASSETS: &str = "portolan/kube-assets/k8s-v1.36.3_etcd-v3.6.16_coredns-v1.14.7/bin";
const TOKEN: &str = "secret-of-the-test";

/// A process that ends with its value.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// An API server that can be stopped and started again. Clients reach it through a gate that can be shut.
pub(super) struct ApiServer {
    dir: TempDir,
    port: u16,
    etcd_port: u16,
    server: Option<Process>,
    _etcd: Process,
    pub(super) gate: Gate,
}

impl ApiServer {
    /// Starts etcd; the API server itself comes with [`ApiServer::up`].
    pub(super) async fn prepare() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let [port, etcd_port, peer_port] = free_ports();
        std::fs::write(
            dir.path().join("tokens.csv"),
            format!("{TOKEN},test,1,system:masters\n"),
        )
        .unwrap();
        for (program, args) in [
            ("genrsa", vec!["-out", "sa.key", "2048"]),
            ("rsa", vec!["-in", "sa.key", "-pubout", "-out", "sa.pub"]),
        ] {
            let made = Command::new("openssl")
                .arg(program)
                .args(args)
                .current_dir(dir.path())
                .output();
            assert!(made.expect("openssl is needed").status.success());
        }
        let mut etcd = command("etcd", dir.path());
        etcd.arg("--data-dir").arg(dir.path().join("etcd")).args([
            "--unsafe-no-fsync".to_string(),
            format!("--listen-client-urls=http://127.0.0.1:{etcd_port}"),
            format!("--advertise-client-urls=http://127.0.0.1:{etcd_port}"),
            format!("--listen-peer-urls=http://127.0.0.1:{peer_port}"),
            format!("--initial-advertise-peer-urls=http://127.0.0.1:{peer_port}"),
            format!("--initial-cluster=default=http://127.0.0.1:{peer_port}"),
            "--log-level=warn".to_string(),
        ]);
        let etcd = Process(etcd.spawn().unwrap());
        let gate = Gate::open_to(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).await;
        let server = Self {
            dir,
            port,
            etcd_port,
            server: None,
            _etcd: etcd,
            gate,
        };
        server.write_kubeconfig("source.kubeconfig", server.gate.address.port());
        server.write_kubeconfig("admin.kubeconfig", port);
        server
    }

    /// What the source under test is started with.
    pub(super) fn options(&self) -> Options {
        Options {
            kubeconfig: Some(self.dir.path().join("source.kubeconfig")),
            master: None,
            user_agent: "portolan-test/0".into(),
        }
    }

    /// Starts the API server and waits until it is ready.
    pub(super) async fn up(&mut self, more: &[&str]) -> Client {
        let dir = self.dir.path().display();
        let mut server = command("kube-apiserver", self.dir.path());
        server.args([
            format!("--etcd-servers=http://127.0.0.1:{}", self.etcd_port),
            "--bind-address=127.0.0.1".to_string(),
            format!("--secure-port={}", self.port),
            format!("--cert-dir={dir}"),
            format!("--token-auth-file={dir}/tokens.csv"),
            "--authorization-mode=RBAC".to_string(),
            "--service-cluster-ip-range=10.96.0.0/16,fd00:96::/112".to_string(),
            "--service-account-issuer=https://kubernetes.default.svc".to_string(),
            format!("--service-account-signing-key-file={dir}/sa.key"),
            format!("--service-account-key-file={dir}/sa.pub"),
            "--disable-admission-plugins=ServiceAccount".to_string(),
            "--endpoint-reconciler-type=none".to_string(),
            "--shutdown-delay-duration=0s".to_string(),
        ]);
        server.args(more);
        self.server = Some(Process(server.spawn().unwrap()));
        let since = Instant::now();
        loop {
            if let Ok(client) = self.client().await
                && let Ok(text) = client.request_text(get("/readyz")).await
                && text == "ok"
            {
                return client;
            }
            let log = || std::fs::read_to_string(self.dir.path().join("kube-apiserver.log")).unwrap_or_default();
            let ended = self
                .server
                .as_mut()
                .and_then(|server| server.0.try_wait().ok())
                .flatten();
            assert!(
                ended.is_none() && since.elapsed() < PATIENCE,
                "kube-apiserver is not ready: {}",
                log()
            );
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Kills the API server; etcd stays.
    pub(super) fn down(&mut self) {
        self.server = None;
    }

    /// Forgets every revision of etcd but the present one.
    pub(super) async fn compact(&self) {
        let client = Client::try_from(::kube::Config::new(
            format!("http://127.0.0.1:{}", self.etcd_port).parse().unwrap(),
        ))
        .unwrap();
        let post = |path: &str, body: String| axum::http::Request::post(path).body(body.into_bytes()).unwrap();
        let range = client
            .request_text(post("/v3/kv/range", r#"{"key": "AA=="}"#.to_string()))
            .await
            .unwrap();
        let range: serde_json::Value = serde_json::from_str(&range).unwrap();
        let revision = range["header"]["revision"].as_str().unwrap();
        let body = format!(r#"{{"revision": "{revision}", "physical": true}}"#);
        client.request_text(post("/v3/kv/compaction", body)).await.unwrap();
    }

    /// A client that does not go through the gate.
    pub(super) async fn client(&self) -> Result<Client, crate::source::SourceError> {
        let options = Options {
            kubeconfig: Some(self.dir.path().join("admin.kubeconfig")),
            ..Options::default()
        };
        // The certificate is there only once the server has made it.
        let config = client::config(&options).await?;
        Client::try_from(config).map_err(|cause| crate::source::SourceError::Client(Box::new(cause)))
    }

    fn write_kubeconfig(&self, name: &str, port: u16) {
        let text = format!(
            "apiVersion: v1
kind: Config
clusters: [{{name: c, cluster: {{server: 'https://127.0.0.1:{port}', insecure-skip-tls-verify: true}}}}]
users: [{{name: u, user: {{token: {TOKEN}}}}}]
contexts: [{{name: x, context: {{cluster: c, user: u}}}}]
current-context: x
"
        );
        std::fs::write(self.dir.path().join(name), text).unwrap();
    }
}

/// Passes connections on while it is open; shutting it cuts them and refuses new ones.
pub(super) struct Gate {
    pub(super) address: SocketAddr,
    open: Arc<Mutex<Option<CancellationToken>>>,
    _task: JoinSet<()>,
}

impl Gate {
    async fn open_to(target: SocketAddr) -> Self {
        let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let open = Arc::new(Mutex::new(Some(CancellationToken::new())));
        let state = open.clone();
        let mut task = JoinSet::new();
        task.spawn(async move {
            loop {
                let Ok((mut client, _)) = listener.accept().await else {
                    continue;
                };
                let Some(cut) = state.lock().unwrap().clone() else {
                    continue;
                };
                tokio::spawn(async move {
                    let Ok(mut server) = TcpStream::connect(target).await else {
                        return;
                    };
                    let relay = tokio::io::copy_bidirectional(&mut client, &mut server);
                    cut.run_until_cancelled(relay).await;
                });
            }
        });
        Self {
            address,
            open,
            _task: task,
        }
    }

    pub(super) fn shut(&self) {
        if let Some(cut) = self.open.lock().unwrap().take() {
            cut.cancel();
        }
    }

    pub(super) fn reopen(&self) {
        *self.open.lock().unwrap() = Some(CancellationToken::new());
    }
}

fn get(path: &str) -> axum::http::Request<Vec<u8>> {
    axum::http::Request::get(path).body(Vec::new()).unwrap()
}

fn command(name: &str, dir: &Path) -> Command {
    let log = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(dir.join(format!("{name}.log")))
        .unwrap();
    let mut command = Command::new(asset(name));
    command
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log);
    command
}

/// From `KUBEBUILDER_ASSETS`, the cache or PATH.
fn asset(name: &str) -> PathBuf {
    let named = std::env::var_os("KUBEBUILDER_ASSETS").map(PathBuf::from);
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places = named
        .into_iter()
        .chain(cache.map(|cache| cache.join(KUBE_ASSETS)))
        .chain(std::env::split_paths(&path));
    let found = places.map(|place| place.join(name)).find(|file| file.is_file());
    found.unwrap_or_else(|| {
        panic!("{name} is neither in KUBEBUILDER_ASSETS nor in the cache nor in PATH: run cargo xtask kube-assets")
    })
}

fn free_ports<const N: usize>() -> [u16; N] {
    let listeners = [(); N].map(|()| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap());
    listeners.map(|listener| listener.local_addr().unwrap().port())
}
