//! Rules on questions, without a network.

use super::*;
use crate::corefile::{Corefile, Surroundings};
use crate::zone::{Zone, ZoneConfig};
use hickory_proto::rr::RecordType;
use std::path::{Path, PathBuf};

struct Text(String);

impl Surroundings for Text {
    fn read(&self, _: &Path) -> std::io::Result<String> {
        Ok(self.0.clone())
    }
    fn glob(&self, _: &Path) -> Vec<PathBuf> {
        Vec::new()
    }
    fn variable(&self, _: &str) -> Option<String> {
        None
    }
}

/// The rules of a server block for `.`.
fn rules(body: &str) -> Rules {
    let (corefile, problems) = Corefile::read(Path::new("Corefile"), &Text(format!(".:53 {{\n{body}\n}}\n")));
    assert_eq!(problems, []);
    let server = corefile.servers.into_iter().next().unwrap();
    let block = Block {
        zone: Box::new([0]),
        rewrites: server.rewrites,
        templates: server.templates,
        hosts: server
            .hosts
            .into_iter()
            .map(|spec| Arc::new(Hosts::new(spec)))
            .collect(),
        log: server.log,
    };
    Rules::new(vec![block]).unwrap()
}

/// What `NAME TYPE` from 192.0.2.1 comes to: the answer's records, an rcode, or the name to forward.
fn check(rules: &Rules, asked: &str, expect: &str) {
    let (name, type_) = asked.split_once(' ').unwrap();
    let type_: RecordType = type_.parse().unwrap();
    let question = Question {
        id: 1,
        recursion_desired: true,
        name: Name::from_text(name).unwrap(),
        qtype: type_.into(),
        ..Question::default()
    };
    let mut zone = Zone::new(ZoneConfig::new(&["cluster.local".to_owned()]).unwrap(), 1);
    zone.set_synced();
    let snapshot = zone.reader().load_full();
    let mut out = [0; 1232];
    let client = Client::new(Transport::Udp, [192, 0, 2, 1]);
    let mut space = Question::default();
    let query = slow::query(&question).unwrap();
    let said = match ruled(Some(rules), &mut space, &query, &snapshot, &client, &mut out) {
        Verdict::Drop | Verdict::Transfer(_) => "nothing".to_owned(),
        Verdict::Forward(forward) => format!("forward {}", crate::zone::names::text(forward.target())),
        Verdict::Answer(answered) => {
            let message = Message::from_vec(&out[..answered.length]).unwrap();
            assert_eq!(
                message.queries[0].name().to_ascii(),
                format!("{name}."),
                "the question comes back"
            );
            let records: Vec<String> = message
                .answers
                .iter()
                .map(|r| format!("{} {} {}", r.name, r.ttl, r.data))
                .collect();
            format!("{:?} {}", message.metadata.response_code, records.join(", "))
        }
    };
    assert_eq!(said.trim_end(), expect, "{asked}");
}

#[test]
fn hosts_are_answered() {
    let rules =
        rules(" hosts {\n  192.0.2.7 one.example Two.example\n  2001:db8::7 one.example\n  ttl 60\n  fallthrough\n }");
    check(&rules, "ONE.example A", "NoError ONE.example. 60 192.0.2.7");
    check(&rules, "one.example AAAA", "NoError one.example. 60 2001:db8::7");
    check(&rules, "one.example MX", "NoError");
    check(
        &rules,
        "7.2.0.192.in-addr.arpa PTR",
        "NoError 7.2.0.192.in-addr.arpa. 60 one.example., 7.2.0.192.in-addr.arpa. 60 Two.example.",
    );
    check(&rules, "three.example A", "forward three.example.");
    let closed = self::rules(" hosts /dev/null example {\n 192.0.2.7 one.example\n }");
    check(&closed, "three.example A", "NXDomain");
    check(&closed, "three.org A", "forward three.org.");
}

#[test]
fn templates_are_filled() {
    let rules = rules(
        " template IN AAAA {\n }\n template IN A internal {\n  match ^ip-(?P<a>\\d+)[.]internal[.]$\n\
           answer \"{{ .Name }} 60 IN A 10.0.0.{{ .Group.a }}\"\n }\n template ANY ANY blocked {\n  rcode NXDOMAIN\n }",
    );
    check(&rules, "www.example.com AAAA", "NoError");
    check(&rules, "Ip-12.internal A", "NoError Ip-12.internal. 60 10.0.0.12");
    check(&rules, "ip-999.internal A", "ServFail");
    check(&rules, "other.internal A", "forward other.internal.");
    check(&rules, "x.blocked MX", "NXDomain");
}

#[test]
fn names_are_rewritten_and_put_back() {
    let rules = rules(
        " rewrite name old.example new.example\n rewrite name suffix .a.example .cluster.local\n\
          rewrite name regex ^(.*)-x\\.b\\.example\\.$ {1}.b.example.\n hosts {\n 192.0.2.7 new.example\n fallthrough\n }",
    );
    check(&rules, "OLD.example A", "NoError OLD.example. 3600 192.0.2.7");
    check(
        &rules,
        "dns-version.a.example TXT",
        "NoError dns-version.a.example. 28800 1.1.0",
    );
    check(&rules, "one-x.b.example A", "forward one.b.example.");
    check(&rules, "new.example A", "NoError new.example. 3600 192.0.2.7");
}

#[test]
fn what_is_logged_is_what_was_asked_for() {
    let rules = rules(" log example.org {\n  class denial error\n }");
    let name = |text: &str| Name::from_text(text).unwrap();
    assert!(rules.logs(&name("www.example.org"), 3, 0) && rules.logs(&name("www.example.org"), 0, 0));
    assert!(rules.logs(&name("www.example.org"), 2, 0));
    assert!(!rules.logs(&name("www.example.org"), 0, 1));
    assert!(!rules.logs(&name("www.example.com"), 3, 0));
}
