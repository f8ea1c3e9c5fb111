//! The answer of `portolan-proxy explain`, as text and as JSON, from manifests or from the running daemon.

use std::net::{IpAddr, SocketAddr};

use portolan_plan::{Explanation, Outcome, Verdict};
use serde::{Deserialize, Serialize};

use crate::backend::Inspection;

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Answer {
    /// Who opens the connection.
    pub from: IpAddr,
    /// What that is to the node.
    pub source: String,
    /// Where to.
    pub to: SocketAddr,
    /// `tcp`, `udp` or `sctp`.
    pub protocol: String,
    /// The Service that takes it, as NAMESPACE/NAME.
    pub service: Option<String>,
    /// The Service port's name.
    pub port: Option<String>,
    /// What the destination is to the Service: `cluster IP`, `node port`, ...
    pub frontend: Option<String>,
    /// What happens.
    pub verdict: Decision,
    /// The same in a sentence.
    pub reason: String,
    /// The source becomes the node's address.
    pub masquerade: bool,
    /// Endpoints that are chosen from.
    pub chosen: Vec<SocketAddr>,
    /// All endpoints of the port.
    pub endpoints: Vec<Candidate>,
    /// How long the client stays with its endpoint, in seconds.
    pub affinity_seconds: Option<u32>,
    /// What a user should know.
    pub notes: Vec<String>,
    /// What the kernel holds, when it was asked.
    pub kernel: Option<Inspection>,
    /// All of it as text.
    pub text: String,
}

/// What happens to a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "the words of portolan_plan::Outcome")]
pub enum Decision {
    Forward,
    Reject,
    Drop,
    NotOurs,
}

/// An endpoint, and why it is chosen from or not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Candidate {
    /// Its address and port.
    pub address: SocketAddr,
    /// The node that it runs on.
    pub node: Option<String>,
    /// It is chosen from.
    pub chosen: bool,
    /// Why, or why not.
    pub reason: String,
}

impl Answer {
    /// Puts an explanation into words, with what the kernel holds if it was asked.
    pub fn new(explanation: &Explanation, kernel: Option<Inspection>) -> Self {
        let mut text = explanation.to_string();
        if let Some(kernel) = &kernel {
            kernel
                .found
                .iter()
                .for_each(|line| text.push_str(&format!("kernel:   {line}\n")));
            match kernel.differences.as_slice() {
                [] => text.push_str("kernel:   agrees\n"),
                differences => differences
                    .iter()
                    .for_each(|line| text.push_str(&format!("kernel:   DIFFERS: {line}\n"))),
            }
        }
        let (verdict, masquerade, chosen) = match &explanation.outcome {
            Outcome::Verdict(Verdict::Forward { masquerade, .. }, chosen) => {
                (Decision::Forward, *masquerade, &**chosen)
            }
            Outcome::Verdict(Verdict::Reject, _) | Outcome::UnlistedPort => (Decision::Reject, false, &[][..]),
            Outcome::Verdict(Verdict::Drop, _) | Outcome::OutsideSourceRanges | Outcome::Unallocated => {
                (Decision::Drop, false, &[][..])
            }
            Outcome::NotOurs => (Decision::NotOurs, false, &[][..]),
        };
        let candidate =
            |(address, node, membership): &(SocketAddr, Option<String>, portolan_plan::Membership)| Candidate {
                address: *address,
                node: node.clone(),
                chosen: membership.is_in(),
                reason: membership.reason().into(),
            };
        let frontend = explanation.frontend.as_ref();
        Self {
            from: explanation.packet.from,
            source: explanation.source.to_string(),
            to: explanation.packet.to,
            protocol: explanation.packet.protocol.lower().into(),
            service: frontend.map(|(service, _, _)| service.to_string()),
            port: frontend.map(|(_, port, _)| port.to_string()),
            frontend: frontend.map(|(_, _, frontend)| frontend.kind.to_string()),
            verdict,
            reason: explanation.outcome.to_string(),
            masquerade,
            chosen: chosen.iter().map(|backend| backend.address).collect(),
            endpoints: explanation.endpoints.iter().map(candidate).collect(),
            affinity_seconds: explanation.affinity_seconds,
            notes: explanation.notes.clone(),
            kernel,
            text,
        }
    }

    /// Whether the kernel was asked and does not hold what was planned.
    pub fn differs(&self) -> bool {
        self.kernel
            .as_ref()
            .is_some_and(|kernel| !kernel.differences.is_empty())
    }
}
