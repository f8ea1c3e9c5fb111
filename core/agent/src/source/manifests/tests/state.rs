//! Allocations that outlive the process, shared by the daemons that read one folder.

use super::live::Follower;
use super::{Options, Wants, check_files, describe, look, write_files};

fn service(name: &str) -> String {
    format!(
        "{{apiVersion: v1, kind: Service, metadata: {{name: {name}}}, spec: {{type: NodePort, ports: [{{port: 80}}]}}}}\n---\n"
    )
}

/// Two names that want one address in a range of six.
const SMALL: &str = "10.96.0.0/29";

fn options(dir: &std::path::Path) -> Options {
    Options {
        service_ranges: vec![SMALL.parse().unwrap()],
        ..Options::new(dir)
    }
}

#[tokio::test]
async fn an_address_stays_while_the_service_exists() {
    let dir = tempfile::tempdir().unwrap();
    let all: String = ["a", "b", "c", "d", "e"].map(service).concat();
    write_files(dir.path(), &[("web.yaml", &all)]);
    let mut first = Follower::start(options(dir.path()), Wants::forwarding()).await;
    let before = first.settled().await;
    assert_eq!(before.len(), 5);
    let fresh = tempfile::tempdir().unwrap();
    write_files(fresh.path(), &[("web.yaml", &service("e"))]);
    let alone = describe(&look(options(fresh.path()), Wants::forwarding()).await);
    assert_ne!(alone, before[4..], "the names have to be such that their order matters");
    // A broken file at a restart must not make anybody forget.
    write_files(dir.path(), &[("web.yaml", "kind: [")]);
    first.problem("web.yaml: document 1: line 1").await;
    drop(first);
    let second = Follower::start(options(dir.path()), Wants::forwarding()).await;
    drop(second);
    write_files(dir.path(), &[("web.yaml", &service("e"))]);
    let mut third = Follower::start(options(dir.path()), Wants::forwarding()).await;
    let lines = third.settled().await;
    assert_eq!(lines, before[4..], "after a restart");
    let state = std::fs::read_to_string(dir.path().join(".portolan-state.json")).unwrap();
    assert!(!state.contains("default/a"), "{state}");
}

#[tokio::test]
async fn removing_a_written_address_keeps_it() {
    let dir = tempfile::tempdir().unwrap();
    let with = |spec: &str| format!("{{apiVersion: v1, kind: Service, metadata: {{name: web}}, spec: {{{spec}}}}}");
    write_files(
        dir.path(),
        &[(
            "web.yaml",
            &with("type: NodePort, clusterIP: 10.96.0.3, ports: [{port: 80, nodePort: 30007}]"),
        )],
    );
    let mut follower = Follower::start(options(dir.path()), Wants::forwarding()).await;
    follower.shows("default/web NodePort 10.96.0.3 :80/TCP@30007").await;
    write_files(
        dir.path(),
        &[("web.yaml", &with("type: NodePort, ports: [{port: 80, name: http}]"))],
    );
    follower.shows("default/web NodePort 10.96.0.3 http:80/TCP@30007").await;
    write_files(dir.path(), &[("web.yaml", &with("ports: [{port: 80}]"))]);
    follower.shows("default/web ClusterIP 10.96.0.3 :80/TCP").await;
    write_files(
        dir.path(),
        &[("web.yaml", &with("clusterIP: 10.96.0.4, ports: [{port: 80}]"))],
    );
    follower.shows("default/web ClusterIP 10.96.0.4 :80/TCP").await;
}

#[tokio::test]
async fn daemons_of_one_folder_agree() {
    let dir = tempfile::tempdir().unwrap();
    write_files(dir.path(), &[("a.yaml", &service("a"))]);
    let mut one = Follower::start(options(dir.path()), Wants::forwarding()).await;
    one.settled().await;
    let mut two = Follower::start(options(dir.path()), Wants::naming()).await;
    for name in ["b", "c", "d", "e"] {
        write_files(dir.path(), &[(&format!("{name}.yaml"), &service(name))]);
        one.knows(&format!("default/{name}")).await;
    }
    two.knows("default/e").await;
    let lines = one.settled().await;
    assert_eq!(lines.len(), 5);
    two.shows_all(&lines).await;
    let looked = look(options(dir.path()), Wants::forwarding()).await;
    assert_eq!(describe(&looked), lines, "a one-shot command sees the same");
}

#[tokio::test]
async fn what_another_daemon_recorded_wins() {
    let dir = tempfile::tempdir().unwrap();
    let named =
        "{apiVersion: v1, kind: Service, metadata: {name: named}, spec: {clusterIP: 10.96.0.2, ports: [{port: 80}]}}";
    write_files(dir.path(), &[("web.yaml", &(service("web") + named))]);
    let mut follower = Follower::start(Options::new(dir.path()), Wants::forwarding()).await;
    follower.knows("default/web").await;
    let state = dir.path().join(".portolan-state.json");
    let text = std::fs::read_to_string(&state).unwrap();
    let mut value: serde_json::Value = serde_json::from_str(&text).unwrap();
    value["services"]["default/web"] = serde_json::json!({"clusterIPs": ["10.96.7.7"], "nodePorts": {"80/TCP": 30777}});
    value["services"]["default/named"] = serde_json::json!({"clusterIPs": ["10.96.0.3"]});
    std::fs::write(&state, value.to_string()).unwrap();
    // What a manifest names cannot be overruled.
    follower
        .shows("default/named ClusterIP 10.96.0.2 :80/TCP\ndefault/web NodePort 10.96.7.7 :80/TCP@30777")
        .await;
}

#[tokio::test]
async fn a_full_range_says_so_and_recovers() {
    let dir = tempfile::tempdir().unwrap();
    let all: String = ["a", "b", "c", "d", "e", "f", "g"].map(service).concat();
    write_files(dir.path(), &[("all.yaml", &all)]);
    let mut follower = Follower::start(options(dir.path()), Wants::forwarding()).await;
    follower
        .problem("all.yaml: document 7: Service default/g: spec.clusterIP: no address is left in 10.96.0.0/29")
        .await;
    assert_eq!(follower.settled().await.len(), 6);
    let fewer: String = ["b", "c", "d", "e", "f", "g"].map(service).concat();
    write_files(dir.path(), &[("all.yaml", &fewer)]);
    follower.knows("default/g").await;
}

#[tokio::test]
async fn looking_writes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    write_files(dir.path(), &[("a.yaml", &service("a"))]);
    look(options(dir.path()), Wants::forwarding()).await;
    let names: Vec<_> = std::fs::read_dir(dir.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(names, ["a.yaml"]);
}

#[tokio::test]
async fn a_state_folder_of_its_own() {
    let (dir, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    write_files(dir.path(), &[("a.yaml", &service("a"))]);
    // Somebody's half-written or foreign file is not trusted.
    write_files(
        state.path(),
        &[(".portolan-state.json", "{\"version\": 7, \"services\": {}}")],
    );
    let options = Options {
        state_dir: Some(state.path().join("deep/er")),
        ..options(dir.path())
    };
    let mut follower = Follower::start(options, Wants::forwarding()).await;
    follower.knows("default/a").await;
    assert!(state.path().join("deep/er/.portolan-state.json").exists());
    assert!(!dir.path().join(".portolan-state.json").exists());
}

#[tokio::test]
async fn a_state_file_that_contradicts_itself_is_mended() {
    let state = r#"{"version": 1, "services": {
        "default/a": {"clusterIPs": ["10.96.0.77"], "nodePorts": {"80/TCP": 30077}},
        "default/b": {"clusterIPs": ["10.96.0.77"], "nodePorts": {"80/TCP": 30077}},
        "nonsense": {"clusterIPs": ["192.0.2.1"]}
    }}"#;
    check_files(
        &[
            ("web.yaml", &(service("a") + &service("b"))),
            (".portolan-state.json", state),
        ],
        &[
            "default/a NodePort 10.96.0.77 :80/TCP@30077",
            "default/b NodePort 10.96.61.228 :80/TCP@32287",
        ],
    )
    .await;
}
