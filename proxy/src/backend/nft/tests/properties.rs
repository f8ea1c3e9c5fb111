//! Properties that hold for any plans, on the kernel in memory.

use proptest::prelude::*;

use super::fake::{Fake, Outcome, Packet, expected, key};
use super::*;
use crate::backend::nft::schema::family_number;

const PROTOCOLS: [Protocol; 3] = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];

fn v4(family: Family, four: &str, six: &str) -> IpAddr {
    ip(if family == Family::V4 { four } else { six })
}

/// Verdicts that a plan with these endpoints can hold.
fn routes() -> impl Strategy<Value = [u8; 3]> {
    prop::array::uniform3(0u8..6)
}

fn verdict(choice: u8, port: &PortPlan) -> Verdict {
    let forward = |set, masquerade| {
        let empty = entries::backends(port, set).is_empty();
        if empty { Verdict::Drop } else { to(set, masquerade) }
    };
    match choice {
        0 | 1 => forward(EndpointSet::Cluster, choice == 1),
        2 | 3 => forward(EndpointSet::Local, choice == 3),
        4 => Verdict::Reject,
        _ => Verdict::Drop,
    }
}

/// Few addresses, ports and endpoints, so that Services often meet at one frontend.
fn port() -> impl Strategy<Value = PortPlan> {
    let endpoints = prop::collection::btree_map(1u8..7, any::<bool>(), 0..6);
    let frontend = (
        0u8..4,
        0u8..5,
        80u16..83,
        routes(),
        prop::option::weighted(0.3, any::<bool>()),
    );
    let frontends = prop::collection::vec(frontend, 0..4);
    let affinity = prop::option::weighted(0.4, 1u32..3);
    (any::<bool>(), 0usize..3, endpoints, frontends, affinity).prop_map(
        |(six, protocol, endpoints, frontends, seconds)| {
            let family = if six { Family::V6 } else { Family::V4 };
            let address = |n: u8| v4(family, &format!("10.244.1.{n}"), &format!("fd00:244:0:1::{n}"));
            let cluster: Vec<Endpoint> = endpoints
                .into_iter()
                .map(|(n, local)| Endpoint {
                    address: (address(n), 8080).into(),
                    local,
                })
                .collect();
            let mut port = PortPlan {
                name: protocol.to_string().into(),
                protocol: PROTOCOLS[protocol],
                family,
                affinity_seconds: seconds,
                local: cluster.iter().copied().filter(|e| e.local).collect(),
                cluster,
                serving: Vec::new(),
                frontends: Vec::new(),
            };
            for (kind, n, number, choices, ranges) in frontends {
                let (kind, address) = match kind {
                    0 => (
                        FrontendKind::ClusterIp,
                        Some(v4(family, &format!("10.96.0.{n}"), &format!("fd00:96::{n}"))),
                    ),
                    1 => (
                        FrontendKind::ExternalIp,
                        Some(v4(family, &format!("203.0.113.{n}"), &format!("fd00:113::{n}"))),
                    ),
                    2 => (
                        FrontendKind::LoadBalancerIp,
                        Some(v4(family, &format!("203.0.113.{n}"), &format!("fd00:113::{n}"))),
                    ),
                    _ => (FrontendKind::NodePort, None),
                };
                let [pod, node, outside] = choices.map(|choice| verdict(choice, &port));
                let ranges = ranges.filter(|_| kind == FrontendKind::LoadBalancerIp).map(|both| {
                    let texts: &[&str] = match (family, both) {
                        (Family::V4, false) => &["198.51.100.0/24"],
                        (Family::V4, true) => &["10.244.1.0/24", "172.18.0.1/32"],
                        (Family::V6, false) => &["fd00:51::/64"],
                        (Family::V6, true) => &["fd00:244:0:1::/64"],
                    };
                    nets(texts).into()
                });
                port.frontends.push(Frontend {
                    kind,
                    address,
                    port: number,
                    routes: Routes { pod, node, outside },
                    source_ranges: ranges,
                });
            }
            port.frontends.sort_unstable();
            let mut seen = BTreeSet::new();
            port.frontends
                .retain(|frontend| seen.insert((frontend.address, frontend.port)));
            port
        },
    )
}

/// Plans of up to six Services.
pub(super) fn world() -> impl Strategy<Value = BTreeMap<u8, ServicePlan>> {
    let ports = prop::collection::vec(port(), 0..3);
    prop::collection::btree_map(0u8..6, ports, 0..6).prop_map(|services| {
        let plan = |(n, mut ports): (u8, Vec<PortPlan>)| {
            ports.sort_by(|a, b| (a.family, &a.name).cmp(&(b.family, &b.name)));
            ports.dedup_by(|a, b| (a.family, &a.name) == (b.family, &b.name));
            let service = ServiceName::new("default", format!("s{n}"));
            (
                n,
                ServicePlan {
                    service,
                    ports,
                    health_check: None,
                    notes: Vec::new(),
                },
            )
        };
        services.into_iter().map(plan).collect()
    })
}

pub(super) fn node_plan() -> impl Strategy<Value = NodePlan> {
    (0u8..4, any::<bool>()).prop_map(|(pods, ranges)| NodePlan {
        pods: match pods {
            0 => Pods::Unknown,
            _ => node().pods,
        },
        service_cidrs: if ranges { node().service_cidrs } else { Vec::new() },
        ..node()
    })
}

pub(super) fn all(world: &BTreeMap<u8, ServicePlan>, node: &NodePlan) -> Change {
    Change {
        node: Some(node.clone()),
        ..complete(world.values().cloned().collect())
    }
}

/// What leads from one world to another.
pub(super) fn step(from: &BTreeMap<u8, ServicePlan>, to: &BTreeMap<u8, ServicePlan>, node: Option<NodePlan>) -> Change {
    Change {
        node,
        plans: to
            .iter()
            .filter(|(n, plan)| from.get(n) != Some(plan))
            .map(|(_, plan)| plan.clone())
            .collect(),
        removed: from
            .iter()
            .filter(|(n, _)| !to.contains_key(n))
            .map(|(_, plan)| plan.service.clone())
            .collect(),
        complete: false,
    }
}

fn programmer(fake: &Fake) -> Programmer<Fake> {
    Programmer::new(fake.clone(), NftOptions::default())
}

fn state(fake: &Fake) -> Vec<fake::FakeTable> {
    fake.0
        .lock()
        .unwrap()
        .values()
        .map(fake::FakeTable::without_slots)
        .collect()
}

/// Follows a packet to every frontend from every kind of source.
fn check_traffic(fake: &Fake, world: &BTreeMap<u8, ServicePlan>, node: &NodePlan) {
    let tables = fake.0.lock().unwrap();
    let mut seen = BTreeSet::new();
    // The first Service by name has a frontend that several ask for.
    for (plan, port) in world
        .values()
        .flat_map(|plan| plan.ports.iter().map(move |port| (plan, port)))
    {
        let table = &tables[&family_number(port.family)];
        for frontend in &port.frontends {
            let key = key(port, frontend);
            let (_, comment) = &table.elements[&key];
            let first = seen.insert((port.family, key));
            assert_eq!(
                first,
                *comment == format!("{}:{}", plan.service, port.name),
                "{comment} {plan}"
            );
            if !first {
                continue;
            }
            let local = v4(port.family, "172.18.0.1", "fd00:18::1");
            let pods_known = node.pods != Pods::Unknown;
            let pod = if pods_known {
                frontend.routes.pod
            } else {
                frontend.routes.outside
            };
            // A pod of another node is not short-circuited at a node port of this one.
            let elsewhere = match frontend.kind {
                FrontendKind::NodePort if pods_known => frontend.routes.node,
                _ => pod,
            };
            for (from, verdict) in [
                (v4(port.family, "10.244.1.99", "fd00:244:0:1::99"), pod),
                (v4(port.family, "10.244.2.99", "fd00:244:0:2::99"), elsewhere),
                (local, frontend.routes.node),
                (v4(port.family, "198.51.100.7", "fd00:51::7"), frontend.routes.outside),
            ] {
                let packet = Packet {
                    from,
                    local: from == local,
                    to: frontend.address.unwrap_or(local),
                    protocol: port.protocol,
                    port: frontend.port,
                };
                let wanted = expected(port, frontend, verdict, from);
                assert_eq!(table.trace(&packet), wanted, "{packet:?}\n{plan}");
            }
        }
    }
}

/// Time passes: no client is remembered.
fn forget(fake: &Fake) {
    for table in fake.0.lock().unwrap().values_mut() {
        table.elements.retain(|(set, _), _| set != "affinity");
    }
}

/// A client outside connects to every frontend, twice.
fn visit(fake: &Fake, world: &BTreeMap<u8, ServicePlan>) {
    let mut tables = fake.0.lock().unwrap();
    for (plan, port) in world
        .values()
        .flat_map(|plan| plan.ports.iter().map(move |port| (plan, port)))
    {
        let table = tables.get_mut(&family_number(port.family)).unwrap();
        for frontend in &port.frontends {
            let (_, holder) = &table.elements[&key(port, frontend)];
            if *holder != format!("{}:{}", plan.service, port.name) {
                continue;
            }
            let packet = Packet {
                from: v4(port.family, "198.51.100.7", "fd00:51::7"),
                local: false,
                to: frontend.address.unwrap_or(v4(port.family, "172.18.0.1", "fd00:18::1")),
                protocol: port.protocol,
                port: frontend.port,
            };
            let first = table.connect(&packet, 1);
            // Also where it was remembered in an earlier world: to an endpoint that serves.
            let wanted = expected(port, frontend, frontend.routes.outside, packet.from);
            assert!(wanted.contains(&first), "{packet:?}: {first:?}\n{plan}");
            if port.affinity_seconds.is_some() {
                assert_eq!(table.trace(&packet), [first].into(), "{packet:?}\n{plan}");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_packed_plan_is_the_plan_again(world in world(), serving: bool) {
        for mut plan in world.into_values() {
            let unpacked = packed::Packed::new(&plan).unpack(&plan.service);
            prop_assert_eq!(&unpacked, &plan);
            for port in plan.ports.iter_mut().filter(|_| serving) {
                port.serving = port.cluster.iter().map(|backend| backend.address).collect();
            }
            prop_assert_eq!(packed::Packed::new(&plan).unpack(&plan.service), unpacked);
        }
    }

    #[test]
    fn the_way_to_a_state_does_not_matter(
        a in world(), b in world(), node_a in node_plan(), node_b in node_plan(), node_changes: bool,
    ) {
        let node_b = if node_changes { node_b } else { node_a.clone() };
        let direct = Fake::default();
        programmer(&direct).apply(&all(&b, &node_b)).unwrap();

        let stepped = Fake::default();
        let mut backend = programmer(&stepped);
        backend.apply(&all(&a, &node_a)).unwrap();
        check_traffic(&stepped, &a, &node_a);
        let first = state(&stepped);
        visit(&stepped, &a);
        backend.apply(&step(&a, &b, node_changes.then(|| node_b.clone()))).unwrap();
        prop_assert_eq!(state(&stepped), state(&direct));
        visit(&stepped, &b);
        forget(&stepped);
        check_traffic(&stepped, &b, &node_b);
        visit(&stepped, &b);

        // Another process takes over, at b and then at a.
        let mut next = programmer(&stepped);
        let report = next.apply(&all(&b, &node_b)).unwrap();
        prop_assert_eq!((report.written, report.removed, report.messages), (0, 0, 0));
        programmer(&stepped).apply(&all(&a, &node_a)).unwrap();
        prop_assert_eq!(state(&stepped), first);
        visit(&stepped, &a);
        // And one that programmed b last knows nothing of it: a complete change is always right.
        next.apply(&all(&b, &node_b)).unwrap();
        prop_assert_eq!(state(&stepped), state(&direct));
    }
}

fn packet(to: &str, port: u16) -> Packet {
    Packet {
        from: ip("198.51.100.7"),
        local: false,
        to: ip(to),
        protocol: Protocol::Tcp,
        port,
    }
}

#[test]
fn what_no_service_has() {
    let fake = Fake::default();
    let web = service("web", &["10.244.1.5:80"])
        .cluster_ip("10.96.0.1", 80)
        .at(FrontendKind::LoadBalancerIp, Some("203.0.113.1"), 80, internal())
        .at(FrontendKind::NodePort, None, 30080, internal());
    programmer(&fake).apply(&complete(vec![web.0])).unwrap();
    let check = |to: &str, port: u16, protocol: Protocol, wanted: Outcome| {
        let packet = Packet {
            protocol,
            ..packet(to, port)
        };
        let table = &fake.0.lock().unwrap()[&family_number(Family::V4)];
        assert_eq!(table.trace(&packet), [wanted].into(), "{packet:?}");
    };
    check("10.96.0.1", 81, Protocol::Tcp, Outcome::Reset);
    check("10.96.0.1", 80, Protocol::Udp, Outcome::Unreachable);
    check("10.96.0.2", 80, Protocol::Tcp, Outcome::Dropped);
    check("203.0.113.1", 81, Protocol::Tcp, Outcome::Untouched);
    check("172.18.0.1", 30081, Protocol::Tcp, Outcome::Untouched);
    check("172.18.0.2", 30080, Protocol::Tcp, Outcome::Untouched);
    check("192.0.2.1", 80, Protocol::Tcp, Outcome::Untouched);
}

#[test]
fn a_frontend_goes_to_whoever_waits_for_it() {
    let fake = Fake::default();
    let mut backend = programmer(&fake);
    let asks = |name: &str, n: u8| {
        service(name, &[&format!("10.244.1.{n}:80")])
            .at(
                FrontendKind::ExternalIp,
                Some("203.0.113.1"),
                80,
                Routes::same(to(EndpointSet::Cluster, false)),
            )
            .0
    };
    let has = || {
        let table = &fake.0.lock().unwrap()[&family_number(Family::V4)];
        table.trace(&packet("203.0.113.1", 80)).into_iter().next().unwrap()
    };
    let endpoint = |n: u8| Outcome::Forwarded {
        to: (ip(&format!("10.244.1.{n}")), 80).into(),
        masquerade: false,
    };
    backend.apply(&complete(vec![asks("b", 2), asks("c", 3)])).unwrap();
    assert_eq!(has(), endpoint(2));
    backend.apply(&changed(vec![asks("a", 1)])).unwrap();
    assert_eq!(has(), endpoint(1));
    backend.apply(&removed(&["b"])).unwrap();
    assert_eq!(has(), endpoint(1));
    backend.apply(&removed(&["a"])).unwrap();
    assert_eq!(has(), endpoint(3));
    assert!(backend.status().contains(&("contested frontends".into(), "0".into())));
}

#[test]
fn a_service_that_the_kernel_refuses_without_a_word_does_not_block_the_others() {
    let fake = Fake::default();
    let mut backend = programmer(&fake);
    let plan = |n: u8| {
        service(&format!("s{n:02}"), &["10.244.1.5:80"])
            .cluster_ip(&format!("10.96.0.{n}"), 80)
            .0
    };
    let served = || -> Vec<String> {
        let tables = fake.0.lock().unwrap();
        let services = tables[&family_number(Family::V4)].elements.iter();
        services
            .filter(|((set, _), _)| set == "services")
            .map(|(_, (_, comment))| comment.clone())
            .collect()
    };
    let check = |outcome: Result<Report, BackendError>, wanted: &[&str]| match outcome {
        Err(BackendError::Services(refused)) => {
            let names: Vec<String> = refused.iter().map(|(service, _)| service.to_string()).collect();
            assert_eq!(names, wanted);
        }
        other => panic!("{other:?}"),
    };
    let bad = ["s07", "s21"].map(|name| format!("default/{name}:http"));
    fake.1.lock().unwrap().bad = bad.to_vec();
    // All at once, with tables that are not there yet.
    check(
        backend.apply(&complete((0..32).map(plan).collect())),
        &["default/s07", "default/s21"],
    );
    assert_eq!(served().len(), 30);
    // As a change, together with the node's and with one that goes; the way to two of 40 is short.
    fake.1.lock().unwrap().commits = 0;
    let mut change = changed((0..40).map(plan).filter(|plan| &*plan.service.name != "s39").collect());
    change.removed = removed(&["s39"]).removed;
    change.node = Some(node());
    check(backend.apply(&change), &["default/s07", "default/s21"]);
    assert_eq!(served().len(), 37);
    let commits = fake.1.lock().unwrap().commits;
    assert!(commits < 30, "{commits}");
    // Nothing works: it is not the Services, and what is programmed stays.
    let before = served();
    fake.1.lock().unwrap().bad = before.clone();
    assert!(matches!(
        backend.apply(&changed(vec![plan(90)])),
        Err(BackendError::System { .. } | BackendError::Services(_))
    ));
    assert_eq!(served(), before);
    fake.1.lock().unwrap().bad.clear();
    backend.apply(&complete((0..40).map(plan).collect())).unwrap();
    assert_eq!(served().len(), 40);
}

#[test]
fn a_kernel_without_ipv6_serves_ipv4() {
    let fake = Fake::default();
    fake.1.lock().unwrap().without_v6 = true;
    let mut backend = programmer(&fake);
    let web = || {
        let mut web = service("web", &["10.244.1.5:80"])
            .cluster_ip("10.96.0.1", 80)
            .at(FrontendKind::NodePort, None, 30080, internal())
            .0;
        let six = service("web", &["[fd00:244:0:1::5]:80"]).cluster_ip("fd00:96::1", 80);
        web.ports.extend(six.0.ports);
        web
    };
    backend.apply(&complete(vec![web()])).unwrap();
    assert!(backend.status().contains(&("tables".into(), "ip portolan".into())));
    let families: Vec<u8> = fake.0.lock().unwrap().keys().copied().collect();
    assert_eq!(families, [family_number(Family::V4)]);
    let wide = NodePlan {
        pods: Pods::Unknown,
        ..node()
    };
    let mut change = changed(vec![web()]);
    change.node = Some(wide);
    backend.apply(&change).unwrap();
    backend.apply(&removed(&["web"])).unwrap();
    backend.apply(&complete(vec![web()])).unwrap();
    let table = &fake.0.lock().unwrap()[&family_number(Family::V4)];
    let wanted = Outcome::Forwarded {
        to: (ip("10.244.1.5"), 80).into(),
        masquerade: true,
    };
    assert_eq!(table.trace(&packet("10.96.0.1", 80)), [wanted].into());
}

#[test]
fn chains_that_are_busy_go_in_a_transaction_of_their_own() {
    let fake = Fake::default();
    fake.1.lock().unwrap().busy = true;
    let mut backend = programmer(&fake);
    let web = |endpoints: &[&str]| service("web", endpoints).cluster_ip("10.96.0.1", 80).0;
    backend.apply(&complete(vec![web(&["10.244.1.5:80"])])).unwrap();
    backend
        .apply(&changed(vec![web(&["10.244.1.5:80", "10.244.1.6:80"])]))
        .unwrap();
    let direct = Fake::default();
    programmer(&direct)
        .apply(&complete(vec![web(&["10.244.1.5:80", "10.244.1.6:80"])]))
        .unwrap();
    assert_eq!(state(&fake), state(&direct));
    backend.apply(&removed(&["web"])).unwrap();
    programmer(&direct).apply(&complete(Vec::new())).unwrap();
    assert_eq!(state(&fake), state(&direct));
}
