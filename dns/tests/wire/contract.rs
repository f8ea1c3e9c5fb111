//! Every row of the cluster DNS contract: the DNS specification 1.1.0 for Kubernetes, then CoreDNS where it is silent.
//! Where the answer differs from CoreDNS on purpose the row says so.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};

use hickory_proto::op::{Message, ResponseCode};
use portolan_dns::answer::Transport;
use portolan_dns::zone::Zone;
use portolan_dns::zone::config::PodMode;

use crate::fixture::{CLUSTER, config, query, said, with_edns, zone};
use crate::live::{Live, Setup, ask_tcp, ask_udp};
use crate::protocol::ask;

/// Questions that CoreDNS answers in another way. The row says which way is right, and mostly why.
const DIFFERENT: &[&str] = &[
    "alias.shop.svc AAAA",
    "dangling.shop.svc A",
    "selfish.shop.svc A",
    // The same but for the letter case of an additional record's owner.
    "_HTTP._tcp.Web.shop.svc SRV",
    "x.10-244-1-6.shop.pod A",
    "_._tcp.dual.shop.svc SRV",
    "http.tcp.web.shop.svc SRV",
    "_http._tcp.web.shop.svc A",
    // The serial, and the server below in-addr.arpa.
    "cluster.local. SOA",
    "in-addr.arpa. SOA",
    // CoreDNS names the addresses of the machine that it runs on.
    "cluster.local. NS",
    "in-addr.arpa. NS",
    "ns.dns A",
    "cluster.local. TXT",
    "svc TXT",
    "shop.svc TXT",
    "dns A",
    "dns-version A",
    "_tcp.web.shop.svc A",
    // CoreDNS asks upstream, and there is none.
    "10.0.96.10.in-addr.arpa. A",
];

/// Where the server is that answers a table: ours on loopback, or the one that `DNS_SUBJECT` names (`coredns=ADDR:PORT` or
/// `portolan=ADDR:PORT`), which must serve `cluster.yaml` with a TTL of 5. So the table says what CoreDNS does as well.
/// `cargo test -p portolan-lab --test contract` starts both on one API server.
enum Subject {
    Ours(Live),
    OursElsewhere(SocketAddr),
    Theirs(SocketAddr),
}

impl Subject {
    fn of(zone: &Zone) -> Self {
        match std::env::var("DNS_SUBJECT") {
            Ok(subject) => match subject.split_once('=') {
                Some(("coredns", address)) => Self::Theirs(address.parse().unwrap()),
                Some(("portolan", address)) => Self::OursElsewhere(address.parse().unwrap()),
                _ => panic!("DNS_SUBJECT is coredns=ADDR:PORT or portolan=ADDR:PORT"),
            },
            Err(_) => Self::Ours(Live::start(zone, Setup::default())),
        }
    }

    fn address(&self) -> SocketAddr {
        match self {
            Self::Ours(live) => live.address,
            Self::OursElsewhere(address) | Self::Theirs(address) => *address,
        }
    }
}

/// Asks `NAME TYPE` over UDP and TCP and compares what is said. `FORWARD` means that the question goes upstream.
fn check(subject: &Subject, question: &str, expect: &[&str]) {
    if matches!((subject, expect), (Subject::Theirs(_), ["FORWARD"])) {
        // What lies upstream is no matter of this table. CoreDNS does not even reply to some of them.
        return;
    }
    let sent = with_edns(query(question), 1232);
    let bytes = sent.to_vec().unwrap();
    let owner = sent.queries[0].name().to_string();
    let expect: BTreeSet<String> = expect.iter().map(|line| line.replace('@', &owner)).collect();
    for reply in [ask_udp(subject.address(), &bytes), ask_tcp(subject.address(), &bytes)] {
        let said = said(&reply);
        match subject {
            // A serial is the time of the last change: known only where the test says what time it is.
            Subject::OursElsewhere(_) if question.ends_with(" SOA") => {}
            Subject::Ours(_) | Subject::OursElsewhere(_) => check_ours(&sent, &reply, &said, &expect),
            Subject::Theirs(_) => {
                let differs = DIFFERENT.contains(&question);
                assert_eq!(said != expect, differs, "{question}: {said:?}; ours {expect:?}");
            }
        }
    }
}

fn check_ours(sent: &Message, reply: &Message, said: &BTreeSet<String>, expect: &BTreeSet<String>) {
    let question = &sent.queries[0];
    assert_eq!(reply.queries, sent.queries, "{question}");
    assert_eq!(
        reply.queries[0].name().to_ascii(),
        question.name().to_ascii(),
        "letter case"
    );
    assert_eq!(reply.metadata.id, 4711);
    let flags = reply.metadata;
    assert!(
        flags.recursion_desired && flags.recursion_available && !flags.truncation,
        "{question}"
    );
    let edns = reply.edns.as_ref().unwrap();
    assert_eq!(edns.max_payload(), 1232, "{question}");
    if expect.contains("FORWARD") {
        // The server has no upstream, and says so in an extended error.
        let text: Vec<String> = b"no upstream".iter().map(u8::to_string).collect();
        let options = format!("{:?}", edns.options());
        assert!(options.contains(&text.join(", ")), "{question}: {said:?}");
        return;
    }
    assert_eq!(said, expect, "{question}");
    let failed = matches!(flags.response_code, ResponseCode::Refused | ResponseCode::ServFail);
    assert_eq!(flags.authoritative, !failed, "{question}");
}

fn check_all(rows: &[(&str, &[&str])]) {
    let subject = Subject::of(&zone(CLUSTER, config()));
    let failed = |row: &&(&str, &[&str])| catch_unwind(AssertUnwindSafe(|| check(&subject, row.0, row.1))).is_err();
    let failed: Vec<_> = rows.iter().filter(failed).map(|(question, _)| *question).collect();
    assert!(failed.is_empty(), "{failed:#?}");
}

#[test]
fn cluster_ips() {
    check_all(&[
        ("web.shop.svc A", &["@ 5 A 10.96.0.20"]),
        ("web.shop.svc AAAA", &["NODATA"]),
        ("web.shop.svc MX", &["NODATA"]),
        ("web.shop.svc ANY", &["NODATA"]),
        ("web.shop.svc TXT", &["NODATA"]),
        ("dual.shop.svc A", &["@ 5 A 10.96.0.30"]),
        ("dual.shop.svc AAAA", &["@ 5 AAAA fd00:96::30"]),
        ("six.shop.svc A", &["NODATA"]),
        ("six.shop.svc AAAA", &["@ 5 AAAA fd00:96::40"]),
        ("gone.shop.svc A", &["NXDOMAIN"]),
        ("web.default.svc A", &["NXDOMAIN"]),
        ("web.nowhere.svc A", &["NXDOMAIN"]),
        ("web.shop A", &["NXDOMAIN"]),
        // Endpoints of a ClusterIP Service have names too, as in CoreDNS; only the ready ones.
        ("10-244-1-20.web.shop.svc A", &["@ 5 A 10.244.1.20"]),
        ("10-244-2-20.web.shop.svc A", &["NXDOMAIN"]),
        ("10-244-1-020.web.shop.svc A", &["NXDOMAIN"]),
        ("a.b.c.web.shop.svc A", &["NXDOMAIN"]),
        // Wildcards are gone since version 1.0.0 of the specification.
        ("*.shop.svc A", &["NXDOMAIN"]),
        ("any.shop.svc SRV", &["NXDOMAIN"]),
    ]);
}

#[test]
fn letter_case_of_the_question_is_kept() {
    check_all(&[
        (
            "wEb.Shop.SVC.Cluster.LOCAL. A",
            &["wEb.Shop.SVC.Cluster.LOCAL. 5 A 10.96.0.20"],
        ),
        ("nOpe.shop.svc A", &["NXDOMAIN"]),
        (
            "WEB-0.nginx.default.svc A",
            &["WEB-0.nginx.default.svc.cluster.local. 5 A 10.244.1.6"],
        ),
        (
            "_HTTP._tcp.Web.shop.svc SRV",
            &[
                "_HTTP._tcp.Web.shop.svc.cluster.local. 5 SRV 0 100 80 web.shop.svc.cluster.local.",
                "+ Web.shop.svc.cluster.local. 5 A 10.96.0.20",
            ],
        ),
    ]);
}

#[test]
fn srv_of_cluster_ips() {
    let glue = "+ web.shop.svc.cluster.local. 5 A 10.96.0.20";
    check_all(&[
        (
            "_http._tcp.web.shop.svc SRV",
            &["@ 5 SRV 0 100 80 web.shop.svc.cluster.local.", glue],
        ),
        (
            "web.shop.svc SRV",
            &[
                "@ 5 SRV 0 50 80 web.shop.svc.cluster.local.",
                "@ 5 SRV 0 50 443 web.shop.svc.cluster.local.",
                glue,
            ],
        ),
        // Ports times addresses share the weight, as in CoreDNS.
        (
            "dual.shop.svc SRV",
            &[
                "@ 5 SRV 0 50 5432 dual.shop.svc.cluster.local.",
                "+ dual.shop.svc.cluster.local. 5 A 10.96.0.30",
                "+ dual.shop.svc.cluster.local. 5 AAAA fd00:96::30",
            ],
        ),
        // Two ports of one number are one record.
        (
            "kube-dns.kube-system.svc SRV",
            &[
                "@ 5 SRV 0 50 53 kube-dns.kube-system.svc.cluster.local.",
                "+ kube-dns.kube-system.svc.cluster.local. 5 A 10.96.0.10",
            ],
        ),
        ("_http._udp.web.shop.svc SRV", &["NXDOMAIN"]),
        ("_ftp._tcp.web.shop.svc SRV", &["NXDOMAIN"]),
        ("_tcp._http.web.shop.svc SRV", &["NXDOMAIN"]),
        ("_._tcp.dual.shop.svc SRV", &["NXDOMAIN"]),
        // CoreDNS answers the next two: it takes names without underscores, and A for a port's name.
        ("http.tcp.web.shop.svc SRV", &["NXDOMAIN"]),
        ("_http._tcp.web.shop.svc A", &["NODATA"]),
    ]);
}

#[test]
fn headless_services() {
    check_all(&[
        ("nginx.default.svc A", &["@ 5 A 10.244.1.6", "@ 5 A 10.244.2.6"]),
        ("nginx.default.svc AAAA", &["@ 5 AAAA fd00:244:0:1::6"]),
        ("web-0.nginx.default.svc A", &["@ 5 A 10.244.1.6"]),
        ("web-0.nginx.default.svc AAAA", &["@ 5 AAAA fd00:244:0:1::6"]),
        ("web-1.nginx.default.svc AAAA", &["NODATA"]),
        ("web-2.nginx.default.svc A", &["NXDOMAIN"]),
        // With a hostname the dashed form does not exist.
        ("10-244-1-6.nginx.default.svc A", &["NXDOMAIN"]),
        ("plain.default.svc A", &["@ 5 A 10.244.1.30", "@ 5 A 10.244.2.30"]),
        ("10-244-1-30.plain.default.svc A", &["@ 5 A 10.244.1.30"]),
        ("fd00-244-0-1--0.plain.default.svc AAAA", &["@ 5 AAAA fd00:244:0:1::"]),
        ("fd00-244-0-1--0.plain.default.svc A", &["NODATA"]),
        ("waiting.default.svc A", &["NXDOMAIN"]),
        ("waiting.default.svc SRV", &["NXDOMAIN"]),
        ("_peer._tcp.waiting.default.svc SRV", &["NXDOMAIN"]),
        ("mongo-0.waiting.default.svc A", &["NXDOMAIN"]),
        ("peers.default.svc A", &["@ 5 A 10.244.1.40"]),
        ("mongo-0.peers.default.svc A", &["@ 5 A 10.244.1.40"]),
        ("portless.default.svc A", &["@ 5 A 10.244.3.9"]),
        ("portless.default.svc SRV", &["NODATA"]),
    ]);
}

#[test]
fn srv_of_headless_services() {
    let records = [
        "@ 5 SRV 0 33 8080 web-0.nginx.default.svc.cluster.local.",
        "@ 5 SRV 0 33 8080 web-1.nginx.default.svc.cluster.local.",
        "+ web-0.nginx.default.svc.cluster.local. 5 A 10.244.1.6",
        "+ web-0.nginx.default.svc.cluster.local. 5 AAAA fd00:244:0:1::6",
        "+ web-1.nginx.default.svc.cluster.local. 5 A 10.244.2.6",
    ];
    check_all(&[
        ("_web._tcp.nginx.default.svc SRV", &records),
        ("nginx.default.svc SRV", &records),
        (
            "_peer._tcp.peers.default.svc SRV",
            &[
                "@ 5 SRV 0 100 27017 mongo-0.peers.default.svc.cluster.local.",
                "+ mongo-0.peers.default.svc.cluster.local. 5 A 10.244.1.40",
            ],
        ),
        // The address in two slices counts twice for the weight, and is one record: 100 / 4.
        (
            "plain.default.svc SRV",
            &[
                "@ 5 SRV 0 25 9042 10-244-1-30.plain.default.svc.cluster.local.",
                "@ 5 SRV 0 25 9042 10-244-2-30.plain.default.svc.cluster.local.",
                "@ 5 SRV 0 25 9042 fd00-244-0-1--0.plain.default.svc.cluster.local.",
                "+ 10-244-1-30.plain.default.svc.cluster.local. 5 A 10.244.1.30",
                "+ 10-244-2-30.plain.default.svc.cluster.local. 5 A 10.244.2.30",
                "+ fd00-244-0-1--0.plain.default.svc.cluster.local. 5 AAAA fd00:244:0:1::",
            ],
        ),
    ]);
}

#[test]
fn aliases() {
    let dangling = "@ 5 CNAME gone.shop.svc.cluster.local.";
    check_all(&[
        ("external.shop.svc CNAME", &["@ 5 CNAME database.example.com."]),
        ("external.shop.svc A", &["FORWARD"]),
        ("external.shop.svc SRV", &["FORWARD"]),
        (
            "alias.shop.svc A",
            &[
                "@ 5 CNAME web.shop.svc.cluster.local.",
                "web.shop.svc.cluster.local. 5 A 10.96.0.20",
            ],
        ),
        (
            "alias-of-alias.shop.svc A",
            &[
                "@ 5 CNAME alias.shop.svc.cluster.local.",
                "alias.shop.svc.cluster.local. 5 CNAME web.shop.svc.cluster.local.",
                "web.shop.svc.cluster.local. 5 A 10.96.0.20",
            ],
        ),
        // CoreDNS loses the alias in the next two.
        (
            "alias.shop.svc AAAA",
            &["@ 5 CNAME web.shop.svc.cluster.local.", "NODATA behind the alias"],
        ),
        ("dangling.shop.svc A", &[dangling, "NXDOMAIN"]),
        ("selfish.shop.svc A", &["SERVFAIL"]),
        ("numeric.shop.svc A", &["NXDOMAIN"]),
        ("_http._tcp.external.shop.svc SRV", &["NXDOMAIN"]),
    ]);
}

#[test]
fn names_of_addresses() {
    check_all(&[
        (
            "10.0.96.10.in-addr.arpa. PTR",
            &["@ 5 PTR kube-dns.kube-system.svc.cluster.local."],
        ),
        (
            "0.3.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.6.9.0.0.0.0.d.f.ip6.arpa. PTR",
            &["@ 5 PTR dual.shop.svc.cluster.local."],
        ),
        (
            "6.1.244.10.in-addr.arpa. PTR",
            &["@ 5 PTR web-0.nginx.default.svc.cluster.local."],
        ),
        (
            "30.1.244.10.in-addr.arpa. PTR",
            &["@ 5 PTR 10-244-1-30.plain.default.svc.cluster.local."],
        ),
        (
            "20.1.244.10.in-addr.arpa. PTR",
            &["@ 5 PTR 10-244-1-20.web.shop.svc.cluster.local."],
        ),
        // CoreDNS says NXDOMAIN for other types, and forgets to answer for an endpoint without a Service.
        ("10.0.96.10.in-addr.arpa. A", &["NODATA"]),
        ("9.9.244.10.in-addr.arpa. PTR", &["FORWARD"]),
        ("1.2.0.192.in-addr.arpa. PTR", &["FORWARD"]),
        ("96.10.in-addr.arpa. PTR", &["FORWARD"]),
    ]);
    let mut config = config();
    config.set_fallthrough(false);
    let subject = Subject::Ours(Live::start(&zone(CLUSTER, config), Setup::default()));
    check(&subject, "1.2.0.192.in-addr.arpa. PTR", &["NXDOMAIN"]);
    check(&subject, "96.10.in-addr.arpa. PTR", &["NODATA"]);
}

#[test]
fn the_zone_itself() {
    let soa = "5 SOA ns.dns.cluster.local. hostmaster.cluster.local. 2 7200 1800 86400 5";
    let glue = "+ kube-dns.kube-system.svc.cluster.local. 5 A 10.96.0.10";
    check_all(&[
        ("cluster.local. SOA", &[&format!("@ {soa}")]),
        (
            "cluster.local. NS",
            &["@ 5 NS kube-dns.kube-system.svc.cluster.local.", glue],
        ),
        ("cluster.local. A", &["NODATA"]),
        ("in-addr.arpa. SOA", &[&format!("@ {soa}")]),
        (
            "in-addr.arpa. NS",
            &["@ 5 NS kube-dns.kube-system.svc.cluster.local.", glue],
        ),
        ("ns.dns A", &["@ 5 A 10.96.0.10"]),
        ("ns.dns AAAA", &["NODATA"]),
        ("dns-version TXT", &["@ 28800 TXT 1.1.0"]),
        ("web.shop.svc AXFR", &["REFUSED"]),
        ("cluster.local. AXFR", &["REFUSED"]),
        // CoreDNS says NXDOMAIN for names that have others below them, when asked for TXT, and for `dns`.
        ("cluster.local. TXT", &["NODATA"]),
        ("svc TXT", &["NODATA"]),
        ("shop.svc TXT", &["NODATA"]),
        ("dns A", &["NODATA"]),
        ("dns-version A", &["NODATA"]),
        ("svc A", &["NODATA"]),
        ("pod A", &["NODATA"]),
        ("shop.svc A", &["NODATA"]),
        ("empty.svc A", &["NODATA"]),
        ("nowhere.svc A", &["NXDOMAIN"]),
        ("_tcp.web.shop.svc A", &["NODATA"]),
        ("_udp.web.shop.svc A", &["NXDOMAIN"]),
        ("www A", &["NXDOMAIN"]),
        ("web.dns A", &["NXDOMAIN"]),
        ("www.example.com. A", &["FORWARD"]),
        ("local. SOA", &["FORWARD"]),
        (". NS", &["FORWARD"]),
    ]);
}

#[test]
fn pods_by_address() {
    check_all(&[
        ("10-244-1-6.shop.pod A", &["@ 5 A 10.244.1.6"]),
        ("10-244-1-6.shop.pod AAAA", &["NODATA"]),
        ("fd00-244-0-1--6.shop.pod AAAA", &["@ 5 AAAA fd00:244:0:1::6"]),
        ("10-244-1-6.nowhere.pod A", &["NXDOMAIN"]),
        ("web.shop.pod A", &["NXDOMAIN"]),
        ("x.10-244-1-6.shop.pod A", &["NXDOMAIN"]),
        ("shop.pod A", &["NODATA"]),
    ]);
    let mut disabled = config();
    disabled.set_pods(PodMode::Disabled);
    let subject = Subject::Ours(Live::start(&zone(CLUSTER, disabled), Setup::default()));
    check(&subject, "10-244-1-6.shop.pod A", &["NXDOMAIN"]);
}

#[test]
fn pods_that_exist() {
    let pod = |namespace: &str, name: &str, ips: &str, phase: &str| {
        format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: {namespace}}}\n\
             status: {{phase: {phase}, podIPs: [{ips}]}}\n"
        )
    };
    let yaml = [
        CLUSTER,
        &pod("shop", "a", "{ip: 10.244.1.6}, {ip: \"fd00:244:0:1::6\"}", "Running"),
        &pod("shop", "b", "{ip: 10.244.1.7}", "Succeeded"),
    ]
    .concat();
    let mut verified = config();
    verified.set_pods(PodMode::Verified);
    let subject = Subject::Ours(Live::start(&zone(&yaml, verified), Setup::default()));
    check(&subject, "10-244-1-6.shop.pod A", &["@ 5 A 10.244.1.6"]);
    // CoreDNS knows the first address only.
    check(&subject, "fd00-244-0-1--6.shop.pod AAAA", &["@ 5 AAAA fd00:244:0:1::6"]);
    check(&subject, "10-244-1-6.shop.pod AAAA", &["NODATA"]);
    check(&subject, "10-244-1-6.default.pod A", &["NXDOMAIN"]);
    check(&subject, "10-244-1-7.shop.pod A", &["NXDOMAIN"]);
    check(&subject, "10-244-9-9.shop.pod A", &["NXDOMAIN"]);
}

#[test]
fn several_zones_hold_the_same_names() {
    let mut config = portolan_dns::ZoneConfig::new(&["cluster.local".into(), "k8s.Example.com".into()]).unwrap();
    config.set_ttl(30, 30);
    let subject = Subject::Ours(Live::start(&zone(CLUSTER, config), Setup::default()));
    check(&subject, "web.shop.svc A", &["@ 30 A 10.96.0.20"]);
    check(&subject, "web.shop.svc.k8s.example.com. A", &["@ 30 A 10.96.0.20"]);
    check(&subject, "gone.shop.svc.k8s.example.com. A", &["NXDOMAIN"]);
    check(&subject, "example.com. A", &["FORWARD"]);
    check(
        &subject,
        "10.0.96.10.in-addr.arpa. PTR",
        &["@ 30 PTR kube-dns.kube-system.svc.cluster.local."],
    );
}

#[test]
fn nothing_is_said_before_the_first_sync() {
    let zone = Zone::new(config(), 1);
    let subject = Subject::Ours(Live::start(&zone, Setup::default()));
    for name in ["web.shop.svc A", "cluster.local. SOA", "10.0.96.10.in-addr.arpa. PTR"] {
        check(&subject, name, &["SERVFAIL"]);
        let reply = ask(&zone.reader().load(), &with_edns(query(name), 1232), Transport::Udp);
        let options = format!("{:?}", reply.edns.unwrap().options());
        let text: Vec<u8> = [&14u16.to_be_bytes()[..], b"not synced"].concat();
        assert!(options.contains(&format!("{text:?}")), "{options}");
    }
    check(&subject, "www.example.com. A", &["FORWARD"]);
}
