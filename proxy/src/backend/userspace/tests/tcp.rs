//! What a TCP client and an endpoint see of the relay between them.

use std::collections::BTreeMap;
use std::net::Shutdown;
use std::sync::atomic::AtomicUsize;

use super::*;

#[test]
fn connections_spread_over_all_endpoints() {
    let frontend = own_address();
    let mut rig = Rig::new();
    rig.apply(&[&plan("web", frontend, &[echo('a'), echo('b'), echo('c')])]);
    let mut seen = BTreeMap::new();
    for _ in 0..300 {
        *seen.entry(name(&mut connect(frontend))).or_insert(0) += 1;
    }
    assert_eq!(seen.len(), 3);
    assert!(seen.values().all(|count| *count > 50), "{seen:?}");
}

#[test]
fn either_side_can_close_its_direction_and_still_read() {
    let counts_then_answers = tcp_server(|mut stream| {
        let mut sent = Vec::new();
        stream.read_to_end(&mut sent).unwrap();
        stream.write_all(&sent.len().to_be_bytes()).unwrap();
    });
    let says_bye_then_listens = tcp_server(|mut stream| {
        stream.write_all(b"bye").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut sent = String::new();
        stream.read_to_string(&mut sent).unwrap();
        assert_eq!(sent, "still here");
    });
    let (one, other) = (own_address(), own_address());
    let mut rig = Rig::new();
    let first = plan("one", one, &[counts_then_answers]);
    rig.apply(&[&first, &plan("other", other, &[says_bye_then_listens])]);

    let mut client = connect(one);
    client.write_all(&[7; 100_000]).unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let mut answer = Vec::new();
    client.read_to_end(&mut answer).unwrap();
    assert_eq!(answer, 100_000_usize.to_be_bytes());

    let mut client = connect(other);
    let mut bye = String::new();
    client.read_to_string(&mut bye).unwrap();
    assert_eq!(bye, "bye");
    client.write_all(b"still here").unwrap();
    drop(client);
    rig.wait_for("tcp connections open", "0");
}

#[test]
fn a_slow_reader_slows_the_sender_down_and_loses_nothing() {
    const TOTAL: usize = 64 << 20;
    static SENT: AtomicUsize = AtomicUsize::new(0);
    let sender = tcp_server(|mut stream| {
        let block: Vec<u8> = (0..=255).cycle().take(64 << 10).collect();
        while SENT.load(Ordering::Relaxed) < TOTAL {
            stream.write_all(&block).unwrap();
            SENT.fetch_add(block.len(), Ordering::Relaxed);
        }
    });
    let frontend = own_address();
    let mut rig = Rig::new();
    rig.apply(&[&plan("bulk", frontend, &[sender])]);
    let mut client = connect(frontend);
    let mut before = usize::MAX;
    while SENT.load(Ordering::Relaxed) != before {
        before = SENT.load(Ordering::Relaxed);
        thread::sleep(SILENCE);
    }
    assert!(
        (1..TOTAL / 2).contains(&before),
        "{before} bytes were sent to a client that reads nothing"
    );
    let mut received = Vec::new();
    client.read_to_end(&mut received).unwrap();
    assert_eq!(received.len(), TOTAL);
    let intact = received
        .iter()
        .enumerate()
        .all(|(index, byte)| index % 256 == usize::from(*byte));
    assert!(intact);
}

#[test]
fn a_reset_on_one_side_is_a_reset_on_the_other() {
    let resets = tcp_server(|mut stream| {
        stream.read_exact(&mut [0]).unwrap();
        Socket::from(stream).set_linger(Some(Duration::ZERO)).unwrap();
    });
    let frontend = own_address();
    let mut rig = Rig::new();
    rig.apply(&[&plan("web", frontend, &[resets])]);
    let mut client = connect(frontend);
    client.write_all(b"x").unwrap();
    let error = client.read(&mut [0]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    rig.wait_for("tcp connections open", "0");
}

#[test]
fn a_changed_endpoint_moves_new_connections_only() {
    let frontend = own_address();
    let mut rig = Rig::new();
    let (a, b) = (echo('a'), echo('b'));
    assert_eq!(rig.apply(&[&plan("web", frontend, &[a])]).written, 1);
    let mut old = connect(frontend);
    assert_eq!(name(&mut old), 'a');

    let report = rig.apply(&[&plan("web", frontend, &[b])]);
    assert_eq!(
        (report.written, report.removed),
        (1, 0),
        "the listener got another target"
    );
    assert_eq!(
        rig.apply(&[&plan("web", frontend, &[b])]).written,
        0,
        "nothing to change"
    );
    assert_eq!(name(&mut connect(frontend)), 'b');
    check_echo(&mut old);
}

#[test]
fn connections_outlive_their_service_but_no_new_one_gets_in() {
    let frontend = own_address();
    let mut rig = Rig::new();
    let web = plan("web", frontend, &[echo('a')]);
    rig.apply(&[&web]);
    let mut old = connect(frontend);
    assert_eq!(name(&mut old), 'a');
    assert_eq!(rig.remove(&web).removed, 1);
    check_refused(frontend);
    check_echo(&mut old);
    rig.backend.stop();
    check_echo(&mut old);
}

#[test]
fn an_endpoint_that_refuses_is_passed_over() {
    let frontend = own_address();
    let mut rig = Rig::new();
    let (_socket, gone) = dead();
    rig.apply(&[&plan("web", frontend, &[gone, echo('a')])]);
    for _ in 0..20 {
        assert_eq!(name(&mut connect(frontend)), 'a');
    }
    rig.apply(&[&plan("web", frontend, &[gone])]);
    check_reset(frontend);
    rig.wait_for("tcp connections without", "1");
}

#[test]
fn a_client_stays_with_its_endpoint_until_that_is_gone() {
    let frontend = own_address();
    let mut rig = Rig::new();
    let (a, b) = (echo('a'), echo('b'));
    let mut web = plan("web", frontend, &[a, b]);
    web.ports[0].affinity_seconds = Some(10_800);
    rig.apply(&[&web]);
    let ask = |last: u8| name(&mut connect_from([127, 0, 0, last], frontend).unwrap());
    let first: Vec<char> = (1..=30).map(ask).collect();
    assert!(first.contains(&'a') && first.contains(&'b'), "{first:?}");
    let again: Vec<char> = (1..=30).map(ask).collect();
    assert_eq!(first, again);

    let mut shrunk = plan("web", frontend, &[a]);
    shrunk.ports[0].affinity_seconds = Some(10_800);
    rig.apply(&[&shrunk]);
    assert!((1..=30).map(ask).all(|name| name == 'a'));
    rig.apply(&[&web]);
    assert!(
        (1..=30).map(ask).all(|name| name == 'a'),
        "they stay where they are now"
    );
}

#[test]
fn a_client_whose_endpoint_refuses_moves_and_stays() {
    let frontend = own_address();
    let mut rig = Rig::new();
    let (_socket, gone) = dead();
    let mut web = plan("web", frontend, &[gone, echo('a'), echo('b')]);
    web.ports[0].affinity_seconds = Some(10_800);
    rig.apply(&[&web]);
    let first = name(&mut connect(frontend));
    for _ in 0..20 {
        assert_eq!(name(&mut connect(frontend)), first);
    }
}

#[test]
fn endpoints_are_told_the_client_by_the_proxy_protocol() {
    let sends_back = tcp_server(|mut stream| {
        let mut header = [0; 28];
        stream.read_exact(&mut header).unwrap();
        stream.write_all(&header).unwrap();
    });
    let frontend = own_address();
    let mut rig = Rig::with(UserspaceOptions {
        proxy_protocol: true,
        ..UserspaceOptions::default()
    });
    rig.apply(&[&plan("web", frontend, &[sends_back])]);
    let mut client = connect_from([127, 0, 0, 77], frontend).unwrap();
    let mut header = Vec::new();
    client.read_to_end(&mut header).unwrap();
    let IpAddr::V4(to) = frontend.ip() else { panic!() };
    let mut expect = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\x7f\0\0\x4d".to_vec();
    expect.extend(to.octets());
    expect.extend(client.local_addr().unwrap().port().to_be_bytes());
    expect.extend(frontend.port().to_be_bytes());
    assert_eq!(header, expect);
}
