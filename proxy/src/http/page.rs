//! `/` and `/page.json`: see [`crate::page`].

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::sync::oneshot;

use super::{Shared, answer};
use crate::page::{self, is_local_host};
use crate::state::Question;

/// The page runs its own script and asks its own server, and nobody else's page may show it in a frame.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; \
                      frame-ancestors 'none'; base-uri 'none'; form-action 'none'";

/// The routes of the page.
pub fn routes(shared: Shared) -> Router {
    Router::new()
        .route("/", get(html))
        .route("/page.json", get(data))
        .with_state(shared)
}

async fn html(headers: HeaderMap) -> Response {
    if let Some(refusal) = refusal(&headers) {
        return refusal;
    }
    let mut response = (StatusCode::OK, page::HTML).into_response();
    let fields = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-store"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    ];
    for (name, value) in fields {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

async fn data(State(shared): State<Shared>, headers: HeaderMap, uri: Uri) -> Response {
    if let Some(refusal) = refusal(&headers) {
        return refusal;
    }
    let query = uri.query().unwrap_or_default();
    let filter = query
        .split('&')
        .find_map(|field| field.strip_prefix("q="))
        .unwrap_or_default();
    // Names of objects need no other escape.
    let filter = filter.replace("%2F", "/").replace("%2f", "/");
    let (asker, told) = oneshot::channel();
    match (shared.questions.send(Question::Page(filter, asker)).await, told.await) {
        (Ok(()), Ok(page)) => answer(StatusCode::OK, &serde_json::to_value(page).unwrap_or_default()),
        _ => (StatusCode::SERVICE_UNAVAILABLE, "shutting down\n").into_response(),
    }
}

fn refusal(headers: &HeaderMap) -> Option<Response> {
    let host = headers
        .get(header::HOST)
        .and_then(|host| host.to_str().ok())
        .unwrap_or_default();
    let text = "this page answers only to an address or to localhost, such as http://127.0.0.1:10249/\n";
    (!is_local_host(host)).then(|| (StatusCode::FORBIDDEN, text).into_response())
}
