//! Messages that are not plain, and answers that do not fit.

use std::collections::BTreeSet;

use hickory_proto::op::{Message, MessageType, OpCode, ResponseCode};
use hickory_proto::rr::{DNSClass, RecordType};
use portolan_dns::answer::{Answered, Client, Transport, Verdict, answer};
use portolan_dns::zone::Snapshot;

use crate::fixture::{CLUSTER, config, query, said, with_edns, zone};
use crate::live::{Live, Setup};

/// A client on loopback.
pub fn from(transport: Transport) -> Client {
    Client::new(transport, [127, 0, 0, 1])
}

/// Asks in process, where a test needs what no socket shows.
pub fn ask(snapshot: &Snapshot, query: &Message, transport: Transport) -> Message {
    let mut out = vec![0; 65_535];
    match answer(&query.to_vec().unwrap(), snapshot, &from(transport), &mut out) {
        Verdict::Answer(answered) => Message::from_vec(&out[..answered.length]).unwrap(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn odd_queries() {
    let zone = zone(CLUSTER, config());
    let snapshot = zone.reader().load_full();
    let ask = |message: &Message| ask(&snapshot, message, Transport::Udp);
    let mut chaos = query("web.shop.svc A");
    chaos.queries[0].set_query_class(DNSClass::CH);
    assert_eq!(ask(&chaos).metadata.response_code, ResponseCode::Refused);
    let mut notify = query("cluster.local. SOA");
    notify.metadata.op_code = OpCode::Notify;
    assert_eq!(ask(&notify).metadata.response_code, ResponseCode::NotImp);
    let mut two = query("web.shop.svc A");
    two.add_query(two.queries[0].clone());
    assert_eq!(ask(&two).metadata.response_code, ResponseCode::FormErr);
    let mut none = query("web.shop.svc A");
    none.queries.clear();
    assert_eq!(ask(&none).metadata.response_code, ResponseCode::FormErr);
    let mut version = with_edns(query("web.shop.svc A"), 1232);
    version.edns.as_mut().unwrap().set_version(1);
    let reply = ask(&version);
    assert_eq!(said(&reply), ["BADVERS".to_owned()].into());
    assert_eq!(reply.edns.unwrap().version(), 0);
    let mut response = query("web.shop.svc A");
    response.metadata.message_type = MessageType::Response;
    let mut out = [0; 512];
    let verdict = answer(&response.to_vec().unwrap(), &snapshot, &from(Transport::Udp), &mut out);
    assert!(matches!(verdict, Verdict::Drop), "a response is never answered");
    for length in 0..12 {
        let verdict = answer(&vec![0; length], &snapshot, &from(Transport::Udp), &mut out);
        assert!(matches!(verdict, Verdict::Drop), "{length} octets are no message");
    }
    let cut = &query("web.shop.svc A").to_vec().unwrap()[..20];
    let Verdict::Answer(Answered { length, .. }) = answer(cut, &snapshot, &from(Transport::Udp), &mut out) else {
        panic!("a broken query is answered")
    };
    assert_eq!(
        Message::from_vec(&out[..length]).unwrap().metadata.response_code,
        ResponseCode::FormErr
    );
}

/// A headless Service of that many endpoints.
fn large(count: usize) -> String {
    let endpoints: Vec<_> = (0..count)
        .map(|i| {
            format!(
                "- {{addresses: [10.{}.{}.{}]}}",
                100 + i / 62_500,
                i / 250 % 250,
                i % 250 + 1
            )
        })
        .collect();
    let slice = "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\naddressType: IPv4\n\
        metadata: {name: large-1, namespace: default, labels: {kubernetes.io/service-name: large}}\n\
        ports: [{name: web, port: 80}]\nendpoints:\n";
    let service = "apiVersion: v1\nkind: Service\nmetadata: {name: large, namespace: default}\n\
        spec: {clusterIP: None, clusterIPs: [None], ports: [{name: web, port: 80}]}\n---\n";
    format!("{service}{slice}{}\n", endpoints.join("\n"))
}

#[test]
fn large_answers_are_cut_and_rotate() {
    let zone = zone(&large(100), config());
    let snapshot = zone.reader().load_full();
    let ask = |payload: Option<u16>, type_: &str, transport, rotation| {
        let mut message = query(&format!("large.default.svc {type_}"));
        if let Some(payload) = payload {
            message = with_edns(message, payload);
        }
        let mut out = vec![0; 65_535];
        let verdict = answer(
            &message.to_vec().unwrap(),
            &snapshot,
            &from(transport).rotated(rotation),
            &mut out,
        );
        let Verdict::Answer(Answered { length, .. }) = verdict else {
            panic!("{verdict:?}")
        };
        (length, Message::from_vec(&out[..length]).unwrap())
    };
    for (payload, limit) in [
        (None, 512),
        (Some(100), 512),
        (Some(700), 700),
        (Some(1232), 1232),
        (Some(4096), 1232),
    ] {
        let (length, reply) = ask(payload, "A", Transport::Udp, 0);
        assert!(length <= limit && length > limit - 16, "{length} of {limit}");
        assert!(reply.metadata.truncation, "{limit}");
        let (length, reply) = ask(payload, "SRV", Transport::Udp, 0);
        assert!(
            length <= limit && reply.metadata.truncation && !reply.answers.is_empty(),
            "{limit}"
        );
    }
    let mut seen = BTreeSet::new();
    for rotation in 0..100 {
        let (_, reply) = ask(None, "A", Transport::Udp, rotation);
        seen.insert(reply.answers[0].data.to_string());
    }
    assert_eq!(seen.len(), 100, "every endpoint comes first some time");
    let (_, reply) = ask(None, "A", Transport::Tcp, 7);
    assert_eq!((reply.answers.len(), reply.metadata.truncation), (100, false));
    let (_, reply) = ask(None, "SRV", Transport::Tcp, 7);
    assert_eq!(
        (reply.answers.len(), reply.additionals.len(), reply.metadata.truncation),
        (100, 100, false)
    );
    assert!(
        reply
            .answers
            .iter()
            .all(|record| record.data.to_string().starts_with("0 1 80 "))
    );
}

#[test]
fn five_thousand_endpoints() {
    let live = Live::start(&zone(&large(5000), config()), Setup::default());
    let mut seen = BTreeSet::new();
    for (type_, least) in [("A", 4000), ("SRV", 700)] {
        let sent = with_edns(query(&format!("large.default.svc {type_}")), 1232);
        let mut firsts = BTreeSet::new();
        for _ in 0..20 {
            let reply = live.udp(&sent);
            assert!(reply.metadata.truncation && !reply.answers.is_empty(), "{type_}");
            firsts.insert(reply.answers[0].data.to_string());
            seen.extend(reply.answers.iter().map(|record| record.data.to_string()));
        }
        assert!(firsts.len() > 10, "another part each time: {firsts:?}");
        // 64 KiB are the end of every DNS message: over TCP it is the largest part that fits, and says that it is one.
        let reply = live.tcp(&sent);
        assert!(
            reply.metadata.truncation && reply.answers.len() > least,
            "{type_}: {}",
            reply.answers.len()
        );
        assert!(reply.answers.len() < 5000);
    }
    assert!(seen.len() > 500, "{}", seen.len());
    let reply = live.tcp(&query("10-100-3-7.large.default.svc A"));
    assert_eq!(reply.answers[0].data.to_string(), "10.100.3.7");
}

#[test]
fn additional_records_are_dropped_without_tc() {
    let zone = zone(&large(6), config());
    let message = query("_web._tcp.large.default.svc SRV");
    let reply = ask(&zone.reader().load(), &message, Transport::Udp);
    assert_eq!(reply.answers.len(), 6);
    assert!(
        !reply.metadata.truncation && reply.additionals.len() < 6,
        "{}",
        reply.additionals.len()
    );
    assert_eq!(reply.queries[0].query_type(), RecordType::SRV);
}
