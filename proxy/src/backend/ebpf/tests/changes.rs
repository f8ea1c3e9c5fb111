//! Whatever changes, a reader between any two writes finds endpoints of the old state or of the new one, and never a hole.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use portolan_abi::{BackendKey, FrontendKey, SETS_OF_A_PORT, Set, scope, verdict};
use portolan_model::{Family, Protocol, ServiceName};
use portolan_plan::{Backend, EndpointSet, Frontend, FrontendKind, NodePlan, PortPlan, Routes, ServicePlan, Verdict};
use proptest::prelude::*;

use super::super::compile::{self, Endpoint};
use super::super::elements::{Difference, Elements};
use super::super::mirror::Mirror;
use crate::backend::Change;

/// A Service in a few numbers.
#[derive(Clone, Debug)]
struct Sketch {
    name: u8,
    /// Frontends are shared between Services on purpose: the last octet of the address.
    address: u8,
    node_port: Option<u8>,
    endpoints: BTreeSet<u8>,
    affinity: bool,
    udp: bool,
}

fn sketch() -> impl Strategy<Value = Sketch> {
    let endpoints = proptest::collection::btree_set(0_u8..12, 0..8);
    (
        0_u8..4,
        0_u8..5,
        proptest::option::of(0_u8..3),
        endpoints,
        any::<bool>(),
        any::<bool>(),
    )
        .prop_map(|(name, address, node_port, endpoints, affinity, udp)| Sketch {
            name,
            address,
            node_port,
            endpoints,
            affinity,
            udp,
        })
}

fn plan(sketch: &Sketch) -> ServicePlan {
    let at = |octet: u8| -> SocketAddr { (IpAddr::from([10, 244, 0, octet]), 8080).into() };
    let backends = |of: fn(&u8) -> bool| -> Vec<Backend> {
        let chosen = sketch.endpoints.iter().filter(|octet| of(octet));
        chosen
            .map(|octet| Backend {
                address: at(*octet),
                local: *octet % 3 == 0,
            })
            .collect()
    };
    let (cluster, local) = (backends(|_| true), backends(|octet| octet % 3 == 0));
    let verdict = |set, list: &[Backend]| match (list.is_empty(), cluster.is_empty()) {
        (false, _) => Verdict::Forward { set, masquerade: false },
        (true, true) => Verdict::Reject,
        (true, false) => Verdict::Drop,
    };
    let everyone = verdict(EndpointSet::Cluster, &cluster);
    let routes = Routes {
        pod: everyone,
        node: everyone,
        outside: verdict(EndpointSet::Local, &local),
    };
    let frontend = |kind, address, port| Frontend {
        kind,
        address,
        port,
        routes,
        source_ranges: None,
    };
    let mut frontends = vec![frontend(
        FrontendKind::ClusterIp,
        Some(IpAddr::from([10, 96, 0, sketch.address])),
        80,
    )];
    frontends.extend(
        sketch
            .node_port
            .map(|port| frontend(FrontendKind::NodePort, None, 30000 + u16::from(port))),
    );
    ServicePlan {
        service: ServiceName::new("default", format!("s{}", sketch.name)),
        ports: vec![PortPlan {
            name: "".into(),
            protocol: if sketch.udp { Protocol::Udp } else { Protocol::Tcp },
            family: Family::V4,
            affinity_seconds: sketch.affinity.then_some(10),
            serving: if sketch.udp {
                cluster.iter().map(|b| b.address).collect()
            } else {
                Vec::new()
            },
            cluster,
            local,
            frontends,
        }],
        health_check: None,
        notes: Vec::new(),
    }
}

fn change(sketches: &[Sketch], complete: bool) -> Change {
    let plans: BTreeMap<ServiceName, ServicePlan> = sketches
        .iter()
        .map(plan)
        .map(|plan| (plan.service.clone(), plan))
        .collect();
    Change {
        node: complete.then(|| NodePlan {
            node_port_addresses: vec![IpAddr::from([172, 18, 0, 1]), IpAddr::from([127, 0, 0, 1])],
            ..NodePlan::default()
        }),
        plans: plans.into_values().collect(),
        removed: Vec::new(),
        complete,
    }
}

/// Writes one element after the other, as the kernel's maps would be written, and looks after each.
fn write(maps: &mut Elements, difference: &Difference, mut look: impl FnMut(&Elements)) {
    macro_rules! put {
        ($list:ident, $map:ident) => {
            for (key, value) in &difference.$list {
                maps.$map.insert(*key, *value);
                look(maps);
            }
        };
    }
    macro_rules! remove {
        ($list:ident, $map:ident) => {
            for key in &difference.$list {
                maps.$map.remove(key);
                look(maps);
            }
        };
    }
    put!(members, members);
    put!(backends, backends);
    put!(grown, sets);
    put!(frontends, frontends);
    put!(addresses, addresses);
    remove!(gone_addresses, addresses);
    remove!(gone_frontends, frontends);
    put!(shrunk, sets);
    maps.sets.retain(|_, set| *set != Set::default());
    remove!(gone_backends, backends);
    remove!(gone_members, members);
}

/// Where a reader may be sent by each frontend.
fn reachable(maps: &Elements) -> BTreeMap<FrontendKey, BTreeSet<Endpoint>> {
    let of = |key: &FrontendKey| {
        let route = maps.frontends[key].routes[scope::POD];
        if route.verdict != verdict::FORWARD {
            return BTreeSet::new();
        }
        let count = maps.sets.get(&route.set).map_or(0, |set| set.count);
        (0..count)
            .map(|slot| {
                let key = BackendKey { set: route.set, slot };
                let backend = maps.backends.get(&key).expect("a slot in use has an endpoint");
                assert_eq!(backend.check, backend.sum(&key));
                (backend.address, backend.port)
            })
            .collect()
    };
    maps.frontends.keys().map(|key| (*key, of(key))).collect()
}

/// Which Service has which number.
fn owners(mirror: &Mirror) -> BTreeMap<u32, ServiceName> {
    mirror
        .labels(mirror.names())
        .map(|(number, labels)| (number, labels.service))
        .collect()
}

/// The endpoints of a set, of whatever state.
fn in_set(maps: &Elements, set: u32) -> BTreeSet<Endpoint> {
    let key = |slot| BackendKey { set, slot };
    let slots = maps.backends.range(key(0)..=key(u32::MAX));
    slots.map(|(_, backend)| (backend.address, backend.port)).collect()
}

/// Writes what makes the maps those of `mirror`. A frontend leads to endpoints that it, or the Service that has it, had or
/// gets; and to no fewer than it keeps. `before` has the owners of the numbers before the change.
fn write_watched(maps: &mut Elements, difference: &Difference, before: &BTreeMap<u32, ServiceName>, mirror: &Mirror) {
    let wanted = mirror.elements();
    let after = owners(mirror);
    let (old, new) = (reachable(maps), reachable(&wanted));
    let start = maps.clone();
    write(maps, difference, |maps| {
        for (frontend, found) in reachable(maps) {
            let (old, new) = (old.get(&frontend), new.get(&frontend));
            let mut allowed: BTreeSet<Endpoint> = old.into_iter().chain(new).flatten().copied().collect();
            let value = &maps.frontends[&frontend];
            if before
                .get(&value.port)
                .is_some_and(|owner| after.get(&value.port) == Some(owner))
            {
                let set = value.routes[scope::POD].set;
                allowed.extend(in_set(&start, set).into_iter().chain(in_set(&wanted, set)));
            }
            assert!(
                found.is_subset(&allowed),
                "{frontend:?} leads to {found:?}, not among {allowed:?}"
            );
            if let (Some(old), Some(new)) = (old, new) {
                let kept: BTreeSet<Endpoint> = old.intersection(new).copied().collect();
                // Whoever hands a frontend over may lose endpoints meanwhile.
                let moves = before.get(&value.port) != after.get(&wanted.frontends[&frontend].port);
                assert!(
                    moves || kept.is_subset(&found),
                    "{frontend:?} has lost some of {kept:?}: {found:?}"
                );
            }
        }
    });
    assert_eq!(*maps, wanted);
}

proptest! {
    #[test]
    fn every_reader_sees_the_old_or_the_new(
        first in proptest::collection::vec(sketch(), 0..4),
        steps in proptest::collection::vec((proptest::collection::vec(sketch(), 0..3), 0_u8..4, any::<bool>()), 1..6),
    ) {
        let complete = change(&first, true);
        let mut maps = Elements::default();
        let mut mirror = Mirror::adopt(&complete, &maps);
        let difference = Difference::between(&maps, &mirror.elements());
        write_watched(&mut maps, &difference, &BTreeMap::new(), &mirror);
        let mut world: BTreeMap<ServiceName, ServicePlan> = complete.plans.into_iter().map(|p| (p.service.clone(), p)).collect();
        for (sketches, gone, restart) in steps {
            let mut step = change(&sketches, restart);
            let gone = ServiceName::new("default", format!("s{gone}"));
            if !step.plans.iter().any(|plan| plan.service == gone) {
                world.remove(&gone);
                step.removed.push(gone);
            }
            world.extend(step.plans.iter().map(|plan| (plan.service.clone(), plan.clone())));
            let before = owners(&mirror);
            let difference = if restart {
                step.plans = world.values().cloned().collect();
                step.removed.clear();
                mirror = Mirror::adopt(&step, &maps);
                Difference::between(&maps, &mirror.elements())
            } else {
                mirror.change(&step)
            };
            write_watched(&mut maps, &difference, &before, &mirror);
        }
    }
}

fn service(endpoints: impl IntoIterator<Item = u8>) -> Sketch {
    Sketch {
        name: 0,
        address: 1,
        node_port: Some(1),
        endpoints: endpoints.into_iter().collect(),
        affinity: false,
        udp: false,
    }
}

#[test]
fn one_endpoint_costs_the_same_in_a_small_and_in_a_large_service() {
    let check = |before: Vec<u8>, after: Vec<u8>, expect: (usize, usize)| {
        let mut mirror = Mirror::adopt(&change(&[service(before.clone())], true), &Elements::default());
        let difference = mirror.change(&change(&[service(after.clone())], false));
        assert_eq!(difference.size(), expect, "{before:?} -> {after:?}");
    };
    // The endpoint and its set's count.
    check(vec![1, 2], vec![1, 2, 4], (2, 0));
    check((1..100).collect(), (1..101).collect(), (2, 0));
    // The last one moves into the hole, the count, the last slot.
    check(vec![1, 2, 4], vec![2, 4], (2, 1));
    check(
        (1..100).filter(|n| n % 3 > 0).collect(),
        (2..100).filter(|n| n % 3 > 0).collect(),
        (2, 1),
    );
    // One for another: a slot.
    check(vec![1, 2], vec![2, 4], (1, 0));
}

#[test]
fn a_restart_writes_nothing_and_an_endpoint_that_comes_back_is_another_one() {
    let complete = change(&[service([1, 2, 4])], true);
    let mut mirror = Mirror::adopt(&complete, &Elements::default());
    mirror.change(&change(&[service([2, 4])], false));
    mirror.change(&change(&[service([2, 4, 5])], false));
    let maps = mirror.elements();
    let again = Mirror::adopt(&change(&[service([2, 4, 5])], true), &maps);
    assert_eq!(Difference::between(&maps, &again.elements()), Difference::default());

    let ids = |mirror: &Mirror| -> BTreeSet<u32> { mirror.elements().backends.values().map(|b| b.id).collect() };
    let before = ids(&mirror);
    mirror.change(&change(&[service([2, 4])], false));
    mirror.change(&change(&[service([2, 4, 5])], false));
    assert_eq!(before.intersection(&ids(&mirror)).count(), 2);
}

#[test]
fn a_number_is_not_used_again_while_a_frontend_may_lead_to_it() {
    let named = |name, address| Sketch {
        name,
        address,
        ..service([1])
    };
    let mut mirror = Mirror::adopt(&change(&[named(0, 1)], true), &Elements::default());
    let mut step = change(&[named(1, 2)], false);
    step.removed = vec![ServiceName::new("default", "s0")];
    let difference = mirror.change(&step);
    let port = |difference: &Difference| difference.frontends[0].1.port;
    assert_eq!(port(&difference), 1);
    let difference = mirror.change(&change(&[named(2, 3)], false));
    assert_eq!(port(&difference), 0);
    assert!(difference.grown.iter().all(|(set, _)| set / SETS_OF_A_PORT == 0));
}

#[test]
fn a_cluster_ip_that_a_program_of_the_node_answers_on_is_left_to_rules() {
    let node = |taken: &[u8]| NodePlan {
        taken: taken.iter().map(|last| IpAddr::from([10, 96, 0, *last])).collect(),
        ..NodePlan::default()
    };
    let another = Sketch {
        name: 1,
        address: 2,
        ..service([1])
    };
    let mut maps = Elements::default();
    let mut mirror = Mirror::adopt(&change(&[service([1, 2]), another], true), &maps);
    let first = Difference::between(&maps, &mirror.elements());
    write(&mut maps, &first, |_| {});
    let listed = |maps: &Elements| -> Vec<IpAddr> { maps.addresses.keys().map(compile::ip).collect() };
    for (taken, expect) in [
        (&[][..], &[1, 2][..]),
        (&[1], &[2]),
        (&[1], &[2]),
        (&[1, 2, 3], &[]),
        (&[2], &[1]),
        (&[], &[1, 2]),
    ] {
        let difference = mirror.change(&Change {
            node: Some(node(taken)),
            ..Change::default()
        });
        write(&mut maps, &difference, |_| {});
        let expect: Vec<IpAddr> = expect.iter().map(|last| IpAddr::from([10, 96, 0, *last])).collect();
        assert_eq!(listed(&maps), expect, "{taken:?} are the node's own");
        assert_eq!(maps, mirror.elements());
    }
}
