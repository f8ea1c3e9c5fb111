//! One frontend: who wants it, and what came of it.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::sync::Arc;

use portolan_plan::FrontendKind;

use super::claim::{Claimant, FrontendKey};
use super::listener::{Closing, Listener};
use super::target::Target;

/// Everything about one address, port and protocol.
#[derive(Debug, Default)]
pub(super) struct Frontend {
    /// Who wants it, best first, and what it would do.
    pub(super) claims: BTreeMap<Claimant, Arc<Target>>,
    /// The loopback address in its stead, kept while nobody listens.
    pub(super) stand_in: Option<SocketAddr>,
    /// What came of it.
    pub(super) state: State,
}

/// Whether it is served.
#[derive(Debug, Default)]
pub(super) enum State {
    /// Nobody would be served, so nobody listens and the system refuses.
    #[default]
    Refusing,
    /// Someone listens.
    Open(Listener),
    /// Why not, and what can be done about it.
    Failed(String),
}

impl Frontend {
    /// What the Service that has this frontend wants.
    pub(super) fn target(&self) -> Option<Arc<Target>> {
        self.claims.values().next().cloned()
    }

    pub(super) fn is_open(&self) -> bool {
        matches!(self.state, State::Open(_))
    }

    pub(super) fn is_node_port(&self) -> bool {
        let first = self.claims.keys().next();
        first.is_some_and(|claimant| claimant.kind == FrontendKind::NodePort)
    }

    /// Begins to close the listener, if there is one.
    pub(super) fn close(&mut self) -> Option<Closing> {
        match std::mem::take(&mut self.state) {
            State::Open(listener) => Some(listener.close()),
            State::Refusing | State::Failed(_) => None,
        }
    }
}

impl State {
    pub(super) fn describe(&self, key: &FrontendKey) -> String {
        match self {
            Self::Refusing => "not listening: no endpoint, connections are refused".to_owned(),
            Self::Open(listener) if listener.at == key.address => format!("listening on {}", listener.at),
            Self::Open(listener) => {
                let ip = key.address.ip();
                format!("listening on {} ({ip} cannot be bound on this machine)", listener.at)
            }
            Self::Failed(cause) => cause.clone(),
        }
    }
}

/// The system's answer, and the way out.
pub(super) fn explain(error: &io::Error) -> String {
    let way_out = match error.kind() {
        ErrorKind::AddrInUse => "stop the program that has the port, or give the Service another",
        ErrorKind::PermissionDenied => "ports below 1024 need root or CAP_NET_BIND_SERVICE",
        _ => "it is tried again",
    };
    format!("cannot listen: {error} ({way_out})")
}
