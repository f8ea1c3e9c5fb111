//! A World from YAML, and what a response says as text.

use std::collections::BTreeSet;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, Record, RecordType};
use hickory_proto::serialize::binary::BinDecodable;
use portolan_dns::zone::config::PodMode;
use portolan_dns::zone::names;
use portolan_dns::zone::{Zone, ZoneConfig};
use portolan_model::{Delta, Event, Interner, Object, World, parse};

/// The cluster of `cluster.yaml`.
pub const CLUSTER: &str = include_str!("cluster.yaml");

/// The events that the documents of a YAML text make.
pub fn events(yaml: &str) -> Vec<Event> {
    let mut interner = Interner::default();
    let mut faults = Vec::new();
    let mut events = Vec::new();
    for document in yaml.split("\n---\n") {
        let value: serde_json::Value = serde_saphyr::from_str(document).unwrap_or_else(|e| panic!("{e}: {document}"));
        let read = |e| panic!("{e}: {document}");
        let object = match value["kind"].as_str().unwrap() {
            "Service" => parse::parse_service(&serde_json::from_value(value).unwrap_or_else(read), &mut faults)
                .map(|object| Object::Service(Box::new(object))),
            "EndpointSlice" => {
                let slice = serde_json::from_value(value).unwrap_or_else(|e| panic!("{e}: {document}"));
                parse::parse_endpoint_slice(&slice, &mut interner, &mut faults).map(Object::EndpointSlice)
            }
            "Namespace" => {
                let namespace = serde_json::from_value(value).unwrap_or_else(|e| panic!("{e}: {document}"));
                parse::parse_namespace(&namespace, &mut faults).map(Object::Namespace)
            }
            "ServiceImport" => {
                let meta = serde_json::from_value(value["metadata"].clone()).unwrap();
                let spec = serde_json::from_value(value["spec"].clone()).unwrap();
                parse::parse_service_import(&meta, &spec, &mut faults)
                    .map(|import| Object::ServiceImport(Box::new(import)))
            }
            "Pod" => {
                let pod = serde_json::from_value(value).unwrap_or_else(|e| panic!("{e}: {document}"));
                parse::parse_pod(&pod, &mut interner, &mut faults).map(|pod| Object::Pod(Box::new(pod)))
            }
            other => panic!("no kind {other} here"),
        };
        events.push(Event::Apply(object.unwrap_or_else(|| panic!("{document}"))));
    }
    assert_eq!(faults, [], "the fixture has no faults");
    events
}

/// The configuration that most tests use: one zone, pods by any address.
pub fn config() -> ZoneConfig {
    let mut config = ZoneConfig::new(&["cluster.local".to_owned()]).unwrap();
    config.set_pods(PodMode::Insecure);
    config
}

/// A synced zone that holds the cluster of a YAML text.
pub fn zone(yaml: &str, config: ZoneConfig) -> Zone {
    let (mut world, mut delta) = (World::default(), Delta::default());
    for event in events(yaml) {
        world.apply(event, &mut delta);
    }
    let mut zone = Zone::new(config, 1);
    zone.apply(&world, &delta, 1);
    zone.set_synced();
    zone
}

/// A query for `NAME TYPE`. Names without a dot at the end are below `cluster.local`.
pub fn query(question: &str) -> Message {
    let (name, type_) = question.split_once(' ').unwrap();
    let name = if name.ends_with('.') {
        name.to_owned()
    } else {
        format!("{name}.cluster.local.")
    };
    let mut message = Message::new(4711, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    // hickory-proto reads the name of every type but this one.
    let type_: RecordType = match type_ {
        "IXFR" => RecordType::IXFR,
        _ => type_.parse().unwrap(),
    };
    // Not hickory-proto's reader of text, which refuses names that packets may well hold.
    let wire = names::wire_from_text(&name).unwrap();
    message.add_query(Query::query(Name::from_bytes(&wire).unwrap(), type_));
    message
}

/// The same with an OPT record.
pub fn with_edns(mut message: Message, payload: u16) -> Message {
    let mut edns = Edns::new();
    edns.set_max_payload(payload);
    message.set_edns(edns);
    message
}

/// What a response says: the rcode, answers, `+` before additional records. An SOA in the authority section makes
/// `NODATA` of NOERROR without answers; anything else there is shown. Order is left out, letter case of names kept.
pub fn said(response: &Message) -> BTreeSet<String> {
    let mut lines: BTreeSet<String> = response.answers.iter().map(line).collect();
    let negative = response.authorities.iter().any(|r| r.record_type() == RecordType::SOA);
    let rcode = match response.metadata.response_code {
        ResponseCode::NoError if negative && lines.is_empty() => "NODATA",
        ResponseCode::NoError if negative => "NODATA behind the alias",
        ResponseCode::NoError => "",
        ResponseCode::NXDomain if negative => "NXDOMAIN",
        ResponseCode::NXDomain => "NXDOMAIN without SOA",
        ResponseCode::Refused => "REFUSED",
        ResponseCode::ServFail => "SERVFAIL",
        ResponseCode::FormErr => "FORMERR",
        ResponseCode::NotImp => "NOTIMP",
        // 16 is both.
        ResponseCode::BADVERS | ResponseCode::BADSIG => "BADVERS",
        _ => "another rcode",
    };
    lines.extend((!rcode.is_empty()).then(|| rcode.to_owned()));
    lines.extend(response.additionals.iter().map(|record| format!("+ {}", line(record))));
    lines
}

fn line(record: &Record) -> String {
    format!(
        "{} {} {} {}",
        record.name,
        record.ttl,
        record.record_type(),
        record.data
    )
}
