//! The grammar of check lines.

use super::*;

fn parsed(line: &str) -> Check {
    Check::parse(line).unwrap()
}

fn connect(check: &Check) -> &Connect {
    match &check.target {
        Some(Target::Connect(connect)) => connect,
        other => panic!("{other:?}"),
    }
}

#[test]
fn connections() {
    let check = parsed("client -> 10.96.0.80:80 => web-1 web-2, even, source client");
    assert_eq!(
        (check.from.as_str(), connect(&check).host.as_str(), connect(&check).port),
        ("client", "10.96.0.80", 80)
    );
    let Expect::Answers(answers) = &check.expect else {
        panic!("{check:?}")
    };
    assert_eq!(answers.names, ["web-1", "web-2"]);
    assert_eq!(
        (answers.spread, answers.source.as_deref()),
        (Spread::Even, Some("client"))
    );

    let check = parsed("outside -> udp [fd00:96::50]:53 port 4000 => timeout");
    assert_eq!((connect(&check).udp, connect(&check).source_port), (true, Some(4000)));
    assert_eq!(connect(&check).host, "[fd00:96::50]");
    assert_eq!(check.expect, Expect::Fails(Failing::Timeout));

    assert!(matches!(
        parsed("a -> node-1/v6:1 => one of b c").expect,
        Expect::Answers(Answers {
            spread: Spread::One,
            ..
        })
    ));
    assert!(parsed("held => web-1").target.is_none());
}

#[test]
fn names_need_dns_and_addresses_do_not() {
    for (host, name) in [
        ("web.shop", true),
        ("web", true),
        ("10.96.0.1", false),
        ("[fd00::1]", false),
        ("node-2", false),
        ("pod/web-1/v6", false),
        ("localhost", false),
    ] {
        assert_eq!(
            parsed(&format!("client -> {host}:80 => web-1")).needs_dns(),
            name,
            "{host}"
        );
    }
}

#[test]
fn pages_and_queries() {
    let check = parsed("node-1 -> http 127.0.0.1:32122/healthz => 503, body \"localEndpoints\": 0, x");
    assert_eq!(
        check.target,
        Some(Target::Http("http://127.0.0.1:32122/healthz".to_owned()))
    );
    assert_eq!(
        check.expect,
        Expect::Page {
            status: 503,
            body: Some("\"localEndpoints\": 0, x".to_owned())
        }
    );

    let check =
        parsed("client -> dns SRV _http._tcp.web.default.svc.cluster.local => 0 50 80 b., 0 50 80 a., ttl 30, aa");
    let Expect::Dns(expect) = check.expect else { panic!() };
    assert_eq!(expect.records, ["0 50 80 a.", "0 50 80 b."]);
    assert_eq!(
        (expect.ttl, expect.flags.as_slice(), expect.rcode.as_str()),
        (Some(30), &["aa".to_owned()][..], "NOERROR")
    );

    let check = parsed("client -> dns tcp A web.default.svc.cluster.local @10.244.1.5 => NXDOMAIN, soa");
    let Some(Target::Dns {
        tcp: true,
        server: Some(server),
        ..
    }) = &check.target
    else {
        panic!("{check:?}")
    };
    assert_eq!(server, "10.244.1.5");
}

#[test]
fn mistakes() {
    let check = |line: &str, said: &str| {
        let error = format!("{:#}", Check::parse(line).unwrap_err());
        assert!(error.contains(said), "{line}: {error}");
    };
    check("client 10.96.0.1:80 => web", "is no name");
    check("client -> 10.96.0.1 => web", "is not host:port");
    check("client -> 10.96.0.1:80", "one `=>`");
    check("client -> 10.96.0.1:80 =>", "nothing after");
    check("client -> 10.96.0.1:80 => web, evenly", "evenly");
    check("client -> 10.96.0.1:80 via x => web", "via");
    check("client -> dns a web => 1.2.3.4", "is no record type");
}
