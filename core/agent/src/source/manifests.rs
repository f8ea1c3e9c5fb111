//! A folder of manifests as a source. It plays the control plane: defaults, allocation, EndpointSlices from Pods.
//!
//! Every `*.yaml`, `*.yml` and `*.json` directly in the folder is read and followed. A file that cannot be read and an
//! object that the API server would refuse change nothing: the last good version stays in force, as it does in a
//! cluster when `kubectl apply` fails. Files are watched by the operating system's notifications, and looked at once a
//! second beside that, so that it also works where there are none.
//!
//! ```text
//! files (documents) -> objects (decode) -> Cluster: validate, allocate, derive slices -> Events
//! ```

mod allocate;
mod cluster;
mod decode;
mod documents;
mod files;
mod follow;
mod names;
mod slices;
mod state;
mod validate;

use std::path::PathBuf;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use tokio_util::sync::CancellationToken;

use super::feed::{Feed, channel};
use super::{SourceError, Wants};

/// The one kind that this source reports to [`super::Health`].
pub const KIND: &str = "manifests";

/// How to read a folder.
#[derive(Clone, Debug)]
pub struct Options {
    /// The folder.
    pub dir: PathBuf,
    /// Folder of the state file. `None`: the manifest folder itself, or `$XDG_STATE_HOME/portolan` where that cannot be
    /// written. The manifest folder comes first because several daemons that read it must agree on every address.
    pub state_dir: Option<PathBuf>,
    /// Ranges of cluster IPs, at most one of each family; the first is the default family. Empty means the default.
    pub service_ranges: Vec<IpNet>,
    /// Follow changes and record allocations. Without it the folder is read once and nothing is written.
    pub follow: bool,
}

/// `10.96.0.0/16` and `fd00:96::/112`.
pub fn default_service_ranges() -> Vec<IpNet> {
    const V4: Ipv4Net = Ipv4Net::new_assert(std::net::Ipv4Addr::new(10, 96, 0, 0), 16);
    const V6: Ipv6Net = Ipv6Net::new_assert(std::net::Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, 0), 112);
    vec![V4.into(), V6.into()]
}

// === impl Options ===

impl Options {
    /// Follows `dir` with the default ranges.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self {
            dir: dir.into(),
            state_dir: None,
            service_ranges: default_service_ranges(),
            follow: true,
        }
    }
}

/// Starts reading; see [`super::start`].
pub(crate) fn start(options: Options, wants: Wants, shutdown: CancellationToken) -> Result<Feed, SourceError> {
    let cannot_read = |cause| SourceError::Folder {
        dir: options.dir.clone(),
        cause,
    };
    std::fs::read_dir(&options.dir).map_err(cannot_read)?;
    let (sink, feed) = channel(&[KIND]);
    follow::spawn(options, wants, sink, shutdown).map_err(SourceError::Thread)?;
    Ok(feed)
}

#[cfg(test)]
mod tests;
