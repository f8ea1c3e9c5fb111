//! admin: the HTTP frame of both daemons. They register routes; nothing here knows what the routes say.
//!
//! A listener is bound first and served later, so that a port that is taken is known before anything else happens, and a
//! test can bind port 0 and ask for the address.
//!
//! ```no_run
//! # async fn run(readiness: portolan_agent::readiness::Readiness) -> anyhow::Result<()> {
//! use portolan_agent::admin::{Admin, Reply};
//!
//! let admin = Admin::new().readiness(readiness).version().route("/status", || Reply::text("fine\n"));
//! let bound = admin.bind("127.0.0.1:0".parse()?).await?;
//! println!("http://{}/status", bound.address());
//! # let shutdown = tokio_util::sync::CancellationToken::new();
//! tokio::spawn(bound.serve(shutdown));
//! # Ok(())
//! # }
//! ```

mod exposition;

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use prometheus_client::registry::Registry;
use serde::Serialize;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::readiness::Readiness;

/// How long open connections may take to finish at shutdown.
const DRAIN: Duration = Duration::from_secs(2);

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// The HTTP status code.
    pub status: u16,
    /// The content type.
    pub content_type: &'static str,
    /// The content.
    pub body: String,
}

/// Routes that are not served yet.
#[derive(Clone, Debug, Default)]
pub struct Admin(Router);

/// Routes on a bound listener.
#[derive(Debug)]
pub struct Bound {
    listener: TcpListener,
    address: SocketAddr,
    routes: Router,
}

/// The address cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address} for HTTP: {cause}")]
pub struct BindError {
    /// The address.
    pub address: SocketAddr,
    /// Why not.
    #[source]
    pub cause: std::io::Error,
}

// === impl Reply ===

impl Reply {
    /// 200 with text.
    pub fn text(body: impl Into<String>) -> Self {
        Self {
            status: 200,
            content_type: "text/plain; charset=utf-8",
            body: body.into(),
        }
    }

    /// 200 with JSON.
    pub fn json(value: &impl Serialize) -> Self {
        match serde_json::to_string_pretty(value) {
            Ok(mut body) => {
                body.push('\n');
                Self {
                    content_type: "application/json",
                    ..Self::text(body)
                }
            }
            Err(error) => Self::text(format!("cannot be written as JSON: {error}\n")).status(500),
        }
    }

    /// The same with another status code.
    #[must_use]
    pub fn status(mut self, status: u16) -> Self {
        self.status = status;
        self
    }
}

impl IntoResponse for Reply {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        (status, [(header::CONTENT_TYPE, self.content_type)], self.body).into_response()
    }
}

// === impl Admin ===

impl Admin {
    /// No routes.
    pub fn new() -> Self {
        Self::default()
    }

    /// Answers GET and HEAD on `path`. The handler must not block: it reads what others have prepared.
    ///
    /// # Panics
    /// When `path` does not start with `/` or is registered already: both are mistakes of the program.
    #[must_use]
    pub fn route(self, path: &str, handler: impl Fn() -> Reply + Clone + Send + Sync + 'static) -> Self {
        Self(self.0.route(path, get(move || std::future::ready(handler()))))
    }

    /// Routes that a daemon made itself, because they have to wait for something or need headers of their own.
    ///
    /// # Panics
    /// When one of the paths is registered already: a mistake of the program.
    #[must_use]
    pub fn merge(self, routes: Router) -> Self {
        Self(self.0.merge(routes))
    }

    /// `/readyz`: 200 when every part is ready, else 503 with the parts that are not.
    #[must_use]
    pub fn readiness(self, readiness: Readiness) -> Self {
        self.route("/readyz", move || match readiness.pending() {
            pending if pending.is_empty() => Reply::text("ready\n"),
            pending => Reply::text(format!("waiting for {}\n", pending.join(", "))).status(503),
        })
    }

    /// `/metrics`: everything in the registry.
    #[must_use]
    pub fn metrics(self, registry: Arc<Registry>) -> Self {
        let handler = move |headers: HeaderMap| {
            let accept = headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok());
            let reply = match exposition::expose(&registry, accept.unwrap_or_default()) {
                Ok((content_type, body)) => Reply {
                    content_type,
                    ..Reply::text(body)
                },
                Err(error) => Reply::text(format!("cannot encode the metrics: {error}\n")).status(500),
            };
            std::future::ready(reply)
        };
        Self(self.0.route("/metrics", get(handler)))
    }

    /// `/version`: what was built.
    #[must_use]
    pub fn version(self) -> Self {
        self.route("/version", || Reply::json(&crate::version::BUILD))
    }

    /// Binds the listener. Connections wait until [`Bound::serve`].
    ///
    /// # Errors
    /// When the address cannot be listened on.
    pub async fn bind(self, address: SocketAddr) -> Result<Bound, BindError> {
        let failed = |cause| BindError { address, cause };
        let listener = listen(address).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        Ok(Bound {
            listener,
            address,
            routes: self.0,
        })
    }
}

/// Go listens in both families on `0.0.0.0`, and so do we: every health check of a dual-stack cluster finds us.
async fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    if address.ip() != Ipv4Addr::UNSPECIFIED {
        return TcpListener::bind(address).await;
    }
    let both = || -> std::io::Result<TcpListener> {
        let socket = socket2::Socket::new(socket2::Domain::IPV6, socket2::Type::STREAM, None)?;
        socket.set_only_v6(false)?;
        #[cfg(unix)]
        socket.set_reuse_address(true)?;
        socket.set_nonblocking(true)?;
        socket.bind(&SocketAddr::from((Ipv6Addr::UNSPECIFIED, address.port())).into())?;
        socket.listen(128)?;
        TcpListener::from_std(socket.into())
    };
    // A machine without IPv6 has the one family only.
    match both() {
        Ok(listener) => Ok(listener),
        Err(_) => TcpListener::bind(address).await,
    }
}

// === impl Bound ===

impl Bound {
    /// Where it listens; the real port when port 0 was asked for.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `shutdown`, then lets open requests finish for a moment.
    pub async fn serve(self, shutdown: CancellationToken) {
        let address = self.address;
        tracing::info!(%address, "serving HTTP");
        let drained = {
            let shutdown = shutdown.clone();
            async move {
                shutdown.cancelled().await;
                tokio::time::sleep(DRAIN).await;
            }
        };
        let server = axum::serve(self.listener, self.routes).with_graceful_shutdown(shutdown.cancelled_owned());
        tokio::select! {
            ended = server => {
                if let Err(error) = ended {
                    tracing::error!(%address, %error, "the HTTP server ended");
                }
            }
            // Someone keeps a connection open: that must not keep the daemon alive.
            () = drained => {}
        }
    }
}

#[cfg(test)]
mod tests;
