//! The objects: Services with hand-made EndpointSlices, as many as wanted, and the changes that are made to one of them.
//!
//! Services are named and numbered in the order of their creation, which is also the order of every list. Those that the
//! bench connects to have real pods as endpoints; the others have addresses of 10.128.0.0/10, where nobody is.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use anyhow::{Context as _, Result};
use portolan_lab::api::ApiClient;
use portolan_lab::lab::Pod;
use portolan_lab::object::ObjectKey;
use serde_json::{Value, json};

use crate::store::{Record, Store};

/// The namespace of all objects.
pub const NAMESPACE: &str = "bench";
/// The port that the pods listen on.
pub const SERVER_PORT: u16 = 8080;
/// The port of every Service.
const SERVICE_PORT: u16 = 80;
/// Cluster IPs are given from 10.96.1.0 on: below are those of the cluster itself.
const FIRST_CLUSTER_IP: u32 = u32::from_be_bytes([10, 96, 1, 0]);
/// Endpoints without a pod are given from here on.
const FIRST_SILENT_ADDRESS: u32 = u32::from_be_bytes([10, 128, 0, 0]);
/// How many Services are made in memory before they are written.
const IN_MEMORY: usize = 1000;
/// The label by which a slice belongs to a Service.
const SERVICE_LABEL: &str = "kubernetes.io/service-name";

/// What is on the API server.
#[derive(Debug)]
pub struct Scale {
    api: ApiClient,
    store: Store,
    node: String,
    /// One more than a Service has endpoints: one of them is always left out.
    servers: Vec<Arc<Pod>>,
    left_out: usize,
    services: u32,
    /// The numbers of the Services with real pods; the last is also the last that was made.
    real: Vec<u32>,
}

/// What a change does to the newest Service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// An endpoint takes the place of another one.
    Replaced,
    /// There is one endpoint more.
    Added,
}

/// A change of one endpoint, about to be made.
#[derive(Debug)]
pub struct Change {
    /// The pod that becomes an endpoint.
    pub newcomer: String,
    key: ObjectKey,
    patch: Value,
}

// === impl Scale ===

impl Scale {
    /// No Service yet. `servers` run on `node`.
    ///
    /// # Errors
    /// When the API server refuses the namespace.
    pub fn new(api: ApiClient, store: Store, node: &str, servers: Vec<Arc<Pod>>) -> Result<Self> {
        api.create(&json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": NAMESPACE } }))?;
        Ok(Self {
            api,
            store,
            node: node.to_owned(),
            servers,
            left_out: 0,
            services: 0,
            real: Vec::new(),
        })
    }

    /// How many endpoints each Service has.
    pub fn endpoints(&self) -> usize {
        self.servers.len() - 1
    }

    /// Makes Services until there are `services`; the first, the middle and the last of the new ones have real pods. The
    /// first and the last are made by the API server, all between in the likeness of the first.
    ///
    /// # Errors
    /// When the API server or etcd refuses one.
    pub fn grow(&mut self, services: u32) -> Result<()> {
        let (first, last) = (self.services, services.saturating_sub(1));
        let middle = first.midpoint(last);
        self.create(first)?;
        let model = self.model(first)?;
        let between: Vec<u32> = (first + 1..last).collect();
        for numbers in between.chunks(IN_MEMORY) {
            let records: Vec<Record> = numbers
                .iter()
                .flat_map(|number| self.records(&model, *number, *number == middle))
                .collect();
            self.store.write(&records)?;
        }
        self.create(last)?;
        self.services = services;
        self.real.extend([first, middle, last]);
        Ok(())
    }

    /// The cluster IP and port of the Service that was made last.
    ///
    /// # Errors
    /// Before there is one.
    pub fn newest(&self) -> Result<SocketAddr> {
        self.real
            .last()
            .map(|number| service_address(*number))
            .context("there is no Service yet")
    }

    /// The cluster IPs and ports of all Services that real pods stand behind.
    pub fn service_addresses(&self) -> Vec<SocketAddr> {
        self.real.iter().map(|number| service_address(*number)).collect()
    }

    /// The addresses and ports of the pods that are endpoints at present.
    pub fn pod_addresses(&self) -> Vec<SocketAddr> {
        self.present().map(|pod| (pod.address.v4, SERVER_PORT).into()).collect()
    }

    /// The next change: the pod that is left out takes the place of another in the newest Service, or joins the others.
    ///
    /// # Errors
    /// Before there is a Service.
    pub fn next_change(&mut self, kind: Kind) -> Result<Change> {
        let newcomer = self.servers.get(self.left_out).context("there are no pods")?;
        let newcomer = newcomer.name.clone();
        let endpoints = match kind {
            Kind::Replaced => {
                self.left_out = (self.left_out + 1) % self.servers.len();
                self.real_endpoints()
            }
            Kind::Added => self.servers.iter().map(|pod| self.endpoint(pod.address.v4)).collect(),
        };
        self.patch(newcomer, &endpoints)
    }

    /// What takes back that an endpoint was added.
    ///
    /// # Errors
    /// Before there is a Service.
    pub fn undo(&self) -> Result<Change> {
        self.patch(String::new(), &self.real_endpoints())
    }

    fn patch(&self, newcomer: String, endpoints: &[Value]) -> Result<Change> {
        let number = *self.real.last().context("there is no Service yet")?;
        Ok(Change {
            newcomer,
            key: ObjectKey::namespaced("EndpointSlice", NAMESPACE, &service_name(number)),
            patch: json!({ "endpoints": endpoints }),
        })
    }

    /// Makes the change and returns once the API server has answered.
    ///
    /// # Errors
    /// When the API server refuses it.
    pub fn make(&self, change: &Change) -> Result<()> {
        self.api.patch(&change.key, &change.patch)
    }

    fn present(&self) -> impl Iterator<Item = &Arc<Pod>> {
        let left_out = self.left_out;
        self.servers
            .iter()
            .enumerate()
            .filter(move |(n, _)| *n != left_out)
            .map(|(_, pod)| pod)
    }

    fn real_endpoints(&self) -> Vec<Value> {
        self.present().map(|pod| self.endpoint(pod.address.v4)).collect()
    }

    fn silent_endpoints(&self, number: u32) -> Vec<Value> {
        let count = u32::try_from(self.endpoints()).unwrap_or(u32::MAX);
        let first = FIRST_SILENT_ADDRESS + number * count;
        (first..first + count)
            .map(|address| self.endpoint(Ipv4Addr::from_bits(address)))
            .collect()
    }

    fn endpoint(&self, address: Ipv4Addr) -> Value {
        json!({ "addresses": [address], "conditions": { "ready": true }, "nodeName": self.node })
    }

    /// Lets the API server make one Service without a selector, and its slice with real pods.
    fn create(&self, number: u32) -> Result<()> {
        let name = service_name(number);
        self.api.create(&json!({
            "apiVersion": "v1", "kind": "Service", "metadata": { "namespace": NAMESPACE, "name": name },
            "spec": {
                "clusterIP": cluster_ip(number), "ipFamilyPolicy": "SingleStack", "ipFamilies": ["IPv4"],
                "ports": [{ "name": "http", "protocol": "TCP", "port": SERVICE_PORT, "targetPort": SERVER_PORT }],
            },
        }))?;
        self.api.create(&json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": { "namespace": NAMESPACE, "name": name, "labels": {
                SERVICE_LABEL: name, "endpointslice.kubernetes.io/managed-by": "portolan-bench",
            }},
            "ports": [{ "name": "http", "protocol": "TCP", "port": SERVER_PORT }],
            "endpoints": self.real_endpoints(),
        }))
    }

    /// What the API server has stored for a Service that it made.
    fn model(&self, number: u32) -> Result<Model> {
        let get = |path: String| -> Result<Value> {
            let mut object: Value = serde_json::from_str(&self.api.get_text(&path)?)?;
            // It is not stored: whoever reads gets the store's own revision.
            if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
                metadata.remove("resourceVersion");
            }
            Ok(object)
        };
        let name = service_name(number);
        Ok(Model {
            service: get(format!("/api/v1/namespaces/{NAMESPACE}/services/{name}"))?,
            slice: get(format!(
                "/apis/discovery.k8s.io/v1/namespaces/{NAMESPACE}/endpointslices/{name}"
            ))?,
            address: get(format!("/apis/networking.k8s.io/v1/ipaddresses/{}", cluster_ip(number)))?,
        })
    }

    /// One more Service in the likeness of `model`, with all that belongs to it.
    fn records(&self, model: &Model, number: u32, real: bool) -> [Record; 3] {
        let (name, ip) = (service_name(number), cluster_ip(number));
        let mut service = model.service.clone();
        service["metadata"]["name"] = json!(name);
        service["metadata"]["uid"] = json!(uid(1, number));
        service["spec"]["clusterIP"] = json!(ip);
        service["spec"]["clusterIPs"] = json!([ip]);
        let mut slice = model.slice.clone();
        slice["metadata"]["name"] = json!(name);
        slice["metadata"]["uid"] = json!(uid(2, number));
        slice["metadata"]["labels"][SERVICE_LABEL] = json!(name);
        slice["endpoints"] = json!(if real {
            self.real_endpoints()
        } else {
            self.silent_endpoints(number)
        });
        let mut address = model.address.clone();
        address["metadata"]["name"] = json!(ip);
        address["metadata"]["uid"] = json!(uid(3, number));
        address["spec"]["parentRef"]["name"] = json!(name);
        let record = |key, object| Record { key, object };
        [
            record(format!("/registry/ipaddresses/{ip}"), address),
            record(format!("/registry/services/specs/{NAMESPACE}/{name}"), service),
            record(format!("/registry/endpointslices/{NAMESPACE}/{name}"), slice),
        ]
    }
}

/// What the API server stores for one Service.
struct Model {
    service: Value,
    slice: Value,
    address: Value,
}

fn uid(kind: u32, number: u32) -> String {
    format!("{kind:08x}-0000-4000-8000-{number:012x}")
}

/// Names sort as the numbers do.
fn service_name(number: u32) -> String {
    format!("service-{number:06}")
}

fn cluster_ip(number: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(FIRST_CLUSTER_IP + number)
}

fn service_address(number: u32) -> SocketAddr {
    (cluster_ip(number), SERVICE_PORT).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_do_not_leave_their_ranges() {
        assert_eq!(service_address(0).to_string(), "10.96.1.0:80");
        assert_eq!(cluster_ip(60_000).octets()[..2], [10, 96]);
        let last = Ipv4Addr::from_bits(FIRST_SILENT_ADDRESS + 60_000 * 50);
        assert!(last < Ipv4Addr::new(10, 192, 0, 0), "{last}");
        assert!(service_name(999) < service_name(10_000));
    }
}
