//! The last World on disk, so that a daemon that starts while its source is silent knows what it knew.
//!
//! A file begins with one line that says what it is, then holds events in the order in which they came, each line with a
//! checksum: first those that make the whole World, a line that says so, and what has changed since. A change costs one
//! line. The file is written anew, beside the old one and put in its place, when the changes outweigh the rest. Whatever is
//! cut or damaged is reported and left out; what is known never comes from half a World.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use portolan_model::{Event, Object, ObjectKey, World};

use super::Batch;

const FORMAT: &str = "portolan-world 1";
/// Stands behind the events that make the whole World.
const COMPLETE: &str = "complete";
/// Events in a line.
const LINE_EVENTS: usize = 256;
/// Changes may take so many octets before the file is written anew, or twice what the World took.
const SLACK: u64 = 8 << 20;

/// A World on disk.
#[derive(Debug)]
pub struct Store {
    file: PathBuf,
    header: String,
    open: Option<File>,
    /// Octets of the World as it was written last, and of the changes since.
    world: u64,
    changes: u64,
}

/// What was found on disk.
#[derive(Debug, Default)]
pub struct Found {
    /// Apply these, in this order.
    pub events: Vec<Event>,
    /// What could not be used, and why.
    pub problem: Option<String>,
}

/// Removes from a restored World what the source no longer has, once the source has listed everything.
#[derive(Debug, Default)]
pub struct Leftovers(BTreeSet<ObjectKey>);

// === impl Store ===

impl Store {
    /// A World in a folder. `name` says whose it is; what was written for another `identity` (the API server, the kinds
    /// that are read) is not used.
    pub fn new(folder: &Path, name: &str, identity: &str) -> Self {
        let identity: String = identity.chars().filter(|c| !c.is_control()).collect();
        Self {
            file: folder.join(format!("{name}.world")),
            header: format!("{FORMAT} {identity}"),
            open: None,
            world: 0,
            changes: 0,
        }
    }

    /// Where it is.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// Reads what is there. No file is no problem.
    pub fn load(&self) -> Found {
        let failed = |what: String| Found {
            events: Vec::new(),
            problem: Some(format!("{}: {what}; starting without it", self.file.display())),
        };
        let text = match std::fs::read(&self.file) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Found::default(),
            Err(error) => return failed(error.to_string()),
        };
        let mut lines = text.split_inclusive(|octet| *octet == b'\n');
        let header = lines.next().unwrap_or_default();
        if header != format!("{}\n", self.header).as_bytes() {
            return failed("it is from another version, cluster or configuration".to_owned());
        }
        let mut found = Found::default();
        let mut complete = false;
        for (number, line) in (2..).zip(lines) {
            match read_line(line) {
                Ok(Some(events)) => found.events.extend(events),
                Ok(None) => complete = true,
                Err(what) if complete => {
                    let file = self.file.display();
                    found.problem = Some(format!(
                        "{file}: line {number} {what}; changes from there on are left out"
                    ));
                    break;
                }
                Err(what) => return failed(format!("line {number} {what}")),
            }
        }
        if !complete {
            return failed("it is not complete".to_owned());
        }
        found
    }

    /// Writes the whole World, in the place of what was there.
    ///
    /// # Errors
    /// When the folder cannot be written to; what was there stays.
    pub fn replace(&mut self, world: &World) -> io::Result<()> {
        self.open = None;
        let folder = self.file.parent().unwrap_or(Path::new("."));
        std::fs::create_dir_all(folder)?;
        let fresh = self.file.with_extension("world.new");
        let mut writer = BufWriter::with_capacity(1 << 16, File::create(&fresh)?);
        writeln!(writer, "{}", self.header)?;
        let mut octets = 0;
        let mut events = Vec::with_capacity(LINE_EVENTS);
        for object in world.objects() {
            events.push(Event::Apply(object));
            if events.len() == LINE_EVENTS {
                octets += write_line(&mut writer, &serde_json::to_vec(&events)?)?;
                events.clear();
            }
        }
        octets += write_line(&mut writer, &serde_json::to_vec(&events)?)?;
        write_line(&mut writer, COMPLETE.as_bytes())?;
        let file = writer.into_inner().map_err(io::IntoInnerError::into_error)?;
        file.sync_data()?;
        std::fs::rename(&fresh, &self.file)?;
        self.open = Some(OpenOptions::new().append(true).open(&self.file)?);
        (self.world, self.changes) = (octets, 0);
        Ok(())
    }

    /// Adds what has changed. `world` is the World after it, for when everything has to be written anew.
    ///
    /// # Errors
    /// When the file cannot be written to. The next call writes everything.
    pub fn append(&mut self, events: &[Event], world: &World) -> io::Result<()> {
        let Some(mut file) = self.open.take().filter(|_| self.changes <= SLACK.max(2 * self.world)) else {
            return self.replace(world);
        };
        for events in events.chunks(LINE_EVENTS) {
            self.changes += write_line(&mut file, &serde_json::to_vec(events)?)?;
        }
        self.open = Some(file);
        Ok(())
    }
}

/// Writes a line with its checksum, in one call; says how long it is.
fn write_line(writer: &mut impl Write, content: &[u8]) -> io::Result<u64> {
    let mut line = format!("{:016x} ", checksum(content)).into_bytes();
    line.extend_from_slice(content);
    line.push(b'\n');
    writer.write_all(&line)?;
    Ok(line.len() as u64)
}

/// The events of a line; `None` for the one that says that the World is complete.
fn read_line(line: &[u8]) -> Result<Option<Vec<Event>>, &'static str> {
    let line = line.strip_suffix(b"\n").ok_or("is cut off")?;
    let (sum, content) = line.split_at_checked(17).ok_or("is cut off")?;
    if sum != format!("{:016x} ", checksum(content)).as_bytes() {
        return Err("is damaged");
    }
    if content == COMPLETE.as_bytes() {
        return Ok(None);
    }
    serde_json::from_slice(content)
        .map(Some)
        .map_err(|_| "is of another version")
}

/// FNV-1a: it finds damage, not malice.
fn checksum(content: &[u8]) -> u64 {
    content.iter().fold(0xcbf2_9ce4_8422_2325, |sum, octet| {
        (sum ^ u64::from(*octet)).wrapping_mul(0x0100_0000_01b3)
    })
}

// === impl Leftovers ===

impl Leftovers {
    /// After a World was restored from these events.
    pub fn of(events: &[Event]) -> Self {
        let mut keys = BTreeSet::new();
        for event in events {
            match event {
                Event::Apply(object) => keys.insert(object.key()),
                Event::Delete(key) => keys.remove(key),
            };
        }
        Self(keys)
    }

    /// Notes what a batch brings; the one that makes the source complete gets the deletions of what it did not bring.
    pub fn settle(&mut self, batch: &mut Batch) {
        if self.0.is_empty() {
            return;
        }
        for event in &batch.events {
            match event {
                Event::Apply(object) => self.0.remove(&object.key()),
                Event::Delete(key) => self.0.remove(key),
            };
        }
        if batch.synced {
            batch
                .events
                .extend(std::mem::take(&mut self.0).into_iter().map(Event::Delete));
        }
    }
}

/// Whether an event says what the World knows already; used to leave repeated lists out of the file.
pub fn is_news(world: &World, event: &Event) -> bool {
    match event {
        Event::Apply(Object::Service(service)) => world
            .service(&service.name)
            .is_none_or(|view| *view.service != **service),
        Event::Apply(Object::Namespace(namespace)) => world.namespace(&namespace.name) != Some(namespace),
        Event::Apply(Object::EndpointSlice(slice)) => {
            let filed = slice
                .service
                .as_ref()
                .map_or(&[][..], |service| world.slices_of(service));
            !filed.contains(slice)
        }
        Event::Apply(_) | Event::Delete(_) => true,
    }
}

#[cfg(test)]
mod tests {
    use portolan_model::{Delta, Namespace};

    use super::*;

    fn named(name: &str) -> Object {
        Object::Namespace(Namespace {
            name: name.into(),
            ..Namespace::default()
        })
    }

    fn world(events: &[Event]) -> World {
        let mut world = World::default();
        for event in events {
            world.apply(event.clone(), &mut Delta::default());
        }
        world
    }

    fn names(events: &[Event]) -> Vec<String> {
        world(events)
            .namespaces()
            .map(|namespace| namespace.name.to_string())
            .collect()
    }

    #[test]
    fn what_is_written_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let mut store = Store::new(folder.path(), "test", "here");
        assert!(store.load().problem.is_none());
        let first: Vec<Event> = ["a", "b"].map(|name| Event::Apply(named(name))).into();
        store.append(&first, &world(&first)).unwrap();
        store.append(&[Event::Apply(named("c"))], &world(&[])).unwrap();
        store.append(&[Event::Delete(named("a").key())], &world(&[])).unwrap();
        let found = Store::new(folder.path(), "test", "here").load();
        assert_eq!(
            (names(&found.events), found.problem),
            (vec!["b".to_owned(), "c".to_owned()], None)
        );
        let other = Store::new(folder.path(), "test", "there").load();
        assert!(other.events.is_empty() && other.problem.unwrap().contains("another version, cluster"));
    }

    #[test]
    fn damage_is_said_and_never_gives_half_a_world() {
        let folder = tempfile::tempdir().unwrap();
        let mut store = Store::new(folder.path(), "test", "here");
        let first: Vec<Event> = ["a", "b"].map(|name| Event::Apply(named(name))).into();
        store.replace(&world(&first)).unwrap();
        store.append(&[Event::Apply(named("c"))], &world(&[])).unwrap();
        let whole = std::fs::read(store.file()).unwrap();
        let complete = whole
            .windows(COMPLETE.len())
            .position(|w| w == COMPLETE.as_bytes())
            .unwrap();
        for at in 0..whole.len() {
            std::fs::write(store.file(), &whole[..at]).unwrap();
            let cut = store.load();
            let mut damaged = whole.clone();
            damaged[at] ^= 0x01;
            std::fs::write(store.file(), &damaged).unwrap();
            let damaged = store.load();
            // Behind the mark only the change is lost; a cut right behind a line cannot be seen, and loses nothing else.
            let expect: &[&str] = if at > complete + COMPLETE.len() {
                &["a", "b"]
            } else {
                &[]
            };
            assert_eq!(names(&cut.events), expect, "cut at {at}");
            assert_eq!(names(&damaged.events), expect, "damaged at {at}");
            assert!(damaged.problem.is_some(), "{at}");
        }
    }

    #[test]
    fn what_the_source_no_longer_has_goes() {
        let restored: Vec<Event> = ["a", "b"].map(|name| Event::Apply(named(name))).into();
        let mut leftovers = Leftovers::of(&restored);
        let mut batch = Batch {
            events: vec![Event::Apply(named("b"))],
            ..Batch::default()
        };
        leftovers.settle(&mut batch);
        assert_eq!(batch.events.len(), 1);
        let mut last = Batch {
            synced: true,
            ..Batch::default()
        };
        leftovers.settle(&mut last);
        assert_eq!(last.events, [Event::Delete(named("a").key())]);
    }
}
