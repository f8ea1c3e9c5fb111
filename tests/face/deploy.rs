//! `deploy/`: a real API server takes every manifest, Pod Security admits what it should, the rights are enough and no more,
//! and what the manifests start is what was built.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use portolan_lab::binaries;
use portolan_lab::daemon::{Daemon, DaemonSpec};
use portolan_lab::object::ObjectKey;
use serde_json::{Value, json};

use crate::site::{Site, expect, ours};

const DEPLOY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy");

/// Everything that `kubectl apply -k` may be given.
const FOLDERS: [&str; 9] = [
    "proxy",
    "dns",
    "node-local-dns",
    "overlays/nft",
    "overlays/ebpf",
    "overlays/userspace",
    "overlays/standalone",
    "../tests/e2e/nft",
    "../tests/e2e/ebpf",
];

#[test]
fn manifests_are_taken_and_their_rights_are_enough() -> Result<()> {
    let site = Site::raise(1)?;
    for folder in FOLDERS {
        site.kubectl(&["apply", "--dry-run=server", "-k", &path(folder)])
            .with_context(|| folder.to_owned())?;
    }
    pod_security(&site)?;
    for folder in ["proxy", "dns", "node-local-dns"] {
        site.kubectl(&["apply", "-k", &path(folder)])
            .with_context(|| folder.to_owned())?;
    }
    rights(&site)?;
    daemons_run_with_them(&site)
}

#[test]
fn images_hold_what_was_built_and_nothing_else() -> Result<()> {
    let scratch = tempfile::tempdir()?;
    for (name, program) in [("portolan-proxy", ours()?), ("portolan-dns", dns()?)] {
        let root = scratch.path().join(name);
        let made = Command::new(format!("{DEPLOY}/images/rootfs.sh"))
            .arg(&program)
            .arg(&root)
            .output()?;
        ensure!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let run = Command::new("chroot")
            .arg(&root)
            .args([&format!("/{name}"), "--version"])
            .output()?;
        let said = String::from_utf8_lossy(&run.stdout).into_owned() + &String::from_utf8_lossy(&run.stderr);
        ensure!(
            run.status.success() && said.starts_with(name),
            "{name} in its image: {said}"
        );
        ensure!(!root.join("bin/sh").exists(), "there is a shell in the image");
        let again = Command::new(format!("{DEPLOY}/images/rootfs.sh"))
            .arg(&program)
            .arg(&root)
            .output()?;
        ensure!(
            !again.status.success(),
            "a folder that is there already is not overwritten"
        );
    }
    Ok(())
}

/// `--help` after all other arguments: whoever parses them refuses what it does not know before that.
#[test]
fn units_and_manifests_use_flags_that_exist() -> Result<()> {
    for unit in ["portolan-proxy", "portolan-dns"] {
        let text = std::fs::read_to_string(format!("{DEPLOY}/systemd/{unit}.service"))?;
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix("ExecStart="))
            .context("no ExecStart")?;
        let mut words = line.split_whitespace().filter(|word| !word.starts_with('$'));
        ensure!(words.next() == Some(&*format!("/usr/bin/{unit}")), "{line}");
        accepts(unit, &words.map(str::to_owned).collect::<Vec<_>>())?;
    }
    for folder in FOLDERS {
        for object in rendered(folder)? {
            let spec = &object["spec"]["template"]["spec"];
            let containers = ["initContainers", "containers"]
                .into_iter()
                .filter_map(|key| spec[key].as_array());
            for container in containers.flatten() {
                let image = container["image"].as_str().context("a container without an image")?;
                let image = image.split([':', '@']).next().unwrap_or(image);
                let args = container["args"].as_array().cloned().unwrap_or_default();
                let args: Vec<String> = args.iter().filter_map(|arg| Some(arg.as_str()?.to_owned())).collect();
                accepts(image.rsplit('/').next().unwrap_or(image), &args).with_context(|| folder.to_owned())?;
            }
        }
    }
    Ok(())
}

fn path(folder: &str) -> String {
    format!("{DEPLOY}/{folder}")
}

fn dns() -> Result<PathBuf> {
    binaries::find("PORTOLAN_DNS", "portolan-dns").context("build it with `cargo build -p portolan-dns`")
}

fn accepts(program: &str, args: &[String]) -> Result<()> {
    let file = if program == "portolan-dns" { dns()? } else { ours()? };
    let told = Command::new(file).args(args).arg("--help").output()?;
    ensure!(
        told.status.success(),
        "{program} {args:?}: {}",
        String::from_utf8_lossy(&told.stderr)
    );
    Ok(())
}

/// The objects that kustomize makes of a folder.
fn rendered(folder: &str) -> Result<Vec<Value>> {
    let output = Command::new(binaries::peer("kubectl")?)
        .args(["kustomize", &path(folder)])
        .output()?;
    ensure!(
        output.status.success(),
        "{folder}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let text = String::from_utf8(output.stdout)?;
    let documents = text.split("\n---\n");
    documents
        .map(|document| serde_saphyr::from_str(document).with_context(|| document.to_owned()))
        .collect()
}

/// The DNS server passes where `restricted` is enforced, what runs in the node's network only where nothing is.
fn pod_security(site: &Site) -> Result<()> {
    for (level, folder, admitted) in [
        ("restricted", "dns", true),
        ("privileged", "dns", true),
        ("privileged", "proxy", true),
        ("baseline", "proxy", false),
        ("privileged", "node-local-dns", true),
        ("baseline", "node-local-dns", false),
    ] {
        let namespace = format!("{level}-{folder}");
        site.cluster.apply(&json!({
            "apiVersion": "v1", "kind": "Namespace",
            "metadata": {"name": namespace, "labels": {"pod-security.kubernetes.io/enforce": level}},
        }))?;
        for object in rendered(folder)? {
            let template = &object["spec"]["template"];
            if !template.is_object() {
                continue;
            }
            let mut spec = template["spec"].clone();
            // Priorities of the system are for kube-system; they have nothing to do with Pod Security.
            spec.as_object_mut().map(|spec| spec.remove("priorityClassName"));
            let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": namespace}, "spec": spec});
            let file = site.cluster.lab().write("pod.json", &pod.to_string())?;
            let outcome = site.kubectl(&["create", "--dry-run=server", "-f", &file.display().to_string()]);
            match (admitted, outcome) {
                (true, outcome) => drop(outcome.with_context(|| format!("{folder} under {level}"))?),
                (false, Err(error)) => ensure!(format!("{error:#}").contains("PodSecurity"), "{error:#}"),
                (false, Ok(_)) => anyhow::bail!("{folder} was admitted under {level}"),
            }
        }
    }
    Ok(())
}

fn rights(site: &Site) -> Result<()> {
    let may = |account: &str, verb: &str, resource: &str| {
        let user = format!("--as=system:serviceaccount:kube-system:{account}");
        // It ends with failure when it says no.
        let answer = site.kubectl(&["auth", "can-i", verb, resource, "--all-namespaces", &user]);
        answer.is_ok_and(|answer| answer.trim() == "yes")
    };
    for (account, verb, resource, expected) in [
        ("portolan-proxy", "watch", "services", true),
        ("portolan-proxy", "list", "endpointslices.discovery.k8s.io", true),
        ("portolan-proxy", "watch", "nodes", true),
        ("portolan-proxy", "list", "servicecidrs.networking.k8s.io", true),
        ("portolan-proxy", "create", "events.events.k8s.io", true),
        ("portolan-proxy", "list", "secrets", false),
        ("portolan-proxy", "list", "pods", false),
        ("portolan-proxy", "update", "nodes", false),
        ("portolan-proxy", "patch", "services", false),
        ("portolan-dns", "watch", "services", true),
        ("portolan-dns", "watch", "namespaces", true),
        ("portolan-dns", "list", "secrets", false),
        ("portolan-dns", "list", "nodes", false),
        ("portolan-dns", "create", "events.events.k8s.io", false),
    ] {
        ensure!(
            may(account, verb, resource) == expected,
            "{account} may {verb} {resource}: expected {expected}"
        );
    }
    Ok(())
}

/// Both daemons as their service accounts: they sync, they serve, and nothing is forbidden to them.
fn daemons_run_with_them(site: &Site) -> Result<()> {
    let kubeconfig = site.kubeconfig_of("portolan-proxy")?;
    let config = site.config("node-1", "nftables", "admin")?;
    let mut text: Value = serde_json::from_str(&std::fs::read_to_string(&config)?)?;
    text["clientConnection"]["kubeconfig"] = kubeconfig.display().to_string().into();
    std::fs::write(&config, text.to_string())?;
    let proxy = site.start("node-1", "portolan-proxy", config, &[])?;
    proxy.wait_ready()?;
    expect(&site.get("node-1", "http://10.96.0.80/")?, 200, &["web-1"])?;

    let host = site.node("node-1")?;
    let server = Daemon::start(DaemonSpec {
        name: "portolan-dns".into(),
        place: host.place.clone(),
        program: dns()?,
        args: [
            "run",
            "--listen",
            "127.0.0.1:5353",
            "--upstream",
            "127.0.0.1:9",
            "--kubeconfig",
        ]
        .into_iter()
        .map(Into::into)
        .chain([site.kubeconfig_of("portolan-dns")?.into()])
        .collect(),
        ready_url: "http://127.0.0.1:8181/ready".into(),
        log: site.cluster.lab().scratch().join("dns.log"),
    })?;
    server.wait_ready()?;

    let log = proxy.log_tail(200) + &server.log_tail(200);
    ensure!(
        !log.to_lowercase().contains("forbidden") && !log.contains("no watch"),
        "{log}"
    );
    let starting = ObjectKey::parse("node/node-1")?;
    ensure!(site.cluster.get(&starting)?.is_some(), "the Node is gone");
    site.eventually(|| {
        let list = site.kubectl(&["get", "events.events.k8s.io", "--namespace=default"])?;
        ensure!(list.contains("Starting"), "no Event with the rights of deploy/: {list}");
        Ok(())
    })?;
    ensure!(
        Path::new(&path("kubeadm.md")).exists(),
        "deploy/kubeadm.md tells how to use these"
    );
    Ok(())
}
