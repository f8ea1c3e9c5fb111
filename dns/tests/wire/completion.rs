//! Completion of names through a pod's search list (CoreDNS's `autopath @kubernetes`).

use std::net::IpAddr;
use std::sync::Arc;

use hickory_proto::op::Message;
use portolan_dns::answer::{Answered, Client, Transport, Verdict, answer};
use portolan_dns::zone::config::Domain;
use portolan_dns::zone::policy::Autopath;
use portolan_dns::zone::{Policy, Snapshot};

use crate::fixture::{CLUSTER, config, query, said, zone};
use crate::live::{Live, Setup, Upstream};

fn pod(namespace: &str, name: &str, ips: &str, more: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: {namespace}}}\n\
         spec: {{containers: []{more}}}\nstatus: {{phase: Running, podIPs: [{ips}]}}\n"
    )
}

fn snapshot(search: &[&str]) -> Arc<Snapshot> {
    let yaml = [
        CLUSTER,
        &pod("shop", "client", "{ip: 10.244.1.50}, {ip: \"fd00:244:0:1::50\"}", ""),
        &pod("shop", "on-the-node", "{ip: 192.168.0.7}", ", hostNetwork: true"),
        &pod("shop", "one", "{ip: 10.244.1.51}", ""),
        &pod("default", "two", "{ip: 10.244.1.51}", ""),
    ]
    .concat();
    let mut config = config();
    config.policy = Arc::new(Policy {
        autopath: Some(Autopath {
            search: search.iter().map(|name| Domain::new(name).unwrap()).collect(),
        }),
        ..Policy::default()
    });
    zone(&yaml, config).reader().load_full()
}

/// What a client gets: the lines of the answer, or the names that are asked upstream in its place.
fn say(snapshot: &Snapshot, source: &str, question: &str) -> Vec<String> {
    let client = Client::new(Transport::Udp, source.parse::<IpAddr>().unwrap());
    let mut out = [0; 4096];
    match answer(&query(question).to_vec().unwrap(), snapshot, &client, &mut out) {
        Verdict::Answer(Answered { length, .. }) => {
            said(&Message::from_vec(&out[..length]).unwrap()).into_iter().collect()
        }
        Verdict::Forward(forward) => {
            let completion = forward.completion.unwrap();
            let otherwise = Message::from_vec(&completion.otherwise).unwrap();
            assert_eq!(said(&otherwise), ["NXDOMAIN".to_owned()].into());
            let name = |wire| format!("ask {}", portolan_dns::zone::names::text(wire));
            completion.targets.iter().map(|alias| name(&alias.target)).collect()
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn names_are_completed_for_the_pod_that_asks() {
    let zone = snapshot(&["node.example.com"]);
    let check = |source: &str, question: &str, expect: &[&str]| {
        assert_eq!(say(&zone, source, question), expect, "{source} {question}");
    };
    for source in ["10.244.1.50", "fd00:244:0:1::50", "::ffff:10.244.1.50"] {
        // What exists in the pod's own namespace needs no completion.
        check(
            source,
            "web.shop.svc A",
            &["web.shop.svc.cluster.local. 5 A 10.96.0.20"],
        );
        check(
            source,
            "nginx.default.shop.svc A",
            &[
                "nginx.default.shop.svc.cluster.local. 5 CNAME nginx.default.svc.cluster.local.",
                "nginx.default.svc.cluster.local. 5 A 10.244.1.6",
                "nginx.default.svc.cluster.local. 5 A 10.244.2.6",
            ],
        );
        // AAAA follows A to the same name, also where there is no AAAA.
        check(
            source,
            "kube-dns.kube-system.shop.svc AAAA",
            &[
                "NODATA behind the alias",
                "kube-dns.kube-system.shop.svc.cluster.local. 5 CNAME kube-dns.kube-system.svc.cluster.local.",
            ],
        );
        check(
            source,
            "web.shop.svc.shop.svc A",
            &[
                "web.shop.svc.cluster.local. 5 A 10.96.0.20",
                "web.shop.svc.shop.svc.cluster.local. 5 CNAME web.shop.svc.cluster.local.",
            ],
        );
        for type_ in ["A", "AAAA"] {
            check(
                source,
                &format!("www.Example.com.shop.svc {type_}"),
                &["ask www.Example.com.node.example.com.", "ask www.Example.com."],
            );
        }
    }
    // Other types, other places of the search list, other namespaces.
    check("10.244.1.50", "nginx.default.shop.svc SRV", &["NXDOMAIN"]);
    check("10.244.1.50", "www.example.com.svc A", &["NXDOMAIN"]);
    check("10.244.1.50", "www.example.com.default.svc A", &["NXDOMAIN"]);
    check("10.244.1.50", "shop.svc A", &["NODATA"]);
}

#[test]
fn whoever_is_not_one_pod_is_not_completed() {
    let zone = snapshot(&[]);
    // A process of the node, an address of two pods, a stranger.
    for source in ["192.168.0.7", "10.244.1.51", "10.244.1.99", "127.0.0.1"] {
        assert_eq!(
            say(&zone, source, "www.example.com.shop.svc A"),
            ["NXDOMAIN"],
            "{source}"
        );
    }
}

#[test]
fn completion_is_one_round_for_the_client() {
    let upstream = Upstream::start();
    let yaml = [CLUSTER, &pod("shop", "client", "{ip: 127.0.0.1}", "")].concat();
    let mut config = config();
    config.policy = Arc::new(Policy {
        autopath: Some(Autopath {
            search: vec![Domain::new("none.example.com").unwrap()],
        }),
        ..Policy::default()
    });
    let setup = Setup {
        upstreams: vec![upstream.address],
        ..Setup::default()
    };
    let live = Live::start(&zone(&yaml, config), setup);
    for asked in [Live::udp, Live::tcp] {
        let reply = asked(&live, &query("www.example.org.shop.svc A"));
        let lines: Vec<String> = said(&reply).into_iter().collect();
        assert_eq!(
            lines,
            [
                "www.example.org.none.example.com. 60 A 192.0.2.1",
                "www.example.org.shop.svc.cluster.local. 5 CNAME www.example.org.none.example.com.",
            ]
        );
        // `none` makes the upstream say NXDOMAIN, whatever follows: the answer is that of the first name.
        let reply = asked(&live, &query("none.shop.svc A"));
        assert_eq!(said(&reply), ["NXDOMAIN".to_owned()].into());
        assert_eq!(reply.authorities[0].name.to_string(), "cluster.local.");
    }
    for name in ["none.none.example.com.", "none."] {
        assert_eq!(upstream.count(name), 1, "{name} is asked, once");
    }
}
