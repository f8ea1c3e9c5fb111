//! Watches that stall, break off, forget, or arrive in pieces; tokens that change: an API server that follows a script.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{OriginalUri, Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::*;

/// The end of an open watch.
type Watcher = mpsc::UnboundedSender<Result<Bytes, std::io::Error>>;

/// What the server holds and whom it lets in. Kinds go by their plural.
#[derive(Default)]
struct Script {
    /// The token that is asked for; `None` lets everybody in.
    token: Option<String>,
    lists: BTreeMap<&'static str, Vec<Value>>,
    revision: u64,
    watchers: BTreeMap<String, Vec<Watcher>>,
    /// Every request, as `path?query`.
    asked: Vec<String>,
    refused: usize,
    /// A watch is answered by 410 for so many times.
    gone: usize,
}

#[derive(Clone, Default)]
struct Server(Arc<Mutex<Script>>);

// === impl Server ===

impl Server {
    async fn start(&self) -> String {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let router = Router::new().fallback(answer).with_state(self.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        url
    }

    fn with<T>(&self, work: impl FnOnce(&mut Script) -> T) -> T {
        work(&mut self.0.lock().unwrap())
    }

    /// Sends a piece of text to every watch of a kind.
    fn send(&self, plural: &str, piece: &str) {
        self.with(|script| {
            for watcher in script.watchers.entry(plural.into()).or_default() {
                let _ = watcher.send(Ok(Bytes::copy_from_slice(piece.as_bytes())));
            }
        });
    }

    fn event(&self, plural: &str, kind: &str, object: Value) {
        let revision = self.with(|script| {
            script.revision += 1;
            script.revision
        });
        let mut object = object;
        object["metadata"]["resourceVersion"] = json!(revision.to_string());
        self.send(plural, &format!("{}\n", json!({"type": kind, "object": object})));
    }

    /// Ends every watch of a kind; `broken`: in the middle of things.
    fn end(&self, plural: &str, broken: bool) {
        let watchers = self.with(|script| script.watchers.remove(plural)).unwrap_or_default();
        for watcher in watchers.into_iter().filter(|_| broken) {
            let _ = watcher.send(Err(std::io::Error::from(std::io::ErrorKind::ConnectionReset)));
        }
    }

    /// Waits until a watch of the kind is open.
    async fn watched(&self, plural: &str) {
        let open = || self.with(|script| script.watchers.get(plural).is_some_and(|watchers| !watchers.is_empty()));
        while !open() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    fn asked(&self, part: &str) -> usize {
        self.with(|script| script.asked.iter().filter(|uri| uri.contains(part)).count())
    }
}

async fn answer(
    State(server): State<Server>,
    OriginalUri(uri): OriginalUri,
    Query(query): Query<BTreeMap<String, String>>,
    headers: HeaderMap,
) -> Response {
    let json_text = |body: Value| ([("content-type", "application/json")], body.to_string()).into_response();
    let refuse = |code: u16, reason: &str| {
        let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "message": reason, "reason": reason});
        (StatusCode::from_u16(code).unwrap(), json_text(status)).into_response()
    };
    let plural = uri.path().rsplit('/').next().unwrap_or_default().to_string();
    let mut script = server.0.lock().unwrap();
    script.asked.push(uri.to_string());
    let bearer = headers
        .get("authorization")
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    if script
        .token
        .as_ref()
        .is_some_and(|token| bearer != format!("Bearer {token}"))
    {
        script.refused += 1;
        return refuse(401, "Unauthorized");
    }
    if query.contains_key("sendInitialEvents") {
        return refuse(422, "Invalid");
    }
    if query.contains_key("watch") {
        if plural == "services" && script.gone > 0 {
            script.gone -= 1;
            return refuse(410, "Expired");
        }
        let (sender, receiver) = mpsc::unbounded_channel();
        script.watchers.entry(plural).or_default().push(sender);
        let stream = futures::stream::unfold(receiver, |mut receiver| async {
            Some((receiver.recv().await?, receiver))
        });
        return ([("content-type", "application/json")], Body::from_stream(stream)).into_response();
    }
    let items = script.lists.get(&*plural).cloned().unwrap_or_default();
    let revision = script.revision.to_string();
    json_text(json!({"kind": "List", "apiVersion": "v1", "metadata": {"resourceVersion": revision}, "items": items}))
}

fn service(name: &str, port: u16) -> Value {
    json!({"kind": "Service", "apiVersion": "v1", "metadata": {"name": name, "namespace": "default", "resourceVersion": "1"},
        "spec": {"clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1"], "ports": [{"port": port}]}})
}

fn slice(service: &str, address: &str) -> Value {
    json!({"kind": "EndpointSlice", "apiVersion": "discovery.k8s.io/v1", "addressType": "IPv4", "ports": [{"port": 8080}],
        "metadata": {"name": format!("{service}-1"), "namespace": "default", "resourceVersion": "1", "labels": {"kubernetes.io/service-name": service}},
        "endpoints": [{"addresses": [address]}]})
}

fn options(url: &str) -> Options {
    Options {
        kubeconfig: None,
        master: Some(url.into()),
        user_agent: "test".into(),
    }
}

async fn follow(server: &Server) -> Follower {
    let url = server.start().await;
    let mut follower = Follower::start(options(&url), Wants::forwarding()).await;
    follower.until_synced().await;
    for plural in ["services", "endpointslices"] {
        server.watched(plural).await;
    }
    follower
}

#[tokio::test]
async fn order_between_kinds_does_not_matter() {
    let server = Server::default();
    let mut follower = follow(&server).await;
    server.event("endpointslices", "ADDED", slice("late", "10.244.0.1"));
    server.event("services", "ADDED", service("late", 80));
    follower.shows("late:80 10.244.0.1").await;
    server.event("services", "DELETED", service("late", 80));
    follower.shows("").await;
    server.event("services", "ADDED", service("late", 81));
    follower.shows("late:81 10.244.0.1").await;
    server.event("endpointslices", "DELETED", slice("late", "10.244.0.1"));
    follower.shows("late:81").await;
    server.event("endpointslices", "MODIFIED", slice("late", "10.244.0.2"));
    follower.shows("late:81 10.244.0.2").await;
    // A deletion of what was never there is nothing.
    server.event("services", "DELETED", service("never", 80));
    server.event("services", "MODIFIED", service("late", 82));
    follower.shows("late:82 10.244.0.2").await;
}

#[tokio::test]
async fn a_watch_may_arrive_in_pieces_and_be_silent_in_between() {
    let server = Server::default();
    let mut follower = follow(&server).await;
    let text = format!(
        "{}\n{}\n",
        json!({"type": "ADDED", "object": service("a", 80)}),
        json!({"type": "ADDED", "object": service("b", 81)})
    );
    for piece in text.as_bytes().chunks(7) {
        server.send("services", std::str::from_utf8(piece).unwrap());
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    follower.shows("a:80\nb:81").await;
    assert_eq!(server.asked("/services?"), 2, "one list and one watch are enough");
}

#[tokio::test]
async fn a_watch_that_breaks_off_resumes_where_a_bookmark_said() {
    let server = Server::default();
    server.with(|script| script.lists.insert("services", vec![service("a", 80)]));
    let mut follower = follow(&server).await;
    follower.forget();
    let bookmark = json!({"kind": "Service", "apiVersion": "v1", "metadata": {"resourceVersion": "4711"}, "spec": {}});
    server.send(
        "services",
        &format!("{}\n", json!({"type": "BOOKMARK", "object": bookmark})),
    );
    server.send("services", r#"{"type": "ADDED", "object": {"kind": "Serv"#);
    // Time for the bookmark to be read before the connection breaks.
    tokio::time::sleep(Duration::from_millis(200)).await;
    server.end("services", true);
    server.watched("services").await;
    assert!(
        server.asked("resourceVersion=4711") >= 1,
        "{:?}",
        server.with(|script| script.asked.clone())
    );
    server.event("services", "MODIFIED", service("a", 82));
    follower.shows("a:82").await;
    let deleted = follower.events.iter().any(|event| matches!(event, Event::Delete(_)));
    assert!(!deleted, "what broke off deletes nothing: {:?}", follower.events);
}

#[tokio::test]
async fn a_server_that_ends_watches_politely_is_no_loss() {
    let server = Server::default();
    let mut follower = follow(&server).await;
    for port in 80..84 {
        server.end("services", false);
        server.watched("services").await;
        server.event("services", "MODIFIED", service("a", port));
        follower.shows(&format!("a:{port}")).await;
    }
    assert!(follower.problems.is_empty(), "{:?}", follower.problems);
    assert_eq!(server.with(|script| script.lists.len()), 0);
}

#[tokio::test]
async fn a_forgotten_place_is_listed_again_whether_the_watch_or_the_answer_says_so() {
    let server = Server::default();
    server.with(|script| {
        script
            .lists
            .insert("services", vec![service("a", 80), service("b", 80)])
    });
    let mut follower = follow(&server).await;
    follower.shows("a:80\nb:80").await;
    follower.forget();
    server.with(|script| {
        script
            .lists
            .insert("services", vec![service("b", 81), service("c", 80)])
    });
    let gone = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 410, "message": "too old", "reason": "Expired"});
    server.send("services", &format!("{}\n", json!({"type": "ERROR", "object": gone})));
    follower.shows("b:81\nc:80").await;
    let first = |events: &[Event]| events.iter().position(|event| matches!(event, Event::Delete(_)));
    let deleted = first(&follower.events).unwrap();
    let listed = follower
        .events
        .iter()
        .filter(|event| matches!(event, Event::Apply(_)))
        .count();
    assert_eq!(
        deleted, listed,
        "deleted is only what the whole new list lacks: {:?}",
        follower.events
    );

    server.with(|script| {
        script.lists.insert("services", vec![service("d", 80)]);
        script.gone = 1;
    });
    server.end("services", false);
    follower.shows("d:80").await;
}

#[tokio::test]
async fn a_server_that_talks_nonsense_changes_nothing() {
    let server = Server::default();
    server.with(|script| script.lists.insert("services", vec![service("a", 80)]));
    let mut follower = follow(&server).await;
    for nonsense in [
        "<html>\n",
        "{\"type\": \"ADDED\"}\n",
        "{\"type\": \"WHAT\", \"object\": {}}\n",
        "[]\n",
        "{\"type\":\"ADDED\",\"object\":7}\n",
    ] {
        server.watched("services").await;
        server.send("services", nonsense);
        server.end("services", false);
        server.watched("services").await;
    }
    server.event("services", "MODIFIED", service("a", 83));
    follower.shows("a:83").await;
}

#[tokio::test]
async fn what_a_watch_told_before_nonsense_in_the_same_piece_is_kept() {
    let server = Server::default();
    let mut follower = follow(&server).await;
    let mut told = service("a", 80);
    told["metadata"]["resourceVersion"] = json!("4711");
    // The list has no such Service: only the watch can have brought it.
    let piece = format!("{}\n<html>\n", json!({"type": "ADDED", "object": told}));
    server.send("services", &piece);
    server.end("services", false);
    follower.shows("a:80").await;
    server.watched("services").await;
    assert!(
        server.asked("resourceVersion=4711") >= 1,
        "the next watch goes on behind it: {:?}",
        server.with(|script| script.asked.clone())
    );
    server.event("services", "MODIFIED", service("a", 81));
    follower.shows("a:81").await;
}

/// A BoundServiceAccountToken lives for an hour; kubelet writes a new one into the same file long before.
#[tokio::test]
async fn a_token_file_is_read_again_when_the_token_changes() {
    let server = Server::default();
    let url = server.start().await;
    server.with(|script| {
        script.token = Some("first".into());
        script.lists.insert("services", vec![service("a", 80)]);
    });
    let dir = tempfile::tempdir().unwrap();
    let token = dir.path().join("token");
    std::fs::write(&token, "first").unwrap();
    let config = json!({"apiVersion": "v1", "kind": "Config", "current-context": "x",
        "clusters": [{"name": "c", "cluster": {"server": url}}], "users": [{"name": "u", "user": {"tokenFile": token}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}]});
    let kubeconfig = dir.path().join("kubeconfig");
    std::fs::write(&kubeconfig, config.to_string()).unwrap();
    let options = Options {
        kubeconfig: Some(kubeconfig),
        ..Options::default()
    };
    let mut follower = Follower::start(options, Wants::forwarding()).await;
    follower.shows("a:80").await;
    server.watched("services").await;

    std::fs::write(&token, "second").unwrap();
    server.with(|script| {
        script.token = Some("second".into());
        script.lists.insert("services", vec![service("a", 81)]);
        script.gone = 1;
    });
    server.end("services", false);
    follower.shows("a:81").await;
    assert!(server.with(|script| script.refused) < 100, "it does not hammer");
}
