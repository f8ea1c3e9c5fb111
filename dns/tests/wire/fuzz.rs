//! Mutated packets: the parser survives them, and the fast path says what the slow one says. Mutated Corefiles and messages of
//! upstreams: nothing makes their readers panic, and what they make of them is sound.
//!
//! Inputs are made from real ones by a generator of its own, far faster than proptest's, and the same in every run with one
//! seed. `FUZZ_CASES=10000000 FUZZ_SEED=1 nice cargo test --release -p portolan-dns --test wire fuzz` goes further.

use std::io::{Error, ErrorKind};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use hickory_proto::op::Message;
use portolan_dns::answer::edns::LARGEST_UDP;
use portolan_dns::answer::{Answered, Client, Question, Transport, Verdict, answer_with, parse, slow};
use portolan_dns::cache::prepare;
use portolan_dns::corefile::{Corefile, Surroundings};
use portolan_dns::zone::config::{Domain, PodMode};
use portolan_dns::zone::policy::{AclAction, AclRule, Autopath, Transfer};
use portolan_dns::zone::{Policy, Snapshot, ZoneConfig};

use crate::fixture::{CLUSTER, config, query, with_edns, zone};

/// Inputs of one run in CI.
const CASES: u64 = 20_000;

/// xorshift64*: good enough to hit every octet, and nothing to wait for.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() >> 33) as usize % bound.max(1)
    }

    fn one_of<'a, T: ?Sized>(&mut self, list: &[&'a T]) -> &'a T {
        list[self.below(list.len())]
    }
}

const LABELS: [&str; 34] = [
    "web",
    "nginx",
    "plain",
    "dual",
    "alias",
    "external",
    "dangling",
    "selfish",
    "kube-dns",
    "waiting",
    "peers",
    "shop",
    "default",
    "kube-system",
    "empty",
    "svc",
    "pod",
    "dns",
    "ns",
    "dns-version",
    "_http",
    "_tcp",
    "_web",
    "_udp",
    "web-0",
    "10-244-1-30",
    "fd00-244-0-1--0",
    "WEB",
    "x",
    "us-a",
    "pin",
    "prefer",
    "_zone",
    "*",
];
const ENDS: [&str; 8] = [
    "svc.cluster.local.",
    "shop.svc.cluster.local.",
    "default.svc.CLUSTER.local.",
    "cluster.local.",
    "pod.cluster.local.",
    "1.244.10.in-addr.arpa.",
    "0.96.10.in-addr.arpa.",
    "example.com.",
];
const TYPES: [&str; 14] = [
    "A", "A", "AAAA", "AAAA", "SRV", "PTR", "TXT", "SOA", "NS", "CNAME", "ANY", "HTTPS", "AXFR", "IXFR",
];

fn packet(random: &mut Random) -> Vec<u8> {
    let mut name = String::new();
    for _ in 0..random.below(5) {
        name.push_str(random.one_of(&LABELS));
        name.push('.');
    }
    name.push_str(random.one_of(&ENDS));
    let mut message = query(&format!("{name} {}", random.one_of(&TYPES)));
    message.metadata.id = random.next() as u16;
    let edns = random.below(4) > 0;
    if edns {
        message = with_edns(message, random.next() as u16);
    }
    let mut bytes = message.to_vec().unwrap();
    if edns && random.below(2) == 0 {
        options(random, &mut bytes);
    }
    for _ in 0..[0, 0, 1, 2, 5][random.below(5)] {
        let at = random.below(bytes.len());
        match random.below(5) {
            0 => bytes[at] = random.next() as u8,
            1 => bytes[at] ^= 1 << random.below(8),
            2 => bytes.truncate(at),
            3 => bytes.insert(at, random.next() as u8),
            _ => bytes.extend_from_within(at..),
        }
        if bytes.is_empty() {
            break;
        }
    }
    bytes
}

/// Options into the OPT record that ends the packet.
fn options(random: &mut Random, bytes: &mut Vec<u8>) {
    let start = bytes.len();
    for _ in 0..random.below(4) {
        let code = [3u16, 8, 10, 10, 11, 12, 15, 65_001][random.below(8)];
        let length = [0usize, 4, 7, 8, 8, 16, 24, 40, 41][random.below(9)];
        bytes.extend(code.to_be_bytes());
        bytes.extend((length as u16).to_be_bytes());
        bytes.extend((0..length).map(|_| random.next() as u8));
    }
    let length = ((bytes.len() - start) as u16).to_be_bytes();
    bytes[start - 2..start].copy_from_slice(&length);
}

fn snapshots() -> Vec<Arc<Snapshot>> {
    let rich = |mut config: ZoneConfig, policy: Policy| {
        config.policy = Arc::new(policy);
        config
    };
    let everybody = vec!["0.0.0.0/0".parse().unwrap(), "::/0".parse().unwrap()];
    let policy = Policy {
        acl: vec![AclRule {
            zones: vec![Domain::new("dual.shop.svc.cluster.local").unwrap()],
            action: AclAction::Block,
            types: vec![28],
            sources: Vec::new(),
        }],
        transfer: vec![Transfer {
            zones: Vec::new(),
            to: everybody,
        }],
        nsid: Some((*b"fuzz").into()),
        bufsize: 1400,
        cookie_secret: Some([7; 16]),
        autopath: Some(Autopath::default()),
        ..Policy::default()
    };
    let pod = "---\napiVersion: v1\nkind: Pod\nmetadata: {name: client, namespace: shop}\n\
        status: {phase: Running, podIPs: [{ip: 10.244.1.50}]}\n---\n\
        apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\naddressType: IPv4\n\
        metadata: {name: nginx-zoned, namespace: default, labels: {kubernetes.io/service-name: nginx}}\n\
        ports: [{name: web, port: 80}]\nendpoints: [{addresses: [10.244.9.9], zone: us-a}]\n";
    let mut verified = config();
    verified.set_pods(PodMode::Verified);
    verified.naming.zonal = true;
    let mut stale = zone(&[CLUSTER, pod].concat(), rich(verified, policy));
    stale.set_stale(true);
    vec![zone(CLUSTER, config()).reader().load_full(), stale.reader().load_full()]
}

/// What one path makes of a packet, in a form that can be compared.
fn outcome(verdict: Verdict, out: &[u8]) -> Result<Vec<u8>, String> {
    match verdict {
        Verdict::Answer(Answered { length, .. }) => Ok(out[..length].to_vec()),
        Verdict::Forward(forward) => {
            let completion = forward.completion.map(|completion| completion.targets);
            let question = forward.question;
            Err(format!(
                "forward {} {} {:?} {:?} {completion:?}",
                question.name, question.qtype, forward.aliases, question.edns
            ))
        }
        Verdict::Transfer(transfer) => Err(format!("transfer {:?}", transfer.zone())),
        Verdict::Drop => Err("drop".to_owned()),
    }
}

/// How many inputs, and where they come from.
fn bounds() -> (u64, Random) {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let seed = number("FUZZ_SEED").unwrap_or(1);
    (number("FUZZ_CASES").unwrap_or(CASES), Random(seed | 1))
}

#[test]
fn fuzz_both_paths() {
    let (cases, mut random) = bounds();
    let snapshots = snapshots();
    let sources: [IpAddr; 2] = [[10, 244, 1, 50].into(), [127, 0, 0, 1].into()];
    let mut question = Question::default();
    let (mut fast, mut slow) = (vec![0; 65_535], vec![0; 65_535]);
    let mut plain = 0;
    for case in 0..cases {
        let bytes = packet(&mut random);
        let snapshot = &snapshots[random.below(snapshots.len())];
        let transport = [Transport::Udp, Transport::Tcp][random.below(2)];
        let client = Client {
            transport,
            address: sources[random.below(2)],
            rotation: random.next() as u32,
            now: 1_700_000_000,
        };
        plain += u64::from(parse::parse(&bytes, &mut question) == parse::Parsed::Plain);
        let limit = match transport {
            Transport::Udp => LARGEST_UDP,
            Transport::Tcp => 65_535,
        };
        let one = outcome(
            answer_with(&mut question, &bytes, snapshot, &client, &mut fast[..limit]),
            &fast,
        );
        let other = outcome(slow::answer(&bytes, snapshot, &client, &mut slow[..limit]), &slow);
        let what = || format!("case {case}: {bytes:?}");
        match (&one, &other) {
            (Ok(fast), Ok(slow)) => equal(&bytes, fast, slow, transport, &what),
            (fast, slow) => assert_eq!(fast, slow, "{}", what()),
        }
    }
    assert!(plain > cases / 4, "{plain} of {cases} were plain");
}

fn equal(query: &[u8], fast: &[u8], slow: &[u8], transport: Transport, what: &dyn Fn() -> String) {
    assert_eq!(fast[..2], query[..2], "id: {}", what());
    assert!(fast[2] & 0x80 != 0, "QR: {}", what());
    let parsed = Message::from_vec(fast).unwrap_or_else(|error| panic!("{error}: {}", what()));
    if fast == slow {
        return;
    }
    let mut other = Message::from_vec(slow).unwrap_or_else(|error| panic!("{error}: {}", what()));
    let mut parsed = parsed;
    if transport == Transport::Udp {
        // Names are compressed differently, so one path may have room for a record more than the other.
        assert!(fast.len() <= 1400 && slow.len() <= 1400, "{}", what());
        let cut = parsed.metadata.truncation || other.metadata.truncation;
        let common = parsed.answers.len().min(other.answers.len());
        assert!(cut || parsed.answers.len() == other.answers.len(), "{}", what());
        parsed.answers.truncate(common);
        other.answers.truncate(common);
        parsed.additionals.clear();
        other.additionals.clear();
        parsed.metadata.truncation = other.metadata.truncation;
    }
    assert_eq!(parsed, other, "{}", what());
}

/// A Corefile that a fuzzer wrote, and nothing beside it.
struct Written(String);

impl Surroundings for Written {
    fn read(&self, file: &Path) -> std::io::Result<String> {
        // It may import itself.
        match file.to_str() {
            Some("Corefile") => Ok(self.0.clone()),
            _ => Err(Error::from(ErrorKind::NotFound)),
        }
    }

    fn glob(&self, pattern: &Path) -> Vec<PathBuf> {
        vec![pattern.with_file_name("Corefile")]
    }

    fn variable(&self, name: &str) -> Option<String> {
        name.len().is_multiple_of(2).then(|| "192.0.2.7 {$OTHER}".to_owned())
    }
}

const COREFILES: [&str; 3] = [
    include_str!("../../src/corefile/tests/kubeadm.Corefile"),
    include_str!("../../src/corefile/tests/nodelocaldns-template.Corefile"),
    include_str!("../../src/corefile/tests/everything.Corefile"),
];
const WORDS: [&str; 46] = [
    " ",
    "\n",
    "{",
    "}",
    " {\n",
    "\n}\n",
    "(snip)",
    "import snip\n",
    "import Corefile\n",
    "import *\n",
    "\"",
    "\\",
    "#",
    "{$A}",
    "{%BC%}",
    ".:53",
    "tls://.",
    "10.0.0.0/9",
    "::1/3",
    "forward . 192.0.2.1",
    "except a b",
    "next NXDOMAIN",
    "force_tcp",
    "cache 30",
    "success 10 5 1",
    "kubernetes cluster.local",
    "zonal",
    "fallthrough",
    "labels a in (b,",
    "pods verified",
    "hosts f",
    "192.0.2.1 a",
    "rewrite name regex (.*) {1}",
    "rewrite stop",
    "template IN A",
    "match ^(",
    "answer \"{{ .Name }}\"",
    "acl",
    "block type A net *",
    "nsid",
    "bufsize 9",
    "ttl 99999999999",
    "health :8080",
    "transfer",
    "to *",
    "\u{fffd}",
];

fn corefile(random: &mut Random) -> String {
    let mut text = match random.below(3) {
        0 => String::from(".:53 {\n"),
        _ => random.one_of(&COREFILES).to_owned(),
    };
    for _ in 0..random.below(12) {
        let mut at = random.below(text.len() + 1);
        while !text.is_char_boundary(at) {
            at -= 1;
        }
        match random.below(4) {
            0 if at < text.len() => drop(text.remove(at)),
            1 => text.truncate(at),
            _ => text.insert_str(at, random.one_of(&WORDS)),
        }
    }
    text
}

#[test]
fn fuzz_corefiles() {
    let (cases, mut random) = bounds();
    let mut good = 0;
    for case in 0..cases {
        let text = corefile(&mut random);
        let lines = text.lines().count().max(1);
        let (read, problems) = Corefile::read(Path::new("Corefile"), &Written(text.clone()));
        good += u64::from(problems.is_empty());
        assert!(
            !problems.is_empty() || !read.servers.is_empty(),
            "case {case}: neither a server block nor a problem: {text:?}"
        );
        for problem in &problems {
            let said = problem.to_string();
            let line = said.split(':').nth(1).and_then(|line| line.parse::<usize>().ok());
            assert!(
                line.is_some_and(|line| (1..=lines).contains(&line)),
                "case {case}: {said:?} of {text:?}"
            );
        }
    }
    assert!(good > 0, "not one of {cases} could be read");
}

/// Responses of upstreams, more or less.
fn response(random: &mut Random) -> Vec<u8> {
    let mut bytes = packet(random);
    if bytes.len() < 12 {
        return bytes;
    }
    bytes[2] |= 0x80;
    // Without an OPT record; some of the counts are wrong.
    bytes[6..12].copy_from_slice(&[
        0,
        random.below(4) as u8,
        0,
        random.below(2) as u8,
        0,
        random.below(2) as u8,
    ]);
    for _ in 0..random.below(5) {
        let owner: &[u8] = [
            &b"\xc0\x0c"[..],
            b"\x03web\xc0\x10",
            b"\x03WEB\x04shop\x00",
            b"\x00",
            b"\xc0\xff",
        ][random.below(5)];
        let type_ = [1u8, 2, 5, 6, 12, 15, 33, 41][random.below(8)];
        let data: Vec<u8> = match random.below(3) {
            0 => [&[random.next() as u8; 6][..], owner].concat(),
            1 => [owner, owner, &[0; 20]].concat(),
            _ => (0..random.below(9)).map(|_| random.next() as u8).collect(),
        };
        bytes.extend_from_slice(owner);
        bytes.extend([0, type_, 0, 1, 0, 0, random.next() as u8, 60, 0, data.len() as u8]);
        bytes.extend(data);
    }
    bytes
}

#[test]
fn fuzz_messages_of_upstreams() {
    let (cases, mut random) = bounds();
    let mut question = Question::default();
    let mut out = vec![0; 65_535];
    let mut kept = 0;
    for case in 0..cases {
        let bytes = response(&mut random);
        let Some(prepared) = prepare(bytes.clone()) else {
            continue;
        };
        // The client's question, which the message's own one equals but for letter case where it is used.
        if parse::parse(&packet(&mut random), &mut question) == parse::Parsed::Ignore {
            continue;
        }
        let transport = [Transport::Udp, Transport::Tcp][random.below(2)];
        let length = prepared.answer(&question, transport, None, &mut out);
        kept += u64::from(length.is_some());
        if let Some(length) = length {
            assert!(length <= question.limit(transport), "case {case}: {bytes:?}");
            assert_eq!(out[..2], question.id.to_be_bytes(), "case {case}: {bytes:?}");
        }
    }
    assert!(kept > cases / 20, "{kept} of {cases} were answers");
}
