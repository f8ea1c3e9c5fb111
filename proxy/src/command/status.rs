//! `portolan-proxy status`: asks the running daemon.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::Context;

use crate::cli::{Output, StatusArgs};
use crate::state::Status;

const TIMEOUT: Duration = Duration::from_secs(5);

/// Prints the daemon's status.
///
/// # Errors
/// When no daemon answers, or it is not synced or has an error (after printing).
pub fn run(args: &StatusArgs) -> anyhow::Result<()> {
    let body = get(args).with_context(|| {
        format!(
            "no portolan-proxy answers on {} (see its --metrics-bind-address)",
            args.address
        )
    })?;
    let status: Status = serde_json::from_str(&body).context("the answer is not a status")?;
    match args.output {
        Output::Json => println!("{}", serde_json::to_string_pretty(&status)?),
        Output::Text => print(&status),
    }
    anyhow::ensure!(status.synced, "not synced yet");
    anyhow::ensure!(status.last_error.is_none(), "the last change could not be programmed");
    Ok(())
}

/// HTTP/1.0, so that the answer ends with the connection.
fn get(args: &StatusArgs) -> anyhow::Result<String> {
    let mut stream = TcpStream::connect_timeout(&args.address, TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    write!(stream, "GET /status HTTP/1.0\r\nHost: {}\r\n\r\n", args.address)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("the answer is not HTTP")?;
    let first = head.lines().next().unwrap_or_default();
    anyhow::ensure!(first.contains(" 200 "), "it answers {first:?}");
    Ok(body.into())
}

fn print(status: &Status) {
    let line = |key: &str, value: &str| println!("{key:<22} {value}");
    line("version", &status.version);
    line("node", &status.node);
    line("backend", &status.backend);
    line("synced", if status.synced { "yes" } else { "no" });
    if let Some(last) = status.last_sync {
        let last = i64::try_from(last)
            .ok()
            .and_then(|seconds| jiff::Timestamp::from_second(seconds).ok());
        line("last change", &last.map(|time| time.to_string()).unwrap_or_default());
    }
    line("last error", status.last_error.as_deref().unwrap_or("none"));
    line("services", &status.services.to_string());
    line("endpoint slices", &status.endpoint_slices.to_string());
    let addresses: Vec<String> = status.node_port_addresses.iter().map(ToString::to_string).collect();
    line("node port addresses", &addresses.join(" "));
    status
        .source
        .iter()
        .for_each(|(kind, text)| line(&format!("source {kind}"), text));
    status.programmed.iter().for_each(|(key, value)| line(key, value));
    status.notes.iter().for_each(|note| line("note", note));
    status.faults.iter().for_each(|fault| line("fault", fault));
}
