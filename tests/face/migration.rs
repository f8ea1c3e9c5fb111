//! From kube-proxy to portolan-proxy and back, on one node, while connections run: none fails.

use anyhow::{Context as _, Result, ensure};
use portolan_lab::cluster::Cluster;
use portolan_lab::object::ObjectKey;
use serde_json::json;

use crate::site::{Load, Site, ours};

const NODE: &str = "node-1";

#[test]
fn from_mode_nftables_and_back_without_a_failed_connection() -> Result<()> {
    there_and_back("nftables")
}

#[test]
fn from_mode_iptables_and_back_without_a_failed_connection() -> Result<()> {
    there_and_back("iptables")
}

fn there_and_back(mode: &str) -> Result<()> {
    let site = Site::raise(1)?;
    site.cluster.apply(&json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "client", "namespace": "shop"},
        "spec": {"nodeName": NODE, "containers": [{"name": "c", "image": "none"}]},
    }))?;
    // With one policy and cluster IP, all of it through the node that changes hands.
    let config = site.config(NODE, mode, "system:kube-proxy")?;
    let theirs = site.start(NODE, "kube-proxy", config.clone(), &["-v=2"])?;
    theirs.wait_ready()?;
    site.eventually(|| site.get(NODE, "http://10.96.0.80/").map(drop))?;
    let loads = [
        ("pod to cluster IP", site.load("shop/client", "10.96.0.80:80")?),
        ("node to cluster IP", site.load(NODE, "10.96.0.80:80")?),
        ("outside to node port", site.load("outside-1", "172.18.0.1:30080")?),
    ];

    // There: ours beside it, then instead of it, then without its rules.
    refuses_to_leave_the_node_without_services(&site)?;
    let ours = site.start(NODE, "portolan-proxy", config.clone(), &[])?;
    site.eventually(|| programmed(&site, "portolan"))
        .with_context(|| ours.log_tail(20))?;
    theirs.terminate()?;
    let removed = run(&site, &["cleanup", "--kube-proxy"])?;
    ensure!(removed.contains("removed: "), "{removed}");
    nothing_left(&site, "kube-proxy")?;
    nothing_left(&site, "KUBE-SVC")?;
    ours.wait_ready()?;
    replace_endpoint(&site, "web-1", "web-2")?;

    // And back.
    theirs.start_again()?;
    site.eventually(|| serves(&site, mode))
        .with_context(|| theirs.log_tail(20))?;
    ours.terminate()?;
    run(&site, &["cleanup"])?;
    nothing_left(&site, "portolan")?;
    theirs.wait_ready()?;
    replace_endpoint(&site, "web-2", "web-3")?;

    for (name, load) in loads {
        let (attempts, failures) = Load::finish(load)?;
        println!("{mode}: {name}: {attempts} connections, {} failed", failures.len());
        ensure!(
            failures.is_empty(),
            "{name}: {} of {attempts} failed: {:?}",
            failures.len(),
            failures.first()
        );
        ensure!(attempts > 100, "{name}: only {attempts} connections were made");
    }
    Ok(())
}

/// Removing kube-proxy's rules before ours are there would end all Services.
fn refuses_to_leave_the_node_without_services(site: &Site) -> Result<()> {
    let error = run(site, &["cleanup", "--kube-proxy"])
        .err()
        .context("it did as it was told")?;
    ensure!(format!("{error:#}").contains("no Service would work"), "{error:#}");
    Ok(())
}

fn run(site: &Site, args: &[&str]) -> Result<String> {
    site.node(NODE)?.place.output(ours()?, args)
}

fn rules(site: &Site) -> Result<String> {
    site.node(NODE)?.place.output("nft", ["-n", "list", "ruleset"])
}

/// Our rules are complete: the cluster IP and its endpoint are in them.
fn programmed(site: &Site, table: &str) -> Result<()> {
    let rules = site.node(NODE)?.place.output("nft", ["list", "table", "ip", table])?;
    ensure!(rules.contains("10.96.0.80"), "{rules}");
    Ok(())
}

/// kube-proxy's own rules forward the cluster IP.
fn serves(site: &Site, mode: &str) -> Result<()> {
    let listed = match mode {
        "nftables" => ["list", "map", "ip", "kube-proxy", "service-ips"],
        _ => ["list", "chain", "ip", "nat", "KUBE-SERVICES"],
    };
    let rules = site.node(NODE)?.place.output("nft", listed)?;
    ensure!(rules.contains("10.96.0.80"), "{rules}");
    Ok(())
}

fn nothing_left(site: &Site, what: &str) -> Result<()> {
    let rules = rules(site)?;
    let left: Vec<&str> = rules.lines().filter(|line| line.contains(what)).collect();
    ensure!(left.is_empty(), "{what} is left: {left:?}");
    Ok(())
}

/// A change while one of them is in charge: another endpoint comes, the old one goes, gracefully as kubelet would do it.
fn replace_endpoint(site: &Site, old: &str, new: &str) -> Result<()> {
    site.cluster.apply(&json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": new, "namespace": "shop", "labels": {"app": "web"}},
        "spec": {"nodeName": NODE, "containers": [{"name": "c", "image": "none", "ports": [{"containerPort": 8080}]}]},
    }))?;
    let answers = |site: &Site, name: &str, wanted: bool| -> Result<()> {
        let bodies: Vec<String> = (0..20)
            .map(|_| site.get(NODE, "http://10.96.0.80/").map(|page| page.body))
            .collect::<Result<_>>()?;
        ensure!(
            bodies.iter().any(|body| body.contains(name)) == wanted,
            "{name}: {bodies:?}"
        );
        Ok(())
    };
    site.eventually(|| answers(site, new, true))?;
    not_ready(&site.cluster, old)?;
    site.eventually(|| answers(site, old, false))?;
    site.cluster.delete(&ObjectKey::parse(&format!("pod/shop/{old}"))?)
}

fn not_ready(cluster: &Cluster, pod: &str) -> Result<()> {
    cluster.set_pod(&format!("shop/{pod}"), portolan_lab::cluster::PodState::NotReady)
}
