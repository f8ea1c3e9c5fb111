//! The state file: which addresses each Service of a folder was given.
//!
//! Several daemons may read one folder (a proxy for every node of a lab and a DNS server). They share the file under a
//! lock, and what the file says wins over what a daemon remembers, so all of them agree.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

const STATE_FILE: &str = ".portolan-state.json";
const LOCK_FILE: &str = ".portolan-state.lock";
const VERSION: u32 = 1;

/// What one Service holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Record {
    #[serde(rename = "clusterIPs", skip_serializing_if = "Vec::is_empty")]
    pub(crate) cluster_ips: Vec<IpAddr>,
    /// Node port by Service port, such as `53/UDP`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) node_ports: BTreeMap<String, u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) health_check_node_port: Option<u16>,
}

/// Records by `namespace/name`.
pub(crate) type Records = BTreeMap<String, Record>;

#[derive(Serialize, Deserialize)]
struct Document {
    version: u32,
    services: Records,
}

/// Where records are kept.
#[derive(Debug)]
pub(crate) struct StateFile {
    /// `None`: nowhere; they live as long as the process.
    dir: Option<PathBuf>,
    /// Only look, never write.
    read_only: bool,
}

/// The state file while no other daemon may change it.
#[derive(Debug)]
pub(crate) struct Locked<'a> {
    state: &'a StateFile,
    /// Released when dropped.
    _lock: Option<File>,
}

// === impl StateFile ===

impl StateFile {
    /// Chooses the folder: the one that was named, else the manifest folder, else one under `$XDG_STATE_HOME`.
    pub(crate) fn choose(named: Option<&Path>, manifests: &Path, read_only: bool) -> Self {
        let fallback = fallback_dir(manifests);
        let candidates = match named {
            Some(named) => vec![named.to_path_buf()],
            None => [Some(manifests.to_path_buf()), fallback]
                .into_iter()
                .flatten()
                .collect(),
        };
        if read_only {
            let found = candidates.into_iter().find(|dir| dir.join(STATE_FILE).exists());
            return Self { dir: found, read_only };
        }
        let mut failures = Vec::new();
        for dir in candidates {
            match fs::create_dir_all(&dir).and_then(|()| open_lock(&dir)) {
                Ok(_) => {
                    if dir != manifests {
                        tracing::info!(dir = %dir.display(), "allocated addresses are recorded here");
                    }
                    return Self {
                        dir: Some(dir),
                        read_only,
                    };
                }
                Err(error) => failures.push(format!("{}: {error}", dir.display())),
            }
        }
        tracing::warn!(
            tried = failures.join("; "),
            "allocated addresses cannot be recorded: they may change at a restart. Give --state-dir"
        );
        Self { dir: None, read_only }
    }

    /// Records nothing.
    pub(crate) fn nowhere() -> Self {
        Self {
            dir: None,
            read_only: true,
        }
    }

    /// Waits until no other daemon uses the file.
    pub(crate) fn lock(&self) -> Locked<'_> {
        let lock = self.dir.as_deref().filter(|_| !self.read_only).and_then(|dir| {
            let lock = open_lock(dir).and_then(|file| file.lock().map(|()| file));
            lock.inspect_err(|error| tracing::debug!(dir = %dir.display(), %error, "no lock on the state file"))
                .ok()
        });
        Locked {
            state: self,
            _lock: lock,
        }
    }

    /// Changes whenever another daemon may have written.
    pub(crate) fn stamp(&self) -> Option<(std::time::SystemTime, u64)> {
        let meta = fs::metadata(self.dir.as_ref()?.join(STATE_FILE)).ok()?;
        Some((meta.modified().ok()?, meta.len()))
    }
}

// === impl Locked ===

impl Locked<'_> {
    /// What is recorded; `None` when nothing is or it cannot be read.
    pub(crate) fn load(&self) -> Option<Records> {
        let path = self.state.dir.as_ref()?.join(STATE_FILE);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => {
                tracing::warn!(file = %path.display(), %error, "recorded addresses cannot be read");
                return None;
            }
        };
        match serde_json::from_str::<Document>(&text) {
            Ok(document) if document.version == VERSION => Some(document.services),
            Ok(document) => {
                tracing::warn!(file = %path.display(), version = document.version, "unknown version of the state file");
                None
            }
            Err(error) => {
                tracing::warn!(file = %path.display(), %error, "recorded addresses cannot be read");
                None
            }
        }
    }

    /// Records, so that a crash leaves the old file or the new one.
    pub(crate) fn store(&self, records: &Records) {
        let Some(dir) = self.state.dir.as_ref().filter(|_| !self.state.read_only) else {
            return;
        };
        let stored = (|| {
            let document = Document {
                version: VERSION,
                services: records.clone(),
            };
            let mut text = serde_json::to_string_pretty(&document)?;
            text.push('\n');
            let new = dir.join(format!("{STATE_FILE}.{}", std::process::id()));
            fs::write(&new, text)?;
            fs::rename(&new, dir.join(STATE_FILE))
        })();
        if let Err(error) = stored {
            tracing::warn!(dir = %dir.display(), %error, "allocated addresses cannot be recorded");
        }
    }
}

fn open_lock(dir: &Path) -> io::Result<File> {
    OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(dir.join(LOCK_FILE))
}

/// A folder of its own for every manifest folder, so that two labs on one machine do not share addresses.
fn fallback_dir(manifests: &Path) -> Option<PathBuf> {
    let home = match std::env::var_os("XDG_STATE_HOME").filter(|home| !home.is_empty()) {
        Some(home) => PathBuf::from(home),
        None => PathBuf::from(std::env::var_os("HOME").filter(|home| !home.is_empty())?).join(".local/state"),
    };
    let canonical = fs::canonicalize(manifests).ok()?;
    let hash = super::names::fnv1a(&canonical.to_string_lossy());
    Some(home.join("portolan").join(format!("manifests-{hash:016x}")))
}
