//! The cache with messages that hickory-proto wrote.

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, SOA};
use hickory_proto::rr::{Name as ProtoName, RData, Record, RecordType};

use super::*;
use crate::answer::ClientEdns;
use crate::zone::names::Name;

fn question(name: &str, edns: bool) -> Question {
    Question {
        id: 7,
        recursion_desired: true,
        name: Name::from_text(name).unwrap(),
        qtype: 1,
        edns: edns.then_some(ClientEdns {
            payload: 1232,
            ..ClientEdns::default()
        }),
        ..Question::default()
    }
}

fn reply(name: &str, ttls: &[u32]) -> Message {
    let name = ProtoName::from_ascii(name).unwrap();
    let mut message = Message::new(99, MessageType::Response, OpCode::Query);
    message.metadata.authoritative = true;
    message.add_query(Query::query(name.clone(), RecordType::A));
    for (i, ttl) in ttls.iter().enumerate() {
        message.add_answer(Record::from_rdata(
            name.clone(),
            *ttl,
            RData::A(A::new(192, 0, 2, i as u8)),
        ));
    }
    message.set_edns(Edns::new());
    message
}

fn negative(rcode: ResponseCode, ttl: u32, minimum: u32) -> Message {
    let mut message = reply("www.example.com.", &[]);
    message.metadata.response_code = rcode;
    let zone = ProtoName::from_ascii("example.com.").unwrap();
    let soa = SOA::new(zone.clone(), zone.clone(), 1, 2, 3, 4, minimum);
    message.add_authority(Record::from_rdata(zone, ttl, RData::SOA(soa)));
    message
}

fn kept(message: &Message) -> Option<u32> {
    prepare(message.to_vec().unwrap()).unwrap().lifetime
}

#[test]
fn messages_are_kept_as_long_as_they_allow() {
    assert_eq!(kept(&reply("www.example.com.", &[300, 60])), Some(60));
    assert_eq!(kept(&reply("www.example.com.", &[86_400])), Some(MAX_POSITIVE));
    assert_eq!(kept(&reply("www.example.com.", &[300, 0])), None);
    assert_eq!(kept(&reply("www.example.com.", &[])), None, "NODATA without SOA");
    assert_eq!(kept(&negative(ResponseCode::NoError, 900, 30)), Some(30));
    assert_eq!(kept(&negative(ResponseCode::NXDomain, 20, 300)), Some(20));
    assert_eq!(
        kept(&negative(ResponseCode::NXDomain, 90_000, 90_000)),
        Some(MAX_NEGATIVE)
    );
    assert_eq!(kept(&negative(ResponseCode::ServFail, 20, 300)), None);
    assert!(prepare(vec![0; 11]).is_none());
    let cut = reply("www.example.com.", &[1]).to_vec().unwrap();
    for length in 0..cut.len() {
        assert!(prepare(cut[..length].to_vec()).is_none(), "{length}");
    }
}

#[test]
fn answers_carry_the_asker_and_the_age() {
    let cache = Cache::new(1 << 20);
    let now = Instant::now();
    let asked = question("www.example.com", false);
    let prepared = prepare(reply("www.example.com.", &[300, 60]).to_vec().unwrap()).unwrap();
    cache.insert(Key::new(asked.name.sent(), &asked), &prepared, now);
    let asker = question("wWw.Example.COM", true);
    let mut out = [0; 512];
    let at = |seconds| now + Duration::from_secs(seconds);
    let length = cache.answer(&asker, Transport::Udp, at(20), &mut out).unwrap();
    let message = Message::from_vec(&out[..length]).unwrap();
    assert_eq!(message.metadata.id, 7);
    assert!(!message.metadata.authoritative && message.metadata.recursion_available);
    assert_eq!(message.queries[0].name().to_ascii(), "wWw.Example.COM.");
    assert_eq!(message.answers.iter().map(|r| r.ttl).collect::<Vec<_>>(), [280, 40]);
    assert_eq!(message.edns.unwrap().max_payload(), 1232);
    assert!(cache.answer(&asker, Transport::Udp, at(60), &mut out).is_none());
    assert!(
        cache
            .answer(&question("example.com", false), Transport::Udp, now, &mut out)
            .is_none()
    );
    let mut other = asked.clone();
    other.checking_disabled = true;
    assert!(cache.answer(&other, Transport::Udp, now, &mut out).is_none());
    assert_eq!(cache.success.hits.load(Ordering::Relaxed), 1);
    assert_eq!(cache.requests.load(Ordering::Relaxed), 4);
}

#[test]
fn large_answers_are_cut_for_the_client() {
    let prepared = prepare(reply("www.example.com.", &[60; 60]).to_vec().unwrap()).unwrap();
    let mut out = [0; 65_535];
    for (edns, limit) in [(false, 512), (true, 1232)] {
        let length = prepared
            .answer(&question("www.example.com", edns), Transport::Udp, &mut out)
            .unwrap();
        let message = Message::from_vec(&out[..length]).unwrap();
        assert!(length <= limit);
        assert_eq!(message.metadata.truncation, !edns, "60 addresses fit in 1232 octets");
        assert!(message.answers.len() >= 29);
    }
    let length = prepared
        .answer(&question("www.example.com", false), Transport::Tcp, &mut out)
        .unwrap();
    assert_eq!(Message::from_vec(&out[..length]).unwrap().answers.len(), 60);
}

#[test]
fn the_cache_is_bounded() {
    let cache = Cache::new(64 << 10);
    let now = Instant::now();
    for i in 0..5000 {
        let name = format!("host-{i}.example.com.");
        let asked = question(&name, false);
        let prepared = prepare(reply(&name, &[60]).to_vec().unwrap()).unwrap();
        cache.insert(Key::new(asked.name.sent(), &asked), &prepared, now);
        cache.insert(Key::new(asked.name.sent(), &asked), &prepared, now);
    }
    let held = cache.success.entries.load(Ordering::Relaxed);
    assert!((100..400).contains(&held), "{held}");
    assert_eq!(cache.success.evictions.load(Ordering::Relaxed), 5000 - held);
    let octets: usize = cache.shards.iter().map(|shard| shard.lock().unwrap().octets).sum();
    assert!(octets <= 64 << 10);
    let mut out = [0; 512];
    assert!(
        cache
            .answer(&question("host-4999.example.com", false), Transport::Udp, now, &mut out)
            .is_some()
    );
    let none = Cache::new(0);
    let asked = question("www.example.com", false);
    let prepared = prepare(reply("www.example.com.", &[60]).to_vec().unwrap()).unwrap();
    none.insert(Key::new(asked.name.sent(), &asked), &prepared, now);
    assert!(none.answer(&asked, Transport::Udp, now, &mut out).is_none());
}
