//! Flows: how they begin, where they go, how they end.

use std::collections::BTreeSet;

use super::*;

/// A server that answers each datagram with its name.
fn named(name: char) -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    thread::spawn(move || {
        let mut datagram = [0; 65_536];
        while let Ok((_, client)) = socket.recv_from(&mut datagram) {
            let _ = socket.send_to(&[name as u8], client);
        }
    });
    address
}

/// A client that takes answers from the frontend's address only, as real ones do.
fn client(frontend: SocketAddr) -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.connect(frontend).unwrap();
    socket.set_read_timeout(Some(SILENCE)).unwrap();
    socket
}

/// Asks until somebody answers: datagrams may get lost while flows come and go.
#[track_caller]
fn ask(client: &UdpSocket) -> char {
    for _ in 0..PATIENCE.as_millis() / SILENCE.as_millis() {
        let mut name = [0];
        if client.send(b"who?").is_ok() && client.recv(&mut name).is_ok() {
            return name[0].into();
        }
    }
    panic!("no answer from {:?}", client.peer_addr());
}

#[test]
fn each_client_is_a_flow_with_one_endpoint() {
    let mut rig = Rig::new();
    let frontend = own_address();
    rig.apply(&[&udp_plan("dns", frontend, &[named('a'), named('b')])]);
    let clients: Vec<UdpSocket> = (0..30).map(|_| client(frontend)).collect();
    let first: Vec<char> = clients.iter().map(ask).collect();
    assert_eq!(first.iter().collect::<BTreeSet<_>>().len(), 2, "{first:?}");
    let again: Vec<char> = clients.iter().map(ask).collect();
    assert_eq!(first, again);
    assert_eq!(rig.status("udp flows open"), "30");
}

#[test]
fn the_largest_datagram_passes_both_ways() {
    let server = UdpSocket::bind("127.0.0.1:0").unwrap();
    let mut rig = Rig::new();
    let frontend = own_address();
    rig.apply(&[&udp_plan("dns", frontend, &[server.local_addr().unwrap()])]);
    let client = client(frontend);
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    server.set_read_timeout(Some(PATIENCE)).unwrap();
    let sent: Vec<u8> = (0..=255).cycle().take(65_507).collect();
    client.send(&sent).unwrap();
    let mut received = vec![0; 70_000];
    let (length, relay) = server.recv_from(&mut received).unwrap();
    assert_eq!(received[..length], sent);
    server.send_to(&sent, relay).unwrap();
    let length = client.recv(&mut received).unwrap();
    assert_eq!(received[..length], sent);
}

#[test]
fn idle_flows_expire_later_once_the_endpoint_has_answered() {
    let mut rig = Rig::with(UserspaceOptions {
        udp_idle: Duration::from_millis(50),
        udp_stream_idle: Duration::from_secs(3600),
        ..UserspaceOptions::default()
    });
    let (answered, unanswered) = (own_address(), own_address());
    let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
    let mute = udp_plan("mute", unanswered, &[silent.local_addr().unwrap()]);
    rig.apply(&[&udp_plan("dns", answered, &[named('a')]), &mute]);
    let (one, other) = (client(answered), client(unanswered));
    ask(&one);
    other.send(b"hello?").unwrap();
    silent.recv_from(&mut [0; 8]).unwrap();
    rig.wait_for("udp flows open", "1");
    // The one that is left is the stream; the other begins anew.
    ask(&one);
    other.send(b"hello?").unwrap();
    silent.recv_from(&mut [0; 8]).unwrap();
    rig.wait_for("udp flows open", "1");
}

#[test]
fn a_flow_leaves_its_endpoint_with_the_plan() {
    let mut rig = Rig::new();
    let frontend = own_address();
    let (a, b) = (named('a'), named('b'));
    rig.apply(&[&udp_plan("dns", frontend, &[a])]);
    let client = client(frontend);
    assert_eq!(ask(&client), 'a');
    rig.apply(&[&udp_plan("dns", frontend, &[a, b])]);
    assert_eq!(ask(&client), 'a', "its endpoint still serves");
    rig.apply(&[&udp_plan("dns", frontend, &[b])]);
    rig.wait_for("udp flows open", "0");
    assert_eq!(ask(&client), 'b');
}

#[test]
fn a_flow_ends_when_nobody_is_at_its_endpoint() {
    let mut rig = Rig::new();
    let frontend = own_address();
    let gone = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = gone.local_addr().unwrap();
    drop(gone);
    let b = named('b');
    rig.apply(&[&udp_plan("dns", frontend, &[address, b])]);
    // Clients that were sent to the dead endpoint find the other by asking again.
    for _ in 0..10 {
        assert_eq!(ask(&client(frontend)), 'b');
    }
    rig.wait_for("udp flows open", "10");
}

#[test]
fn flows_are_bounded_and_the_idlest_makes_room() {
    let mut rig = Rig::with(UserspaceOptions {
        udp_flows: 8,
        ..UserspaceOptions::default()
    });
    let frontend = own_address();
    rig.apply(&[&udp_plan("dns", frontend, &[named('a')])]);
    let clients: Vec<UdpSocket> = (0..20).map(|_| client(frontend)).collect();
    clients.iter().for_each(|client| {
        ask(client);
    });
    rig.wait_for("udp flows open", "8");
    assert_eq!(rig.status("udp flows evicted"), "12");
    assert_eq!(ask(&clients[0]), 'a', "its flow was evicted, and another begins");
}

#[test]
fn no_endpoint_is_port_unreachable_and_a_drop_is_silence() {
    let mut rig = Rig::new();
    let frontend = own_address();
    rig.apply(&[&udp_plan("dns", frontend, &[])]);
    let asks = client(frontend);
    asks.send(b"?").unwrap();
    let error = asks.recv(&mut [0]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);

    let mut dns = udp_plan("dns", frontend, &[named('a')]);
    dns.ports[0].frontends[0].routes = Routes::same(Verdict::Drop);
    rig.apply(&[&dns]);
    let asks = client(frontend);
    asks.send(b"?").unwrap();
    let error = asks.recv(&mut [0]).unwrap_err();
    assert!(
        matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut),
        "{error}"
    );
    assert_eq!(rig.status("udp flows open"), "0");
}

#[test]
fn tcp_and_udp_of_one_service_share_a_stand_in_port() {
    let mut rig = Rig::new();
    let frontend: SocketAddr = "10.96.0.53:53".parse().unwrap();
    let taken = TcpListener::bind("127.0.0.1:53");
    let also_taken = UdpSocket::bind("127.0.0.1:53");
    let mut dns = plan("dns", frontend, &[echo('a')]);
    dns.ports.extend(udp_plan("dns", frontend, &[named('a')]).ports);
    rig.apply(&[&dns]);
    let tcp = rig.listens_on("default/dns (cluster IP) 10.96.0.53:53/tcp");
    let udp = rig.listens_on("default/dns (cluster IP) 10.96.0.53:53/udp");
    drop((taken, also_taken));
    assert_eq!(tcp, udp);
}
