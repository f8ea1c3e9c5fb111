//! EndpointSlices from Pods and from Endpoints: what the controllers do.

use super::{Options, Wants, check, describe, look, write_files};

/// A pod of app `web` on node nN with addresses of both families.
fn pod(name: &str, node: u8, extra: &str) -> String {
    let host = name.bytes().last().unwrap_or_default() - b'0' + 1;
    format!(
        "
---
apiVersion: v1
kind: Pod
metadata: {{name: {name}, labels: {{app: web, tier: front}}}}
spec: {{nodeName: n{node}, containers: [{{name: c, ports: [{{name: http, containerPort: 8080}}]}}]}}
status: {{podIPs: [{{ip: 10.244.{node}.{host}}}, {{ip: 'fd00:244:0:{node}::{host}'}}]}}
{extra}"
    )
}

const NODES: &str = "
---
{apiVersion: v1, kind: Node, metadata: {name: n1, labels: {topology.kubernetes.io/zone: z1}}}
---
{apiVersion: v1, kind: Node, metadata: {name: n2, labels: {topology.kubernetes.io/zone: z2}}}";

fn service(spec: &str) -> String {
    format!("{{apiVersion: v1, kind: Service, metadata: {{name: web}}, spec: {{clusterIP: 10.96.0.1, {spec}}}}}")
}

const WEB: &str = "default/web ClusterIP 10.96.0.1 :80/TCP";

#[tokio::test]
async fn pods_are_selected_by_all_labels() {
    let other = pod("api-0", 1, "").replace("app: web", "app: api");
    let elsewhere = pod("web-2", 1, "").replace("metadata: {", "metadata: {namespace: shop, ");
    let yaml = service("selector: {app: web, tier: front}, ports: [{port: 80, targetPort: 8080}]")
        + &pod("web-0", 1, "")
        + &pod("web-1", 2, "")
        + &other
        + &elsewhere
        + NODES;
    check(
        &yaml,
        &[
            WEB,
            "  10.244.1.1 :TCP=8080 node=n1 zone=z1 pod=web-0",
            "  10.244.2.2 :TCP=8080 node=n2 zone=z2 pod=web-1",
        ],
    )
    .await;
    let yaml = service("selector: {app: web, tier: back}, ports: [{port: 80}]") + &pod("web-0", 1, "");
    check(&yaml, &[WEB]).await;
    let yaml = service("ports: [{port: 80}]") + &pod("web-0", 1, "");
    check(&yaml, &[WEB]).await;
}

#[tokio::test]
async fn both_families_and_the_default_target_port() {
    let yaml =
        service("ipFamilyPolicy: PreferDualStack, selector: {app: web}, ports: [{port: 80}]") + &pod("web-0", 1, "");
    check(
        &yaml,
        &[
            "default/web ClusterIP 10.96.0.1 fd00:96::c82 :80/TCP",
            "  10.244.1.1 :TCP=80 node=n1 pod=web-0",
            "  fd00:244:0:1::1 :TCP=80 node=n1 pod=web-0",
        ],
    )
    .await;
}

#[tokio::test]
async fn readiness_comes_from_the_status() {
    let with = |name: &str, status: &str| pod(name, 1, "").replace("status: {", &format!("status: {{{status}, "));
    let condition = |status: &str| format!("phase: Running, conditions: [{{type: Ready, status: '{status}'}}]");
    let deleted = pod("web-6", 1, "").replace("metadata: {", "metadata: {deletionTimestamp: '2026-01-01T00:00:00Z', ");
    let no_address = "
---
{apiVersion: v1, kind: Pod, metadata: {name: web-7, labels: {app: web}}, spec: {containers: []}}";
    let pods = with("web-0", &condition("True"))
        + &with("web-1", &condition("False"))
        + &with("web-2", "phase: Running")
        + &with("web-3", "phase: Pending")
        + &with("web-4", "phase: Succeeded")
        + &with("web-5", "phase: Failed")
        + &deleted
        + no_address;
    check(
        &(service("selector: {app: web}, ports: [{port: 80}]") + &pods),
        &[
            WEB,
            "  10.244.1.1 :TCP=80 node=n1 pod=web-0",
            "  10.244.1.2 :TCP=80 node=n1 pod=web-1 unready unserving",
            "  10.244.1.3 :TCP=80 node=n1 pod=web-2",
            "  10.244.1.4 :TCP=80 node=n1 pod=web-3 unready unserving",
            "  10.244.1.7 :TCP=80 node=n1 pod=web-6 unready terminating",
        ],
    )
    .await;
    check(
        &(service("publishNotReadyAddresses: true, selector: {app: web}, ports: [{port: 80}]") + &pods),
        &[
            WEB,
            "  10.244.1.1 :TCP=80 node=n1 pod=web-0",
            "  10.244.1.2 :TCP=80 node=n1 pod=web-1 unserving",
            "  10.244.1.3 :TCP=80 node=n1 pod=web-2",
            "  10.244.1.4 :TCP=80 node=n1 pod=web-3 unserving",
            "  10.244.1.7 :TCP=80 node=n1 pod=web-6 terminating",
        ],
    )
    .await;
}

#[tokio::test]
async fn named_target_ports_are_looked_up_in_each_pod() {
    let other = pod("web-1", 1, "").replace("8080", "9090");
    let without = pod("web-2", 1, "").replace("name: http", "name: grpc");
    let udp = pod("web-3", 1, "").replace("containerPort: 8080", "containerPort: 8080, protocol: UDP");
    let sidecar = pod("web-4", 1, "").replace(
        "containers: [{name: c, ports: [{name: http, containerPort: 8080}]}]",
        "initContainers: [{name: s, restartPolicy: Always, ports: [{name: http, containerPort: 7070}]}], containers: [{name: c}]",
    );
    check(
        &(service("selector: {app: web}, ports: [{port: 80, targetPort: http}]")
            + &pod("web-0", 1, "")
            + &other
            + &without
            + &udp
            + &sidecar),
        &[
            WEB,
            // The pods without that port are endpoints of no port.
            "  10.244.1.3  node=n1 pod=web-2",
            "  10.244.1.4  node=n1 pod=web-3",
            "  10.244.1.5 :TCP=7070 node=n1 pod=web-4",
            "  10.244.1.1 :TCP=8080 node=n1 pod=web-0",
            "  10.244.1.2 :TCP=9090 node=n1 pod=web-1",
        ],
    )
    .await;
}

#[tokio::test]
async fn stateful_pods_get_host_names_under_their_governing_service() {
    let services = "
{apiVersion: v1, kind: Service, metadata: {name: db}, spec: {clusterIP: None, selector: {app: web}, ports: [{name: sql, port: 5432}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: reads}, spec: {clusterIP: 10.96.0.1, selector: {app: web}, ports: [{port: 80}]}}
---
{apiVersion: apps/v1, kind: StatefulSet, metadata: {name: web}, spec: {serviceName: db, selector: {matchLabels: {app: web}}, template: {metadata: {labels: {app: web}}}}}";
    let owned = pod("web-0", 1, "").replace(
        "metadata: {",
        "metadata: {ownerReferences: [{apiVersion: apps/v1, kind: StatefulSet, name: web, uid: u, controller: true}], ",
    );
    let labelled = pod("web-1", 1, "").replace("labels: {", "labels: {statefulset.kubernetes.io/pod-name: web-1, ");
    let adopted = pod("web-2", 1, "");
    let foreign = pod("web-3", 1, "").replace(
        "metadata: {",
        "metadata: {ownerReferences: [{apiVersion: apps/v1, kind: ReplicaSet, name: web, uid: u, controller: true}], ",
    );
    let explicit = pod("other-4", 1, "").replace("spec: {", "spec: {hostname: named, subdomain: db, ");
    let no_subdomain = pod("other-5", 1, "").replace("spec: {", "spec: {hostname: named, ");
    check(
        &(services.to_string() + &owned + &labelled + &adopted + &foreign + &explicit + &no_subdomain),
        &[
            "default/db ClusterIP headless sql:5432/TCP",
            "  10.244.1.1 sql:TCP=5432 host=web-0 node=n1 pod=web-0",
            "  10.244.1.2 sql:TCP=5432 host=web-1 node=n1 pod=web-1",
            "  10.244.1.3 sql:TCP=5432 host=web-2 node=n1 pod=web-2",
            "  10.244.1.4 sql:TCP=5432 node=n1 pod=web-3",
            "  10.244.1.5 sql:TCP=5432 host=named node=n1 pod=other-4",
            "  10.244.1.6 sql:TCP=5432 node=n1 pod=other-5",
            "default/reads ClusterIP 10.96.0.1 :80/TCP",
            "  10.244.1.1 :TCP=80 node=n1 pod=web-0",
            "  10.244.1.2 :TCP=80 node=n1 pod=web-1",
            "  10.244.1.3 :TCP=80 node=n1 pod=web-2",
            "  10.244.1.4 :TCP=80 node=n1 pod=web-3",
            "  10.244.1.5 :TCP=80 node=n1 pod=other-4",
            "  10.244.1.6 :TCP=80 node=n1 pod=other-5",
        ],
    )
    .await;
}

#[tokio::test]
async fn headless_services_need_no_port() {
    let yaml = "{apiVersion: v1, kind: Service, metadata: {name: web}, spec: {clusterIP: None, selector: {app: web}}}"
        .to_string()
        + &pod("web-0", 1, "");
    check(
        &yaml,
        &["default/web ClusterIP headless", "  10.244.1.1  node=n1 pod=web-0"],
    )
    .await;
}

#[tokio::test]
async fn endpoints_are_mirrored_unless_the_service_selects() {
    let endpoints = "
---
apiVersion: v1
kind: Endpoints
metadata: {name: web}
subsets:
- addresses: [{ip: 192.168.0.1, hostname: a, nodeName: n1}, {ip: 'fd00:168::1'}]
  notReadyAddresses: [{ip: 192.168.0.2}]
  ports: [{port: 3306}]
- addresses: [{ip: 192.168.0.3}]
  ports: [{port: 3307}]
";
    check(
        &(service("ports: [{port: 80}]") + endpoints),
        &[
            WEB,
            "  192.168.0.1 :TCP=3306 host=a node=n1",
            "  192.168.0.2 :TCP=3306 unready",
            "  192.168.0.3 :TCP=3307",
            "  fd00:168::1 :TCP=3306",
        ],
    )
    .await;
    check(
        &(service("selector: {app: web}, ports: [{port: 80}]") + endpoints),
        &[WEB],
    )
    .await;
    let skipped = endpoints.replace(
        "{name: web}",
        "{name: web, labels: {endpointslice.kubernetes.io/skip-mirror: 'true'}}",
    );
    check(&(service("ports: [{port: 80}]") + &skipped), &[WEB]).await;
}

#[tokio::test]
async fn written_slices_stand_beside_derived_ones() {
    let slice = "
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-extra, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{port: 8080}]
endpoints: [{addresses: [192.168.0.9], conditions: {ready: true}}]";
    check(
        &(service("selector: {app: web}, ports: [{port: 80}]") + slice + &pod("web-0", 1, "")),
        &[WEB, "  10.244.1.1 :TCP=80 node=n1 pod=web-0", "  192.168.0.9 :TCP=8080"],
    )
    .await;
}

#[tokio::test]
async fn traffic_distribution_becomes_hints() {
    let yaml = |word: &str| {
        service(&format!(
            "trafficDistribution: {word}, selector: {{app: web}}, ports: [{{port: 80}}]"
        )) + &pod("web-0", 1, "")
            + NODES
    };
    for (word, nodes) in [("PreferClose", ""), ("PreferSameZone", ""), ("PreferSameNode", "n1")] {
        let line = format!("  10.244.1.1 :TCP=80 node=n1 zone=z1 pod=web-0 zones=z1 nodes={nodes}");
        check(&yaml(word), &[WEB, &line]).await;
    }
}

#[tokio::test]
async fn a_proxy_is_spared_what_it_does_not_forward() {
    let yaml = "
{apiVersion: v1, kind: Service, metadata: {name: db}, spec: {clusterIP: None, selector: {app: web}, ports: [{port: 80}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: mesh, labels: {service.kubernetes.io/service-proxy-name: mesh}}, spec: {clusterIP: 10.96.0.2, ports: [{port: 80}]}}
---
{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: s, labels: {kubernetes.io/service-name: db, service.kubernetes.io/headless: ''}}, addressType: IPv4, endpoints: []}
---
".to_string() + &service("selector: {app: web}, ports: [{port: 80}]") + &pod("web-0", 1, "") + NODES;
    let dir = tempfile::tempdir().unwrap();
    write_files(dir.path(), &[("web.yaml", &yaml)]);
    let snapshot = look(Options::new(dir.path()), Wants::forwarding()).await;
    assert_eq!(
        describe(&snapshot),
        [WEB, "  10.244.1.1 :TCP=80 node=n1 zone=z1 pod=web-0"]
    );
    assert_eq!(snapshot.world.counts(), (1, 1));
    let nodes: Vec<&str> = snapshot.world.nodes().map(|node| &*node.name).collect();
    assert_eq!(nodes, ["n1", "n2"]);
    let cidrs: Vec<String> = snapshot
        .world
        .service_cidrs()
        .flat_map(|cidr| &cidr.cidrs)
        .map(ToString::to_string)
        .collect();
    assert_eq!(cidrs, ["10.96.0.0/16", "fd00:96::/112"]);
    assert_eq!(snapshot.world.namespaces().count(), 0);
}

#[tokio::test]
async fn namespaces_exist_when_something_lives_in_them() {
    let yaml = "
{apiVersion: v1, kind: Service, metadata: {name: web, namespace: shop}, spec: {clusterIP: 10.96.0.1, ports: [{port: 80}]}}
---
{apiVersion: v1, kind: Namespace, metadata: {name: empty, labels: {team: a}}}";
    let dir = tempfile::tempdir().unwrap();
    write_files(dir.path(), &[("web.yaml", yaml)]);
    let snapshot = look(Options::new(dir.path()), Wants::naming()).await;
    let names: Vec<&str> = snapshot.world.namespaces().map(|namespace| &*namespace.name).collect();
    assert_eq!(names, ["default", "empty", "kube-system", "shop"]);
}
