//! `portolan-proxy status`: asks the running daemon.

use anyhow::Context;

use crate::cli::{Output, StatusArgs};
use crate::command::ask;
use crate::state::Status;

/// Prints the daemon's status.
///
/// # Errors
/// When no daemon answers, or it is not synced or has an error (after printing).
pub fn run(args: &StatusArgs) -> anyhow::Result<()> {
    let body = ask(args.address, "/status")?;
    let status: Status = serde_json::from_str(&body).context("the answer is not a status")?;
    match args.output {
        Output::Json => println!("{}", serde_json::to_string_pretty(&status)?),
        Output::Text => print(&status),
    }
    anyhow::ensure!(status.synced, "not synced yet");
    anyhow::ensure!(status.last_error.is_none(), "the last change could not be programmed");
    Ok(())
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
