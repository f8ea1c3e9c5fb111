//! A real control plane in the lab: etcd, kube-apiserver, kube-controller-manager and `kubectl proxy`.
//!
//! It runs in the lab's `control-plane` namespace, where the nodes reach it at [`addresses::CONTROL_PLANE`]. There is no
//! scheduler and no kubelet: pods name their node, and [`crate::cluster`] runs them and reports their status. RBAC is on, and each
//! daemon has a user of its own with the rights that it has in a real cluster, so a missing right shows here.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::addresses::{self, SERVICE_RANGES};
use crate::api::ApiClient;
use crate::binaries::peer;
use crate::lab::{Host, Lab};
use crate::process::{Process, wait_until};

/// How long each part may take to come up, on a machine that does much else.
const PATIENCE: Duration = Duration::from_secs(120);

/// The users of the token file: user, groups.
const USERS: [(&str, &str); 3] = [
    ("admin", "system:masters"),
    ("system:kube-proxy", ""),
    ("portolan-dns", ""),
];

/// The controllers that a service network depends on.
const CONTROLLERS: &str = "daemonset-controller,deployment-controller,disruption-controller,endpoints-controller,\
    endpointslice-controller,endpointslice-mirroring-controller,garbage-collector-controller,namespace-controller,\
    replicaset-controller,replicationcontroller-controller,service-cidr-controller,statefulset-controller";

/// A running control plane. Dropping it ends its processes.
#[derive(Debug)]
pub struct ControlPlane {
    api: ApiClient,
    dir: PathBuf,
    processes: Vec<Process>,
}

// === impl ControlPlane ===

impl ControlPlane {
    /// Starts a control plane in a lab that was built with one, and waits until it answers.
    ///
    /// # Errors
    /// When one of the programs is missing, ends or does not become ready; the message holds the end of its log.
    pub fn start(lab: &Lab) -> Result<Self> {
        let host = lab
            .control_plane()
            .context("the lab was built without a control plane")?;
        let dir = lab.scratch().join("control-plane");
        std::fs::create_dir(&dir)?;
        service_account_keys(&dir)?;
        write_tokens(&dir)?;
        let mut plane = Self {
            api: ApiClient::new(&dir.join("api.sock")),
            dir,
            processes: Vec::new(),
        };
        let etcd = plane.etcd(host)?;
        plane.wait(etcd, "etcd", || {
            let at = "http://127.0.0.1:2379/health".to_owned();
            let page = host.place.netns.run(move || crate::daemon::get(&at));
            page.is_ok_and(|page| page.status == 200)
        })?;
        let server = plane.api_server(host)?;
        plane.write_kubeconfigs()?;
        // The serving certificate exists only once the server has made it.
        let certificate = plane.dir.join("apiserver.crt");
        plane.wait(server, "kube-apiserver's certificate", || certificate.exists())?;
        let proxy = plane.kubectl_proxy(host)?;
        let api = plane.api.clone();
        plane.wait(proxy, "kube-apiserver", || {
            api.get_text("/readyz").is_ok_and(|text| text == "ok")
        })?;
        plane.controller_manager(host)?;
        plane.grant_dns_rights()?;
        Ok(plane)
    }

    /// The API server, with all rights.
    pub fn api(&self) -> &ApiClient {
        &self.api
    }

    /// The kubeconfig of `user`: `admin`, `system:kube-proxy` or `portolan-dns`.
    pub fn kubeconfig(&self, user: &str) -> PathBuf {
        self.dir.join(format!("{}.kubeconfig", user.replace(':', "-")))
    }

    /// Runs `kubectl` as admin inside `host`'s namespace and returns what it printed.
    ///
    /// # Errors
    /// When it fails; the message holds what it said.
    pub fn kubectl(&self, host: &Host, args: &[&str]) -> Result<String> {
        let config = format!("--kubeconfig={}", self.kubeconfig("admin").display());
        host.place
            .output(peer("kubectl")?, [config.as_str()].iter().chain(args))
    }

    fn etcd(&mut self, host: &Host) -> Result<usize> {
        let mut command = host.place.command(peer("etcd")?);
        command.arg("--data-dir").arg(self.dir.join("etcd")).args([
            "--unsafe-no-fsync",
            "--listen-client-urls=http://127.0.0.1:2379",
            "--advertise-client-urls=http://127.0.0.1:2379",
            "--listen-peer-urls=http://127.0.0.1:2380",
            "--initial-advertise-peer-urls=http://127.0.0.1:2380",
            "--initial-cluster=default=http://127.0.0.1:2380",
            "--log-level=warn",
        ]);
        self.spawn("etcd", command)
    }

    fn api_server(&mut self, host: &Host) -> Result<usize> {
        let dir = self.dir.display();
        let mut command = host.place.command(peer("kube-apiserver")?);
        command.args([
            "--etcd-servers=http://127.0.0.1:2379".to_owned(),
            format!("--advertise-address={}", addresses::CONTROL_PLANE.v4),
            "--secure-port=6443".to_owned(),
            format!("--cert-dir={dir}"),
            format!("--token-auth-file={dir}/tokens.csv"),
            "--authorization-mode=RBAC".to_owned(),
            format!("--service-cluster-ip-range={}", SERVICE_RANGES.join(",")),
            "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
            format!("--service-account-signing-key-file={dir}/sa.key"),
            format!("--service-account-key-file={dir}/sa.pub"),
            "--allow-privileged=true".to_owned(),
            // Without this a pod could not be created before its namespace's service account exists.
            "--disable-admission-plugins=ServiceAccount".to_owned(),
            // Bursts of a whole suite's objects from one client are no attack.
            "--enable-priority-and-fairness=false".to_owned(),
            "--endpoint-reconciler-type=master-count".to_owned(),
        ]);
        self.spawn("kube-apiserver", command)
    }

    fn kubectl_proxy(&mut self, host: &Host) -> Result<usize> {
        let mut command = host.place.command(peer("kubectl")?);
        command
            .arg(format!("--kubeconfig={}", self.kubeconfig("admin").display()))
            .arg("proxy")
            .arg(format!("--unix-socket={}", self.dir.join("api.sock").display()));
        self.spawn("kubectl-proxy", command)
    }

    fn controller_manager(&mut self, host: &Host) -> Result<usize> {
        let mut command = host.place.command(peer("kube-controller-manager")?);
        let config = self.kubeconfig("admin").display().to_string();
        let dir = self.dir.display();
        command.args([
            format!("--kubeconfig={config}"),
            format!("--controllers={CONTROLLERS}"),
            format!("--service-cluster-ip-range={}", SERVICE_RANGES.join(",")),
            format!("--cert-dir={dir}/controller-manager"),
            "--leader-elect=false".to_owned(),
            "--bind-address=127.0.0.1".to_owned(),
            "--kube-api-qps=500".to_owned(),
            "--kube-api-burst=1000".to_owned(),
            // A lone change reaches its slice at once: the lab looks at what comes after.
            "--endpointslice-updates-batch-period=0s".to_owned(),
            "--concurrent-service-endpoint-syncs=10".to_owned(),
        ]);
        self.spawn("kube-controller-manager", command)
    }

    fn spawn(&mut self, name: &str, command: Command) -> Result<usize> {
        let log = self.dir.join(format!("{name}.log"));
        self.processes.push(Process::start(name, command, &log)?);
        Ok(self.processes.len() - 1)
    }

    fn wait(&self, process: usize, what: &str, ready: impl FnMut() -> bool) -> Result<()> {
        let process = self.processes.get(process).context("no such process")?;
        let mut ready = ready;
        let up = wait_until(PATIENCE, || ready() || process.ended().is_some());
        ensure!(
            up && process.ended().is_none(),
            "{what} did not come up\n{}",
            process.log_tail(30)
        );
        Ok(())
    }

    fn write_kubeconfigs(&self) -> Result<()> {
        for (user, _) in USERS {
            let config = json!({
                "apiVersion": "v1", "kind": "Config", "current-context": "lab",
                "clusters": [{ "name": "lab", "cluster": {
                    "server": format!("https://{}:6443", addresses::CONTROL_PLANE.v4),
                    "certificate-authority": self.dir.join("apiserver.crt"),
                }}],
                "users": [{ "name": "lab", "user": { "token": token(user) } }],
                "contexts": [{ "name": "lab", "context": { "cluster": "lab", "user": "lab" } }],
            });
            std::fs::write(self.kubeconfig(user), serde_json::to_vec_pretty(&config)?)?;
        }
        Ok(())
    }

    /// The rights that CoreDNS is installed with. kube-proxy's user has its role from the start.
    fn grant_dns_rights(&self) -> Result<()> {
        let rule = |group: &str, resources: &[&str]| -> Value {
            json!({ "apiGroups": [group], "resources": resources, "verbs": ["list", "watch"] })
        };
        self.api.apply(&json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": { "name": "portolan-dns" },
            "rules": [rule("", &["services", "pods", "namespaces"]), rule("discovery.k8s.io", &["endpointslices"])],
        }))?;
        self.api.apply(&json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
            "metadata": { "name": "portolan-dns" },
            "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "portolan-dns" },
            "subjects": [{ "apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "portolan-dns" }],
        }))
    }
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        // Clients first: a server that outlives its clients has nothing to complain about.
        while let Some(process) = self.processes.pop() {
            process.kill();
        }
    }
}

/// The lab lives for minutes in namespaces of its own, so its tokens need not be secret.
fn token(user: &str) -> String {
    format!("token-of-{}", user.replace(':', "-"))
}

fn write_tokens(dir: &Path) -> Result<()> {
    let line = |(user, groups): &(&str, &str)| format!("{},{user},{user},\"{groups}\"\n", token(user));
    Ok(std::fs::write(
        dir.join("tokens.csv"),
        USERS.iter().map(line).collect::<String>(),
    )?)
}

/// Makes the key pair that service account tokens are signed with.
fn service_account_keys(dir: &Path) -> Result<()> {
    for args in [
        "genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out sa.key",
        "pkey -in sa.key -pubout -out sa.pub",
    ] {
        let output = Command::new("openssl").args(args.split(' ')).current_dir(dir).output();
        let output = output.context("the openssl command cannot be started")?;
        ensure!(
            output.status.success(),
            "openssl {args}: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(())
}
