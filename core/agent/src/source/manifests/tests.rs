//! Address plan: Services 10.96.0.0/16 and fd00:96::/112, pods 10.244.N.0/24 and fd00:244:0:N::/64 on node nN in zone zN.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use portolan_model::{EndpointSlice, Service, World};

use super::*;
use crate::source::{Config, Origin, Snapshot, read_once};

mod api;
mod endpoints;
mod live;
mod random;
mod state;

/// Long enough for a loaded machine; nothing waits for it when all is well.
const PATIENCE: Duration = Duration::from_secs(60);

fn write_files(dir: &Path, files: &[(&str, &str)]) {
    for (name, text) in files {
        std::fs::write(dir.join(name), text).unwrap();
    }
}

async fn look(options: Options, wants: Wants) -> Snapshot {
    let config = Config {
        origin: Origin::Manifests(options),
        wants,
    };
    read_once(config, PATIENCE).await.unwrap()
}

/// Reads a folder of these files and compares everything that is known of Services and slices, and every problem.
async fn check_files(files: &[(&str, &str)], expected: &[&str]) {
    let dir = tempfile::tempdir().unwrap();
    write_files(dir.path(), files);
    let snapshot = look(Options::new(dir.path()), Wants::naming()).await;
    let found = describe(&snapshot);
    assert_eq!(found, expected, "\nfound:\n{}", found.join("\n"));
}

/// The same for the single file `web.yaml`.
async fn check(yaml: &str, expected: &[&str]) {
    check_files(&[("web.yaml", yaml)], expected).await;
}

fn describe(snapshot: &Snapshot) -> Vec<String> {
    let mut lines = describe_world(&snapshot.world);
    lines.extend(snapshot.problems.iter().map(|problem| format!("! {problem}")));
    lines
}

fn describe_world(world: &World) -> Vec<String> {
    let mut lines = Vec::new();
    for view in world.services() {
        lines.push(describe_service(view.service));
        let mut slices: Vec<&EndpointSlice> = view.slices.iter().collect();
        slices.sort_by_key(|slice| {
            (
                slice.family,
                slice.ports.iter().map(|port| port.port).collect::<Vec<_>>(),
            )
        });
        lines.extend(slices.into_iter().flat_map(describe_slice));
    }
    lines
}

fn describe_service(service: &Service) -> String {
    let mut line = format!("{} {}", service.name, service.type_);
    if service.headless {
        line += " headless";
    }
    for ip in &service.cluster_ips {
        write!(line, " {ip}").unwrap();
    }
    if let Some(name) = &service.external_name {
        write!(line, " {name}").unwrap();
    }
    for port in &service.ports {
        write!(line, " {}:{}/{}", port.name, port.port, port.protocol).unwrap();
        if let Some(node_port) = port.node_port {
            write!(line, "@{node_port}").unwrap();
        }
    }
    if let Some(port) = service.health_check_node_port {
        write!(line, " health@{port}").unwrap();
    }
    line
}

fn describe_slice(slice: &EndpointSlice) -> Vec<String> {
    let mut ports = BTreeMap::new();
    for port in &slice.ports {
        let number = port.port.map_or_else(|| "any".to_string(), |number| number.to_string());
        ports.insert(number, format!("{}:{}", port.name, port.protocol));
    }
    let ports: Vec<String> = ports
        .into_iter()
        .map(|(number, port)| format!("{port}={number}"))
        .collect();
    let lines = slice.endpoints.iter().map(|endpoint| {
        let mut line = format!("  {} {}", endpoint.address, ports.join(","));
        let optional = [
            (" host=", endpoint.hostname()),
            (" node=", endpoint.node_name.as_ref()),
            (" zone=", endpoint.zone()),
        ];
        for (word, value) in optional {
            if let Some(value) = value {
                line += word;
                line += value;
            }
        }
        if let Some(pod) = endpoint.target_pod() {
            write!(line, " pod={}", pod.name).unwrap();
        }
        let conditions = endpoint.conditions;
        for (word, holds) in [
            (" unready", !conditions.ready),
            (" unserving", !conditions.serving),
            (" terminating", conditions.terminating),
        ] {
            if holds {
                line += word;
            }
        }
        if let Some(hints) = &endpoint.hints {
            write!(line, " zones={} nodes={}", hints.zones.join("+"), hints.nodes.join("+")).unwrap();
        }
        line
    });
    lines.collect()
}
