//! Answers in pieces, cut answers, and answers that are nonsense.

use k8s_openapi::api::{core::v1 as core, discovery::v1 as discovery, networking::v1 as networking};
use proptest::prelude::*;

use super::*;

/// A field that holds bytes.
fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    assert!(bytes.len() < 1 << 14);
    let low = u8::try_from(bytes.len() & 0x7f).unwrap() | 0x80;
    let high = u8::try_from(bytes.len() >> 7).unwrap();
    [&[number << 3 | 2, low, high], bytes].concat()
}

fn envelope(kind: &str, object: &[u8]) -> Vec<u8> {
    let meta = [field(1, b"v1"), field(2, kind.as_bytes())].concat();
    [
        MAGIC,
        &field(1, &meta),
        &field(2, object),
        &field(3, b""),
        &field(4, b""),
    ]
    .concat()
}

fn service(name: &str, version: &str) -> Vec<u8> {
    let meta = [
        field(1, name.as_bytes()),
        field(3, b"shop"),
        field(6, version.as_bytes()),
    ]
    .concat();
    let spec = [field(3, b"10.96.0.1"), field(18, b"10.96.0.1")].concat();
    // The number of the field with the cluster IPs needs two bytes.
    let spec = [&spec[..spec.len() - 12], &[0x92, 0x01], &spec[spec.len() - 11..]].concat();
    [field(1, &meta), field(2, &spec)].concat()
}

fn list(more: &str) -> Vec<u8> {
    let meta = [field(1, b""), field(2, b"77"), field(3, more.as_bytes())].concat();
    let list = [
        field(1, &meta),
        field(2, &service("a", "5")),
        field(2, &service("b", "6")),
    ]
    .concat();
    envelope("ServiceList", &list)
}

fn read_list(protobuf: bool, answer: &[u8], piece: usize) -> Result<(Vec<String>, Place), Malformed> {
    let mut body = ListBody::new(protobuf);
    let mut names = Vec::new();
    let mut note = |service: core::Service| {
        let ips = service.spec.and_then(|spec| spec.cluster_ips).unwrap_or_default();
        names.push(format!("{} {}", service.metadata.name.unwrap(), ips.join(",")));
    };
    for chunk in answer.chunks(piece) {
        body.push(chunk, true, &mut note)?;
    }
    let place = body.finish(&mut note)?;
    Ok((names, place))
}

fn read_watch(protobuf: bool, answer: &[u8], piece: usize) -> Result<Vec<String>, Malformed> {
    let mut body = WatchBody::new(protobuf);
    let mut told = Vec::new();
    for chunk in answer.chunks(piece) {
        body.push(chunk, true, |event: Told<core::Service>| {
            let say = |word: &str, object: core::Service| {
                let meta = object.metadata;
                format!(
                    "{word} {} {}",
                    meta.name.unwrap_or_default(),
                    meta.resource_version.unwrap()
                )
            };
            told.push(match event {
                Told::Applied(object) => say("applied", object),
                Told::Deleted(object) => say("deleted", object),
                Told::Bookmark(object) => say("bookmark", object),
                Told::Ended(answer) => format!("ended {} {}", answer.code, answer.message),
            });
        })?;
    }
    Ok(told)
}

#[test]
fn a_list_is_read_in_whatever_pieces_it_arrives() {
    let json = br#"{"kind":"ServiceList","metadata":{"resourceVersion":"77","continue":"next"},"items":[
        {"metadata":{"name":"a"},"spec":{"clusterIPs":["10.96.0.1"]}}, {"metadata":{"name":"b"},"spec":{"clusterIPs":["10.96.0.1"]}}]}"#;
    let place = Place {
        version: "77".into(),
        more: Some("next".into()),
    };
    let names = vec!["a 10.96.0.1".to_string(), "b 10.96.0.1".to_string()];
    let expect = (names, place);
    for piece in [1, 2, 7, 100, 10_000] {
        assert_eq!(read_list(true, &list("next"), piece).unwrap(), expect);
        assert_eq!(read_list(false, json, piece).unwrap(), expect);
    }
    assert_eq!(read_list(true, &list(""), 9).unwrap().1.more, None);
}

#[test]
fn a_list_that_is_cut_anywhere_is_no_list() {
    let whole = list("");
    // The envelope's last two fields are empty and say nothing.
    for end in 0..whole.len() - 6 {
        assert_eq!(read_list(true, &whole[..end], 16), Err(Malformed::Short), "{end}");
    }
    assert_eq!(read_list(true, b"{\"kind\":\"ServiceList\"}", 5), Err(Malformed::Magic));
    assert!(matches!(read_list(false, b"{\"items\":[", 5), Err(Malformed::Json(_))));
}

#[test]
fn a_watch_is_read_in_whatever_pieces_it_arrives() {
    let frame = |kind: &str, object: &[u8]| {
        let event = [field(1, kind.as_bytes()), field(2, &field(1, object))].concat();
        [&u32::try_from(event.len()).unwrap().to_be_bytes()[..], &event].concat()
    };
    let status = [field(2, b"Failure"), field(3, b"too old"), vec![6 << 3, 0x9a, 0x03]].concat();
    let object = |name, version| envelope("Service", &service(name, version));
    let stream = [
        frame("ADDED", &object("a", "7")),
        frame("MODIFIED", &object("a", "8")),
        frame("DELETED", &object("a", "9")),
        frame("BOOKMARK", &object("", "20")),
        frame("ERROR", &envelope("Status", &status)),
    ]
    .concat();
    let json = br#"{"type":"ADDED","object":{"kind":"Service","metadata":{"name":"a","resourceVersion":"7"}}}
{"type":"MODIFIED","object":{"metadata":{"name":"a","resourceVersion":"8"}}}
{"type":"DELETED","object":{"metadata":{"name":"a","resourceVersion":"9"}}}
{"type":"BOOKMARK","object":{"kind":"Service","metadata":{"resourceVersion":"20"}}}
{"type":"ERROR","object":{"kind":"Status","code":410,"message":"too old"}}
"#;
    let expect = [
        "applied a 7",
        "applied a 8",
        "deleted a 9",
        "bookmark  20",
        "ended 410 too old",
    ];
    for piece in [1, 3, 50, 10_000] {
        assert_eq!(read_watch(true, &stream, piece).unwrap(), expect);
        assert_eq!(read_watch(false, json, piece).unwrap(), expect);
    }
    assert_eq!(
        read_watch(true, &frame("CHANGED", &object("a", "1")), 9),
        Err(Malformed::WireType)
    );
}

#[test]
fn a_refusal_says_why_in_any_encoding() {
    let check = |body: &[u8], expect: &str| assert_eq!(refusal(403, body).message, expect);
    check(
        &envelope("Status", &field(3, b"services is forbidden")),
        "services is forbidden",
    );
    check(
        br#"{"kind":"Status","message":"services is forbidden"}"#,
        "services is forbidden",
    );
    check(b"<html>\n502 Bad Gateway</html>", "<html> 502 Bad Gateway</html>");
    check(b"k8s\0\xff", "k8s\0\u{fffd}");
}

proptest! {
    #[test]
    fn no_answer_makes_a_reader_panic(bytes in prop::collection::vec(any::<u8>(), 0..400), head in any::<bool>()) {
        let bytes = if head { envelope("List", &bytes) } else { bytes };
        for piece in [3, 1000] {
            let _ = read_list(true, &bytes, piece);
            let _ = read_watch(true, &bytes, piece);
            let _ = read_watch(false, &bytes, piece);
        }
        let fields = || Fields::new(&bytes);
        let _ = (core::Node::decode(fields(), true), core::Pod::decode(fields(), true));
        let _ = (core::Namespace::decode(fields(), true), networking::ServiceCIDR::decode(fields(), true));
        let _ = discovery::EndpointSlice::decode(fields(), true);
    }
}
