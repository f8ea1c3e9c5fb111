//! Kubernetes objects into the model.
//!
//! Each `parse_*` function takes an object as the API (or a file) gave it and returns what can be used of it. What
//! cannot be used is pushed to `faults` with the object, the field and the cause. `None` means that nothing is left
//! worth having; a caller then keeps what it knew of that object before. Nothing here panics, whatever the object holds.

mod import;
mod node;
mod service;
mod slice;

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use ipnet::IpNet;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::name::NamespacedName;
use crate::service::{Protocol, TrafficPolicy};

pub use import::{ServiceImportPort, ServiceImportSpec, parse_service_import};
pub use node::{TO_BE_DELETED_TAINT, parse_namespace, parse_node, parse_pod, parse_service_cidr};
pub use service::parse_service;
pub use slice::{LAST_CHANGE_TRIGGER, SERVICE_NAME_LABEL, SLICE_LABELS, parse_endpoint_slice};

/// Names an object in a message.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectRef {
    /// The kind, such as `Service`.
    pub kind: &'static str,
    /// Empty for objects without a namespace.
    pub namespace: String,
    /// `metadata.name`, `?` when it has none.
    pub name: String,
}

impl fmt::Display for ObjectRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            write!(f, "{} {}", self.kind, self.name)
        } else {
            write!(f, "{} {}/{}", self.kind, self.namespace, self.name)
        }
    }
}

/// Something in an object that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fault {
    /// The object.
    pub object: ObjectRef,
    /// Path of the field, such as `spec.ports[1].port`.
    pub field: String,
    /// What is wrong with it.
    pub cause: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: {}", self.object, self.field, self.cause)
    }
}

impl std::error::Error for Fault {}

/// Collects the faults of one object.
struct Faults<'a> {
    object: ObjectRef,
    into: &'a mut Vec<Fault>,
}

impl<'a> Faults<'a> {
    fn new(kind: &'static str, meta: &ObjectMeta, into: &'a mut Vec<Fault>) -> Self {
        let object = ObjectRef {
            kind,
            namespace: meta.namespace.clone().unwrap_or_default(),
            name: meta.name.clone().unwrap_or_else(|| "?".into()),
        };
        Self { object, into }
    }

    fn push(&mut self, field: impl Into<String>, cause: impl fmt::Display) {
        self.into.push(Fault {
            object: self.object.clone(),
            field: field.into(),
            cause: cause.to_string(),
        });
    }

    /// Keeps the good value, reports the bad one.
    fn keep<T>(&mut self, field: impl FnOnce() -> String, value: Result<T, String>) -> Option<T> {
        value.map_err(|cause| self.push(field(), cause)).ok()
    }
}

/// An IP address as Kubernetes reads it: leading zeros of an IPv4 part are decimal (KEP-4858, "funny IPs").
///
/// # Errors
/// Says what is wrong with the text.
pub fn parse_ip(text: &str) -> Result<IpAddr, String> {
    if let Ok(ip) = text.parse::<IpAddr>() {
        // The API refuses IPv4-mapped IPv6 addresses in new objects; old ones mean the IPv4 address.
        return Ok(ip.to_canonical());
    }
    let parts: Vec<&str> = text.split('.').collect();
    if let [a, b, c, d] = parts[..] {
        let part = |p: &str| (!p.is_empty() && p.bytes().all(|c| c.is_ascii_digit())).then(|| p.parse::<u8>().ok());
        if let (Some(Some(a)), Some(Some(b)), Some(Some(c)), Some(Some(d))) = (part(a), part(b), part(c), part(d)) {
            return Ok(IpAddr::V4(Ipv4Addr::new(a, b, c, d)));
        }
    }
    Err(format!("{text:?} is not an IP address"))
}

/// A CIDR as Kubernetes reads it; host bits are cleared, surrounding blanks ignored (the API allows them in
/// `loadBalancerSourceRanges`).
///
/// # Errors
/// Says what is wrong with the text.
pub fn parse_cidr(text: &str) -> Result<IpNet, String> {
    let text = text.trim();
    let not_a_cidr = || format!("{text:?} is not a CIDR such as 10.0.0.0/8");
    let (address, prefix) = text.split_once('/').ok_or_else(not_a_cidr)?;
    let address = parse_ip(address)?;
    let prefix = prefix.parse::<u8>().map_err(|_| not_a_cidr())?;
    IpNet::new(address, prefix)
        .map(|net| net.trunc())
        .map_err(|_| not_a_cidr())
}

fn parse_port(number: i32) -> Result<u16, String> {
    match u16::try_from(number) {
        Ok(port) if port != 0 => Ok(port),
        _ => Err(format!("{number} is not a port (1 to 65535)")),
    }
}

fn parse_protocol(text: Option<&str>) -> Result<Protocol, String> {
    match text {
        None | Some("" | "TCP") => Ok(Protocol::Tcp),
        Some("UDP") => Ok(Protocol::Udp),
        Some("SCTP") => Ok(Protocol::Sctp),
        Some(other) => Err(format!("{other:?} is not one of TCP, UDP, SCTP")),
    }
}

fn parse_policy(text: Option<&str>) -> Result<TrafficPolicy, String> {
    match text {
        None | Some("" | "Cluster") => Ok(TrafficPolicy::Cluster),
        Some("Local") => Ok(TrafficPolicy::Local),
        Some(other) => Err(format!("{other:?} is not one of Cluster, Local")),
    }
}

fn namespaced(meta: &ObjectMeta, faults: &mut Faults<'_>) -> Option<NamespacedName> {
    let Some(name) = meta.name.as_deref().filter(|name| !name.is_empty()) else {
        faults.push("metadata.name", "is missing");
        return None;
    };
    Some(NamespacedName::new(
        meta.namespace.as_deref().unwrap_or("default"),
        name,
    ))
}

fn cluster_scoped(meta: &ObjectMeta, faults: &mut Faults<'_>) -> Option<Arc<str>> {
    match meta.name.as_deref() {
        Some(name) if !name.is_empty() => Some(name.into()),
        _ => {
            faults.push("metadata.name", "is missing");
            None
        }
    }
}

fn labels(meta: &ObjectMeta) -> BTreeMap<Box<str>, Box<str>> {
    let labels = meta.labels.iter().flatten();
    labels
        .map(|(key, value)| (key.as_str().into(), value.as_str().into()))
        .collect()
}

/// The addresses among `texts` that can be read, each once.
fn addresses(field: &str, texts: Option<&[String]>, faults: &mut Faults<'_>) -> Vec<IpAddr> {
    let mut found = Vec::new();
    for (i, text) in texts.unwrap_or_default().iter().enumerate() {
        if let Some(ip) = faults.keep(|| format!("{field}[{i}]"), parse_ip(text))
            && !found.contains(&ip)
        {
            found.push(ip);
        }
    }
    found
}

#[cfg(test)]
mod tests;
