//! The bytes that are sent, and bytes that nobody should send us.

use proptest::prelude::*;

use super::*;
use crate::backend::nft::frame::frame;
use crate::backend::nft::mirror::Mirror;
use crate::backend::nft::netlink::attr::{Attributes, Writer};
use crate::backend::nft::netlink::batch::Batch;
use crate::backend::nft::netlink::constants::*;
use crate::backend::nft::netlink::expr::Expr;
use crate::backend::nft::netlink::message::Messages;
use crate::backend::nft::netlink::object::{Bytes, Data, Element, Rule, Table};
use crate::backend::nft::netlink::userdata;
use crate::backend::nft::program::ChainSpec;
use crate::backend::nft::rules::Context;
use crate::backend::nft::schema::{Map, frontend_key, parse_endpoint, slot_key, split_slot};

/// As `nft --debug=mnl` prints them: eight bytes a word, without spaces in the expectation.
fn check(fill: impl FnOnce(&mut Batch), wanted: &str) {
    let mut batch = Batch::new();
    fill(&mut batch);
    let hex: String = batch.bytes().iter().map(|byte| format!("{byte:02x}")).collect();
    // The messages that begin and end a batch stand around ours.
    let begin = "14000000100001000000000000000000".to_owned() + "0000000a";
    let end = "14000000110001000000000000000000".to_owned() + "0000000a";
    let wanted: String = wanted.split_whitespace().collect();
    assert_eq!(hex, format!("{begin}{wanted}{end}"));
}

#[cfg(target_endian = "little")]
#[test]
fn golden_bytes() {
    let table = Table {
        family: NFPROTO_IPV4,
        name: "portolan",
    };
    // Header (length, type NFT_MSG_DELTABLE, flags REQUEST and ACK, sequence, port), nfgenmsg, NFTA_TABLE_NAME.
    check(
        |batch| table.delete(batch),
        "24000000 020a 0500 01000000 00000000 02000000 0d000100 706f72746f6c616e 00000000",
    );
    // An element: list { element { key { value } data { value } } }.
    check(
        |batch| {
            let key = slot_key(frontend_key(None, Protocol::Tcp, 30080), 1);
            let value = Data::Value(schema::endpoint_bytes(ip("10.244.1.5"), 8080));
            table.add_element(batch, "nodeport-endpoints", (&key, &value), "", 7);
        },
        "68000000 0c0a 0504 01000000 00000000 02000000
         0d000100 706f72746f6c616e 00000000
         17000200 6e6f6465706f72742d656e64706f696e7473 00 00
         2c000380 28000180
           14000180 10000100 06000000 75800000 01000000
           10000280 0c000100 0af40105 1f900000",
    );
    // A rule: list { element { name, data { type, code } } }, and its comment as user data.
    check(
        |batch| {
            let rule = Rule {
                expressions: vec![Expr::Reject {
                    tcp_reset: true,
                    code: 0,
                }],
                comment: "x".into(),
            };
            let chain = netlink::object::Chain {
                name: "c".into(),
                hook: None,
                rules: vec![rule],
            };
            table.create_rules(batch, &chain, 0);
        },
        "5c000000 060a 050c 01000000 00000000 02000000
         0d000100 706f72746f6c616e 00000000
         06000200 63000000
         28000480 24000180
           0b000100 72656a656374 0000
           14000280 08000100 00000001 05000200 00000000
         08000700 00027800",
    );
}

#[test]
fn every_expression_is_recognised() {
    let node = node();
    let options = NftOptions::default();
    for family in Family::ALL {
        for pods in [
            node.pods.clone(),
            Pods::Interface("cni0".into()),
            Pods::InterfacePrefix("veth".into()),
        ] {
            let node = NodePlan { pods, ..node.clone() };
            let context = Context {
                family,
                node: &node,
                options: &options,
            };
            let ranges = ChainSpec::Sources(nets(&["198.51.100.0/24", "192.0.2.1/32"]).into());
            let program =
                program::Program::new(&local(), true, Some(affinity::Affinity { port: 7, seconds: 9 }), |_| 3);
            let learner = ChainSpec::Learn(program.learner());
            let specs = [ranges, learner, ChainSpec::Program(program)].map(|spec| spec.chain(context));
            for chain in frame(context).into_iter().chain(specs) {
                for expression in chain.rules.iter().flat_map(|rule| &rule.expressions) {
                    let mut bytes = Vec::new();
                    expression.write(&mut Writer(&mut bytes));
                    let (_, element) = Attributes::new(&bytes).next().unwrap();
                    assert_eq!(Expr::parse(&Attributes::new(element)).as_ref(), Some(expression));
                }
            }
        }
    }
}

#[test]
fn long_lists_of_elements_are_divided() {
    let table = Table {
        family: NFPROTO_IPV6,
        name: "portolan",
    };
    let mut batch = Batch::new();
    let comment = "x".repeat(300);
    for n in 0..5000u32 {
        let key = Bytes::EMPTY.then(&[0; 28]).then(&n.to_be_bytes());
        table.add_element(&mut batch, Map::Hairpin.name(), (&key, &Data::None), &comment, n);
    }
    let mut seen = 0u32;
    for message in Messages(batch.bytes()) {
        let list = message.attributes().nested(NFTA_SET_ELEM_LIST_ELEMENTS);
        for (_, element) in list.into_iter().flatten() {
            let element = Element::parse(&Attributes::new(element)).unwrap();
            assert!(element.key.as_slice().ends_with(&seen.to_be_bytes()));
            assert_eq!(element.comment.unwrap().len(), 253);
            seen += 1;
        }
    }
    assert_eq!(seen, 5000);
    assert!(batch.messages() > 10);
}

#[test]
fn comments_are_cut_at_a_letter() {
    for length in 240..260 {
        let text = "ä".repeat(length);
        let bytes = userdata::comment(0, &text);
        let found = userdata::parse_comment(0, &bytes).unwrap();
        assert!(text.starts_with(found) && found.len() >= 252, "{length}: {found}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn replies_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        read_all(&bytes);
    }

    /// Damages a real message rather than inventing one, so that the inner parsers are reached.
    #[test]
    fn damaged_replies_never_panic(damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6), cut: prop::sample::Index) {
        let node = node();
        let options = NftOptions::default();
        let plan = service("web", &["10.244.1.5:80*"]).cluster_ip("10.96.0.1", 80).0;
        let (_, difference) = Mirror::adopt(std::iter::once(&plan), node, vec![(Family::V4, None)], &options);
        let mut batch = difference.batch("portolan");
        let mut bytes = batch.bytes().to_vec();
        for (place, byte) in damage {
            let place = place.index(bytes.len());
            bytes[place] = byte;
        }
        read_all(&bytes);
        read_all(&bytes[cut.index(bytes.len())..]);
    }

    #[test]
    fn keys_sort_byte_by_byte(a in prop::collection::vec(0u8..3, 0..32), b in prop::collection::vec(0u8..3, 0..32)) {
        // What is shorter is filled up with zeros; only then does the length decide.
        let padded = |bytes: &[u8]| { let mut all = [0; 32]; all[..bytes.len()].copy_from_slice(bytes); (all, bytes.len()) };
        let bytes = |bytes: &[u8]| Bytes::new(bytes).unwrap();
        prop_assert_eq!(bytes(&a).cmp(&bytes(&b)), padded(&a).cmp(&padded(&b)));
    }

    #[test]
    fn slots_and_endpoints_parse_back(six: bool, a: [u8; 16], port: u16, slot in 0usize..100_000) {
        let address = if six { IpAddr::from(a) } else { IpAddr::from([a[0], a[1], a[2], a[3]]) };
        let frontend = frontend_key(Some(address), Protocol::Udp, port);
        prop_assert_eq!(split_slot(&slot_key(frontend, slot)), Some((frontend, slot)));
        prop_assert_eq!(parse_endpoint(&schema::endpoint_bytes(address, port)), Some((address, port)));
    }
}

/// Everything that reads what the kernel sends.
fn read_all(bytes: &[u8]) {
    for message in Messages(bytes) {
        let _ = (message.nft_kind(), message.family(), message.acknowledgement());
        let _ = monitor::seen(&message, "portolan", 1);
        let attributes = message.attributes();
        let _ = Rule::parse(&attributes);
        for (kind, payload) in attributes.clone() {
            let inner = Attributes::new(payload);
            let _ = (
                Element::parse(&inner),
                Expr::parse(&inner),
                attributes.text(kind),
                attributes.be32(kind),
            );
            for (_, payload) in inner {
                let inner = Attributes::new(payload);
                let _ = (Element::parse(&inner), Expr::parse(&inner));
            }
            let _ = (
                userdata::parse_comment(0, payload),
                Bytes::new(payload).map(|b| (split_slot(&b), parse_endpoint(&b))),
            );
        }
    }
}
