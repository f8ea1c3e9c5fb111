//! One HTTP request, for health checks and the daemons' own pages.

use std::io::{Read as _, Write as _};
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use super::connect::{self, resolve, tcp_stream};

/// What to fetch.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// `http://host:port/path`.
    pub url: String,
    /// How long it may take, in milliseconds.
    #[arg(long, default_value_t = 2000)]
    pub timeout_ms: u64,
}

/// The response to a GET.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Response {
    /// The status code.
    pub status: u16,
    /// The header fields as they came.
    pub head: String,
    /// The body as text.
    pub body: String,
}

/// Sends a GET and reads the response to its end.
///
/// # Errors
/// When the URL is not of the form above, nobody answers, or the answer is not HTTP.
pub fn get(options: &Options) -> Result<Response> {
    let rest = options
        .url
        .strip_prefix("http://")
        .context("the URL must begin with http://")?;
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    let timeout = Duration::from_millis(options.timeout_ms);
    let port = authority
        .rsplit_once(':')
        .is_some_and(|(_, port)| port.parse::<u16>().is_ok());
    let target = if port {
        authority.to_owned()
    } else {
        format!("{authority}:80")
    };
    let plain = connect::Options {
        target: target.clone(),
        udp: false,
        count: 1,
        timeout_ms: options.timeout_ms,
        size: 0,
        source_port: None,
        unconnected: false,
        mapped: false,
        source: None,
        family: None,
        keep_going: false,
        until_stdin_closes: None,
    };
    let mut stream = tcp_stream(resolve(&target, None)?, &plain, timeout)?;
    write!(
        stream,
        "GET /{path} HTTP/1.1\r\nHost: {authority}\r\nConnection: close\r\n\r\n"
    )?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let (head, body) = text
        .split_once("\r\n\r\n")
        .context("the response has no end of its header")?;
    let status = head
        .split(' ')
        .nth(1)
        .and_then(|code| code.parse().ok())
        .context("the response has no status code")?;
    Ok(Response {
        status,
        head: head.to_owned(),
        body: body.to_owned(),
    })
}
