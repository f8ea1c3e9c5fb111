//! From kubectl to the wire: an object that is created, patched and deleted through a real API server shows in the plan, in
//! the kernel's rules, in traffic and in names. Needs root and the control plane of `cargo xtask kube-assets`.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use portolan_lab::binaries;
use portolan_lab::cleanup;
use portolan_lab::cluster::Cluster;
use portolan_lab::daemon::Daemon;
use portolan_lab::lab::{Host, Lab};
use portolan_lab::probe::dns::{self, QueryOptions};
use portolan_lab::probe::http;
use portolan_lab::process::wait_until;
use portolan_lab::subject::{DnsSubject, ProxySubject, dns_service};
use serde_json::{Value, json};

/// How long a change may take to show, on a machine that does much else. What is usual is milliseconds.
const PATIENCE: Duration = Duration::from_secs(20);
const NAME: &str = "web.default.svc.cluster.local";

struct Site {
    _daemons: Vec<Daemon>,
    cluster: Cluster,
}

/// What each stage says of the Service.
#[derive(Debug, PartialEq, Eq)]
struct Stages {
    plan: Vec<String>,
    rules: Vec<String>,
    traffic: Vec<String>,
    name: String,
}

#[test]
fn what_kubectl_changes_shows_in_plan_rules_traffic_and_names() -> Result<()> {
    cleanup::on_signals();
    let site = Site::raise()?;
    let manifest = site.cluster.lab().scratch().join("web.yaml");
    let text = "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: {clusterIP: 10.96.0.77, selector: {app: web}, \
                ports: [{port: 80, targetPort: 8080}]}\n";
    std::fs::write(&manifest, text)?;
    let manifest = manifest.display().to_string();

    site.kubectl(&["create", "-f", &manifest])?;
    site.expect(&["80"], "10.96.0.77")?;
    let patch = r#"[{"op": "replace", "path": "/spec/ports/0/port", "value": 81}]"#;
    site.kubectl(&["patch", "service", "web", "--type=json", "-p", patch])?;
    site.expect(&["81"], "10.96.0.77")?;
    site.kubectl(&["delete", "service", "web"])?;
    site.expect(&[], "")?;
    site.start_is_told().context("events")?;
    site.deployment().context("deploy/")
}

// === impl Site ===

impl Site {
    /// One node with our proxy, a pod that serves, and our DNS server in another pod.
    fn raise() -> Result<Self> {
        let lab = Lab::builder().nodes(1).outside(1).control_plane(true).build()?;
        let cluster = Cluster::with_api_server(lab)?;
        cluster.apply(&dns_service())?;
        for (namespace, name, labels, port) in [
            ("default", "web-1", json!({"app": "web"}), 8080),
            ("kube-system", "dns", json!({"k8s-app": "kube-dns"}), 9),
        ] {
            cluster.apply(&json!({
                "apiVersion": "v1", "kind": "Pod",
                "metadata": {"name": name, "namespace": namespace, "labels": labels},
                "spec": {"nodeName": "node-1", "dnsPolicy": "Default",
                         "containers": [{"name": "c", "image": "none", "ports": [{"containerPort": port}]}]},
            }))?;
        }
        let (lab, source) = (cluster.lab(), cluster.source());
        let pod = lab.pod("kube-system/dns").context("the DNS server has no pod")?;
        let upstream = lab.outside().first().context("no outside host")?.address.v4;
        let dns = DnsSubject::Portolan.start(lab, &pod, &source, upstream.into())?;
        let proxy = ProxySubject::Nft.start(lab, lab.node("node-1")?, &source)?;
        let daemons: Vec<Daemon> = dns.into_iter().chain([proxy]).collect();
        daemons.iter().try_for_each(Daemon::wait_ready)?;
        Ok(Self {
            _daemons: daemons,
            cluster,
        })
    }

    /// The proxy says on the API server that it has started, as kube-proxy does.
    fn start_is_told(&self) -> Result<()> {
        let mut said = String::new();
        let told = wait_until(PATIENCE, || {
            let columns = "-o=custom-columns=:.reason,:.involvedObject.kind,:.involvedObject.name,:.type";
            said = self
                .kubectl(&["get", "events", "-A", "--no-headers", columns])
                .unwrap_or_else(|error| error.to_string());
            let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
            said.lines()
                .any(|line| words(line) == ["Starting", "Node", "node-1", "Normal"])
        });
        ensure!(told, "{said}");
        Ok(())
    }

    /// What there is to deploy is accepted by the API server, runs on every node, and DNS is no risk to any namespace.
    fn deployment(&self) -> Result<()> {
        let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy");
        let accepted = |folder: &str| -> Result<Vec<Value>> {
            let dir = deploy.join(folder).display().to_string();
            let text = self.kubectl(&["apply", "--dry-run=server", "-o", "json", "-k", &dir])?;
            let list: Value = serde_json::from_str(&text)?;
            Ok(list["items"].as_array().cloned().unwrap_or_default())
        };
        let find = |objects: &[Value], kind: &str| -> Result<Value> {
            let found = objects.iter().find(|object| object["kind"] == kind).cloned();
            found.with_context(|| format!("no {kind}"))
        };
        for folder in [
            "proxy",
            "overlays/nft",
            "overlays/ebpf",
            "overlays/userspace",
            "overlays/standalone",
        ] {
            let objects = accepted(folder).with_context(|| folder.to_owned())?;
            let spec = find(&objects, "DaemonSet")?["spec"]["template"]["spec"].take();
            ensure!(spec["hostNetwork"] == true, "{folder}: not on the host's network");
            ensure!(
                spec["priorityClassName"] == "system-node-critical",
                "{folder}: it may be evicted"
            );
            ensure!(
                spec["tolerations"] == json!([{"operator": "Exists"}]),
                "{folder}: some taints keep it away"
            );
        }
        let objects = accepted("dns")?;
        let service = find(&objects, "Service")?;
        ensure!(service["metadata"]["name"] == "kube-dns", "{service}");
        // The strictest of the pod security standards, enforced.
        self.kubectl(&["create", "namespace", "strict"])?;
        self.kubectl(&[
            "label",
            "namespace",
            "strict",
            "pod-security.kubernetes.io/enforce=restricted",
        ])?;
        let mut spec = find(&objects, "Deployment")?["spec"]["template"]["spec"].take();
        if let Some(fields) = spec.as_object_mut() {
            fields.remove("serviceAccountName");
            fields.remove("serviceAccount");
        }
        let pod = |spec: &Value| -> Result<String> {
            let file = self.cluster.lab().scratch().join("strict.json");
            let metadata = json!({"name": "strict", "namespace": "strict"});
            let object = json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec});
            std::fs::write(&file, object.to_string())?;
            self.kubectl(&["create", "--dry-run=server", "-f", &file.display().to_string()])
        };
        pod(&spec)?;
        spec["hostNetwork"] = true.into();
        ensure!(pod(&spec).is_err(), "the standard is not enforced");
        Ok(())
    }

    fn node(&self) -> Result<&Host> {
        self.cluster.lab().node("node-1")
    }

    fn kubectl(&self, args: &[&str]) -> Result<String> {
        let plane = self.cluster.control_plane().context("no control plane")?;
        let host = self
            .cluster
            .lab()
            .control_plane()
            .context("no host of the control plane")?;
        plane.kubectl(host, args)
    }

    /// Waits until every stage says that the Service is served on these ports, and only these, and has this address.
    fn expect(&self, ports: &[&str], address: &str) -> Result<()> {
        let listed = || ports.iter().map(ToString::to_string).collect::<Vec<_>>();
        let expected = Stages {
            plan: listed(),
            rules: listed(),
            traffic: listed(),
            name: address.into(),
        };
        let mut last = None;
        wait_until(PATIENCE, || {
            last = Some(self.stages());
            last.as_ref()
                .is_some_and(|stages| stages.as_ref().is_ok_and(|stages| *stages == expected))
        });
        let found = last.context("never looked")??;
        ensure!(found == expected, "expected {expected:?}, found {found:?}");
        Ok(())
    }

    fn stages(&self) -> Result<Stages> {
        let ports = ["80", "81"];
        let plan = self.run(self.proxy()?, &self.plan_args()?)?;
        let rules = self.run("nft", &["list", "map", "ip", "portolan", "services"])?;
        let such = |holds: &dyn Fn(&str) -> bool| -> Vec<String> {
            ports
                .iter()
                .filter(|port| holds(port))
                .map(ToString::to_string)
                .collect()
        };
        Ok(Stages {
            plan: such(&|port| plan.contains(&format!("cluster IP 10.96.0.77 port {port}:"))),
            rules: such(&|port| rules.contains(&format!("10.96.0.77 . tcp . {port} "))),
            traffic: such(&|port| self.answers(port)),
            name: self.address_of_name()?,
        })
    }

    fn proxy(&self) -> Result<PathBuf> {
        binaries::find("PORTOLAN_PROXY", "portolan-proxy")
    }

    fn plan_args(&self) -> Result<Vec<String>> {
        let plane = self.cluster.control_plane().context("no control plane")?;
        let config = plane.kubeconfig("admin").display().to_string();
        Ok(["plan", "--node-name", "node-1", "--kubeconfig", &config]
            .map(String::from)
            .to_vec())
    }

    /// The address that our DNS server gives the Service; empty when it says that there is no such name.
    fn address_of_name(&self) -> Result<String> {
        let pod = self
            .cluster
            .lab()
            .pod("kube-system/dns")
            .context("the DNS server has no pod")?;
        let query = QueryOptions {
            server: (pod.address.v4, 53).into(),
            name: NAME.into(),
            kind: "A".into(),
            tcp: false,
            timeout_ms: 2000,
        };
        let response = self.node()?.place.netns.run(|| dns::query(&query))?;
        ensure!(
            response.rcode
                == if response.answers.is_empty() {
                    "NXDOMAIN"
                } else {
                    "NOERROR"
                },
            "{response:?}"
        );
        Ok(response
            .answers
            .first()
            .map(|answer| answer.data.clone())
            .unwrap_or_default())
    }

    /// Whether web-1 answers at the cluster IP, asked by the node.
    fn answers(&self, port: &str) -> bool {
        let options = http::Options {
            url: format!("http://10.96.0.77:{port}/"),
            timeout_ms: 1000,
        };
        let answer = self
            .node()
            .and_then(|node| node.place.netns.run(|| http::get(&options)));
        answer.is_ok_and(|page| page.status == 200 && page.body.contains("web-1"))
    }

    /// Runs a program in the node's namespace and returns what it printed.
    fn run<S: AsRef<OsStr>>(&self, program: impl AsRef<OsStr>, args: &[S]) -> Result<String> {
        self.node()?.place.output(program, args)
    }
}
