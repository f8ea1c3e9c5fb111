//! Telemetry: what the daemons say on standard error, one line for each event.

use std::io::IsTerminal;

use clap::{Args, ValueEnum};
use tracing_subscriber::EnvFilter;

/// kube's watcher reports every attempt; the source reports what changed, once.
const QUIET: &str = "kube_runtime=off,kube_client=off,tower=warn,hyper=warn,h2=warn,rustls=warn";

/// How to log.
#[derive(Args, Clone, Copy, Debug, Default)]
pub struct LogArgs {
    /// Format of the log on standard error
    #[arg(
        long,
        value_enum,
        value_name = "FORMAT",
        default_value = "text",
        global = true,
        help_heading = "Log"
    )]
    pub log_format: LogFormat,
    /// Say more (-v: debug, -vv: trace); the environment variable RUST_LOG wins
    #[arg(long, short, action = clap::ArgAction::Count, global = true, help_heading = "Log")]
    pub verbose: u8,
}

/// Format of the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people
    #[default]
    Text,
    /// One JSON object a line
    Json,
}

/// Sends everything that is traced to standard error. A second call changes nothing.
pub fn init(args: LogArgs) {
    let level = match args.verbose {
        0 => "info",
        1 => "debug",
        _ => "trace",
    };
    let filter = match std::env::var("RUST_LOG") {
        Ok(directives) if !directives.is_empty() => EnvFilter::new(directives),
        _ if args.verbose > 1 => EnvFilter::new(level),
        _ => EnvFilter::new(format!("{level},{QUIET}")),
    };
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    // An error means that something, a test perhaps, logs already.
    let _ = match args.log_format {
        LogFormat::Text => subscriber.with_ansi(std::io::stderr().is_terminal()).try_init(),
        LogFormat::Json => subscriber.json().flatten_event(true).with_ansi(false).try_init(),
    };
}

/// An error with its causes in one line, for the end of a program. A cause that the message before it holds already is
/// not said again.
pub fn one_line(error: &(dyn std::error::Error + 'static)) -> String {
    let mut line = String::new();
    let causes = std::iter::successors(Some(error), |error| error.source());
    for cause in causes.map(ToString::to_string) {
        if line.is_empty() {
            line = cause;
        } else if !line.contains(&cause) {
            line.push_str(": ");
            line.push_str(&cause);
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use anyhow::Context as _;

    #[test]
    fn a_cause_is_said_once() {
        let missing = || std::io::Error::from(std::io::ErrorKind::NotFound);
        let twice = anyhow::Error::from(missing()).context(format!("--manifests /m: {}", missing()));
        assert_eq!(
            super::one_line(twice.as_ref()),
            format!("--manifests /m: {}", missing())
        );
        let chain = Err::<(), _>(missing()).context("cannot read").expect_err("an error");
        assert_eq!(super::one_line(chain.as_ref()), format!("cannot read: {}", missing()));
    }
}
