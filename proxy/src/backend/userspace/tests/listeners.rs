//! Where frontends are served, and what happens when they cannot be.

use super::*;

fn cluster_ip(last: u8, port: u16) -> SocketAddr {
    SocketAddr::from(([10, 96, 0, last], port))
}

/// A port that is free on every loopback address now.
fn free_port() -> u16 {
    TcpListener::bind("0.0.0.0:0").unwrap().local_addr().unwrap().port()
}

#[test]
fn an_address_of_another_machine_is_served_on_loopback_with_the_services_own_port() {
    let mut rig = Rig::new();
    let port = free_port();
    let web = plan("web", cluster_ip(10, port), &[echo('a')]);
    rig.apply(&[&web]);
    let at = rig.listens_on("default/web (cluster IP) 10.96.0.10:");
    assert_eq!(at, SocketAddr::from(([127, 0, 0, 1], port)));
    assert_eq!(name(&mut connect(at)), 'a');
    let status = rig.status("default/web");
    assert!(
        status.ends_with("(10.96.0.10 cannot be bound on this machine)"),
        "{status}"
    );
}

#[test]
fn stand_ins_never_clash_and_stay_where_they_are() {
    let mut rig = Rig::new();
    let port = free_port();
    let web = plan("web", cluster_ip(11, port), &[echo('a')]);
    let api = plan("api", cluster_ip(12, port), &[echo('b')]);
    rig.apply(&[&web, &api]);
    let (first, second) = (rig.listens_on("default/web"), rig.listens_on("default/api"));
    assert_ne!(first, second);
    assert_eq!(name(&mut connect(first)), 'a');
    assert_eq!(name(&mut connect(second)), 'b');

    // The place is kept while nobody can be served there.
    rig.apply(&[&plan("web", cluster_ip(11, port), &[])]);
    rig.apply(&[&plan("new", cluster_ip(13, port), &[echo('c')])]);
    rig.apply(&[&web]);
    rig.change(Change {
        node: Some(NodePlan::default()),
        plans: vec![api.clone(), web.clone()],
        complete: true,
        ..Change::default()
    });
    assert_eq!(rig.listens_on("default/web"), first);
    assert_eq!(rig.listens_on("default/api"), second);
    // What is in no plan is gone.
    assert!(
        !rig.backend
            .status()
            .iter()
            .any(|line| line.0.starts_with("default/new"))
    );
    // The same place again after a restart, whatever the order.
    drop(rig);
    let mut rig = Rig::new();
    rig.apply(&[&api]);
    rig.apply(&[&web]);
    let after = [rig.listens_on("default/web"), rig.listens_on("default/api")];
    assert!(after.iter().all(|at| at.ip().is_loopback()) && after[0] != after[1]);
}

#[test]
fn a_stand_in_never_takes_the_port_of_an_endpoint() {
    let mut rig = Rig::new();
    let port = free_port();
    let endpoint = SocketAddr::from(([127, 0, 0, 1], port));
    rig.apply(&[&plan("before", cluster_ip(14, port), &[echo('a')])]);
    assert_eq!(rig.listens_on("default/before"), endpoint);
    // A program that is not running yet: its port is left to it.
    rig.apply(&[&plan("web", cluster_ip(15, port), &[endpoint])]);
    assert_ne!(rig.listens_on("default/before"), endpoint);
    assert_ne!(rig.listens_on("default/web"), endpoint);
    let _program = TcpListener::bind(endpoint).unwrap();

    // Relaying to itself would never end.
    let own = own_address();
    rig.apply(&[&plan("loop", own, &[own])]);
    assert_eq!(
        rig.status("default/loop"),
        "not needed: this is the address of its own endpoint"
    );
    check_refused(own);
}

#[test]
fn a_taken_port_is_reported_holds_nobody_up_and_is_tried_again() {
    let (taken, fine) = (own_address(), own_address());
    let mut rig = Rig::with(UserspaceOptions {
        retry: Duration::from_millis(50),
        ..UserspaceOptions::default()
    });
    let program = TcpListener::bind(taken).unwrap();
    rig.apply(&[&plan("web", taken, &[echo('a')]), &plan("other", fine, &[echo('b')])]);
    let status = rig.status("default/web");
    assert!(status.starts_with("cannot listen: "), "{status}");
    assert!(status.ends_with("(stop the program that has the port, or give the Service another)"));
    assert_eq!(name(&mut connect(fine)), 'b');
    drop(program);
    rig.wait_for("default/web", &format!("listening on {taken}"));
    assert_eq!(name(&mut connect(taken)), 'a');
}

#[test]
fn node_ports_are_served_on_the_nodes_addresses_that_are_this_machines() {
    let mut rig = Rig::new();
    let (first, second) = (own_address().ip(), own_address().ip());
    let foreign: IpAddr = "192.0.2.7".parse().unwrap();
    let port = free_port();
    let mut web = plan("web", SocketAddr::new(first, port), &[echo('a')]);
    web.ports[0].frontends[0].kind = FrontendKind::NodePort;
    web.ports[0].frontends[0].address = None;
    let node = |addresses: &[IpAddr]| NodePlan {
        node_port_addresses: addresses.to_vec(),
        ..NodePlan::default()
    };
    rig.change(Change {
        node: Some(node(&[first, foreign])),
        plans: vec![web],
        complete: true,
        ..Change::default()
    });
    assert_eq!(name(&mut connect(SocketAddr::new(first, port))), 'a');
    let status = rig.status(&format!("default/web (node port) {foreign}"));
    assert!(
        status.starts_with("not served: this is not an address of this machine"),
        "{status}"
    );

    // The node's addresses change, its Services do not.
    rig.change(Change {
        node: Some(node(&[second])),
        ..Change::default()
    });
    check_refused(SocketAddr::new(first, port));
    assert_eq!(name(&mut connect(SocketAddr::new(second, port))), 'a');
}

#[test]
fn a_node_port_displaces_a_stand_in() {
    let mut rig = Rig::new();
    let port = free_port();
    let here = SocketAddr::from(([127, 0, 0, 1], port));
    rig.apply(&[&plan("web", cluster_ip(16, port), &[echo('a')])]);
    assert_eq!(rig.listens_on("default/web"), here);
    rig.apply(&[&plan("direct", here, &[echo('b')])]);
    assert_eq!(name(&mut connect(here)), 'b');
    assert_eq!(name(&mut connect(rig.listens_on("default/web"))), 'a');
}

#[test]
fn of_two_services_with_one_address_the_first_has_it() {
    let mut rig = Rig::new();
    let frontend = own_address();
    let first = plan("a", frontend, &[echo('a')]);
    let second = plan("b", frontend, &[echo('b')]);
    rig.apply(&[&second]);
    rig.apply(&[&first]);
    assert_eq!(name(&mut connect(frontend)), 'a');
    let status = rig.status("default/b");
    assert_eq!(status, "not served: default/a (cluster IP) has this address and port");
    rig.remove(&first);
    assert_eq!(name(&mut connect(frontend)), 'b');
}

#[test]
fn sctp_is_not_carried_and_says_so() {
    let mut rig = Rig::new();
    let frontend = own_address();
    let mut web = plan("web", frontend, &[echo('a')]);
    web.ports[0].protocol = Protocol::Sctp;
    rig.apply(&[&web]);
    assert_eq!(
        rig.status("default/web"),
        "not carried: the userspace backend relays TCP and UDP only"
    );
}

#[test]
fn ipv6_frontends_are_served_as_well() {
    let mut rig = Rig::new();
    let listener = TcpListener::bind("[::1]:0").unwrap();
    let endpoint = listener.local_addr().unwrap();
    rig.apply(&[&plan("web", "[fd00:96::a]:8080".parse().unwrap(), &[endpoint])]);
    let at = rig.listens_on("default/web (cluster IP) [fd00:96::a]:8080/tcp");
    assert_eq!(at.ip().to_string(), "::1");
    let mut client = TcpStream::connect(at).unwrap();
    let (mut server, _) = listener.accept().unwrap();
    server.write_all(b"6").unwrap();
    assert_eq!(name(&mut client), '6');
}

#[test]
fn stop_closes_every_listener() {
    let mut rig = Rig::new();
    let frontend = own_address();
    let udp = own_address();
    rig.apply(&[
        &plan("web", frontend, &[echo('a')]),
        &udp_plan("dns", udp, &[echo('b')]),
    ]);
    rig.backend.stop();
    check_refused(frontend);
    UdpSocket::bind(udp).unwrap();
}
