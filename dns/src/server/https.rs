//! DNS over HTTPS (RFC 8484), HTTP/1.1 and HTTP/2.

use std::convert::Infallible;
use std::net::IpAddr;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::sync::CancellationToken;

use super::TcpLimits;
use super::reply::Answerer;
use crate::answer::edns::MAX_TCP;
use crate::answer::walk::{Section, records};
use crate::zone::TYPE_OPT;

/// Where queries go (RFC 8484's example, and CoreDNS's path).
const PATH: &str = "/dns-query";
const MESSAGE: &str = "application/dns-message";

/// Answers the requests of one connection.
pub(super) async fn serve(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    answerer: Answerer,
    peer: IpAddr,
    limits: TcpLimits,
    shutdown: CancellationToken,
) {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.idle)
        .max_buf_size(64 << 10);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(limits.idle)
        .max_concurrent_streams(limits.pipelined as u32)
        .max_header_list_size(16 << 10);
    let service = service_fn(move |request| {
        let answerer = answerer.clone();
        async move { Ok::<_, Infallible>(respond(request, &answerer, peer).await) }
    });
    let connection = builder.serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    tokio::select! {
        // What goes wrong on a connection ends it, and that is all.
        _ = connection.as_mut() => return,
        () = shutdown.cancelled() => connection.as_mut().graceful_shutdown(),
    }
    let _ = connection.await;
}

/// One request.
async fn respond(request: Request<Incoming>, answerer: &Answerer, peer: IpAddr) -> Response<Full<Bytes>> {
    if request.uri().path() != PATH {
        return plain(StatusCode::NOT_FOUND, "queries go to /dns-query");
    }
    let query = match *request.method() {
        Method::GET => from_query(request.uri().query().unwrap_or_default()),
        Method::POST
            if request
                .headers()
                .get(header::CONTENT_TYPE)
                .is_some_and(|type_| type_ == MESSAGE) =>
        {
            let body = Limited::new(request.into_body(), MAX_TCP).collect().await;
            match body {
                Ok(body) => Some(body.to_bytes().to_vec()),
                Err(_) => return plain(StatusCode::PAYLOAD_TOO_LARGE, "a message has at most 65535 octets"),
            }
        }
        Method::POST => {
            return plain(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "a message is application/dns-message",
            );
        }
        _ => return plain(StatusCode::METHOD_NOT_ALLOWED, "GET or POST"),
    };
    let reply = match query {
        Some(query) => answerer.whole(&query, peer).await,
        None => None,
    };
    let Some(reply) = reply else {
        return plain(StatusCode::BAD_REQUEST, "there is no DNS query in the request");
    };
    let age = format!("max-age={}", lifetime(&reply));
    let response = Response::builder()
        .header(header::CONTENT_TYPE, MESSAGE)
        .header(header::CACHE_CONTROL, age)
        .body(Full::from(reply));
    response.unwrap_or_else(|_| plain(StatusCode::INTERNAL_SERVER_ERROR, ""))
}

/// The message in the parameter `dns`.
fn from_query(query: &str) -> Option<Vec<u8>> {
    let mut parameters = query.split('&').filter_map(|parameter| parameter.split_once('='));
    let (_, text) = parameters.find(|(name, _)| *name == "dns")?;
    URL_SAFE_NO_PAD.decode(text.trim_end_matches('=')).ok()
}

/// The lowest TTL among the answers, or the SOA's of a negative one (RFC 8484 section 5.1).
fn lifetime(message: &[u8]) -> u32 {
    let all = records(message).into_iter().flatten();
    let counted = all.filter(|record| record.section != Section::Additional && record.type_ != TYPE_OPT);
    counted.map(|record| record.ttl).min().unwrap_or(0)
}

fn plain(status: StatusCode, text: &'static str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(text));
    *response.status_mut() = status;
    response
}
