//! The objects on the API server: Services with EndpointSlices, and one Service that is changed.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use portolan_lab::control_plane::ControlPlane;
use portolan_lab::lab::Lab;
use portolan_lab::object::ObjectKey;
use serde_json::{Value, json};

use crate::load::ask;
use crate::store::{Record, Store};
use crate::subject::Running;

/// The namespace of all objects.
pub const NAMESPACE: &str = "bench";
const SERVICE_LABEL: &str = "kubernetes.io/service-name";
const FIRST_CLUSTER_IP: u32 = u32::from_be_bytes([10, 96, 1, 0]);
const FIRST_ENDPOINT: u32 = u32::from_be_bytes([10, 128, 0, 0]);
/// Services that are made in memory before they are written.
const IN_MEMORY: u32 = 1000;
/// The Service that is changed: headless, with one endpoint.
const MOVING: &str = "moving";
const PATIENCE: Duration = Duration::from_secs(20);

/// What is on the API server.
#[derive(Debug)]
pub struct Objects {
    /// How many Services there are.
    pub services: u32,
    /// Endpoints of each.
    pub endpoints: u32,
    api: portolan_lab::api::ApiClient,
    watch: mpsc::Receiver<(Instant, String)>,
    next: std::cell::Cell<u32>,
}

/// When a change was seen, in milliseconds.
#[derive(Debug)]
pub struct Seen {
    /// After a watch of our own had the event. Negative: the server was faster than we.
    pub after_watch: f64,
    /// After the PATCH was sent.
    pub after_patch: f64,
}

/// The name of a Service in the cluster zone.
pub fn service_name(number: u32) -> String {
    format!("service-{number:06}")
}

/// The cluster IP of a Service.
pub fn cluster_ip(number: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(FIRST_CLUSTER_IP + number)
}

// === impl Objects ===

impl Objects {
    /// Makes everything. The first Service is made by the API server, all others are written in its likeness.
    ///
    /// # Errors
    /// When the API server or etcd refuses one.
    pub fn make(lab: &Lab, plane: &ControlPlane, services: u32, endpoints: u32) -> Result<Self> {
        let api = plane.api().clone();
        api.create(&json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": NAMESPACE } }))?;
        let host = lab.control_plane().context("the lab has no control plane")?;
        let store = Store::new(Arc::clone(&host.place.netns));
        let (sender, watch) = mpsc::channel();
        let objects = Self {
            services,
            endpoints,
            api,
            watch,
            next: std::cell::Cell::new(1),
        };
        objects.create(&service_name(0), json!(cluster_ip(0)), &objects.addresses(0))?;
        objects.create(MOVING, json!("None"), &[Ipv4Addr::new(10, 250, 0, 1)])?;
        let model = objects.model()?;
        let numbers: Vec<u32> = (1..services).collect();
        for chunk in numbers.chunks(IN_MEMORY as usize) {
            let records: Vec<Record> = chunk
                .iter()
                .flat_map(|number| objects.records(&model, *number))
                .collect();
            store.write(&records)?;
        }
        let api = objects.api.clone();
        std::thread::spawn(move || {
            let path = format!("/apis/discovery.k8s.io/v1/watch/namespaces/{NAMESPACE}/endpointslices/{MOVING}");
            // It ends with the API server.
            let _ = api.watch(&path, |event| {
                let address = event.object["endpoints"][0]["addresses"][0].as_str();
                sender
                    .send((Instant::now(), address.unwrap_or_default().to_owned()))
                    .is_ok()
            });
        });
        Ok(objects)
    }

    /// The addresses of a Service's endpoints.
    pub fn addresses(&self, number: u32) -> Vec<Ipv4Addr> {
        let first = FIRST_ENDPOINT + number * self.endpoints;
        (first..first + self.endpoints).map(Ipv4Addr::from_bits).collect()
    }

    /// Changes one endpoint and waits until the server shows it.
    ///
    /// # Errors
    /// When it does not.
    pub fn change(&self, _plane: &ControlPlane, server: &Running) -> Result<Seen> {
        let number = self.next.get();
        self.next.set(number + 1);
        let address = Ipv4Addr::from_bits(u32::from_be_bytes([10, 250, 0, 1]) + number);
        while self.watch.try_recv().is_ok() {}
        let key = ObjectKey::namespaced("EndpointSlice", NAMESPACE, MOVING);
        let patch = json!({ "endpoints": endpoints(&[address]) });
        let name = format!("{MOVING}.{NAMESPACE}.svc.cluster.local");
        let sent = Instant::now();
        let api = self.api.clone();
        let patching = std::thread::spawn(move || api.patch(&key, &patch));
        let seen = loop {
            if ask(server, &name)?.contains(&address) {
                break Instant::now();
            }
            if sent.elapsed() > PATIENCE {
                bail!("{} does not show {address} at {name}", server.subject.name());
            }
        };
        let done = patching.join();
        done.map_err(|_| anyhow::anyhow!("the thread that patches has died"))??;
        let watched = loop {
            let (at, text) = self
                .watch
                .recv_timeout(PATIENCE)
                .context("our own watch saw no change")?;
            if text == address.to_string() {
                break at;
            }
        };
        let millis = |from: Instant| {
            let later = seen.saturating_duration_since(from).as_secs_f64();
            let earlier = from.saturating_duration_since(seen).as_secs_f64();
            (later - earlier) * 1e3
        };
        Ok(Seen {
            after_watch: millis(watched),
            after_patch: millis(sent),
        })
    }

    fn create(&self, name: &str, cluster_ip: Value, addresses: &[Ipv4Addr]) -> Result<()> {
        self.api.create(&json!({
            "apiVersion": "v1", "kind": "Service", "metadata": { "namespace": NAMESPACE, "name": name },
            "spec": {
                "clusterIP": cluster_ip, "ipFamilyPolicy": "SingleStack", "ipFamilies": ["IPv4"],
                "ports": [{ "name": "http", "protocol": "TCP", "port": 80, "targetPort": 8080 }],
            },
        }))?;
        self.api.create(&json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": { "namespace": NAMESPACE, "name": name, "labels": {
                SERVICE_LABEL: name, "endpointslice.kubernetes.io/managed-by": "portolan-bench",
            }},
            "ports": [{ "name": "http", "protocol": "TCP", "port": 8080 }],
            "endpoints": endpoints(addresses),
        }))
    }

    /// What the API server has stored for the first Service.
    fn model(&self) -> Result<[Value; 3]> {
        let get = |path: String| -> Result<Value> {
            let mut object: Value = serde_json::from_str(&self.api.get_text(&path)?)?;
            // It is not stored: whoever reads gets the store's own revision.
            if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
                metadata.remove("resourceVersion");
            }
            Ok(object)
        };
        let name = service_name(0);
        Ok([
            get(format!("/api/v1/namespaces/{NAMESPACE}/services/{name}"))?,
            get(format!(
                "/apis/discovery.k8s.io/v1/namespaces/{NAMESPACE}/endpointslices/{name}"
            ))?,
            get(format!("/apis/networking.k8s.io/v1/ipaddresses/{}", cluster_ip(0)))?,
        ])
    }

    fn records(&self, [service, slice, address]: &[Value; 3], number: u32) -> [Record; 3] {
        let (name, ip) = (service_name(number), cluster_ip(number));
        let uid = |kind: u32| json!(format!("{kind:08x}-0000-4000-8000-{number:012x}"));
        let (mut service, mut slice, mut address) = (service.clone(), slice.clone(), address.clone());
        service["metadata"]["name"] = json!(name);
        service["metadata"]["uid"] = uid(1);
        service["spec"]["clusterIP"] = json!(ip);
        service["spec"]["clusterIPs"] = json!([ip]);
        slice["metadata"]["name"] = json!(name);
        slice["metadata"]["uid"] = uid(2);
        slice["metadata"]["labels"][SERVICE_LABEL] = json!(name);
        slice["endpoints"] = endpoints(&self.addresses(number));
        address["metadata"]["name"] = json!(ip);
        address["metadata"]["uid"] = uid(3);
        address["spec"]["parentRef"]["name"] = json!(name);
        let record = |key, object| Record { key, object };
        [
            record(format!("/registry/ipaddresses/{ip}"), address),
            record(format!("/registry/services/specs/{NAMESPACE}/{name}"), service),
            record(format!("/registry/endpointslices/{NAMESPACE}/{name}"), slice),
        ]
    }
}

/// As the EndpointSlice controller writes them for pods of a Deployment.
fn endpoints(addresses: &[Ipv4Addr]) -> Value {
    let endpoint = |address: &Ipv4Addr| {
        let pod = format!("pod-{:08x}-x{}", address.to_bits(), address.octets()[3]);
        json!({
            "addresses": [address], "conditions": { "ready": true, "serving": true, "terminating": false },
            "nodeName": "node-1", "zone": "zone-1",
            "targetRef": { "kind": "Pod", "namespace": NAMESPACE, "name": pod, "uid": format!("00000004-0000-4000-8000-{:012x}", address.to_bits()) },
        })
    };
    addresses.iter().map(endpoint).collect()
}
