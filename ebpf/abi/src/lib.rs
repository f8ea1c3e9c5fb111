//! What the eBPF programs and the daemon agree on: keys, values and numbers of the maps.
//!
//! Everything here has one layout on both sides: `repr(C)`, no padding (asserted below), network byte order for ports and
//! addresses. A change of a layout, or of what a field means, is a new [`LAYOUT`]: the daemon then builds new maps beside
//! those of the earlier build and switches the programs over ([`LASTING_LAYOUT`] for the maps that remember).
//!
//! How a new connection is decided, in look-ups:
//!
//! ```text
//! ADDRESSES  address                      -> flags            a miss: not a Service's business, and that was all
//! FRONTENDS  address . port . protocol    -> Frontend         node ports under the unspecified address
//! SETS       set                          -> count            the set that the route for this kind of source names
//! BACKENDS   set . slot                   -> Backend
//! ```
//!
//! Hash elements may be reused by the kernel while a program still reads them, so that values that are more than one word
//! carry a check sum over their key and themselves: a reader that sees a wrong one looks again.
#![no_std]

mod value;

pub use value::{
    AffinityKey, AffinityValue, Backend, BackendKey, Counters, FlowKey, FlowValue, Frontend, FrontendKey, Member,
    MemberKey, ReverseKey, ReverseValue, Route, Set,
};

/// Number of this layout. Maps of another one are never read.
pub const LAYOUT: u32 = 1;

/// Number of the layout of `AFFINITY`, `REVERSE` and `FLOWS` alone: what they remember of clients and sockets outlives a
/// change of the other maps.
pub const LASTING_LAYOUT: u32 = 1;

/// `IPPROTO_TCP`.
pub const TCP: u8 = 6;
/// `IPPROTO_UDP`.
pub const UDP: u8 = 17;

/// An address of either family: IPv6, or IPv4 mapped into it (`::ffff:a.b.c.d`). Network byte order. Words, because that
/// is how programs read and write a socket's address.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address(pub [u32; 4]);

/// The third word of an IPv4 address that is mapped into IPv6, in network byte order.
const MAPPED: u32 = 0xffff_u32.to_be();

impl Address {
    /// An IPv4 address, given in network byte order.
    #[inline(always)]
    pub const fn v4(address: u32) -> Self {
        Self([0, 0, MAPPED, address])
    }

    /// Whether it is an IPv4 address.
    #[inline(always)]
    pub const fn is_v4(&self) -> bool {
        self.0[0] == 0 && self.0[1] == 0 && self.0[2] == MAPPED
    }

    /// The unspecified address of the same family: node ports are entered under it.
    #[inline(always)]
    pub const fn unspecified(&self) -> Self {
        if self.is_v4() { Self::v4(0) } else { Self([0; 4]) }
    }
}

/// Flags of an address in `ADDRESSES`.
pub mod address {
    /// Some frontend has this address.
    pub const SERVICE: u32 = 1;
    /// It is a live cluster IP: ports that no frontend has are refused.
    pub const CLUSTER_IP: u32 = 2;
    /// The node's own address, on which node ports are served.
    pub const NODE_PORT: u32 = 4;
    /// A loopback address: it means the node only to the node's own sockets.
    pub const LOOPBACK: u32 = 8;
}

/// What a source is to the node: the place of its [`Route`] in a [`Frontend`].
pub mod scope {
    /// A socket in another network namespace than the node's, or a packet from a pod.
    pub const POD: usize = 0;
    /// The node itself.
    pub const NODE: usize = 1;
    /// Anyone else: packets only, never a socket.
    pub const OUTSIDE: usize = 2;
}

/// What a [`Route`] says.
pub mod verdict {
    /// To an endpoint of the route's set.
    pub const FORWARD: u8 = 1;
    /// There is no endpoint at all: refuse.
    pub const REJECT: u8 = 2;
    /// Policy Local forbids all endpoints: say nothing. At a socket the packet goes on unchanged, and is dropped there.
    pub const DROP: u8 = 3;
}

/// Flags of a [`Route`].
pub mod route {
    /// The source becomes the node's address. Sockets do not need it; packets do.
    pub const MASQUERADE: u8 = 1;
}

/// Flags of a [`Frontend`].
pub mod frontend {
    /// The frontend has source ranges. A socket has no source before it is connected: it is left to those who see packets.
    pub const RESTRICTED: u32 = 1;
    /// Connections of pods to it are masqueraded because the operator wants it, although it is a cluster IP
    /// (`masqueradeAll`): a socket sends with its own address, so it is left to those who see packets.
    pub const MASQUERADED: u32 = 2;
}

/// The sets of a Service port have numbers next to each other: `port * SETS_OF_A_PORT` and the offsets below.
pub const SETS_OF_A_PORT: u32 = 4;

/// Offsets of a port's sets.
pub mod set {
    /// Endpoints for policy Cluster.
    pub const CLUSTER: u32 = 0;
    /// Endpoints for policy Local.
    pub const LOCAL: u32 = 1;
    /// Endpoints that may keep the UDP flows they have. It has members, but no slots.
    pub const SERVING: u32 = 2;
}

/// Names of the globals that the daemon sets when it loads the programs.
pub mod global {
    /// `u64`: cookie of the node's network namespace. Sockets in any other one are pods'.
    pub const NODE_NETNS: &str = "NODE_NETNS";
    /// `u8`: programs may say with which error a call fails (`bpf_set_retval`, Linux 5.18 and later).
    pub const CAN_SET_RETVAL: &str = "CAN_SET_RETVAL";
    /// `u8`: only sockets of the node's own network namespace are looked at; pods' packets are left to the packet path.
    pub const HOST_ONLY: &str = "HOST_ONLY";
}

/// A type whose bytes may be handed to the kernel and taken from it as they are.
///
/// # Safety
/// `repr(C)`, without padding, and every bit pattern is a value.
pub unsafe trait Plain: Copy {
    /// Its bytes.
    fn bytes(&self) -> &[u8] {
        // SAFETY: the implementor has no padding, so every byte is initialised.
        unsafe { core::slice::from_raw_parts(core::ptr::from_ref(self).cast(), size_of::<Self>()) }
    }

    /// The value with these bytes; `None` when there are too few or too many.
    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        // SAFETY: the length is right, any bytes are a value, and the read does not ask for alignment.
        (bytes.len() == size_of::<Self>()).then(|| unsafe { core::ptr::read_unaligned(bytes.as_ptr().cast()) })
    }
}

// SAFETY: integers have no padding and take every bit pattern.
unsafe impl Plain for u32 {}
// SAFETY: a transparent array of integers.
unsafe impl Plain for Address {}
