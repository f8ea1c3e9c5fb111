//! An API server that answers as an old or broken one would.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Body;
use axum::extract::{OriginalUri, Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use serde_json::json;

use super::*;
use crate::source::{Config, Origin, read_once};

/// What it was asked, as `path?query`, and by whom.
type Asked = Arc<Mutex<Vec<(String, String)>>>;

async fn answer(
    State(asked): State<Asked>,
    OriginalUri(uri): OriginalUri,
    Query(query): Query<BTreeMap<String, String>>,
    headers: HeaderMap,
) -> Response {
    let agent = headers
        .get("user-agent")
        .and_then(|agent| agent.to_str().ok())
        .unwrap_or_default();
    asked.lock().unwrap().push((uri.to_string(), agent.to_string()));
    let status = |code: u16, message: &str| {
        let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "message": message, "reason": "x"});
        (
            StatusCode::from_u16(code).unwrap(),
            [("content-type", "application/json")],
            status.to_string(),
        )
            .into_response()
    };
    if uri.path().ends_with("/servicecidrs") {
        return status(404, "the server could not find the requested resource");
    }
    if uri.path().ends_with("/nodes") && uri.query().is_some_and(|query| query.contains("forbidden")) {
        return status(403, "nodes is forbidden");
    }
    if query.contains_key("sendInitialEvents") {
        return status(422, "sendInitialEvents is forbidden");
    }
    if query.contains_key("watch") {
        return Body::from_stream(futures::stream::pending::<Result<Vec<u8>, std::io::Error>>()).into_response();
    }
    let list = json!({"kind": "List", "apiVersion": "v1", "metadata": {"resourceVersion": "1"}, "items": []});
    ([("content-type", "application/json")], list.to_string()).into_response()
}

async fn serve() -> (String, Asked) {
    let asked = Asked::default();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let router = Router::new().fallback(answer).with_state(asked.clone());
    tokio::spawn(async move { axum::serve(listener, router).await });
    (url, asked)
}

fn options(url: &str) -> Options {
    Options {
        kubeconfig: None,
        master: Some(url.into()),
        user_agent: "portolan-proxy/9.9".into(),
    }
}

#[tokio::test]
async fn an_old_server_without_streams_and_service_cidrs_is_enough() {
    let (url, asked) = serve().await;
    let mut follower = Follower::start(options(&url), Wants::forwarding()).await;
    follower.until_synced().await;
    let health = follower.feed.health();
    assert!(health.connected(), "{:?}", health.kinds());
    let asked = asked.lock().unwrap().clone();
    assert!(
        asked.iter().all(|(_, agent)| agent == "portolan-proxy/9.9"),
        "{asked:?}"
    );
    let listed = |path: &str| {
        asked
            .iter()
            .any(|(uri, _)| uri.starts_with(path) && !uri.contains("watch=true") && uri.contains("limit=500"))
    };
    assert!(
        listed("/api/v1/services?") && listed("/apis/discovery.k8s.io/v1/endpointslices?"),
        "{asked:?}"
    );
    let services = asked
        .iter()
        .find(|(uri, _)| uri.starts_with("/api/v1/services?"))
        .unwrap();
    assert!(
        services
            .0
            .contains("labelSelector=%21service.kubernetes.io%2Fservice-proxy-name"),
        "{services:?}"
    );
    assert!(
        services.0.contains("fieldSelector=spec.clusterIP%21%3DNone"),
        "{services:?}"
    );
}

#[tokio::test]
async fn looking_once_gives_up_and_says_what_is_missing() {
    let (url, _) = serve().await;
    let wants = Wants {
        nodes: NodeSelection::Named("forbidden".into()),
        ..Wants::forwarding()
    };
    let config = Config {
        origin: Origin::Kube(options(&url)),
        wants,
    };
    let error = read_once(config, Duration::from_secs(2)).await.unwrap_err().to_string();
    assert!(
        error.starts_with("not complete within 2 s: still waiting for Node ("),
        "{error}"
    );
    assert!(error.contains("nodes is forbidden"), "{error}");
}

#[tokio::test]
async fn what_no_waiting_can_mend_is_an_error() {
    let fails = |options: Options| async {
        start(options, Wants::naming(), CancellationToken::new())
            .await
            .unwrap_err()
            .to_string()
    };
    let none = fails(Options::default()).await;
    assert!(
        none.starts_with("no source of objects: give --manifests DIR, --kubeconfig FILE or --master URL"),
        "{none}"
    );
    let master = fails(Options {
        master: Some("ftp://x".into()),
        ..Options::default()
    })
    .await;
    assert_eq!(
        master,
        "--master \"ftp://x\" is not a URL such as https://10.0.0.1:6443"
    );
    let missing = fails(Options {
        kubeconfig: Some("/nowhere/config".into()),
        ..Options::default()
    })
    .await;
    assert!(missing.starts_with("kubeconfig /nowhere/config: "), "{missing}");
}
