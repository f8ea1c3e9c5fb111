//! Which endpoint a new connection gets.
//!
//! The same for every hook: who the client is and where it wants to go come in, an [`Outcome`] comes out.

use aya_ebpf::helpers::{bpf_get_prandom_u32, bpf_ktime_get_ns};
use portolan_abi::{
    Address, AffinityKey, AffinityValue, Backend, BackendKey, Counters, FlowValue, Frontend, FrontendKey, MemberKey,
    Route, address, frontend, scope, verdict,
};

use crate::maps::{ADDRESSES, AFFINITY, BACKENDS, ENDPOINT_COUNTERS, FRONTENDS, MEMBERS, PORT_COUNTERS, SETS};

/// How often a reader looks again when the daemon changed something under it.
const ROUNDS: u32 = 4;
const NANOSECONDS: u64 = 1_000_000_000;

/// Where a connection wants to go.
#[derive(Clone, Copy)]
pub struct Destination {
    /// Address.
    pub address: Address,
    /// Port, network byte order.
    pub port: u16,
    /// Protocol.
    pub protocol: u8,
}

/// What is known of a destination.
pub enum Found {
    /// Not a Service's: nothing is done.
    Foreign,
    /// A live cluster IP, but no Service's port.
    Unlisted,
    /// A frontend.
    Frontend(Frontend),
}

/// Looks a destination up. `scope` tells whose socket or packet it is.
#[inline(always)]
pub fn find(to: &Destination, from: usize) -> Found {
    // SAFETY: the value is one word, which is read whole.
    let Some(&flags) = (unsafe { ADDRESSES.get(to.address) }) else {
        return Found::Foreign;
    };
    if flags & address::LOOPBACK != 0 && from != scope::NODE {
        return Found::Foreign;
    }
    let mut key = FrontendKey {
        address: to.address,
        port: to.port,
        protocol: to.protocol,
        zero: 0,
    };
    if flags & address::SERVICE != 0 {
        if let Some(frontend) = frontend(&key) {
            return Found::Frontend(frontend);
        }
    }
    if flags & address::NODE_PORT != 0 {
        key.address = to.address.unspecified();
        if let Some(frontend) = frontend(&key) {
            return Found::Frontend(frontend);
        }
    }
    if flags & address::CLUSTER_IP != 0 {
        return Found::Unlisted;
    }
    Found::Foreign
}

#[inline(always)]
fn frontend(key: &FrontendKey) -> Option<Frontend> {
    for _ in 0..ROUNDS {
        // SAFETY: an element that was reused while it was read does not have the right sum.
        let frontend = *(unsafe { FRONTENDS.get(key) }?);
        if frontend.check == frontend.sum(key) {
            return Some(frontend);
        }
    }
    None
}

/// What is done with a connection.
pub enum Outcome {
    /// It goes on as it is: per-packet rules decide.
    Pass,
    /// It is refused.
    Refuse,
    /// It goes to this endpoint.
    Forward(Backend),
}

/// Chooses for a client. `client` is its key for affinity.
#[inline(always)]
pub fn choose(frontend: &Frontend, route: &Route, client: &AffinityKey) -> Outcome {
    if frontend.flags & (frontend::RESTRICTED | frontend::MASQUERADED) != 0 {
        return Outcome::Pass;
    }
    match route.verdict {
        verdict::FORWARD => {}
        verdict::REJECT => {
            count_refused(frontend.port);
            return Outcome::Refuse;
        }
        _ => return Outcome::Pass,
    }
    if frontend.affinity_seconds == 0 {
        return pick(frontend, route);
    }
    // SAFETY: plain helper call.
    let now = unsafe { bpf_ktime_get_ns() };
    if let Some(backend) = remembered(frontend, route, client, now) {
        return Outcome::Forward(backend);
    }
    let outcome = pick(frontend, route);
    if let Outcome::Forward(backend) = &outcome {
        let value = AffinityValue {
            last: now,
            address: backend.address,
            port: backend.port,
            zero: 0,
            id: backend.id,
        };
        // Without a place the client is not remembered, which the next connection mends.
        let _ = AFFINITY.insert(client, value, 0);
    }
    outcome
}

#[inline(always)]
fn remembered(frontend: &Frontend, route: &Route, client: &AffinityKey, now: u64) -> Option<Backend> {
    let known = AFFINITY.get_ptr_mut(client)?;
    // SAFETY: the pointer is an element of the map. One that is reused meanwhile names an endpoint with its id, and the
    // check of the membership below does not take a mixture of two.
    let value = unsafe { *known };
    if now.wrapping_sub(value.last) > u64::from(frontend.affinity_seconds) * NANOSECONDS {
        return None;
    }
    let key = MemberKey {
        set: route.set,
        port: value.port,
        zero: 0,
        address: value.address,
    };
    // SAFETY: the value is one word, which is read whole.
    let member = *(unsafe { MEMBERS.get(key) }?);
    if member.id != value.id {
        return None;
    }
    // SAFETY: as above; one word is written.
    unsafe { (*known).last = now };
    Some(Backend {
        address: value.address,
        port: value.port,
        zero: 0,
        id: value.id,
        counter: member.counter,
        check: 0,
    })
}

/// Whether the endpoint of a flow is in a set.
#[inline(always)]
pub fn is_member(set: u32, flow: &FlowValue) -> bool {
    let key = MemberKey {
        set,
        port: flow.port,
        zero: 0,
        address: flow.address,
    };
    // SAFETY: the value is one word, which is read whole.
    unsafe { MEMBERS.get(key) }.is_some_and(|member| member.id == flow.id)
}

#[inline(always)]
fn pick(frontend: &Frontend, route: &Route) -> Outcome {
    for _ in 0..ROUNDS {
        let Some(set) = SETS.get(route.set) else {
            return Outcome::Pass;
        };
        let count = set.count;
        if count == 0 {
            // The daemon is about to say so in the frontend as well.
            count_refused(frontend.port);
            return Outcome::Refuse;
        }
        // SAFETY: plain helper call.
        let random = u64::from(unsafe { bpf_get_prandom_u32() });
        let key = BackendKey {
            set: route.set,
            slot: (random * u64::from(count) >> 32) as u32,
        };
        // A miss: the set has just become smaller.
        // SAFETY: an element that was reused while it was read does not have the right sum.
        if let Some(&backend) = unsafe { BACKENDS.get(key) }
            && backend.check == backend.sum(&key)
        {
            return Outcome::Forward(backend);
        }
    }
    Outcome::Pass
}

/// Counts a connection of a Service port and of an endpoint.
#[inline(always)]
pub fn count_connection(port: u32, endpoint: u32) {
    if let Some(counters) = PORT_COUNTERS.get_ptr_mut(port) {
        add(counters, |counters| &mut counters.connections);
    }
    if let Some(counters) = ENDPOINT_COUNTERS.get_ptr_mut(endpoint) {
        add(counters, |counters| &mut counters.connections);
    }
}

#[inline(always)]
fn count_refused(port: u32) {
    if let Some(counters) = PORT_COUNTERS.get_ptr_mut(port) {
        add(counters, |counters| &mut counters.refused);
    }
}

#[inline(always)]
fn add(counters: *mut Counters, which: impl Fn(&mut Counters) -> &mut u64) {
    // SAFETY: an element of a per-processor array; a program that interrupts this one may make it lose a count.
    let counter = which(unsafe { &mut *counters });
    *counter = counter.wrapping_add(1);
}
