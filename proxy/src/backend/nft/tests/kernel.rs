//! On the kernel of this machine, as root, each test in a network namespace of its own.

use std::net::UdpSocket;
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use super::namespace::{Pod, ask, be_the_node, echo_source, in_namespace, run, server};
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
        let none = service("none", &[]).protocol(Protocol::Udp).at(
            FrontendKind::ClusterIp,
            Some("10.96.0.12"),
            53,
            Routes::same(Verdict::Reject),
        );
        backend.apply(&complete(vec![none.0])).unwrap();
        let socket = UdpSocket::bind("172.18.0.1:0").unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
        socket.connect("10.96.0.12:53").unwrap();
        // A sender on the node itself is told by the call that sends or by the next one.
        let first = socket.send(b"?").map_err(|error| error.kind());
        let then = socket.recv(&mut [0; 9]).map_err(|error| error.kind());
        assert_eq!(then, Err(io::ErrorKind::ConnectionRefused), "after {first:?}");
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
