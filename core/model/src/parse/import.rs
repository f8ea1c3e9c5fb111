//! [`parse_service_import`]: what can be used of a ServiceImport.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Deserialize;

use super::{Fault, Faults, addresses, namespaced, parse_port, parse_protocol};
use crate::import::ServiceImport;
use crate::service::ServicePort;

/// `spec` of a ServiceImport, as far as names depend on it. The API is an extension, so no library has it.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(default)]
pub struct ServiceImportSpec {
    /// `ClusterSetIP` or `Headless`.
    #[serde(rename = "type")]
    pub type_: String,
    /// Addresses of the Service in the set of clusters.
    pub ips: Vec<String>,
    /// Its ports.
    pub ports: Vec<ServiceImportPort>,
}

/// An entry of `spec.ports`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(default)]
pub struct ServiceImportPort {
    /// Empty for the only port of a Service that does not name it.
    pub name: Option<String>,
    /// TCP where the object says nothing.
    pub protocol: Option<String>,
    /// The port.
    pub port: i32,
}

/// A ServiceImport. `None` when it has no name or a type that is not known.
pub fn parse_service_import(
    meta: &ObjectMeta,
    spec: &ServiceImportSpec,
    faults: &mut Vec<Fault>,
) -> Option<ServiceImport> {
    let mut faults = Faults::new("ServiceImport", meta, faults);
    let name = namespaced(meta, &mut faults)?;
    let headless = match spec.type_.as_str() {
        "ClusterSetIP" => false,
        "Headless" => true,
        other => {
            faults.push("spec.type", format!("{other:?} is not one of ClusterSetIP, Headless"));
            return None;
        }
    };
    let mut ports = Vec::new();
    for (i, port) in spec.ports.iter().enumerate() {
        let field = |name: &str| format!("spec.ports[{i}].{name}");
        let number = faults.keep(|| field("port"), parse_port(port.port));
        let protocol = faults.keep(|| field("protocol"), parse_protocol(port.protocol.as_deref()));
        let (Some(port_number), Some(protocol)) = (number, protocol) else {
            continue;
        };
        ports.push(ServicePort {
            name: port.name.as_deref().unwrap_or_default().into(),
            protocol,
            port: port_number,
            node_port: None,
        });
    }
    Some(ServiceImport {
        name,
        headless,
        ips: addresses("spec.ips", Some(&spec.ips), &mut faults),
        ports,
    })
}
