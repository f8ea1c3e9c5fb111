//! Corefiles that clusters have, and what is said of those that they should not have.

use std::collections::HashMap;
use std::io::{Error, ErrorKind};

use super::plugins::rewrite::Match;
use super::server::Scheme;
use super::*;
use crate::forward::spec::{Policy, Transport};
use crate::zone::config::PodMode;
use crate::zone::names::text;

/// Files that are only text.
#[derive(Default)]
struct Files(HashMap<&'static str, String>);

impl Surroundings for Files {
    fn read(&self, file: &Path) -> std::io::Result<String> {
        let name = file.to_str().unwrap_or_default();
        self.0.get(name).cloned().ok_or(Error::from(ErrorKind::NotFound))
    }

    fn glob(&self, pattern: &Path) -> Vec<PathBuf> {
        let folder = pattern.parent();
        let mut found: Vec<PathBuf> = self
            .0
            .keys()
            .map(PathBuf::from)
            .filter(|f| f.parent() == folder)
            .collect();
        found.sort();
        found
    }

    fn variable(&self, name: &str) -> Option<String> {
        let value = match name {
            "UPSTREAM" => "192.0.2.7",
            "__PILLAR__LOCAL__DNS__" => "169.254.20.10",
            "__PILLAR__DNS__DOMAIN__" => "cluster.local",
            _ => return None,
        };
        Some(value.to_owned())
    }
}

fn read(text: &str) -> (Corefile, Vec<Problem>) {
    Corefile::read(Path::new("Corefile"), &Files([("Corefile", text.to_owned())].into()))
}

fn good(text: &str) -> Corefile {
    let (corefile, problems) = read(text);
    assert_eq!(problems, [], "{text}");
    corefile
}

fn zones(zones: &[Box<[u8]>]) -> Vec<String> {
    zones.iter().map(|zone| text(zone)).collect()
}

/// What kubeadm 1.36 installs.
pub const KUBEADM: &str = include_str!("tests/kubeadm.Corefile");
/// What the manifest of NodeLocal DNSCache holds, its variables put in as its documentation says.
pub const NODE_LOCAL: &str = include_str!("tests/nodelocaldns.Corefile");
/// The same before that.
pub const NODE_LOCAL_TEMPLATE: &str = include_str!("tests/nodelocaldns-template.Corefile");

#[test]
fn the_corefile_of_kubeadm_is_read() {
    let corefile = good(KUBEADM);
    let [server] = &corefile.servers[..] else {
        panic!("{corefile:?}")
    };
    assert_eq!(server.keys[0].port, 53);
    assert_eq!(zones(&server.keys[0].zones), ["."]);
    let kubernetes = server.kubernetes.as_ref().unwrap();
    assert_eq!(
        zones(&kubernetes.zones),
        ["cluster.local.", "in-addr.arpa.", "ip6.arpa."]
    );
    assert_eq!((kubernetes.pods, kubernetes.ttl), (PodMode::Insecure, 30));
    assert_eq!(
        zones(kubernetes.fallthrough.as_ref().unwrap()),
        ["in-addr.arpa.", "ip6.arpa."]
    );
    let [forward] = &server.forwards[..] else { panic!() };
    assert_eq!(forward.files, [PathBuf::from("/etc/resolv.conf")]);
    assert_eq!(forward.options.max_concurrent, Some(1000));
    let cache = &server.cache.as_ref().unwrap().policy;
    assert_eq!((cache.success.most, cache.denial.most), (30, 30));
    assert_eq!(zones(&cache.no_success), ["cluster.local."]);
    assert_eq!(zones(&cache.no_denial), ["cluster.local."]);
    let (health, lameduck) = server.health.unwrap();
    assert_eq!((health.to_string().as_str(), lameduck.as_secs()), ("0.0.0.0:8080", 5));
    assert_eq!(server.ready.unwrap().to_string(), "0.0.0.0:8181");
    assert_eq!(server.prometheus.unwrap().to_string(), "0.0.0.0:9153");
    assert!(server.detect_loops && server.loadbalance);
    assert_eq!(server.reload.unwrap().as_secs(), 30);
}

#[test]
fn the_corefiles_of_nodelocal_dnscache_are_read() {
    let corefile = good(NODE_LOCAL);
    assert_eq!(corefile.servers.len(), 4);
    let cluster = &corefile.servers[0];
    assert_eq!(zones(&cluster.keys[0].zones), ["cluster.local."]);
    assert_eq!(
        cluster.bind.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["169.254.20.10", "10.96.0.10"]
    );
    assert!(cluster.forwards[0].options.force_tcp);
    assert_eq!(cluster.health.unwrap().0.to_string(), "169.254.20.10:8080");
    let template = good(NODE_LOCAL_TEMPLATE);
    assert_eq!(template.servers.len(), 4);
    let cluster = &template.servers[0];
    // The address of the DNS Service is a matter of --local-ip, and the central DNS server is not asked.
    assert_eq!(cluster.bind.len(), 1);
    assert!(cluster.forwards[0].to.is_empty() && cluster.forwards[0].files.is_empty());
    assert_eq!(zones(&cluster.keys[0].zones), ["cluster.local."]);
    assert_eq!(
        template.servers[3].forwards[0].files,
        [PathBuf::from("/etc/resolv.conf")]
    );
}

#[test]
fn snippets_imports_and_variables_are_put_in() {
    let files = Files(
        [
            (
                "/etc/Corefile",
                "(common) {\n errors\n forward . {args[0]} {\n  policy sequential\n }\n}\nimport /etc/custom/*.server\n\
                 .:53 {\n import common {$UPSTREAM}\n import custom/*.override\n}\n"
                    .to_owned(),
            ),
            ("/etc/custom/a.server", "stub.example:5353 {\n import common tls://192.0.2.9%dns.example\n}\n".to_owned()),
        ]
        .into(),
    );
    let (corefile, problems) = Corefile::read(Path::new("/etc/Corefile"), &files);
    // The second pattern finds the same folder here: a server block in a server block.
    assert!(
        problems.iter().all(|p| p.place.file.ends_with("a.server")),
        "{problems:?}"
    );
    assert_eq!(corefile.files.len(), 3);
    let (stub, root) = (&corefile.servers[0], &corefile.servers[1]);
    assert_eq!(stub.keys[0].port, 5353);
    let target = &stub.forwards[0].to[0];
    assert_eq!((target.transport, target.address.port()), (Transport::Tls, 853));
    assert_eq!(target.server_name.as_deref(), Some("dns.example"));
    assert_eq!(root.forwards[0].to[0].to_string(), "192.0.2.7:53");
    assert_eq!(root.forwards[0].options.policy, Policy::Sequential);
}

#[test]
fn every_plugin_is_read() {
    let corefile = good(
        "example.org, 10.0.0.0/24 tls://example.net:8853 {\n bind 127.0.0.1\n tls a.pem b.pem\n\
         kubernetes cluster.local {\n  namespaces a b\n  labels app in (x, y)\n  pods verified\n  noendpoints\n  endpoint_pod_names\n\
           ignore empty_service\n  multicluster clusterset.local\n  ttl 0\n  fallthrough\n  kubeconfig /k\n  endpoint http://x\n }\n\
         hosts /etc/more example.org {\n  192.0.2.1 a.example.org b.example.org\n  ttl 60\n  no_reverse\n  reload 1m\n  fallthrough\n }\n\
         rewrite name a.example.org b.example.org\n rewrite stop name suffix .a.org .b.org answer auto\n\
         rewrite continue name regex (.*)\\.x\\.org {1}.y.org answer name (.*)\\.y\\.org {1}.x.org\n\
         template IN AAAA {\n  rcode NOERROR\n }\n\
         template ANY ANY internal {\n  match ^(?P<a>\\d+)[.]internal[.]$\n  answer \"{{ .Name }} 60 IN A 10.0.0.{{ .Group.a }}\"\n\
           authority \"internal. 60 IN SOA ns.internal. me.internal. 1 60 60 60 60\"\n  rcode NXDOMAIN\n  ederror 15 blocked by us\n }\n\
         log . {\n  class denial error\n }\n nsid one\n bufsize 1400\n autopath @kubernetes\n\
         transfer cluster.local {\n  to 192.0.2.5 10.0.0.0/8 *\n }\n\
         acl {\n  allow net 10.0.0.0/8 192.0.2.1\n  block type ANY net *\n }\n\
         cache 20 example.org {\n  success 100 30 5\n  denial 100 10\n  servfail 1s\n  prefetch 10 1m 20%\n  serve_stale 1h immediate\n  keepttl\n }\n\
         forward . 192.0.2.1 https://192.0.2.2/q {\n  except a.org b.org\n  prefer_udp\n  expire 5s\n  max_fails 3\n  tls_servername x\n\
           health_check 1s no_rec domain example.org\n  failover NXDOMAIN SERVFAIL\n  next NXDOMAIN\n  next_on_nodata\n  policy round_robin\n  failfast_all_unhealthy_upstreams\n }\n\
         ready :1 {\n  monitor continuously\n }\n prometheus\n reload 2s 1s\n}\n",
    );
    let [server] = &corefile.servers[..] else { panic!() };
    assert_eq!(
        server.keys.iter().map(|key| (key.scheme, key.port)).collect::<Vec<_>>(),
        [(Scheme::Dns, 53), (Scheme::Dns, 53), (Scheme::Tls, 8853)]
    );
    assert_eq!(zones(&server.keys[1].zones), ["0.0.10.in-addr.arpa."]);
    let kubernetes = server.kubernetes.as_ref().unwrap();
    assert_eq!(
        (kubernetes.labels.as_deref(), kubernetes.namespaces.len()),
        (Some("app in (x, y)"), 2)
    );
    assert_eq!(kubernetes.fallthrough.as_deref(), Some(&[][..]));
    assert!(
        matches!(server.rewrites[1].from, Match::Suffix(_)) && server.rewrites[1].auto && !server.rewrites[1].go_on
    );
    assert!(server.rewrites[2].go_on && server.rewrites[2].answers.len() == 1);
    assert_eq!((server.templates[0].type_, server.templates[1].rcode), (Some(28), 3));
    assert_eq!(server.acl.len(), 2);
    let cache = server.cache.as_ref().unwrap();
    assert_eq!(
        (
            cache.policy.success.most,
            cache.policy.success.least,
            cache.policy.denial.most
        ),
        (30, 5, 10)
    );
    assert_eq!(cache.policy.prefetch.unwrap().percentage, 20);
    let forward = &server.forwards[0];
    assert_eq!(forward.to[1].to_string(), "https://192.0.2.2:443/q");
    assert_eq!(
        (forward.options.failover.as_slice(), forward.except.len()),
        (&[3, 2][..], 2)
    );
    assert_eq!(server.transfers[0].to.len(), 4);
    assert_eq!(server.nsid.as_deref(), Some(&b"one"[..]));
}

#[test]
fn what_is_not_known_is_said_with_place_and_advice() {
    let check = |text: &str, expect: &str| {
        let (_, problems) = read(text);
        let said: Vec<String> = problems.iter().map(ToString::to_string).collect();
        assert!(said.iter().any(|line| line == expect), "{text}\n{said:#?}\n{expect}");
    };
    check(
        ".:53 {\n  route53 example.org:Z1\n}",
        "Corefile:2: route53: is not supported; serve that zone by a server of its own and forward the zone to it: zone { \
         forward . ADDRESS }",
    );
    check(
        ".:53 {\n  forwrad . 192.0.2.1\n}",
        "Corefile:2: forwrad: is no plugin; look for a misspelling, or remove the line",
    );
    check(
        ".:53 {\n  cache 30 {\n    succes 10\n  }\n}",
        "Corefile:3: cache: has no option \"succes\"; it has success, denial, prefetch, serve_stale, servfail, disable, keepttl; \
         remove the line",
    );
    check(
        ".:53 {\n  forward . dns.example.com\n}",
        "Corefile:2: forward: \"dns.example.com\" is no upstream; write an address such as 192.0.2.1, 192.0.2.1:5353, \
         tls://192.0.2.1 or https://192.0.2.1, or a file",
    );
    check(
        ".:53 {\n  errors\n",
        "Corefile:1: the server block does not end; close it with }",
    );
    check(
        ".:53 {\n  kubernetes cluster.local {\n    zonal\n    noendpoints\n  }\n}",
        "Corefile:2: kubernetes: has both zonal and noendpoints; keep one of them",
    );
    check(
        ".:53 {\n  forward . 192.0.2.1 {\n    next NOERROR\n  }\n}",
        "Corefile:3: forward: next names NOERROR, which is no failure; write next_on_nodata for answers without records",
    );
    check(
        ".:53 {\n errors\n}\n. {\n}\n",
        "Corefile:4: a second server block for . on port 53; make one of the two",
    );
    check(
        ".:99999 {\n}\n",
        "Corefile:1: \".:99999\" has no port; write a port from 1 to 65535",
    );
    check(
        "",
        "Corefile:1: there is no server block; write one such as .:53 { ... }",
    );
    check(
        ".:53 {\n import missing\n}\n",
        "Corefile:2: cannot read missing: entity not found; name a file that can be read",
    );
    check(
        ".:53 {\n rewrite type ANY A\n}\n",
        "Corefile:2: rewrite: \"type\" is not supported; only names are rewritten: rewrite name \
         [exact|prefix|suffix|substring|regex] FROM TO",
    );
}

#[test]
fn a_loop_of_imports_ends() {
    let (_, problems) = read("(a) {\n import b\n}\n(b) {\n import a\n import a\n}\n. {\n import a\n}\n");
    assert!(
        problems.iter().any(|p| p.to_string().contains("import")),
        "{problems:?}"
    );
    let (_, problems) = read("import Corefile\n");
    assert!(!problems.is_empty());
}

proptest::proptest! {
    #[test]
    fn no_text_makes_it_panic(text in "([a-z.:/{}\\[\\]()$%\"#\\\\ \n0-9]|forward |cache |kubernetes |import |template |rewrite name |hosts |acl |\\{\n|\n\\}\n){0,120}") {
        let _ = read(&text);
        let _ = read(&format!(".:53 {{\n{text}\n}}\n"));
    }
}
