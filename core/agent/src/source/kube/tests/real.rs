//! One API server, one story: objects, restarts, gaps.

use ::kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use ::kube::{Api, Client};
use futures::StreamExt;
use portolan_model::Interner;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::api_server::ApiServer;
use super::*;

async fn create<K>(api: &Api<K>, object: Value)
where
    K: ::kube::Resource + Clone + std::fmt::Debug + DeserializeOwned + serde::Serialize,
{
    api.create(&PostParams::default(), &serde_json::from_value(object).unwrap())
        .await
        .unwrap();
}

async fn patch<K>(api: &Api<K>, name: &str, change: Value)
where
    K: ::kube::Resource + Clone + std::fmt::Debug + DeserializeOwned,
{
    api.patch(name, &PatchParams::default(), &Patch::Merge(change))
        .await
        .unwrap();
}

async fn delete<K>(api: &Api<K>, name: &str)
where
    K: ::kube::Resource + Clone + std::fmt::Debug + DeserializeOwned,
{
    api.delete(name, &DeleteParams::default()).await.unwrap();
}

fn service(name: &str, port: u16) -> Value {
    json!({"metadata": {"name": name}, "spec": {"ports": [{"port": port}]}})
}

fn slice(name: &str, service: &str, addresses: &[&str]) -> Value {
    let endpoints: Vec<Value> = addresses
        .iter()
        .map(|address| json!({"addresses": [address]}))
        .collect();
    json!({
        "metadata": {"name": name, "labels": {"kubernetes.io/service-name": service}},
        "addressType": "IPv4", "ports": [{"port": 8080}], "endpoints": endpoints,
    })
}

fn services(client: &Client) -> Api<core::Service> {
    Api::namespaced(client.clone(), "default")
}

fn slices(client: &Client) -> Api<discovery::EndpointSlice> {
    Api::namespaced(client.clone(), "default")
}

fn deletes(follower: &Follower) -> Vec<&Event> {
    follower
        .events
        .iter()
        .filter(|event| matches!(event, Event::Delete(_)))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_api_server_is_followed_whatever_happens_to_it() {
    let mut server = ApiServer::prepare().await;
    let mut follower = Follower::start(server.options(), Wants::forwarding()).await;
    starts_before_the_server(&follower).await;
    let client = server.up(&[]).await;
    follower.until_synced().await;
    assert!(
        follower.feed.health().connected(),
        "{:?}",
        follower.feed.health().kinds()
    );
    // The server makes these itself once it is up.
    follower.shows("kubernetes:443").await;
    let ranges = |follower: &Follower| follower.world.service_cidrs().count() == 1;
    follower.until("the ServiceCIDR", ranges).await;
    objects_come_change_and_go(&client, &mut follower).await;
    selectors_are_the_servers(&client, &mut follower).await;
    bad_objects_are_reported_once(&client, &mut follower).await;
    let client = a_restart_loses_nothing(&mut server, &mut follower).await;
    a_forgotten_place_is_listed_anew(client, &mut server, &mut follower).await;
    long_lists_arrive_in_pages(&mut server).await;
    protobuf_means_what_json_means(&server.client().await.unwrap()).await;
}

/// The source was started first: it waits, and says for what.
async fn starts_before_the_server(follower: &Follower) {
    let health = follower.feed.health();
    while health.kinds().values().any(|kind| kind.error.is_none()) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(!health.connected());
    assert_eq!(health.pending().len(), 4, "{:?}", health.pending());
}

async fn objects_come_change_and_go(client: &Client, follower: &mut Follower) {
    let (services, slices) = (services(client), slices(client));
    create(&services, service("web", 80)).await;
    create(&slices, slice("web-1", "web", &["10.244.1.1", "10.244.2.1"])).await;
    follower.shows("kubernetes:443\nweb:80 10.244.1.1 10.244.2.1").await;
    patch(&slices, "web-1", json!({"endpoints": [{"addresses": ["10.244.1.1"]}]})).await;
    follower.shows("kubernetes:443\nweb:80 10.244.1.1").await;
    patch(&services, "web", json!({"spec": {"ports": [{"port": 81}]}})).await;
    follower.shows("kubernetes:443\nweb:81 10.244.1.1").await;
    delete(&slices, "web-1").await;
    follower.shows("kubernetes:443\nweb:81").await;
    delete(&services, "web").await;
    follower.shows("kubernetes:443").await;
    let nodes: Api<core::Node> = Api::all(client.clone());
    create(
        &nodes,
        json!({"metadata": {"name": "n1", "labels": {"topology.kubernetes.io/zone": "z1"}}}),
    )
    .await;
    follower
        .until("the Node", |follower| {
            follower.world.node("n1").is_some_and(|node| node.zone() == Some("z1"))
        })
        .await;
}

async fn selectors_are_the_servers(client: &Client, follower: &mut Follower) {
    let services = services(client);
    create(&services, service("mesh", 80)).await;
    create(
        &services,
        json!({"metadata": {"name": "headless"}, "spec": {"clusterIP": "None", "ports": [{"port": 80}]}}),
    )
    .await;
    follower.shows("kubernetes:443\nmesh:80").await;
    let name = |value: Value| json!({"metadata": {"labels": {"service.kubernetes.io/service-proxy-name": value}}});
    patch(&services, "mesh", name(json!("other"))).await;
    follower.shows("kubernetes:443").await;
    patch(&services, "mesh", name(Value::Null)).await;
    follower.shows("kubernetes:443\nmesh:80").await;
    delete(&services, "mesh").await;
    follower.shows("kubernetes:443").await;
    assert!(!format!("{:?}", follower.events).contains("\"headless\""));
}

async fn bad_objects_are_reported_once(client: &Client, follower: &mut Follower) {
    let (services, slices) = (services(client), slices(client));
    create(&services, service("web", 80)).await;
    let mut named = slice("names", "web", &["www.example.com"]);
    named["addressType"] = json!("FQDN");
    create(&slices, named).await;
    let fault = "EndpointSlice default/names: addressType: \"FQDN\" is not one of IPv4, IPv6";
    follower
        .until("the problem", |follower| follower.problems == [fault])
        .await;
    patch(&slices, "names", json!({"metadata": {"labels": {"again": "1"}}})).await;
    create(&slices, slice("good", "web", &["10.244.1.1"])).await;
    follower.shows("kubernetes:443\nweb:80 10.244.1.1").await;
    assert_eq!(follower.problems, [fault], "the same problem is no news");
    delete(&slices, "names").await;
}

/// Killed and started again: the watches resume, nothing is deleted in between, and nothing is missed.
async fn a_restart_loses_nothing(server: &mut ApiServer, follower: &mut Follower) -> Client {
    follower
        .until("the deletion", |follower| {
            format!("{:?}", deletes(follower)).contains("\"names\"")
        })
        .await;
    follower.forget();
    server.down();
    let health = follower.feed.health();
    while health.kinds().values().any(|kind| kind.connected) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // From now on without streamed lists, as older servers.
    let client = server.up(&["--feature-gates=WatchList=false"]).await;
    patch(&services(&client), "web", json!({"spec": {"ports": [{"port": 82}]}})).await;
    follower.shows("kubernetes:443\nweb:82 10.244.1.1").await;
    while !health.connected() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(deletes(follower), [] as [&Event; 0]);
    assert!(
        health.kinds().values().all(|kind| kind.losses == 1),
        "{:?}",
        health.kinds()
    );
    client
}

/// Cut off for longer than the server remembers: what went meanwhile is deleted, what stayed is never missing.
async fn a_forgotten_place_is_listed_anew(client: Client, server: &mut ApiServer, follower: &mut Follower) {
    follower.forget();
    server.gate.shut();
    create(&services(&client), service("new", 80)).await;
    delete(&services(&client), "web").await;
    delete(&slices(&client), "good").await;
    create(&slices(&client), slice("fresh", "new", &["10.244.3.3"])).await;
    drop(client);
    server.down();
    server.compact().await;
    server.up(&["--feature-gates=WatchList=false"]).await;
    server.gate.reopen();
    follower.shows("kubernetes:443\nnew:80 10.244.3.3").await;
    let gone = |follower: &Follower| {
        deletes(follower)
            .iter()
            .map(|event| format!("{event:?}"))
            .collect::<Vec<_>>()
    };
    follower
        .until("two deletions", |follower| gone(follower).len() == 2)
        .await;
    let mut gone = gone(follower);
    gone.sort();
    assert!(gone[0].contains("good") && gone[1].contains("web"), "{gone:?}");
}

/// More objects than fit in a page, on a server that answers from etcd.
async fn long_lists_arrive_in_pages(server: &mut ApiServer) {
    let client = server.client().await.unwrap();
    let api = slices(&client);
    let address = |i: usize| format!("10.245.{}.{}", i / 250, i % 250 + 1);
    let created = futures::stream::iter(0..1100).for_each_concurrent(32, |i| {
        let api = &api;
        async move {
            create(api, slice(&format!("many-{i}"), "new", &[&address(i)])).await;
        }
    });
    created.await;
    drop((client, api));
    server.down();
    server.up(&["--watch-cache=false"]).await;
    let mut second = Follower::start(server.options(), Wants::forwarding()).await;
    second.until_synced().await;
    assert_eq!(second.world.counts(), (2, 1101));
}

/// Objects that hold everything that bears on us, and much that does not.
async fn protobuf_means_what_json_means(client: &Client) {
    let namespace = json!({"metadata": {"name": "kinds", "labels": {"team": "a"}, "annotations": {"note": "x"}}});
    create(&Api::<core::Namespace>::all(client.clone()), namespace).await;
    let services: Api<core::Service> = Api::namespaced(client.clone(), "kinds");
    for spec in [
        json!({"type": "LoadBalancer", "ipFamilyPolicy": "PreferDualStack", "externalIPs": ["203.0.113.9"], "selector": {"app": "web"},
            "externalTrafficPolicy": "Local", "internalTrafficPolicy": "Local", "publishNotReadyAddresses": true,
            "loadBalancerSourceRanges": ["198.51.100.0/24", "fd00:51::/64"], "trafficDistribution": "PreferSameZone",
            "sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 77}},
            "ports": [{"name": "http", "port": 80, "targetPort": "web", "nodePort": 30080}, {"name": "dns", "port": 53, "protocol": "UDP"}]}),
        json!({"type": "ExternalName", "externalName": "www.example.com"}),
        json!({"clusterIP": "None", "ports": [{"port": 80, "protocol": "SCTP"}]}),
        json!({"ports": [{"port": 80, "appProtocol": "kubernetes.io/h2c"}]}),
    ] {
        let name = format!("s-{}", spec.to_string().len());
        create(
            &services,
            json!({"metadata": {"name": name, "finalizers": ["example.com/keep"]}, "spec": spec}),
        )
        .await;
    }
    let balanced = services.list(&ListParams::default()).await.unwrap();
    let balanced = balanced
        .items
        .iter()
        .find(|service| service.spec.as_ref().unwrap().health_check_node_port.is_some());
    let status = json!({"status": {"loadBalancer": {"ingress": [
        {"ip": "203.0.113.1"}, {"ip": "203.0.113.2", "ipMode": "Proxy"}, {"hostname": "lb.example.com"}]}}});
    let name = balanced.unwrap().metadata.name.as_deref().unwrap();
    services
        .patch_status(name, &PatchParams::default(), &Patch::Merge(status))
        .await
        .unwrap();

    let slices: Api<discovery::EndpointSlice> = Api::namespaced(client.clone(), "kinds");
    let full = json!({
        "metadata": {"name": "web-1", "labels": {"kubernetes.io/service-name": "web", "more": "labels"},
            "annotations": {"endpoints.kubernetes.io/last-change-trigger-time": "2026-01-01T00:00:01Z"}},
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": 8080, "appProtocol": "http"}, {"name": "dns", "port": 53, "protocol": "UDP"}, {"name": "any"}],
        "endpoints": [
            {"addresses": ["10.244.1.2"], "hostname": "web-0", "nodeName": "n1", "zone": "a",
             "hints": {"forZones": [{"name": "a"}, {"name": "b"}], "forNodes": [{"name": "n1"}]},
             "targetRef": {"kind": "Pod", "name": "web-0", "namespace": "kinds", "uid": "u"}},
            {"addresses": ["10.244.2.2"], "conditions": {"ready": false, "serving": true, "terminating": true}}]});
    create(&slices, full).await;
    create(
        &slices,
        json!({"metadata": {"name": "bare"}, "addressType": "IPv6", "endpoints": [{"addresses": ["fd00::1"]}]}),
    )
    .await;

    let nodes: Api<core::Node> = Api::all(client.clone());
    let node = json!({"metadata": {"name": "full", "labels": {"topology.kubernetes.io/zone": "a", "x": ""}},
        "spec": {"podCIDR": "10.244.1.0/24", "podCIDRs": ["10.244.1.0/24", "fd00:244::/64"], "providerID": "p",
            "taints": [{"key": "ToBeDeletedByClusterAutoscaler", "value": "1", "effect": "NoSchedule"}]}});
    create(&nodes, node).await;
    let status = json!({"status": {"capacity": {"cpu": "4"}, "images": [{"names": ["a"], "sizeBytes": 1}], "addresses": [
        {"type": "InternalIP", "address": "172.18.0.1"}, {"type": "ExternalIP", "address": "198.51.100.1"}, {"type": "Hostname", "address": "full"}]}});
    nodes
        .patch_status("full", &PatchParams::default(), &Patch::Merge(status))
        .await
        .unwrap();

    let pods: Api<core::Pod> = Api::namespaced(client.clone(), "kinds");
    let pod = json!({"metadata": {"name": "web-0"}, "spec": {"nodeName": "full", "hostNetwork": true, "containers": [{"name": "c", "image": "i"}]}});
    create(&pods, pod).await;
    let status = json!({"status": {"phase": "Failed", "podIP": "10.244.1.2", "podIPs": [{"ip": "10.244.1.2"}, {"ip": "fd00:244::2"}]}});
    pods.patch_status("web-0", &PatchParams::default(), &Patch::Merge(status))
        .await
        .unwrap();

    same_in_both::<core::Service>(client, 4).await;
    same_in_both::<discovery::EndpointSlice>(client, 2).await;
    same_in_both::<core::Node>(client, 1).await;
    same_in_both::<core::Pod>(client, 1).await;
    same_in_both::<core::Namespace>(client, 1).await;
    same_in_both::<networking::ServiceCIDR>(client, 1).await;
}

async fn same_in_both<K: Watched>(client: &Client, at_least: usize) {
    let mut read = Vec::new();
    for (accept, protobuf) in [("application/json", false), (body::ACCEPT_LIST, true)] {
        let request = axum::http::Request::get(K::url_path(&(), None)).header("accept", accept);
        let answer = client
            .send(request.body(::kube::client::Body::empty()).unwrap())
            .await
            .unwrap();
        assert_eq!(body::is_protobuf(answer.headers().get("content-type")), protobuf);
        let bytes = axum::body::to_bytes(axum::body::Body::new(answer.into_body()), usize::MAX)
            .await
            .unwrap();
        let (mut interner, mut faults, mut objects) = (Interner::default(), Vec::new(), Vec::new());
        let mut note = |object: K| objects.push(object.parse(&mut interner, &mut faults));
        let mut list = body::ListBody::new(protobuf);
        list.push(&bytes, true, &mut note).unwrap();
        let place = list.finish(&mut note).unwrap();
        read.push((objects, faults, place.version.is_empty()));
    }
    assert!(read[0].0.len() >= at_least, "{:?}", read[0]);
    assert_eq!(read[0], read[1], "{}", K::NAME);
}
