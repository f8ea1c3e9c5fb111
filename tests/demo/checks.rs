//! What the demo asks, whom it expects to answer, and how it tells the story.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use crate::app::Answers;
use crate::manifests::{Manifests, NAMESPACE};

/// How long a change may take to be seen everywhere; a healthy cluster needs a small part of it.
const PATIENCE: Duration = Duration::from_secs(30);
/// Requests in a row: with three pods chosen at random, one of them stays silent once in 60,000 runs.
const MANY: u32 = 30;

/// The ready pods of a Service and their addresses.
pub type Pods = BTreeMap<String, IpAddr>;

/// A cluster with the application on it, seen by its users.
pub trait Site {
    /// The ready pods that a Service of the application selects.
    fn pods(&self, service: &str) -> Result<Pods>;
    /// The addresses of a name, as a program at `from` resolves it.
    fn lookup(&self, from: &str, name: &str) -> Result<BTreeSet<IpAddr>>;
    /// Who resolves names there, in words.
    fn resolver(&self, from: &str) -> String;
    /// Requests from a program at `from`.
    fn get(&self, from: &str, url: &str, count: u32) -> Result<Answers>;
    /// The nodes and their addresses.
    fn nodes(&self) -> Vec<(String, IpAddr)>;
    /// Where a program runs that is in no pod.
    fn host(&self) -> String;
    /// Where users outside the cluster are.
    fn outside(&self) -> String;
    /// Makes a pod pass or fail its readiness probe.
    fn set_ready(&self, pod: &str, ready: bool) -> Result<()>;
    /// A daemon that has ended, with the end of its log.
    fn dead(&self) -> Option<String>;
}

/// The lines that the demo prints, with the time since its start, and what went wrong so far.
pub struct Story {
    start: Instant,
    failed: u32,
    passed: u32,
}

// === impl Story ===

impl Story {
    /// Begins now.
    pub fn new() -> Self {
        Story {
            start: Instant::now(),
            failed: 0,
            passed: 0,
        }
    }

    /// Says what happens next.
    pub fn step(&self, text: &str) {
        println!("[{:5.1} s] {text}", self.start.elapsed().as_secs_f64());
    }

    /// Says how a check went.
    fn result(&mut self, what: &str, done: Result<String>) {
        let (word, text) = match done {
            Ok(text) => {
                self.passed += 1;
                ("ok  ", text)
            }
            Err(error) => {
                self.failed += 1;
                ("FAIL", format!("{error:#}"))
            }
        };
        println!(
            "     {word}  {what}\n             {}",
            text.trim_end().replace('\n', "\n             ")
        );
    }

    /// Prints the sum and says whether everything was as expected.
    pub fn end(&self) -> bool {
        self.step(&format!("{} checks as expected, {} not", self.passed, self.failed));
        self.failed == 0
    }
}

/// Waits until the application is reachable for the first time, in every way that is asked later.
pub fn wait_until_up(site: &dyn Site, manifests: &Manifests) -> Result<()> {
    let (client, single) = (first(site, "frontend")?, first(site, "store")?);
    let port = manifests
        .service("frontend")?
        .node_port
        .context("Service frontend names no nodePort")?;
    let mut urls = vec![
        (client.clone(), "http://backend/".to_owned()),
        (
            client,
            format!("http://{single}.store:{}/", manifests.service("store")?.port),
        ),
    ];
    for (_, address) in site.nodes() {
        urls.push((site.outside(), format!("http://{address}:{port}/")));
    }
    for (from, url) in urls {
        until(site, || {
            let answers = site.get(&from, &url, 1)?;
            ensure!(
                answers.failures.is_empty(),
                "{url} from {from}: {}",
                answers.failures.join("; ")
            );
            Ok(())
        })?;
    }
    Ok(())
}

/// Every check, in an order that tells how the parts build on each other.
pub fn run(site: &dyn Site, manifests: &Manifests, story: &mut Story) -> Result<()> {
    let client = first(site, "frontend")?;
    story.step(&format!("names, resolved {}", site.resolver(&client)));
    let address = names(site, story, &client)?;

    story.step(&format!("requests, {MANY} each"));
    let (backend, frontend) = (site.pods("backend")?, site.pods("frontend")?);
    asked(site, story, &client, "http://backend/", "by name", &backend);
    if let Some(address) = address {
        asked(
            site,
            story,
            &site.host(),
            &format!("http://{address}/"),
            "by ClusterIP",
            &backend,
        );
    }
    let port = manifests
        .service("frontend")?
        .node_port
        .context("Service frontend names no nodePort")?;
    for (node, address) in site.nodes() {
        let what = format!("by NodePort of {node}");
        asked(
            site,
            story,
            &site.outside(),
            &format!("http://{address}:{port}/"),
            &what,
            &frontend,
        );
    }
    let mut single = site.pods("store")?;
    single.retain(|name, _| name.ends_with("-0"));
    for name in single.keys() {
        let url = format!("http://{name}.store:{}/", manifests.service("store")?.port);
        asked(site, story, &client, &url, "one pod of the StatefulSet", &single);
    }
    live_change(site, story, &client)
}

/// Resolves the application's names; the result is the backend's cluster IP.
fn names(site: &dyn Site, story: &mut Story, client: &str) -> Result<Option<IpAddr>> {
    let vip = site.lookup(client, "backend").and_then(|all| one(&all));
    let address = vip.as_ref().ok().copied();
    story.result("backend", vip.map(|address| address.to_string()));
    let full = format!("backend.{NAMESPACE}.svc.cluster.local");
    let same = site.lookup(client, &full).and_then(|all| {
        let found = one(&all)?;
        ensure!(Some(found) == address, "{found}, but backend is {address:?}");
        Ok(found.to_string())
    });
    story.result(&full, same);
    let store = site.pods("store")?;
    let mut expected = vec![("store".to_owned(), store.values().copied().collect::<BTreeSet<_>>())];
    expected.extend(
        store
            .iter()
            .map(|(name, address)| (format!("{name}.store"), BTreeSet::from([*address]))),
    );
    for (name, expect) in expected {
        let found = site.lookup(client, &name).and_then(|all| {
            let same_family: BTreeSet<IpAddr> = all.iter().filter(|address| address.is_ipv4()).copied().collect();
            ensure!(same_family == expect, "{} instead of {}", list(&all), list(&expect));
            Ok(list(&all))
        });
        story.result(&format!("{name} (headless: the pods' own addresses)"), found);
    }
    Ok(address)
}

/// A pod that is not ready any more gets no new connection, and gets some again once it is.
fn live_change(site: &dyn Site, story: &mut Story, client: &str) -> Result<()> {
    let all = site.pods("backend")?;
    let Some(pod) = all.keys().next_back().filter(|_| all.len() > 1) else {
        return Ok(());
    };
    for ready in [false, true] {
        story.step(&format!(
            "{pod} {}",
            if ready {
                "passes its readiness probe again"
            } else {
                "fails its readiness probe"
            }
        ));
        site.set_ready(pod, ready)?;
        let start = Instant::now();
        let expect: Pods = all
            .iter()
            .filter(|(name, _)| ready || *name != pod)
            .map(|(k, v)| (k.clone(), *v))
            .collect();
        let seen = until(site, || judge(&site.get(client, "http://backend/", MANY)?, &expect));
        let took = start.elapsed().as_secs_f64();
        let what = format!(
            "{client}: http://backend/ is answered by {}",
            list(&expect.keys().collect())
        );
        story.result(
            &what,
            seen.map(|text| format!("{text} (after {took:.1} s, {MANY} requests included)")),
        );
    }
    Ok(())
}

fn asked(site: &dyn Site, story: &mut Story, from: &str, url: &str, what: &str, expect: &Pods) {
    let done = site.get(from, url, MANY).and_then(|answers| judge(&answers, expect));
    story.result(&format!("{from}: {url} ({what})"), done);
}

/// All answered, and just those that should.
fn judge(answers: &Answers, expect: &Pods) -> Result<String> {
    let counts: Vec<String> = answers
        .names
        .iter()
        .map(|(name, count)| format!("{name} {count}x"))
        .collect();
    let counts = counts.join(", ");
    if let Some(failure) = answers.failures.first() {
        anyhow::bail!(
            "{} of {MANY} requests failed: {failure}; answered: {counts}",
            answers.failures.len()
        );
    }
    ensure!(
        answers.names.keys().eq(expect.keys()),
        "answered by {counts}, not by {}",
        list(&expect.keys().collect())
    );
    Ok(format!("{counts}; they saw {}", list(&answers.clients)))
}

/// The first pod of a Service.
fn first(site: &dyn Site, service: &str) -> Result<String> {
    site.pods(service)?
        .into_keys()
        .next()
        .with_context(|| format!("no pod of Service {service} is ready"))
}

/// The one IPv4 address of a name.
fn one(all: &BTreeSet<IpAddr>) -> Result<IpAddr> {
    let mut v4 = all.iter().filter(|address| address.is_ipv4());
    match (v4.next(), v4.next()) {
        (Some(address), None) => Ok(*address),
        _ => anyhow::bail!("not one IPv4 address but {}", list(all)),
    }
}

fn list(all: &BTreeSet<impl ToString>) -> String {
    all.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// Tries until it works; the last failure when it does not in time, or at once when a daemon has ended.
fn until<T>(site: &dyn Site, mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
    let start = Instant::now();
    loop {
        let error = match attempt() {
            Ok(done) => return Ok(done),
            Err(error) => error,
        };
        if let Some(dead) = site.dead() {
            return Err(error.context(dead));
        }
        if start.elapsed() > PATIENCE {
            return Err(error.context(format!("not within {} s", PATIENCE.as_secs())));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_right_answers_pass() {
        let pods = |names: &[&str]| {
            names
                .iter()
                .map(|name| (name.to_string(), IpAddr::from([10, 0, 0, 1])))
                .collect::<Pods>()
        };
        let check = |names: &[&str], failures: &[&str], expect: &[&str], good: bool| {
            let answers = Answers {
                names: names.iter().map(|name| (name.to_string(), 1)).collect(),
                clients: BTreeSet::new(),
                failures: failures.iter().map(ToString::to_string).collect(),
            };
            assert_eq!(judge(&answers, &pods(expect)).is_ok(), good, "{answers:?}");
        };
        check(&["a", "b"], &[], &["a", "b"], true);
        check(&["a"], &[], &["a", "b"], false);
        check(&["a", "c"], &[], &["a"], false);
        check(&["a"], &["refused"], &["a"], false);
    }

    #[test]
    fn a_cluster_ip_is_one_address() {
        let check = |all: &[&str], good: bool| {
            let all: BTreeSet<IpAddr> = all.iter().map(|text| text.parse().expect("is an address")).collect();
            assert_eq!(one(&all).is_ok(), good, "{all:?}");
        };
        check(&["10.96.0.1"], true);
        check(&["10.96.0.1", "fd00:96::1"], true);
        check(&["10.96.0.1", "10.96.0.2"], false);
        check(&[], false);
    }
}
