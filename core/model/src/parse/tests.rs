//! Table tests of the parsers: an object as JSON, what is made of it, what is complained about.

use serde_json::{Value, json};

use super::*;
use crate::endpoint::{Conditions, EndpointSlice};
use crate::name::Interner;
use crate::service::{Family, IpMode, Service, ServiceType};

fn service(spec: Value) -> (Option<Service>, Vec<String>) {
    service_with_status(spec, json!({}))
}

fn service_with_status(spec: Value, status: Value) -> (Option<Service>, Vec<String>) {
    let object = json!({"metadata": {"namespace": "shop", "name": "web"}, "spec": spec, "status": status});
    let object = serde_json::from_value(object).expect("a Service");
    let mut faults = Vec::new();
    let parsed = parse_service(&object, &mut faults);
    (parsed, faults.iter().map(ToString::to_string).collect())
}

fn slice(object: Value) -> (Option<EndpointSlice>, Vec<String>) {
    let object = serde_json::from_value(object).expect("an EndpointSlice");
    let mut faults = Vec::new();
    let parsed = parse_endpoint_slice(&object, &mut Interner::default(), &mut faults);
    (parsed, faults.iter().map(ToString::to_string).collect())
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

#[test]
fn a_full_service_is_read() {
    let spec = json!({
        "type": "LoadBalancer", "clusterIP": "10.96.0.10", "clusterIPs": ["10.96.0.10", "fd00:96::10"],
        "ipFamilies": ["IPv4", "IPv6"], "externalIPs": ["192.0.2.1"], "sessionAffinity": "ClientIP",
        "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 60}},
        "externalTrafficPolicy": "Local", "internalTrafficPolicy": "Local",
        "loadBalancerSourceRanges": [" 198.51.100.7/24"], "healthCheckNodePort": 32122, "publishNotReadyAddresses": true,
        "ports": [{"name": "http", "port": 80, "nodePort": 30080, "targetPort": "web"},
                  {"name": "dns", "port": 53, "protocol": "UDP"}]
    });
    let status = json!({"loadBalancer": {"ingress": [
        {"ip": "203.0.113.1"}, {"ip": "203.0.113.2", "ipMode": "Proxy"}, {"hostname": "lb.example.com"}]}});
    let (parsed, faults) = service_with_status(spec, status);
    assert_eq!(faults, [""; 0]);
    let parsed = parsed.expect("a Service");
    assert_eq!(parsed.cluster_ips, [ip("10.96.0.10"), ip("fd00:96::10")]);
    assert_eq!(parsed.families, [Family::V4, Family::V6]);
    assert_eq!(parsed.external_ips, [ip("192.0.2.1")]);
    assert_eq!(parsed.affinity_seconds, Some(60));
    assert_eq!(parsed.external_traffic_policy, TrafficPolicy::Local);
    assert_eq!(parsed.internal_traffic_policy, TrafficPolicy::Local);
    assert_eq!(
        parsed.source_ranges,
        ["198.51.100.0/24".parse::<IpNet>().expect("a range")]
    );
    assert_eq!(parsed.health_check_node_port, Some(32122));
    assert!(parsed.publish_not_ready_addresses && parsed.is_forwarded());
    let modes: Vec<_> = parsed
        .load_balancer
        .iter()
        .map(|ingress| (ingress.ip, ingress.ip_mode))
        .collect();
    assert_eq!(
        modes,
        [(ip("203.0.113.1"), IpMode::Vip), (ip("203.0.113.2"), IpMode::Proxy)]
    );
    let ports: Vec<_> = parsed
        .ports
        .iter()
        .map(|p| (&*p.name, p.protocol, p.port, p.node_port))
        .collect();
    assert_eq!(
        ports,
        [
            ("http", Protocol::Tcp, 80, Some(30080)),
            ("dns", Protocol::Udp, 53, None)
        ]
    );
}

#[test]
fn defaults_are_those_of_the_api() {
    let (parsed, faults) = service(json!({"clusterIP": "10.96.0.10", "ports": [{"port": 80}]}));
    let parsed = parsed.expect("a Service");
    assert_eq!(faults, [""; 0]);
    assert_eq!(parsed.type_, ServiceType::ClusterIp);
    assert_eq!(parsed.ports[0].protocol, Protocol::Tcp);
    assert_eq!(parsed.families, [Family::V4]);
    assert_eq!(parsed.affinity_seconds, None);
    let (parsed, _) = service(json!({"sessionAffinity": "ClientIP"}));
    assert_eq!(parsed.expect("a Service").affinity_seconds, Some(10_800));
}

#[test]
fn services_that_forward_nothing() {
    for spec in [
        json!({"clusterIP": "None", "ports": [{"port": 80}]}),
        json!({"clusterIPs": ["None"], "ports": [{"port": 80}]}),
        json!({"type": "ExternalName", "externalName": "db.example.com", "clusterIP": "10.96.0.1", "ports": [{"port": 80}]}),
        json!({"ports": [{"port": 80}]}),
    ] {
        let (parsed, faults) = service(spec.clone());
        assert!(!parsed.expect("a Service").is_forwarded(), "{spec}");
        assert_eq!(faults, [""; 0]);
    }
}

/// A status that outlived the type must not keep the load balancer's address alive.
#[test]
fn load_balancer_status_counts_for_that_type_only() {
    let status = json!({"loadBalancer": {"ingress": [{"ip": "203.0.113.1"}]}});
    let (parsed, _) = service_with_status(json!({"type": "NodePort", "clusterIP": "10.96.0.1"}), status);
    assert_eq!(parsed.expect("a Service").load_balancer, []);
}

#[test]
fn faults_name_object_field_and_cause() {
    let cases = [
        (
            json!({"type": "Magic"}),
            "Service shop/web: spec.type: \"Magic\" is not a Service type",
        ),
        (
            json!({"clusterIP": "10.96.0"}),
            "Service shop/web: spec.clusterIP: \"10.96.0\" is not an IP address",
        ),
        (
            json!({"ports": [{"port": 0}]}),
            "Service shop/web: spec.ports[0].port: 0 is not a port (1 to 65535)",
        ),
        (
            json!({"ports": [{"port": 80}, {"port": 80, "name": "again"}]}),
            "Service shop/web: spec.ports[1].port: 80/TCP is listed twice; the first one counts",
        ),
        (
            json!({"ports": [{"port": 80, "protocol": "tcp"}]}),
            "Service shop/web: spec.ports[0].protocol: \"tcp\" is not one of TCP, UDP, SCTP",
        ),
        (
            json!({"externalIPs": ["192.0.2.1", "::g"]}),
            "Service shop/web: spec.externalIPs[1]: \"::g\" is not an IP address",
        ),
        (
            json!({"loadBalancerSourceRanges": ["10.0.0.0"]}),
            "Service shop/web: spec.loadBalancerSourceRanges[0]: \"10.0.0.0\" is not a CIDR such as 10.0.0.0/8",
        ),
        (
            json!({"clusterIPs": ["10.96.0.1", "10.96.0.2"]}),
            "Service shop/web: spec.clusterIPs: two addresses of one family; the second is ignored",
        ),
        (
            json!({"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 0}}}),
            "Service shop/web: spec.sessionAffinityConfig.clientIP.timeoutSeconds: 0 is not between 1 and 86400; \
             10800 is used",
        ),
    ];
    for (spec, expected) in cases {
        assert_eq!(service(spec).1, [expected]);
    }
}

/// One bad value costs that value only.
#[test]
fn the_rest_of_a_faulty_service_works() {
    let spec = json!({"clusterIP": "10.96.0.1", "externalIPs": ["bad", "192.0.2.1"],
        "ports": [{"port": 80, "name": "a"}, {"port": 70000, "name": "b"}]});
    let (parsed, faults) = service(spec);
    let parsed = parsed.expect("a Service");
    assert_eq!(faults.len(), 2);
    assert_eq!((parsed.external_ips.len(), parsed.ports.len()), (1, 1));
}

/// Letting everyone in because a range has a typing error would be worse than letting nobody in.
#[test]
fn an_unreadable_source_range_lets_nobody_in() {
    let (parsed, _) = service(json!({"type": "LoadBalancer", "loadBalancerSourceRanges": ["10.0.0.0/33"]}));
    let ranges = parsed.expect("a Service").source_ranges;
    assert!(!ranges.is_empty());
    assert!(
        ranges
            .iter()
            .all(|range| range.prefix_len() == range.max_prefix_len() && range.addr().is_unspecified())
    );
}

#[test]
fn addresses_as_kubernetes_reads_them() {
    for (text, expected) in [
        ("10.0.0.1", Some("10.0.0.1")),
        ("010.001.000.009", Some("10.1.0.9")),
        ("::ffff:10.0.0.1", Some("10.0.0.1")),
        ("fd00::1", Some("fd00::1")),
        ("10.0.0.256", None),
        ("10.0.0", None),
        ("+1.0.0.1", None),
        ("", None),
        ("10.0.0.1 ", None),
    ] {
        assert_eq!(parse_ip(text).ok(), expected.map(ip), "{text:?}");
    }
    assert_eq!(
        parse_cidr("10.1.2.3/16").map(|net| net.to_string()),
        Ok("10.1.0.0/16".into())
    );
    assert!(parse_cidr("10.1.2.3").is_err() && parse_cidr("10.1.2.3/-1").is_err());
}

#[test]
fn a_full_slice_is_read() {
    let (parsed, faults) = slice(json!({
        "metadata": {"namespace": "shop", "name": "web-x7k", "labels": {"kubernetes.io/service-name": "web"},
            "annotations": {"endpoints.kubernetes.io/last-change-trigger-time": "1970-01-01T00:00:01Z"}},
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}, {"port": null}],
        "endpoints": [
            {"addresses": ["10.244.1.2", "10.244.1.3"], "hostname": "web-0", "nodeName": "n1", "zone": "a",
             "hints": {"forZones": [{"name": "a"}], "forNodes": [{"name": "n1"}]},
             "targetRef": {"kind": "Pod", "name": "web-0", "namespace": "shop"}},
            {"addresses": ["10.244.2.2"], "conditions": {"ready": false, "serving": true, "terminating": true}}]
    }));
    assert_eq!(faults, [""; 0]);
    let parsed = parsed.expect("a slice");
    assert_eq!(parsed.service, Some(NamespacedName::new("shop", "web")));
    assert_eq!(parsed.last_change_trigger, Some(1_000_000_000));
    assert_eq!(
        parsed.ports.iter().map(|port| port.port).collect::<Vec<_>>(),
        [Some(8080), None]
    );
    let first = &parsed.endpoints[0];
    assert_eq!(
        first.addresses().collect::<Vec<_>>(),
        [ip("10.244.1.2"), ip("10.244.1.3")]
    );
    assert_eq!(first.conditions, Conditions::default());
    assert_eq!(
        (first.hostname().map(|name| &**name), first.node_name.as_deref()),
        (Some("web-0"), Some("n1"))
    );
    assert_eq!(first.target_pod(), Some(&NamespacedName::new("shop", "web-0")));
    let hints = first.hints.as_ref().expect("hints");
    assert_eq!((&*hints.zones[0], &*hints.nodes[0]), ("a", "n1"));
    let draining = Conditions {
        ready: false,
        serving: true,
        terminating: true,
    };
    assert_eq!(parsed.endpoints[1].conditions, draining);
}

#[test]
fn bad_endpoints_are_left_out_of_a_slice() {
    let (parsed, faults) = slice(json!({
        "metadata": {"namespace": "shop", "name": "s", "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4",
        "ports": [{"port": 99999}, {"port": 80}],
        "endpoints": [{"addresses": ["fd00::1"]}, {"addresses": []}, {"addresses": ["0.0.0.0"]}, {"addresses": ["10.0.0.1"]}]
    }));
    let parsed = parsed.expect("a slice");
    assert_eq!((parsed.ports.len(), parsed.endpoints.len()), (1, 1));
    assert_eq!(
        faults,
        [
            "EndpointSlice shop/s: ports[0].port: 99999 is not a port (1 to 65535)",
            "EndpointSlice shop/s: endpoints[0].addresses[0]: fd00::1 is not an IPv4 address",
            "EndpointSlice shop/s: endpoints[1].addresses: is empty",
            "EndpointSlice shop/s: endpoints[2].addresses[0]: 0.0.0.0 cannot be an endpoint",
        ]
    );
    let (parsed, faults) = slice(json!({"metadata": {"name": "s"}, "addressType": "FQDN", "endpoints": []}));
    assert!(parsed.is_none());
    assert_eq!(
        faults,
        ["EndpointSlice s: addressType: \"FQDN\" is not one of IPv4, IPv6"]
    );
}

#[test]
fn a_node_is_read() {
    let object = json!({
        "metadata": {"name": "n1", "labels": {"topology.kubernetes.io/zone": "a"}, "deletionTimestamp": "2026-01-01T00:00:00Z"},
        "spec": {"podCIDRs": ["10.244.1.0/24", "fd00:244::/64"],
                 "taints": [{"key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule"}]},
        "status": {"addresses": [{"type": "Hostname", "address": "n1"}, {"type": "InternalIP", "address": "172.18.0.1"},
                                 {"type": "ExternalIP", "address": "192.0.2.1"}]}
    });
    let mut faults = Vec::new();
    let node = parse_node(&serde_json::from_value(object).expect("a Node"), &mut faults).expect("a Node");
    assert_eq!(faults, []);
    assert_eq!(
        (node.zone(), node.deleting, node.to_be_deleted_by_autoscaler),
        (Some("a"), true, true)
    );
    assert_eq!(
        (node.internal_ips, node.external_ips),
        (vec![ip("172.18.0.1")], vec![ip("192.0.2.1")])
    );
    assert_eq!(node.pod_cidrs.len(), 2);
}

proptest::proptest! {
    /// Whatever stands in the fields, parsing never panics and whatever it keeps is in bounds.
    #[test]
    fn any_service_is_survived(
        texts in proptest::collection::vec("[0-9a-f:./None ]{0,20}", 5),
        numbers in proptest::collection::vec(proptest::num::i32::ANY, 4),
    ) {
        let (parsed, _) = service(json!({
            "clusterIPs": [texts[0], texts[1]], "externalIPs": [texts[2]], "loadBalancerSourceRanges": [texts[3]],
            "ipFamilies": [texts[4]], "healthCheckNodePort": numbers[0],
            "sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": numbers[1]}},
            "ports": [{"port": numbers[2], "nodePort": numbers[3]}],
        }));
        let parsed = parsed.expect("a name and a type are enough");
        proptest::prop_assert!(parsed.cluster_ips.len() <= 2);
        proptest::prop_assert!(parsed.ports.iter().all(|port| port.port != 0 && port.node_port != Some(0)));
        proptest::prop_assert!(parsed.affinity_seconds.is_some_and(|s| (1..=86_400).contains(&s)));
    }
}
