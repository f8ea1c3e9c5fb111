//! The maps. Sizes here are the least ones; the daemon sets what it needs when it loads the programs.

use aya_ebpf::bindings::BPF_F_NO_PREALLOC;
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap, LruHashMap, PerCpuArray};
use portolan_abi::{
    Address, AffinityKey, AffinityValue, Backend, BackendKey, Counters, FlowKey, FlowValue, Frontend, FrontendKey,
    Member, MemberKey, ReverseKey, ReverseValue, Set,
};

/// Addresses that are a Service's or the node's, with [`portolan_abi::address`] flags.
#[map]
pub static ADDRESSES: HashMap<Address, u32> = HashMap::with_max_entries(1, BPF_F_NO_PREALLOC);

/// Where traffic is taken in.
#[map]
pub static FRONTENDS: HashMap<FrontendKey, Frontend> = HashMap::with_max_entries(1, BPF_F_NO_PREALLOC);

/// How many endpoints a set has.
#[map]
pub static SETS: Array<Set> = Array::with_max_entries(1, 0);

/// The endpoints of each set.
#[map]
pub static BACKENDS: HashMap<BackendKey, Backend> = HashMap::with_max_entries(1, BPF_F_NO_PREALLOC);

/// Which endpoint is in which set: for clients and flows that stay with theirs.
#[map]
pub static MEMBERS: HashMap<MemberKey, Member> = HashMap::with_max_entries(1, BPF_F_NO_PREALLOC);

/// Which client stays with which endpoint. The least recently used are forgotten first.
#[map]
pub static AFFINITY: LruHashMap<AffinityKey, AffinityValue> = LruHashMap::with_max_entries(1, 0);

/// What sockets believe to talk to.
#[map]
pub static REVERSE: LruHashMap<ReverseKey, ReverseValue> = LruHashMap::with_max_entries(1, 0);

/// Where datagrams of unconnected sockets go.
#[map]
pub static FLOWS: LruHashMap<FlowKey, FlowValue> = LruHashMap::with_max_entries(1, 0);

/// Counters of Service ports.
#[map]
pub static PORT_COUNTERS: PerCpuArray<Counters> = PerCpuArray::with_max_entries(1, 0);

/// Counters of endpoints.
#[map]
pub static ENDPOINT_COUNTERS: PerCpuArray<Counters> = PerCpuArray::with_max_entries(1, 0);
