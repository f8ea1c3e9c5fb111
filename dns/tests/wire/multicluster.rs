//! Services of other clusters: zones of ServiceImports (KEP-1645, CoreDNS's `multicluster`).

use std::collections::BTreeSet;

use portolan_dns::answer::Transport;
use portolan_dns::zone::{Snapshot, Zone, ZoneConfig, ZoneSpec};
use portolan_model::{Delta, World};

use crate::fixture::{CLUSTER, events, query, said, zone};
use crate::protocol::ask;

const IMPORTS: &str = r#"
apiVersion: multicluster.x-k8s.io/v1alpha1
kind: ServiceImport
metadata: {name: payments, namespace: shop}
spec: {type: ClusterSetIP, ips: [10.42.0.7, "fd00:42::7"], ports: [{name: http, protocol: TCP, port: 80}]}
---
apiVersion: multicluster.x-k8s.io/v1alpha1
kind: ServiceImport
metadata: {name: mongo, namespace: shop}
spec: {type: Headless, ports: [{name: peer, port: 27017}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: imported-mongo-1
  namespace: shop
  labels: {multicluster.kubernetes.io/service-name: mongo, multicluster.kubernetes.io/source-cluster: east}
addressType: IPv4
ports: [{name: peer, port: 27017}]
endpoints:
- {addresses: [10.1.0.1], hostname: mongo-0}
- {addresses: [10.1.0.2]}
- {addresses: [10.1.0.3], hostname: mongo-1, conditions: {ready: false}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: imported-mongo-2
  namespace: shop
  labels: {multicluster.kubernetes.io/service-name: mongo, multicluster.kubernetes.io/source-cluster: west}
addressType: IPv4
ports: [{name: peer, port: 27017}]
endpoints:
- {addresses: [10.2.0.1], hostname: mongo-0}
"#;

fn config() -> ZoneConfig {
    let mut zones = ZoneSpec::usual(&["cluster.local".to_owned()]);
    zones.push(ZoneSpec {
        multicluster: true,
        ttl: 7,
        ..ZoneSpec::new("clusterset.local")
    });
    ZoneConfig::from_zones(&zones).unwrap()
}

fn check(snapshot: &Snapshot, question: &str, expect: &[&str]) {
    let sent = query(question);
    let owner = sent.queries[0].name().to_string();
    let expect: BTreeSet<String> = expect.iter().map(|line| line.replace('@', &owner)).collect();
    assert_eq!(said(&ask(snapshot, &sent, Transport::Tcp)), expect, "{question}");
}

#[test]
fn imports_have_names_in_their_own_zone() {
    let yaml = format!("{CLUSTER}---{IMPORTS}");
    let zone = zone(&yaml, config());
    let zone = zone.reader().load_full();
    let set = "shop.svc.clusterset.local.";
    check(&zone, &format!("payments.{set} A"), &["@ 7 A 10.42.0.7"]);
    check(&zone, &format!("payments.{set} AAAA"), &["@ 7 AAAA fd00:42::7"]);
    check(&zone, &format!("payments.{set} TXT"), &["NODATA"]);
    check(
        &zone,
        &format!("_http._tcp.payments.{set} SRV"),
        &[
            "@ 7 SRV 0 50 80 payments.shop.svc.clusterset.local.",
            "+ payments.shop.svc.clusterset.local. 7 A 10.42.0.7",
            "+ payments.shop.svc.clusterset.local. 7 AAAA fd00:42::7",
        ],
    );
    check(
        &zone,
        &format!("mongo.{set} A"),
        &["@ 7 A 10.1.0.1", "@ 7 A 10.1.0.2", "@ 7 A 10.2.0.1"],
    );
    check(&zone, &format!("mongo-0.east.mongo.{set} A"), &["@ 7 A 10.1.0.1"]);
    check(
        &zone,
        &format!("Mongo-0.West.mongo.{set} A"),
        &["Mongo-0.West.mongo.shop.svc.clusterset.local. 7 A 10.2.0.1"],
    );
    check(&zone, &format!("10-1-0-2.east.mongo.{set} A"), &["@ 7 A 10.1.0.2"]);
    check(&zone, &format!("mongo-0.east.mongo.{set} AAAA"), &["NODATA"]);
    // A cluster's label has endpoints below it, and holds nothing.
    check(&zone, &format!("east.mongo.{set} A"), &["NODATA"]);
    check(&zone, &format!("north.mongo.{set} A"), &["NXDOMAIN"]);
    check(&zone, &format!("mongo-0.mongo.{set} A"), &["NXDOMAIN"]);
    check(&zone, &format!("mongo-1.east.mongo.{set} A"), &["NXDOMAIN"]);
    check(
        &zone,
        &format!("_peer._tcp.mongo.{set} SRV"),
        &[
            "@ 7 SRV 0 33 27017 mongo-0.east.mongo.shop.svc.clusterset.local.",
            "@ 7 SRV 0 33 27017 10-1-0-2.east.mongo.shop.svc.clusterset.local.",
            "@ 7 SRV 0 33 27017 mongo-0.west.mongo.shop.svc.clusterset.local.",
            "+ mongo-0.east.mongo.shop.svc.clusterset.local. 7 A 10.1.0.1",
            "+ 10-1-0-2.east.mongo.shop.svc.clusterset.local. 7 A 10.1.0.2",
            "+ mongo-0.west.mongo.shop.svc.clusterset.local. 7 A 10.2.0.1",
        ],
    );
    // What is not imported is not there, and what is imported is nowhere else.
    check(&zone, &format!("web.{set} A"), &["NXDOMAIN"]);
    check(&zone, "payments.shop.svc A", &["NXDOMAIN"]);
    check(&zone, "10-244-1-6.shop.pod.clusterset.local. A", &["NXDOMAIN"]);
    check(&zone, "shop.svc.clusterset.local. A", &["NODATA"]);
    check(&zone, "nowhere.svc.clusterset.local. A", &["NXDOMAIN"]);
    // KEP-1645 has a version of its own. CoreDNS says 1.1.0 here too.
    check(&zone, "dns-version.clusterset.local. TXT", &["@ 28800 TXT 1.0.0"]);
    check(&zone, "dns-version TXT", &["@ 28800 TXT 1.1.0"]);
    let reply = ask(&zone, &query("gone.shop.svc.clusterset.local. A"), Transport::Udp);
    assert_eq!(reply.authorities[0].name.to_string(), "clusterset.local.");
    // Addresses of other clusters have no names here.
    let bytes = query("1.0.1.10.in-addr.arpa. PTR").to_vec().unwrap();
    let mut out = [0; 512];
    let client = crate::protocol::from(Transport::Udp);
    let verdict = portolan_dns::answer::answer(&bytes, &zone, &client, &mut out);
    assert!(
        matches!(verdict, portolan_dns::answer::Verdict::Forward(_)),
        "{verdict:?}"
    );
}

#[test]
fn imports_follow_their_objects() {
    let (mut world, mut delta) = (World::default(), Delta::default());
    for event in events(&format!("{CLUSTER}---{IMPORTS}")) {
        world.apply(event, &mut delta);
    }
    let mut zone = Zone::new(config(), 1);
    zone.apply(&world, &delta, 1);
    zone.set_synced();
    let name = "mongo.shop.svc.clusterset.local. A";
    for (event, expect) in events(IMPORTS).into_iter().skip(1).rev().zip([
        &["@ 7 A 10.1.0.1", "@ 7 A 10.1.0.2"][..],
        &["NXDOMAIN"],
        &["NXDOMAIN"],
    ]) {
        let portolan_model::Event::Apply(object) = event else {
            unreachable!()
        };
        let mut delta = Delta::default();
        world.apply(portolan_model::Event::Delete(object.key()), &mut delta);
        let serial = zone.reader().load().serial;
        let applied = zone.apply(&world, &delta, 1);
        assert_eq!(applied.built, 1, "one import was built anew");
        check(&zone.reader().load(), name, expect);
        assert!(zone.reader().load().serial > serial);
    }
    check(
        &zone.reader().load(),
        "payments.shop.svc.clusterset.local. A",
        &["@ 7 A 10.42.0.7"],
    );
}
