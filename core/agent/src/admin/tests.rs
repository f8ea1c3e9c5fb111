//! Routes, readiness and metrics over real sockets.

use super::*;
use prometheus_client::metrics::counter::Counter;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

async fn fetch(address: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

#[track_caller]
fn check(answer: &str, expected: &[&str]) {
    for part in expected {
        assert!(answer.contains(part), "{part:?} is not in {answer}");
    }
}

#[tokio::test]
async fn routes_answer_and_readiness_follows_its_tasks() {
    let readiness = Readiness::default();
    let sources = readiness.register("sources");
    let rules = readiness.register("rules");
    let mut registry = Registry::default();
    let counter: Counter = Counter::default();
    registry.register("changes", "What changed", counter.clone());
    counter.inc();
    let admin = Admin::new()
        .readiness(readiness)
        .metrics(Arc::new(registry))
        .version()
        .route("/healthz", || Reply::text("stale\n").status(503));
    let bound = admin.bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let (address, shutdown) = (bound.address(), CancellationToken::new());
    let taken = Admin::new().bind(address).await.unwrap_err();
    check(&taken.to_string(), &["cannot listen on 127.0.0.1:", "in use"]);
    let server = tokio::spawn(bound.serve(shutdown.clone()));

    check(&fetch(address, "/readyz").await, &["503", "waiting for rules, sources"]);
    drop(sources);
    check(&fetch(address, "/readyz").await, &["503", "waiting for rules\n"]);
    drop(rules);
    check(&fetch(address, "/readyz").await, &["200 OK", "ready"]);
    check(
        &fetch(address, "/metrics").await,
        &[
            "text/plain; version=0.0.4",
            "# TYPE changes_total counter",
            "changes_total 1",
        ],
    );
    check(
        &fetch(address, "/version").await,
        &["application/json", crate::version::VERSION],
    );
    check(&fetch(address, "/healthz").await, &["503", "stale"]);
    check(&fetch(address, "/nothing").await, &["404"]);

    shutdown.cancel();
    server.await.unwrap();
    assert!(TcpStream::connect(address).await.is_err(), "the listener is closed");
}

#[tokio::test]
async fn an_open_connection_does_not_keep_the_server_alive() {
    let bound = Admin::new()
        .version()
        .bind("127.0.0.1:0".parse().unwrap())
        .await
        .unwrap();
    let (address, shutdown) = (bound.address(), CancellationToken::new());
    let server = tokio::spawn(bound.serve(shutdown.clone()));
    let mut idle = TcpStream::connect(address).await.unwrap();
    idle.write_all(b"GET /version HTTP/1.1\r\n").await.unwrap();
    shutdown.cancel();
    server.await.unwrap();
}
