//! What events make of changes.

use portolan_model::{Interner, ObjectKey, parse};
use serde_json::{Value, json};

use super::*;

fn service(name: &str, ip: &str) -> Event {
    let object = json!({"metadata": {"namespace": "default", "name": name},
        "spec": {"clusterIP": ip, "ports": [{"port": 80}]}});
    let object = serde_json::from_value(object).expect("a Service");
    Event::Apply(Object::Service(Box::new(
        parse::parse_service(&object, &mut Vec::new()).expect("a Service"),
    )))
}

fn slice(of: &str, endpoints: Value) -> Event {
    let object = json!({"addressType": "IPv4", "ports": [{"port": 8080}], "endpoints": endpoints, "metadata":
        {"namespace": "default", "name": format!("{of}-1"), "labels": {"kubernetes.io/service-name": of}}});
    let object = serde_json::from_value(object).expect("a slice");
    let slice = parse::parse_endpoint_slice(&object, &mut Interner::default(), &mut Vec::new()).expect("a slice");
    Event::Apply(Object::EndpointSlice(slice))
}

fn node(zone: &str) -> Event {
    let object = json!({"metadata": {"name": "here", "labels": {"topology.kubernetes.io/zone": zone}},
        "status": {"addresses": [{"type": "InternalIP", "address": "172.18.0.1"}]}});
    let object = serde_json::from_value(object).expect("a Node");
    Event::Apply(Object::Node(Box::new(
        parse::parse_node(&object, &mut Vec::new()).expect("a Node"),
    )))
}

fn desired(services: usize) -> Desired {
    let options = Options {
        node_name: "here".into(),
        ..Options::default()
    };
    let mut desired = Desired::new(options, Vec::new(), None);
    desired.take_in([node("a")]);
    for i in 0..services {
        desired.take_in([service(&format!("s{i}"), &format!("10.96.1.{i}"))]);
        desired.take_in([slice(&format!("s{i}"), json!([{"addresses": ["10.244.1.2"]}]))]);
    }
    desired
}

/// Names in the change: planned, removed.
fn named(change: Option<(Change, Occasion)>) -> (Vec<String>, Vec<String>) {
    let change = change.map(|(change, _)| change).unwrap_or_default();
    let text = |name: &ServiceName| name.name.to_string();
    (
        change.plans.iter().map(|plan| text(&plan.service)).collect(),
        change.removed.iter().map(text).collect(),
    )
}

#[test]
fn one_changed_slice_plans_one_service() {
    let mut desired = desired(50);
    let (first, _) = desired.change(true).expect("a change");
    assert!(first.complete && first.node.is_some());
    assert_eq!(first.plans.len(), 50);
    assert!(desired.change(false).is_none(), "nothing is left");
    desired.take_in([slice("s7", json!([{"addresses": ["10.244.1.3"]}]))]);
    assert_eq!(named(desired.change(false)), (vec!["s7".into()], vec![]));
    desired.take_in([slice("s7", json!([{"addresses": ["10.244.1.3"]}]))]);
    assert!(desired.change(false).is_none(), "the same slice again");
}

/// A pod's name is no business of forwarding: its change plans nothing.
#[test]
fn names_of_endpoints_are_not_kept() {
    let mut desired = desired(1);
    desired.change(true);
    let named =
        json!([{"addresses": ["10.244.1.2"], "hostname": "web-0", "targetRef": {"kind": "Pod", "name": "web-0"}}]);
    desired.take_in([slice("s0", named)]);
    assert!(desired.change(false).is_none());
}

#[test]
fn a_deleted_service_is_removed_and_forgotten() {
    let mut desired = desired(2);
    desired.change(true);
    desired.take_in([Event::Delete(ObjectKey::Service(ServiceName::new("default", "s1")))]);
    assert_eq!(named(desired.change(false)), (vec![], vec!["s1".into()]));
}

/// The zone steers endpoint choice: a relabelled Node takes effect at once, for all Services.
#[test]
fn a_changed_zone_plans_everything_anew() {
    let mut desired = desired(5);
    desired.change(true);
    desired.take_in([node("b")]);
    let (change, _) = desired.change(false).expect("a change");
    assert!(!change.complete);
    assert_eq!(change.plans.len(), 5);
}

#[test]
fn a_node_without_object_is_the_stand_in() {
    let stand_in = Node {
        name: "here".into(),
        internal_ips: vec!["192.0.2.1".parse().expect("an address")],
        ..Node::default()
    };
    let options = Options {
        node_name: "here".into(),
        ..Options::default()
    };
    let mut desired = Desired::new(options, Vec::new(), Some(stand_in));
    let (change, _) = desired.change(true).expect("a change");
    let addresses = change.node.expect("a node plan").node_port_addresses;
    assert!(addresses.contains(&"192.0.2.1".parse().expect("an address")));
    desired.take_in([node("a")]);
    let (change, _) = desired.change(false).expect("the node changed");
    let addresses = change.node.expect("a node plan").node_port_addresses;
    assert!(addresses.contains(&"172.18.0.1".parse().expect("an address")));
}
