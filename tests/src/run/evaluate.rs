//! Checks: asks with the probe, compares what was seen with what was expected, and tries again until it holds.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};
use serde::de::DeserializeOwned;

use super::opened::{Kind, Opened};
use super::{Session, until};
use crate::addresses::{self, DNS_SERVICE};
use crate::probe::hold::Exchange;
use crate::probe::{self, Failure, FailureKind, Hello, Report, dns, http};
use crate::scenario::check::{Answers, Check, Connect, DnsExpect, Expect, Failing, SocketKind, Spread, Target};

/// How long an attempt may take that is expected to be answered or refused. A TCP client over IPv6 hears of an ICMP reject
/// only when it repeats its SYN after a second.
const ANSWER_MS: &str = "3000";
/// How long an attempt may take that is expected to hear nothing: longer than the repeated SYN of the line above.
const SILENCE_MS: &str = "1500";

impl Session {
    /// Runs checks, many at the same time, each until it holds.
    pub(super) fn check_all(&self, checks: &[Check], opened: &mut BTreeMap<String, Opened>) -> Result<()> {
        let (asking, looking): (Vec<_>, Vec<_>) = checks.iter().partition(|check| check.target.is_some());
        for check in looking {
            let opened = opened
                .get_mut(&check.from)
                .with_context(|| format!("{check}: nothing of that name is open"))?;
            self.look(check, opened).with_context(|| check.to_string())?;
        }
        // What must fail is asked only once what must work does: before that it might fail for want of any rule.
        let (failing, working): (Vec<_>, Vec<_>) = asking
            .into_iter()
            .partition(|check| matches!(check.expect, Expect::Fails(_) | Expect::FailsAlways(..)));
        self.check_together(&working)?;
        self.check_together(&failing)
    }

    fn check_together(&self, checks: &[&Check]) -> Result<()> {
        std::thread::scope(|scope| {
            let threads: Vec<_> = checks
                .iter()
                .map(|check| scope.spawn(move || until(|| self.check(check)).with_context(|| check.to_string())))
                .collect();
            let results = threads
                .into_iter()
                .map(|thread| thread.join().unwrap_or_else(|_| bail!("a check panicked")));
            // All of them are waited for; the first failure is the one that is told.
            results.collect::<Vec<_>>().into_iter().collect()
        })
    }

    /// A probe command (`connect`, `hold`) for the target of `check`, run where it comes from.
    pub(super) fn connect_command(&self, check: &Check, kind: Kind) -> Result<Command> {
        let Some(Target::Connect(connect)) = &check.target else {
            bail!("{check}: not a connection")
        };
        let mut command = self.probe(&check.from)?;
        command.args(kind.args());
        self.connect_args(&mut command, connect)?;
        Ok(command)
    }

    fn check(&self, check: &Check) -> Result<()> {
        match (&check.target, &check.expect) {
            (Some(Target::Connect(connect)), expect) => self.check_connect(&check.from, connect, expect),
            (Some(Target::Ping(host)), expect) => {
                let mut command = self.probe(&check.from)?;
                command.args(["ping", &self.address(host)?.to_string()]);
                match (expect, ask::<Report>(command)?) {
                    (Expect::Reply, report) => match report.failures.first() {
                        Some(failure) => bail!("no reply: {}", failure.message),
                        None => Ok(()),
                    },
                    (Expect::Fails(failing), report) => check_failure(*failing, &report),
                    _ => bail!("a ping is expected to get its `reply`, or to fail"),
                }
            }
            (Some(Target::Http(url)), expect) => self.check_page(&check.from, url, expect),
            (
                Some(Target::Dns {
                    kind,
                    name,
                    server,
                    tcp,
                }),
                Expect::Dns(expect),
            ) => {
                let server = server.as_ref().map(|server| self.address(server)).transpose()?;
                let server = SocketAddr::new(server.unwrap_or(IpAddr::V4(DNS_SERVICE.v4)), 53);
                let mut command = self.probe(&check.from)?;
                command
                    .args(["dns", &server.to_string(), name, kind])
                    .args(tcp.then_some("--tcp"));
                check_dns(&ask(command)?, kind, expect)
            }
            _ => bail!("this cannot be expected of this target"),
        }
    }

    fn check_connect(&self, from: &str, connect: &Connect, expect: &Expect) -> Result<()> {
        let (count, timeout) = match expect {
            Expect::Answers(answers) => (attempts(answers), ANSWER_MS),
            Expect::FailsAlways(_, count) => (*count as usize, ANSWER_MS),
            Expect::Fails(Failing::Timeout) => (1, SILENCE_MS),
            _ => (1, ANSWER_MS),
        };
        // A fixed source port is one flow: it is tried once.
        let count = if connect.source_port.is_some() { 1 } else { count };
        let mut command = self.probe(from)?;
        command.args(["connect", "--count", &count.to_string(), "--timeout-ms", timeout]);
        if let Expect::FailsAlways(..) = expect {
            command.arg("--keep-going");
        }
        self.connect_args(&mut command, connect)?;
        let report: Report = ask(command)?;
        match expect {
            Expect::FailsAlways(failing, _) => {
                ensure!(report.answers.is_empty(), "it was answered: {:?}", report.answers);
                let mut each = report.failures.iter().enumerate();
                each.try_for_each(|(n, failure)| {
                    check_one(*failing, failure).with_context(|| format!("attempt {}", n + 1))
                })
            }
            Expect::Answers(answers) => self.check_answers(answers, &report),
            Expect::Fails(failing) => check_failure(*failing, &report),
            _ => bail!("this cannot be expected of a connection"),
        }
    }

    fn check_page(&self, from: &str, url: &str, expect: &Expect) -> Result<()> {
        let mut command = self.probe(from)?;
        command.args(["http", &self.resolve_url(url)?]);
        let output = command.stdin(Stdio::null()).output()?;
        match expect {
            Expect::Page { status, body } => {
                ensure!(
                    output.status.success(),
                    "{}",
                    String::from_utf8_lossy(&output.stderr).trim()
                );
                let page: http::Response = serde_json::from_slice(&output.stdout)?;
                ensure!(page.status == *status, "status {}: {}", page.status, page.body);
                ensure!(
                    body.as_ref().is_none_or(|body| page.body.contains(body)),
                    "the body is {:?}",
                    page.body
                );
                Ok(())
            }
            Expect::Fails(_) => {
                ensure!(
                    !output.status.success(),
                    "it answered: {}",
                    String::from_utf8_lossy(&output.stdout).trim()
                );
                Ok(())
            }
            _ => bail!("a page is expected as a status, or to fail"),
        }
    }

    fn check_answers(&self, expect: &Answers, report: &Report) -> Result<()> {
        if let Some(failure) = report.failures.first() {
            bail!(
                "attempt {} failed: {:?} ({})",
                report.attempts,
                failure.kind,
                failure.message
            );
        }
        let seen: BTreeSet<&str> = report.answers.keys().map(String::as_str).collect();
        // Servers whose names a controller chose are only counted.
        let named = !expect.names.is_empty();
        let wanted: BTreeSet<&str> = expect.names.iter().map(String::as_str).collect();
        ensure!(
            !named || seen.is_subset(&wanted),
            "others answered too: {:?}",
            report.answers
        );
        let all = seen.len() == expect.count;
        match expect.spread {
            Spread::All => ensure!(all || report.attempts == 1, "not these answered: {:?}", report.answers),
            Spread::One => ensure!(seen.len() == 1, "more than one answered: {:?}", report.answers),
            Spread::Any => {}
            Spread::Even => {
                let fair = f64::from(report.attempts) / expect.count as f64;
                let even = |count: &u32| (0.5 * fair..1.5 * fair).contains(&f64::from(*count));
                ensure!(
                    all && report.answers.values().all(even),
                    "not even: {:?}",
                    report.answers
                );
            }
        }
        let Some(source) = &expect.source else { return Ok(()) };
        let allowed = self.addresses_of(source)?;
        let wrong = report.sources.keys().find(|seen| !allowed.contains(seen));
        wrong.map_or(Ok(()), |seen| {
            bail!("the source address seen was {seen}, not one of {source}: {allowed:?}")
        })
    }

    /// Every address that stands for `source`: a pod's, all of a machine's (a node's gateway address included), a literal.
    fn addresses_of(&self, source: &str) -> Result<Vec<IpAddr>> {
        if let Ok(address) = source.parse() {
            return Ok(vec![address]);
        }
        let Some(host) = self.cluster.lab().host(source) else {
            return Ok(self.pod(source)?.address.both().to_vec());
        };
        let gateway = host.place.cgroup.is_some().then(|| addresses::pod(host.index, 1));
        let pairs = [Some(host.address), host.second, gateway];
        Ok(pairs.into_iter().flatten().flat_map(addresses::Pair::both).collect())
    }

    /// Looks at something that was opened before; there is one look only, for it must hold all the time.
    fn look(&self, check: &Check, opened: &mut Opened) -> Result<()> {
        match (opened.kind(), &check.expect) {
            (Kind::Traffic, Expect::Answers(answers)) => {
                let report = opened.finish()?;
                ensure!(report.attempts > 20, "there were only {} attempts", report.attempts);
                self.check_answers(answers, &report)
            }
            (Kind::Connection, Expect::Answers(answers)) => match opened.exchange()? {
                Exchange::Answer(hello) => self.check_answers(answers, &one_answer(&hello)),
                Exchange::Failure(failure) => bail!("{:?}: {}", failure.kind, failure.message),
            },
            (Kind::Connection, Expect::Fails(failing)) => match opened.exchange()? {
                Exchange::Answer(hello) => bail!("{} still answers", hello.name),
                Exchange::Failure(failure) => check_failure(
                    *failing,
                    &Report {
                        failures: vec![failure],
                        ..one()
                    },
                ),
            },
            _ => bail!("this cannot be expected of something opened"),
        }
    }

    fn probe(&self, from: &str) -> Result<Command> {
        Ok(self.cluster.lab().place(from)?.command(probe::binary()?))
    }

    fn connect_args(&self, command: &mut Command, connect: &Connect) -> Result<()> {
        let target = if connect.is_name() || connect.host == "localhost" {
            format!("{}:{}", connect.host, connect.port)
        } else {
            SocketAddr::new(self.address(&connect.host)?, connect.port).to_string()
        };
        command.arg(target).args(connect.udp.then_some("--udp"));
        if let Some(port) = connect.source_port {
            command.args(["--source-port", &port.to_string()]);
        }
        if connect.size > 0 {
            command.args(["--size", &connect.size.to_string()]);
        }
        if let Some(source) = &connect.source {
            command.args(["--source", &self.address(source)?.to_string()]);
        }
        command.args(match connect.socket {
            Some(SocketKind::Unconnected) => Some("--unconnected"),
            Some(SocketKind::Mapped) => Some("--mapped"),
            None => None,
        });
        Ok(())
    }

    /// A URL whose host may be a machine or pod of the lab.
    fn resolve_url(&self, url: &str) -> Result<String> {
        let rest = url.trim_start_matches("http://");
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (host, port) = authority.rsplit_once(':').context("the URL has no port")?;
        let machine = self.cluster.lab().host(host).is_some() || host.starts_with("pod/");
        let host = if machine {
            self.address(host)?.to_string()
        } else {
            host.to_owned()
        };
        Ok(format!("http://{host}:{port}/{path}"))
    }
}

/// How many attempts show what is expected beyond reasonable doubt: with N servers and 20 N attempts one of them is missed
/// by chance once in ten million runs.
fn attempts(expect: &Answers) -> usize {
    let servers = expect.count;
    match expect.spread {
        Spread::All if servers == 1 => 12,
        Spread::All => 20 * servers,
        Spread::Even => 60 * servers,
        Spread::Any | Spread::One => 20,
    }
}

fn check_failure(failing: Failing, report: &Report) -> Result<()> {
    let Some(failure) = report.failures.first() else {
        bail!("it was answered: {:?}", report.answers)
    };
    check_one(failing, failure)
}

fn check_one(failing: Failing, failure: &Failure) -> Result<()> {
    let right = match failing {
        Failing::Refused => failure.kind == FailureKind::Refused,
        Failing::Timeout => matches!(failure.kind, FailureKind::Timeout | FailureKind::Denied),
        Failing::Reset => failure.kind == FailureKind::Reset,
        Failing::Unreachable => failure.kind == FailureKind::Unreachable,
        Failing::AnyWay => true,
    };
    ensure!(
        right,
        "it failed otherwise: {:?} after {} ms ({})",
        failure.kind,
        failure.millis,
        failure.message
    );
    Ok(())
}

fn check_dns(response: &dns::Response, kind: &str, expect: &DnsExpect) -> Result<()> {
    let seen = || format!("{} {:?} {:?}", response.rcode, response.flags, response.answers);
    ensure!(response.rcode == expect.rcode, "{}", seen());
    let text = |a: &dns::Answer| {
        if a.kind == kind {
            a.data.clone()
        } else {
            format!("{} {}", a.kind, a.data)
        }
    };
    let mut records: Vec<String> = response.answers.iter().map(text).collect();
    records.sort();
    match expect.count {
        Some(count) => ensure!(records.len() == count, "{}", seen()),
        // A response that was cut holds whatever fitted.
        None if expect.flags.iter().any(|flag| flag == "tc") => {}
        None => ensure!(records == expect.records, "{}", seen()),
    }
    ensure!(
        expect
            .ttl
            .is_none_or(|ttl| response.answers.iter().all(|answer| answer.ttl == ttl)),
        "{}",
        seen()
    );
    ensure!(
        expect.flags.iter().all(|flag| response.flags.contains(flag)),
        "{}",
        seen()
    );
    let soa = response.authorities.iter().any(|record| record.kind == "SOA");
    ensure!(!expect.soa || soa, "no SOA in {:?}", response.authorities);
    Ok(())
}

fn one() -> Report {
    Report {
        attempts: 1,
        ..Report::default()
    }
}

fn one_answer(hello: &Hello) -> Report {
    Report {
        answers: BTreeMap::from([(hello.name.clone(), 1)]),
        sources: BTreeMap::from([(hello.client_address, 1)]),
        ..one()
    }
}

/// Runs a probe command to its end and reads the JSON that it prints.
fn ask<T: DeserializeOwned>(mut command: Command) -> Result<T> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .context("the probe cannot be started")?;
    ensure!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    serde_json::from_slice(&output.stdout).context("the probe's answer cannot be read")
}
