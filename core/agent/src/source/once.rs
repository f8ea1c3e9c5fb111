//! Reading a source once: for `plan`, `explain`, `answer` and other commands that look and end.

use std::time::Duration;

use portolan_model::{Delta, World};
use tokio_util::sync::CancellationToken;

use super::{Config, Origin, Problem, SourceError, start};

/// Everything that a source knew at one moment.
#[derive(Debug)]
pub struct Snapshot {
    /// The cluster.
    pub world: World,
    /// What could not be used.
    pub problems: Vec<Problem>,
}

/// Reads until every wanted kind is complete, then ends the source. A manifest folder is only looked at: no allocation
/// is recorded.
///
/// # Errors
/// When the source cannot start, or is not complete after `patience`.
pub async fn read_once(mut config: Config, patience: Duration) -> Result<Snapshot, SourceError> {
    if let Origin::Manifests(options) = &mut config.origin {
        options.follow = false;
    }
    let shutdown = CancellationToken::new();
    let _ends_the_source = shutdown.clone().drop_guard();
    let mut feed = start(config, shutdown).await?;
    let mut world = World::default();
    let mut problems = Vec::new();
    let complete = async {
        let mut delta = Delta::default();
        while let Some(batch) = feed.next().await {
            for event in batch.events {
                world.apply(event, &mut delta);
            }
            problems.extend(batch.problems);
            if batch.synced {
                return true;
            }
        }
        false
    };
    let complete = tokio::time::timeout(patience, complete).await;
    let pending = feed.health().pending();
    match complete {
        Ok(true) => Ok(Snapshot { world, problems }),
        Ok(false) => Err(SourceError::Ended { pending }),
        Err(_) => Err(SourceError::Incomplete {
            seconds: patience.as_secs(),
            pending,
        }),
    }
}
