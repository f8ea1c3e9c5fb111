//! Whatever a manifest holds, the source goes on.

use proptest::prelude::*;
use serde_json::{Map, Value, json};

use crate::source::Wants;
use crate::source::manifests::cluster::Cluster;
use crate::source::manifests::default_service_ranges;
use crate::source::manifests::documents::parse_yaml;
use crate::source::manifests::files::Files;
use crate::source::manifests::state::StateFile;

/// Keys that lead into the code, and some that do not.
const KEYS: &[&str] = &[
    "metadata",
    "name",
    "namespace",
    "labels",
    "spec",
    "status",
    "type",
    "ports",
    "port",
    "targetPort",
    "nodePort",
    "protocol",
    "selector",
    "clusterIP",
    "clusterIPs",
    "ipFamilies",
    "ipFamilyPolicy",
    "externalIPs",
    "subsets",
    "addresses",
    "ip",
    "podIPs",
    "conditions",
    "endpoints",
    "addressType",
    "nodeName",
    "hostname",
    "subdomain",
    "containers",
    "initContainers",
    "ownerReferences",
    "serviceName",
    "cidrs",
    "podCIDRs",
    "loadBalancer",
    "ingress",
    "sessionAffinity",
    "externalTrafficPolicy",
    "healthCheckNodePort",
    "deletionTimestamp",
    "hints",
    "items",
    "x",
];

fn leaf() -> impl Strategy<Value = Value> {
    let words = [
        "",
        "web",
        "web-0",
        "default",
        "None",
        "NodePort",
        "LoadBalancer",
        "ExternalName",
        "Local",
        "IPv4",
        "IPv6",
        "10.96.0.1",
        "10.96.0.1/33",
        "fd00:96::1",
        "::ffff:1.2.3.4",
        "UDP",
        "http",
        "ClientIP",
        "app",
        "PreferDualStack",
        "é\u{0}",
    ];
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        (-2i64..70_000).prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        proptest::sample::select(words.to_vec()).prop_map(Value::from),
    ]
}

fn tree() -> impl Strategy<Value = Value> {
    leaf().prop_recursive(6, 64, 6, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::vec((proptest::sample::select(KEYS.to_vec()), inner), 0..6).prop_map(|fields| {
                Value::Object(
                    fields
                        .into_iter()
                        .map(|(key, value)| (key.to_string(), value))
                        .collect(),
                )
            }),
        ]
    })
}

fn object() -> impl Strategy<Value = Value> {
    let kinds = [
        ("v1", "Service"),
        ("v1", "Endpoints"),
        ("v1", "Pod"),
        ("v1", "Node"),
        ("v1", "Namespace"),
        ("v1", "List"),
        ("discovery.k8s.io/v1", "EndpointSlice"),
        ("networking.k8s.io/v1", "ServiceCIDR"),
        ("apps/v1", "StatefulSet"),
    ];
    (
        proptest::sample::select(kinds.to_vec()),
        any::<bool>(),
        tree(),
        tree(),
        tree(),
    )
        .prop_map(|((api_version, kind), named, metadata, spec, status)| {
            let metadata = if named {
                json!({"name": "web-0", "labels": {"app": "web"}})
            } else {
                metadata
            };
            let fields = [
                ("apiVersion", json!(api_version)),
                ("kind", json!(kind)),
                ("metadata", metadata),
                ("spec", spec.clone()),
                ("subsets", spec.clone()),
                ("endpoints", spec),
                ("addressType", json!("IPv4")),
                ("status", status),
            ];
            Value::Object(
                fields
                    .into_iter()
                    .map(|(key, value)| (key.to_string(), value))
                    .collect::<Map<_, _>>(),
            )
        })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_object_panics(first in proptest::collection::vec(object(), 1..6), second in proptest::collection::vec(object(), 1..6)) {
        let dir = tempfile::tempdir().unwrap();
        let mut files = Files::new(dir.path());
        let mut cluster = Cluster::new(Wants::naming(), StateFile::nowhere(), default_service_ranges());
        for objects in [first, second] {
            let text: String = objects.iter().map(|object| format!("{object}\n")).collect();
            std::fs::write(dir.path().join("a.json"), text).unwrap();
            let changes = files.refresh().unwrap();
            cluster.update(changes, true);
        }
    }

    #[test]
    fn no_text_panics(text in "[-:a-c \n\\[\\]{}&*!|>'\"#,?0-9%@]{0,80}") {
        let _ = parse_yaml(&text);
    }
}
