//! What clients see of the sockets: pipelining, bounds, addresses; and dig as a client that is not ours.

use std::io::Write;
use std::net::{SocketAddr, UdpSocket};
use std::process::Command;
use std::time::Duration;

use portolan_dns::server::{Options, TcpLimits, bind};

use crate::fixture::{CLUSTER, config, query, zone};
use crate::live::{Live, Setup, Upstream, ask_udp, connect, framed, read_tcp};

#[test]
fn a_connection_takes_many_queries() {
    let upstream = Upstream::start();
    let live = Live::start(
        &zone(CLUSTER, config()),
        Setup {
            upstreams: vec![upstream.address],
            ..Setup::default()
        },
    );
    let mut stream = connect(live.address);
    let mut all = Vec::new();
    for (id, name) in [
        (1, "slow.example.com. A"),
        (2, "web.shop.svc A"),
        (3, "gone.shop.svc A"),
    ] {
        let mut message = query(name);
        message.metadata.id = id;
        all.extend(framed(&message.to_vec().unwrap()));
    }
    stream.write_all(&all).unwrap();
    let ids: Vec<u16> = (0..3).map(|_| read_tcp(&mut stream).unwrap().metadata.id).collect();
    assert_eq!(ids, [2, 3, 1], "what waits for upstreams holds up nobody");
}

#[test]
fn connections_are_bounded() {
    let tcp = TcpLimits {
        connections: 2,
        idle: Duration::from_millis(300),
        ..TcpLimits::default()
    };
    let live = Live::start(
        &zone(CLUSTER, config()),
        Setup {
            tcp,
            ..Setup::default()
        },
    );
    let bytes = framed(&query("web.shop.svc A").to_vec().unwrap());
    let mut kept = [connect(live.address), connect(live.address)];
    for stream in &mut kept {
        stream.write_all(&bytes).unwrap();
        assert!(read_tcp(stream).is_some());
    }
    assert!(read_tcp(&mut connect(live.address)).is_none(), "a third one is closed");
    for stream in &mut kept {
        assert!(read_tcp(stream).is_none(), "closed when idle");
    }
    let mut again = connect(live.address);
    again.write_all(&bytes).unwrap();
    assert!(read_tcp(&mut again).is_some(), "there is room again");
    let mut garbage = connect(live.address);
    garbage.write_all(&[0, 3, 1, 2, 3]).unwrap();
    assert!(read_tcp(&mut garbage).is_none(), "what is no query ends the connection");
}

#[test]
fn replies_come_from_the_address_that_was_asked() {
    let live = Live::start(
        &zone(CLUSTER, config()),
        Setup {
            listen: "0.0.0.0:0",
            ..Setup::default()
        },
    );
    for host in ["127.0.0.1", "127.0.0.2", "127.1.2.3"] {
        let server = SocketAddr::new(host.parse().unwrap(), live.address.port());
        assert_eq!(
            ask_udp(server, &query("web.shop.svc A").to_vec().unwrap())
                .answers
                .len(),
            1,
            "{host}"
        );
    }
}

#[test]
fn datagrams_that_are_no_query_get_nothing() {
    let live = Live::start(&zone(CLUSTER, config()), Setup::default());
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.connect(live.address).unwrap();
    let mut response = query("web.shop.svc A").to_vec().unwrap();
    response[2] |= 0x80;
    for nothing in [&b""[..], b"x", &response] {
        socket.send(nothing).unwrap();
    }
    let good = query("web.shop.svc A");
    socket.send(&good.to_vec().unwrap()).unwrap();
    socket.set_read_timeout(Some(crate::live::PATIENCE)).unwrap();
    let mut buffer = [0; 512];
    let length = socket.recv(&mut buffer).unwrap();
    assert_eq!(
        hickory_proto::op::Message::from_vec(&buffer[..length])
            .unwrap()
            .answers
            .len(),
        1
    );
}

#[test]
fn a_port_in_use_is_explained() {
    let taken = UdpSocket::bind("127.0.0.1:0").unwrap();
    let options = |listen: SocketAddr| Options {
        listen: vec![listen],
        threads: 1,
        tcp: TcpLimits::default(),
        encrypted: Vec::new(),
    };
    let address = taken.local_addr().unwrap();
    let error = bind(options(address)).unwrap_err().to_string();
    assert!(
        error.starts_with(&format!("cannot listen on {address}/udp: port {}", address.port())),
        "{error}"
    );
    assert!(error.contains("--listen"), "{error}");
    let error = bind(options("192.0.2.1:53".parse().unwrap())).unwrap_err().to_string();
    assert!(error.contains("no such address"), "{error}");
}

#[test]
fn dig_understands_every_answer() {
    let live = Live::start(&zone(CLUSTER, config()), Setup::default());
    let dig = |args: &[&str]| {
        let port = live.address.port().to_string();
        let output = Command::new("dig")
            .args(["@127.0.0.1", "-p", &port, "+tries=1", "+time=20"])
            .args(args)
            .output();
        String::from_utf8(output.unwrap().stdout).unwrap()
    };
    for transport in ["+notcp", "+tcp"] {
        let short = |name: &str, type_: &str| {
            let text = dig(&["+short", transport, &format!("{name}.cluster.local"), type_]);
            let mut lines: Vec<_> = text.lines().map(str::to_owned).collect();
            lines.sort();
            lines
        };
        assert_eq!(short("web.shop.svc", "A"), ["10.96.0.20"]);
        assert_eq!(short("dual.shop.svc", "AAAA"), ["fd00:96::30"]);
        assert_eq!(short("nginx.default.svc", "A"), ["10.244.1.6", "10.244.2.6"]);
        assert_eq!(short("dns-version", "TXT"), ["\"1.1.0\""]);
        assert_eq!(
            short("_http._tcp.web.shop.svc", "SRV"),
            ["0 100 80 web.shop.svc.cluster.local."]
        );
        assert_eq!(
            short("alias.shop.svc", "A"),
            ["10.96.0.20", "web.shop.svc.cluster.local."]
        );
        let text = dig(&[transport, "-x", "10.244.1.6"]);
        assert!(text.contains("web-0.nginx.default.svc.cluster.local."), "{text}");
        let text = dig(&[transport, "gone.shop.svc.cluster.local"]);
        assert!(
            text.contains("status: NXDOMAIN") && text.contains("flags: qr aa rd ra;"),
            "{text}"
        );
        assert!(
            text.contains("hostmaster.cluster.local.") && !text.contains("WARNING: Message"),
            "{text}"
        );
    }
}
