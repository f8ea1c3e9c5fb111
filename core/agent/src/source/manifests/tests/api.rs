//! Defaults, allocation and validation: what the API server does.

use super::{check, check_files};

#[tokio::test]
async fn a_service_gets_defaults_and_addresses() {
    check(
        "{apiVersion: v1, kind: Service, metadata: {name: web}, spec: {selector: {app: web}, ports: [{port: 80}]}}",
        &["default/web ClusterIP 10.96.233.18 :80/TCP"],
    )
    .await;
    let both = "
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec:
  ipFamilyPolicy: PreferDualStack
  type: LoadBalancer
  externalTrafficPolicy: Local
  ports:
  - {name: dns, port: 53, protocol: UDP}
  - {name: dns-tcp, port: 53}
  - {name: http, port: 80, nodePort: 30080}
";
    check(
        both,
        &["shop/web LoadBalancer 10.96.144.227 fd00:96::b35d dns:53/UDP@32172 dns-tcp:53/TCP@32172 http:80/TCP@30080 health@30671"],
    )
    .await;
}

#[tokio::test]
async fn families_are_completed_as_the_api_server_does() {
    let service = |spec: &str| {
        format!("{{apiVersion: v1, kind: Service, metadata: {{name: web}}, spec: {{ports: [{{port: 80}}], {spec}}}}}")
    };
    check(
        &service("ipFamilies: [IPv6]"),
        &["default/web ClusterIP fd00:96::c82 :80/TCP"],
    )
    .await;
    check(
        &service("clusterIP: 10.96.0.10"),
        &["default/web ClusterIP 10.96.0.10 :80/TCP"],
    )
    .await;
    check(
        &service("clusterIP: 'fd00:96::a', ipFamilyPolicy: RequireDualStack"),
        &["default/web ClusterIP fd00:96::a 10.96.233.18 :80/TCP"],
    )
    .await;
    check(&service("clusterIP: None"), &["default/web ClusterIP headless :80/TCP"]).await;
    check(
        &service("type: ExternalName, externalName: db.example.com"),
        &["default/web ExternalName db.example.com :80/TCP"],
    )
    .await;
    check(
        &service("type: LoadBalancer, allocateLoadBalancerNodePorts: false"),
        &["default/web LoadBalancer 10.96.233.18 :80/TCP"],
    )
    .await;
}

#[tokio::test]
async fn addresses_that_manifests_name_are_never_given_away() {
    // `web` alone would get 10.96.233.18, and so would any name before `zz`, which asks for it.
    let taken = "
{apiVersion: v1, kind: Service, metadata: {name: web}, spec: {ports: [{port: 80}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: zz}, spec: {clusterIP: 10.96.233.18, ports: [{port: 80}]}}
";
    check(
        taken,
        &[
            "default/web ClusterIP 10.96.233.19 :80/TCP",
            "default/zz ClusterIP 10.96.233.18 :80/TCP",
        ],
    )
    .await;
    let twice = "
{apiVersion: v1, kind: Service, metadata: {name: a}, spec: {type: NodePort, clusterIP: 10.96.0.9, ports: [{port: 80, nodePort: 30001}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: b}, spec: {type: NodePort, clusterIP: 10.96.0.9, ports: [{port: 80, nodePort: 30001}]}}
";
    check(
        twice,
        &[
            "default/a NodePort 10.96.0.9 :80/TCP@30001",
            "! web.yaml: document 2: Service default/b: spec.clusterIP: 10.96.0.9 is taken by Service default/a",
            "! web.yaml: document 2: Service default/b: spec.ports[0].nodePort: 30001 is taken by Service default/a",
        ],
    )
    .await;
}

#[tokio::test]
async fn validation_names_object_and_field() {
    let rows = [
        (
            "ports: [{port: 80}, {port: 81, name: b}]",
            "spec.ports[0].name: is missing (each of several ports needs a name)",
        ),
        (
            "ports: [{port: 80, name: a}, {port: 81, name: a}]",
            "spec.ports[1].name: \"a\" is the name of another port already",
        ),
        (
            "ports: [{port: 80, name: A}]",
            "spec.ports[0].name: \"A\" is not a DNS label (lower case letters, digits and '-', at most 63, RFC 1123)",
        ),
        ("ports: [{port: 0}]", "spec.ports[0].port: 0 is not a port (1 to 65535)"),
        (
            "ports: [{port: 65536}]",
            "spec.ports[0].port: 65536 is not a port (1 to 65535)",
        ),
        (
            "ports: [{port: '80'}]",
            "spec.ports[0].port: invalid type: string \"80\", expected i32",
        ),
        (
            "ports: [{port: 80, protocol: tcp}]",
            "spec.ports[0].protocol: \"tcp\" is not one of TCP, UDP, SCTP",
        ),
        (
            "ports: [{port: 80, targetPort: '8080'}]",
            "spec.ports[0].targetPort: \"8080\" is not a port name (lower case letters, digits and '-', at least one letter, at most 15, RFC 6335)",
        ),
        (
            "ports: [{port: 80, name: a}, {port: 80, name: b}]",
            "spec.ports[1].port: 80/TCP is spec.ports[0] already",
        ),
        (
            "ports: [{port: 80, nodePort: 30000}]",
            "spec.ports[0].nodePort: is not for type ClusterIP",
        ),
        (
            "type: NodePort, ports: [{port: 80, nodePort: 80}]",
            "spec.ports[0].nodePort: 80 is not a node port (30000 to 32767)",
        ),
        (
            "type: NodePort, ports: [{name: a, port: 80, nodePort: 30000}, {name: b, port: 81, nodePort: 30000}]",
            "spec.ports[1].nodePort: 30000/TCP is the node port of spec.ports[0] already",
        ),
        (
            "selector: {app: web}",
            "spec.ports: is missing (a Service that is not headless needs at least one port)",
        ),
        (
            "type: Cluster, ports: [{port: 80}]",
            "spec.type: \"Cluster\" is not one of ClusterIP, NodePort, LoadBalancer, ExternalName",
        ),
        (
            "type: ExternalName",
            "spec.externalName: is missing (type ExternalName needs one)",
        ),
        (
            "type: ExternalName, externalName: a_b",
            "spec.externalName: \"a_b\" is not a DNS name (lower case letters, digits, '-' and '.', at most 253, RFC 1123)",
        ),
        (
            "type: ExternalName, externalName: a.b, clusterIP: 10.96.0.1",
            "spec.clusterIP: has to be empty for type ExternalName",
        ),
        (
            "type: NodePort, clusterIP: None, ports: [{port: 80}]",
            "spec.clusterIP: cannot be None for type NodePort",
        ),
        (
            "clusterIP: 10.97.0.1, ports: [{port: 80}]",
            "spec.clusterIP: 10.97.0.1 is not in the service range 10.96.0.0/16, fd00:96::/112 (see --service-cluster-ip-range)",
        ),
        (
            "clusterIP: ten, ports: [{port: 80}]",
            "spec.clusterIP: \"ten\" is not an IP address",
        ),
        (
            "clusterIP: 10.96.0.1, clusterIPs: [10.96.0.2], ports: [{port: 80}]",
            "spec.clusterIPs[0]: \"10.96.0.2\" is not the value of spec.clusterIP, \"10.96.0.1\"",
        ),
        (
            "clusterIPs: [10.96.0.1, 10.96.0.2], ports: [{port: 80}]",
            "spec.clusterIPs[1]: 10.96.0.2 is a second address of its family",
        ),
        (
            "clusterIP: 10.96.0.1, ipFamilies: [IPv6], ports: [{port: 80}]",
            "spec.ipFamilies[0]: is not the family of cluster IP 10.96.0.1",
        ),
        (
            "ipFamilies: [IPv5], ports: [{port: 80}]",
            "spec.ipFamilies[0]: \"IPv5\" is not one of IPv4, IPv6",
        ),
        (
            "ipFamilyPolicy: SingleStack, ipFamilies: [IPv4, IPv6], ports: [{port: 80}]",
            "spec.ipFamilyPolicy: SingleStack does not go with two families; write PreferDualStack",
        ),
        (
            "sessionAffinity: Client, ports: [{port: 80}]",
            "spec.sessionAffinity: \"Client\" is not one of None, ClientIP",
        ),
        (
            "sessionAffinity: ClientIP, sessionAffinityConfig: {clientIP: {timeoutSeconds: 0}}, ports: [{port: 80}]",
            "spec.sessionAffinityConfig.clientIP.timeoutSeconds: 0 is not between 1 and 86400",
        ),
        (
            "externalTrafficPolicy: Local, ports: [{port: 80}]",
            "spec.externalTrafficPolicy: is not for type ClusterIP without external IPs",
        ),
        (
            "internalTrafficPolicy: Near, ports: [{port: 80}]",
            "spec.internalTrafficPolicy: \"Near\" is not one of Cluster, Local",
        ),
        (
            "externalIPs: [127.0.0.1], ports: [{port: 80}]",
            "spec.externalIPs[0]: 127.0.0.1 cannot be used (unspecified, loopback, link-local or multicast)",
        ),
        (
            "type: LoadBalancer, loadBalancerSourceRanges: [10.0.0.0], ports: [{port: 80}]",
            "spec.loadBalancerSourceRanges[0]: \"10.0.0.0\" is not a CIDR such as 10.0.0.0/8",
        ),
        (
            "healthCheckNodePort: 30000, ports: [{port: 80}]",
            "spec.healthCheckNodePort: is for type LoadBalancer with externalTrafficPolicy Local only",
        ),
        (
            "selector: {'a b': c}, ports: [{port: 80}]",
            "spec.selector: \"a b\" is not a label key (such as app or example.com/app)",
        ),
    ];
    for (spec, cause) in rows {
        let yaml = format!("apiVersion: v1\nkind: Service\nmetadata: {{name: web}}\nspec: {{{spec}}}\n");
        check(
            &yaml,
            &[&format!("! web.yaml: document 1: Service default/web: {cause}")],
        )
        .await;
    }
}

#[tokio::test]
async fn other_mistakes_name_file_and_document() {
    let good =
        "{apiVersion: v1, kind: Service, metadata: {name: ok}, spec: {clusterIP: 10.96.0.1, ports: [{port: 80}]}}";
    let ok = "default/ok ClusterIP 10.96.0.1 :80/TCP";
    let rows = [
        (
            "{apiVersion: v1, kind: Service, metadata: {name: web}}",
            "Service default/web: spec: is missing",
        ),
        (
            "{apiVersion: v1, kind: Service, spec: {ports: [{port: 80}]}}",
            "Service default/?: metadata.name: is missing",
        ),
        (
            "{apiVersion: v1, kind: Service, metadata: {name: 1web}, spec: {ports: [{port: 80}]}}",
            "Service default/1web: metadata.name: \"1web\" is not a Service name (lower case letters, digits and '-', a letter first, at most 63, RFC 1035)",
        ),
        (
            "{apiVersion: v2, kind: Service, metadata: {name: web}}",
            "Service default/web: apiVersion: version \"v2\" of this kind is not served; write v1",
        ),
        (
            "{apiVersion: discovery.k8s.io/v1beta1, kind: EndpointSlice, metadata: {name: web}}",
            "EndpointSlice default/web: apiVersion: version \"v1beta1\" of this kind is not served; write discovery.k8s.io/v1",
        ),
        ("{apiVersion: v1, metadata: {name: web}}", "kind: is missing"),
        ("{kind: Service, metadata: {name: web}}", "apiVersion: is missing"),
        ("[1, 2]", "is not an object but a list"),
        (
            "{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: web}, addressType: IPv4, endpoints: [{addresses: ['fd00::1']}]}",
            "EndpointSlice default/web: endpoints[0].addresses[0]: fd00::1 is not an IPv4 address",
        ),
        (
            "{apiVersion: v1, kind: Endpoints, metadata: {name: web}, subsets: [{addresses: [{ip: 127.0.0.1}]}]}",
            "Endpoints default/web: subsets[0].addresses[0].ip: 127.0.0.1 cannot be used (unspecified, loopback, link-local or multicast)",
        ),
        (
            "{apiVersion: v1, kind: Node, metadata: {name: n1}, spec: {podCIDRs: [10.244.1.0]}}",
            "Node n1: spec.podCIDRs[0]: \"10.244.1.0\" is not a CIDR such as 10.0.0.0/8",
        ),
    ];
    for (bad, cause) in rows {
        check(
            &format!("{good}\n---\n{bad}\n"),
            &[ok, &format!("! web.yaml: document 2: {cause}")],
        )
        .await;
    }
}

#[tokio::test]
async fn a_file_that_is_no_yaml_says_where() {
    let good =
        "{apiVersion: v1, kind: Service, metadata: {name: ok}, spec: {clusterIP: 10.96.0.1, ports: [{port: 80}]}}";
    let dir = tempfile::tempdir().unwrap();
    let bomb = "a: &a [x,x,x,x,x,x,x,x]\n".to_string()
        + &(0..40)
            .fold((String::new(), "a".to_string()), |(text, last), i| {
                (
                    format!("{text}b{i}: &b{i} [*{last},*{last},*{last},*{last},*{last},*{last}]\n"),
                    format!("b{i}"),
                )
            })
            .0;
    let deep = "[".repeat(100_000);
    super::write_files(
        dir.path(),
        &[
            ("good.yaml", good),
            (
                "indent.yaml",
                "apiVersion: v1\nkind: Service\nmetadata:\n  name: a\n bad: 1\n",
            ),
            ("second.yaml", "a: 1\n---\nkey: [1, 2\n"),
            ("twice.yaml", "kind: A\nkind: B\n"),
            ("broken.json", "{\"kind\": }"),
            ("bomb.yaml", &bomb),
            ("deep.yaml", &deep),
            ("deep.json", &deep),
        ],
    );
    std::fs::write(dir.path().join("latin1.yaml"), b"name: caf\xe9\n").unwrap();
    let snapshot = super::look(super::Options::new(dir.path()), crate::source::Wants::naming()).await;
    let lines = super::describe(&snapshot);
    let start = |prefix: &str| {
        let found = lines.iter().filter(|line| line.starts_with(prefix)).count();
        assert_eq!(found, 1, "{prefix} in\n{}", lines.join("\n"));
    };
    start("default/ok ClusterIP 10.96.0.1");
    start("! indent.yaml: document 1: line 5, column ");
    start("! second.yaml: document 2: line ");
    start("! twice.yaml: document 1: line 2, column 1: ");
    start("! broken.json: document 1: ");
    start("! latin1.yaml: is not UTF-8 at byte 9");
    start("! bomb.yaml: document 1: ");
    start("! deep.yaml: document 1: ");
    start("! deep.json: document 1: ");
}

#[tokio::test]
async fn every_shape_of_file_is_read() {
    let service = |name: &str, ip: &str| {
        format!(
            "{{apiVersion: v1, kind: Service, metadata: {{name: {name}}}, spec: {{clusterIP: {ip}, ports: [{{port: 80}}]}}}}"
        )
    };
    let (a, b, c, d) = (
        service("a", "10.96.0.1"),
        service("b", "10.96.0.2"),
        service("c", "10.96.0.3"),
        service("d", "10.96.0.4"),
    );
    let json = r#"{"apiVersion": "v1", "kind": "Service", "metadata": {"name": "e"}, "spec": {"clusterIP": "10.96.0.5", "ports": [{"port": 80}]}}"#;
    let list = format!("apiVersion: v1\nkind: List\nitems:\n- {b}\n- {{apiVersion: v1, kind: List, items: [{c}]}}\n");
    let typed = "apiVersion: v1\nkind: ServiceList\nitems:\n- {metadata: {name: f}, spec: {clusterIP: 10.96.0.6, ports: [{port: 80}]}}\n";
    let deployment = "{apiVersion: apps/v1, kind: Deployment, metadata: {name: x}, spec: {}}";
    let foreign = "{apiVersion: serving.knative.dev/v1, kind: Service, metadata: {name: x}, spec: 5}";
    check_files(
        &[
            ("a.yml", &format!("# only a comment\n---\n---\n{a}\n---\n# the end\n")),
            ("b.yaml", &list),
            ("d.json", &format!("{json}\n")),
            (
                "e.yaml",
                &format!("{typed}---\n{deployment}\n---\n{foreign}\n---\n{d}\n...\n"),
            ),
            (".hidden.yaml", "[broken"),
            ("notes.txt", "[broken"),
        ],
        &[
            "default/a ClusterIP 10.96.0.1 :80/TCP",
            "default/b ClusterIP 10.96.0.2 :80/TCP",
            "default/c ClusterIP 10.96.0.3 :80/TCP",
            "default/d ClusterIP 10.96.0.4 :80/TCP",
            "default/e ClusterIP 10.96.0.5 :80/TCP",
            "default/f ClusterIP 10.96.0.6 :80/TCP",
        ],
    )
    .await;
}

#[tokio::test]
async fn of_two_definitions_the_first_counts() {
    let service = |ip: &str| {
        format!(
            "{{apiVersion: v1, kind: Service, metadata: {{name: web}}, spec: {{clusterIP: {ip}, ports: [{{port: 80}}]}}}}"
        )
    };
    check_files(
        &[
            (
                "a.yaml",
                &format!("{}\n---\n{}\n", service("10.96.0.1"), service("10.96.0.2")),
            ),
            ("b.yaml", &service("10.96.0.3")),
        ],
        &[
            "default/web ClusterIP 10.96.0.1 :80/TCP",
            "! a.yaml: document 2: Service default/web: is defined in document 1 already; that one counts",
            "! b.yaml: document 1: Service default/web: is defined in a.yaml already; that one counts",
        ],
    )
    .await;
}
