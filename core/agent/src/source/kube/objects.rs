//! Kubernetes objects from protobuf, without what nobody here looks at.
//!
//! What is left out here is never there: a field that a `parse_*` function of the model reads has to be read here, too.
//! `managedFields`, annotations, container specifications, lists of images are passed over without a copy. The numbers of
//! the fields are those of the API's `generated.proto` files, which never change.

use k8s_openapi::api::{core::v1 as core, discovery::v1 as discovery, networking::v1 as networking};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use k8s_openapi::jiff::Timestamp;
use portolan_model::parse;

use super::body::Malformed;
use super::protobuf::{Fields, Value};

/// Which labels of an object are read.
#[derive(Clone, Copy)]
enum Labels {
    None,
    Only(&'static [&'static str]),
    All,
}

pub(crate) fn service(object: Fields<'_>) -> Result<core::Service, Malformed> {
    let mut found = core::Service::default();
    for field in object {
        match field? {
            (1, value) => found.metadata = metadata(value.fields()?, Labels::None)?,
            (2, value) => found.spec = Some(service_spec(value.fields()?)?),
            (3, value) => found.status = service_status(value.fields()?)?,
            _ => {}
        }
    }
    Ok(found)
}

fn service_spec(spec: Fields<'_>) -> Result<core::ServiceSpec, Malformed> {
    let mut found = core::ServiceSpec::default();
    for field in spec {
        match field? {
            (1, value) => found.ports.get_or_insert_default().push(service_port(value.fields()?)?),
            (3, value) => found.cluster_ip = value.string()?,
            (4, value) => found.type_ = value.string()?,
            (5, value) => push(&mut found.external_ips, value)?,
            (7, value) => found.session_affinity = value.string()?,
            (9, value) => push(&mut found.load_balancer_source_ranges, value)?,
            (10, value) => found.external_name = value.string()?,
            (11, value) => found.external_traffic_policy = value.string()?,
            (12, value) => found.health_check_node_port = Some(value.int32()?),
            (13, value) => found.publish_not_ready_addresses = Some(value.flag()?),
            (14, value) => found.session_affinity_config = Some(affinity_config(value.fields()?)?),
            (18, value) => push(&mut found.cluster_ips, value)?,
            (19, value) => push(&mut found.ip_families, value)?,
            (22, value) => found.internal_traffic_policy = value.string()?,
            _ => {}
        }
    }
    Ok(found)
}

fn service_port(port: Fields<'_>) -> Result<core::ServicePort, Malformed> {
    let mut found = core::ServicePort::default();
    for field in port {
        match field? {
            (1, value) => found.name = value.string()?,
            (2, value) => found.protocol = value.string()?,
            (3, value) => found.port = value.int32()?,
            (5, value) => found.node_port = Some(value.int32()?),
            _ => {}
        }
    }
    Ok(found)
}

fn affinity_config(config: Fields<'_>) -> Result<core::SessionAffinityConfig, Malformed> {
    let mut found = core::SessionAffinityConfig::default();
    for client in messages(config, 1) {
        let client_ip = found.client_ip.get_or_insert_default();
        for field in client? {
            if let (1, value) = field? {
                client_ip.timeout_seconds = Some(value.int32()?);
            }
        }
    }
    Ok(found)
}

fn service_status(status: Fields<'_>) -> Result<Option<core::ServiceStatus>, Malformed> {
    let mut ingress = Vec::new();
    for load_balancer in messages(status, 1) {
        for entry in messages(load_balancer?, 1) {
            let mut found = core::LoadBalancerIngress::default();
            for field in entry? {
                match field? {
                    (1, value) => found.ip = value.string()?,
                    (2, value) => found.hostname = value.string()?,
                    (3, value) => found.ip_mode = value.string()?,
                    _ => {}
                }
            }
            ingress.push(found);
        }
    }
    Ok((!ingress.is_empty()).then(|| core::ServiceStatus {
        load_balancer: Some(core::LoadBalancerStatus { ingress: Some(ingress) }),
        ..core::ServiceStatus::default()
    }))
}

/// Names are what only a DNS server asks for: host names, pods, zones.
pub(crate) fn endpoint_slice(object: Fields<'_>, names: bool) -> Result<discovery::EndpointSlice, Malformed> {
    let mut found = discovery::EndpointSlice::default();
    for field in object {
        match field? {
            (1, value) => found.metadata = metadata(value.fields()?, Labels::Only(&parse::SLICE_LABELS))?,
            (2, value) => found.endpoints.push(endpoint(value.fields()?, names)?),
            (3, value) => found
                .ports
                .get_or_insert_default()
                .push(endpoint_port(value.fields()?)?),
            (4, value) => found.address_type = value.text()?.into(),
            _ => {}
        }
    }
    Ok(found)
}

fn endpoint_port(port: Fields<'_>) -> Result<discovery::EndpointPort, Malformed> {
    let mut found = discovery::EndpointPort::default();
    for field in port {
        match field? {
            (1, value) => found.name = value.string()?,
            (2, value) => found.protocol = value.string()?,
            (3, value) => found.port = Some(value.int32()?),
            _ => {}
        }
    }
    Ok(found)
}

fn endpoint(endpoint: Fields<'_>, names: bool) -> Result<discovery::Endpoint, Malformed> {
    let mut found = discovery::Endpoint::default();
    for field in endpoint {
        match field? {
            (1, value) => found.addresses.push(value.text()?.into()),
            (2, value) => {
                let conditions = found.conditions.get_or_insert_default();
                for field in value.fields()? {
                    match field? {
                        (1, value) => conditions.ready = Some(value.flag()?),
                        (2, value) => conditions.serving = Some(value.flag()?),
                        (3, value) => conditions.terminating = Some(value.flag()?),
                        _ => {}
                    }
                }
            }
            (3, value) if names => found.hostname = value.string()?,
            (4, value) if names => found.target_ref = Some(reference(value.fields()?)?),
            (6, value) => found.node_name = value.string()?,
            (7, value) if names => found.zone = value.string()?,
            (8, value) => found.hints = Some(hints(value.fields()?)?),
            _ => {}
        }
    }
    Ok(found)
}

fn reference(reference: Fields<'_>) -> Result<core::ObjectReference, Malformed> {
    let mut found = core::ObjectReference::default();
    for field in reference {
        match field? {
            (1, value) => found.kind = value.string()?,
            (2, value) => found.namespace = value.string()?,
            (3, value) => found.name = value.string()?,
            _ => {}
        }
    }
    Ok(found)
}

fn hints(hints: Fields<'_>) -> Result<discovery::EndpointHints, Malformed> {
    let mut found = discovery::EndpointHints::default();
    for field in hints {
        match field? {
            (1, value) => {
                let name = name_of(value)?;
                found
                    .for_zones
                    .get_or_insert_default()
                    .push(discovery::ForZone { name });
            }
            (2, value) => {
                let name = name_of(value)?;
                found
                    .for_nodes
                    .get_or_insert_default()
                    .push(discovery::ForNode { name });
            }
            _ => {}
        }
    }
    Ok(found)
}

pub(crate) fn node(object: Fields<'_>) -> Result<core::Node, Malformed> {
    let mut found = core::Node::default();
    for field in object {
        match field? {
            (1, value) => found.metadata = metadata(value.fields()?, Labels::All)?,
            (2, value) => {
                let spec = found.spec.get_or_insert_default();
                for field in value.fields()? {
                    match field? {
                        (1, value) => spec.pod_cidr = value.string()?,
                        (5, value) => spec.taints.get_or_insert_default().push(core::Taint {
                            key: name_of(value)?,
                            ..core::Taint::default()
                        }),
                        (7, value) => push(&mut spec.pod_cidrs, value)?,
                        _ => {}
                    }
                }
            }
            (3, value) => {
                let status = found.status.get_or_insert_default();
                for address in messages(value.fields()?, 5) {
                    let mut entry = core::NodeAddress::default();
                    for field in address? {
                        match field? {
                            (1, value) => entry.type_ = value.text()?.into(),
                            (2, value) => entry.address = value.text()?.into(),
                            _ => {}
                        }
                    }
                    status.addresses.get_or_insert_default().push(entry);
                }
            }
            _ => {}
        }
    }
    Ok(found)
}

pub(crate) fn namespace(object: Fields<'_>) -> Result<core::Namespace, Malformed> {
    let mut found = core::Namespace::default();
    for meta in messages(object, 1) {
        found.metadata = metadata(meta?, Labels::All)?;
    }
    Ok(found)
}

pub(crate) fn pod(object: Fields<'_>) -> Result<core::Pod, Malformed> {
    let mut found = core::Pod::default();
    for field in object {
        match field? {
            (1, value) => found.metadata = metadata(value.fields()?, Labels::None)?,
            (2, value) => {
                let spec = found.spec.get_or_insert_default();
                for field in value.fields()? {
                    match field? {
                        (10, value) => spec.node_name = value.string()?,
                        (11, value) => spec.host_network = Some(value.flag()?),
                        _ => {}
                    }
                }
            }
            (3, value) => {
                let status = found.status.get_or_insert_default();
                for field in value.fields()? {
                    match field? {
                        (1, value) => status.phase = value.string()?,
                        (6, value) => status.pod_ip = value.string()?,
                        (12, value) => status
                            .pod_ips
                            .get_or_insert_default()
                            .push(core::PodIP { ip: name_of(value)? }),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    Ok(found)
}

pub(crate) fn service_cidr(object: Fields<'_>) -> Result<networking::ServiceCIDR, Malformed> {
    let mut found = networking::ServiceCIDR::default();
    for field in object {
        match field? {
            (1, value) => found.metadata = metadata(value.fields()?, Labels::None)?,
            (2, value) => {
                let spec = found.spec.get_or_insert_default();
                for field in value.fields()? {
                    if let (1, value) = field? {
                        push(&mut spec.cidrs, value)?;
                    }
                }
            }
            _ => {}
        }
    }
    Ok(found)
}

fn metadata(meta: Fields<'_>, labels: Labels) -> Result<ObjectMeta, Malformed> {
    let mut found = ObjectMeta::default();
    for field in meta {
        match field? {
            (1, value) => found.name = value.string()?,
            (3, value) => found.namespace = value.string()?,
            (6, value) => found.resource_version = value.string()?,
            (9, value) => found.deletion_timestamp = Some(time(value.fields()?)?),
            (11, value) => {
                let (key, value) = pair(value)?;
                let wanted = match labels {
                    Labels::None => false,
                    Labels::Only(wanted) => wanted.contains(&key),
                    Labels::All => true,
                };
                if wanted {
                    found.labels.get_or_insert_default().insert(key.into(), value.into());
                }
            }
            (12, value) => {
                let (key, value) = pair(value)?;
                if key == parse::LAST_CHANGE_TRIGGER {
                    found
                        .annotations
                        .get_or_insert_default()
                        .insert(key.into(), value.into());
                }
            }
            _ => {}
        }
    }
    Ok(found)
}

fn time(time: Fields<'_>) -> Result<Time, Malformed> {
    let mut seconds = 0;
    for field in time {
        if let (1, Value::Number(number)) = field? {
            seconds = number.cast_signed();
        }
    }
    Ok(Time(Timestamp::from_second(seconds).unwrap_or_default()))
}

/// An entry of a map of text.
fn pair(entry: Value<'_>) -> Result<(&str, &str), Malformed> {
    let (mut key, mut text) = ("", "");
    for field in entry.fields()? {
        match field? {
            (1, value) => key = value.text()?,
            (2, value) => text = value.text()?,
            _ => {}
        }
    }
    Ok((key, text))
}

/// The first field of a message, a text.
fn name_of(message: Value<'_>) -> Result<String, Malformed> {
    let mut name = "";
    for field in message.fields()? {
        if let (1, value) = field? {
            name = value.text()?;
        }
    }
    Ok(name.into())
}

fn push(list: &mut Option<Vec<String>>, value: Value<'_>) -> Result<(), Malformed> {
    list.get_or_insert_default().push(value.text()?.into());
    Ok(())
}

/// The messages in fields of this number.
fn messages<'a>(message: Fields<'a>, number: u32) -> impl Iterator<Item = Result<Fields<'a>, Malformed>> {
    message.filter_map(move |field| match field {
        Ok((found, value)) => (found == number).then(|| value.fields()),
        Err(error) => Some(Err(error)),
    })
}
