//! A daemon of the lab: a real program in a namespace, known to be ready, that can be ended and started again.

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::probe::http;
use crate::process::{Place, Process, wait_until};

/// How long a daemon may take to program everything, on a machine that does much else.
const PATIENCE: Duration = Duration::from_secs(60);

/// What to run and how to see that it is ready.
#[derive(Debug, Clone)]
pub struct DaemonSpec {
    /// The name in messages and of the log file.
    pub name: String,
    /// Where it lives.
    pub place: Place,
    /// The program.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<OsString>,
    /// A page, as seen from the daemon's own namespace, that answers 200 once the daemon is ready.
    pub ready_url: String,
    /// The log file.
    pub log: PathBuf,
}

/// A daemon that was started. Dropping it kills it.
#[derive(Debug)]
pub struct Daemon {
    spec: DaemonSpec,
    process: Mutex<Option<Process>>,
}

// === impl Daemon ===

impl Daemon {
    /// Starts the daemon; [`Daemon::wait_ready`] says when it is ready, so that many can start at once.
    ///
    /// # Errors
    /// When the program cannot be started.
    pub fn start(spec: DaemonSpec) -> Result<Self> {
        let daemon = Self {
            spec,
            process: Mutex::new(None),
        };
        daemon.start_again()?;
        Ok(daemon)
    }

    /// The name it was started with.
    pub fn name(&self) -> &str {
        &self.spec.name
    }

    /// Waits until the readiness page answers 200.
    ///
    /// # Errors
    /// When the daemon ends or is not ready in time; the message holds the end of its log.
    pub fn wait_ready(&self) -> Result<()> {
        let mut last = String::from("nobody answered");
        let up = wait_until(PATIENCE, || {
            let url = self.spec.ready_url.clone();
            match self.spec.place.netns.run(move || get(&url)) {
                Ok(page) if page.status == 200 => return true,
                Ok(page) => last = format!("status {}: {}", page.status, page.body.trim()),
                Err(error) => last = format!("{error:#}"),
            }
            self.ended()
        });
        if up && !self.ended() {
            return Ok(());
        }
        bail!(
            "{} is not ready ({}: {last})\n{}",
            self.spec.name,
            self.spec.ready_url,
            self.log_tail(30)
        );
    }

    /// Whether the process is gone.
    pub fn ended(&self) -> bool {
        self.lock().as_ref().is_none_or(|process| process.ended().is_some())
    }

    /// Kills it with SIGKILL.
    pub fn kill(&self) {
        if let Some(process) = self.lock().take() {
            process.kill();
        }
    }

    /// Ends it with SIGTERM.
    ///
    /// # Errors
    /// When it does not end within ten seconds (it is killed then).
    pub fn terminate(&self) -> Result<()> {
        let process = self
            .lock()
            .take()
            .with_context(|| format!("{} does not run", self.spec.name))?;
        let ended = process.terminate(Duration::from_secs(10));
        ended
            .map(drop)
            .with_context(|| format!("{} ignored SIGTERM for 10 s", self.spec.name))
    }

    /// Starts it again after it was ended.
    ///
    /// # Errors
    /// When the program cannot be started.
    pub fn start_again(&self) -> Result<()> {
        let mut command = self.spec.place.command(&self.spec.program);
        command.args(&self.spec.args);
        *self.lock() = Some(Process::start(&self.spec.name, command, &self.spec.log)?);
        Ok(())
    }

    /// The last lines of its log, under a heading.
    pub fn log_tail(&self, lines: usize) -> String {
        match self.lock().as_ref() {
            Some(process) => process.log_tail(lines),
            None => format!(
                "--- {} does not run; its log is {}\n",
                self.spec.name,
                self.spec.log.display()
            ),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Process>> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Fetches a page from the calling thread's namespace.
///
/// # Errors
/// When nobody answers in HTTP.
pub fn get(url: &str) -> Result<http::Response> {
    http::get(&http::Options {
        url: url.to_owned(),
        timeout_ms: 2000,
    })
}
