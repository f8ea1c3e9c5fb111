//! A small cluster with a Service to look at, and programs started by hand in its nodes.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use portolan_lab::addresses::POD_RANGES;
use portolan_lab::cluster::Cluster;
use portolan_lab::daemon::{Daemon, DaemonSpec};
use portolan_lab::lab::{Host, Lab};
use portolan_lab::probe::http::{self, Response};
use portolan_lab::process::wait_until;
use portolan_lab::{binaries, cleanup};
use serde_json::{Value, json};

/// How long a change may take to show, on a machine that does much else. What is usual is milliseconds.
pub const PATIENCE: Duration = Duration::from_secs(40);

/// Nodes, an API server, and `shop/web`: a LoadBalancer Service with policy Local and one endpoint on each node.
pub struct Site {
    pub cluster: Cluster,
}

impl Site {
    pub fn raise(nodes: u8) -> Result<Self> {
        cleanup::on_signals();
        let lab = Lab::builder().nodes(nodes).outside(1).control_plane(true).build()?;
        let site = Self {
            cluster: Cluster::with_api_server(lab)?,
        };
        for node in 1..=nodes {
            site.cluster.apply(&json!({
                "apiVersion": "v1", "kind": "Pod",
                "metadata": {"name": format!("web-{node}"), "namespace": "shop", "labels": {"app": "web"}},
                "spec": {"nodeName": format!("node-{node}"), "containers": [{"name": "c", "image": "none", "ports": [{"containerPort": 8080}]}]},
            }))?;
        }
        site.cluster.apply(&json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "namespace": "shop"},
            "spec": {
                "type": "LoadBalancer", "clusterIP": "10.96.0.80", "externalTrafficPolicy": "Local",
                "healthCheckNodePort": 32122, "selector": {"app": "web"},
                "ports": [{"port": 80, "targetPort": 8080, "nodePort": 30080}],
            },
        }))?;
        Ok(site)
    }

    pub fn node(&self, name: &str) -> Result<&Host> {
        self.cluster.lab().node(name)
    }

    /// A kubeconfig that holds a token of this service account, signed by the API server.
    pub fn kubeconfig_of(&self, account: &str) -> Result<PathBuf> {
        let plane = self.cluster.control_plane().context("no control plane")?;
        let token = self.kubectl(&["create", "token", account, "--namespace=kube-system", "--duration=1h"])?;
        let text = std::fs::read_to_string(plane.kubeconfig("admin"))?;
        let mut config: Value = serde_json::from_str(&text)?;
        config["users"][0]["user"] = json!({"token": token.trim()});
        self.cluster
            .lab()
            .write(&format!("{account}.kubeconfig"), &config.to_string())
    }

    pub fn kubectl(&self, args: &[&str]) -> Result<String> {
        let plane = self.cluster.control_plane().context("no control plane")?;
        let host = self
            .cluster
            .lab()
            .control_plane()
            .context("no host of the control plane")?;
        plane.kubectl(host, args)
    }

    /// A file of kube-proxy's configuration for a node.
    pub fn config(&self, node: &str, mode: &str, kubeconfig: &str) -> Result<PathBuf> {
        let plane = self.cluster.control_plane().context("no control plane")?;
        let config = json!({
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration", "mode": mode,
            "clusterCIDR": POD_RANGES.join(","), "hostnameOverride": node, "bindAddress": "0.0.0.0",
            "nodePortAddresses": ["primary"],
            "clientConnection": {"kubeconfig": plane.kubeconfig(kubeconfig)},
            // The limits are the machine's, not a network namespace's.
            "conntrack": {"maxPerCore": 0, "min": 0},
        });
        self.cluster
            .lab()
            .write(&format!("{node}-{mode}.conf"), &config.to_string())
    }

    /// Starts kube-proxy or our proxy with a file and nothing else, as kubeadm would.
    pub fn start(&self, node: &str, program: &str, config: PathBuf, more: &[&str]) -> Result<Daemon> {
        let mut flag = OsString::from("--config=");
        flag.push(config);
        let args: Vec<OsString> = [flag].into_iter().chain(more.iter().map(OsString::from)).collect();
        let host = self.node(node)?;
        let program_file = if program == "kube-proxy" {
            binaries::peer(program)?
        } else {
            ours()?
        };
        Daemon::start(DaemonSpec {
            name: format!("{program} on {node}"),
            place: host.place.clone(),
            program: program_file,
            args,
            ready_url: "http://127.0.0.1:10256/healthz".to_owned(),
            log: self.cluster.lab().scratch().join(format!("{program}-{node}.log")),
        })
    }

    /// A page as a node sees it.
    pub fn get(&self, node: &str, url: &str) -> Result<Response> {
        let options = http::Options {
            url: url.into(),
            timeout_ms: 3000,
        };
        let mut page = self.node(node)?.place.netns.run(move || http::get(&options))?;
        if page.head.to_ascii_lowercase().contains("transfer-encoding: chunked") {
            page.body = unchunked(&page.body).context("a chunked body without its end")?;
        }
        Ok(page)
    }

    /// Waits until `check` holds, and says why not when it never does.
    pub fn eventually<T>(&self, mut check: impl FnMut() -> Result<T>) -> Result<T> {
        let mut last = None;
        wait_until(PATIENCE, || {
            last = Some(check());
            last.as_ref().is_some_and(Result::is_ok)
        });
        last.context("never looked")?
    }

    /// New connections from a machine all the time, until [`Load::finish`].
    pub fn load(&self, from: &str, target: &str) -> Result<Load> {
        let place = self.cluster.lab().place(from)?;
        let mut command = place.command(portolan_lab::probe::binary()?);
        command.args([
            "connect",
            target,
            "--keep-going",
            "--until-stdin-closes",
            "2",
            "--timeout-ms",
            "3000",
        ]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        Ok(Load(command.spawn()?))
    }
}

/// Our proxy as it was built.
pub fn ours() -> Result<PathBuf> {
    binaries::find("PORTOLAN_PROXY", "portolan-proxy").context("build it with `cargo build -p portolan-proxy`")
}

/// A client that connects all the time.
pub struct Load(std::process::Child);

impl Load {
    /// Ends it: how many connections there were, and those that failed.
    pub fn finish(mut self) -> Result<(u64, Vec<String>)> {
        drop(self.0.stdin.take());
        let mut text = String::new();
        let mut out = self.0.stdout.take().context("the client has no output")?;
        std::io::Read::read_to_string(&mut out, &mut text)?;
        let report: Value = serde_json::from_str(&text).with_context(|| format!("the client said {text:?}"))?;
        let failures = report["failures"].as_array().cloned().unwrap_or_default();
        Ok((
            report["attempts"].as_u64().unwrap_or(0),
            failures.iter().map(ToString::to_string).collect(),
        ))
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A header field's value.
pub fn header<'a>(page: &'a Response, name: &str) -> Option<&'a str> {
    let fields = page.head.lines().filter_map(|line| line.split_once(':'));
    fields
        .filter(|(field, _)| field.eq_ignore_ascii_case(name))
        .map(|(_, value)| value.trim())
        .next()
}

fn unchunked(body: &str) -> Option<String> {
    let mut whole = String::new();
    let mut rest = body;
    loop {
        let (size, after) = rest.split_once("\r\n")?;
        let size = usize::from_str_radix(size.trim(), 16).ok()?;
        if size == 0 {
            return Some(whole);
        }
        whole.push_str(after.get(..size)?);
        rest = after.get(size..)?.strip_prefix("\r\n")?;
    }
}

/// Fails with the difference when two lists are not the same.
pub fn same<T: PartialEq + std::fmt::Debug>(what: &str, ours: &[T], theirs: &[T]) -> Result<()> {
    let missing: Vec<&T> = theirs.iter().filter(|item| !ours.contains(item)).collect();
    let surplus: Vec<&T> = ours.iter().filter(|item| !theirs.contains(item)).collect();
    if missing.is_empty() && surplus.is_empty() {
        return Ok(());
    }
    bail!("{what}: ours lacks {missing:?} and has besides {surplus:?}")
}

/// `ensure!` with the page in the message.
pub fn expect(page: &Response, status: u16, parts: &[&str]) -> Result<()> {
    ensure!(
        page.status == status,
        "status {} instead of {status}: {}",
        page.status,
        page.body
    );
    for part in parts {
        ensure!(page.body.contains(part), "{part:?} is not in {}", page.body);
    }
    Ok(())
}
