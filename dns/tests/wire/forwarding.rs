//! Names that are not ours: what upstreams say reaches the client, and what they do wrong does not.

use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use portolan_dns::cache::policy::Policy;
use portolan_dns::forward::everything;
use portolan_dns::forward::pool::Pool;
use portolan_dns::forward::route::{Block, Route, Table};
use portolan_dns::forward::spec::{self, Options, Target};
use portolan_dns::server::{Encrypted, Scheme};
use portolan_dns::zone::names;

use crate::encrypted::Identity;
use crate::fixture::{CLUSTER, config, query, said, with_edns, zone};
use crate::live::{Live, Setup, Upstream};

fn forwarding_to(upstreams: &[SocketAddr]) -> Live {
    Live::start(
        &zone(CLUSTER, config()),
        Setup {
            upstreams: upstreams.to_vec(),
            ..Setup::default()
        },
    )
}

#[test]
fn answers_of_upstreams_are_given_and_kept() {
    let upstream = Upstream::start();
    let live = forwarding_to(&[upstream.address]);
    for name in ["www.example.com.", "WWW.example.com.", "www.EXAMPLE.com."] {
        let reply = live.udp(&with_edns(query(&format!("{name} A")), 1232));
        assert_eq!(reply.queries[0].name().to_ascii(), name, "the case of the question");
        assert_eq!(reply.metadata.id, 4711);
        let flags = reply.metadata;
        assert!(flags.recursion_available && flags.recursion_desired && !flags.authoritative);
        assert_eq!(reply.answers[0].data.to_string(), "192.0.2.1");
        assert!((50..=60).contains(&reply.answers[0].ttl));
        assert_eq!(reply.edns.unwrap().max_payload(), 1232);
    }
    assert_eq!(upstream.count("www.example.com."), 1, "the others came from the cache");
    assert_eq!(live.tcp(&query("www.example.com. A")).answers.len(), 1);
    let none = live.udp(&query("none.example.com. A"));
    assert_eq!(said(&none), ["NXDOMAIN".to_owned()].into());
    assert_eq!(none.authorities[0].ttl, 7, "the SOA's minimum (RFC 2308)");
    live.tcp(&query("none.example.com. A"));
    assert_eq!(upstream.count("none.example.com."), 1);
    // A type without records and without SOA may not be kept.
    live.udp(&query("www.example.com. MX"));
    live.udp(&query("www.example.com. MX"));
    assert_eq!(upstream.count("www.example.com."), 3);
}

#[test]
fn cut_answers_are_fetched_over_tcp() {
    let upstream = Upstream::start();
    let live = forwarding_to(&[upstream.address]);
    let reply = live.udp(&query("cut.example.com. A"));
    assert!(!reply.metadata.truncation);
    assert_eq!(reply.answers.len(), 1);
}

#[test]
fn forged_answers_are_passed_over() {
    let upstream = Upstream::start();
    let live = forwarding_to(&[upstream.address]);
    let reply = live.udp(&query("forged.example.com. A"));
    assert_eq!(reply.answers[0].data.to_string(), "192.0.2.1");
}

#[test]
fn a_dead_upstream_costs_a_moment() {
    let dead = UdpSocket::bind("127.0.0.1:0").unwrap();
    let closed = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let upstream = Upstream::start();
    let live = forwarding_to(&[dead.local_addr().unwrap(), closed, upstream.address]);
    let begun = Instant::now();
    assert_eq!(live.udp(&query("www.example.com. A")).answers.len(), 1);
    // Not a measurement: without the second query it would take two seconds.
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
}

#[test]
fn a_better_answer_is_waited_for() {
    let (failing, upstream) = (Upstream::start(), Upstream::start());
    let live = forwarding_to(&[failing.address, upstream.address]);
    // Both say SERVFAIL: so does the reply, and each was asked once.
    assert_eq!(
        said(&live.udp(&query("servfail.example.com. A"))),
        ["SERVFAIL".to_owned()].into()
    );
    assert_eq!(failing.count("servfail.example.com."), 1);
    assert_eq!(upstream.count("servfail.example.com."), 1);
}

#[test]
fn many_askers_are_one_query() {
    let upstream = Upstream::start();
    let live = forwarding_to(&[upstream.address]);
    std::thread::scope(|scope| {
        for _ in 0..20 {
            scope.spawn(|| assert_eq!(live.udp(&query("slow.example.com. A")).answers.len(), 1));
        }
    });
    assert_eq!(upstream.count("slow.example.com."), 1);
}

#[test]
fn aliases_lead_upstream() {
    let upstream = Upstream::start();
    let yaml = format!(
        "{CLUSTER}---\napiVersion: v1\nkind: Service\nmetadata: {{name: nothing, namespace: shop}}\n\
         spec: {{type: ExternalName, externalName: none.example.com}}\n"
    );
    let live = Live::start(
        &zone(&yaml, config()),
        Setup {
            upstreams: vec![upstream.address],
            ..Setup::default()
        },
    );
    for reply in [
        live.udp(&query("external.shop.svc A")),
        live.tcp(&query("external.shop.svc A")),
    ] {
        let expect = ["external.shop.svc.cluster.local. 5 CNAME database.example.com.".to_owned()];
        assert!(said(&reply).is_superset(&expect.into()), "{:?}", said(&reply));
        assert_eq!(reply.answers.len(), 2);
        assert_eq!(reply.answers[1].name.to_ascii(), "database.example.com.");
        assert!(reply.metadata.authoritative);
    }
    assert_eq!(upstream.count("database.example.com."), 1);
    // CoreDNS hides the rcode behind the alias.
    let expect = [
        "nothing.shop.svc.cluster.local. 5 CNAME none.example.com.".to_owned(),
        "NXDOMAIN".to_owned(),
    ];
    assert_eq!(said(&live.udp(&query("nothing.shop.svc A"))), expect.into());
}

#[test]
fn too_many_queries_are_refused_with_a_reason() {
    let upstream = Upstream::start();
    let live = Live::start(
        &zone(CLUSTER, config()),
        Setup {
            upstreams: vec![upstream.address],
            max_concurrent: 1,
            ..Setup::default()
        },
    );
    let waiting = UdpSocket::bind("127.0.0.1:0").unwrap();
    waiting
        .send_to(&query("silent.example.com. A").to_vec().unwrap(), live.address)
        .unwrap();
    while upstream.count("silent.example.com.") == 0 {
        std::thread::sleep(Duration::from_millis(5));
    }
    for reply in [
        live.udp(&with_edns(query("www.example.com. A"), 1232)),
        live.tcp(&with_edns(query("www.example.com. A"), 1232)),
    ] {
        assert_eq!(said(&reply), ["REFUSED".to_owned()].into());
        assert!(
            format!("{:?}", reply.edns.unwrap().options()).contains("116, 111, 111"),
            "too many ..."
        );
    }
    assert_eq!(live.shared.forwarder.rejected(), 2);
    // The cluster's own names are answered all the same.
    assert_eq!(live.udp(&query("web.shop.svc A")).answers.len(), 1);
}

#[test]
fn no_upstream_is_said() {
    let live = forwarding_to(&[]);
    let reply = live.udp(&with_edns(query("www.example.com. A"), 1232));
    assert_eq!(said(&reply), ["SERVFAIL".to_owned()].into());
    assert!(!reply.metadata.authoritative);
}

/// A forwarder's table for one pool of upstreams.
fn pooled(live: &Live, upstreams: &[SocketAddr], options: Options) -> std::sync::Arc<Pool> {
    let pool = live.shared.forwarder.pool(options);
    let targets: Vec<Target> = upstreams.iter().map(|address| Target::plain(*address)).collect();
    pool.set_targets(&targets);
    let block = everything(pool.clone(), Some(Policy::default()));
    live.shared.forwarder.set_table(Table::new(vec![block]));
    pool
}

fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < crate::live::PATIENCE, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn an_upstream_that_dies_is_left_alone_until_it_is_back() {
    let upstream = Upstream::start();
    let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
    let dead = silent.local_addr().unwrap();
    let live = forwarding_to(&[]);
    let options = Options {
        policy: spec::Policy::Sequential,
        health_check: Duration::from_millis(20),
        ..Options::default()
    };
    let pool = pooled(&live, &[dead, upstream.address], options);
    let upstreams = pool.upstreams();
    // Nobody waits for the dead one long enough to see that it is dead, and still it becomes known.
    wait_until("it is down", || {
        let name = format!("n{}.example.com. A", rand::random::<u64>());
        assert_eq!(live.udp(&query(&name)).answers.len(), 1);
        upstreams[0].is_down(2)
    });
    // Somebody answers there again: the probes are heard.
    std::thread::spawn(move || {
        let mut buffer = [0; 512];
        while let Ok((length, peer)) = silent.recv_from(&mut buffer) {
            buffer[2] |= 0x80;
            silent.send_to(&buffer[..length], peer).unwrap();
        }
    });
    wait_until("it is back", || !upstreams[0].is_down(2));
}

#[test]
fn every_policy_asks_everyone_in_its_order() {
    let two = [Upstream::start(), Upstream::start()];
    let live = forwarding_to(&[]);
    for (policy, first) in [
        (spec::Policy::Sequential, 40..=40),
        (spec::Policy::RoundRobin, 20..=35),
        (spec::Policy::Random, 5..=39),
    ] {
        // Never down, so that a pause of this machine changes nothing.
        let options = Options {
            policy,
            max_fails: 0,
            ..Options::default()
        };
        pooled(&live, &[two[0].address, two[1].address], options);
        let names: Vec<String> = (0..40)
            .map(|i| format!("{policy:?}-{i}.example.com.").to_lowercase())
            .collect();
        for name in &names {
            assert_eq!(live.udp(&query(&format!("{name} A"))).answers.len(), 1);
        }
        let count: usize = names.iter().map(|name| two[0].count(name)).sum();
        assert!(first.contains(&count), "{policy:?}: {count}");
    }
}

#[test]
fn names_go_where_their_zone_says() {
    let (stub, root) = (Upstream::start(), Upstream::start());
    let live = forwarding_to(&[]);
    let forwarder = &live.shared.forwarder;
    let wire = |name: &str| names::wire_from_text(name).unwrap();
    let block = |zone: &str, from: &str, except: &[&str], upstream: &Upstream| {
        let pool = forwarder.pool(Options::default());
        pool.set_targets(&[Target::plain(upstream.address)]);
        Block {
            zone: wire(zone),
            routes: vec![Route {
                from: vec![wire(from)],
                except: except.iter().map(|name| wire(name)).collect(),
                pool,
            }],
            cache: None,
            cache_zones: Vec::new(),
        }
    };
    forwarder.set_table(Table::new(vec![
        block(".", ".", &["except.example"], &root),
        block("stub.example", "a.stub.example", &[], &stub),
    ]));
    for (name, rcode, by_stub, by_root) in [
        ("www.a.stub.example.", "", 1, 0),
        // The server block has the name and forwards it to nobody: SERVFAIL, as in CoreDNS.
        ("www.b.stub.example.", "SERVFAIL", 0, 0),
        ("xstub.example.", "", 0, 1),
        ("www.except.example.", "SERVFAIL", 0, 0),
    ] {
        let reply = live.udp(&query(&format!("{name} A")));
        assert_eq!(said(&reply).contains("SERVFAIL"), rcode == "SERVFAIL", "{name}");
        assert_eq!((stub.count(name), root.count(name)), (by_stub, by_root), "{name}");
    }
    // Without a cache everything is asked again.
    live.udp(&query("xstub.example. A"));
    assert_eq!(root.count("xstub.example."), 2);
}

#[test]
fn a_name_that_no_server_block_has_is_refused() {
    let upstream = Upstream::start();
    let live = forwarding_to(&[]);
    let pool = live.shared.forwarder.pool(Options::default());
    pool.set_targets(&[Target::plain(upstream.address)]);
    let mut block = everything(pool, None);
    block.zone = names::wire_from_text("example.com").unwrap();
    live.shared.forwarder.set_table(Table::new(vec![block]));
    for (name, refused) in [("www.example.com. A", false), ("www.example.org. A", true)] {
        let reply = live.udp(&query(name));
        assert_eq!(said(&reply).contains("REFUSED"), refused, "{name}");
    }
}

#[test]
fn the_next_forward_is_asked_when_the_answer_leaves_it_to_it() {
    let all = [Upstream::start(), Upstream::start(), Upstream::start()];
    let live = forwarding_to(&[]);
    let forwarder = &live.shared.forwarder;
    let route = |upstream: &Upstream, options: Options, except: &str| {
        let pool = forwarder.pool(options);
        pool.set_targets(&[Target::plain(upstream.address)]);
        Route {
            from: vec![Box::new([0])],
            except: vec![names::wire_from_text(except).unwrap()],
            pool,
        }
    };
    let next = Options {
        next: vec![3],
        ..Options::default()
    };
    let nodata = Options {
        next_on_nodata: true,
        ..Options::default()
    };
    let none = Options {
        max_concurrent: Some(0),
        ..Options::default()
    };
    for (second, third, cases) in [
        (
            &nodata,
            &Options::default(),
            &[
                ("www.example.com. A", [1, 0, 0], ""),
                // NXDOMAIN is what the first passes on, and not what the second does.
                ("none.example.com. A", [1, 1, 0], "NXDOMAIN"),
                ("servfail.example.com. A", [1, 0, 0], "SERVFAIL"),
                // Nothing of the type: the first keeps that.
                ("www.example.com. MX", [2, 0, 0], ""),
                // The second does not take the name.
                ("none.second.example. A", [1, 0, 1], "NXDOMAIN"),
            ][..],
        ),
        (
            &none,
            &Options::default(),
            &[("none.example.com. A", [2, 1, 0], "REFUSED")][..],
        ),
    ] {
        forwarder.set_table(Table::new(vec![Block {
            zone: Box::new([0]),
            routes: vec![
                route(&all[0], next.clone(), "nothing"),
                route(&all[1], second.clone(), "second.example"),
                route(&all[2], third.clone(), "nothing"),
            ],
            cache: None,
            cache_zones: Vec::new(),
        }]));
        for (question, asked, rcode) in cases {
            let said = said(&live.udp(&query(question)));
            let name = question.split(' ').next().unwrap();
            let counts: Vec<usize> = all.iter().map(|upstream| upstream.count(name)).collect();
            assert_eq!(counts, asked, "{question}");
            let failed = said
                .iter()
                .find(|line| ["NXDOMAIN", "SERVFAIL", "REFUSED"].contains(&line.as_str()));
            assert_eq!(failed.map_or("", String::as_str), *rcode, "{question}: {said:?}");
        }
    }
    // The first passes on what holds nothing of the type.
    forwarder.set_table(Table::new(vec![Block {
        zone: Box::new([0]),
        routes: vec![
            route(&all[0], nodata, "nothing"),
            route(&all[1], Options::default(), "nothing"),
        ],
        cache: None,
        cache_zones: Vec::new(),
    }]));
    live.udp(&query("nodata.example.com. MX"));
    let counts: Vec<usize> = all
        .iter()
        .map(|upstream| upstream.count("nodata.example.com."))
        .collect();
    assert_eq!(counts, [1, 1, 0]);
}

#[test]
fn clients_see_their_own_letters_also_where_an_upstream_repeats_those_it_was_sent() {
    let upstream = Upstream::start();
    let live = forwarding_to(&[upstream.address]);
    for name in [
        "mirror.letters-of-a-long-name.example.",
        "MIRROR.letters-of-A-LONG-name.Example.",
    ] {
        let reply = live.udp(&query(&format!("{name} A")));
        let (_, rest) = name.split_once('.').unwrap();
        let web = format!("Web.{rest}");
        let said: Vec<String> = reply
            .answers
            .iter()
            .map(|record| format!("{} {}", record.name.to_ascii(), record.data))
            .collect();
        assert_eq!(said, [format!("{name} {web}"), format!("{web} 192.0.2.1")]);
    }
    assert_eq!(
        upstream.count("mirror.letters-of-a-long-name.example."),
        1,
        "the second came from the cache"
    );
}

#[test]
fn old_answers_are_given_while_upstreams_are_silent() {
    let upstream = Upstream::start();
    let live = forwarding_to(&[upstream.address]);
    let pool = live.shared.forwarder.table().pools()[0].clone();
    let question = with_edns(query("brief.example.com. A"), 1232);
    assert_eq!(live.udp(&question).answers[0].ttl, 1);
    // Nobody listens there.
    let closed = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    pool.set_targets(&[Target::plain(closed)]);
    std::thread::sleep(Duration::from_millis(1100));
    let reply = live.udp(&question);
    assert_eq!((reply.answers.len(), reply.answers[0].ttl), (1, 30));
    assert!(
        format!("{:?}", reply.edns.unwrap().options()).contains("[0, 3, "),
        "EDE 3"
    );
    assert_eq!(
        live.shared
            .forwarder
            .cache()
            .stale
            .load(std::sync::atomic::Ordering::Relaxed),
        1
    );
    let unknown = live.udp(&query("www.example.com. A"));
    assert_eq!(said(&unknown), ["SERVFAIL".to_owned()].into());
}

#[test]
fn an_upstream_that_loops_is_refused_and_the_others_go_on() {
    let upstream = Upstream::start();
    let live = forwarding_to(&[]);
    // The server itself, as an upstream of its own.
    let pool = pooled(&live, &[live.address, upstream.address], Options::default());
    live.block_on(live.shared.forwarder.loops().check(&pool));
    let looping: Vec<bool> = pool.upstreams().iter().map(|upstream| upstream.is_looping()).collect();
    assert_eq!(looping, [true, false]);
    for i in 0..10 {
        assert_eq!(live.udp(&query(&format!("l{i}.example.com. A"))).answers.len(), 1);
    }
    // It is another server now.
    pool.set_targets(&[Target::plain(live.address)]);
    let reply = live.udp(&with_edns(query("other.example.com. A"), 1232));
    assert_eq!(said(&reply), ["SERVFAIL".to_owned()].into());
}

#[test]
fn letter_case_is_checked_and_given_up_for_those_who_fold_it() {
    let upstream = Upstream::start();
    let live = forwarding_to(&[upstream.address]);
    for i in 0..3 {
        assert_eq!(
            live.udp(&query(&format!("folded.n{i}.a-name-with-letters.example.com. A")))
                .answers
                .len(),
            1
        );
    }
    let pool = live.shared.forwarder.table().pools()[0].clone();
    assert!(!pool.upstreams()[0].keeps_case());
}

#[test]
fn an_upstream_is_lost_under_load_and_no_query_is() {
    use std::sync::atomic::{AtomicU64, Ordering};
    let (first, second) = (Upstream::start(), Upstream::start());
    let live = forwarding_to(&[first.address, second.address]);
    let asked = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..100 {
                    let number = asked.fetch_add(1, Ordering::Relaxed);
                    if number == 100 {
                        first.mute();
                    }
                    // Never from the cache.
                    let reply = live.udp(&query(&format!("load-{number}.example.com. A")));
                    assert_eq!(reply.answers.len(), 1, "query {number}");
                }
            });
        }
    });
    let pool = live.shared.forwarder.table().pools()[0].clone();
    assert!(pool.upstreams()[0].is_down(2), "nobody asks it first any more");
}

#[test]
fn upstreams_are_asked_over_tcp_tls_and_https() {
    let upstream = Upstream::start();
    let identity = Identity::new();
    let encrypted = |scheme| Encrypted {
        address: "127.0.0.1:0".parse().unwrap(),
        scheme,
        tls: identity.files(),
    };
    // Our own listeners are the upstreams; the tests of those have clients that are not ours.
    let back = Live::start(
        &zone(CLUSTER, config()),
        Setup {
            upstreams: vec![upstream.address],
            encrypted: vec![encrypted(Scheme::Tls), encrypted(Scheme::Https)],
            ..Setup::default()
        },
    );
    let front = forwarding_to(&[]);
    for (transport, address, name, good) in [
        (spec::Transport::Dns, upstream.address, None, true),
        (spec::Transport::Tls, back.encrypted[0], Some("localhost"), true),
        (spec::Transport::Https, back.encrypted[1], Some("localhost"), true),
        // The certificate is for another name.
        (spec::Transport::Tls, back.encrypted[0], Some("example.com"), false),
        (spec::Transport::Https, back.encrypted[1], None, false),
    ] {
        let pool = front.shared.forwarder.pool(Options {
            force_tcp: true,
            ca: Some(identity.folder.path().join("cert.pem")),
            ..Options::default()
        });
        let target = Target {
            address,
            transport,
            server_name: name.map(str::to_owned),
            path: "/dns-query".to_owned(),
        };
        pool.set_targets(std::slice::from_ref(&target));
        front
            .shared
            .forwarder
            .set_table(Table::new(vec![everything(pool, None)]));
        // Many at a time on one connection.
        std::thread::scope(|scope| {
            for i in 0..8 {
                let (front, target) = (&front, &target);
                scope.spawn(move || {
                    let reply = front.udp(&query(&format!("s{i}.example.com. A")));
                    assert_eq!(reply.answers.len(), usize::from(good), "{target} {name:?}");
                });
            }
        });
    }
    assert_eq!(
        upstream.count("s0.example.com."),
        1,
        "asked once over UDP, by the server in the middle"
    );
}
