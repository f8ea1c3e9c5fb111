//! What one event makes dirty, and how slices are merged.

use super::*;
use crate::endpoint::{Conditions, EndpointPort};
use crate::name::NamespacedName;
use crate::service::{Protocol, ServiceType, TrafficPolicy};

fn service(name: &str) -> Event {
    Event::Apply(Object::Service(Box::new(Service {
        name: NamespacedName::new("default", name),
        type_: ServiceType::ClusterIp,
        headless: false,
        cluster_ips: vec!["10.96.0.1".parse().expect("an address")],
        families: vec![Family::V4],
        external_name: None,
        ports: vec![port("http")],
        external_ips: Vec::new(),
        load_balancer: Vec::new(),
        affinity_seconds: None,
        external_traffic_policy: TrafficPolicy::Cluster,
        internal_traffic_policy: TrafficPolicy::Cluster,
        source_ranges: Vec::new(),
        health_check_node_port: None,
        publish_not_ready_addresses: false,
    })))
}

fn port(name: &str) -> ServicePort {
    ServicePort {
        name: name.into(),
        protocol: Protocol::Tcp,
        port: 80,
        node_port: None,
    }
}

fn endpoint(address: &str, ready: bool) -> Endpoint {
    Endpoint {
        address: address.parse().expect("an address"),
        conditions: Conditions {
            ready,
            ..Conditions::default()
        },
        node_name: None,
        hints: None,
        names: None,
    }
}

fn slice(name: &str, of: &str, port: (&str, u16), endpoints: Vec<Endpoint>) -> Event {
    let port = EndpointPort {
        name: port.0.into(),
        protocol: Protocol::Tcp,
        port: Some(port.1),
    };
    Event::Apply(Object::EndpointSlice(EndpointSlice {
        imported: None,
        name: NamespacedName::new("default", name),
        service: Some(NamespacedName::new("default", of)),
        family: Family::V4,
        ports: [port].into(),
        endpoints: endpoints.into(),
        last_change_trigger: Some(7),
    }))
}

fn dirty(world: &mut World, event: Event) -> Vec<String> {
    let mut delta = Delta::default();
    world.apply(event, &mut delta);
    delta.services.iter().map(|name| name.name.to_string()).collect()
}

#[test]
fn one_slice_makes_one_service_dirty() {
    let mut world = World::default();
    for i in 0..100 {
        dirty(&mut world, service(&format!("s{i}")));
    }
    let one = || slice("s7-abc", "s7", ("http", 80), vec![endpoint("10.0.0.1", true)]);
    assert_eq!(dirty(&mut world, one()), ["s7"]);
    assert_eq!(dirty(&mut world, one()), [""; 0], "nothing changed");
    assert_eq!(dirty(&mut world, service("s7")), [""; 0], "nothing changed");
    let key = ObjectKey::EndpointSlice(NamespacedName::new("default", "s7-abc"));
    assert_eq!(dirty(&mut world, Event::Delete(key.clone())), ["s7"]);
    assert_eq!(dirty(&mut world, Event::Delete(key)), [""; 0]);
}

#[test]
fn a_relabelled_slice_leaves_its_old_service() {
    let mut world = World::default();
    dirty(&mut world, service("old"));
    dirty(&mut world, service("new"));
    dirty(
        &mut world,
        slice("x", "old", ("http", 80), vec![endpoint("10.0.0.1", true)]),
    );
    let moved = slice("x", "new", ("http", 80), vec![endpoint("10.0.0.1", true)]);
    assert_eq!(dirty(&mut world, moved), ["new", "old"]);
    assert!(world.slices_of(&NamespacedName::new("default", "old")).is_empty());
    assert_eq!(world.slices_of(&NamespacedName::new("default", "new")).len(), 1);
}

/// Events arrive in any order: a slice may be there long before its Service.
#[test]
fn slices_wait_for_their_service() {
    let mut world = World::default();
    assert_eq!(
        dirty(
            &mut world,
            slice("x", "web", ("http", 80), vec![endpoint("10.0.0.1", true)])
        ),
        ["web"]
    );
    assert!(world.service(&NamespacedName::new("default", "web")).is_none());
    dirty(&mut world, service("web"));
    let view = world
        .service(&NamespacedName::new("default", "web"))
        .expect("the Service");
    assert_eq!(view.endpoints(&port("http"), Family::V4).len(), 1);
}

#[test]
fn slices_are_merged_by_port_name_and_the_ready_twin_wins() {
    let mut world = World::default();
    dirty(&mut world, service("web"));
    dirty(
        &mut world,
        slice(
            "a",
            "web",
            ("http", 8080),
            vec![endpoint("10.0.0.2", false), endpoint("10.0.0.1", true)],
        ),
    );
    dirty(
        &mut world,
        slice("b", "web", ("http", 9090), vec![endpoint("10.0.0.3", true)]),
    );
    dirty(
        &mut world,
        slice("c", "web", ("other", 1), vec![endpoint("10.0.0.4", true)]),
    );
    dirty(
        &mut world,
        slice("d", "web", ("http", 8080), vec![endpoint("10.0.0.2", true)]),
    );
    let view = world
        .service(&NamespacedName::new("default", "web"))
        .expect("the Service");
    let found = view.endpoints(&port("http"), Family::V4);
    let found: Vec<_> = found
        .iter()
        .map(|e| (e.address.to_string(), e.endpoint.conditions.ready))
        .collect();
    let expected = [
        ("10.0.0.1:8080", true),
        ("10.0.0.2:8080", true),
        ("10.0.0.3:9090", true),
    ];
    assert_eq!(found, expected.map(|(address, ready)| (address.to_string(), ready)));
}
