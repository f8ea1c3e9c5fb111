//! Mirror: a watch's events into the model's, with mark and sweep over a new list.

use std::collections::{BTreeMap, BTreeSet};

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
}

// === impl Mirror ===

impl Mirror {
    /// A list begins. What one that broke off has shown is known, too.
    pub(crate) fn begin(&mut self) {
        let broken_off = self.listed.replace(BTreeSet::new());
        self.known.extend(broken_off.into_iter().flatten());
    }

    /// The list is complete: what it lacks is gone.
    pub(crate) fn end(&mut self, output: &mut Output) {
        let listed = self.listed.take().unwrap_or_default();
        for key in self.known.difference(&listed) {
            self.faulty.remove(key);
            output.events.push(Event::Delete(key.clone()));
        }
        self.known = listed;
    }

    pub(crate) fn delete<K: Watched>(&mut self, object: &K, output: &mut Output) {
        if let Some(key) = key_of::<K>(object.meta(), &mut self.interner) {
            self.known.remove(&key);
            self.faulty.remove(&key);
            output.events.push(Event::Delete(key));
        }
    }

    /// The object is converted at once; nothing of it is kept beside the model.
    pub(crate) fn apply<K: Watched>(&mut self, object: &K, output: &mut Output) {
        self.since_shrink += 1;
        if self.since_shrink > SHRINK_AFTER {
            self.since_shrink = 0;
            self.interner.shrink();
        }
        let mut faults = Vec::new();
        let parsed = object.parse(&mut self.interner, &mut faults);
        // The key shares its parts with the object. One that cannot be used is there, too: its earlier version must not be
        // swept.
        let key = match &parsed {
            Some(object) => Some(object.key()),
            None => key_of::<K>(object.meta(), &mut self.interner),
        };
        let Some(key) = key else { return };
        output.events.extend(parsed.map(Event::Apply));
        let reported = self.faulty.get(&key).map_or(&[][..], Vec::as_slice);
        if reported != faults {
            output.problems.extend(faults.iter().cloned().map(Problem::from));
            match faults.is_empty() {
                true => drop(self.faulty.remove(&key)),
                false => drop(self.faulty.insert(key.clone(), faults)),
            }
        }
        self.listed.as_mut().unwrap_or(&mut self.known).insert(key);
    }
}
