//! watch: one task for each kind that keeps its watch going, whatever happens to the API server.
//!
//! The first list takes what the API server has at hand (`resourceVersion=0`), as every node's list at once would be a
//! burden for etcd; the watch brings what is newer. A later list never goes back behind what was seen, and when the server
//! cannot answer that, the newest state is asked for.

use std::hash::{BuildHasher, RandomState};
use std::ops::Range;
use std::time::{Duration, Instant};

use ::kube::Client;
use ::kube::core::Request;
use ::kube::core::params::{ListParams, VersionMatch, WatchParams};
use axum::body::{Body, Bytes};
use axum::http::header::{ACCEPT, ACCEPT_ENCODING, CONTENT_TYPE};
use axum::http::{self, HeaderValue, Response};
use futures::StreamExt;
use tokio_util::sync::CancellationToken;

use super::body::{
    ACCEPT_LIST, ACCEPT_WATCH, Answer, ListBody, Malformed, Place, Told, WatchBody, is_protobuf, refusal,
};
use super::kinds::Watched;
use super::mirror::{Mirror, Output};
use crate::source::feed::{Closed, PARCEL_EVENTS, Sink};

/// First and longest wait after a failure.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(15));
/// How often a kind that the API server does not have is asked for again.
const ABSENT: Duration = Duration::from_secs(300);
/// A watch that ends sooner without a word is not asked for again at once.
const HASTY: Duration = Duration::from_secs(1);
/// How long a watch may last, in seconds: the server ends it then.
const WATCH_SECONDS: Range<u32> = 200..290;
/// Objects in a page of a list. Servers that answer from memory ignore it.
const PAGE: u32 = 500;
/// A refusal of more bytes is cut.
const REFUSAL_BYTES: usize = 64 * 1024;

/// Which objects of a kind.
#[derive(Clone, Debug, Default)]
pub(crate) struct Selection {
    pub(crate) labels: Option<String>,
    pub(crate) fields: Option<String>,
}

/// What every watch needs.
pub(crate) struct Watches {
    pub(crate) client: Client,
    pub(crate) sink: Sink,
    pub(crate) shutdown: CancellationToken,
    /// Names of endpoints are wanted.
    pub(crate) names: bool,
}

/// Why a list or a watch ended before its time.
#[derive(Debug, thiserror::Error)]
enum WatchError {
    #[error(transparent)]
    Request(#[from] ::kube::Error),
    #[error("the API server refuses: {message} ({code})")]
    Refused { code: u16, message: String },
    #[error("the answer broke off: {0}")]
    Cut(#[source] axum::Error),
    #[error(transparent)]
    Malformed(#[from] Malformed),
    #[error(transparent)]
    Closed(#[from] Closed),
}

impl From<Answer> for WatchError {
    fn from(Answer { code, message }: Answer) -> Self {
        Self::Refused { code, message }
    }
}

impl WatchError {
    fn code(&self) -> Option<u16> {
        match self {
            Self::Refused { code, .. } => Some(*code),
            _ => None,
        }
    }
}

// === impl Watches ===

impl Watches {
    /// Starts the watch of a kind. It ends with `shutdown` or when the Feed is dropped.
    pub(crate) fn spawn<K: Watched>(&self, selection: Selection) {
        let task = Task {
            client: self.client.clone(),
            request: Request::new(K::url_path(&(), None)),
            selection,
            names: self.names,
            sink: self.sink.clone(),
            mirror: Mirror::default(),
            seen: None,
            newest: false,
            failures: 0,
            synced: false,
        };
        let shutdown = self.shutdown.clone();
        // `Closed` means that nobody listens any more.
        tokio::spawn(shutdown.run_until_cancelled_owned(task.run::<K>()));
    }
}

struct Task {
    client: Client,
    request: Request,
    selection: Selection,
    names: bool,
    sink: Sink,
    mirror: Mirror,
    /// The newest version that was seen.
    seen: Option<String>,
    /// The next list has to be the newest state, whatever it costs the server.
    newest: bool,
    /// Failures since the last success.
    failures: u32,
    synced: bool,
}

// === impl Task ===

impl Task {
    async fn run<K: Watched>(mut self) -> Result<(), Closed> {
        loop {
            match self.list::<K>().await {
                Ok(()) => {
                    self.newest = false;
                    self.synced::<K>().await?;
                    self.follow::<K>().await?;
                }
                Err(error) => {
                    // The server is behind what was seen, or a page's place was forgotten.
                    self.newest = matches!(error.code(), Some(410 | 504));
                    let pause = self.failed::<K>(error).await?;
                    tokio::time::sleep(pause).await;
                }
            }
        }
    }

    /// Watches until the place to go on from is forgotten.
    async fn follow<K: Watched>(&mut self) -> Result<(), Closed> {
        loop {
            let began = Instant::now();
            let error = match self.watch::<K>().await {
                // The connection ended, as it does when a server restarts. If the next one fails, that is news.
                Ok(told) | Err((WatchError::Cut(_), told)) => {
                    if !told && began.elapsed() < HASTY {
                        tokio::time::sleep(backoff(0)).await;
                    }
                    continue;
                }
                Err((error, _)) => error,
            };
            let forgotten = error.code() == Some(410);
            let pause = self.failed::<K>(error).await?;
            tokio::time::sleep(pause).await;
            if forgotten {
                return Ok(());
            }
        }
    }

    /// Lists everything, page by page.
    async fn list<K: Watched>(&mut self) -> Result<(), WatchError> {
        let version = match &self.seen {
            _ if self.newest => None,
            Some(seen) => Some(seen.clone()),
            None => Some("0".into()),
        };
        let mut page = ListParams {
            label_selector: self.selection.labels.clone(),
            field_selector: self.selection.fields.clone(),
            limit: Some(PAGE),
            version_match: version.is_some().then_some(VersionMatch::NotOlderThan),
            resource_version: version,
            ..ListParams::default()
        };
        self.mirror.begin();
        loop {
            let request = self.request.list(&page).map_err(::kube::Error::BuildRequest)?;
            let place = self.page::<K>(request).await?;
            let Some(more) = place.more else {
                let mut output = Output::default();
                self.mirror.end(&mut output);
                self.seen = Some(place.version);
                return Ok(self.sink.send(output.events, output.problems).await?);
            };
            // A page is of the version that its list began with.
            page.continue_token = Some(more);
            page.resource_version = None;
            page.version_match = None;
        }
    }

    async fn page<K: Watched>(&mut self, request: http::Request<Vec<u8>>) -> Result<Place, WatchError> {
        let (protobuf, mut chunks) = self.ask::<K>(request, ACCEPT_LIST).await?;
        let mut body = ListBody::new(protobuf);
        let mut output = Output::default();
        while let Some(chunk) = chunks.next().await {
            let chunk = chunk.map_err(WatchError::Cut)?;
            body.push::<K>(&chunk, self.names, |object| self.mirror.apply(&object, &mut output))?;
            if output.events.len() >= PARCEL_EVENTS {
                let Output { events, problems } = std::mem::take(&mut output);
                self.tell(events, problems).await?;
            }
        }
        let place = body.finish::<K>(|object| self.mirror.apply(&object, &mut output))?;
        self.tell(output.events, output.problems).await?;
        self.failures = 0;
        Ok(place)
    }

    /// Watches from what was seen on. Also yields whether anything was told.
    async fn watch<K: Watched>(&mut self) -> Result<bool, (WatchError, bool)> {
        let mut told = false;
        match self.watch_into::<K>(&mut told).await {
            Ok(()) => Ok(told),
            Err(error) => Err((error, told)),
        }
    }

    async fn watch_into<K: Watched>(&mut self, told: &mut bool) -> Result<(), WatchError> {
        let watch = WatchParams {
            label_selector: self.selection.labels.clone(),
            field_selector: self.selection.fields.clone(),
            // Not all at once, where one server's restart has all nodes begin at once.
            timeout: Some(WATCH_SECONDS.start + random(0) % (WATCH_SECONDS.end - WATCH_SECONDS.start)),
            ..WatchParams::default()
        };
        let seen = self.seen.as_deref().unwrap_or_default();
        let request = self.request.watch(&watch, seen).map_err(::kube::Error::BuildRequest)?;
        let (protobuf, mut chunks) = self.ask::<K>(request, ACCEPT_WATCH).await?;
        let mut body = WatchBody::new(protobuf);
        while let Some(chunk) = chunks.next().await {
            let chunk = chunk.map_err(WatchError::Cut)?;
            // What has arrived together goes on together; what has not is not waited for.
            let mut output = Output::default();
            let mut ended = None;
            let (mirror, seen) = (&mut self.mirror, &mut self.seen);
            let read = body.push::<K>(&chunk, self.names, |event| {
                let object = match &event {
                    Told::Applied(object) => {
                        mirror.apply(object, &mut output);
                        object
                    }
                    Told::Deleted(object) => {
                        mirror.delete(object, &mut output);
                        object
                    }
                    Told::Bookmark(object) => object,
                    Told::Ended(answer) => {
                        ended = Some(answer.clone());
                        return;
                    }
                };
                *told = true;
                if let Some(version) = &object.meta().resource_version {
                    *seen = Some(version.clone());
                }
            });
            // What came before something unreadable counts: the next watch goes on behind it.
            self.tell(output.events, output.problems).await?;
            read?;
            if let Some(answer) = ended {
                return Err(answer.into());
            }
            self.failures = 0;
        }
        Ok(())
    }

    /// Sends a request; yields whether the answer is in protobuf, and what arrives of it.
    async fn ask<K: Watched>(
        &self,
        mut request: http::Request<Vec<u8>>,
        accept: &'static str,
    ) -> Result<
        (
            bool,
            impl futures::Stream<Item = Result<Bytes, axum::Error>> + Unpin + use<K>,
        ),
        WatchError,
    > {
        let headers = request.headers_mut();
        headers.insert(ACCEPT, HeaderValue::from_static(accept));
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        let answer: Response<_> = self.client.send(request.map(::kube::client::Body::from)).await?;
        let (head, body) = answer.into_parts();
        if !head.status.is_success() {
            let body = axum::body::to_bytes(Body::new(body), REFUSAL_BYTES)
                .await
                .unwrap_or_default();
            return Err(refusal(head.status.as_u16(), &body).into());
        }
        if self.sink.health.up(K::NAME) {
            tracing::info!(kind = K::NAME, "connected to the API server");
        }
        Ok((
            is_protobuf(head.headers.get(CONTENT_TYPE)),
            Body::new(body).into_data_stream(),
        ))
    }

    async fn tell(
        &self,
        events: Vec<portolan_model::Event>,
        problems: Vec<crate::source::Problem>,
    ) -> Result<(), Closed> {
        for problem in &problems {
            tracing::warn!("{problem}");
        }
        self.sink.send(events, problems).await
    }

    async fn synced<K: Watched>(&mut self) -> Result<(), Closed> {
        if !std::mem::replace(&mut self.synced, true) {
            self.sink.synced(K::NAME).await?;
        }
        Ok(())
    }

    /// Notes a failure, says so if it is news, and returns how long to wait.
    async fn failed<K: Watched>(&mut self, error: WatchError) -> Result<Duration, Closed> {
        let code = error.code();
        if let WatchError::Closed(closed) = error {
            return Err(closed);
        }
        if K::OPTIONAL && code == Some(404) {
            if !self.synced {
                tracing::info!(
                    kind = K::NAME,
                    "the API server does not have this kind; going on without"
                );
            }
            self.sink.health.up(K::NAME);
            self.synced::<K>().await?;
            return Ok(ABSENT);
        }
        // hyper hides "connection refused" two levels down.
        let text = crate::telemetry::one_line(&error);
        // A forgotten place (410) is the ordinary course of things.
        if code != Some(410) && self.sink.health.down(K::NAME, text.clone()) {
            tracing::warn!(
                kind = K::NAME,
                error = text,
                "no watch; what is known stays in force, trying again"
            );
        }
        let pause = backoff(self.failures);
        self.failures = self.failures.saturating_add(1);
        Ok(pause)
    }
}

/// Doubles from failure to failure; half of it is random, so that the nodes of a cluster do not come back as one.
fn backoff(failures: u32) -> Duration {
    let (first, longest) = BACKOFF;
    let full = first.saturating_mul(1 << failures.min(10)).min(longest);
    full / 2 + full.mul_f64(f64::from(random(failures) % 1024) / 2048.0)
}

fn random(salt: u32) -> u32 {
    RandomState::new().hash_one(salt) as u32
}
