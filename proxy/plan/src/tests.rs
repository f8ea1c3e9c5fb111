//! Tables for every row of kube-proxy's contract that a plan decides.
//!
//! Address plan: we are node `here` (172.18.0.1, zone `a`); `there` is another node (zone `b`). Pods of `here` have
//! 10.244.1.x, pods of `there` 10.244.2.x. The Service has cluster IP 10.96.0.10, external IP 192.0.2.1, load balancer
//! IPs 203.0.113.1 (mode VIP) and 203.0.113.2 (mode Proxy), port 80 -> 8080 and node port 30080.

use portolan_model::{Delta, Event, Interner, Node, Object, ServiceName, World, parse};
use serde_json::{Value, json};

use super::*;

fn node() -> Node {
    Node {
        name: "here".into(),
        internal_ips: vec![
            "172.18.0.1".parse().expect("an address"),
            "fd00:18::1".parse().expect("an address"),
        ],
        pod_cidrs: vec![
            "10.244.1.0/24".parse().expect("a range"),
            "fd00:244:0:1::/64".parse().expect("a range"),
        ],
        labels: [("topology.kubernetes.io/zone".into(), "a".into())].into(),
        ..Node::default()
    }
}

fn options() -> Options {
    let pods = ["10.244.0.0/16", "fd00:244::/48"].map(|cidr| cidr.parse().expect("a range"));
    Options {
        node_name: "here".into(),
        pod_detection: PodDetection::ClusterCidr(pods.to_vec()),
        ..Options::default()
    }
}

/// `1.2@here` is a ready endpoint 10.244.1.2 on node here; `!` makes it not ready, `~` terminating but serving,
/// `x` terminating and not serving; `+zone` and `^node` are hints.
fn endpoint(text: &str) -> Value {
    let flag = text.chars().next().filter(|c| "!~x".contains(*c));
    let text = text.trim_start_matches(['!', '~', 'x']);
    let (address, rest) = text.split_once('@').expect("address@node");
    let node = rest.split(['+', '^']).next().expect("a node");
    let hints = |mark: char| -> Vec<Value> {
        rest.split(mark)
            .skip(1)
            .map(|hint| json!({"name": hint.split(['+', '^']).next()}))
            .collect()
    };
    let conditions = match flag {
        None => json!({"ready": true, "serving": true, "terminating": false}),
        Some('~') => json!({"ready": false, "serving": true, "terminating": true}),
        Some('x') => json!({"ready": false, "serving": false, "terminating": true}),
        Some(_) => json!({"ready": false, "serving": false, "terminating": false}),
    };
    json!({"addresses": [format!("10.244.{address}")], "nodeName": node, "conditions": conditions,
           "hints": {"forZones": hints('+'), "forNodes": hints('^')}})
}

fn world(spec: &Value, endpoints: &str) -> World {
    let mut full = json!({
        "type": "LoadBalancer", "clusterIP": "10.96.0.10", "externalIPs": ["192.0.2.1"],
        "ports": [{"name": "http", "port": 80, "nodePort": 30080}]});
    for (key, value) in spec.as_object().expect("fields") {
        full[key] = value.clone();
    }
    let service = json!({"metadata": {"namespace": "default", "name": "web"}, "spec": full,
        "status": {"loadBalancer": {"ingress": [{"ip": "203.0.113.1"}, {"ip": "203.0.113.2", "ipMode": "Proxy"}]}}});
    let slice = json!({
        "metadata": {"namespace": "default", "name": "web-1", "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4", "ports": [{"name": "http", "port": 8080}],
        "endpoints": endpoints.split_whitespace().map(endpoint).collect::<Vec<_>>()});
    let mut faults = Vec::new();
    let service = serde_json::from_value(service).expect("a Service");
    let slice = serde_json::from_value(slice).expect("a slice");
    let objects = [
        Object::Service(Box::new(
            parse::parse_service(&service, &mut faults).expect("a Service"),
        )),
        Object::EndpointSlice(
            parse::parse_endpoint_slice(&slice, &mut Interner::default(), &mut faults).expect("a slice"),
        ),
    ];
    assert_eq!(faults, []);
    let mut world = World::default();
    objects
        .into_iter()
        .for_each(|object| world.apply(Event::Apply(object), &mut Delta::default()));
    world
}

fn plan_with(spec: &Value, endpoints: &str, options: &Options) -> ServicePlan {
    let world = world(spec, endpoints);
    let view = world.service(&ServiceName::new("default", "web")).expect("the Service");
    let node = node();
    plan_service(view, Some(&node), &plan_node(Some(&node), &[], &[], options), options)
}

/// The plan's text, without its first line and port line.
#[track_caller]
fn check(spec: Value, endpoints: &str, expected: &str) {
    let text = plan_with(&spec, endpoints, &options()).to_string();
    let lines = |text: &str| {
        text.lines()
            .map(str::trim)
            .filter(|l| !l.is_empty())
            .map(String::from)
            .collect::<Vec<_>>()
    };
    let found: Vec<String> = lines(&text)
        .into_iter()
        .filter(|l| !l.starts_with("service "))
        .collect();
    assert_eq!(found, lines(expected), "{spec} {endpoints}");
}

/// Only the endpoint lists, as `cluster: ...` and `local: ...`.
#[track_caller]
fn check_sets(spec: Value, endpoints: &str, cluster: &str, local: &str) {
    let plan = plan_with(&spec, endpoints, &options());
    let list = |backends: &[Backend]| {
        let short = |b: &Backend| b.address.ip().to_string().trim_start_matches("10.244.").to_string();
        backends.iter().map(short).collect::<Vec<_>>().join(" ")
    };
    let [port] = &plan.ports[..] else { panic!("one port") };
    assert_eq!(
        (list(&port.cluster).as_str(), list(&port.local).as_str()),
        (cluster, local),
        "{spec} {endpoints}"
    );
}

fn local() -> Value {
    json!({"externalTrafficPolicy": "Local"})
}

#[test]
fn policy_cluster() {
    check(
        json!({}),
        "1.2@here 2.2@there",
        "port http TCP IPv4
         cluster endpoints: 10.244.1.2:8080(here) 10.244.2.2:8080
         cluster IP 10.96.0.10 port 80: pods forward to cluster; others forward to cluster masqueraded
         external IP 192.0.2.1 port 80: forward to cluster masqueraded
         load balancer IP 203.0.113.1 port 80: forward to cluster masqueraded
         node port 30080: forward to cluster masqueraded",
    );
}

#[test]
fn external_policy_local() {
    check(
        local(),
        "1.2@here 2.2@there",
        "port http TCP IPv4
         cluster endpoints: 10.244.1.2:8080(here) 10.244.2.2:8080
         local endpoints: 10.244.1.2:8080(here)
         cluster IP 10.96.0.10 port 80: pods forward to cluster; others forward to cluster masqueraded
         external IP 192.0.2.1 port 80: pods forward to cluster; the node forward to cluster masqueraded; outside forward to local
         load balancer IP 203.0.113.1 port 80: pods forward to cluster; the node forward to cluster masqueraded; outside forward to local
         node port 30080: pods forward to cluster; the node forward to cluster masqueraded; outside forward to local",
    );
}

/// Endpoints elsewhere: silence. Pods and the node are still short-circuited to them.
#[test]
fn external_policy_local_without_local_endpoint() {
    check(
        local(),
        "2.2@there",
        "port http TCP IPv4
         cluster endpoints: 10.244.2.2:8080
         cluster IP 10.96.0.10 port 80: pods forward to cluster; others forward to cluster masqueraded
         external IP 192.0.2.1 port 80: pods forward to cluster; the node forward to cluster masqueraded; outside drop
         load balancer IP 203.0.113.1 port 80: pods forward to cluster; the node forward to cluster masqueraded; outside drop
         node port 30080: pods forward to cluster; the node forward to cluster masqueraded; outside drop",
    );
}

/// Both policies Local: the short circuit of node ports goes to all endpoints, not to the internal policy's set.
#[test]
fn both_policies_local() {
    check(
        json!({"externalTrafficPolicy": "Local", "internalTrafficPolicy": "Local", "externalIPs": [], "type": "NodePort"}),
        "2.2@there",
        "port http TCP IPv4
         cluster endpoints: 10.244.2.2:8080
         cluster IP 10.96.0.10 port 80: drop
         node port 30080: pods forward to cluster; the node forward to cluster masqueraded; outside drop",
    );
}

#[test]
fn internal_policy_local() {
    check(
        json!({"internalTrafficPolicy": "Local", "type": "ClusterIP", "externalIPs": []}),
        "1.2@here 2.2@there",
        "port http TCP IPv4
         cluster endpoints: 10.244.1.2:8080(here) 10.244.2.2:8080
         local endpoints: 10.244.1.2:8080(here)
         cluster IP 10.96.0.10 port 80: pods forward to local; others forward to local masqueraded",
    );
}

/// Nobody anywhere: refused at once, whatever the policy.
#[test]
fn no_endpoint_rejects() {
    for (policy, endpoints) in [("Cluster", ""), ("Local", ""), ("Local", "!1.2@here x1.3@here")] {
        check(
            json!({"externalTrafficPolicy": policy, "internalTrafficPolicy": policy}),
            endpoints,
            "port http TCP IPv4
             cluster IP 10.96.0.10 port 80: reject
             external IP 192.0.2.1 port 80: reject
             load balancer IP 203.0.113.1 port 80: reject
             node port 30080: reject",
        );
    }
}

#[test]
fn terminating_endpoints_are_the_last_resort() {
    check_sets(local(), "1.2@here ~1.3@here", "1.2", "1.2");
    check_sets(local(), "~1.3@here ~2.3@there", "1.3 2.3", "1.3");
    // Ready ones elsewhere do not keep the local set from falling back.
    check_sets(local(), "~1.3@here 2.2@there", "2.2", "1.3");
    check_sets(local(), "x1.3@here", "", "");
    check_sets(local(), "!1.2@here", "", "");
}

/// A pod of another node is treated like the node at a node port; neither is led to another node's terminating endpoint.
#[test]
fn a_terminating_endpoint_elsewhere_is_no_last_resort_of_a_local_node_port() {
    let node_port = |spec: &Value, endpoints: &str| {
        let plan = plan_with(spec, endpoints, &options());
        let mut frontends = plan.ports[0].frontends.iter();
        let found = frontends
            .find(|f| f.kind == FrontendKind::NodePort)
            .expect("a node port");
        let [pod, elsewhere] = [SourceKind::Pod, SourceKind::PodElsewhere].map(|source| found.verdict(source));
        format!("{pod}; {elsewhere}")
    };
    let cluster = || json!({});
    assert_eq!(node_port(&local(), "~2.3@there"), "forward to cluster; drop");
    assert_eq!(node_port(&local(), "~1.3@here"), "forward to cluster; forward to local");
    assert_eq!(
        node_port(&local(), "2.3@there ~2.4@there"),
        "forward to cluster; forward to cluster masqueraded"
    );
    assert_eq!(
        node_port(&cluster(), "~2.3@there"),
        "forward to cluster masqueraded; forward to cluster masqueraded"
    );
    assert_eq!(node_port(&local(), ""), "reject; reject");
}

#[test]
fn hints() {
    let cluster = || json!({});
    // Zone hints: every ready endpoint has one and one names our zone.
    check_sets(cluster(), "1.2@here+a 2.2@there+b", "1.2", "");
    check_sets(cluster(), "1.2@here+b 2.2@there+a+b", "2.2", "");
    check_sets(cluster(), "1.2@here+a 2.2@there", "1.2 2.2", "");
    check_sets(cluster(), "1.2@here+b 2.2@there+c", "1.2 2.2", "");
    // A hint of an endpoint that is not ready neither helps nor hinders.
    check_sets(cluster(), "1.2@here+a 2.2@there+b !2.3@there", "1.2", "");
    check_sets(cluster(), "!1.2@here+a 2.2@there+b", "2.2", "");
    // Node hints win over zone hints; incomplete ones fall back to zone hints.
    check_sets(cluster(), "1.2@here+b^here 2.2@there+a^there", "1.2", "");
    check_sets(cluster(), "1.2@here+b^here 2.2@there+a", "2.2", "");
    // The fallback to terminating endpoints ignores hints; Local is never narrowed.
    check_sets(cluster(), "~1.2@here+a ~2.2@there+b", "1.2 2.2", "");
    check_sets(local(), "1.2@here+b 1.3@here+a", "1.3", "1.2 1.3");
}

#[test]
fn source_ranges_bind_the_load_balancer_only() {
    let ranges = |list: Value| json!({"loadBalancerSourceRanges": list});
    let bound = |list: Value| {
        let plan = plan_with(&ranges(list), "1.2@here", &options());
        let frontends = plan.ports[0].frontends.iter();
        let kinds: Vec<_> = frontends
            .filter(|f| f.source_ranges.is_some())
            .map(|f| f.kind)
            .collect();
        (kinds, plan.notes)
    };
    assert_eq!(
        bound(json!(["198.51.100.0/24"])),
        (vec![FrontendKind::LoadBalancerIp], vec![])
    );
    assert_eq!(bound(json!(["198.51.100.0/24", "0.0.0.0/0"])).0, []);
    let (kinds, notes) = bound(json!(["fd00::/8"]));
    assert_eq!(kinds, []);
    assert_eq!(
        notes,
        ["loadBalancerSourceRanges names no IPv4 range: IPv4 clients are not restricted"]
    );
}

#[test]
fn affinity_and_health_check() {
    let spec = json!({"externalTrafficPolicy": "Local", "healthCheckNodePort": 32122, "sessionAffinity": "ClientIP"});
    let plan = plan_with(&spec, "1.2@here ~1.3@here !1.4@here 1.5@here 2.2@there", &options());
    assert_eq!(
        plan.health_check,
        Some(HealthCheckPlan {
            port: 32122,
            local_endpoints: 2
        })
    );
    assert_eq!(plan.ports[0].affinity_seconds, Some(10_800));
    let plan = plan_with(&json!({"healthCheckNodePort": 32122}), "1.2@here", &options());
    assert_eq!(plan.health_check, None, "policy Cluster has no health check port");
}

#[test]
fn masquerading_follows_the_options() {
    let routes = |options: &Options| {
        plan_with(&json!({}), "1.2@here", options).ports[0].frontends[0]
            .routes
            .to_string()
    };
    assert_eq!(
        routes(&options()),
        "pods forward to cluster; others forward to cluster masqueraded"
    );
    let all = Options {
        masquerade_all: true,
        ..options()
    };
    assert_eq!(routes(&all), "forward to cluster masqueraded");
    let v6_only = PodDetection::ClusterCidr(vec!["fd00:244::/48".parse().expect("a range")]);
    let unknown = Options {
        pod_detection: v6_only,
        ..options()
    };
    assert_eq!(
        routes(&unknown),
        "forward to cluster",
        "pods of IPv4 cannot be told apart"
    );
}

#[test]
fn external_ips_can_be_switched_off_and_duplicates_are_told() {
    let off = Options {
        external_ips: false,
        ..options()
    };
    let plan = plan_with(&json!({}), "1.2@here", &off);
    assert!(
        plan.ports[0]
            .frontends
            .iter()
            .all(|f| f.kind != FrontendKind::ExternalIp)
    );
    let plan = plan_with(&json!({"externalIPs": ["10.96.0.10"]}), "1.2@here", &options());
    assert_eq!(
        plan.notes,
        ["10.96.0.10 is listed more than once; it is served as the first of its kinds"]
    );
}

#[test]
fn dual_stack_and_several_ports() {
    let spec = json!({"clusterIPs": ["fd00:96::10", "10.96.0.10"], "ports": [
        {"name": "http", "port": 80, "nodePort": 30080}, {"name": "dns", "port": 53, "protocol": "UDP"},
        {"name": "dns-tcp", "port": 53}]});
    let plan = plan_with(&spec, "1.2@here", &options());
    let ports: Vec<_> = plan
        .ports
        .iter()
        .map(|p| (p.family, &*p.name, p.protocol, p.frontends[0].routes.pod))
        .collect();
    let forward = Verdict::Forward {
        set: EndpointSet::Cluster,
        masquerade: false,
    };
    let expected = [
        (Family::V4, "dns", Protocol::Udp, Verdict::Reject),
        (Family::V4, "dns-tcp", Protocol::Tcp, Verdict::Reject),
        (Family::V4, "http", Protocol::Tcp, forward),
        (Family::V6, "dns", Protocol::Udp, Verdict::Reject),
        (Family::V6, "dns-tcp", Protocol::Tcp, Verdict::Reject),
        (Family::V6, "http", Protocol::Tcp, Verdict::Reject),
    ];
    assert_eq!(ports, expected);
}

#[test]
fn nothing_is_forwarded_for_headless_and_external_name() {
    for spec in [
        json!({"clusterIP": "None"}),
        json!({"type": "ExternalName", "externalName": "db.example.com"}),
    ] {
        assert_eq!(plan_with(&spec, "1.2@here", &options()).ports, []);
    }
}

#[test]
fn cluster_ips_that_are_the_nodes_own_are_taken() {
    let check = |ranges: &[&str], expect: &[&str]| {
        let host = ["127.0.0.1", "172.18.0.1", "169.254.20.10", "fd00:96::a", "10.96.0.10"];
        let host = host.map(|ip| HostAddress(ip.parse().expect("an address")));
        let ranges: Vec<IpNet> = ranges.iter().map(|range| range.parse().expect("a range")).collect();
        let plan = plan_node(Some(&node()), &host, &ranges, &options());
        let taken: Vec<String> = plan.taken.iter().map(ToString::to_string).collect();
        assert_eq!(taken, expect, "{ranges:?}");
    };
    check(&["10.96.0.0/16", "fd00:96::/112"], &["10.96.0.10", "fd00:96::a"]);
    check(&["10.96.0.0/16"], &["10.96.0.10"]);
    check(&[], &["10.96.0.10", "169.254.20.10", "172.18.0.1", "fd00:96::a"]);
}

#[test]
fn node_plans() {
    let text = |options: &Options, host: &[&str]| {
        let host: Vec<_> = host
            .iter()
            .map(|ip| HostAddress(ip.parse().expect("an address")))
            .collect();
        plan_node(Some(&node()), &host, &[], options).to_string()
    };
    let primary = text(&options(), &["172.18.0.1", "172.18.0.77"]);
    assert!(
        primary.contains("node port addresses: 127.0.0.1 172.18.0.1 ::1 fd00:18::1\n"),
        "{primary}"
    );
    let v4 = NodePortAddresses::Cidrs(vec!["172.18.0.0/16".parse().expect("a range")]);
    let cidrs = text(
        &Options {
            node_port_addresses: v4,
            ..options()
        },
        &["172.18.0.1", "172.18.0.77", "127.0.0.1", "fd00:18::1"],
    );
    assert!(
        cidrs.contains("node port addresses: 172.18.0.1 172.18.0.77\n"),
        "{cidrs}"
    );
    assert!(
        cidrs.contains("note: nodePortAddresses names no IPv6 range: node ports are closed for IPv6"),
        "{cidrs}"
    );
    let wrong = PodDetection::ClusterCidr(vec!["10.0.0.0/16".parse().expect("a range")]);
    let wrong = text(
        &Options {
            pod_detection: wrong,
            ..options()
        },
        &[],
    );
    assert!(
        wrong.contains("note: clusterCIDR does not hold the Node's pod range 10.244.1.0/24"),
        "{wrong}"
    );
    let own = text(
        &Options {
            pod_detection: PodDetection::ClusterCidr(vec![]),
            ..options()
        },
        &[],
    );
    assert!(own.contains("pods: 10.244.1.0/24 fd00:244:0:1::/64"), "{own}");
}

#[test]
fn a_pod_of_another_node_is_masqueraded_at_a_node_port() {
    let world = world(&local(), "1.2@here 2.2@there");
    let node = node();
    let check = |options: &Options, from: &str, to: &str, expected: &str| {
        let node_plan = plan_node(Some(&node), &[], &[], options);
        let packet = Packet {
            from: from.parse().expect("an address"),
            to: to.parse().expect("a socket address"),
            protocol: Protocol::Tcp,
        };
        let explanation = explain(packet, &world, Some(&node), &[], &node_plan, options);
        let found = match explanation.outcome {
            Outcome::Verdict(verdict, _) => format!("{}: {verdict}", explanation.source),
            other => format!("{other:?}"),
        };
        assert_eq!(found, expected, "{from} {to}");
    };
    let options = options();
    check(&options, "10.244.1.9", "172.18.0.1:30080", "a pod: forward to cluster");
    check(
        &options,
        "10.244.2.9",
        "172.18.0.1:30080",
        "a pod of another node: forward to cluster masqueraded",
    );
    // Its own node has translated what goes to other addresses.
    check(
        &options,
        "10.244.2.9",
        "203.0.113.1:80",
        "a pod of another node: forward to cluster",
    );
    check(
        &options,
        "198.51.100.7",
        "172.18.0.1:30080",
        "outside: forward to local",
    );
    // Where only this node's pods are known, one of another node comes from outside.
    let node_cidr = Options {
        pod_detection: PodDetection::NodeCidr,
        ..options
    };
    check(
        &node_cidr,
        "10.244.2.9",
        "172.18.0.1:30080",
        "outside: forward to local",
    );
    check(
        &node_cidr,
        "10.244.1.9",
        "172.18.0.1:30080",
        "a pod: forward to cluster",
    );
}

#[test]
fn explanations() {
    let told = |spec: Value, endpoints: &str, from: &str, to: &str| {
        let world = world(&spec, endpoints);
        let node = node();
        let node_plan = plan_node(
            Some(&node),
            &[],
            &["10.96.0.0/16".parse().expect("a range")],
            &options(),
        );
        let packet = Packet {
            from: from.parse().expect("an address"),
            to: to.parse().expect("a socket address"),
            protocol: Protocol::Tcp,
        };
        explain(packet, &world, Some(&node), &[], &node_plan, &options()).to_string()
    };
    let full = told(
        local(),
        "1.2@here ~1.3@here 2.2@there",
        "198.51.100.7",
        "172.18.0.1:30080",
    );
    assert_eq!(
        full,
        "198.51.100.7 (outside) -> 172.18.0.1:30080/tcp\n\
         frontend: node port of Service default/web, http\n\
         policy:   pods forward to cluster; the node forward to cluster masqueraded; outside forward to local\n  \
         + 10.244.1.2:8080 on here: ready\n  \
         - 10.244.1.3:8080 on here: terminating, and other endpoints are ready\n  \
         - 10.244.2.2:8080 on there: not on this node\n\
         verdict:  forwarded to one of 1 endpoint; the source is kept (but for an endpoint that calls itself)\n"
    );
    let verdict = |spec, endpoints, from, to| {
        let text = told(spec, endpoints, from, to);
        text.lines()
            .find_map(|line| line.strip_prefix("verdict:  "))
            .map(String::from)
            .unwrap_or_default()
    };
    let ranges = json!({"loadBalancerSourceRanges": ["198.51.100.0/24"]});
    for (spec, endpoints, from, to, expected) in [
        (
            json!({}),
            "1.2@here",
            "10.244.2.9",
            "10.96.0.10:80",
            "forwarded to one of 1 endpoint; the source is kept",
        ),
        (
            json!({}),
            "",
            "10.244.1.9",
            "10.96.0.10:80",
            "rejected: the Service has no endpoint",
        ),
        (
            json!({}),
            "1.2@here",
            "10.244.1.9",
            "10.96.0.10:81",
            "rejected: the address is a live cluster IP",
        ),
        (
            json!({}),
            "1.2@here",
            "10.244.1.9",
            "10.96.0.11:80",
            "dropped: in the service range",
        ),
        (
            json!({}),
            "1.2@here",
            "10.244.1.9",
            "10.244.1.2:8080",
            "not a Service's address",
        ),
        (
            json!({}),
            "1.2@here",
            "10.244.1.9",
            "172.18.0.1:80",
            "not a Service's address",
        ),
        (
            local(),
            "2.2@there",
            "198.51.100.7",
            "203.0.113.1:80",
            "dropped: the policy is Local",
        ),
        (
            ranges,
            "2.2@there",
            "192.0.2.7",
            "203.0.113.1:80",
            "dropped: the source is not in",
        ),
    ] {
        let found = verdict(spec, endpoints, from, to);
        assert!(found.starts_with(expected), "{from} -> {to}: {found}");
    }
}

proptest::proptest! {
    /// A plan is a function of the set of endpoints, not of their order, and never forwards to an empty set.
    #[test]
    fn order_does_not_matter(
        mut endpoints in proptest::collection::vec(("[!~x]?", 1u8..3, 1u8..6, "(\\+[ab])?(\\^(here|there))?"), 0..8),
        policy in "Local|Cluster", seed in proptest::num::usize::ANY,
    ) {
        let spec = json!({"externalTrafficPolicy": policy, "internalTrafficPolicy": policy});
        let text = |endpoints: &[(String, u8, u8, String)]| -> String {
            endpoints.iter().map(|(flag, node, host, hints)| {
                format!("{flag}{node}.{host}@{}{hints} ", ["here", "there"][usize::from(*node - 1)])
            }).collect()
        };
        // One address may stand there once: twins that differ are told apart by readiness, not by order.
        endpoints.sort_by_key(|(_, node, host, _)| (*node, *host));
        endpoints.dedup_by_key(|(_, node, host, _)| (*node, *host));
        let first = plan_with(&spec, &text(&endpoints), &options());
        if !endpoints.is_empty() {
            let middle = seed % endpoints.len();
            endpoints.rotate_left(middle);
        }
        proptest::prop_assert_eq!(&first, &plan_with(&spec, &text(&endpoints), &options()));
        let port = &first.ports[0];
        for frontend in &port.frontends {
            for verdict in [frontend.routes.pod, frontend.routes.node, frontend.routes.outside] {
                if let Verdict::Forward { set, .. } = verdict {
                    let backends = match set { EndpointSet::Cluster => &port.cluster, EndpointSet::Local => &port.local };
                    proptest::prop_assert!(!backends.is_empty());
                }
            }
        }
    }
}
