//! EDNS options, access rules and the size of datagrams, on both answer paths.

use std::net::IpAddr;
use std::sync::Arc;

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::rdata::opt::EdnsOption;
use portolan_dns::answer::{Answered, Client, Transport, Verdict, answer, slow};
use portolan_dns::zone::config::Domain;
use portolan_dns::zone::policy::{AclAction, AclRule};
use portolan_dns::zone::{Policy, Snapshot};

use crate::fixture::{CLUSTER, config, query, with_edns, zone};
use crate::protocol::from;

fn snapshot(policy: Policy) -> Arc<Snapshot> {
    let mut config = config();
    config.policy = Arc::new(policy);
    zone(CLUSTER, config).reader().load_full()
}

/// The response of the fast path and of the slow one, which must be the same.
fn say(snapshot: &Snapshot, sent: &Message, client: &Client) -> Option<Message> {
    let bytes = sent.to_vec().unwrap();
    let mut out = vec![0; 65_535];
    let read = |verdict| match verdict {
        Verdict::Answer(Answered { length, .. }) => Some(length),
        Verdict::Drop => None,
        other => panic!("{other:?}"),
    };
    let fast =
        read(answer(&bytes, snapshot, client, &mut out)).map(|length| Message::from_vec(&out[..length]).unwrap());
    let slow = read(slow::answer(&bytes, snapshot, client, &mut out));
    let slow = slow.map(|length| Message::from_vec(&out[..length]).unwrap());
    assert_eq!(fast, slow, "both paths");
    fast
}

fn with_option(question: &str, code: u16, data: &[u8]) -> Message {
    let mut message = with_edns(query(question), 1232);
    let option = EdnsOption::Unknown(code, data.to_vec());
    message.edns.as_mut().unwrap().options_mut().insert(option);
    message
}

fn option(reply: &Message, code: u16) -> Option<Vec<u8>> {
    let option = reply.edns.as_ref()?.options().get(code.into())?;
    Some(Vec::<u8>::try_from(option).unwrap())
}

/// A name that exists, one that does not, an alias and one that is refused: each takes its own way through the code.
const QUESTIONS: [&str; 4] = [
    "web.shop.svc A",
    "gone.shop.svc A",
    "alias.shop.svc A",
    "cluster.local. AXFR",
];

#[test]
fn the_server_tells_its_name_to_those_who_ask() {
    let named = snapshot(Policy {
        nsid: Some((*b"node-1").into()),
        ..Policy::default()
    });
    let client = from(Transport::Udp);
    for question in QUESTIONS {
        let reply = say(&named, &with_option(question, 3, b""), &client).unwrap();
        assert_eq!(option(&reply, 3).as_deref(), Some(&b"node-1"[..]), "{question}");
        let reply = say(&named, &with_edns(query(question), 1232), &client).unwrap();
        assert_eq!(option(&reply, 3), None, "{question}");
        let reply = say(&snapshot(Policy::default()), &with_option(question, 3, b""), &client).unwrap();
        assert_eq!(option(&reply, 3), None, "{question}");
    }
}

#[test]
fn cookies_bind_client_and_server() {
    let secret = snapshot(Policy {
        cookie_secret: Some(*b"0123456789abcdef"),
        ..Policy::default()
    });
    let mut client = from(Transport::Udp);
    client.now = 1_700_000_000;
    let own = *b"clientck";
    let mut seen = Vec::new();
    for question in QUESTIONS {
        let reply = say(&secret, &with_option(question, 10, &own), &client).unwrap();
        let cookie = option(&reply, 10).unwrap();
        assert_eq!((cookie.len(), &cookie[..8]), (24, &own[..]), "{question}");
        seen.push(cookie);
    }
    seen.dedup();
    assert_eq!(seen.len(), 1, "one client has one cookie at one time");
    // With the cookie that it was given it is given the same.
    let reply = say(&secret, &with_option("web.shop.svc A", 10, &seen[0]), &client).unwrap();
    assert_eq!(option(&reply, 10).as_ref(), Some(&seen[0]));
    // Another address gets another one.
    let other = Client {
        address: IpAddr::from([127, 0, 0, 2]),
        ..client
    };
    let reply = say(&secret, &with_option("web.shop.svc A", 10, &own), &other).unwrap();
    assert_ne!(option(&reply, 10).as_ref(), Some(&seen[0]));
    for length in [0, 7, 9, 15, 41] {
        let reply = say(&secret, &with_option("web.shop.svc A", 10, &vec![7; length]), &client).unwrap();
        assert_eq!(reply.metadata.response_code, ResponseCode::FormErr, "{length}");
    }
    // Without a secret none is given, and none is echoed.
    let reply = say(
        &snapshot(Policy::default()),
        &with_option("web.shop.svc A", 10, &own),
        &client,
    )
    .unwrap();
    assert_eq!(option(&reply, 10), None);
}

#[test]
fn answers_of_a_lost_source_say_so() {
    let mut zone = zone(CLUSTER, config());
    zone.set_stale(true);
    let stale = [&3u16.to_be_bytes()[..], b"the source of the cluster's names is lost"].concat();
    for (lost, expect) in [(true, Some(stale)), (false, None)] {
        zone.set_stale(lost);
        for question in ["web.shop.svc A", "gone.shop.svc A", "alias.shop.svc A"] {
            let reply = say(
                &zone.reader().load(),
                &with_edns(query(question), 1232),
                &from(Transport::Udp),
            )
            .unwrap();
            assert_eq!(option(&reply, 15), expect, "{question}");
            let plain = say(&zone.reader().load(), &query(question), &from(Transport::Udp)).unwrap();
            assert!(plain.edns.is_none());
        }
    }
}

#[test]
fn rules_decide_who_may_ask_what() {
    let rule = |zones: &[&str], action, types: &[u16], sources: &[&str]| AclRule {
        zones: zones.iter().map(|zone| Domain::new(zone).unwrap()).collect(),
        action,
        types: types.to_vec(),
        sources: sources.iter().map(|net| net.parse().unwrap()).collect(),
    };
    let rules = snapshot(Policy {
        acl: vec![
            rule(&[], AclAction::Allow, &[], &["10.1.0.0/16"]),
            rule(&["shop.svc.cluster.local"], AclAction::Block, &[1], &["10.0.0.0/8"]),
            rule(&[], AclAction::Filter, &[28], &["10.0.0.0/8"]),
            rule(
                &["cluster.local"],
                AclAction::Drop,
                &[],
                &["192.0.2.0/24", "2001:db8::/32"],
            ),
        ],
        ..Policy::default()
    });
    let check = |source: &str, question: &str, expect: &str| {
        let address: IpAddr = source.parse().unwrap();
        let reply = say(
            &rules,
            &with_edns(query(question), 1232),
            &Client::new(Transport::Udp, address),
        );
        let said = match &reply {
            None => "nothing".to_owned(),
            Some(reply) => {
                let ede = option(reply, 15).map_or(0, |data| u16::from_be_bytes([data[0], data[1]]));
                format!("{:?} {} {ede}", reply.metadata.response_code, reply.answers.len())
            }
        };
        assert_eq!(said, expect, "{source} {question}");
    };
    check("127.0.0.1", "web.shop.svc A", "NoError 1 0");
    check("10.2.0.1", "web.shop.svc A", "Refused 0 15");
    check("10.2.0.1", "Web.SHOP.svc A", "Refused 0 15");
    check("10.1.0.1", "web.shop.svc A", "NoError 1 0");
    check("10.2.0.1", "web.shop.svc SRV", "NoError 2 0");
    check("10.2.0.1", "dual.shop.svc AAAA", "NoError 0 17");
    check("10.2.0.1", "nginx.default.svc A", "NoError 2 0");
    check("192.0.2.9", "nginx.default.svc A", "nothing");
    check("::ffff:192.0.2.9", "nginx.default.svc A", "nothing");
    check("2001:db8::9", "nginx.default.svc A", "nothing");
}

#[test]
fn datagrams_are_as_large_as_configured_and_records_keep_their_order_when_asked() {
    let endpoints: Vec<_> = (1..=100).map(|i| format!("- {{addresses: [10.9.0.{i}]}}")).collect();
    let yaml = format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: large, namespace: default}}\n\
         spec: {{clusterIP: None, clusterIPs: [None], ports: [{{name: web, port: 80}}]}}\n---\n\
         apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\naddressType: IPv4\n\
         metadata: {{name: large-1, namespace: default, labels: {{kubernetes.io/service-name: large}}}}\n\
         ports: [{{name: web, port: 80}}]\nendpoints:\n{}\n",
        endpoints.join("\n")
    );
    let mut config = config();
    config.policy = Arc::new(Policy {
        bufsize: 4096,
        shuffle: false,
        ..Policy::default()
    });
    let zone = zone(&yaml, config).reader().load_full();
    for (payload, count) in [(4096, 100), (1232, 73), (512, 28)] {
        let sent = with_edns(query("large.default.svc A"), payload);
        for rotation in [0, 7] {
            let reply = say(&zone, &sent, &from(Transport::Udp).rotated(rotation)).unwrap();
            assert_eq!(reply.answers.len(), count, "{payload}");
            assert_eq!(reply.metadata.truncation, count < 100);
            assert_eq!(reply.answers[0].data.to_string(), "10.9.0.1");
            assert_eq!(reply.edns.unwrap().max_payload(), 4096);
        }
    }
}
