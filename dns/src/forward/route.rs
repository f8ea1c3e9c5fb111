//! Which names go where: the closest server block, and in it the first `forward` that takes the name, or the next ones when
//! its answer says so.

use std::sync::Arc;

use super::pool::Pool;
use crate::cache::policy::Policy;
use crate::zone::names::Name;

/// One `forward`.
#[derive(Clone, Debug)]
pub struct Route {
    /// Names in these zones (wire form, lower case).
    pub from: Vec<Box<[u8]>>,
    /// But not in these.
    pub except: Vec<Box<[u8]>>,
    /// Who is asked.
    pub pool: Arc<Pool>,
}

/// What a server block does with names that are not the cluster's.
#[derive(Clone, Debug)]
pub struct Block {
    /// Its zone in wire form and lower case.
    pub zone: Box<[u8]>,
    /// In order; the first that takes a name decides.
    pub routes: Vec<Route>,
    /// How answers are kept; `None`: not at all.
    pub cache: Option<Arc<Policy>>,
    /// Only for names in these zones; all when empty.
    pub cache_zones: Vec<Box<[u8]>>,
}

/// All blocks of a listener, the longest zone first.
#[derive(Clone, Debug, Default)]
pub struct Table {
    blocks: Vec<Block>,
}

/// What was found for a name.
#[derive(Clone, Debug)]
pub struct Way<'a> {
    /// Whether a server block has the name at all.
    pub served: bool,
    /// Who is asked, in order; nobody when it is empty.
    pub pools: Vec<&'a Arc<Pool>>,
    /// How the answer is kept.
    pub cache: Option<&'a Arc<Policy>>,
}

/// Whether a name is a zone's or below it.
pub fn inside(name: &Name, zone: &[u8]) -> bool {
    let lower = name.lower();
    let Some(at) = lower.len().checked_sub(zone.len()) else {
        return false;
    };
    // It must begin where a label begins.
    lower[at..] == *zone && (0..=name.labels()).any(|label| name.start(label) == at)
}

// === impl Table ===

impl Table {
    /// A table of blocks, in any order.
    pub fn new(mut blocks: Vec<Block>) -> Self {
        blocks.sort_by_key(|block| std::cmp::Reverse(block.zone.len()));
        Self { blocks }
    }

    /// What to do with a name.
    pub fn find(&self, name: &Name) -> Way<'_> {
        let Some(block) = self.blocks.iter().find(|block| inside(name, &block.zone)) else {
            return Way {
                served: false,
                pools: Vec::new(),
                cache: None,
            };
        };
        let takes = |route: &&Route| {
            let any = |zones: &[Box<[u8]>]| zones.iter().any(|zone| inside(name, zone));
            // The zone itself is taken whatever stands behind `except` (CoreDNS).
            let itself = route.from.iter().any(|zone| **zone == *name.lower());
            itself || any(&route.from) && !any(&route.except)
        };
        let kept = block.cache_zones.is_empty() || block.cache_zones.iter().any(|zone| inside(name, zone));
        Way {
            served: true,
            pools: block.routes.iter().filter(takes).map(|route| &route.pool).collect(),
            cache: block.cache.as_ref().filter(|_| kept),
        }
    }

    /// Every pool, each once.
    pub fn pools(&self) -> Vec<Arc<Pool>> {
        let mut found: Vec<Arc<Pool>> = Vec::new();
        for route in self.blocks.iter().flat_map(|block| &block.routes) {
            if !found.iter().any(|known| Arc::ptr_eq(known, &route.pool)) {
                found.push(route.pool.clone());
            }
        }
        found
    }
}
