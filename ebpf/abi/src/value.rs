//! Keys and values of the maps, with their sizes and offsets asserted.

use crate::{Address, Plain};

/// Key of `FRONTENDS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FrontendKey {
    /// The frontend's address; the unspecified address of its family for a node port.
    pub address: Address,
    /// Port, network byte order.
    pub port: u16,
    /// [`crate::TCP`] or [`crate::UDP`].
    pub protocol: u8,
    /// Zero.
    pub zero: u8,
}

/// Value of `FRONTENDS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frontend {
    /// What happens, by [`crate::scope`].
    pub routes: [Route; 3],
    /// The Service port: affinity and counters go by it.
    pub port: u32,
    /// How long a client stays with its endpoint, in seconds; 0: it does not.
    pub affinity_seconds: u32,
    /// [`crate::frontend`].
    pub flags: u32,
    /// [`Frontend::sum`].
    pub check: u32,
}

/// What happens to a new connection.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// Whose endpoints, for [`crate::verdict::FORWARD`].
    pub set: u32,
    /// [`crate::verdict`].
    pub verdict: u8,
    /// [`crate::route`].
    pub flags: u8,
    /// Zero.
    pub zero: u16,
}

/// Value of `SETS`, under the set's number. One word, so that it is read whole.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Set {
    /// Slots 0 to `count` are in use.
    pub count: u32,
    /// Zero.
    pub zero: u32,
}

/// Key of `BACKENDS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BackendKey {
    /// The set.
    pub set: u32,
    /// Place in the set.
    pub slot: u32,
}

/// Value of `BACKENDS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backend {
    /// The endpoint's address.
    pub address: Address,
    /// Its port, network byte order.
    pub port: u16,
    /// Zero.
    pub zero: u16,
    /// Never used twice: an endpoint that comes back is another one.
    pub id: u32,
    /// Its place in `ENDPOINT_COUNTERS`; another endpoint's after it is gone.
    pub counter: u32,
    /// [`Backend::sum`].
    pub check: u32,
}

/// Key of `MEMBERS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MemberKey {
    /// The set.
    pub set: u32,
    /// The endpoint's port, network byte order.
    pub port: u16,
    /// Zero.
    pub zero: u16,
    /// The endpoint's address.
    pub address: Address,
}

/// Value of `MEMBERS`. One word, so that it is read whole.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// The endpoint's [`Backend::id`].
    pub id: u32,
    /// Its [`Backend::counter`].
    pub counter: u32,
}

/// Key of `AFFINITY`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AffinityKey {
    /// Who: a source address, or for a socket the cookie of its network namespace in the first two words and
    /// [`AffinityKey::NETNS`] in the last two, which no address has.
    pub client: Address,
    /// [`Frontend::port`].
    pub port: u32,
}

/// Value of `AFFINITY`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AffinityValue {
    /// When the client opened its last connection, in nanoseconds since the machine was started.
    pub last: u64,
    /// The endpoint's address.
    pub address: Address,
    /// Its port, network byte order.
    pub port: u16,
    /// Zero.
    pub zero: u16,
    /// Its [`Backend::id`].
    pub id: u32,
}

/// Key of `REVERSE`: what a socket talks to.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ReverseKey {
    /// The socket's cookie.
    pub cookie: u64,
    /// The endpoint's address.
    pub address: Address,
    /// Its port, network byte order.
    pub port: u16,
    /// Protocol.
    pub protocol: u8,
    /// Zero.
    pub zero: [u8; 5],
}

/// Value of `REVERSE`: what the socket's owner believes to talk to.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReverseValue {
    /// The frontend's address.
    pub address: Address,
    /// Its port, network byte order.
    pub port: u16,
    /// Zero.
    pub zero: u16,
    /// The Service port.
    pub service_port: u32,
}

/// Key of `FLOWS`: an unconnected UDP socket and a frontend that it sends to.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FlowKey {
    /// The socket's cookie.
    pub cookie: u64,
    /// The frontend's address.
    pub address: Address,
    /// Its port, network byte order.
    pub port: u16,
    /// Zero.
    pub zero: [u16; 3],
}

/// Value of `FLOWS`: the endpoint that the flow stays with while it serves.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowValue {
    /// The endpoint's address.
    pub address: Address,
    /// Its port, network byte order.
    pub port: u16,
    /// Zero.
    pub zero: u16,
    /// Its [`Backend::id`].
    pub id: u32,
}

/// Value of `PORT_COUNTERS` and `ENDPOINT_COUNTERS`, one for each processor.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Connections that were opened, and flows of unconnected sockets.
    pub connections: u64,
    /// Connections that were refused because there is no endpoint. Zero for an endpoint.
    pub refused: u64,
}

impl AffinityKey {
    /// Marks a client that is a network namespace: not the end of any address (`ff00::/8` as the last words of a mapped
    /// address cannot be).
    pub const NETNS: [u32; 2] = [u32::MAX, u32::MAX];

    /// The key of a socket's network namespace.
    #[inline(always)]
    pub const fn of_netns(cookie: u64, port: u32) -> Self {
        let [high, low] = [(cookie >> 32) as u32, cookie as u32];
        Self {
            client: Address([high, low, Self::NETNS[0], Self::NETNS[1]]),
            port,
        }
    }
}

/// Adds a word to a sum. Order matters, so that parts of two values do not add up to a third.
#[inline(always)]
const fn add(sum: u32, word: u32) -> u32 {
    (sum.rotate_left(5) ^ word).wrapping_mul(0x9e37_79b1)
}

impl Frontend {
    /// The check sum of this value under this key.
    #[inline(always)]
    pub const fn sum(&self, key: &FrontendKey) -> u32 {
        let mut sum = add(key.address.0[3], (key.port as u32) << 8 | key.protocol as u32);
        let [pod, node, outside] = self.routes;
        sum = pod.add_to(sum);
        sum = node.add_to(sum);
        sum = outside.add_to(sum);
        add(add(add(sum, self.port), self.affinity_seconds), self.flags)
    }
}

impl Route {
    #[inline(always)]
    const fn add_to(&self, sum: u32) -> u32 {
        add(add(sum, self.set), (self.verdict as u32) << 8 | self.flags as u32)
    }
}

impl Backend {
    /// The check sum of this value under this key.
    #[inline(always)]
    pub const fn sum(&self, key: &BackendKey) -> u32 {
        let Address(words) = self.address;
        let sum = add(add(key.set, key.slot), self.port as u32);
        let sum = add(add(sum, words[0]), words[1]);
        add(add(add(add(sum, words[2]), words[3]), self.id), self.counter)
    }
}

macro_rules! plain {
    ($($name:ident: $size:literal { $($field:ident: $offset:literal),* };)*) => {
        $(
            const _: () = {
                assert!(size_of::<$name>() == $size);
                $(assert!(core::mem::offset_of!($name, $field) == $offset);)*
            };
            // SAFETY: repr(C) of integers; the sizes and offsets above leave no room for padding.
            unsafe impl Plain for $name {}
        )*
    };
}

plain! {
    FrontendKey: 20 { address: 0, port: 16, protocol: 18, zero: 19 };
    Frontend: 40 { routes: 0, port: 24, affinity_seconds: 28, flags: 32, check: 36 };
    Route: 8 { set: 0, verdict: 4, flags: 5, zero: 6 };
    Set: 8 { count: 0, zero: 4 };
    BackendKey: 8 { set: 0, slot: 4 };
    Backend: 32 { address: 0, port: 16, zero: 18, id: 20, counter: 24, check: 28 };
    MemberKey: 24 { set: 0, port: 4, zero: 6, address: 8 };
    Member: 8 { id: 0, counter: 4 };
    AffinityKey: 20 { client: 0, port: 16 };
    AffinityValue: 32 { last: 0, address: 8, port: 24, zero: 26, id: 28 };
    ReverseKey: 32 { cookie: 0, address: 8, port: 24, protocol: 26, zero: 27 };
    ReverseValue: 24 { address: 0, port: 16, zero: 18, service_port: 20 };
    FlowKey: 32 { cookie: 0, address: 8, port: 24, zero: 26 };
    FlowValue: 24 { address: 0, port: 16, zero: 18, id: 20 };
    Counters: 16 { connections: 0, refused: 8 };
}
