//! What the options of CoreDNS's plugin `kubernetes` do to the names.

use std::collections::BTreeSet;

use portolan_dns::answer::Transport;
use portolan_dns::zone::config::Naming;
use portolan_dns::zone::{Snapshot, Zone, ZoneConfig, ZoneSpec};
use portolan_model::{Delta, Selector, World};

use crate::fixture::{CLUSTER, config, events, query, said, zone};
use crate::protocol::{ask, from};

fn check(snapshot: &Snapshot, question: &str, expect: &[&str]) {
    let sent = query(question);
    let owner = sent.queries[0].name().to_string();
    let expect: BTreeSet<String> = expect.iter().map(|line| line.replace('@', &owner)).collect();
    assert_eq!(said(&ask(snapshot, &sent, Transport::Tcp)), expect, "{question}");
}

fn forwarded(snapshot: &Snapshot, question: &str) {
    let bytes = query(question).to_vec().unwrap();
    let mut out = vec![0; 65_535];
    let verdict = portolan_dns::answer::answer(&bytes, snapshot, &from(Transport::Tcp), &mut out);
    assert!(
        matches!(verdict, portolan_dns::answer::Verdict::Forward(_)),
        "{question}: {verdict:?}"
    );
}

fn named(naming: Naming) -> ZoneConfig {
    let mut config = config();
    config.naming = naming;
    config
}

#[test]
fn endpoints_are_named_after_their_pods_when_asked() {
    let pod = |name: &str| format!("targetRef: {{kind: Pod, name: {name}, namespace: default}}");
    let long = "x".repeat(64);
    let yaml = format!(
        "{CLUSTER}---\napiVersion: v1\nkind: Service\nmetadata: {{name: pods, namespace: default}}\n\
         spec: {{clusterIP: None, clusterIPs: [None], ports: [{{name: web, port: 80}}]}}\n---\n\
         apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\naddressType: IPv4\n\
         metadata: {{name: pods-1, namespace: default, labels: {{kubernetes.io/service-name: pods}}}}\n\
         ports: [{{name: web, port: 80}}]\nendpoints:\n\
         - {{addresses: [10.244.7.1], {}}}\n- {{addresses: [10.244.7.2], {}}}\n- {{addresses: [10.244.7.3], hostname: h, {}}}\n\
         - {{addresses: [10.244.7.4], {}}}\n",
        pod("Pod-a"),
        pod("dotted.pod"),
        pod("pod-c"),
        pod(&long),
    );
    let zone = zone(
        &yaml,
        named(Naming {
            endpoint_pod_names: true,
            ..Naming::default()
        }),
    );
    let zone = zone.reader().load_full();
    check(&zone, "pod-a.pods.default.svc A", &["@ 5 A 10.244.7.1"]);
    check(&zone, "10-244-7-1.pods.default.svc A", &["NXDOMAIN"]);
    // A name with a dot or of more than 63 octets is no label; a hostname comes first.
    check(&zone, "10-244-7-2.pods.default.svc A", &["@ 5 A 10.244.7.2"]);
    check(&zone, "10-244-7-4.pods.default.svc A", &["@ 5 A 10.244.7.4"]);
    check(&zone, "h.pods.default.svc A", &["@ 5 A 10.244.7.3"]);
    check(&zone, "pod-c.pods.default.svc A", &["NXDOMAIN"]);
    check(
        &zone,
        "1.7.244.10.in-addr.arpa. PTR",
        &["@ 5 PTR pod-a.pods.default.svc.cluster.local."],
    );
}

#[test]
fn without_endpoints_only_cluster_ips_have_names() {
    let zone = zone(
        CLUSTER,
        named(Naming {
            endpoints: false,
            ..Naming::default()
        }),
    );
    let zone = zone.reader().load_full();
    check(&zone, "web.shop.svc A", &["@ 5 A 10.96.0.20"]);
    check(&zone, "nginx.default.svc A", &["NXDOMAIN"]);
    check(&zone, "10-244-1-20.web.shop.svc A", &["NXDOMAIN"]);
    forwarded(&zone, "6.1.244.10.in-addr.arpa. PTR");
}

#[test]
fn services_without_endpoints_are_hidden_when_asked() {
    let zone = zone(
        CLUSTER,
        named(Naming {
            empty_services: false,
            ..Naming::default()
        }),
    );
    let zone = zone.reader().load_full();
    check(&zone, "web.shop.svc A", &["@ 5 A 10.96.0.20"]);
    check(&zone, "dual.shop.svc A", &["NXDOMAIN"]);
    check(&zone, "dual.shop.svc SRV", &["NXDOMAIN"]);
    check(&zone, "_http._tcp.six.shop.svc SRV", &["NXDOMAIN"]);
    check(
        &zone,
        "alias.shop.svc CNAME",
        &["@ 5 CNAME web.shop.svc.cluster.local."],
    );
}

#[test]
fn only_the_chosen_namespaces_have_names() {
    let labelled = CLUSTER.replace(
        "metadata: {name: shop}",
        "metadata: {name: shop, labels: {team: a, tier: front}}",
    );
    let by_name = Naming {
        namespaces: ["shop".to_owned()].into(),
        ..Naming::default()
    };
    let by_label = Naming {
        namespace_labels: Selector::parse("team in (a, b), !hidden").unwrap(),
        ..Naming::default()
    };
    for naming in [by_name, by_label] {
        let zone = zone(&labelled, named(naming));
        let zone = zone.reader().load_full();
        check(&zone, "web.shop.svc A", &["@ 5 A 10.96.0.20"]);
        check(&zone, "shop.svc A", &["NODATA"]);
        check(&zone, "10-1-1-1.shop.pod A", &["@ 5 A 10.1.1.1"]);
        check(&zone, "nginx.default.svc A", &["NXDOMAIN"]);
        check(&zone, "default.svc A", &["NXDOMAIN"]);
        check(&zone, "10-1-1-1.default.pod A", &["NXDOMAIN"]);
        forwarded(&zone, "6.1.244.10.in-addr.arpa. PTR");
        check(
            &zone,
            "20.1.244.10.in-addr.arpa. PTR",
            &["@ 5 PTR 10-244-1-20.web.shop.svc.cluster.local."],
        );
    }
}

#[test]
fn a_namespace_that_changes_its_labels_takes_its_services_along() {
    let naming = Naming {
        namespace_labels: Selector::parse("dns=yes").unwrap(),
        ..Naming::default()
    };
    let (mut world, mut delta) = (World::default(), Delta::default());
    for event in events(CLUSTER) {
        world.apply(event, &mut delta);
    }
    let mut zone = Zone::new(named(naming), 1);
    zone.apply(&world, &delta, 1);
    zone.set_synced();
    check(&zone.reader().load(), "web.shop.svc A", &["NXDOMAIN"]);
    for (labels, expect) in [("dns: \"yes\"", "@ 5 A 10.96.0.20"), ("dns: \"no\"", "NXDOMAIN")] {
        let mut delta = Delta::default();
        let namespace = format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: shop, labels: {{{labels}}}}}");
        for event in events(&namespace) {
            world.apply(event, &mut delta);
        }
        let serial = zone.reader().load().serial;
        zone.apply(&world, &delta, 1);
        check(&zone.reader().load(), "web.shop.svc A", &[expect]);
        assert!(zone.reader().load().serial > serial);
    }
    // Without the selector everything is there.
    let applied = zone.configure(config(), &world, 1);
    assert!(applied.changed > 10, "{applied:?}");
    check(&zone.reader().load(), "web.shop.svc A", &["@ 5 A 10.96.0.20"]);
    check(
        &zone.reader().load(),
        "nginx.default.svc AAAA",
        &["@ 5 AAAA fd00:244:0:1::6"],
    );
}

#[test]
fn zones_have_their_own_ttl_and_fallthrough() {
    let spec = |name: &str, ttl, fallthrough: &[&str]| ZoneSpec {
        ttl,
        negative_ttl: ttl / 2,
        fallthrough: fallthrough.iter().map(|name| (*name).to_owned()).collect(),
        ..ZoneSpec::new(name)
    };
    let zones = [
        spec("cluster.local", 30, &["shop.svc.cluster.local"]),
        spec("k8s.example.com", 10, &[]),
        spec("10.96.0.0/16", 60, &["10.in-addr.arpa"]),
        spec("fd00:96::/64", 60, &[]),
    ];
    let zone = zone(CLUSTER, ZoneConfig::from_zones(&zones).unwrap());
    let zone = zone.reader().load_full();
    check(&zone, "web.shop.svc A", &["@ 30 A 10.96.0.20"]);
    check(&zone, "web.shop.svc.k8s.example.com. A", &["@ 10 A 10.96.0.20"]);
    check(&zone, "gone.default.svc A", &["NXDOMAIN"]);
    check(&zone, "gone.shop.svc.k8s.example.com. A", &["NXDOMAIN"]);
    forwarded(&zone, "gone.shop.svc A");
    check(&zone, "web.shop.svc AAAA", &["NODATA"]);
    check(
        &zone,
        "10.0.96.10.in-addr.arpa. PTR",
        &["@ 60 PTR kube-dns.kube-system.svc.cluster.local."],
    );
    forwarded(&zone, "99.0.96.10.in-addr.arpa. PTR");
    // Endpoints lie in none of the ranges.
    forwarded(&zone, "6.1.244.10.in-addr.arpa. PTR");
    check(
        &zone,
        "9.9.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.6.9.0.0.0.0.d.f.ip6.arpa. PTR",
        &["NXDOMAIN"],
    );
    let reply = ask(&zone, &query("gone.default.svc A"), Transport::Udp);
    assert_eq!(reply.authorities[0].ttl, 15);
}

#[test]
fn endpoints_have_names_by_zone_when_asked() {
    let yaml = format!(
        "{CLUSTER}---\napiVersion: v1\nkind: Service\nmetadata: {{name: zoned, namespace: default}}\n\
         spec: {{clusterIP: None, clusterIPs: [None], ports: [{{name: web, port: 80}}]}}\n---\n\
         apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\naddressType: IPv4\n\
         metadata: {{name: zoned-1, namespace: default, labels: {{kubernetes.io/service-name: zoned}}}}\n\
         ports: [{{name: web, port: 80}}]\nendpoints:\n\
         - {{addresses: [10.244.8.1], zone: us-a}}\n- {{addresses: [10.244.8.2], zone: us-a, hostname: h}}\n\
         - {{addresses: [10.244.8.3], zone: corp.example.com}}\n- {{addresses: [10.244.8.4]}}\n\
         - {{addresses: [10.244.8.5], zone: us-b, conditions: {{ready: false}}}}\n"
    );
    let on = zone(
        &yaml,
        named(Naming {
            zonal: true,
            ..Naming::default()
        }),
    );
    let on = on.reader().load_full();
    let two = ["@ 5 A 10.244.8.1", "@ 5 A 10.244.8.2"];
    let all = [
        "@ 5 A 10.244.8.1",
        "@ 5 A 10.244.8.2",
        "@ 5 A 10.244.8.3",
        "@ 5 A 10.244.8.4",
    ];
    for (question, expect) in [
        ("us-a.pin._zone.zoned.default.svc A", &two[..]),
        ("US-A.Prefer._ZONE.zoned.default.svc A", &two),
        ("corp.example.com.pin._zone.zoned.default.svc A", &["@ 5 A 10.244.8.3"]),
        ("us-b.pin._zone.zoned.default.svc A", &["NODATA"]),
        ("us-b.prefer._zone.zoned.default.svc A", &all),
        ("us-a.pin._zone.zoned.default.svc AAAA", &["NODATA"]),
        ("us-a.pin._zone.zoned.default.svc TXT", &["NODATA"]),
        (
            "us-a.pin._zone.zoned.default.svc SRV",
            &[
                "@ 5 SRV 0 50 80 10-244-8-1.zoned.default.svc.cluster.local.",
                "@ 5 SRV 0 50 80 h.zoned.default.svc.cluster.local.",
                "+ 10-244-8-1.zoned.default.svc.cluster.local. 5 A 10.244.8.1",
                "+ h.zoned.default.svc.cluster.local. 5 A 10.244.8.2",
            ],
        ),
        // Names stand below these. CoreDNS denies them.
        ("pin._zone.zoned.default.svc A", &["NODATA"]),
        ("_zone.zoned.default.svc A", &["NODATA"]),
        ("us-a.other._zone.zoned.default.svc A", &["NXDOMAIN"]),
        ("us-a.pin._zone.gone.default.svc A", &["NXDOMAIN"]),
        // A cluster IP is in no zone.
        ("us-a.pin._zone.web.shop.svc A", &["NXDOMAIN"]),
        ("zoned.default.svc A", &all),
    ] {
        check(&on, question, expect);
    }
    let off = zone(&yaml, config()).reader().load_full();
    for question in ["us-a.pin._zone.zoned.default.svc A", "_zone.zoned.default.svc A"] {
        check(&off, question, &["NXDOMAIN"]);
    }
}
