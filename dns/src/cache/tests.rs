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

fn policy() -> Arc<Policy> {
    Arc::new(Policy {
        stale: None,
        ..Policy::default()
    })
}

/// For how many seconds a cache gives the message.
fn kept(message: &Message, policy: &Arc<Policy>) -> u64 {
    let cache = Cache::new(1 << 20);
    let now = Instant::now();
    let asked = question("www.example.com", false);
    let prepared = prepare(message.to_vec().unwrap()).unwrap();
    cache.insert(Key::new(asked.name.sent(), &asked), &prepared, policy, now);
    let mut out = [0; 512];
    let mut given = |seconds| {
        let at = now + Duration::from_secs(seconds);
        cache.answer(&asked, Transport::Udp, at, &mut out).is_some()
    };
    (0..=100_000).find(|seconds| !given(*seconds)).unwrap()
}

#[test]
fn messages_are_kept_as_long_as_they_allow() {
    let (usual, none) = (policy(), 0);
    let mut short = Policy::clone(&usual);
    (short.success.most, short.denial.most, short.success.least) = (30, 20, 5);
    let short = Arc::new(short);
    for (message, by_default, by_short) in [
        (reply("www.example.com.", &[300, 60]), 60, 30),
        (reply("www.example.com.", &[86_400]), 3600, 30),
        (reply("www.example.com.", &[300, 0]), none, 5),
        (reply("www.example.com.", &[]), none, none),
        (negative(ResponseCode::NoError, 900, 30), 30, 20),
        (negative(ResponseCode::NXDomain, 20, 300), 20, 20),
        (negative(ResponseCode::NXDomain, 90_000, 90_000), 1800, 20),
        (negative(ResponseCode::ServFail, 20, 300), 5, 5),
        (negative(ResponseCode::Refused, 20, 300), none, none),
    ] {
        assert_eq!(kept(&message, &usual), by_default, "{message}");
        assert_eq!(kept(&message, &short), by_short, "{message}");
    }
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
    cache.insert(Key::new(asked.name.sent(), &asked), &prepared, &policy(), now);
    let asker = question("wWw.Example.COM", true);
    let mut out = [0; 512];
    let at = |seconds| now + Duration::from_secs(seconds);
    let (length, _) = cache.answer(&asker, Transport::Udp, at(20), &mut out).unwrap();
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
            .answer(&question("www.example.com", edns), Transport::Udp, None, &mut out)
            .unwrap();
        let message = Message::from_vec(&out[..length]).unwrap();
        assert!(length <= limit);
        assert_eq!(message.metadata.truncation, !edns, "60 addresses fit in 1232 octets");
        assert!(message.answers.len() >= 29);
    }
    let length = prepared
        .answer(&question("www.example.com", false), Transport::Tcp, None, &mut out)
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
        cache.insert(Key::new(asked.name.sent(), &asked), &prepared, &policy(), now);
        cache.insert(Key::new(asked.name.sent(), &asked), &prepared, &policy(), now);
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
    none.insert(Key::new(asked.name.sent(), &asked), &prepared, &policy(), now);
    assert!(none.answer(&asked, Transport::Udp, now, &mut out).is_none());
}

/// A cache that holds an answer with a TTL of 60 under a policy, its question, and the moment it came.
fn holding(policy: Policy) -> (Cache, Question, Key, Instant) {
    let cache = Cache::new(1 << 20);
    let now = Instant::now();
    let asked = question("www.example.com", true);
    let key = Key::new(asked.name.sent(), &asked);
    let prepared = prepare(reply("www.example.com.", &[60]).to_vec().unwrap()).unwrap();
    cache.insert(key.clone(), &prepared, &Arc::new(policy), now);
    (cache, asked, key, now)
}

#[test]
fn old_answers_are_given_when_upstreams_are_silent() {
    let (cache, asked, key, now) = holding(Policy::default());
    let mut out = [0; 512];
    let at = |seconds| now + Duration::from_secs(seconds);
    assert!(
        cache.answer(&asked, Transport::Udp, at(61), &mut out).is_none(),
        "upstreams are asked first"
    );
    assert!(matches!(cache.look(&key, at(61)), Look::Stale(_, patience) if patience.as_millis() == 1800));
    cache.failed(&key, &Policy::default(), at(61));
    let (length, refresh) = cache.answer(&asked, Transport::Udp, at(62), &mut out).unwrap();
    assert!(refresh, "somebody has to look whether they are back");
    let message = Message::from_vec(&out[..length]).unwrap();
    assert_eq!(message.answers[0].ttl, STALE_TTL);
    assert!(
        format!("{:?}", message.edns).contains("[0, 3, 117, 112"),
        "EDE 3: {:?}",
        message.edns
    );
    let (_, refresh) = cache.answer(&asked, Transport::Udp, at(63), &mut out).unwrap();
    assert!(!refresh, "one is enough");
    assert!(
        cache.answer(&asked, Transport::Udp, at(92), &mut out).is_none(),
        "upstreams are asked again"
    );
    // SERVFAIL does not take its place.
    let failure = prepare(negative(ResponseCode::ServFail, 20, 300).to_vec().unwrap()).unwrap();
    cache.insert(key.clone(), &failure, &Arc::new(Policy::default()), at(92));
    assert!(cache.answer(&asked, Transport::Udp, at(93), &mut out).is_some());
    assert!(matches!(cache.look(&key, at(60 + 86_400)), Look::Nothing));
    let immediate = policy::Stale {
        verify: Duration::ZERO,
        ..policy::Stale::default()
    };
    let (cache, asked, _, now) = holding(Policy {
        stale: Some(immediate),
        ..Policy::default()
    });
    assert!(matches!(
        cache.answer(&asked, Transport::Udp, now + Duration::from_secs(61), &mut out),
        Some((_, true))
    ));
}

#[test]
fn wanted_answers_are_fetched_ahead() {
    let prefetch = policy::Prefetch {
        amount: 3,
        within: Duration::from_secs(60),
        percentage: 10,
    };
    let (cache, asked, _, now) = holding(Policy {
        prefetch: Some(prefetch),
        keep_ttl: true,
        ..Policy::default()
    });
    let mut out = [0; 512];
    let mut refreshed = |seconds| {
        let at = now + Duration::from_secs(seconds);
        let (length, refresh) = cache.answer(&asked, Transport::Udp, at, &mut out).unwrap();
        assert_eq!(Message::from_vec(&out[..length]).unwrap().answers[0].ttl, 60, "keepttl");
        refresh
    };
    let expect = [(1, false), (2, false), (3, false), (53, false), (54, true), (55, false)];
    assert_eq!(expect.map(|(at, _)| (at, refreshed(at))), expect);
}

#[test]
fn zones_can_be_left_out() {
    let zones = |text: &str| vec![Name::from_text(text).unwrap().lower().into()];
    let (cache, asked, _, now) = holding(Policy {
        no_success: zones("example.com"),
        ..Policy::default()
    });
    let mut out = [0; 512];
    assert!(cache.answer(&asked, Transport::Udp, now, &mut out).is_none());
    let (cache, asked, _, now) = holding(Policy {
        no_denial: zones("com"),
        no_success: zones("xample.com"),
        ..Policy::default()
    });
    assert!(cache.answer(&asked, Transport::Udp, now, &mut out).is_some());
    cache.clear();
    assert!(cache.answer(&asked, Transport::Udp, now, &mut out).is_none());
    assert_eq!(cache.success.entries.load(Ordering::Relaxed), 0);
}
