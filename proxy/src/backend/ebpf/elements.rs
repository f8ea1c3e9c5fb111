//! What stands in the maps, and in which order it is written so that no reader ever sees less than the old or the new.

use std::collections::BTreeMap;

use portolan_abi::{Address, Backend, BackendKey, Frontend, FrontendKey, Member, MemberKey, Set};

/// Elements of the maps.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Elements {
    pub(crate) addresses: BTreeMap<Address, u32>,
    pub(crate) frontends: BTreeMap<FrontendKey, Frontend>,
    /// Only sets with endpoints: the others have count 0 in the map.
    pub(crate) sets: BTreeMap<u32, Set>,
    pub(crate) backends: BTreeMap<BackendKey, Backend>,
    pub(crate) members: BTreeMap<MemberKey, Member>,
}

/// What makes one state of the maps another one. Fields stand in the order in which they are written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Difference {
    /// Endpoints first: nobody looks at a slot beyond the count, and one that is overwritten is replaced whole.
    pub(crate) members: Vec<(MemberKey, Member)>,
    pub(crate) backends: Vec<(BackendKey, Backend)>,
    /// Sets that become larger.
    pub(crate) grown: Vec<(u32, Set)>,
    /// Then who leads to them.
    pub(crate) frontends: Vec<(FrontendKey, Frontend)>,
    pub(crate) addresses: Vec<(Address, u32)>,
    /// The other way round for what goes.
    pub(crate) gone_addresses: Vec<Address>,
    pub(crate) gone_frontends: Vec<FrontendKey>,
    /// Sets that become smaller, before the slots that they lose.
    pub(crate) shrunk: Vec<(u32, Set)>,
    pub(crate) gone_backends: Vec<BackendKey>,
    pub(crate) gone_members: Vec<MemberKey>,
    /// How many of what is written were not there before.
    pub(crate) new: Fresh,
}

/// Counts of elements that were not there before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Fresh {
    pub(crate) addresses: usize,
    pub(crate) frontends: usize,
    pub(crate) backends: usize,
    pub(crate) members: usize,
}

// === impl Difference ===

impl Difference {
    /// What makes `before` into `after`.
    pub(crate) fn between(before: &Elements, after: &Elements) -> Self {
        let mut grown = Vec::new();
        let mut shrunk = Vec::new();
        for (set, new) in &after.sets {
            let old = before.sets.get(set).map_or(0, |set| set.count);
            match new.count.cmp(&old) {
                std::cmp::Ordering::Greater => grown.push((*set, *new)),
                std::cmp::Ordering::Less => shrunk.push((*set, *new)),
                std::cmp::Ordering::Equal => {}
            }
        }
        let emptied = before.sets.keys().filter(|set| !after.sets.contains_key(set));
        shrunk.extend(emptied.map(|set| (*set, Set::default())));
        Self {
            members: changed(&before.members, &after.members),
            backends: changed(&before.backends, &after.backends),
            grown,
            frontends: changed(&before.frontends, &after.frontends),
            addresses: changed(&before.addresses, &after.addresses),
            gone_addresses: gone(&before.addresses, &after.addresses),
            gone_frontends: gone(&before.frontends, &after.frontends),
            shrunk,
            gone_backends: gone(&before.backends, &after.backends),
            gone_members: gone(&before.members, &after.members),
            new: Fresh {
                addresses: fresh(&before.addresses, &after.addresses),
                frontends: fresh(&before.frontends, &after.frontends),
                backends: fresh(&before.backends, &after.backends),
                members: fresh(&before.members, &after.members),
            },
        }
    }

    /// Elements written and elements removed.
    pub(crate) fn size(&self) -> (usize, usize) {
        let written = self.members.len()
            + self.backends.len()
            + self.grown.len()
            + self.frontends.len()
            + self.addresses.len()
            + self.shrunk.len();
        let removed =
            self.gone_addresses.len() + self.gone_frontends.len() + self.gone_backends.len() + self.gone_members.len();
        (written, removed)
    }
}

fn changed<K: Ord + Copy, V: PartialEq + Copy>(before: &BTreeMap<K, V>, after: &BTreeMap<K, V>) -> Vec<(K, V)> {
    let differs = after.iter().filter(|(key, value)| before.get(key) != Some(value));
    differs.map(|(key, value)| (*key, *value)).collect()
}

fn gone<K: Ord + Copy, V>(before: &BTreeMap<K, V>, after: &BTreeMap<K, V>) -> Vec<K> {
    before.keys().filter(|key| !after.contains_key(key)).copied().collect()
}

fn fresh<K: Ord, V>(before: &BTreeMap<K, V>, after: &BTreeMap<K, V>) -> usize {
    after.keys().filter(|key| !before.contains_key(key)).count()
}
