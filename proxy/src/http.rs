//! What the proxy answers over HTTP: kube-proxy's `/healthz`, `/livez` and `/proxyMode`, and our own `/status`.

pub mod page;

use std::sync::Arc;
use std::time::SystemTime;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use jiff::Timestamp;
use portolan_model::parse::parse_ip;
use portolan_plan::Packet;
use serde::Serialize;
use serde_json::json;
use tokio::sync::{mpsc, oneshot};

use crate::cli::destination;
use crate::config::KubeProxyConfiguration;
use crate::metrics::Metrics;
use crate::state::{self, Health, Question};

/// What the handlers look at.
#[derive(Clone)]
pub struct Shared {
    /// Health.
    pub state: Arc<state::State>,
    /// Counters of answers.
    pub metrics: Arc<Metrics>,
    /// Where to ask what only the sync loop knows.
    pub questions: mpsc::Sender<Question>,
    /// The word of `/proxyMode`.
    pub mode: &'static str,
    /// What `/configz` shows.
    pub config: Arc<KubeProxyConfiguration>,
}

/// `/healthz` and `/livez`, for `--healthz-bind-address`.
pub fn health_routes(shared: Shared) -> Router {
    Router::new()
        .route("/healthz", get(healthz))
        .route("/livez", get(livez))
        .with_state(shared)
}

/// `/proxyMode`, `/configz`, `/healthz` and `/status`, for `--metrics-bind-address`.
pub fn admin_routes(shared: Shared) -> Router {
    Router::new()
        .route("/proxyMode", get(proxy_mode))
        .route("/configz", get(configz))
        .route("/healthz", get(alive))
        .route("/status", get(status))
        .route("/explain", get(explain))
        .with_state(shared)
}

async fn healthz(State(shared): State<Shared>) -> Response {
    let now = SystemTime::now();
    let health = shared.state.health(now);
    let code = code(health.healthy && health.node_eligible);
    shared.metrics.healthz(code.as_u16());
    answer(
        code,
        &HealthBody::new(health, health.healthy, Some(health.node_eligible), now),
    )
}

/// The same without the node's eligibility, and while the first objects are awaited: neither a draining node nor an API
/// server that is away must restart the pod.
async fn livez(State(shared): State<Shared>) -> Response {
    let now = SystemTime::now();
    let health = shared.state.health(now);
    let code = code(health.alive);
    shared.metrics.livez(code.as_u16());
    answer(code, &HealthBody::new(health, health.alive, None, now))
}

fn code(good: bool) -> StatusCode {
    if good {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    }
}

/// kube-proxy's body, field by field in its order.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct HealthBody {
    last_updated: String,
    current_time: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    node_eligible: Option<bool>,
    healthy: bool,
    status: Families,
}

/// Both families are programmed at once, so they say the same.
#[derive(Serialize)]
struct Families {
    #[serde(rename = "IPv4")]
    v4: Family,
    #[serde(rename = "IPv6")]
    v6: Family,
}

#[derive(Clone, Serialize)]
#[serde(rename_all = "camelCase")]
struct Family {
    last_updated: String,
    healthy: bool,
}

// === impl HealthBody ===

impl HealthBody {
    fn new(health: Health, healthy: bool, node_eligible: Option<bool>, now: SystemTime) -> Self {
        let time = |time: SystemTime| {
            Timestamp::try_from(time)
                .map(|time| time.to_string())
                .unwrap_or_default()
        };
        let last_updated = health.last_updated.map_or_else(|| "0001-01-01T00:00:00Z".into(), time);
        let family = Family {
            last_updated: last_updated.clone(),
            healthy,
        };
        Self {
            last_updated,
            current_time: time(now),
            node_eligible,
            healthy,
            status: Families {
                v4: family.clone(),
                v6: family,
            },
        }
    }
}

fn answer(code: StatusCode, body: &impl Serialize) -> Response {
    let headers = [
        (header::CONTENT_TYPE, "application/json"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    let text = serde_json::to_string(body).unwrap_or_default();
    (code, headers, text).into_response()
}

async fn proxy_mode(State(shared): State<Shared>) -> Response {
    plain(shared.mode)
}

/// That the process answers; kube-proxy's metrics port has this page too, and says no more.
async fn alive() -> Response {
    plain("ok")
}

fn plain(text: &'static str) -> Response {
    let headers = [
        (header::CONTENT_TYPE, "text/plain; charset=utf-8"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    (headers, text).into_response()
}

/// The configuration that is in force, under the name of its API group as all of Kubernetes' components do.
async fn configz(State(shared): State<Shared>) -> Response {
    answer(StatusCode::OK, &json!({"kubeproxy.config.k8s.io": *shared.config}))
}

/// `/explain?from=10.244.1.7&to=10.96.0.10:53/udp`: what `portolan-proxy explain --daemon` asks.
async fn explain(State(shared): State<Shared>, uri: Uri) -> Response {
    let packet = match asked(uri.query().unwrap_or_default()) {
        Ok(packet) => packet,
        Err(cause) => return (StatusCode::BAD_REQUEST, format!("{cause}\n")).into_response(),
    };
    let (asker, told) = oneshot::channel();
    match (
        shared.questions.send(Question::Explain(packet, asker)).await,
        told.await,
    ) {
        (Ok(()), Ok(found)) => answer(StatusCode::OK, &serde_json::to_value(found).unwrap_or_default()),
        _ => (StatusCode::SERVICE_UNAVAILABLE, "shutting down\n").into_response(),
    }
}

fn asked(query: &str) -> Result<Packet, String> {
    let field = |name: &str| {
        let mut fields = query.split('&').filter_map(|field| field.split_once('='));
        let value = fields.find(|(found, _)| *found == name).map(|(_, value)| value);
        value.ok_or_else(|| format!("{name:?} is missing: /explain?from=ADDR&to=ADDR:PORT/PROTO"))
    };
    let (to, protocol) = destination(field("to")?)?;
    let from = parse_ip(field("from")?)?;
    if from.is_ipv4() != to.is_ipv4() {
        return Err(format!("{from} and {to} are of different families"));
    }
    Ok(Packet { from, to, protocol })
}

async fn status(State(shared): State<Shared>) -> Response {
    let (asker, told) = oneshot::channel();
    match (shared.questions.send(Question::Status(asker)).await, told.await) {
        (Ok(()), Ok(status)) => answer(StatusCode::OK, &serde_json::to_value(status).unwrap_or_default()),
        _ => (StatusCode::SERVICE_UNAVAILABLE, "shutting down\n").into_response(),
    }
}
