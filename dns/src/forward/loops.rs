//! Finds upstreams whose queries come back to us, directly or over others, and has them left alone.
//!
//! Each upstream is asked for a name that nobody else can know. When we are asked for it, the upstream has passed it on to
//! us. CoreDNS ends itself then; here only that upstream is refused, and looked at again from time to time.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::exchange::Asked;
use super::pool::Pool;
use super::upstream::Upstream;
use crate::answer::Question;

/// HINFO (RFC 1035), which nobody asks for: what CoreDNS uses.
const TYPE_HINFO: u16 = 13;
/// How often upstreams that loop are looked at again.
pub const AGAIN: Duration = Duration::from_secs(30);

/// Upstreams by the name that they were asked for.
type Asking = HashMap<Box<[u8]>, Arc<Upstream>>;

/// The names that upstreams were asked for.
#[derive(Clone, Debug, Default)]
pub struct Loops(Arc<Mutex<Asking>>);

// === impl Loops ===

impl Loops {
    /// Whether a question is one of ours that came back. Its upstream is refused from now on.
    pub fn recognise(&self, question: &Question) -> bool {
        if question.qtype != TYPE_HINFO {
            return false;
        }
        let Some(upstream) = self.lock().get(question.name.lower()).cloned() else {
            return false;
        };
        if upstream.set_looping(true) {
            tracing::error!(
                upstream = %upstream.target,
                "queries to this upstream come back to us: it is not asked any more; name another upstream, or the \
                 resolv.conf of the node (with systemd-resolved /run/systemd/resolve/resolv.conf)"
            );
        }
        true
    }

    /// Looks at every upstream of a pool once.
    pub async fn check(&self, pool: &Pool) {
        for upstream in pool.upstreams().iter() {
            let name = secret();
            self.lock().insert(name.clone(), upstream.clone());
            let asked = Asked {
                name: name.clone(),
                qtype: TYPE_HINFO,
                dnssec_ok: false,
                checking_disabled: false,
                recursion_desired: true,
            };
            let before = upstream.is_looping();
            upstream.set_looping(false);
            pool.whisper(upstream, &asked).await;
            self.lock().remove(&name);
            if before && !upstream.is_looping() {
                tracing::info!(upstream = %upstream.target, "queries to this upstream no longer come back");
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Asking> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A name of two random labels, in wire form and lower case.
fn secret() -> Box<[u8]> {
    let mut wire = Vec::new();
    for _ in 0..2 {
        let label = format!("{:019}", rand::random::<u64>() >> 1);
        wire.push(label.len() as u8);
        wire.extend_from_slice(label.as_bytes());
    }
    wire.push(0);
    wire.into()
}
