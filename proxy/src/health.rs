//! `healthCheckNodePort`: tells load balancers whether this node has endpoints of a Service.
//!
//! One small HTTP server for each such Service, on every address that node ports are served on and in both families
//! (kube-proxy answers in the Service's family only). Any path, GET and HEAD; 200 when the node has ready endpoints and
//! the proxy is healthy, else 503; the body and headers are kube-proxy's.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use portolan_agent::events::{Notice, Severity};
use portolan_model::ServiceName;
use portolan_plan::HealthCheckPlan;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// The servers of all health check ports.
pub struct HealthChecks {
    healthy: Arc<AtomicBool>,
    servers: BTreeMap<ServiceName, Servers>,
}

/// The listeners of one Service.
struct Servers {
    port: u16,
    answer: Arc<Answer>,
    listeners: BTreeMap<IpAddr, CancellationToken>,
}

/// What one Service's port answers.
struct Answer {
    service: ServiceName,
    local_endpoints: AtomicUsize,
    healthy: Arc<AtomicBool>,
}

/// A port that could not be opened.
#[derive(Debug, thiserror::Error)]
#[error(
    "Service {service}: healthCheckNodePort {address} cannot be opened: {source}; load balancers will not see this node"
)]
pub struct HealthCheckError {
    /// The Service.
    pub service: ServiceName,
    /// Where it should listen.
    pub address: SocketAddr,
    /// The system's answer.
    #[source]
    pub source: std::io::Error,
}

// === impl HealthCheckError ===

impl HealthCheckError {
    /// kube-proxy's Event about the Service.
    pub fn notice(&self) -> Notice {
        Notice {
            kind: "Service",
            namespace: self.service.namespace.to_string(),
            name: self.service.name.to_string(),
            severity: Severity::Warning,
            reason: "FailedToStartServiceHealthcheck",
            action: "Listen",
            note: self.to_string(),
        }
    }
}

// === impl HealthChecks ===

impl HealthChecks {
    /// No server yet. `healthy` is what the proxy thinks of itself.
    pub fn new(healthy: Arc<AtomicBool>) -> Self {
        Self {
            healthy,
            servers: BTreeMap::new(),
        }
    }

    /// Makes the servers those of `wanted`, on `addresses`. Ports that stay are not touched; one that could not be
    /// opened is tried again at the next call.
    pub async fn apply(
        &mut self,
        wanted: &BTreeMap<ServiceName, HealthCheckPlan>,
        addresses: &[IpAddr],
    ) -> Vec<HealthCheckError> {
        self.servers.retain(|name, servers| match wanted.get(name) {
            Some(plan) if plan.port == servers.port => true,
            _ => {
                servers.listeners.values().for_each(CancellationToken::cancel);
                false
            }
        });
        let mut errors = Vec::new();
        for (name, plan) in wanted {
            let servers = self.servers.entry(name.clone()).or_insert_with(|| Servers {
                port: plan.port,
                answer: Arc::new(Answer {
                    service: name.clone(),
                    local_endpoints: AtomicUsize::new(0),
                    healthy: self.healthy.clone(),
                }),
                listeners: BTreeMap::new(),
            });
            servers
                .answer
                .local_endpoints
                .store(plan.local_endpoints, Ordering::Relaxed);
            errors.extend(servers.listen_on(addresses).await);
        }
        errors
    }
}

// === impl Servers ===

impl Servers {
    async fn listen_on(&mut self, addresses: &[IpAddr]) -> Vec<HealthCheckError> {
        self.listeners.retain(|address, stop| {
            let keep = addresses.contains(address);
            if !keep {
                stop.cancel();
            }
            keep
        });
        let mut errors = Vec::new();
        for ip in addresses {
            if self.listeners.contains_key(ip) {
                continue;
            }
            let address = SocketAddr::new(*ip, self.port);
            match TcpListener::bind(address).await {
                Ok(listener) => {
                    let stop = CancellationToken::new();
                    tokio::spawn(serve(listener, self.answer.clone(), stop.clone()));
                    self.listeners.insert(*ip, stop);
                }
                Err(source) => {
                    errors.push(HealthCheckError {
                        service: self.answer.service.clone(),
                        address,
                        source,
                    });
                }
            }
        }
        errors
    }
}

async fn serve(listener: TcpListener, answer: Arc<Answer>, stop: CancellationToken) {
    let router = Router::new().fallback(respond).with_state(answer);
    let server = axum::serve(listener, router).with_graceful_shutdown(stop.cancelled_owned());
    if let Err(error) = server.await {
        tracing::warn!(%error, "a health check port stopped");
    }
}

async fn respond(State(answer): State<Arc<Answer>>) -> Response {
    let local_endpoints = answer.local_endpoints.load(Ordering::Relaxed);
    let healthy = answer.healthy.load(Ordering::Relaxed);
    let status = if local_endpoints > 0 && healthy {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    let mut headers = HeaderMap::new();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    let weight = HeaderName::from_static("x-load-balancing-endpoint-weight");
    headers.insert(weight, HeaderValue::from(local_endpoints));
    (status, headers, body(&answer.service, local_endpoints, healthy)).into_response()
}

/// kube-proxy's body to the byte: indented by tabs, no final newline.
fn body(service: &ServiceName, local_endpoints: usize, healthy: bool) -> String {
    format!(
        "{{\n\t\"service\": {{\n\t\t\"namespace\": \"{}\",\n\t\t\"name\": \"{}\"\n\t}},\n\t\"localEndpoints\": \
         {local_endpoints},\n\t\"serviceProxyHealthy\": {healthy}\n}}",
        service.namespace, service.name
    )
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    use super::*;

    async fn get(address: SocketAddr) -> String {
        let mut stream = TcpStream::connect(address).await.expect("a connection");
        stream
            .write_all(b"GET /any HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            .await
            .expect("a request");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("an answer");
        answer
    }

    #[tokio::test]
    async fn a_port_follows_its_plan() {
        let free = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = free.local_addr().expect("its address");
        drop(free);
        let healthy = Arc::new(AtomicBool::new(true));
        let mut checks = HealthChecks::new(healthy.clone());
        let wanted = |endpoints| {
            let plan = HealthCheckPlan {
                port: address.port(),
                local_endpoints: endpoints,
            };
            BTreeMap::from([(ServiceName::new("shop", "web"), plan)])
        };
        assert!(checks.apply(&wanted(2), &[address.ip()]).await.is_empty());
        let answer = get(address).await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        assert!(answer.contains("x-load-balancing-endpoint-weight: 2\r\n"), "{answer}");
        let expected = "{\n\t\"service\": {\n\t\t\"namespace\": \"shop\",\n\t\t\"name\": \"web\"\n\t},\n\
                        \t\"localEndpoints\": 2,\n\t\"serviceProxyHealthy\": true\n}";
        assert!(answer.ends_with(expected), "{answer}");
        checks.apply(&wanted(0), &[address.ip()]).await;
        assert!(get(address).await.starts_with("HTTP/1.1 503 "));
        checks.apply(&wanted(2), &[address.ip()]).await;
        healthy.store(false, Ordering::Relaxed);
        assert!(
            get(address).await.starts_with("HTTP/1.1 503 "),
            "an unhealthy proxy takes no traffic"
        );
        checks.apply(&BTreeMap::new(), &[address.ip()]).await;
        while TcpStream::connect(address).await.is_ok() {
            tokio::task::yield_now().await;
        }
    }
}
