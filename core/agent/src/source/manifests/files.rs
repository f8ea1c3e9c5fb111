//! Files: which manifests the folder holds and what they say, re-reading only what changed.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde_json::Value;

use super::decode::{Decoded, Id, Manifest, decode};
use super::documents::{flatten, parse_json, parse_yaml};
use crate::source::ManifestError;

/// Larger files are refused.
const MAX_FILE_BYTES: u64 = 256 << 20;
/// A time stamp younger than this may hide a second change, so the content is looked at again.
const RACY: Duration = Duration::from_secs(2);
/// A file that was truncated to nothing may be about to be written; its objects stay this long.
const EMPTY_GRACE: Duration = Duration::from_secs(1);

/// An object and where it was found.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Candidate {
    pub(crate) file: Arc<str>,
    pub(crate) document: usize,
    pub(crate) manifest: Arc<Manifest>,
}

/// What a look at the folder found.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    /// Objects that changed, with what counts now; `None` when no file defines them any more.
    pub(crate) objects: BTreeMap<Id, Option<Candidate>>,
    /// What could not be used of the files that were read now.
    pub(crate) errors: Vec<ManifestError>,
    /// Kinds that were met for the first time and are not read.
    pub(crate) skipped: BTreeSet<String>,
    /// A file waits for its writer; look again soon.
    pub(crate) unsettled: bool,
}

/// What is known of one file.
#[derive(Debug, Default)]
struct File {
    stamp: Option<Stamp>,
    /// FNV-1a of the content.
    content: u64,
    objects: BTreeMap<Id, Candidate>,
    /// The file as it is now cannot be read; `objects` are from before.
    broken: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    modified: SystemTime,
    len: u64,
}

/// The folder's manifests.
#[derive(Debug)]
pub(crate) struct Files {
    dir: PathBuf,
    files: BTreeMap<Arc<str>, File>,
    /// Which files define an object; the first by name counts.
    definitions: BTreeMap<Id, BTreeSet<Arc<str>>>,
    skipped: BTreeSet<String>,
}

// === impl Files ===

impl Files {
    pub(crate) fn new(dir: &Path) -> Self {
        Self {
            dir: dir.into(),
            files: BTreeMap::new(),
            definitions: BTreeMap::new(),
            skipped: BTreeSet::new(),
        }
    }

    /// Whether every file could be read in its present version, so that an object which is not there is really gone.
    pub(crate) fn all_good(&self) -> bool {
        self.files.values().all(|file| !file.broken)
    }

    /// Looks at the folder and reads what changed.
    ///
    /// # Errors
    /// When the folder cannot be listed; everything stays as it was.
    pub(crate) fn refresh(&mut self) -> std::io::Result<Changes> {
        let listing = list(&self.dir)?;
        let mut changes = Changes::default();
        let mut touched = BTreeSet::new();
        let gone: Vec<Arc<str>> = self
            .files
            .keys()
            .filter(|name| !listing.contains_key(*name))
            .cloned()
            .collect();
        for name in gone {
            if let Some(file) = self.files.remove(&name) {
                self.redefine(&name, &file.objects, &BTreeMap::new(), &mut touched);
            }
        }
        for (name, stamp) in listing {
            self.refresh_file(&name, stamp, &mut changes, &mut touched);
        }
        for id in touched {
            self.report_doubles(&id, &mut changes);
            changes.objects.insert(id.clone(), self.effective(&id).cloned());
        }
        Ok(changes)
    }

    /// What counts for an object: the definition in the first file.
    fn effective(&self, id: &Id) -> Option<&Candidate> {
        let first = self.definitions.get(id)?.first()?;
        self.files.get(first)?.objects.get(id)
    }

    fn refresh_file(&mut self, name: &Arc<str>, stamp: Stamp, changes: &mut Changes, touched: &mut BTreeSet<Id>) {
        let age = SystemTime::now()
            .duration_since(stamp.modified)
            .unwrap_or(Duration::ZERO);
        let file = self.files.entry(name.clone()).or_default();
        if file.stamp == Some(stamp) && age > RACY {
            return;
        }
        if stamp.len == 0 && !file.objects.is_empty() && age < EMPTY_GRACE {
            changes.unsettled = true;
            return;
        }
        let first_look = file.stamp.is_none();
        file.stamp = Some(stamp);
        let unreadable = |cause: String, document, stale| ManifestError {
            file: name.to_string(),
            document,
            object: None,
            field: None,
            cause,
            stale,
        };
        let text = match read(&self.dir.join(&**name)) {
            Ok(text) => text,
            Err(cause) => {
                if !file.broken {
                    changes.errors.push(unreadable(cause, None, !file.objects.is_empty()));
                }
                file.broken = true;
                file.stamp = None;
                return;
            }
        };
        let content = super::names::fnv1a(&text);
        if !first_look && content == file.content {
            return;
        }
        file.content = content;
        let json = name.ends_with(".json");
        let documents = match if json { parse_json(&text) } else { parse_yaml(&text) } {
            Ok(documents) => documents,
            Err((document, cause)) => {
                file.broken = true;
                let stale = !file.objects.is_empty();
                changes.errors.push(unreadable(cause, document, stale));
                return;
            }
        };
        file.broken = false;
        let old = std::mem::take(&mut file.objects);
        let new = self.decode_all(name, documents, &old, changes);
        self.redefine(name, &old, &new, touched);
        if let Some(file) = self.files.get_mut(name) {
            file.objects = new;
        }
    }

    /// The objects of one file. An object that does not decode stays as it was.
    fn decode_all(
        &mut self,
        name: &Arc<str>,
        documents: Vec<Value>,
        old: &BTreeMap<Id, Candidate>,
        changes: &mut Changes,
    ) -> BTreeMap<Id, Candidate> {
        let mut found: BTreeMap<Id, Candidate> = BTreeMap::new();
        let mut refused = Vec::new();
        for (document, value) in flatten(documents) {
            match decode(value) {
                Ok(Decoded::Object(id, manifest)) => {
                    if let Some(first) = found.get(&id) {
                        changes.errors.push(ManifestError {
                            file: name.to_string(),
                            document: Some(document),
                            object: Some(id.object_ref()),
                            field: None,
                            cause: format!("is defined in document {} already; that one counts", first.document),
                            stale: false,
                        });
                        continue;
                    }
                    let candidate = Candidate {
                        file: name.clone(),
                        document,
                        manifest: Arc::from(manifest),
                    };
                    found.insert(id, candidate);
                }
                Ok(Decoded::Skipped(kind)) => {
                    if self.skipped.insert(kind.clone()) {
                        changes.skipped.insert(kind);
                    }
                }
                Err(refusal) => refused.push((document, refusal)),
            }
        }
        for (document, refusal) in refused {
            let before = refusal.object.as_ref().and_then(|object| {
                old.iter()
                    .find(|(id, _)| id.object_ref() == *object && !found.contains_key(*id))
            });
            changes.errors.push(ManifestError {
                file: name.to_string(),
                document: Some(document),
                object: refusal.object.clone(),
                field: refusal.field,
                cause: refusal.cause,
                stale: before.is_some(),
            });
            if let Some((id, candidate)) = before {
                found.insert(id.clone(), candidate.clone());
            }
        }
        found
    }

    /// Notes that a file's objects changed from `old` to `new`.
    fn redefine(
        &mut self,
        name: &Arc<str>,
        old: &BTreeMap<Id, Candidate>,
        new: &BTreeMap<Id, Candidate>,
        touched: &mut BTreeSet<Id>,
    ) {
        for id in old.keys().filter(|id| !new.contains_key(*id)) {
            if let Some(files) = self.definitions.get_mut(id) {
                files.remove(name);
                if files.is_empty() {
                    self.definitions.remove(id);
                }
            }
            touched.insert(id.clone());
        }
        for (id, candidate) in new {
            self.definitions.entry(id.clone()).or_default().insert(name.clone());
            if old.get(id).is_none_or(|before| before.manifest != candidate.manifest) {
                touched.insert(id.clone());
            }
        }
    }

    /// Says of an object in several files which one counts.
    fn report_doubles(&self, id: &Id, changes: &mut Changes) {
        let Some(files) = self.definitions.get(id) else { return };
        let Some(first) = files.first() else { return };
        for name in files.iter().skip(1) {
            let document = self.files.get(name).and_then(|file| file.objects.get(id));
            changes.errors.push(ManifestError {
                file: name.to_string(),
                document: document.map(|candidate| candidate.document),
                object: Some(id.object_ref()),
                field: None,
                cause: format!("is defined in {first} already; that one counts"),
                stale: false,
            });
        }
    }
}

/// The manifests in a folder with their time stamps. Hidden files and subfolders are not read.
fn list(dir: &Path) -> std::io::Result<BTreeMap<Arc<str>, Stamp>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let Ok(name) = entry.file_name().into_string() else {
            continue;
        };
        let extension = name.rsplit_once('.').map(|(_, extension)| extension);
        if name.starts_with('.') || !matches!(extension, Some("yaml" | "yml" | "json")) {
            continue;
        }
        // Follows symbolic links, which is how a ConfigMap is mounted. A file may be gone by now.
        let Ok(meta) = std::fs::metadata(entry.path()) else {
            continue;
        };
        if meta.is_file() {
            let modified = meta.modified().unwrap_or(SystemTime::UNIX_EPOCH);
            found.insert(
                name.into(),
                Stamp {
                    modified,
                    len: meta.len(),
                },
            );
        }
    }
    Ok(found)
}

fn read(path: &Path) -> Result<String, String> {
    let file = std::fs::File::open(path).map_err(|error| error.to_string())?;
    let mut bytes = Vec::new();
    let limited = file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes);
    limited.map_err(|error| error.to_string())?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(format!("is larger than {} MiB", MAX_FILE_BYTES >> 20));
    }
    String::from_utf8(bytes).map_err(|error| format!("is not UTF-8 at byte {}", error.utf8_error().valid_up_to()))
}
