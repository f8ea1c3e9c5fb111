//! Alerts and the dashboard name metrics that the daemons export, and each alert has its page.

use std::collections::BTreeSet;
use std::ffi::OsString;

use anyhow::{Context as _, Result, ensure};
use portolan_lab::cluster::Cluster;
use portolan_lab::daemon::{Daemon, DaemonSpec};
use portolan_lab::lab::Lab;
use portolan_lab::probe::http;
use portolan_lab::process::wait_until;
use portolan_lab::{binaries, cleanup};
use serde_json::Value;

use crate::site::PATIENCE;

const MONITORING: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/monitoring");

/// Words of PromQL that are no metrics.
const WORDS: [&str; 18] = [
    "sum",
    "by",
    "rate",
    "max",
    "min",
    "count",
    "avg",
    "increase",
    "histogram_quantile",
    "absent",
    "or",
    "and",
    "unless",
    "vector",
    "on",
    "without",
    "bool",
    "offset",
];
/// What Prometheus itself makes for each target.
const OF_PROMETHEUS: [&str; 1] = ["up"];

#[test]
fn alerts_and_dashboard_use_metrics_that_exist_and_each_alert_has_a_page() -> Result<()> {
    let exported = exported()?;
    let rules: Value = serde_saphyr::from_str(&std::fs::read_to_string(format!("{MONITORING}/alerts.yaml"))?)?;
    let groups = rules["spec"]["groups"].as_array().context("no groups")?;
    let alerts: Vec<&Value> = groups
        .iter()
        .filter_map(|group| group["rules"].as_array())
        .flatten()
        .collect();
    let mut pages = BTreeSet::new();
    for alert in &alerts {
        let name = alert["alert"].as_str().context("an alert without a name")?;
        check(
            name,
            alert["expr"].as_str().context("an alert without an expression")?,
            &exported,
        )?;
        let page = alert["annotations"]["runbook"]
            .as_str()
            .context("an alert without a page")?;
        let text = std::fs::read_to_string(format!("{MONITORING}/{page}")).with_context(|| page.to_owned())?;
        ensure!(
            text.starts_with(&format!("# {name}\n")) && text.contains("## What to do"),
            "{page} is not about {name}"
        );
        ensure!(
            text.contains(alert["expr"].as_str().unwrap_or_default()),
            "{page} tells another expression"
        );
        pages.insert(page.trim_start_matches("runbooks/").to_owned());
    }
    ensure!(alerts.len() >= 10, "only {} alerts", alerts.len());
    for file in std::fs::read_dir(format!("{MONITORING}/runbooks"))? {
        let name = file?.file_name().to_string_lossy().into_owned();
        ensure!(pages.contains(&name), "runbooks/{name} belongs to no alert");
    }
    let dashboard: Value = serde_json::from_str(&std::fs::read_to_string(format!("{MONITORING}/dashboard.json"))?)?;
    let panels = dashboard["panels"].as_array().context("no panels")?;
    for panel in panels {
        let title = panel["title"].as_str().context("a panel without a title")?;
        for target in panel["targets"].as_array().context("a panel without targets")? {
            check(
                title,
                target["expr"].as_str().context("a target without an expression")?,
                &exported,
            )?;
        }
    }
    ensure!(panels.len() >= 10, "only {} panels", panels.len());
    Ok(())
}

#[test]
fn a_metric_that_is_misspelt_is_found() {
    let exported = BTreeSet::from(["a_total".to_owned()]);
    assert!(check("x", "sum by (le) (rate(a_total{b=\"c_d\"}[5m])) > 3", &exported).is_ok());
    assert!(check("x", "rate(a_totl[5m])", &exported).is_err());
}

/// Every name in an expression that stands where a metric can stand.
fn check(of: &str, expression: &str, exported: &BTreeSet<String>) -> Result<()> {
    for name in names(expression) {
        let known = exported.contains(&name) || OF_PROMETHEUS.contains(&&*name);
        ensure!(known, "{of}: {name} is no metric of the daemons: {expression}");
    }
    Ok(())
}

/// Identifiers outside of quotes, of label lists (`by (...)`, `{...}`) and of ranges.
fn names(expression: &str) -> Vec<String> {
    let mut found = Vec::new();
    let (mut word, mut quoted, mut braces, mut range, mut labels) = (String::new(), false, 0, false, false);
    let mut last = String::new();
    for c in expression.chars().chain([' ']) {
        if quoted {
            quoted = c != '"';
            continue;
        }
        if c.is_ascii_alphanumeric() || c == '_' || c == ':' {
            word.push(c);
            continue;
        }
        if !word.is_empty() {
            let is_name = !word.starts_with(|c: char| c.is_ascii_digit());
            if is_name && braces == 0 && !range && !labels && !WORDS.contains(&&*word) {
                found.push(word.clone());
            }
            last = std::mem::take(&mut word);
        }
        match c {
            '"' => quoted = true,
            '{' => braces += 1,
            '}' => braces -= 1,
            '[' => range = true,
            ']' => range = false,
            '(' if ["by", "without", "on"].contains(&&*last) => labels = true,
            ')' => labels = false,
            _ => {}
        }
        if !c.is_whitespace() {
            last.clear();
        }
    }
    found
}

/// The names of all samples that both daemons export.
fn exported() -> Result<BTreeSet<String>> {
    cleanup::on_signals();
    let lab = Lab::builder().nodes(1).build()?;
    let dir = lab.scratch().join("manifests");
    std::fs::create_dir(&dir)?;
    let cluster = Cluster::from_manifests(lab, &dir)?;
    let lab = cluster.lab();
    let host = lab.node("node-1")?;
    // Not the machine's: another test's proxy clears that one.
    let bpffs = lab.scratch().join("bpffs").display().to_string();
    let mut names = BTreeSet::new();
    for (program, variable, more, ready, metrics) in [
        (
            "portolan-proxy",
            "PORTOLAN_PROXY",
            &["--node-name", "node-1", "--bpffs", &bpffs][..],
            "10256/healthz",
            "10249",
        ),
        (
            "portolan-dns",
            "PORTOLAN_DNS",
            &["--listen", "127.0.0.1:5353", "--upstream", "127.0.0.1:9"][..],
            "8181/ready",
            "9153",
        ),
    ] {
        let args = ["run".into(), "--manifests".into(), OsString::from(&dir)];
        let daemon = Daemon::start(DaemonSpec {
            name: program.into(),
            place: host.place.clone(),
            program: binaries::find(variable, program)?,
            args: args.into_iter().chain(more.iter().map(OsString::from)).collect(),
            ready_url: format!("http://127.0.0.1:{ready}"),
            log: lab.scratch().join(format!("{program}.log")),
        })?;
        daemon.wait_ready()?;
        let url = format!("http://127.0.0.1:{metrics}/metrics");
        let mut text = String::new();
        wait_until(PATIENCE, || {
            let options = http::Options {
                url: url.clone(),
                timeout_ms: 3000,
            };
            text = host
                .place
                .netns
                .run(move || http::get(&options))
                .map(|page| page.body)
                .unwrap_or_default();
            text.contains("# TYPE")
        });
        // What has had no event yet has no sample, but its type.
        let types = text
            .lines()
            .filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
        for (name, kind) in types {
            let suffixes: &[&str] = if kind == "histogram" {
                &["_bucket", "_sum", "_count"]
            } else {
                &[""]
            };
            names.extend(suffixes.iter().map(|suffix| format!("{name}{suffix}")));
        }
    }
    Ok(names)
}
