//! Mirror: a watch's events into the model's, with mark and sweep over a new list.

use std::collections::{BTreeMap, BTreeSet};

use ::kube::runtime::watcher;
use portolan_model::{Event, Fault, Interner, ObjectKey};

use super::kinds::{Watched, key_of};
use crate::source::Problem;

/// Objects after which unused strings are forgotten.
const SHRINK_AFTER: usize = 10_000;

/// What one watch has told so far: names only, the World keeps the objects.
#[derive(Debug, Default)]
pub(crate) struct Mirror {
    known: BTreeSet<ObjectKey>,
    /// What the list that is being read has shown so far.
    listed: Option<BTreeSet<ObjectKey>>,
    /// What was reported of each object that has faults.
    faulty: BTreeMap<ObjectKey, Vec<Fault>>,
    interner: Interner,
    since_shrink: usize,
}

/// What events led to.
#[derive(Debug, Default)]
pub(crate) struct Output {
    pub(crate) events: Vec<Event>,
    pub(crate) problems: Vec<Problem>,
    /// A list was read completely.
    pub(crate) complete: bool,
}

// === impl Mirror ===

impl Mirror {
    pub(crate) fn take<K: Watched>(&mut self, event: watcher::Event<K>, output: &mut Output) {
        match event {
            watcher::Event::Init => self.listed = Some(BTreeSet::new()),
            watcher::Event::InitApply(object) | watcher::Event::Apply(object) => self.apply(&object, output),
            watcher::Event::Delete(object) => {
                if let Some(key) = key_of::<K>(object.meta(), &mut self.interner) {
                    self.known.remove(&key);
                    self.faulty.remove(&key);
                    output.events.push(Event::Delete(key));
                }
            }
            watcher::Event::InitDone => {
                let listed = self.listed.take().unwrap_or_default();
                for key in self.known.difference(&listed) {
                    self.faulty.remove(key);
                    output.events.push(Event::Delete(key.clone()));
                }
                self.known = listed;
                output.complete = true;
            }
        }
    }

    /// The object is converted at once; nothing of it (managedFields, annotations, status) is kept beside the model.
    fn apply<K: Watched>(&mut self, object: &K, output: &mut Output) {
        self.since_shrink += 1;
        if self.since_shrink > SHRINK_AFTER {
            self.since_shrink = 0;
            self.interner.shrink();
        }
        let Some(key) = key_of::<K>(object.meta(), &mut self.interner) else {
            return;
        };
        // Also when it cannot be used: it is there, so its earlier version must not be swept.
        match &mut self.listed {
            Some(listed) => listed.insert(key.clone()),
            None => self.known.insert(key.clone()),
        };
        let mut faults = Vec::new();
        let parsed = object.parse(&mut self.interner, &mut faults);
        output.events.extend(parsed.map(Event::Apply));
        let reported = self.faulty.get(&key).map_or(&[][..], Vec::as_slice);
        if reported == faults {
            return;
        }
        if faults.is_empty() {
            self.faulty.remove(&key);
        } else {
            output.problems.extend(faults.iter().cloned().map(Problem::from));
            self.faulty.insert(key, faults);
        }
    }
}
