//! What a server block says about a query before the cluster's names and upstreams are looked at: under which name it is
//! asked (`rewrite`), and what is answered from a pattern (`template`) or a file (`hosts`). The order is CoreDNS's. Who may
//! ask is decided before that, by the zone's policy.
//!
//! Without such plugins nothing of this costs anything.

pub mod hosts;
pub mod rewrite;
pub mod template;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::Message;

use crate::answer::parse::{HEADER, Parsed, parse, u16_at};
use crate::answer::{Answered, Client, Question, Transport, Verdict, answer_with, slow, truncate};
use crate::corefile::plugins::log::{Class, Log};
use crate::corefile::plugins::rewrite::Rewrite;
use crate::corefile::plugins::template::Template;
use crate::forward::route::inside;
use crate::metrics::RCODES;
use crate::zone::Snapshot;
use crate::zone::names::Name;
use crate::zone::policy::AclAction;
use hosts::Hosts;
pub use rewrite::Undo;

/// The rules of a server block.
#[derive(Debug, Default)]
pub struct Block {
    /// Its zone in wire form and lower case.
    pub zone: Box<[u8]>,
    /// Under which name.
    pub rewrites: Vec<Rewrite>,
    /// Answers from a pattern.
    pub templates: Vec<Template>,
    /// Answers from files.
    pub hosts: Vec<Arc<Hosts>>,
    /// What is logged.
    pub log: Vec<Log>,
}

/// The rules of all server blocks of a listener, the longest zone first.
#[derive(Debug, Default)]
pub struct Rules {
    blocks: Vec<Block>,
}

/// What the rules make of a query.
enum Ruled {
    /// It is answered as it stands.
    Pass,
    /// This is the answer.
    Answer(Box<Message>),
    /// It is asked under another name.
    Other(Vec<u8>, Box<Undo>),
}

// === impl Rules ===

impl Rules {
    /// The rules of blocks in any order; `None` when none says anything.
    pub fn new(mut blocks: Vec<Block>) -> Option<Self> {
        blocks.sort_by_key(|block| std::cmp::Reverse(block.zone.len()));
        let silent = |block: &Block| {
            block.rewrites.is_empty() && block.templates.is_empty() && block.hosts.is_empty() && block.log.is_empty()
        };
        (!blocks.iter().all(silent)).then_some(Self { blocks })
    }

    fn block(&self, name: &Name) -> Option<&Block> {
        self.blocks.iter().find(|block| inside(name, &block.zone))
    }

    /// Whether a response is to be logged.
    fn logs(&self, name: &Name, rcode: u8, answers: usize) -> bool {
        let Some(block) = self.block(name) else { return false };
        let class = match (rcode, answers) {
            (0, 1..) => Class::Success,
            (0, 0) | (3, _) => Class::Denial,
            _ => Class::Error,
        };
        block.log.iter().any(|log| {
            let zones = log.zones.is_empty() || log.zones.iter().any(|zone| inside(name, zone));
            zones && (log.classes.is_empty() || log.classes.contains(&class))
        })
    }

    /// Writes a line for a response that is to be logged, with the fields of CoreDNS's common format.
    pub fn log(&self, peer: IpAddr, transport: Transport, request: usize, response: &[u8], took: Duration) {
        if self.blocks.iter().all(|block| block.log.is_empty()) {
            return;
        }
        let Some(header) = response.first_chunk::<HEADER>() else {
            return;
        };
        let Ok((name, end)) = Name::read(response, HEADER) else {
            return;
        };
        let (rcode, answers) = (header[3] & 15, u16_at(header, 6).unwrap_or(0));
        if !self.logs(&name, rcode, answers.into()) {
            return;
        }
        let type_ = hickory_proto::rr::RecordType::from(u16_at(response, end).unwrap_or(0));
        let id = u16_at(header, 0).unwrap_or(0);
        let proto = match transport {
            Transport::Udp => "udp",
            Transport::Tcp => "tcp",
        };
        let rcode = RCODES.get(usize::from(rcode)).unwrap_or(&"");
        tracing::info!(
            "{peer} - {id} \"{type_} IN {} {proto} {request}\" {rcode} {} {:.9}s",
            crate::zone::names::text(name.sent()),
            response.len(),
            took.as_secs_f64()
        );
    }

    fn judge(&self, question: &Question) -> Ruled {
        let Some(block) = self.block(&question.name) else {
            return Ruled::Pass;
        };
        let Some((name, undo)) = rewrite::apply(&block.rewrites, &question.name) else {
            return block
                .made(question)
                .map_or(Ruled::Pass, |message| Ruled::Answer(Box::new(message)));
        };
        let other = Question {
            name,
            ..question.clone()
        };
        // The new name may lie in another block, as far as answers go; that block's rules are not asked again.
        let made = self.block(&other.name).and_then(|block| block.made(&other));
        match (made, slow::query(&other)) {
            (Some(mut message), _) => {
                undo.message(&mut message);
                Ruled::Answer(Box::new(message))
            }
            (None, Some(bytes)) => Ruled::Other(bytes, Box::new(undo)),
            (None, None) => Ruled::Pass,
        }
    }
}

// === impl Block ===

impl Block {
    /// The answer of a template or a file.
    fn made(&self, question: &Question) -> Option<Message> {
        let template = self
            .templates
            .iter()
            .find_map(|template| template::answer(template, question));
        template.or_else(|| self.hosts.iter().find_map(|hosts| hosts.answer(question)))
    }
}

/// Answers one query by the rules, the zone, or says that it must be asked upstream: [`answer_with`] with rules before it.
pub fn ruled(
    rules: Option<&Rules>,
    space: &mut Question,
    query: &[u8],
    snapshot: &Snapshot,
    client: &Client,
    out: &mut [u8],
) -> Verdict {
    let Some((rules, mut question)) = rules.and_then(|rules| Some((rules, question(query)?))) else {
        return answer_with(space, query, snapshot, client, out);
    };
    let policy = &snapshot.config.policy;
    if policy.verdict(&question.name, question.qtype, client.address) != AclAction::Allow {
        return answer_with(space, query, snapshot, client, out);
    }
    question.prepare(snapshot, client);
    match rules.judge(&question) {
        Ruled::Pass => answer_with(space, query, snapshot, client, out),
        Ruled::Answer(message) => {
            let limit = question.limit(client.transport).min(out.len());
            put(&truncate::encode(*message, limit), None, out)
        }
        Ruled::Other(other, undo) => match answer_with(space, &other, snapshot, client, out) {
            Verdict::Answer(answered) => {
                let limit = question.limit(client.transport).min(out.len());
                match out.get(..answered.length).and_then(|reply| undo.bytes(reply, limit)) {
                    Some(reply) => put(&reply, answered.zone, out),
                    None => Verdict::Drop,
                }
            }
            Verdict::Forward(mut forward) => {
                let limit = question.limit(client.transport).min(out.len());
                if let Some(completion) = &mut forward.completion
                    && let Some(otherwise) = undo.bytes(&completion.otherwise, limit)
                {
                    completion.otherwise = otherwise;
                }
                forward.undo = Some(undo);
                Verdict::Forward(forward)
            }
            other => other,
        },
    }
}

fn put(bytes: &[u8], zone: Option<u8>, out: &mut [u8]) -> Verdict {
    let Some(place) = out.get_mut(..bytes.len()) else {
        return Verdict::Drop;
    };
    place.copy_from_slice(bytes);
    Verdict::Answer(Answered {
        length: bytes.len(),
        zone,
    })
}

/// The question of a query, also of one that only the slow path reads.
fn question(query: &[u8]) -> Option<Question> {
    let mut question = Question::default();
    match parse(query, &mut question) {
        Parsed::Plain => Some(question),
        Parsed::Ignore => None,
        Parsed::Other => slow::read_question(&Message::from_vec(query).ok()?),
    }
}

#[cfg(test)]
mod tests;
