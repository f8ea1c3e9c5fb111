//! What holds for every query and every history of changes.

use hickory_proto::op::Message;
use portolan_dns::answer::{Answered, Question, Transport, Verdict, answer, fast, parse, slow};
use portolan_dns::zone::{Snapshot, Zone};
use portolan_model::{Delta, Event, Object, ObjectKey, World};
use proptest::prelude::*;

use crate::fixture::{CLUSTER, config, events, query, with_edns, zone};
use crate::protocol::from;

/// Names that exist, names near them, and anything.
fn question_name() -> impl Strategy<Value = String> {
    let label = prop_oneof![
        4 => prop::sample::select(vec![
            "web", "nginx", "plain", "dual", "alias", "external", "dangling", "selfish", "kube-dns", "waiting", "peers",
            "portless", "web-0", "10-244-1-30", "_http", "_tcp", "_web", "_udp", "fd00-244-0-1--0", "ns", "dns",
            "dns-version", "*", "NGINX", "Web",
        ])
        .prop_map(str::to_owned),
        1 => "[a-z0-9_-]{1,8}",
    ];
    let service = prop::sample::select(vec![
        "web.shop",
        "nginx.default",
        "plain.default",
        "kube-dns.kube-system",
    ]);
    let ours = (
        prop::collection::vec(label, 0..4),
        prop::sample::select(vec!["shop", "default", "kube-system", "empty", "none"]),
    )
        .prop_map(|(labels, namespace)| format!("{}.{namespace}", labels.join(".")));
    let below = (
        prop_oneof![ours, service.prop_map(str::to_owned)],
        prop::sample::select(vec!["svc", "pod", "SVC", "dns", "x"]),
    )
        .prop_map(|(front, kind)| format!("{front}.{kind}.cluster.local."));
    let reverse = (0u8..4, 0u8..40, 0u8..250).prop_map(|(a, b, c)| {
        let net = if c % 2 == 0 { "244.10" } else { "96.10" };
        format!("{b}.{a}.{net}.in-addr.arpa.")
    });
    let fixed = prop::sample::select(vec![
        "cluster.local.",
        "svc.cluster.local.",
        "in-addr.arpa.",
        "dns-version.cluster.local.",
    ]);
    prop_oneof![6 => below, 1 => reverse, 1 => fixed.prop_map(str::to_owned)]
        .prop_map(|name| name.trim_start_matches('.').replace("..", "."))
}

fn question_type() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec![
        "A", "AAAA", "SRV", "PTR", "TXT", "SOA", "NS", "CNAME", "MX", "ANY", "DS", "HTTPS",
    ])
}

fn fast_answer(question: &Question, snapshot: &Snapshot, rotation: u32) -> Option<Message> {
    let mut out = vec![0; 65_535];
    let client = from(Transport::Tcp).rotated(rotation);
    match fast::answer(&mut question.clone(), snapshot, &client, &mut out) {
        fast::Fast::Answer(Answered { length, .. }) => Some(Message::from_vec(&out[..length]).unwrap()),
        fast::Fast::NotOurs | fast::Fast::TooHard => None,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(4000) })]

    /// The fast path says what the slow path says.
    #[test]
    fn both_paths_give_equal_messages(
        name in question_name(),
        type_ in question_type(),
        edns in prop::option::of(0u16..2000),
        rotation in any::<u32>(),
        flags in any::<(bool, bool)>(),
    ) {
        let zone = shared_zone();
        let mut message = query(&format!("{name} {type_}"));
        (message.metadata.recursion_desired, message.metadata.checking_disabled) = flags;
        if let Some(payload) = edns {
            message = with_edns(message, payload);
        }
        let bytes = message.to_vec().unwrap();
        let mut question = Question::default();
        prop_assert_eq!(parse::parse(&bytes, &mut question), parse::Parsed::Plain, "{}", name);
        let stream = from(Transport::Tcp).rotated(rotation);
        let datagram = from(Transport::Udp).rotated(rotation);
        question.prepare(&zone, &stream);
        let mut out = vec![0; 65_535];
        let slow = slow::answer(&bytes, &zone, &stream, &mut out);
        match (fast_answer(&question, &zone, rotation), slow) {
            (Some(fast), Verdict::Answer(Answered { length, .. })) => {
                let slow = Message::from_vec(&out[..length]).unwrap();
                prop_assert_eq!(&fast, &slow);
                let exact = |m: &Message| m.answers.iter().map(|r| r.name.to_ascii()).collect::<Vec<_>>();
                prop_assert_eq!(exact(&fast), exact(&slow), "letter case");
                // Over UDP both keep the limit, and what is left is the beginning of the whole.
                let limit = question.limit(Transport::Udp);
                for length in [
                    udp(fast::answer(&mut question.clone(), &zone, &datagram, &mut out)),
                    match slow::answer(&bytes, &zone, &datagram, &mut out) {
                        Verdict::Answer(Answered { length, .. }) => Some(length),
                        _ => None,
                    },
                ] {
                    let length = length.unwrap();
                    prop_assert!(length <= limit);
                    let short = Message::from_vec(&out[..length]).unwrap();
                    prop_assert!(slow.answers.starts_with(&short.answers));
                    prop_assert_eq!(short.metadata.truncation, short.answers.len() < slow.answers.len());
                }
            }
            (None, Verdict::Forward(forward)) => prop_assert_eq!(forward.question.name.sent(), question.name.sent()),
            (None, Verdict::Answer(_)) => {
                let outcome = zone.lookup(&question.name, question.qtype);
                prop_assert!(format!("{outcome:?}").contains("Cname"), "{name}: {outcome:?}");
            }
            (fast, slow) => prop_assert!(false, "{name} {type_}: fast {fast:?}, slow {slow:?}"),
        }
    }

    /// Bytes from anyone: a response that can be read, or nothing when they are no query.
    #[test]
    fn any_packet_is_survived(bytes in packet()) {
        let zone = shared_zone();
        let mut out = [0; 1232];
        match answer(&bytes, &zone, &from(Transport::Udp).rotated(1), &mut out) {
            Verdict::Answer(Answered { length, .. }) => {
                let reply = Message::from_vec(&out[..length]).unwrap();
                prop_assert_eq!(reply.metadata.id, u16::from_be_bytes([bytes[0], bytes[1]]));
                prop_assert!(out[2] & 0x80 != 0);
            }
            Verdict::Forward(forward) => prop_assert!(!forward.target().is_empty()),
            Verdict::Drop => prop_assert!(bytes.len() < 12 || bytes[2] & 0x80 != 0),
            Verdict::Transfer(_) => prop_assert!(false, "nobody may transfer"),
        }
    }
}

fn udp(fast: fast::Fast) -> Option<usize> {
    match fast {
        fast::Fast::Answer(Answered { length, .. }) => Some(length),
        fast::Fast::NotOurs | fast::Fast::TooHard => None,
    }
}

fn shared_zone() -> std::sync::Arc<Snapshot> {
    static ZONE: std::sync::OnceLock<std::sync::Arc<Snapshot>> = std::sync::OnceLock::new();
    ZONE.get_or_init(|| zone(CLUSTER, config()).reader().load_full())
        .clone()
}

/// Noise, and real queries with some octets changed, cut or repeated.
fn packet() -> impl Strategy<Value = Vec<u8>> {
    let real = (question_name(), question_type(), prop::option::of(any::<u16>())).prop_map(|(name, type_, edns)| {
        let message = query(&format!("{name} {type_}"));
        edns.map_or(message.clone(), |payload| with_edns(message, payload))
            .to_vec()
            .unwrap()
    });
    let changes = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4);
    let changed =
        (real, changes, prop::option::of(any::<prop::sample::Index>())).prop_map(|(mut bytes, changes, cut)| {
            for (at, value) in changes {
                let at = at.index(bytes.len());
                bytes[at] = value;
            }
            if let Some(cut) = cut {
                bytes.truncate(cut.index(bytes.len()));
            }
            bytes
        });
    prop_oneof![1 => prop::collection::vec(any::<u8>(), 0..80), 4 => changed]
}

/// What every name of a World says, as text, with the serial left out.
fn dump(world: &World, snapshot: &Snapshot) -> Vec<String> {
    let mut lines = Vec::new();
    for service in [
        "web.shop",
        "dual.shop",
        "nginx.default",
        "plain.default",
        "alias.shop",
        "peers.default",
        "waiting.default",
    ] {
        for front in ["", "web-0.", "10-244-1-30.", "_web._tcp.", "mongo-0.", "_tcp."] {
            for type_ in ["A", "AAAA", "SRV"] {
                lines.push(format!("{front}{service}.svc.cluster.local. {type_}"));
            }
        }
    }
    for namespace in ["shop", "default", "empty", "kube-system"] {
        lines.push(format!("{namespace}.svc.cluster.local. A"));
    }
    for ip in [
        "6.1.244", "30.1.244", "40.1.244", "20.1.244", "20.0.96", "30.0.96", "10.0.96",
    ] {
        lines.push(format!("{ip}.10.in-addr.arpa. PTR"));
    }
    assert_eq!(world.counts().0, snapshot.counts().0);
    let say = |line: &String| {
        let bytes = query(line).to_vec().unwrap();
        let mut out = vec![0; 65_535];
        let said = match answer(&bytes, snapshot, &from(Transport::Tcp), &mut out) {
            Verdict::Answer(Answered { length, .. }) => {
                let mut reply = Message::from_vec(&out[..length]).unwrap();
                reply.authorities.clear();
                format!("{reply}")
            }
            other => format!("{other:?}"),
        };
        format!("{line}: {said}")
    };
    lines.iter().map(say).collect()
}

fn deletion(event: &Event) -> Event {
    match event {
        Event::Apply(object) => Event::Delete(Object::key(object)),
        Event::Delete(key) => Event::Delete(ObjectKey::clone(key)),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(60) })]

    /// Deltas applied one by one leave the zone that is built at once from the World they lead to.
    #[test]
    fn changes_one_by_one_are_the_whole_at_once(
        steps in prop::collection::vec((any::<prop::sample::Index>(), prop::bool::weighted(0.3)), 1..120),
    ) {
        let all = events(CLUSTER);
        let mut world = World::default();
        let mut zone = Zone::new(config(), 1);
        zone.set_synced();
        let mut serial = zone.reader().load().serial;
        for (index, delete) in steps {
            let event = index.get(&all);
            let event = if delete { deletion(event) } else { event.clone() };
            let mut delta = Delta::default();
            world.apply(event, &mut delta);
            let applied = zone.apply(&world, &delta, 1);
            prop_assert!(applied.built <= delta.services.len());
            let now = zone.reader().load().serial;
            prop_assert!(now >= serial && (applied.changed == 0 || now > serial));
            serial = now;
        }
        let mut delta = Delta::default();
        delta.services.extend(world.services().map(|view| view.service.name.clone()));
        delta.namespaces.extend(world.namespaces().map(|namespace| namespace.name.clone()));
        let mut whole = Zone::new(config(), 1);
        whole.apply(&world, &delta, 1);
        whole.set_synced();
        prop_assert_eq!(dump(&world, &zone.reader().load()), dump(&world, &whole.reader().load()));
        prop_assert_eq!(zone.reader().load().counts(), whole.reader().load().counts());
    }
}
