//! Shutdown: one token for the whole daemon, cancelled by SIGTERM or SIGINT.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

/// Signals this close together are one: timeout(1) and terminals send it to the process and again to its group.
const ONE_SIGNAL: Duration = Duration::from_millis(200);

/// A token that is cancelled by the first SIGTERM or SIGINT (Ctrl-C). A second signal ends the process at once, in case
/// that something does not let go.
///
/// # Errors
/// When no signal handler can be installed.
pub fn on_signal() -> std::io::Result<CancellationToken> {
    let token = CancellationToken::new();
    let mut signals = Signals::new()?;
    let cancelled = token.clone();
    tokio::spawn(async move {
        let signal = signals.next().await;
        tracing::info!(signal, "shutting down");
        cancelled.cancel();
        tokio::time::sleep(ONE_SIGNAL).await;
        let Ok(mut signals) = Signals::new() else { return };
        let signal = signals.next().await;
        tracing::warn!(signal, "second signal: ending at once");
        std::process::exit(1);
    });
    Ok(token)
}

#[cfg(unix)]
struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

#[cfg(unix)]
impl Signals {
    fn new() -> std::io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

#[cfg(not(unix))]
struct Signals(tokio::signal::windows::CtrlC);

#[cfg(not(unix))]
impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self(tokio::signal::windows::ctrl_c()?))
    }

    async fn next(&mut self) -> &'static str {
        self.0.recv().await;
        "Ctrl-C"
    }
}
