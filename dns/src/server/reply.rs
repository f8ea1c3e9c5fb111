//! Answers to single messages, whatever stream they came in.

use std::cell::RefCell;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use super::Shared;
use crate::answer::edns::MAX_TCP;
use crate::answer::transfer::Transfer;
use crate::answer::{Answered, Client, Completion, Forward, Question, Transport, Verdict};
use crate::forward::{Forwarder, Slot};
use crate::metrics::{Observed, Tally};
use crate::rules::ruled;

thread_local! {
    /// The largest response fits; what is sent is copied out.
    static RESPONSE: RefCell<Vec<u8>> = RefCell::new(vec![0; MAX_TCP]);
}

/// Answers messages and counts them.
#[derive(Clone)]
pub(super) struct Answerer {
    pub(super) shared: Shared,
    pub(super) tally: Arc<Tally>,
}

/// What becomes of a message.
pub(super) enum Reply {
    /// The response.
    Message(Vec<u8>),
    /// Upstreams must be asked: see [`Answerer::forward`].
    Forward(Box<Forward>),
    /// Several messages.
    Transfer(Box<Transfer>),
    /// The message is no query, or a rule says that it gets no reply.
    Nothing,
}

// === impl Answerer ===

impl Answerer {
    /// What can be said at once.
    pub(super) fn reply(&self, query: &[u8], peer: IpAddr, begun: Instant) -> Reply {
        let client = Client {
            transport: Transport::Tcp,
            address: peer,
            rotation: rand::random(),
            now: super::now(),
        };
        let snapshot = self.shared.zone.load();
        let rules = self.shared.rules.load();
        let mut question = Question::default();
        let mut answer = |buffer: &mut [u8]| ruled(rules.as_deref(), &mut question, query, &snapshot, &client, buffer);
        RESPONSE.with_borrow_mut(|buffer| match answer(buffer) {
            Verdict::Answer(Answered { length, zone }) => {
                let reply = buffer.get(..length).unwrap_or_default();
                self.observe(peer, zone, query.len(), reply, begun);
                Reply::Message(reply.to_vec())
            }
            Verdict::Forward(forward) => Reply::Forward(forward),
            Verdict::Transfer(transfer) => Reply::Transfer(transfer),
            Verdict::Drop => Reply::Nothing,
        })
    }

    /// What upstreams say; `request` is the length of the query.
    pub(super) async fn forward(&self, forward: &Forward, peer: IpAddr, request: usize, begun: Instant) -> Vec<u8> {
        let forwarder = &self.shared.forwarder;
        let cached = RESPONSE.with_borrow_mut(|buffer| {
            let length = forwarder.cached(forward, Transport::Tcp, buffer)?;
            buffer.get(..length).map(<[u8]>::to_vec)
        });
        let reply = match cached.filter(|_| forward.completion.is_none()) {
            Some(reply) => reply,
            None => match forwarder.slot(forward) {
                Some(slot) => resolve(forwarder, forward, Transport::Tcp, slot).await,
                None => forwarder.overloaded(&forward.question, Transport::Tcp),
            },
        };
        self.observe(peer, None, request, &reply, begun);
        reply
    }

    /// The one response to a message, where a transport has room for one only.
    pub(super) async fn whole(&self, query: &[u8], peer: IpAddr) -> Option<Vec<u8>> {
        let begun = Instant::now();
        match self.reply(query, peer, begun) {
            Reply::Message(reply) => Some(reply),
            Reply::Forward(forward) => Some(self.forward(&forward, peer, query.len(), begun).await),
            Reply::Transfer(transfer) => Some(transfer.refused()),
            Reply::Nothing => None,
        }
    }

    pub(super) fn observe(&self, peer: IpAddr, zone: Option<u8>, request: usize, response: &[u8], begun: Instant) {
        self.tally.observe(&Observed {
            transport: Transport::Tcp,
            v6: peer.is_ipv6(),
            zone,
            request,
            response,
            took: begun.elapsed(),
        });
        if let Some(rules) = self.shared.rules.load().as_deref() {
            rules.log(peer, Transport::Tcp, request, response, begun.elapsed());
        }
    }
}

/// Asks upstreams, and for a name that is completed one after the other until one exists.
pub(super) async fn resolve(forwarder: &Forwarder, forward: &Forward, transport: Transport, slot: Slot) -> Vec<u8> {
    let Some(Completion { targets, otherwise }) = &forward.completion else {
        return forwarder.resolve(forward, transport, slot).await;
    };
    let mut slot = Some(slot);
    for step in targets.iter().map(|target| forward.towards(target)) {
        let Some(slot) = slot.take().or_else(|| forwarder.slot(&step)) else {
            return forwarder.overloaded(&forward.question, transport);
        };
        let reply = forwarder.resolve(&step, transport, slot).await;
        if reply.get(3).is_none_or(|flags| flags & 15 != NXDOMAIN) {
            return reply;
        }
    }
    otherwise.clone()
}

const NXDOMAIN: u8 = 3;
