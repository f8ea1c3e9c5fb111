//! Which Services name an address, found by address.
//!
//! A cluster has many more addresses than Services, so what is kept of one is only the key of its Service: what the names are
//! is the Service's to say. The table is split into shards. A change copies one of them and shares the others with the
//! Snapshots that are being read.

use std::hash::BuildHasher;
use std::net::IpAddr;
use std::sync::Arc;

use super::Snapshot;
use super::records::Label;

const SHARDS: usize = 512;

/// The key of a Service: labels `service.namespace` in lower case and wire form.
type Key = Arc<[u8]>;
type Shard = Vec<(IpAddr, Holders)>;

/// The Services that name one address, sorted.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Holders {
    One(Key),
    Several(Arc<[Key]>),
}

/// Addresses and the Services that name them.
#[derive(Clone, Debug)]
pub struct Addresses {
    shards: Arc<Vec<Arc<Shard>>>,
    hasher: foldhash::fast::RandomState,
    count: usize,
}

/// The names of one address.
#[derive(Clone, Copy)]
pub struct Pointers<'a> {
    snapshot: &'a Snapshot,
    address: IpAddr,
    holders: &'a [Key],
}

/// One name of an address.
pub struct Pointer<'a> {
    /// The label before the Service's; `None` for the Service itself, whose cluster IP it is.
    pub label: Option<Label<'a>>,
    /// The Service, as labels `service.namespace` in wire form.
    pub service: &'a [u8],
}

// === impl Holders ===

impl Holders {
    fn keys(&self) -> &[Key] {
        match self {
            Self::One(key) => std::slice::from_ref(key),
            Self::Several(keys) => keys,
        }
    }
}

// === impl Addresses ===

impl Default for Addresses {
    fn default() -> Self {
        Self {
            shards: Arc::new(vec![Arc::default(); SHARDS]),
            hasher: foldhash::fast::RandomState::default(),
            count: 0,
        }
    }
}

impl Addresses {
    fn shard(&self, address: IpAddr) -> usize {
        self.hasher.hash_one(address) as usize % SHARDS
    }

    /// How many addresses have names.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether none has.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The keys of the Services that name an address.
    fn holders(&self, address: IpAddr) -> &[Key] {
        let Some(shard) = self.shards.get(self.shard(address)) else {
            return &[];
        };
        match shard.binary_search_by_key(&address, |(known, _)| *known) {
            Ok(at) => shard.get(at).map_or(&[], |(_, holders)| holders.keys()),
            Err(_) => &[],
        }
    }

    /// Every address that has names.
    pub fn iter(&self) -> impl Iterator<Item = IpAddr> {
        self.shards
            .iter()
            .flat_map(|shard| shard.iter().map(|(address, _)| *address))
    }

    /// Notes that a Service names an address.
    pub fn insert(&mut self, address: IpAddr, key: &Key) {
        let index = self.shard(address);
        let Some(shard) = Arc::make_mut(&mut self.shards).get_mut(index) else {
            return;
        };
        let shard = Arc::make_mut(shard);
        match shard.binary_search_by_key(&address, |(known, _)| *known) {
            Ok(at) => {
                let (_, holders) = &mut shard[at];
                let mut keys = holders.keys().to_vec();
                if let Err(place) = keys.binary_search(key) {
                    keys.insert(place, key.clone());
                    *holders = Holders::Several(keys.into());
                }
            }
            Err(at) => {
                if shard.len() == shard.capacity() {
                    // Doubling would leave half of it empty.
                    shard.reserve_exact(shard.len() / 8 + 4);
                }
                shard.insert(at, (address, Holders::One(key.clone())));
                self.count += 1;
            }
        }
    }

    /// Notes that a Service does not name an address any more.
    pub fn remove(&mut self, address: IpAddr, key: &Key) {
        if !self.holders(address).contains(key) {
            return;
        }
        let index = self.shard(address);
        let Some(shard) = Arc::make_mut(&mut self.shards).get_mut(index) else {
            return;
        };
        let shard = Arc::make_mut(shard);
        let Ok(at) = shard.binary_search_by_key(&address, |(known, _)| *known) else {
            return;
        };
        let mut keys = shard[at].1.keys().to_vec();
        keys.retain(|known| known != key);
        match keys.len() {
            0 => {
                shard.remove(at);
                self.count -= 1;
            }
            1 => shard[at].1 = Holders::One(keys.swap_remove(0)),
            _ => shard[at].1 = Holders::Several(keys.into()),
        }
    }
}

// === impl Pointers ===

impl<'a> Pointers<'a> {
    /// The names of an address in a Snapshot whose table of addresses this is.
    pub(super) fn new(snapshot: &'a Snapshot, addresses: &'a Addresses, address: IpAddr) -> Self {
        Self {
            snapshot,
            address,
            holders: addresses.holders(address),
        }
    }

    /// The names: Services before endpoints, so that a client that takes the first gets the Service; endpoints with a
    /// hostname before those without.
    pub fn iter(self) -> impl Iterator<Item = Pointer<'a>> {
        let holders = self.holders.iter().filter_map(move |key| self.snapshot.service(key));
        let services = holders.clone().filter(move |names| names.owns(self.address));
        let services = services.map(|names| Pointer {
            label: None,
            service: &names.key,
        });
        let endpoints = |named: bool| {
            holders.clone().flat_map(move |names| {
                let labels = names.labels_of(self.address, named);
                labels.map(|label| Pointer {
                    label: Some(label),
                    service: &names.key,
                })
            })
        };
        services.chain(endpoints(true)).chain(endpoints(false))
    }

    /// Whether the address has no name.
    pub fn is_empty(&self) -> bool {
        self.holders.is_empty()
    }
}

impl std::fmt::Debug for Pointers<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Pointers({})", self.address)
    }
}
