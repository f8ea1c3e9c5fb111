//! The real kube-proxy on one node and ours on the other, started with the same file: whoever looks at their pages cannot
//! tell them apart, except where ours says more.

use std::collections::{BTreeMap, BTreeSet};
use std::net::TcpListener;

use anyhow::{Context as _, Result, ensure};
use portolan_lab::daemon::Daemon;
use portolan_lab::object::ObjectKey;
use portolan_lab::probe::http::Response;
use serde_json::{Value, json};

use crate::site::{Site, expect, header, same};

const THEIRS: &str = "node-1";
const OURS: &str = "node-2";

/// Every metric of its own that kube-proxy 1.36 registers in mode nftables.
const REGISTERED: [&str; 17] = [
    "conntrack_reconciler_deleted_entries_total",
    "conntrack_reconciler_sync_duration_seconds",
    "network_programming_duration_seconds",
    "proxy_healthz_total",
    "proxy_livez_total",
    "sync_full_proxy_rules_duration_seconds",
    "sync_partial_proxy_rules_duration_seconds",
    "sync_proxy_rules_duration_seconds",
    "sync_proxy_rules_endpoint_changes_pending",
    "sync_proxy_rules_endpoint_changes_total",
    "sync_proxy_rules_last_queued_timestamp_seconds",
    "sync_proxy_rules_last_timestamp_seconds",
    "sync_proxy_rules_nftables_cleanup_failures_total",
    "sync_proxy_rules_nftables_sync_failures_total",
    "sync_proxy_rules_no_local_endpoints_total",
    "sync_proxy_rules_service_changes_pending",
    "sync_proxy_rules_service_changes_total",
];

#[test]
fn ours_looks_like_kube_proxy_to_whoever_asks() -> Result<()> {
    let site = Site::raise(2)?;
    let theirs = site.start(
        THEIRS,
        "kube-proxy",
        site.config(THEIRS, "nftables", "system:kube-proxy")?,
        &["-v=2"],
    )?;
    let ours = site.start(
        OURS,
        "portolan-proxy",
        site.config(OURS, "nftables", "system:kube-proxy")?,
        &["-v=2"],
    )?;
    [&theirs, &ours].into_iter().try_for_each(Daemon::wait_ready)?;
    // kube-proxy calls itself healthy before it has programmed anything, so its pages take a while to be complete.
    for (name, check) in [
        ("healthz and livez", health_pages as fn(&Site) -> Result<()>),
        ("proxyMode", proxy_mode),
        ("configz", configz),
        ("metrics", metrics),
        ("healthCheckNodePort", health_check_port),
    ] {
        let outcome = site.eventually(|| check(&site));
        outcome.with_context(|| format!("{name}\n{}", ours.log_tail(20)))?;
    }
    events(&site).with_context(|| format!("Events\n{}", ours.log_tail(20)))?;
    eligibility(&site).with_context(|| format!("node eligibility\n{}", ours.log_tail(20)))?;
    Ok(())
}

/// Asks both the same, as each node sees itself.
fn both(site: &Site, path: &str) -> Result<(Response, Response)> {
    let url = format!("http://127.0.0.1:{path}");
    Ok((site.get(OURS, &url)?, site.get(THEIRS, &url)?))
}

fn same_header(name: &str, (ours, theirs): (&Response, &Response)) -> Result<()> {
    let (ours, theirs) = (header(ours, name), header(theirs, name));
    ensure!(ours == theirs, "{name}: ours {ours:?}, kube-proxy's {theirs:?}");
    Ok(())
}

fn health_pages(site: &Site) -> Result<()> {
    for path in ["10256/healthz", "10256/livez"] {
        let (ours, theirs) = both(site, path)?;
        ensure!(
            (ours.status, theirs.status) == (200, 200),
            "{path}: {} and {}",
            ours.status,
            theirs.status
        );
        for name in ["content-type", "x-content-type-options"] {
            same_header(name, (&ours, &theirs)).context(path)?;
        }
        let value = |page: &Response| serde_json::from_str::<Value>(page.body.trim()).context(page.body.clone());
        let (ours, theirs) = (value(&ours)?, value(&theirs)?);
        same(path, &shape(&ours), &shape(&theirs))?;
        ensure!(
            ours["lastUpdated"] == ours["currentTime"],
            "nothing waits, so it was updated just now: {ours}"
        );
    }
    // kube-proxy listens in both families, also when its configuration says 0.0.0.0.
    for node in [OURS, THEIRS] {
        expect(&site.get(node, "http://[::1]:10256/healthz")?, 200, &[]).context(node)?;
    }
    Ok(())
}

/// The paths of all fields with the types of their values.
fn shape(value: &Value) -> Vec<String> {
    fn walk(value: &Value, path: &str, found: &mut Vec<String>) {
        match value {
            Value::Object(fields) => fields
                .iter()
                .for_each(|(key, value)| walk(value, &format!("{path}.{key}"), found)),
            Value::String(text) => found.push(format!(
                "{path}: text{}",
                if text.ends_with('Z') { " in UTC" } else { "" }
            )),
            Value::Bool(_) => found.push(format!("{path}: bool")),
            Value::Number(_) => found.push(format!("{path}: number")),
            Value::Array(_) => found.push(format!("{path}: list")),
            Value::Null => found.push(format!("{path}: null")),
        }
    }
    let mut found = Vec::new();
    walk(value, "", &mut found);
    found.sort();
    found
}

fn proxy_mode(site: &Site) -> Result<()> {
    let (ours, theirs) = both(site, "10249/proxyMode")?;
    ensure!(
        ours.body == theirs.body && ours.body == "nftables",
        "{:?} and {:?}",
        ours.body,
        theirs.body
    );
    for name in ["content-type", "x-content-type-options"] {
        same_header(name, (&ours, &theirs))?;
    }
    let (ours, theirs) = both(site, "10249/healthz")?;
    ensure!(
        ours.body == theirs.body,
        "/healthz of the metrics port: {:?} and {:?}",
        ours.body,
        theirs.body
    );
    Ok(())
}

fn configz(site: &Site) -> Result<()> {
    let (ours, theirs) = both(site, "10249/configz")?;
    let value = |page: &Response| serde_json::from_str::<Value>(&page.body).context(page.body.clone());
    let (ours, theirs) = (value(&ours)?, value(&theirs)?);
    let groups = |value: &Value| {
        value
            .as_object()
            .map(|fields| fields.keys().cloned().collect::<Vec<_>>())
            .unwrap_or_default()
    };
    same("/configz", &groups(&ours), &groups(&theirs))?;
    let config = &ours["kubeproxy.config.k8s.io"];
    ensure!(
        config["clusterCIDR"] == "10.244.0.0/16,fd00:244::/48" && config["hostnameOverride"] == OURS,
        "{config}"
    );
    Ok(())
}

/// Name and type of each metric of kube-proxy's own.
fn exposed(page: &Response) -> BTreeMap<String, String> {
    let types = page
        .body
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
    types.map(|(name, kind)| (name.to_owned(), kind.to_owned())).collect()
}

/// The labels of a metric's samples.
fn labels(page: &Response, metric: &str) -> BTreeSet<String> {
    let samples = page.body.lines().filter(|line| line.starts_with(metric));
    let sets = samples.filter_map(|line| Some(line.split_once('{')?.1.split_once('}')?.0));
    sets.flat_map(|set| set.split(','))
        .filter_map(|pair| Some(pair.split_once('=')?.0.to_owned()))
        .collect()
}

fn metrics(site: &Site) -> Result<()> {
    // One change on both, so that metrics which need one are there.
    site.kubectl(&[
        "annotate",
        "service",
        "web",
        "--namespace=shop",
        "--overwrite",
        "touched=yes",
    ])?;
    let (ours, theirs) = both(site, "10249/metrics")?;
    let content_type =
        |page| header(page, "content-type").map(|value| value.split("; escaping").next().unwrap_or(value).to_owned());
    ensure!(
        content_type(&ours) == content_type(&theirs),
        "{:?} and {:?}",
        content_type(&ours),
        content_type(&theirs)
    );
    let (exported, wanted) = (exposed(&ours), exposed(&theirs));
    let wanted: BTreeMap<_, _> = wanted
        .into_iter()
        .filter(|(name, _)| name.starts_with("kubeproxy_"))
        .collect();
    ensure!(wanted.len() >= 10, "kube-proxy itself exports only {wanted:?}");
    for (name, kind) in &wanted {
        let found = exported
            .get(name)
            .with_context(|| format!("{name} ({kind}) is missing"))?;
        ensure!(found == kind, "{name} is a {kind}, not a {found}");
        let (found, expected) = (labels(&ours, name), labels(&theirs, name));
        ensure!(
            expected.is_subset(&found),
            "{name}: labels {found:?} instead of {expected:?}"
        );
    }
    // kube-proxy shows a metric only once it has a value; ours are all there from the start, but for answers not yet given.
    let ours_of_them: Vec<String> = exported
        .keys()
        .filter(|name| name.starts_with("kubeproxy_"))
        .cloned()
        .collect();
    same(
        "metrics of kube-proxy's name",
        &ours_of_them,
        &REGISTERED.map(|name| format!("kubeproxy_{name}")),
    )?;
    for process in [
        "process_cpu_seconds_total",
        "process_resident_memory_bytes",
        "process_open_fds",
        "process_start_time_seconds",
    ] {
        ensure!(exported.contains_key(process), "{process} is missing");
    }
    let buckets = |page: &Response, metric: &str| -> Vec<String> {
        let lines = page
            .body
            .lines()
            .filter(|line| line.starts_with(&format!("{metric}_bucket{{")) && line.contains("IPv4"));
        let bounds = lines.filter_map(|line| Some(line.split_once("le=\"")?.1.split_once('"')?.0));
        bounds
            .filter_map(|bound| bound.parse::<f64>().ok().map(|bound| format!("{bound}")))
            .collect()
    };
    for metric in [
        "kubeproxy_sync_proxy_rules_duration_seconds",
        "kubeproxy_network_programming_duration_seconds",
    ] {
        let (found, expected) = (buckets(&ours, metric), buckets(&theirs, metric));
        let missing: Vec<_> = expected
            .iter()
            .filter(|bound| *bound != "0" && !found.contains(bound))
            .collect();
        ensure!(missing.is_empty(), "{metric} lacks the buckets {missing:?}");
    }
    Ok(())
}

fn health_check_port(site: &Site) -> Result<()> {
    let page = |node: &str, address: &str| site.get(node, &format!("http://{address}:32122/any"));
    let (ours, theirs) = (page(OURS, "172.18.0.2")?, page(THEIRS, "172.18.0.1")?);
    ensure!(
        ours.body == theirs.body && (ours.status, theirs.status) == (200, 200),
        "{ours:?} and {theirs:?}"
    );
    for name in [
        "content-type",
        "x-content-type-options",
        "x-load-balancing-endpoint-weight",
    ] {
        same_header(name, (&ours, &theirs))?;
    }
    // Ours answers in the other family and on loopback as well.
    for address in ["[fd00:18::2]", "127.0.0.1", "[::1]"] {
        let also = page(OURS, address).context(address)?;
        ensure!(also.body == ours.body, "{address}: {}", also.body);
    }
    Ok(())
}

fn events(site: &Site) -> Result<()> {
    let event = |node: &str| -> Result<Value> {
        let list = site.kubectl(&["get", "events.events.k8s.io", "--namespace=default", "-o", "json"])?;
        let list: Value = serde_json::from_str(&list)?;
        let items = list["items"].as_array().cloned().unwrap_or_default();
        let found = items
            .into_iter()
            .find(|event| event["reason"] == "Starting" && event["regarding"]["name"] == node);
        found.with_context(|| format!("no Event Starting of {node}"))
    };
    let (ours, theirs) = site.eventually(|| Ok((event(OURS)?, event(THEIRS)?)))?;
    for field in ["action", "reason", "type", "reportingController"] {
        ensure!(
            ours[field] == theirs[field],
            "{field}: ours {}, kube-proxy's {}",
            ours[field],
            theirs[field]
        );
    }
    for field in ["kind", "uid"] {
        let (ours, theirs) = (&ours["regarding"][field], &theirs["regarding"][field]);
        ensure!(
            ours.is_string() == theirs.is_string(),
            "regarding.{field}: ours {ours}, kube-proxy's {theirs}"
        );
    }
    // A health check port that somebody else has.
    let squatter = (site.node(OURS)?.place.netns).run(|| Ok(TcpListener::bind("172.18.0.2:32199")?))?;
    let told = (|| {
        site.cluster.apply(&json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": "squatted", "namespace": "shop"},
            "spec": {"type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": 32199,
                     "selector": {"app": "web"}, "ports": [{"port": 81, "targetPort": 8080}]},
        }))?;
        site.eventually(|| {
            let list = site.kubectl(&["get", "events.events.k8s.io", "--namespace=shop", "-o", "json"])?;
            ensure!(
                list.contains("FailedToStartServiceHealthcheck") && list.contains("squatted"),
                "{list}"
            );
            Ok(())
        })
    })();
    drop(squatter);
    told
}

/// Taint, deletion and absence of the Node.
fn eligibility(site: &Site) -> Result<()> {
    let check = |status: u16, healthy: bool, eligible: bool| {
        for node in [OURS, THEIRS] {
            site.eventually(|| {
                let page = site.get(node, "http://127.0.0.1:10256/healthz")?;
                expect(&page, status, &[])?;
                let body: Value = serde_json::from_str(page.body.trim())?;
                ensure!(body["healthy"] == healthy && body["nodeEligible"] == eligible, "{body}");
                expect(
                    &site.get(node, "http://127.0.0.1:10256/livez")?,
                    200,
                    &["\"healthy\":true"],
                )
            })
            .context(node)?;
        }
        Ok::<_, anyhow::Error>(())
    };
    let patch = |patch: Value| {
        [OURS, THEIRS]
            .into_iter()
            .try_for_each(|node| site.cluster.patch(&ObjectKey::parse(&format!("node/{node}"))?, &patch))
    };
    check(200, true, true)?;
    let taint = json!({"key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule"});
    patch(json!({"spec": {"taints": [taint]}}))?;
    check(503, true, false)?;
    patch(json!({"spec": {"taints": []}}))?;
    check(200, true, true)?;
    patch(json!({"metadata": {"finalizers": ["example.com/hold"]}}))?;
    for node in [OURS, THEIRS] {
        site.kubectl(&["delete", "node", node, "--wait=false"])?;
    }
    check(503, true, false)?;
    patch(json!({"metadata": {"finalizers": null}}))
}
