//! What the kernel holds, and the kernel as something that batches can be handed to.

use std::io;

use portolan_model::Family;

use super::NftOptions;
use super::entries::{Entry, Place};
use super::monitor::Monitor;
use super::netlink::batch::{Batch, BatchError};
use super::netlink::dump::generation;
use super::netlink::object::{Chain, Element, Table};
use super::netlink::socket::Socket;
use super::probe::probe_family;
use super::schema::{Map, family_number};

/// One of our tables as it was found.
#[derive(Debug, Default)]
pub(crate) struct Observed {
    /// Its sets are the ones it has to have, and it has no flags.
    pub(crate) sound: bool,
    /// Its chains with their rules.
    pub(crate) chains: Vec<Chain>,
    /// The elements of its sets, sorted. Those of map `affinity` come and go by themselves: see [`Kernel::affinity`].
    pub(crate) entries: Vec<Entry>,
}

/// Where batches go. The real one is [`Netlink`]; tests have one in memory.
pub(crate) trait Kernel: Send {
    /// Carries a batch out: all of it or nothing.
    fn commit(&mut self, batch: Batch) -> Result<(), BatchError>;

    /// Reads a table; `None` when there is none.
    fn observe(&mut self, family: Family, table: &str) -> io::Result<Option<Observed>>;

    /// Whether the kernel has what the rules of a family need. Tried out, without a trace.
    fn takes(&mut self, family: Family, options: &NftOptions) -> io::Result<bool>;

    /// Reads which endpoint each client stays with.
    fn affinity(&mut self, family: Family, table: &str) -> io::Result<Vec<Element>>;
}

/// News of a batch of this many bytes could overrun the monitor.
const LARGE: usize = 1 << 20;

/// The kernel of the network namespace in which the sockets were opened.
#[derive(Debug)]
pub(crate) struct Netlink {
    pub(crate) socket: Socket,
    pub(crate) monitor: Monitor,
}

impl Kernel for Netlink {
    fn commit(&mut self, batch: Batch) -> Result<(), BatchError> {
        if batch.len() < LARGE {
            return batch.commit(&mut self.socket);
        }
        // While the monitor is deaf the number of the ruleset tells whether anyone else changed something.
        let before = generation(&mut self.socket)?;
        self.monitor.pause()?;
        let result = batch.commit(&mut self.socket);
        self.monitor.resume()?;
        let after = generation(&mut self.socket)?;
        if after.wrapping_sub(before) != u32::from(result.is_ok()) {
            self.monitor
                .report("someone else changed the ruleset while we did".into());
        }
        result
    }

    fn observe(&mut self, family: Family, table: &str) -> io::Result<Option<Observed>> {
        let table = Table {
            family: family_number(family),
            name: table,
        };
        let socket = &mut self.socket;
        let Some(flags) = table.flags(socket)? else {
            return Ok(None);
        };
        let definitions = Map::ALL.map(|map| map.definition(family));
        let sets = table.sets(socket, &definitions)?;
        let mut observed = Observed {
            sound: flags == 0 && sets.len() == definitions.len() && sets.iter().all(|(_, right)| *right),
            chains: table.chains(socket)?,
            entries: Vec::new(),
        };
        for (name, rule) in table.rules(socket)? {
            if let Some(chain) = observed.chains.iter_mut().find(|chain| chain.name == name) {
                chain.rules.push(rule);
            }
        }
        if observed.sound {
            for map in Map::ALL.into_iter().filter(|map| *map != Map::Affinity) {
                let make = |element: Element| Entry {
                    place: Place {
                        family,
                        map,
                        key: element.key,
                    },
                    data: element.data,
                    comment: element.comment.unwrap_or_default(),
                    owner: Batch::SHARED,
                };
                observed.entries.append(&mut table.elements(socket, map.name(), make)?);
            }
            super::difference::sort(&mut observed.entries);
        }
        Ok(Some(observed))
    }

    fn takes(&mut self, family: Family, options: &NftOptions) -> io::Result<bool> {
        match probe_family(&mut self.socket, family, options) {
            Ok(()) => Ok(true),
            Err(BatchError::Refused(_)) => Ok(false),
            Err(BatchError::Io(error)) => Err(error),
        }
    }

    fn affinity(&mut self, family: Family, table: &str) -> io::Result<Vec<Element>> {
        let table = Table {
            family: family_number(family),
            name: table,
        };
        table.elements(&mut self.socket, Map::Affinity.name(), |element| element)
    }
}
