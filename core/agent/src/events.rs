//! Kubernetes Events: what a daemon tells the cluster about itself and about objects that it cannot serve.
//!
//! Telling is best effort: a recorder never blocks its daemon, forgets what it cannot send, and says the same thing at most
//! once in a while. Without an API server there is nobody to tell.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::api::PostParams;
use kube::{Api, Client};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::source::{Origin, SourceError, kube::client_config};

/// Events that may wait to be sent.
const WAITING: usize = 64;
/// The same thing is not said again for so long: an Event lives for an hour.
const REPEAT_AFTER: Duration = Duration::from_secs(600);
/// Attempts for one Event, and the pause between them.
const ATTEMPTS: u32 = 5;
const PAUSE: Duration = Duration::from_secs(2);

/// `type` of an Event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// All is well.
    Normal,
    /// Somebody has to look.
    Warning,
}

/// What an Event says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// `regarding.kind`: `Node` or `Service`.
    pub kind: &'static str,
    /// Namespace of the object; empty for a Node.
    pub namespace: String,
    /// Name of the object.
    pub name: String,
    /// `type`.
    pub severity: Severity,
    /// `reason`, such as `Starting`.
    pub reason: &'static str,
    /// `action`, such as `StartKubeProxy`.
    pub action: &'static str,
    /// `note`: a sentence.
    pub note: String,
}

/// Where to put notices. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Recorder(Option<mpsc::Sender<Notice>>);

// === impl Recorder ===

impl Recorder {
    /// Starts to send to the API server that `origin` names. A folder of manifests has none: notices are dropped.
    ///
    /// # Errors
    /// When the credentials cannot be read.
    pub async fn start(
        origin: &Origin,
        controller: &'static str,
        instance: String,
        shutdown: CancellationToken,
    ) -> Result<Self, SourceError> {
        let Origin::Kube(options) = origin else {
            return Ok(Self(None));
        };
        let config = client_config(options).await?;
        let client = Client::try_from(config).map_err(|cause| SourceError::Client(Box::new(cause)))?;
        let (sender, receiver) = mpsc::channel(WAITING);
        let sending = send_all(client, controller, instance, receiver);
        tokio::spawn(shutdown.run_until_cancelled_owned(sending));
        Ok(Self(Some(sender)))
    }

    /// A recorder that forgets everything.
    pub fn silent() -> Self {
        Self(None)
    }

    /// Hands a notice on; drops it when too many wait.
    pub fn record(&self, notice: Notice) {
        if let Some(sender) = &self.0
            && let Err(error) = sender.try_send(notice)
        {
            tracing::debug!(%error, "an Event is dropped");
        }
    }
}

async fn send_all(client: Client, controller: &'static str, instance: String, mut notices: mpsc::Receiver<Notice>) {
    let mut said: BTreeMap<(String, String, String), Instant> = BTreeMap::new();
    while let Some(notice) = notices.recv().await {
        let key = (
            format!("{}/{}", notice.namespace, notice.name),
            notice.reason.into(),
            notice.note.clone(),
        );
        let now = Instant::now();
        said.retain(|_, when| now.duration_since(*when) < REPEAT_AFTER);
        if said.insert(key, now).is_some() {
            continue;
        }
        // Events about objects without a namespace live in `default`.
        let namespace = if notice.namespace.is_empty() {
            "default"
        } else {
            &*notice.namespace
        };
        let api: Api<Event> = Api::namespaced(client.clone(), namespace);
        let event = event(&notice, namespace, controller, &instance);
        for attempt in 1..=ATTEMPTS {
            match api.create(&PostParams::default(), &event).await {
                Ok(_) => break,
                // The API server will not change its mind.
                Err(kube::Error::Api(status)) if (400..500).contains(&status.code) && status.code != 429 => {
                    tracing::warn!(
                        reason = notice.reason,
                        error = status.message,
                        "the API server refuses an Event"
                    );
                    break;
                }
                Err(error) if attempt == ATTEMPTS => {
                    tracing::debug!(reason = notice.reason, %error, "an Event could not be sent");
                }
                Err(_) => tokio::time::sleep(PAUSE * attempt).await,
            }
        }
    }
}

fn event(notice: &Notice, namespace: &str, controller: &str, instance: &str) -> Event {
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    let name = format!("{}.{:x}", notice.name, now.as_nanos());
    let regarding = ObjectReference {
        kind: Some(notice.kind.into()),
        namespace: Some(notice.namespace.clone()).filter(|namespace| !namespace.is_empty()),
        name: Some(notice.name.clone()),
        ..ObjectReference::default()
    };
    Event {
        metadata: ObjectMeta {
            name: Some(name),
            namespace: Some(namespace.into()),
            ..ObjectMeta::default()
        },
        action: Some(notice.action.into()),
        event_time: Some(MicroTime(k8s_openapi::jiff::Timestamp::now())),
        note: Some(notice.note.clone()),
        reason: Some(notice.reason.into()),
        regarding: Some(regarding),
        reporting_controller: Some(controller.into()),
        reporting_instance: Some(format!("{controller}-{instance}")),
        type_: Some(
            match notice.severity {
                Severity::Normal => "Normal",
                Severity::Warning => "Warning",
            }
            .into(),
        ),
        ..Event::default()
    }
}
