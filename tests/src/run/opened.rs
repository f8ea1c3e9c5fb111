//! Connections and traffic that a scenario opens in one step and looks at in a later one.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdout, Command};

use anyhow::{Context as _, Result, ensure};

use crate::probe::Report;
use crate::probe::hold::Exchange;

/// Something that was opened. Dropping it ends it.
#[derive(Debug)]
pub(super) struct Opened {
    child: Child,
    out: BufReader<ChildStdout>,
    kind: Kind,
}

/// How it was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// One connection, tried again at each look.
    Connection,
    /// New connections all the time, reported at the first look.
    Traffic,
}

// === impl Kind ===

impl Kind {
    /// The probe's command and flags.
    pub(super) fn args(self) -> &'static [&'static str] {
        match self {
            Self::Connection => &["hold"],
            Self::Traffic => &["connect", "--keep-going", "--until-stdin-closes", "2", "--count", "50"],
        }
    }
}

// === impl Opened ===

impl Opened {
    /// Starts the probe; a connection has to be answered once before it counts as opened.
    pub(super) fn start(command: &mut Command, kind: Kind) -> Result<Self> {
        let mut child = command.spawn().context("the probe cannot be started")?;
        let out = BufReader::new(child.stdout.take().context("the probe has no output")?);
        let mut opened = Self { child, out, kind };
        if kind == Kind::Connection {
            let first = opened.read_line()?;
            let first: Exchange = serde_json::from_str(&first).with_context(|| format!("the probe said {first:?}"))?;
            ensure!(
                matches!(first, Exchange::Answer(_)),
                "the connection could not be opened: {first:?}"
            );
        }
        Ok(opened)
    }

    pub(super) fn kind(&self) -> Kind {
        self.kind
    }

    /// Tries the connection once more.
    pub(super) fn exchange(&mut self) -> Result<Exchange> {
        let stdin = self.child.stdin.as_mut().context("the connection was closed")?;
        // A probe that has ended cannot be asked; what it said last tells why.
        stdin.write_all(b"again\n").context("the probe has ended")?;
        let line = self.read_line()?;
        serde_json::from_str(&line).with_context(|| format!("the probe said {line:?}"))
    }

    /// Ends traffic and returns all that it saw.
    pub(super) fn finish(&mut self) -> Result<Report> {
        drop(self.child.stdin.take());
        let line = self.read_line()?;
        serde_json::from_str(&line).with_context(|| format!("the probe said {line:?}"))
    }

    fn read_line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.out.read_line(&mut line)?;
        Ok(line)
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
