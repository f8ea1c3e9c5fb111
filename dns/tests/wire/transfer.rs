//! Zone transfers: a transfer holds what queries answer.

use std::collections::BTreeSet;
use std::io::Write;
use std::sync::Arc;

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::rdata::SOA;
use hickory_proto::rr::{RData, Record, RecordType};
use portolan_dns::zone::config::{Domain, PodMode};
use portolan_dns::zone::policy::Transfer;
use portolan_dns::zone::{Policy, ZoneConfig};

use crate::fixture::{CLUSTER, config, query, zone};
use crate::live::{Live, Setup, connect, framed, read_tcp};

fn open(mut config: ZoneConfig, zones: &[&str]) -> ZoneConfig {
    let zones = zones.iter().map(|zone| Domain::new(zone).unwrap()).collect();
    config.policy = Arc::new(Policy {
        transfer: vec![Transfer {
            zones,
            to: vec!["127.0.0.0/8".parse().unwrap()],
        }],
        ..Policy::default()
    });
    config
}

/// Every record of a transfer, the two SOA records left out; `None` when it is refused.
fn transfer(live: &Live, sent: &Message) -> Option<(Vec<Record>, usize)> {
    let mut stream = connect(live.address);
    stream.write_all(&framed(&sent.to_vec().unwrap())).unwrap();
    let (mut records, mut messages) = (Vec::new(), 0);
    loop {
        let message = read_tcp(&mut stream).unwrap();
        if message.metadata.response_code == ResponseCode::Refused {
            return None;
        }
        messages += 1;
        assert!(message.metadata.authoritative);
        records.extend(message.answers);
        let soa = |record: &Record| record.record_type() == RecordType::SOA;
        if records.len() > 1 && soa(&records[records.len() - 1]) {
            assert_eq!(records.first(), records.last(), "it begins and ends with the SOA");
            records.pop();
            records.remove(0);
            return Some((records, messages));
        }
    }
}

fn text(record: &Record) -> String {
    format!(
        "{} {} {} {}",
        record.name,
        record.ttl,
        record.record_type(),
        record.data
    )
}

fn ask(live: &Live, name: &str, type_: RecordType) -> Vec<Record> {
    let reply = live.tcp(&query(&format!("{name} {type_}")));
    let owned = |record: &Record| record.name.to_string() == name;
    reply.answers.into_iter().filter(owned).collect()
}

#[test]
fn a_transfer_holds_what_queries_answer() {
    let pod = "---\napiVersion: v1\nkind: Pod\nmetadata: {name: a, namespace: shop}\n\
        status: {phase: Running, podIPs: [{ip: 10.244.1.66}, {ip: \"fd00:244:0:1::\"}]}\n";
    let mut config = config();
    config.set_pods(PodMode::Verified);
    let live = Live::start(&zone(&[CLUSTER, pod].concat(), open(config, &[])), Setup::default());
    for (apex, least) in [("cluster.local.", 45), ("in-addr.arpa.", 8), ("ip6.arpa.", 3)] {
        let (records, _) = transfer(&live, &query(&format!("{apex} AXFR"))).unwrap();
        assert!(records.len() >= least, "{apex}: {}", records.len());
        let all: BTreeSet<String> = records.iter().map(text).collect();
        assert_eq!(all.len(), records.len(), "{apex}: no record comes twice");
        // What is transferred is what is answered.
        let names: BTreeSet<String> = records.iter().map(|record| record.name.to_string()).collect();
        let mut answered = BTreeSet::new();
        for name in &names {
            for type_ in [
                RecordType::A,
                RecordType::AAAA,
                RecordType::SRV,
                RecordType::TXT,
                RecordType::NS,
                RecordType::PTR,
                RecordType::CNAME,
            ] {
                answered.extend(ask(&live, name, type_).iter().map(text));
            }
        }
        assert_eq!(answered, all, "{apex}");
    }
    // And what is answered is transferred, names of pods by any address aside.
    let (records, _) = transfer(&live, &query("cluster.local. AXFR")).unwrap();
    let all: BTreeSet<String> = records.iter().map(text).collect();
    for expect in [
        "cluster.local. 5 NS kube-dns.kube-system.svc.cluster.local.",
        "dns-version.cluster.local. 28800 TXT 1.1.0",
        "ns.dns.cluster.local. 5 A 10.96.0.10",
        "web.shop.svc.cluster.local. 5 A 10.96.0.20",
        "_http._tcp.web.shop.svc.cluster.local. 5 SRV 0 100 80 web.shop.svc.cluster.local.",
        "web-0.nginx.default.svc.cluster.local. 5 AAAA fd00:244:0:1::6",
        "10-244-1-20.web.shop.svc.cluster.local. 5 A 10.244.1.20",
        "external.shop.svc.cluster.local. 5 CNAME database.example.com.",
        "10-244-1-66.shop.pod.cluster.local. 5 A 10.244.1.66",
        "fd00-244-0-1--0.shop.pod.cluster.local. 5 AAAA fd00:244:0:1::",
    ] {
        assert!(all.contains(expect), "{expect}: {all:#?}");
    }
}

#[test]
fn only_peers_get_zones_and_only_whole_zones() {
    let closed = Live::start(&zone(CLUSTER, config()), Setup::default());
    assert!(transfer(&closed, &query("cluster.local. AXFR")).is_none());
    let live = Live::start(&zone(CLUSTER, open(config(), &["cluster.local"])), Setup::default());
    assert!(transfer(&live, &query("Cluster.local. AXFR")).is_some());
    assert!(transfer(&live, &query("in-addr.arpa. AXFR")).is_none());
    assert!(transfer(&live, &query("shop.svc AXFR")).is_none());
    assert!(transfer(&live, &query("example.com. AXFR")).is_none());
    let udp = live.udp(&query("cluster.local. AXFR"));
    assert_eq!(udp.metadata.response_code, ResponseCode::Refused);
}

#[test]
fn ixfr_says_current_or_gives_all() {
    let live = Live::start(&zone(CLUSTER, open(config(), &[])), Setup::default());
    let serial = live.shared.zone.load().serial;
    let with_serial = |serial| {
        let mut message = query("cluster.local. IXFR");
        let apex = message.queries[0].name().clone();
        let soa = SOA::new(apex.clone(), apex.clone(), serial, 0, 0, 0, 0);
        message.add_authority(Record::from_rdata(apex, 0, RData::SOA(soa)));
        message
    };
    let current = live.tcp(&with_serial(serial));
    assert_eq!(current.answers.len(), 1);
    assert_eq!(current.answers[0].record_type(), RecordType::SOA);
    let (all, _) = transfer(&live, &with_serial(serial - 1)).unwrap();
    let (whole, _) = transfer(&live, &query("cluster.local. AXFR")).unwrap();
    assert_eq!(all, whole);
    // Over UDP the SOA alone sends the client to TCP.
    let udp = live.udp(&with_serial(serial - 1));
    assert_eq!(
        (udp.answers.len(), udp.metadata.response_code),
        (1, ResponseCode::NoError)
    );
}

#[test]
fn a_large_zone_is_several_messages() {
    let endpoints: Vec<_> = (0..5000)
        .map(|i| {
            format!(
                "- {{addresses: [10.{}.{}.{}]}}",
                100 + i / 62_500,
                i / 250 % 250,
                i % 250 + 1
            )
        })
        .collect();
    let yaml = format!(
        "{CLUSTER}---\napiVersion: v1\nkind: Service\nmetadata: {{name: large, namespace: default}}\n\
         spec: {{clusterIP: None, clusterIPs: [None], ports: [{{name: web, port: 80}}]}}\n---\n\
         apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\naddressType: IPv4\n\
         metadata: {{name: large-1, namespace: default, labels: {{kubernetes.io/service-name: large}}}}\n\
         ports: [{{name: web, port: 80}}]\nendpoints:\n{}\n",
        endpoints.join("\n")
    );
    let live = Live::start(&zone(&yaml, open(config(), &[])), Setup::default());
    let (records, messages) = transfer(&live, &query("cluster.local. AXFR")).unwrap();
    // Addresses, each endpoint's own name, and SRV records of two names.
    assert!(
        records.len() > 20_000 && messages > 1,
        "{} in {messages}",
        records.len()
    );
}
