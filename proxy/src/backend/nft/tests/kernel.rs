//! On the kernel of this machine, as root, each test in a network namespace of its own.

use std::net::UdpSocket;
use std::thread;
use std::time::{Duration, Instant};

use proptest::prelude::{ProptestConfig, any};
use proptest::test_runner::TestRunner;
use tokio::sync::mpsc;

use super::namespace::{Pod, ask, be_the_node, echo_source, in_namespace, run, server};
use super::properties::{all, node_plan, step, world};
use super::*;
use crate::backend::Disturbance;

fn backend() -> (NftBackend, mpsc::Receiver<Disturbance>) {
    let (sender, receiver) = mpsc::channel(1);
    (NftBackend::new(NftOptions::default(), sender).unwrap(), receiver)
}

#[test]
fn probe_and_cleanup_leave_nothing() {
    in_namespace(|| {
        run("nft", &["add", "table", "ip", "other"]);
        probe(&NftOptions::default()).unwrap();
        cleanup(&NftOptions::default()).unwrap();
        assert_eq!(run("nft", &["list", "tables"]).trim(), "table ip other");
        let (mut backend, _) = backend();
        backend
            .apply(&complete(vec![
                service("web", &["10.244.1.5:80"]).cluster_ip("10.96.0.1", 80).0,
            ]))
            .unwrap();
        cleanup(&NftOptions::default()).unwrap();
        assert_eq!(run("nft", &["list", "tables"]).trim(), "table ip other");
    });
}

fn everything() -> Vec<ServicePlan> {
    let any = Routes::same(to(EndpointSet::Cluster, true));
    vec![
        service("web", &["10.244.1.5:8080*", "10.244.2.5:8080"])
            .cluster_ip("10.96.0.1", 80)
            .at(FrontendKind::ExternalIp, Some("203.0.113.9"), 80, any)
            .at(FrontendKind::LoadBalancerIp, Some("203.0.113.1"), 80, local())
            .only_from(&["198.51.100.0/24", "192.0.2.1/32"])
            .at(FrontendKind::NodePort, None, 30080, local())
            .0,
        service("web6", &["[fd00:244:0:1::5]:8080*", "[fd00:244:0:2::5]:8080"])
            .cluster_ip("fd00:96::1", 80)
            .at(FrontendKind::LoadBalancerIp, Some("fd00:113::1"), 80, local())
            .only_from(&["fd00:51::/64"])
            .at(FrontendKind::NodePort, None, 30080, local())
            .0,
        service("sticky", &["10.244.1.8:80*", "10.244.2.8:80"])
            .sticky(10_800)
            .cluster_ip("10.96.0.14", 80)
            .at(FrontendKind::NodePort, None, 30081, local())
            .0,
        service("sticky6", &["[fd00:244:0:1::8]:80*", "[fd00:244:0:2::8]:80"])
            .sticky(10_800)
            .cluster_ip("fd00:96::e", 80)
            .at(FrontendKind::NodePort, None, 30081, local())
            .0,
        service("dns", &["10.244.1.6:53"])
            .protocol(Protocol::Udp)
            .cluster_ip("10.96.0.10", 53)
            .0,
        service("sctp", &["10.244.1.7:99"])
            .protocol(Protocol::Sctp)
            .cluster_ip("10.96.0.11", 99)
            .0,
        service("none", &[])
            .at(
                FrontendKind::ClusterIp,
                Some("10.96.0.12"),
                80,
                Routes::same(Verdict::Reject),
            )
            .0,
        service("away", &[])
            .at(
                FrontendKind::ClusterIp,
                Some("10.96.0.13"),
                80,
                Routes::same(Verdict::Drop),
            )
            .0,
    ]
}

#[test]
fn nft_lists_the_tables_with_comments() {
    in_namespace(|| {
        let (mut backend, _) = backend();
        for pods in [
            node().pods,
            Pods::Unknown,
            Pods::Interface("cni0".into()),
            Pods::InterfacePrefix("veth".into()),
        ] {
            let mut change = complete(everything());
            change.node = Some(NodePlan { pods, ..node() });
            backend.apply(&change).unwrap();
            let listed = run("nft", &["list", "ruleset"]);
            for wanted in [
                "table ip portolan",
                "table ip6 portolan",
                "10.96.0.1 . tcp . 80 comment \"default/web:http\" : goto ",
                "10.96.0.11 . sctp . 99",
                "dnat ip to ip daddr . meta l4proto . th dport . numgen random mod 2 map @endpoints",
                "reject with tcp reset",
                "timeout 3h : ip daddr . th dport",
                "timeout 3h : ip6 daddr . th dport",
            ] {
                assert!(listed.contains(wanted), "no {wanted:?} in:\n{listed}");
            }
            assert!(!listed.contains("invalid"), "{listed}");
            if std::env::var_os("NFT_SHOW").is_some() {
                println!("{listed}");
            }
        }
    });
}

#[test]
fn traffic_follows_the_plans() {
    in_namespace(|| {
        be_the_node();
        let a = server("10.244.1.5", "a").to_string();
        let b = server("10.244.1.6", "b").to_string();
        let c = server("fd00:244:0:1::5", "c").to_string();
        let (mut backend, _) = backend();
        let none = service("none", &[]).at(
            FrontendKind::ClusterIp,
            Some("10.96.0.12"),
            80,
            Routes::same(Verdict::Reject),
        );
        let away = service("away", &[]).at(
            FrontendKind::ClusterIp,
            Some("10.96.0.13"),
            80,
            Routes::same(Verdict::Drop),
        );
        let web = |endpoints: &[&str]| {
            service("web", endpoints)
                .cluster_ip("10.96.0.1", 80)
                .at(FrontendKind::NodePort, None, 30080, internal())
                .0
        };
        let web6 =
            service("web6", &[&c])
                .cluster_ip("fd00:96::1", 80)
                .at(FrontendKind::NodePort, None, 30080, internal());
        let restricted = service("restricted", &[&a])
            .at(FrontendKind::LoadBalancerIp, Some("203.0.113.1"), 80, internal())
            .only_from(&["198.51.100.0/24"])
            .at(FrontendKind::LoadBalancerIp, Some("203.0.113.2"), 80, internal())
            .only_from(&["198.51.100.0/24", "172.18.0.0/16"]);
        backend
            .apply(&complete(vec![web(&[&a]), web6.0, none.0, away.0, restricted.0]))
            .unwrap();

        let check = |to: &str, wanted: Result<&str, io::ErrorKind>| {
            let heard = ask(to).map_err(|error| error.kind());
            assert_eq!(
                heard.as_deref(),
                wanted.as_deref(),
                "{to}\n{}",
                run("nft", &["list", "ruleset"])
            );
        };
        check("10.96.0.1:80", Ok("a"));
        check("172.18.0.1:30080", Ok("a"));
        check("[fd00:96::1]:80", Ok("c"));
        check("[fd00:18::1]:30080", Ok("c"));
        // No endpoint, an unlisted port, an address that no Service has, endpoints elsewhere only.
        for _ in 0..10 {
            check("10.96.0.12:80", Err(io::ErrorKind::ConnectionRefused));
            check("10.96.0.1:81", Err(io::ErrorKind::ConnectionRefused));
            check("[fd00:96::1]:81", Err(io::ErrorKind::ConnectionRefused));
        }
        check("10.96.0.99:80", Err(io::ErrorKind::TimedOut));
        check("10.96.0.13:80", Err(io::ErrorKind::TimedOut));
        check("203.0.113.1:80", Err(io::ErrorKind::TimedOut));
        check("203.0.113.2:80", Ok("a"));

        backend.apply(&changed(vec![web(&[&a, &b])])).unwrap();
        let heard: BTreeSet<String> = (0..64).map(|_| ask("10.96.0.1:80").unwrap()).collect();
        assert_eq!(heard.into_iter().collect::<Vec<_>>(), ["a", "b"]);
        backend.apply(&changed(vec![web(&[&b])])).unwrap();
        (0..16).for_each(|_| check("10.96.0.1:80", Ok("b")));
        backend.apply(&removed(&["web"])).unwrap();
        check("10.96.0.1:80", Err(io::ErrorKind::TimedOut));
        check("172.18.0.1:30080", Err(io::ErrorKind::ConnectionRefused));
        let gone = run("nft", &["list", "chain", "ip", "portolan", "services"]);
        assert!(gone.contains("vmap @services"), "{gone}");
    });
}

#[test]
fn clients_stay_with_their_endpoint_as_long_as_it_serves() {
    in_namespace(|| {
        be_the_node();
        let servers = ["a", "b", "c"].map(|name| server("10.244.1.5", name).to_string());
        let (mut backend, _) = backend();
        let web = |endpoints: &[&str], seconds: Option<u32>| {
            let web = service("web", endpoints).cluster_ip("10.96.0.1", 80).at(
                FrontendKind::NodePort,
                None,
                30080,
                Routes::same(to(EndpointSet::Cluster, true)),
            );
            match seconds {
                Some(seconds) => web.sticky(seconds).0,
                None => web.0,
            }
        };
        let [a, b, c] = servers.each_ref().map(String::as_str);
        let answers = |address: &str| -> BTreeSet<String> { (0..32).map(|_| ask(address).unwrap()).collect() };
        backend.apply(&complete(vec![web(&[a, b, c], Some(100))])).unwrap();
        let chosen = ask("10.96.0.1:80").unwrap();
        // Shared by the frontends of a port, kept over other endpoints' changes and over a restart.
        assert_eq!(answers("10.96.0.1:80"), [chosen.clone()].into());
        assert_eq!(answers("172.18.0.1:30080"), [chosen.clone()].into());
        let others: Vec<&str> = [("a", a), ("b", b), ("c", c)]
            .into_iter()
            .filter(|(name, _)| *name != chosen)
            .map(|(_, address)| address)
            .collect();
        let server = [a, b, c].into_iter().find(|address| !others.contains(address)).unwrap();
        backend
            .apply(&changed(vec![web(&[server, others[0]], Some(100))]))
            .unwrap();
        assert_eq!(answers("10.96.0.1:80"), [chosen.clone()].into());
        let report = backend
            .apply(&complete(vec![web(&[server, others[0]], Some(100))]))
            .unwrap();
        assert_eq!((report.written, report.removed, report.messages), (0, 0, 0));
        assert_eq!(answers("10.96.0.1:80"), [chosen.clone()].into());
        assert!(run("nft", &["list", "ruleset"]).contains("update @affinity"));

        // Forgotten with its endpoint: when that comes back the client stays where it went.
        backend.apply(&changed(vec![web(&[others[0]], Some(100))])).unwrap();
        let next = ask("10.96.0.1:80").unwrap();
        assert_ne!(next, chosen);
        backend
            .apply(&changed(vec![web(&[server, others[0]], Some(100))]))
            .unwrap();
        assert_eq!(answers("10.96.0.1:80"), [next].into());
        // Switched off live.
        backend.apply(&changed(vec![web(&[server, others[0]], None)])).unwrap();
        assert_eq!(answers("10.96.0.1:80").len(), 2);
        let left = run("nft", &["list", "map", "ip", "portolan", "affinity"]);
        assert!(!left.contains("elements"), "{left}");
        // The kernel forgets by itself.
        backend
            .apply(&changed(vec![web(&[server, others[0]], Some(1))]))
            .unwrap();
        ask("10.96.0.1:80").unwrap();
        let start = Instant::now();
        while run("nft", &["list", "map", "ip", "portolan", "affinity"]).contains("elements") {
            assert!(start.elapsed() < Duration::from_secs(30), "not forgotten");
            thread::sleep(Duration::from_millis(100));
        }
    });
}

#[test]
fn udp_is_refused_where_there_is_no_endpoint() {
    in_namespace(|| {
        be_the_node();
        let (mut backend, _) = backend();
        let none = |address: &str| {
            let refused = Routes::same(Verdict::Reject);
            service(&format!("none-{}", address.len()), &[])
                .protocol(Protocol::Udp)
                .at(FrontendKind::ClusterIp, Some(address), 53, refused)
                .0
        };
        let plans = vec![none("10.96.0.12"), none("fd00:96::12")];
        backend.apply(&complete(plans)).unwrap();
        // Also a port that a live cluster IP does not have; whoever listens on the node is not asked.
        let bystander = UdpSocket::bind("127.0.0.1:53").unwrap();
        bystander.set_nonblocking(true).unwrap();
        for (from, to) in [
            ("172.18.0.1:0", "10.96.0.12:53"),
            ("172.18.0.1:0", "10.96.0.12:54"),
            ("[fd00:18::1]:0", "[fd00:96::12]:53"),
            ("[fd00:18::1]:0", "[fd00:96::12]:54"),
        ] {
            // The kernel limits how often it tells a peer; not for the node itself.
            for _ in 0..20 {
                let socket = UdpSocket::bind(from).unwrap();
                socket.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
                socket.connect(to).unwrap();
                socket.send(b"?").unwrap();
                let heard = socket.recv(&mut [0; 9]).map_err(|error| error.kind());
                assert_eq!(heard, Err(io::ErrorKind::ConnectionRefused), "{to}");
            }
        }
        assert!(bystander.recv(&mut [0; 9]).is_err());
    });
}

#[test]
fn a_restart_changes_nothing_and_damage_is_repaired() {
    in_namespace(|| {
        let (mut first, _) = backend();
        let report = first.apply(&complete(everything())).unwrap();
        assert!(report.written > 0 && report.removed == 0, "{report:?}");
        drop(first);
        let listed = || run("nft", &["-s", "list", "ruleset"]);
        let right = listed();

        let (mut backend, mut disturbances) = backend();
        let report = backend.apply(&complete(everything())).unwrap();
        assert_eq!((report.written, report.removed, report.messages), (0, 0, 0));
        assert!(disturbances.try_recv().is_err(), "nobody else touched the tables");

        let damages: &[&[&str]] = &[
            &["delete", "table", "ip", "portolan"],
            &["delete", "table", "ip6", "portolan"],
            &[
                "delete",
                "element",
                "ip",
                "portolan",
                "services",
                "{ 10.96.0.1 . tcp . 80 }",
            ],
            &["add", "element", "ip", "portolan", "cluster-ips", "{ 10.96.77.77 }"],
            &["add", "rule", "ip", "portolan", "services", "accept"],
            &["insert", "rule", "ip6", "portolan", "prerouting", "return"],
            &["flush", "chain", "ip", "portolan", "postrouting"],
            &["add", "chain", "ip", "portolan", "foreign"],
            &["add", "set", "ip", "portolan", "foreign", "{ type mark; }"],
            &[
                "add",
                "chain",
                "ip",
                "portolan",
                "foreign",
                "{ type filter hook input priority 0; }",
            ],
            &["flush", "ruleset"],
            &["add", "table", "ip", "portolan", "{ flags dormant; }"],
        ];
        for damage in damages {
            run("nft", damage);
            let disturbance = disturbances.blocking_recv().unwrap();
            assert!(
                disturbance.reason.contains("portolan"),
                "{damage:?}: {}",
                disturbance.reason
            );
            let report = backend.apply(&complete(everything())).unwrap();
            assert!(report.written + report.removed > 0, "{damage:?}: {report:?}");
            assert_eq!(sorted(&listed()), sorted(&right), "{damage:?}");
            // What is reported late is about what has been repaired.
            while disturbances.try_recv().is_ok() {}
        }
    });
}

/// nft lists the elements of a hash in any order.
fn sorted(listed: &str) -> Vec<String> {
    let words = listed.split([' ', '\n', '\t', ',']).map(str::to_owned);
    let mut words: Vec<String> = words.filter(|word| !word.is_empty()).collect();
    words.sort_unstable();
    words
}

#[test]
fn a_service_that_the_kernel_refuses_does_not_block_the_others() {
    in_namespace(|| {
        let (mut backend, _) = backend();
        let good = || service("good", &["10.244.1.5:80"]).cluster_ip("10.96.0.1", 80).0;
        // An IPv6 endpoint does not fit into the IPv4 map.
        let bad = || service("bad", &["[fd00:244:0:1::5]:80"]).cluster_ip("10.96.0.2", 80).0;
        let later = service("later", &["10.244.1.5:80"]).cluster_ip("10.96.0.3", 80).0;
        for change in [complete(vec![bad(), good()]), changed(vec![bad(), later])] {
            match backend.apply(&change) {
                Err(BackendError::Services(services)) => {
                    let names: Vec<String> = services.iter().map(|(service, _)| service.to_string()).collect();
                    assert_eq!(names, ["default/bad"], "{services:?}");
                }
                other => panic!("{other:?}"),
            }
        }
        let listed = run("nft", &["list", "map", "ip", "portolan", "services"]);
        for (name, there) in [("default/good", true), ("default/later", true), ("default/bad", false)] {
            assert_eq!(listed.contains(name), there, "{name} in {listed}");
        }
    });
}

#[test]
fn one_endpoint_among_30_000_services_is_a_constant_number_of_elements() {
    in_namespace(|| {
        let (mut backend, mut disturbances) = backend();
        let plan = |index: u32, count: u32| {
            let endpoints: Vec<String> = (0..count)
                .map(|n| format!("10.244.{}.{}:8080", index % 250, n + 1))
                .collect();
            let endpoints: Vec<&str> = endpoints.iter().map(String::as_str).collect();
            let address = format!("10.96.{}.{}", index / 250, index % 250);
            service(&format!("s{index}"), &endpoints).cluster_ip(&address, 80).0
        };
        let mut sizes = Vec::new();
        for services in [10, 30_000] {
            let start = Instant::now();
            let report = backend
                .apply(&complete((0..services).map(|index| plan(index, 5)).collect()))
                .unwrap();
            println!(
                "{services} Services x 5: {report:?}, with making the plans {:?}",
                start.elapsed()
            );
            let start = Instant::now();
            let more = backend.apply(&changed(vec![plan(3, 6)])).unwrap();
            let fewer = backend.apply(&changed(vec![plan(3, 5)])).unwrap();
            println!(
                "one endpoint more and one fewer: {:?}; {more:?} {fewer:?}",
                start.elapsed()
            );
            sizes.push([more, fewer].map(|report| (report.written, report.removed, report.messages)));
        }
        assert_eq!(sizes[0], sizes[1]);
        let [(written, _, _), _] = sizes[1];
        assert!(written < 10, "{sizes:?}");
        let start = Instant::now();
        let report = backend
            .apply(&complete((0..30_000).map(|index| plan(index, 5)).collect()))
            .unwrap();
        assert_eq!((report.written, report.removed, report.messages), (0, 0, 0));
        println!("adopted in {:?}", start.elapsed());
        assert!(disturbances.try_recv().is_err(), "nobody else touched the tables");
    });
}

#[test]
fn pods_keep_their_address_unless_they_reach_themselves() {
    in_namespace(|| {
        be_the_node();
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
        let a = Pod::new("pod-a", "10.244.1.11", "10.244.1.1");
        let b = Pod::new("pod-b", "10.244.1.12", "10.244.1.1");
        let server = a.run(|| echo_source("10.244.1.11"));
        let (mut backend, _) = backend();
        let here = format!("{server}*");
        let web = service("web", &[&here])
            .cluster_ip("10.96.0.1", 80)
            .at(
                FrontendKind::NodePort,
                None,
                30080,
                Routes::same(to(EndpointSet::Cluster, true)),
            )
            .at(FrontendKind::LoadBalancerIp, Some("203.0.113.1"), 80, internal())
            .only_from(&["10.244.1.12/32"]);
        let none = service("none", &[]).at(
            FrontendKind::ClusterIp,
            Some("10.96.0.12"),
            80,
            Routes::same(Verdict::Reject),
        );
        backend.apply(&complete(vec![web.0, none.0])).unwrap();

        let check = |pod: &Pod, to: &'static str, wanted: Result<&str, io::ErrorKind>| {
            let heard = pod.run(move || ask(to).map_err(|error| error.kind()));
            assert_eq!(heard.as_deref(), wanted.as_deref(), "{to}");
        };
        check(&b, "10.96.0.1:80", Ok("10.244.1.12"));
        check(&a, "10.96.0.1:80", Ok("10.244.1.1"));
        check(&b, "172.18.0.1:30080", Ok("10.244.1.1"));
        check(&b, "203.0.113.1:80", Ok("10.244.1.12"));
        check(&a, "203.0.113.1:80", Err(io::ErrorKind::TimedOut));
        for _ in 0..10 {
            check(&b, "10.96.0.1:81", Err(io::ErrorKind::ConnectionRefused));
            check(&b, "10.96.0.12:80", Err(io::ErrorKind::ConnectionRefused));
        }
        check(&b, "10.96.0.99:80", Err(io::ErrorKind::TimedOut));
    });
}

/// What the kernel holds, without the order of slots and of chains.
fn held(backend: &mut NftBackend) -> Vec<(Vec<netlink::object::Chain>, BTreeSet<String>)> {
    let of_family = |family| {
        let observed = backend.programmer.kernel.observe(family, "portolan").unwrap().unwrap();
        assert!(observed.sound);
        let mut chains = observed.chains;
        chains.sort_by(|a, b| a.name.cmp(&b.name));
        let mut slots: BTreeMap<_, BTreeSet<usize>> = BTreeMap::new();
        let elements = observed.entries.iter().map(|entry| {
            let map = entry.place.map;
            let slotted = map.name().ends_with("endpoints");
            let (key, slot) = match schema::split_slot(&entry.place.key).filter(|_| slotted) {
                Some((key, slot)) => (key, Some(slot)),
                None => (entry.place.key, None),
            };
            slots.entry((map, key)).or_default().extend(slot);
            format!("{map:?} {key:?} {:?} {}", entry.data, entry.comment)
        });
        let elements = elements.collect();
        for ((map, key), slots) in slots {
            assert!(
                slots.iter().copied().eq(0..slots.len()),
                "holes in {map:?} at {key:?}: {slots:?}"
            );
        }
        (chains, elements)
    };
    Family::ALL.map(of_family).into()
}

#[test]
fn the_way_to_a_state_does_not_matter() {
    in_namespace(|| {
        let config = ProptestConfig {
            cases: 40,
            failure_persistence: None,
            ..ProptestConfig::default()
        };
        let worlds = (world(), world(), node_plan(), node_plan(), any::<bool>());
        let outcome = TestRunner::new(config).run(&worlds, |(a, b, node_a, node_b, node_changes)| {
            let node_b = if node_changes { node_b } else { node_a.clone() };
            cleanup(&NftOptions::default()).unwrap();
            let (mut direct, _) = backend();
            direct.apply(&all(&b, &node_b)).unwrap();
            let wanted = held(&mut direct);

            cleanup(&NftOptions::default()).unwrap();
            let (mut stepped, _) = backend();
            stepped.apply(&all(&a, &node_a)).unwrap();
            stepped
                .apply(&step(&a, &b, node_changes.then(|| node_b.clone())))
                .unwrap();
            assert_eq!(held(&mut stepped), wanted);
            // Another process finds nothing to do, and one that knows another world comes to the same.
            let (mut next, _) = backend();
            let report = next.apply(&all(&b, &node_b)).unwrap();
            assert_eq!((report.written, report.removed, report.messages), (0, 0, 0));
            next.apply(&all(&a, &node_a)).unwrap();
            stepped.apply(&all(&b, &node_b)).unwrap();
            assert_eq!(held(&mut stepped), wanted);
            Ok(())
        });
        outcome.unwrap();
    });
}

/// Two pods on this node; the first one's server tells each client the address that it sees.
fn two_pods() -> (Pod, Pod, SocketAddr) {
    be_the_node();
    std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
    let a = Pod::new("pod-a", "10.244.1.11", "10.244.1.1");
    let b = Pod::new("pod-b", "10.244.1.12", "10.244.1.1");
    let server = a.run(|| echo_source("10.244.1.11"));
    (a, b, server)
}

#[test]
fn pods_are_told_by_range_or_by_interface() {
    in_namespace(|| {
        let (_a, b, server) = two_pods();
        let web = || service("web", &[&format!("{server}*")]).cluster_ip("10.96.0.1", 80).0;
        let (mut backend, _) = backend();
        // A pod keeps its address; who is not known to be one gets the node's.
        let (kept, masqueraded) = ("10.244.1.12", "10.244.1.1");
        for (pods, wanted) in [
            (Pods::Cidrs(nets(&["10.244.0.0/16"])), kept),
            (Pods::Cidrs(nets(&["10.99.0.0/16"])), masqueraded),
            (Pods::Cidrs(nets(&["fd00:244::/48"])), masqueraded),
            (Pods::Interface("pod-b".into()), kept),
            (Pods::Interface("pod".into()), masqueraded),
            (Pods::Interface("cni0".into()), masqueraded),
            (Pods::InterfacePrefix("pod".into()), kept),
            (Pods::InterfacePrefix("pod-b".into()), kept),
            (Pods::InterfacePrefix("eth".into()), masqueraded),
        ] {
            let mut change = complete(vec![web()]);
            change.node = Some(NodePlan {
                pods: pods.clone(),
                ..node()
            });
            backend.apply(&change).unwrap();
            let heard = b.run(|| ask("10.96.0.1:80").map_err(|error| error.kind()));
            assert_eq!(heard.as_deref(), Ok(wanted), "{pods:?}");
        }
    });
}

#[test]
fn other_bits_of_the_mark_are_left_alone() {
    in_namespace(|| {
        let (_a, b, server) = two_pods();
        let all = Routes::same(to(EndpointSet::Cluster, true));
        let web = || {
            let web = service("web", &[&format!("{server}*")]);
            web.at(FrontendKind::ClusterIp, Some("10.96.0.1"), 80, all).0
        };
        for bit in [0, 14, 31] {
            let others = !(1u32 << bit);
            // Before us all other bits are set; behind us they have to be, and ours must not.
            run("nft", &["flush", "ruleset"]);
            let rules = format!(
                "table ip others {{
                    counter right {{ }}
                    counter wrong {{ }}
                    chain before {{ type filter hook prerouting priority -150; ip saddr 10.244.1.12 meta mark set {others}; }}
                    chain after {{
                        type filter hook postrouting priority 110;
                        ip daddr 10.244.1.11 tcp flags syn meta mark {others} counter name right
                        ip daddr 10.244.1.11 tcp flags syn meta mark != {others} counter name wrong
                    }}
                }}"
            );
            run("nft", &[&rules]);
            let (sender, _) = mpsc::channel(1);
            let options = NftOptions {
                masquerade_bit: bit,
                ..NftOptions::default()
            };
            let mut backend = NftBackend::new(options, sender).unwrap();
            backend.apply(&complete(vec![web()])).unwrap();
            let heard = b.run(|| ask("10.96.0.1:80").unwrap());
            assert_eq!(heard, "10.244.1.1", "bit {bit}");
            let count = |name| run("nft", &["list", "counter", "ip", "others", name]);
            assert!(count("right").contains("packets 1 "), "bit {bit}: {}", count("right"));
            assert!(count("wrong").contains("packets 0 "), "bit {bit}: {}", count("wrong"));
        }
    });
}

#[test]
fn clients_stay_however_pods_are_told() {
    in_namespace(|| {
        be_the_node();
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
        let a = Pod::new("pod-a", "10.244.1.11", "10.244.1.1");
        let b = Pod::new("pod-b", "10.244.1.12", "10.244.1.1");
        let servers = a.run(|| ["a", "b", "c", "d"].map(|name| server("10.244.1.11", name)));
        let endpoints = servers.map(|server| format!("{server}*"));
        let endpoints: Vec<&str> = endpoints.iter().map(String::as_str).collect();
        for pods in [
            node().pods,
            Pods::Interface("pod-b".into()),
            Pods::InterfacePrefix("pod-".into()),
            Pods::Unknown,
        ] {
            let (mut backend, _) = backend();
            // What one run remembers must not help the next one.
            cleanup(&NftOptions::default()).unwrap();
            let plan = service("web", &endpoints)
                .sticky(100)
                .cluster_ip("10.96.0.1", 80)
                .at(FrontendKind::LoadBalancerIp, Some("203.0.113.1"), 80, local())
                .at(FrontendKind::NodePort, None, 30080, local())
                .0;
            let mut change = complete(vec![plan]);
            change.node = Some(NodePlan {
                pods: pods.clone(),
                ..node()
            });
            backend.apply(&change).unwrap();
            for to in ["203.0.113.1:80", "172.18.0.1:30080", "10.96.0.1:80"] {
                let from_pod: BTreeSet<String> = b.run(move || (0..24).map(|_| ask(to).unwrap()).collect());
                assert_eq!(from_pod.len(), 1, "a pod to {to}, {pods:?}: {from_pod:?}");
                let from_node: BTreeSet<String> = (0..24).map(|_| ask(to).unwrap()).collect();
                assert_eq!(from_node.len(), 1, "the node to {to}, {pods:?}: {from_node:?}");
            }
        }
    });
}

/// A UDP server that sends its name back.
fn udp_server(address: &str, name: &'static str) -> SocketAddr {
    let socket = UdpSocket::bind((ip(address), 0)).unwrap();
    let bound = socket.local_addr().unwrap();
    thread::spawn(move || {
        let mut buffer = [0; 9];
        while let Ok((_, from)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(name.as_bytes(), from);
        }
    });
    bound
}

#[test]
fn udp_flows_from_one_port_go_where_the_plans_say() {
    in_namespace(|| {
        be_the_node();
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
        let a = Pod::new("pod-a", "10.244.1.11", "10.244.1.1");
        let b = Pod::new("pod-b", "10.244.1.12", "10.244.1.1");
        let [one, two] = a.run(|| ["one", "two"].map(|name| udp_server("10.244.1.11", name)));
        let resolver = |name: &str, endpoints: &[SocketAddr]| {
            let texts: Vec<String> = endpoints.iter().map(|endpoint| format!("{endpoint}*")).collect();
            let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
            let routes = match endpoints.is_empty() {
                true => Routes::same(Verdict::Reject),
                false => internal(),
            };
            let mut made = service(name, &texts).protocol(Protocol::Udp).at(
                FrontendKind::ClusterIp,
                Some("10.96.0.53"),
                53,
                routes,
            );
            made.port().serving = endpoints.to_vec();
            made.0
        };
        // A client that never changes its port: one socket for the whole test.
        let socket = b.run(|| {
            let socket = UdpSocket::bind("10.244.1.12:4053").unwrap();
            socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
            socket.connect("10.96.0.53:53").unwrap();
            socket
        });
        let heard = || -> Result<String, io::ErrorKind> {
            let mut buffer = [0; 9];
            let outcome = socket.send(b"?").and_then(|_| socket.recv(&mut buffer));
            let length = outcome.map_err(|error| error.kind())?;
            Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
        };
        let check = |wanted: Result<&str, io::ErrorKind>, when: &str| {
            assert_eq!(
                heard().as_deref(),
                wanted.as_deref(),
                "{when}\n{}",
                run("conntrack", &["-L", "-p", "udp"])
            );
        };
        let silence = Err(io::ErrorKind::WouldBlock);
        let refused = Err(io::ErrorKind::ConnectionRefused);
        let (mut first, _) = backend();
        // The service range is not known: what no Service has is routed, and remembered untranslated.
        let mut nothing = complete(Vec::new());
        nothing.node = Some(NodePlan {
            service_cidrs: Vec::new(),
            ..node()
        });
        first.apply(&nothing).unwrap();
        check(silence, "before there is a Service");
        assert!(run("conntrack", &["-L", "-p", "udp"]).contains("dst=10.96.0.53"));
        first.apply(&changed(vec![resolver("dns", &[one])])).unwrap();
        check(Ok("one"), "a new Service");
        first.apply(&changed(vec![resolver("dns", &[one, two])])).unwrap();
        check(Ok("one"), "one endpoint more: a flow stays");
        first.apply(&changed(vec![resolver("dns", &[two])])).unwrap();
        check(Ok("two"), "its endpoint gone");
        first.apply(&changed(vec![resolver("dns", &[])])).unwrap();
        check(refused, "no endpoint left");
        first.apply(&changed(vec![resolver("dns", &[one])])).unwrap();
        check(Ok("one"), "live again");
        // While nobody watches, the endpoint goes.
        drop(first);
        let (mut second, _) = backend();
        let with = |plans: Vec<ServicePlan>| {
            let mut change = complete(plans);
            change.node.clone_from(&nothing.node);
            change
        };
        second.apply(&with(vec![resolver("dns", &[two])])).unwrap();
        check(Ok("two"), "after a restart");
        // Another Service takes the address over.
        let mut change = changed(vec![resolver("names", &[one])]);
        change.removed = removed(&["dns"]).removed;
        second.apply(&change).unwrap();
        check(Ok("one"), "another Service");
        second.apply(&removed(&["names"])).unwrap();
        check(silence, "no Service");
    });
}

#[test]
fn what_the_kernel_holds_is_compared_with_the_plan() {
    in_namespace(|| {
        let (mut backend, _) = backend();
        let plans = everything();
        let asked = |to: &str, protocol: Protocol, service: Option<&str>, live: bool| {
            let plan = service.and_then(|name| plans.iter().find(|plan| &*plan.service.name == name));
            let to: SocketAddr = to.parse().unwrap();
            let question = inspect::Question {
                packet: portolan_plan::Packet {
                    from: ip(if to.is_ipv4() { "198.51.100.7" } else { "fd00:51::7" }),
                    to,
                    protocol,
                },
                source: portolan_plan::SourceKind::Outside,
                plan,
                live,
            };
            inspect::inspect(&question, &node(), &NftOptions::default()).unwrap()
        };
        let tcp = Protocol::Tcp;
        assert!(
            asked("10.96.0.1:80", tcp, Some("web"), false).differences[0].contains("table ip portolan is not there")
        );
        backend.apply(&complete(plans.clone())).unwrap();
        for (to, protocol, service, live) in [
            ("10.96.0.1:80", tcp, Some("web"), false),
            ("203.0.113.1:80", tcp, Some("web"), false),
            ("172.18.0.1:30080", tcp, Some("web"), false),
            ("127.0.0.1:30080", tcp, Some("web"), false),
            ("[fd00:113::1]:80", tcp, Some("web6"), false),
            ("[fd00:18::1]:30080", tcp, Some("web6"), false),
            ("10.96.0.14:80", tcp, Some("sticky"), false),
            ("10.96.0.10:53", Protocol::Udp, Some("dns"), false),
            ("10.96.0.12:80", tcp, Some("none"), false),
            ("10.96.0.1:81", tcp, None, true),
            ("10.96.0.99:80", tcp, None, false),
            ("172.18.0.1:22", tcp, None, false),
            ("192.0.2.1:80", tcp, None, false),
        ] {
            let found = asked(to, protocol, service, live);
            assert_eq!(found.differences, Vec::<String>::new(), "{to}");
            assert_eq!(found.found.is_empty(), service.is_none(), "{to}: {found:?}");
        }
        let web = |wanted: &str| {
            let found = asked("10.96.0.1:80", tcp, Some("web"), false);
            assert!(
                found.differences.iter().any(|line| line.contains(wanted)),
                "{wanted}: {found:?}"
            );
            backend.apply(&complete(plans.clone())).unwrap();
        };
        let mut web = web;
        let nft = |text: &str| drop(run("nft", &[text]));
        nft("delete element ip portolan services { 10.96.0.1 . tcp . 80 }");
        web("map services has nothing for 10.96.0.1:80/tcp");
        nft("delete element ip portolan endpoints { 10.96.0.1 . tcp . 80 . 0x1 }");
        web("map endpoints has 10.244.1.5:8080 instead of 10.244.1.5:8080 10.244.2.5:8080");
        nft("add rule ip portolan postrouting accept");
        web("chain postrouting has other rules");
        nft("delete element ip portolan cluster-ips { 10.96.0.1 }");
        web("set cluster-ips lacks");
        nft(
            "delete element ip portolan services { 10.96.0.1 . tcp . 80 }; add element ip portolan services \
             { 10.96.0.1 . tcp . 80 comment \"default/rogue:http\" : goto affinity }",
        );
        web("gives 10.96.0.1:80/tcp to Service default/rogue:http");
    });
}
