//! What the demo asks, whom it expects to answer, and how it tells the story.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use crate::app::Answers;
use crate::manifests::{Manifests, NAMESPACE};

/// How long a change may take to be seen everywhere; a healthy cluster needs a small part of it.
const PATIENCE: Duration = Duration::from_secs(20);
/// Requests in a row: with three pods chosen at random, one of them stays silent once in 60,000 runs.
const MANY: u32 = 30;

/// A cluster with the application on it, seen by its users.
pub trait Site {
    /// The addresses of a name, as a program at `from` resolves it.
    fn lookup(&self, from: &str, name: &str) -> Result<BTreeSet<IpAddr>>;
    /// Requests from a program at `from`.
    fn get(&self, from: &str, url: &str, count: u32) -> Result<Answers>;
    /// Addresses at which node ports are reached, and from where.
    fn node_addresses(&self) -> Vec<(String, IpAddr)>;
    /// Where a program that is neither a pod nor outside runs.
    fn host(&self) -> String;
    /// Where users outside the cluster are.
    fn outside(&self) -> String;
    /// Says that a pod is ready or not, in the way of this cluster, and says how that was done.
    fn set_ready(&self, pod: &str, ready: bool) -> Result<String>;
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
    pub fn new() -> Self {
        Story { start: Instant::now(), failed: 0, passed: 0 }
    }

    /// Says what happens next.
    pub fn step(&self, text: &str) {
        println!("[{:5.1} s] {text}", self.start.elapsed().as_secs_f64());
    }

    /// Says how a check went.
    fn result(&mut self, what: &str, done: Result<String>) {
        match done {
            Ok(text) => {
                self.passed += 1;
                println!("     ok    {what}\n             {}", indent(&text));
            }
            Err(error) => {
                self.failed += 1;
                println!("     FAIL  {what}\n             {}", indent(&format!("{error:#}")));
            }
        }
    }

    /// Prints the sum and says whether everything was as expected.
    pub fn end(&self) -> bool {
        self.step(&format!("{} checks as expected, {} not", self.passed, self.failed));
        self.failed == 0
    }
}

fn indent(text: &str) -> String {
    text.trim_end().replace('\n', "\n             ")
}

/// Waits until the application is reachable for the first time.
pub fn wait_until_up(site: &dyn Site, manifests: &Manifests) -> Result<()> {
    let port = manifests.node_port("frontend")?;
    let mut urls = Vec::new();
    for (_, address) in site.node_addresses() {
        urls.push((site.outside(), format!("http://{address}:{port}/")));
    }
    for pod in manifests.pods_of("frontend")? {
        urls.push((pod.clone(), "http://backend/".to_owned()));
        urls.push((pod, "http://store-0.store:7000/".to_owned()));
    }
    for (from, url) in urls {
        until(site, || {
            let answers = site.get(&from, &url, 1)?;
            ensure!(answers.failures.is_empty(), "{url} from {from}: {}", answers.failures.join("; "));
            Ok(())
        })?;
    }
    Ok(())
}

/// Every check, in an order that tells how the parts build on each other.
pub fn run(site: &dyn Site, manifests: &Manifests, story: &mut Story) -> Result<()> {
    let pods = |service: &str| manifests.pods_of(service);
    let client = pods("frontend")?.into_iter().next().context("no pod of the frontend is ready")?;
    let single = pods("store")?.into_iter().next().context("no pod of the store is ready")?;

    story.step("names, resolved in a pod by the system's own resolver");
    let vip = site.lookup(&client, "backend");
    let address = vip.as_ref().ok().and_then(|all| all.first().copied());
    story.result(&format!("{client}: backend"), vip.and_then(|all| one(&all)));
    let full = format!("backend.{NAMESPACE}.svc.cluster.local");
    let same = site.lookup(&client, &full).and_then(|all| {
        ensure!(all.first().copied() == address, "{all:?}, but backend has {address:?}");
        one(&all)
    });
    story.result(&format!("{client}: {full}"), same);
    let own = |names: &BTreeSet<String>| -> Result<BTreeSet<IpAddr>> {
        names.iter().map(|name| manifests.pod(name).map(|pod| IpAddr::V4(pod.address))).collect()
    };
    for (name, expect) in [("store".to_owned(), pods("store")?), (format!("{single}.store"), BTreeSet::from([single.clone()]))] {
        let found = site.lookup(&client, &name).and_then(|all| {
            let expect = own(&expect)?;
            ensure!(all == expect, "{all:?} instead of {expect:?}");
            Ok(list(&all))
        });
        story.result(&format!("{client}: {name} (headless: the pods' own addresses)"), found);
    }

    story.step("requests");
    answered(site, story, &client, "http://backend/", "by name", &pods("backend")?);
    if let Some(address) = address {
        answered(site, story, &site.host(), &format!("http://{address}/"), "by ClusterIP", &pods("backend")?);
    }
    let port = manifests.node_port("frontend")?;
    for (node, address) in site.node_addresses() {
        let what = format!("by NodePort of {node}");
        answered(site, story, &site.outside(), &format!("http://{address}:{port}/"), &what, &pods("frontend")?);
    }
    let url = format!("http://{single}.store:7000/");
    answered(site, story, &client, &url, "one pod of a StatefulSet", &BTreeSet::from([single]));
    live_change(site, manifests, story, &client)
}

/// A pod that is not ready any more gets no new connection, and gets some again when it is ready.
fn live_change(site: &dyn Site, manifests: &Manifests, story: &mut Story, client: &str) -> Result<()> {
    let all = manifests.pods_of("backend")?;
    let Some(pod) = all.last().filter(|_| all.len() > 1) else { return Ok(()) };
    let rest: BTreeSet<String> = all.iter().filter(|name| *name != pod).cloned().collect();
    for (ready, expect) in [(false, &rest), (true, &all)] {
        let how = site.set_ready(pod, ready)?;
        story.step(&format!("{pod} is {}: {how}", if ready { "ready again" } else { "not ready" }));
        let start = Instant::now();
        let seen = until(site, || {
            let answers = site.get(client, "http://backend/", MANY)?;
            judge(&answers, expect)
        });
        let what = format!("{client}: http://backend/ is answered by {}", list(expect));
        story.result(&what, seen.map(|text| format!("{text} (seen {:.1} s after the change)", start.elapsed().as_secs_f64())));
    }
    Ok(())
}

fn answered(site: &dyn Site, story: &mut Story, from: &str, url: &str, what: &str, expect: &BTreeSet<String>) {
    let done = site.get(from, url, MANY).and_then(|answers| judge(&answers, expect));
    story.result(&format!("{from}: {url} ({what})"), done);
}

/// All answered, and just those that should.
fn judge(answers: &Answers, expect: &BTreeSet<String>) -> Result<String> {
    let counts: Vec<String> = answers.names.iter().map(|(name, count)| format!("{name} {count} times")).collect();
    if let Some(failure) = answers.failures.first() {
        anyhow::bail!("{} of {MANY} requests failed: {failure}; answers: {}", answers.failures.len(), counts.join(", "));
    }
    let names: BTreeSet<String> = answers.names.keys().cloned().collect();
    ensure!(names == *expect, "answered by {} instead of {}", list(&names), list(expect));
    ensure!(!answers.last.contains("-> failed"), "{}", answers.last);
    let inner: Vec<&str> = answers.last.lines().skip(1).collect();
    let told = if inner.is_empty() { String::new() } else { format!("\n{}", inner.join("\n")) };
    Ok(format!("{}; client seen as {}{told}", counts.join(", "), list(&answers.clients)))
}

fn one(all: &BTreeSet<IpAddr>) -> Result<String> {
    ensure!(all.len() == 1, "{} addresses instead of one: {}", all.len(), list(all));
    Ok(list(all))
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
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_right_answers_pass() {
        let set = |names: &[&str]| names.iter().map(ToString::to_string).collect::<BTreeSet<_>>();
        let answers = |names: &[&str], failures: &[&str], last: &str| Answers {
            names: names.iter().map(|name| (name.to_string(), 1)).collect(),
            clients: BTreeSet::new(),
            failures: failures.iter().map(ToString::to_string).collect(),
            last: last.to_owned(),
        };
        let check = |given: Answers, expect: &[&str], good: bool| {
            assert_eq!(judge(&given, &set(expect)).is_ok(), good, "{given:?}");
        };
        check(answers(&["a", "b"], &[], ""), &["a", "b"], true);
        check(answers(&["a"], &[], ""), &["a", "b"], false);
        check(answers(&["a", "c"], &[], ""), &["a"], false);
        check(answers(&["a"], &["refused"], ""), &["a"], false);
        check(answers(&["a"], &[], "a saw x\n  http://backend/ -> failed: refused\n"), &["a"], false);
    }
}
