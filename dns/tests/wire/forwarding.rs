//! Names that are not ours: what upstreams say reaches the client, and what they do wrong does not.

use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use crate::fixture::{CLUSTER, config, query, said, with_edns, zone};
use crate::live::{Live, Setup, Upstream};

fn forwarding_to(upstreams: &[SocketAddr]) -> Live {
    Live::start(
        &zone(CLUSTER, config()),
        Setup {
            upstreams: upstreams.to_vec(),
            ..Setup::default()
        },
    )
}

#[test]
fn answers_of_upstreams_are_given_and_kept() {
    let upstream = Upstream::start();
    let live = forwarding_to(&[upstream.address]);
    for name in ["www.example.com.", "WWW.example.com.", "www.EXAMPLE.com."] {
        let reply = live.udp(&with_edns(query(&format!("{name} A")), 1232));
        assert_eq!(reply.queries[0].name().to_ascii(), name, "the case of the question");
        assert_eq!(reply.metadata.id, 4711);
        let flags = reply.metadata;
        assert!(flags.recursion_available && flags.recursion_desired && !flags.authoritative);
        assert_eq!(reply.answers[0].data.to_string(), "192.0.2.1");
        assert!((50..=60).contains(&reply.answers[0].ttl));
        assert_eq!(reply.edns.unwrap().max_payload(), 1232);
    }
    assert_eq!(upstream.count("www.example.com."), 1, "the others came from the cache");
    assert_eq!(live.tcp(&query("www.example.com. A")).answers.len(), 1);
    let none = live.udp(&query("none.example.com. A"));
    assert_eq!(said(&none), ["NXDOMAIN".to_owned()].into());
    assert_eq!(none.authorities[0].ttl, 7, "the SOA's minimum (RFC 2308)");
    live.tcp(&query("none.example.com. A"));
    assert_eq!(upstream.count("none.example.com."), 1);
    // A type without records and without SOA may not be kept.
    live.udp(&query("www.example.com. MX"));
    live.udp(&query("www.example.com. MX"));
    assert_eq!(upstream.count("www.example.com."), 3);
}

#[test]
fn cut_answers_are_fetched_over_tcp() {
    let upstream = Upstream::start();
    let live = forwarding_to(&[upstream.address]);
    let reply = live.udp(&query("cut.example.com. A"));
    assert!(!reply.metadata.truncation);
    assert_eq!(reply.answers.len(), 1);
}

#[test]
fn forged_answers_are_passed_over() {
    let upstream = Upstream::start();
    let live = forwarding_to(&[upstream.address]);
    let reply = live.udp(&query("forged.example.com. A"));
    assert_eq!(reply.answers[0].data.to_string(), "192.0.2.1");
}

#[test]
fn a_dead_upstream_costs_a_moment() {
    let dead = UdpSocket::bind("127.0.0.1:0").unwrap();
    let closed = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let upstream = Upstream::start();
    let live = forwarding_to(&[dead.local_addr().unwrap(), closed, upstream.address]);
    let begun = Instant::now();
    assert_eq!(live.udp(&query("www.example.com. A")).answers.len(), 1);
    // Not a measurement: without the second query it would take two seconds.
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
}

#[test]
fn a_better_answer_is_waited_for() {
    let (failing, upstream) = (Upstream::start(), Upstream::start());
    let live = forwarding_to(&[failing.address, upstream.address]);
    // Both say SERVFAIL: so does the reply, and each was asked once.
    assert_eq!(
        said(&live.udp(&query("servfail.example.com. A"))),
        ["SERVFAIL".to_owned()].into()
    );
    assert_eq!(failing.count("servfail.example.com."), 1);
    assert_eq!(upstream.count("servfail.example.com."), 1);
}

#[test]
fn many_askers_are_one_query() {
    let upstream = Upstream::start();
    let live = forwarding_to(&[upstream.address]);
    std::thread::scope(|scope| {
        for _ in 0..20 {
            scope.spawn(|| assert_eq!(live.udp(&query("slow.example.com. A")).answers.len(), 1));
        }
    });
    assert_eq!(upstream.count("slow.example.com."), 1);
}

#[test]
fn aliases_lead_upstream() {
    let upstream = Upstream::start();
    let yaml = format!(
        "{CLUSTER}---\napiVersion: v1\nkind: Service\nmetadata: {{name: nothing, namespace: shop}}\n\
         spec: {{type: ExternalName, externalName: none.example.com}}\n"
    );
    let live = Live::start(
        &zone(&yaml, config()),
        Setup {
            upstreams: vec![upstream.address],
            ..Setup::default()
        },
    );
    for reply in [
        live.udp(&query("external.shop.svc A")),
        live.tcp(&query("external.shop.svc A")),
    ] {
        let expect = ["external.shop.svc.cluster.local. 5 CNAME database.example.com.".to_owned()];
        assert!(said(&reply).is_superset(&expect.into()), "{:?}", said(&reply));
        assert_eq!(reply.answers.len(), 2);
        assert_eq!(reply.answers[1].name.to_ascii(), "database.example.com.");
        assert!(reply.metadata.authoritative);
    }
    assert_eq!(upstream.count("database.example.com."), 1);
    // CoreDNS hides the rcode behind the alias.
    let expect = [
        "nothing.shop.svc.cluster.local. 5 CNAME none.example.com.".to_owned(),
        "NXDOMAIN".to_owned(),
    ];
    assert_eq!(said(&live.udp(&query("nothing.shop.svc A"))), expect.into());
}

#[test]
fn too_many_queries_are_refused_with_a_reason() {
    let upstream = Upstream::start();
    let live = Live::start(
        &zone(CLUSTER, config()),
        Setup {
            upstreams: vec![upstream.address],
            max_concurrent: 1,
            ..Setup::default()
        },
    );
    let waiting = UdpSocket::bind("127.0.0.1:0").unwrap();
    waiting
        .send_to(&query("silent.example.com. A").to_vec().unwrap(), live.address)
        .unwrap();
    while upstream.count("silent.example.com.") == 0 {
        std::thread::sleep(Duration::from_millis(5));
    }
    for reply in [
        live.udp(&with_edns(query("www.example.com. A"), 1232)),
        live.tcp(&with_edns(query("www.example.com. A"), 1232)),
    ] {
        assert_eq!(said(&reply), ["REFUSED".to_owned()].into());
        assert!(
            format!("{:?}", reply.edns.unwrap().options()).contains("116, 111, 111"),
            "too many ..."
        );
    }
    assert_eq!(live.shared.forwarder.rejected(), 2);
    // The cluster's own names are answered all the same.
    assert_eq!(live.udp(&query("web.shop.svc A")).answers.len(), 1);
}

#[test]
fn no_upstream_is_said() {
    let live = forwarding_to(&[]);
    let reply = live.udp(&with_edns(query("www.example.com. A"), 1232));
    assert_eq!(said(&reply), ["SERVFAIL".to_owned()].into());
    assert!(!reply.metadata.authoritative);
}
