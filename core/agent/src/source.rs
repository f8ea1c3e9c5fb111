//! Where objects come from: the Kubernetes API or a folder of manifests.
//!
//! Both kinds of source yield the same [`Batch`]es of [`Event`]s through a [`Feed`]. A source never fails as a whole
//! because of one bad object, never deletes what it merely failed to read, and goes on trying for as long as it runs.
//!
//! ```no_run
//! # async fn run(args: portolan_agent::source::SourceArgs) -> anyhow::Result<()> {
//! use portolan_agent::source::{self, Wants};
//! use tokio_util::sync::CancellationToken;
//!
//! let config = args.config(Wants::forwarding(), "portolan-proxy");
//! let mut feed = source::start(config, CancellationToken::new()).await?;
//! while let Some(batch) = feed.next().await {
//!     // apply batch.events to the World; act on it once batch.synced is true.
//! }
//! # Ok(())
//! # }
//! ```
//!
//! [`Event`]: portolan_model::Event

mod args;
mod feed;
mod health;
pub mod kube;
pub mod manifests;
mod once;
mod problem;
pub mod store;
mod wants;

pub use args::SourceArgs;
pub use feed::{Batch, Closed, Feed, Sink, channel};
pub use health::{Health, KindHealth};
pub use once::{Snapshot, read_once};
pub use problem::{ManifestError, Problem, SourceError};
pub use wants::{NodeSelection, ServiceSelection, SliceSelection, Wants};

use tokio_util::sync::CancellationToken;

/// What a daemon reads, and from where.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where objects come from.
    pub origin: Origin,
    /// Which kinds and which objects of them.
    pub wants: Wants,
}

/// Where objects come from.
#[derive(Clone, Debug)]
pub enum Origin {
    /// A Kubernetes API server.
    Kube(kube::Options),
    /// A folder of manifests; the source plays the control plane.
    Manifests(manifests::Options),
}

/// Starts reading. The source runs until `shutdown` is cancelled or the Feed is dropped.
///
/// An API server that cannot be reached yet is no error: the source goes on trying and [`Feed::health`] says so.
///
/// # Errors
/// Only what no waiting can mend: no source was named, an unreadable kubeconfig, a folder that is not there.
pub async fn start(config: Config, shutdown: CancellationToken) -> Result<Feed, SourceError> {
    match config.origin {
        Origin::Kube(options) => kube::start(options, config.wants, shutdown).await,
        Origin::Manifests(options) => manifests::start(options, config.wants, shutdown),
    }
}
