//! A large cluster is listed in bounded memory: 5,000 Services with 50,000 endpoints, in pages, from a server on loopback.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{OriginalUri, Query};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use portolan_agent::source::{self, Config, Origin, Wants, kube};
use portolan_model::{Delta, World};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

const SERVICES: usize = 5000;
const ENDPOINTS: usize = 10;
/// What the whole World and the way to it may take. The objects' own JSON is some 60 MiB.
const MEMORY: usize = 120 << 20;

fn meta(name: String, labels: Value) -> Value {
    // What real objects carry and nobody here needs.
    let fields: BTreeMap<String, Value> = (0..20)
        .map(|i| (format!("f:field-{i}"), json!({"f:more": {}})))
        .collect();
    json!({"name": name, "namespace": "default", "resourceVersion": "1", "uid": "00000000-0000-0000-0000-000000000000",
        "labels": labels, "managedFields": [{"manager": "m", "operation": "Update", "fieldsV1": fields}]})
}

fn service(i: usize) -> Value {
    let ip = format!("10.{}.{}.{}", 96 + i / 65536, i / 256 % 256, i % 256);
    json!({"metadata": meta(format!("service-{i}"), json!({})), "spec": {"clusterIP": ip, "clusterIPs": [ip], "ports": [{"port": 80, "name": "http"}]}})
}

fn slice(i: usize) -> Value {
    let endpoints: Vec<Value> = (0..ENDPOINTS).map(|e| {
        let address = format!("10.{}.{}.{}", 200 + e, i / 250, i % 250 + 1);
        json!({"addresses": [address], "nodeName": format!("node-{}", e % 100), "conditions": {"ready": true, "serving": true, "terminating": false},
            "targetRef": {"kind": "Pod", "namespace": "default", "name": format!("pod-{i}-{e}"), "uid": "00000000-0000-0000-0000-000000000000"}})
    }).collect();
    json!({"metadata": meta(format!("service-{i}-x"), json!({"kubernetes.io/service-name": format!("service-{i}")})),
        "addressType": "IPv4", "ports": [{"port": 8080, "name": "http", "protocol": "TCP"}], "endpoints": endpoints})
}

async fn answer(OriginalUri(uri): OriginalUri, Query(query): Query<BTreeMap<String, String>>) -> Response {
    let make: Option<fn(usize) -> Value> = match uri.path().rsplit('/').next() {
        Some("services") => Some(service),
        Some("endpointslices") => Some(slice),
        _ => None,
    };
    if query.contains_key("sendInitialEvents") {
        let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 422, "message": "x", "reason": "Invalid"});
        return (
            StatusCode::UNPROCESSABLE_ENTITY,
            [("content-type", "application/json")],
            status.to_string(),
        )
            .into_response();
    }
    if query.contains_key("watch") {
        return Body::from_stream(futures::stream::pending::<Result<Vec<u8>, std::io::Error>>()).into_response();
    }
    let first: usize = query.get("continue").and_then(|place| place.parse().ok()).unwrap_or(0);
    let limit: usize = query
        .get("limit")
        .and_then(|limit| limit.parse().ok())
        .unwrap_or(SERVICES);
    let last = SERVICES.min(first + limit);
    let items: Vec<Value> = make.map(|make| (first..last).map(make).collect()).unwrap_or_default();
    let more = if make.is_some() && last < SERVICES {
        last.to_string()
    } else {
        String::new()
    };
    let list = json!({"kind": "List", "apiVersion": "v1", "metadata": {"resourceVersion": "1", "continue": more}, "items": items});
    ([("content-type", "application/json")], list.to_string()).into_response()
}

/// Peak resident memory in bytes.
fn peak() -> Option<usize> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<usize>().ok()? * 1024)
}

#[tokio::test]
async fn a_large_cluster_is_listed_in_bounded_memory() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("its address"));
    tokio::spawn(async move { axum::serve(listener, Router::new().fallback(answer)).await });
    let before = peak();
    let options = kube::Options {
        master: Some(url),
        ..kube::Options::default()
    };
    let config = Config {
        origin: Origin::Kube(options),
        wants: Wants::forwarding(),
    };
    let shutdown = CancellationToken::new();
    let mut feed = source::start(config, shutdown.clone()).await.expect("a source");
    let mut world = World::default();
    let mut synced = false;
    while !synced {
        let batch = tokio::time::timeout(Duration::from_secs(120), feed.next())
            .await
            .expect("a batch")
            .expect("the source goes on");
        let mut delta = Delta::default();
        batch
            .events
            .into_iter()
            .for_each(|event| world.apply(event, &mut delta));
        synced = batch.synced;
    }
    assert_eq!(world.counts(), (SERVICES, SERVICES));
    let endpoints: usize = world
        .services()
        .map(|view| view.slices.iter().map(|slice| slice.endpoints.len()).sum::<usize>())
        .sum();
    assert_eq!(endpoints, SERVICES * ENDPOINTS);
    if let (Some(before), Some(after)) = (before, peak()) {
        println!(
            "{} MiB for {SERVICES} Services with {endpoints} endpoints",
            (after - before) >> 20
        );
        assert!(after - before < MEMORY, "{} MiB", (after - before) >> 20);
    }
    shutdown.cancel();
}
