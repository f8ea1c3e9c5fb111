//! Services at the socket: the destination is rewritten once, when a socket connects or sends.
//!
//! No packet is touched and nothing is tracked: the client talks to its endpoint directly, with its own address. What the
//! socket's owner sees stays the Service: `getpeername` and `recvmsg` put the frontend's address back.

use aya_ebpf::bindings::bpf_sock_addr;
use aya_ebpf::helpers::{bpf_get_netns_cookie, bpf_get_socket_cookie, bpf_set_retval};
use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use portolan_abi::{
    Address, AffinityKey, Backend, FlowKey, FlowValue, Frontend, ReverseKey, ReverseValue, SETS_OF_A_PORT, TCP, UDP,
    scope, set,
};

use crate::choose::{Destination, Found, Outcome, choose, count_connection, find, is_member};
use crate::maps::{FLOWS, REVERSE};

#[unsafe(no_mangle)]
static NODE_NETNS: u64 = 0;
#[unsafe(no_mangle)]
static CAN_SET_RETVAL: u8 = 0;
#[unsafe(no_mangle)]
static HOST_ONLY: u8 = 0;

/// A global that the daemon set at load time: the compiler must not know its value.
#[inline(always)]
fn global<T: Copy>(place: &T) -> T {
    // SAFETY: a reference is valid to read.
    unsafe { core::ptr::read_volatile(place) }
}

/// What a call may go on with.
const ALLOW: i32 = 1;
/// The call fails: with EPERM, or with what was set before.
const DENY: i32 = 0;
const ECONNREFUSED: i32 = 111;
/// A multipath TCP socket is a TCP socket to a Service (`IPPROTO_MPTCP`).
const MPTCP: u32 = 262;

/// The family of a hook: where in the context the address is.
trait Family {
    /// The address in the context: a destination, or whom a message came from.
    fn read(context: &SockAddrContext) -> Address;
    /// Replaces it.
    fn write(context: &SockAddrContext, address: &Address);
}

struct V4;
struct V6;

// The kernel takes accesses to the context in whole words only: volatile ones are never joined or split.

impl Family for V4 {
    #[inline(always)]
    fn read(context: &SockAddrContext) -> Address {
        // SAFETY: the context is valid while the program runs.
        Address::v4(unsafe { core::ptr::read_volatile(&raw const (*context.sock_addr).user_ip4) })
    }

    #[inline(always)]
    fn write(context: &SockAddrContext, address: &Address) {
        // SAFETY: as above.
        unsafe { core::ptr::write_volatile(&raw mut (*context.sock_addr).user_ip4, address.0[3]) }
    }
}

impl Family for V6 {
    #[inline(always)]
    fn read(context: &SockAddrContext) -> Address {
        let words = |index: usize| {
            // SAFETY: as above; the field has four words.
            unsafe { core::ptr::read_volatile((&raw const (*context.sock_addr).user_ip6).cast::<u32>().add(index)) }
        };
        Address([words(0), words(1), words(2), words(3)])
    }

    #[inline(always)]
    fn write(context: &SockAddrContext, address: &Address) {
        let place = |index: usize| {
            // SAFETY: as above.
            unsafe { (&raw mut (*context.sock_addr).user_ip6).cast::<u32>().add(index) }
        };
        // SAFETY: as above.
        unsafe {
            core::ptr::write_volatile(place(0), address.0[0]);
            core::ptr::write_volatile(place(1), address.0[1]);
            core::ptr::write_volatile(place(2), address.0[2]);
            core::ptr::write_volatile(place(3), address.0[3]);
        }
    }
}

#[inline(always)]
fn read_port(context: &SockAddrContext) -> u16 {
    // SAFETY: the context is valid while the program runs.
    (unsafe { core::ptr::read_volatile(&raw const (*context.sock_addr).user_port) }) as u16
}

#[inline(always)]
fn write_port(context: &SockAddrContext, port: u16) {
    // SAFETY: as above.
    unsafe { core::ptr::write_volatile(&raw mut (*context.sock_addr).user_port, u32::from(port)) }
}

/// The socket's protocol, when it is one that Services have here.
#[inline(always)]
fn protocol(context: &SockAddrContext) -> Option<u8> {
    // SAFETY: as above.
    match unsafe { core::ptr::read_volatile(&raw const (*context.sock_addr).protocol) } {
        protocol if protocol == u32::from(TCP) || protocol == MPTCP => Some(TCP),
        protocol if protocol == u32::from(UDP) => Some(UDP),
        _ => None,
    }
}

#[inline(always)]
fn pointer(context: &SockAddrContext) -> *mut core::ffi::c_void {
    let pointer: *mut bpf_sock_addr = context.sock_addr;
    pointer.cast()
}

#[inline(always)]
fn socket_cookie(context: &SockAddrContext) -> u64 {
    // SAFETY: a helper for this kind of context.
    unsafe { bpf_get_socket_cookie(pointer(context)) }
}

/// Fails the call as the network would: connection refused, where the kernel lets a program say so.
#[inline(always)]
fn refuse() -> i32 {
    if global(&CAN_SET_RETVAL) != 0 {
        // SAFETY: a helper for this kind of program, which the daemon has tried.
        unsafe { bpf_set_retval(-ECONNREFUSED) };
    }
    DENY
}

/// Whose socket it is, and the cookie of its network namespace.
#[inline(always)]
fn source(context: &SockAddrContext) -> (usize, u64) {
    // SAFETY: helpers for this kind of context; without one the cookie of the machine's first namespace comes.
    let (netns, first) = unsafe {
        (
            bpf_get_netns_cookie(pointer(context)),
            bpf_get_netns_cookie(core::ptr::null_mut()),
        )
    };
    let node = global(&NODE_NETNS);
    let is_node = netns == node || node == 0 && netns == first;
    (if is_node { scope::NODE } else { scope::POD }, netns)
}

#[inline(always)]
fn decide(frontend: &Frontend, from: usize, netns: u64) -> Outcome {
    // A constant index each: the verifier need not prove anything.
    let route = if from == scope::NODE {
        frontend.routes[scope::NODE]
    } else {
        frontend.routes[scope::POD]
    };
    choose(frontend, &route, &AffinityKey::of_netns(netns, frontend.port))
}

/// Sends the socket to the endpoint, and notes what its owner believes to talk to.
#[inline(always)]
fn redirect<F: Family>(context: &SockAddrContext, to: &Destination, frontend: &Frontend, backend: &Backend) {
    let key = ReverseKey {
        cookie: socket_cookie(context),
        address: backend.address,
        port: backend.port,
        protocol: to.protocol,
        zero: [0; 5],
    };
    let value = ReverseValue {
        address: to.address,
        port: to.port,
        zero: 0,
        service_port: frontend.port,
    };
    // Without a place for it the connection works all the same, and its owner sees the endpoint.
    let _ = REVERSE.insert(key, value, 0);
    F::write(context, &backend.address);
    write_port(context, backend.port);
    count_connection(frontend.port, backend.counter);
}

#[inline(always)]
fn connect<F: Family>(context: &SockAddrContext) -> i32 {
    let Some(protocol) = protocol(context) else {
        return ALLOW;
    };
    let to = Destination {
        address: F::read(context),
        port: read_port(context),
        protocol,
    };
    let (from, netns) = source(context);
    if global(&HOST_ONLY) != 0 && from != scope::NODE {
        return ALLOW;
    }
    let frontend = match find(&to, from) {
        Found::Foreign => return ALLOW,
        Found::Unlisted => return refuse(),
        Found::Frontend(frontend) => frontend,
    };
    match decide(&frontend, from, netns) {
        Outcome::Pass => ALLOW,
        Outcome::Refuse => refuse(),
        Outcome::Forward(backend) => {
            redirect::<F>(context, &to, &frontend, &backend);
            ALLOW
        }
    }
}

/// A datagram of a socket that is not connected: the flow to a frontend stays with its endpoint while that one serves.
#[inline(always)]
fn sendmsg<F: Family>(context: &SockAddrContext) -> i32 {
    // Only UDP sockets come here, and to a UDP-Lite one no Service answers.
    let Some(protocol) = protocol(context) else {
        return ALLOW;
    };
    let to = Destination {
        address: F::read(context),
        port: read_port(context),
        protocol,
    };
    let (from, netns) = source(context);
    if global(&HOST_ONLY) != 0 && from != scope::NODE {
        return ALLOW;
    }
    let frontend = match find(&to, from) {
        Found::Foreign => return ALLOW,
        Found::Unlisted => return refuse(),
        Found::Frontend(frontend) => frontend,
    };
    let key = FlowKey {
        cookie: socket_cookie(context),
        address: to.address,
        port: to.port,
        zero: [0; 3],
    };
    if let Some(flow) = flow(&frontend, &key) {
        F::write(context, &flow.address);
        write_port(context, flow.port);
        return ALLOW;
    }
    match decide(&frontend, from, netns) {
        Outcome::Pass => ALLOW,
        Outcome::Refuse => refuse(),
        Outcome::Forward(backend) => {
            let value = FlowValue {
                address: backend.address,
                port: backend.port,
                zero: 0,
                id: backend.id,
            };
            // Without a place for it the next datagram may go to another endpoint.
            let _ = FLOWS.insert(key, value, 0);
            redirect::<F>(context, &to, &frontend, &backend);
            ALLOW
        }
    }
}

/// The endpoint of a flow, while it serves. The answer's way back is looked up as well: it may have been forgotten.
#[inline(always)]
fn flow(frontend: &Frontend, key: &FlowKey) -> Option<FlowValue> {
    // SAFETY: an element that is reused meanwhile names an endpoint with its id, and the check of the membership does not
    // take a mixture of two.
    let flow = *(unsafe { FLOWS.get(key) }?);
    if !is_member(frontend.port * SETS_OF_A_PORT + set::SERVING, &flow) {
        return None;
    }
    let reverse = ReverseKey {
        cookie: key.cookie,
        address: flow.address,
        port: flow.port,
        protocol: UDP,
        zero: [0; 5],
    };
    // SAFETY: only looked at for being there.
    unsafe { REVERSE.get(reverse) }.map(|_| flow)
}

/// Puts the frontend's address where the endpoint's stands.
#[inline(always)]
fn restore<F: Family>(context: &SockAddrContext) -> i32 {
    if let Some(protocol) = protocol(context) {
        let key = ReverseKey {
            cookie: socket_cookie(context),
            address: F::read(context),
            port: read_port(context),
            protocol,
            zero: [0; 5],
        };
        // SAFETY: an element is reused only when the least recently used ones are forgotten; a socket would see the address
        // of another Service in one call.
        if let Some(&value) = unsafe { REVERSE.get(key) } {
            F::write(context, &value.address);
            write_port(context, value.port);
        }
    }
    ALLOW
}

/// `connect` on an IPv4 socket.
#[cgroup_sock_addr(connect4)]
pub fn connect4(context: SockAddrContext) -> i32 {
    connect::<V4>(&context)
}

/// `connect` on an IPv6 socket, also to an IPv4 address.
#[cgroup_sock_addr(connect6)]
pub fn connect6(context: SockAddrContext) -> i32 {
    connect::<V6>(&context)
}

/// `sendto` and `sendmsg` on an IPv4 socket, or to an IPv4 address on an IPv6 socket.
#[cgroup_sock_addr(sendmsg4)]
pub fn sendmsg4(context: SockAddrContext) -> i32 {
    sendmsg::<V4>(&context)
}

/// `sendto` and `sendmsg` on an IPv6 socket.
#[cgroup_sock_addr(sendmsg6)]
pub fn sendmsg6(context: SockAddrContext) -> i32 {
    sendmsg::<V6>(&context)
}

/// `getpeername` on an IPv4 socket.
#[cgroup_sock_addr(getpeername4)]
pub fn getpeername4(context: SockAddrContext) -> i32 {
    restore::<V4>(&context)
}

/// `getpeername` on an IPv6 socket.
#[cgroup_sock_addr(getpeername6)]
pub fn getpeername6(context: SockAddrContext) -> i32 {
    restore::<V6>(&context)
}

/// `recvmsg` on an IPv4 socket, when the caller asks whom the datagram is from.
#[cgroup_sock_addr(recvmsg4)]
pub fn recvmsg4(context: SockAddrContext) -> i32 {
    restore::<V4>(&context)
}

/// `recvmsg` on an IPv6 socket.
#[cgroup_sock_addr(recvmsg6)]
pub fn recvmsg6(context: SockAddrContext) -> i32 {
    restore::<V6>(&context)
}
