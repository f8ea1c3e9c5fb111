//! Following a folder while it changes.

use std::time::Duration;

use portolan_model::{Delta, World};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{Options, PATIENCE, Wants, describe_world, write_files};
use crate::source::manifests::start;
use crate::source::{Batch, Feed};

/// A source under test and the World that follows it.
pub(super) struct Follower {
    feed: Feed,
    world: World,
    problems: Vec<String>,
    synced: bool,
    _shutdown: DropGuard,
}

impl Follower {
    pub(super) async fn start(options: Options, wants: Wants) -> Self {
        let shutdown = CancellationToken::new();
        let feed = start(options, wants, shutdown.clone()).unwrap();
        let mut follower = Self {
            feed,
            world: World::default(),
            problems: Vec::new(),
            synced: false,
            _shutdown: shutdown.drop_guard(),
        };
        while !follower.synced {
            follower.step().await;
        }
        follower
    }

    fn take(&mut self, batch: Batch) {
        let mut delta = Delta::default();
        for event in batch.events {
            self.world.apply(event, &mut delta);
        }
        self.problems.extend(batch.problems.iter().map(ToString::to_string));
        assert!(batch.synced || !self.synced);
        self.synced = batch.synced;
    }

    async fn step(&mut self) {
        let batch = tokio::time::timeout(PATIENCE, self.feed.next()).await;
        let batch = batch.unwrap_or_else(|_| panic!("nothing came; known is\n{}\n{:?}", self.text(), self.problems));
        self.take(batch.expect("the source goes on"));
    }

    fn text(&self) -> String {
        describe_world(&self.world).join("\n")
    }

    /// Waits until the World is described by these lines.
    pub(super) async fn shows_all(&mut self, lines: &[String]) {
        while describe_world(&self.world) != lines {
            self.step().await;
        }
    }

    /// Waits until the World is described by this text.
    pub(super) async fn shows(&mut self, text: &str) {
        while self.text() != text {
            self.step().await;
        }
    }

    /// Waits until a Service is known.
    pub(super) async fn knows(&mut self, service: &str) {
        while !self.text().contains(service) {
            self.step().await;
        }
    }

    /// Waits for a problem that starts like this.
    pub(super) async fn problem(&mut self, start: &str) -> String {
        loop {
            if let Some(found) = self.problems.iter().position(|problem| problem.starts_with(start)) {
                return self.problems.remove(found);
            }
            self.step().await;
        }
    }

    /// What is known once nothing more arrives for longer than the folder is polled.
    pub(super) async fn settled(&mut self) -> Vec<String> {
        while let Ok(batch) = tokio::time::timeout(Duration::from_millis(1500), self.feed.next()).await {
            self.take(batch.expect("the source goes on"));
        }
        describe_world(&self.world)
    }
}

fn service(name: &str, ip: &str) -> String {
    format!(
        "{{apiVersion: v1, kind: Service, metadata: {{name: {name}}}, spec: {{clusterIP: {ip}, selector: {{app: web}}, ports: [{{port: 80}}]}}}}\n---\n"
    )
}

fn pod(name: &str, ip: &str) -> String {
    format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, labels: {{app: web}}}}, spec: {{nodeName: n1, containers: []}}, status: {{podIP: {ip}}}}}\n---\n"
    )
}

const A: &str = "default/a ClusterIP 10.96.0.1 :80/TCP";

#[tokio::test]
async fn files_come_change_break_mend_and_go() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| write_files(dir.path(), &[(name, text)]);
    let mut follower = Follower::start(Options::new(dir.path()), Wants::forwarding()).await;
    write("a.yaml", &service("a", "10.96.0.1"));
    follower.shows(A).await;
    write("pods.yaml", &(pod("p1", "10.244.1.1") + &pod("p2", "10.244.1.2")));
    let both = format!("{A}\n  10.244.1.1 :TCP=80 node=n1 pod=p1\n  10.244.1.2 :TCP=80 node=n1 pod=p2");
    follower.shows(&both).await;

    // Broken: what was read stays, and is said to be stale.
    write("pods.yaml", &(pod("p1", "10.244.1.1") + "{ oops"));
    let problem = follower.problem("pods.yaml: document 2: line ").await;
    assert!(problem.ends_with("; the last good version stays in force"), "{problem}");
    assert_eq!(follower.settled().await.join("\n"), both);

    // One bad object: the others of its file follow, it stays.
    write(
        "pods.yaml",
        &(pod("p1", "10.244.1.1").replace("10.244.1.1", "10.244.1.111") + &pod("p2", "ten")),
    );
    let problem = follower
        .problem("pods.yaml: document 2: Pod default/p2: status.podIPs[0]: ")
        .await;
    assert!(problem.ends_with("; the last good version stays in force"), "{problem}");
    follower
        .shows(&format!(
            "{A}\n  10.244.1.2 :TCP=80 node=n1 pod=p2\n  10.244.1.111 :TCP=80 node=n1 pod=p1"
        ))
        .await;

    write("pods.yaml", &pod("p2", "10.244.1.22"));
    follower
        .shows(&format!("{A}\n  10.244.1.22 :TCP=80 node=n1 pod=p2"))
        .await;
    std::fs::remove_file(dir.path().join("pods.yaml")).unwrap();
    follower.shows(A).await;
    std::fs::remove_file(dir.path().join("a.yaml")).unwrap();
    follower.shows("").await;
}

#[tokio::test]
async fn a_file_is_replaced_and_truncated_without_a_gap() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.yaml");
    write_files(dir.path(), &[("a.yaml", &service("a", "10.96.0.1"))]);
    let mut follower = Follower::start(Options::new(dir.path()), Wants::forwarding()).await;
    follower.shows(A).await;
    // As an editor does it: empty for a moment.
    std::fs::write(&path, "").unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    std::fs::write(&path, service("a", "10.96.0.1") + &service("b", "10.96.0.2")).unwrap();
    let batch = tokio::time::timeout(PATIENCE, follower.feed.next())
        .await
        .unwrap()
        .unwrap();
    assert!(!format!("{:?}", batch.events).contains("Delete"), "{:?}", batch.events);
    follower.take(batch);
    follower.knows("default/b").await;
    // As kubectl and git do it: another file takes the name.
    std::fs::write(dir.path().join(".new"), service("c", "10.96.0.3")).unwrap();
    std::fs::rename(dir.path().join(".new"), &path).unwrap();
    follower.shows("default/c ClusterIP 10.96.0.3 :80/TCP").await;
    // Empty for good means empty.
    std::fs::write(&path, "").unwrap();
    follower.shows("").await;
}

#[tokio::test]
async fn a_second_definition_takes_over_when_the_first_goes() {
    let dir = tempfile::tempdir().unwrap();
    write_files(
        dir.path(),
        &[
            ("1.yaml", &service("a", "10.96.0.1")),
            ("2.yaml", &service("a", "10.96.0.2")),
        ],
    );
    let mut follower = Follower::start(Options::new(dir.path()), Wants::forwarding()).await;
    follower
        .problem("2.yaml: document 1: Service default/a: is defined in 1.yaml already")
        .await;
    follower.shows(A).await;
    std::fs::remove_file(dir.path().join("1.yaml")).unwrap();
    follower.shows("default/a ClusterIP 10.96.0.2 :80/TCP").await;
}

#[tokio::test]
async fn a_folder_that_vanishes_changes_nothing_and_comes_back() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("manifests");
    std::fs::create_dir(&dir).unwrap();
    write_files(&dir, &[("a.yaml", &service("a", "10.96.0.1"))]);
    let mut follower = Follower::start(Options::new(&dir), Wants::forwarding()).await;
    follower.shows(A).await;
    std::fs::rename(&dir, parent.path().join("aside")).unwrap();
    while follower.feed.health().connected() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(follower.settled().await, [A]);
    std::fs::create_dir(&dir).unwrap();
    write_files(&dir, &[("b.yaml", &service("b", "10.96.0.2"))]);
    follower.shows("default/b ClusterIP 10.96.0.2 :80/TCP").await;
    assert!(follower.feed.health().connected());
}

#[tokio::test]
async fn a_change_touches_what_depends_on_it() {
    let dir = tempfile::tempdir().unwrap();
    let services: String = (0..200)
        .map(|i| service(&format!("s{i}"), &format!("10.96.1.{i}")).replace("app: web", &format!("app: a{i}")))
        .collect();
    let one = |ip: &str| pod("p", ip).replace("app: web", "app: a7");
    write_files(
        dir.path(),
        &[("services.yaml", &services), ("pod.yaml", &one("10.244.1.1"))],
    );
    let mut follower = Follower::start(Options::new(dir.path()), Wants::forwarding()).await;
    follower.settled().await;
    write_files(dir.path(), &[("pod.yaml", &one("10.244.1.2"))]);
    let batch = tokio::time::timeout(PATIENCE, follower.feed.next())
        .await
        .unwrap()
        .unwrap();
    let slices = batch
        .events
        .iter()
        .filter(|event| format!("{event:?}").contains("EndpointSlice"))
        .count();
    assert_eq!((slices, batch.events.len()), (1, 2), "{:?}", batch.events);
}

#[tokio::test]
async fn a_missing_folder_is_an_error_at_the_start() {
    let error = start(
        Options::new("/nowhere/at/all"),
        Wants::forwarding(),
        CancellationToken::new(),
    )
    .unwrap_err();
    assert_eq!(
        error.to_string(),
        "--manifests /nowhere/at/all: No such file or directory (os error 2)"
    );
}
