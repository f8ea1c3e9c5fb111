//! What can go wrong in a source: problems it lives with, and errors that keep it from starting.

use std::fmt;
use std::path::PathBuf;

use portolan_model::{Fault, ObjectRef};

/// Something that cannot be used. The source goes on; what was known before stays in force.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum Problem {
    /// In an object from the API server.
    #[error(transparent)]
    Object(#[from] Fault),
    /// In a manifest.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
}

/// Something in a manifest that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ManifestError {
    /// The file's name inside the folder.
    pub file: String,
    /// Which document of the file, counted from 1 (empty documents do not count).
    pub document: Option<usize>,
    /// The object, once so much of it is known.
    pub object: Option<ObjectRef>,
    /// Path of the field, such as `spec.ports[1].name`.
    pub field: Option<String>,
    /// What is wrong.
    pub cause: String,
    /// An earlier version of the file or object stays in force.
    pub stale: bool,
}

impl fmt::Display for ManifestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.file)?;
        if let Some(document) = self.document {
            write!(f, "document {document}: ")?;
        }
        if let Some(object) = &self.object {
            write!(f, "{object}: ")?;
        }
        if let Some(field) = self.field.as_deref().filter(|field| !field.is_empty()) {
            write!(f, "{field}: ")?;
        }
        f.write_str(&self.cause)?;
        if self.stale {
            f.write_str("; the last good version stays in force")?;
        }
        Ok(())
    }
}

impl std::error::Error for ManifestError {}

/// Why a source cannot start.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// No source was named and this is no pod.
    #[error(
        "no source of objects: give --manifests DIR, --kubeconfig FILE or --master URL, or run in a pod of the cluster ({0})"
    )]
    NoSource(#[source] ::kube::config::InClusterError),
    /// The kubeconfig cannot be used.
    #[error("kubeconfig {}: {cause}", file.display())]
    Kubeconfig {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        #[source]
        cause: Box<::kube::config::KubeconfigError>,
    },
    /// `--master` is no URL.
    #[error("--master {url:?} is not a URL such as https://10.0.0.1:6443")]
    Master {
        /// What was given.
        url: String,
    },
    /// The credentials or certificates cannot be used.
    #[error("cannot make a client for the API server: {0}")]
    Client(#[source] Box<::kube::Error>),
    /// The manifest folder cannot be read.
    #[error("--manifests {}: {cause}", dir.display())]
    Folder {
        /// The folder.
        dir: PathBuf,
        /// What is wrong with it.
        #[source]
        cause: std::io::Error,
    },
    /// A thread could not be started.
    #[error("cannot start the thread that reads manifests: {0}")]
    Thread(#[source] std::io::Error),
    /// The source did not become complete in time.
    #[error("not complete within {seconds} s: still waiting for {}", pending.join(", "))]
    Incomplete {
        /// How long was waited.
        seconds: u64,
        /// The kinds that are missing, with their last error.
        pending: Vec<String>,
    },
    /// The source ended before it was complete.
    #[error("the source ended before it was complete: still waiting for {}", pending.join(", "))]
    Ended {
        /// The kinds that are missing, with their last error.
        pending: Vec<String>,
    },
}
