//! The difference between what is programmed and what has to be, and the batch that closes it.

use std::collections::HashMap;

use portolan_model::Family;

use super::entries::Entry;
use super::netlink::batch::Batch;
use super::netlink::object::{Chain, Table};
use super::schema::{Map, family_number};

/// What has to be done to the tables.
#[derive(Debug, Default)]
pub(crate) struct Difference {
    /// Tables that are to be deleted with everything in them before anything else is done.
    pub(crate) delete_tables: Vec<Family>,
    /// Tables that are to be created, with their sets.
    pub(crate) create_tables: Vec<Family>,
    /// Chains that are to be created, in an order in which they can be, and for whom.
    pub(crate) create_chains: Vec<(Family, Chain)>,
    /// Chains whose rules are to be replaced.
    pub(crate) rewrite_chains: Vec<(Family, Chain)>,
    /// Chains that nothing refers to any more.
    pub(crate) delete_chains: Vec<(Family, Box<str>)>,
    /// Elements that are to be deleted.
    pub(crate) remove: Vec<Entry>,
    /// Elements that are to be added.
    pub(crate) add: Vec<Entry>,
}

/// How much a difference is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Size {
    pub(crate) written: usize,
    pub(crate) removed: usize,
}

/// Sorts entries by place. Of several at one place that of the first owner stays.
pub(crate) fn sort(entries: &mut Vec<Entry>) {
    entries.sort_unstable_by_key(|entry| (entry.place, entry.owner));
    entries.dedup_by_key(|entry| entry.place);
}

impl Difference {
    /// Adds what makes `after` of `before`. Both are sorted.
    pub(crate) fn entries(&mut self, before: Vec<Entry>, after: Vec<Entry>) {
        if before.is_empty() && self.add.is_empty() {
            // A first load: do not move a hundred thousand entries about.
            self.add = after;
            return;
        }
        let mut before = before.into_iter().peekable();
        for wanted in after {
            while let Some(gone) = before.next_if(|old| old.place < wanted.place) {
                self.remove.push(gone);
            }
            match before.next_if(|old| old.place == wanted.place) {
                Some(old) if old.data == wanted.data && old.comment == wanted.comment => {}
                Some(mut old) => {
                    old.owner = wanted.owner;
                    self.remove.push(old);
                    self.add.push(wanted);
                }
                None => self.add.push(wanted),
            }
        }
        self.remove.extend(before);
    }

    /// An element that changes is counted once, as written.
    pub(crate) fn size(&self) -> Size {
        let rules = |chains: &[(Family, Chain)]| chains.iter().map(|(_, chain)| 1 + chain.rules.len()).sum::<usize>();
        let mut replaced: HashMap<_, ()> = HashMap::new();
        if !self.remove.is_empty() {
            replaced = self.add.iter().map(|entry| (entry.place, ())).collect();
        }
        let removed = self.remove.iter().filter(|entry| !replaced.contains_key(&entry.place));
        Size {
            written: self.add.len() + rules(&self.create_chains) + rules(&self.rewrite_chains),
            removed: removed.count() + self.delete_chains.len() + self.delete_tables.len(),
        }
    }

    /// The messages that close the difference, in an order that the kernel takes: nothing is referred to before it is
    /// there or after it is gone.
    pub(crate) fn batch(&self, table_name: &str) -> Batch {
        let mut batch = self.batch_but_chains(table_name);
        self.delete_chains(&mut batch, table_name);
        batch
    }

    /// The same without the chains that are to be deleted.
    pub(crate) fn batch_but_chains(&self, table_name: &str) -> Batch {
        let mut batch = Batch::new();
        let table = |family| Table {
            family: family_number(family),
            name: table_name,
        };
        for family in &self.delete_tables {
            table(*family).delete(&mut batch);
        }
        for family in &self.create_tables {
            table(*family).create(
                &mut batch,
                "made by portolan-proxy, which repairs what is changed by hand",
            );
            for (map, id) in Map::ALL.into_iter().zip(1..) {
                table(*family).create_set(&mut batch, &map.definition(*family), id);
            }
        }
        for (family, chain) in &self.create_chains {
            table(*family).create_chain(&mut batch, chain, Batch::SHARED);
        }
        for (family, chain) in &self.rewrite_chains {
            table(*family).flush_chain(&mut batch, &chain.name);
        }
        for (family, chain) in self.create_chains.iter().chain(&self.rewrite_chains) {
            table(*family).create_rules(&mut batch, chain, Batch::SHARED);
        }
        for entry in &self.remove {
            let place = &entry.place;
            table(place.family).delete_element(&mut batch, place.map.name(), &place.key, entry.owner);
        }
        for entry in &self.add {
            let place = &entry.place;
            let element = (&place.key, &entry.data);
            table(place.family).add_element(&mut batch, place.map.name(), element, &entry.comment, entry.owner);
        }
        batch
    }

    /// The rest, to be carried out later.
    pub(crate) fn batch_of_chains(&self, table_name: &str) -> Batch {
        let mut batch = Batch::new();
        self.delete_chains(&mut batch, table_name);
        batch
    }

    fn delete_chains(&self, batch: &mut Batch, table_name: &str) {
        let table = |family| Table {
            family: family_number(family),
            name: table_name,
        };
        for (family, chain) in &self.delete_chains {
            table(*family).flush_chain(batch, chain);
        }
        for (family, chain) in &self.delete_chains {
            table(*family).delete_chain(batch, chain);
        }
    }
}
