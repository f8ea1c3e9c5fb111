//! DNS over HTTPS (RFC 8484): one HTTP/2 connection an upstream, opened when needed.

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http2::{SendRequest, handshake};
use hyper::header::{ACCEPT, CONTENT_TYPE};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;

use super::exchange::ExchangeError;
use super::spec::{Options, Target};
use super::tls;
use crate::answer::edns::MAX_TCP;

const MESSAGE: &str = "application/dns-message";

/// The connection to one upstream.
#[derive(Debug, Default)]
pub struct Https {
    open: tokio::sync::Mutex<Option<SendRequest<Full<Bytes>>>>,
}

// === impl Https ===

impl Https {
    /// Sends a query and waits for the answer.
    ///
    /// # Errors
    /// When no connection can be had, or something else than an answer comes.
    pub async fn ask(&self, target: &Target, options: &Options, query: &[u8]) -> Result<Vec<u8>, ExchangeError> {
        let failed = |cause: String| ExchangeError::Secure {
            upstream: target.to_string(),
            cause,
        };
        let host = target
            .server_name
            .clone()
            .unwrap_or_else(|| target.address.ip().to_string());
        let host = if host.contains(':') { format!("[{host}]") } else { host };
        let uri = format!("https://{host}:{}{}", target.address.port(), target.path);
        let request = || {
            Request::builder()
                .method(Method::POST)
                .uri(&uri)
                .header(CONTENT_TYPE, MESSAGE)
                .header(ACCEPT, MESSAGE)
                .body(Full::new(Bytes::copy_from_slice(query)))
                .map_err(|error| failed(error.to_string()))
        };
        let mut sender = self.sender(target, options).await?;
        let response = match sender.send_request(request()?).await {
            Ok(response) => response,
            // Closed by the upstream since it was last used, perhaps.
            Err(_) => {
                *self.open.lock().await = None;
                let mut sender = self.sender(target, options).await?;
                let sent = sender.send_request(request()?).await;
                sent.map_err(|error| failed(error.to_string()))?
            }
        };
        if response.status() != StatusCode::OK {
            return Err(failed(format!("HTTP status {}", response.status())));
        }
        let body = Limited::new(response.into_body(), MAX_TCP).collect().await;
        let body = body.map_err(|error| failed(error.to_string()))?;
        Ok(body.to_bytes().to_vec())
    }

    async fn sender(&self, target: &Target, options: &Options) -> Result<SendRequest<Full<Bytes>>, ExchangeError> {
        let mut open = self.open.lock().await;
        if let Some(sender) = open.as_ref().filter(|sender| !sender.is_closed()) {
            return Ok(sender.clone());
        }
        let upstream = target.to_string();
        let stream = TcpStream::connect(target.address)
            .await
            .map_err(|cause| ExchangeError::Io {
                upstream: upstream.clone(),
                cause,
            })?;
        let stream = tls::connect(target, options, &[b"h2"], stream).await?;
        let (sender, connection) = handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .map_err(|error| ExchangeError::Secure {
                upstream,
                cause: error.to_string(),
            })?;
        // It ends with the connection; whoever asks next opens another.
        tokio::spawn(async move { drop(connection.await) });
        *open = Some(sender.clone());
        Ok(sender)
    }
}
