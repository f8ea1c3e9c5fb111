//! The page in a real browser, headless, in the node's own network namespace.

use std::ffi::OsString;

use anyhow::{Context as _, Result, ensure};
use portolan_lab::cleanup;
use portolan_lab::cluster::{Cluster, PodState};
use portolan_lab::daemon::{Daemon, DaemonSpec};
use portolan_lab::lab::Lab;
use portolan_lab::probe::http::{self, Response};
use portolan_lab::process::wait_until;
use serde_json::{Value, json};

use crate::site::{PATIENCE, header, ours};

#[test]
fn the_page_shows_services_and_why_endpoints_are_in_or_out() -> Result<()> {
    cleanup::on_signals();
    let lab = Lab::builder().nodes(1).build()?;
    let dir = lab.scratch().join("manifests");
    std::fs::create_dir(&dir)?;
    let cluster = Cluster::from_manifests(lab, &dir)?;
    for (name, ready) in [("web-1", true), ("web-2", false)] {
        cluster.apply(&json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "shop", "labels": {"app": "web"}},
            "spec": {"nodeName": "node-1", "containers": [{"name": "c", "image": "none", "ports": [{"containerPort": 8080}]}]},
        }))?;
        if !ready {
            cluster.set_pod(&format!("shop/{name}"), PodState::NotReady)?;
        }
    }
    cluster.apply(&json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "namespace": "shop"},
        "spec": {"clusterIP": "10.96.0.80", "selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}]},
    }))?;
    let loopback = start(&cluster, &dir, "127.0.0.1:10249", "10256")?;
    loopback.wait_ready()?;
    let host = cluster.lab().node("node-1")?;
    let get = |url: &str| -> Result<Response> {
        let options = http::Options {
            url: url.into(),
            timeout_ms: 3000,
        };
        host.place.netns.run(move || http::get(&options))
    };

    // What a browser makes of it.
    let profile = cluster.lab().scratch().join("chromium");
    let flags = [
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--virtual-time-budget=6000",
        "--dump-dom",
    ];
    let mut shown = String::new();
    let complete = |shown: &str| {
        [
            "shop/web",
            "1 of 2",
            "in: ready",
            "out: not ready",
            "role=\"status\" class=\"good\">synced<",
        ]
        .iter()
        .all(|part| shown.contains(part))
    };
    wait_until(PATIENCE, || {
        let args = flags.map(OsString::from).into_iter().chain([
            format!("--user-data-dir={}", profile.display()).into(),
            "http://127.0.0.1:10249/".into(),
        ]);
        shown = host
            .place
            .output("chromium", args)
            .unwrap_or_else(|error| format!("{error:#}"));
        complete(&shown)
    });
    ensure!(complete(&shown), "the browser shows {shown}");
    ensure!(shown.contains("10.96.0.80") && shown.contains("on node-1"), "{shown}");
    ensure!(
        shown.contains("<circle") && shown.contains("everything ("),
        "no plots or no recent change: {shown}"
    );

    // What it is made from.
    let page = get("http://127.0.0.1:10249/page.json?q=shop%2Fw")?;
    let data: Value = serde_json::from_str(&page.body).with_context(|| page.body.clone())?;
    ensure!(
        data["matching"] == 1 && data["services"][0]["name"] == "shop/web",
        "{data}"
    );
    let none: Value = serde_json::from_str(&get("http://127.0.0.1:10249/page.json?q=nothing")?.body)?;
    ensure!(none["matching"] == 0, "{none}");

    // Nobody's else page may read it, and it is there on loopback only.
    let html = get("http://127.0.0.1:10249/")?;
    ensure!(
        header(&html, "content-security-policy").is_some_and(|policy| policy.contains("default-src 'none'")),
        "{}",
        html.head
    );
    let elsewhere = start(&cluster, &dir, "172.18.0.1:10250", "10257")?;
    elsewhere.wait_ready()?;
    let refused = get("http://172.18.0.1:10250/")?;
    ensure!(
        refused.status == 404,
        "a page that is not on loopback: {}",
        refused.status
    );
    ensure!(
        get("http://172.18.0.1:10250/metrics")?.status == 200,
        "metrics are served there"
    );
    Ok(())
}

fn start(cluster: &Cluster, dir: &std::path::Path, metrics: &str, health: &str) -> Result<Daemon> {
    let lab = cluster.lab();
    let mut args: Vec<OsString> = [
        "run",
        "--node-name",
        "node-1",
        "--backend",
        "userspace",
        "--metrics-bind-address",
        metrics,
    ]
    .map(OsString::from)
    .into();
    args.extend([
        "--healthz-bind-address".into(),
        format!("127.0.0.1:{health}").into(),
        "--manifests".into(),
        dir.into(),
    ]);
    Daemon::start(DaemonSpec {
        name: format!("portolan-proxy {metrics}"),
        place: lab.node("node-1")?.place.clone(),
        program: ours()?,
        args,
        ready_url: format!("http://127.0.0.1:{health}/healthz"),
        log: lab.scratch().join(format!("proxy-{health}.log")),
    })
}
