//! The Kubernetes API as a source: one watch for each kind, with kube-proxy's filters, in protobuf where the server has it.
//!
//! A watch resumes where it broke off. When the server has forgotten that place (410) everything is listed anew, and only
//! then is deleted what the new list lacks: there is never a moment in which a known object is missing. An object that
//! cannot be used leaves its earlier version in force. The API server's own name and Service are never needed: in a pod
//! the address in `KUBERNETES_SERVICE_HOST` is used as it is, unless `--master` names another.

mod body;
mod client;
mod kinds;
mod mirror;
mod objects;
mod protobuf;
mod watch;

use std::path::PathBuf;

use ::kube::Client;
use k8s_openapi::api::{core::v1 as core, discovery::v1 as discovery, networking::v1 as networking};
use tokio_util::sync::CancellationToken;

use super::feed::channel;
use super::wants::{HEADLESS_LABEL, SERVICE_PROXY_NAME_LABEL};
use super::{Feed, NodeSelection, ServiceSelection, SliceSelection, SourceError, Wants};
pub(crate) use kinds::ServiceImport;
use kinds::Watched;
use watch::{Selection, Watches};

/// How to reach the API server.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Kubeconfig file. `None`: `master` alone, or the pod's service account.
    pub kubeconfig: Option<PathBuf>,
    /// Address of the API server; overrides the kubeconfig's.
    pub master: Option<String>,
    /// What the API server logs as our name, such as `portolan-proxy/0.1.0`.
    pub user_agent: String,
}

/// The client configuration for other talk with the same API server, such as Events.
pub(crate) async fn client_config(options: &Options) -> Result<::kube::Config, SourceError> {
    client::config(options).await
}

/// Starts reading; see [`super::start`].
pub(crate) async fn start(options: Options, wants: Wants, shutdown: CancellationToken) -> Result<Feed, SourceError> {
    let config = client::config(&options).await?;
    let (sink, feed) = channel(&kinds_of(&wants));
    let client = Client::try_from(config).map_err(|cause| SourceError::Client(Box::new(cause)))?;
    let watches = Watches {
        client,
        sink,
        shutdown,
        names: wants.endpoint_names,
    };
    let all = Selection::default;
    let selected = || labelled(&[&wants.labels.to_string()]);
    watches.spawn::<core::Service>(match wants.services {
        ServiceSelection::All => selected(),
        ServiceSelection::Forwarded => {
            let ours = format!("!{SERVICE_PROXY_NAME_LABEL}");
            Selection {
                fields: Some("spec.clusterIP!=None".into()),
                ..labelled(&[&ours, &wants.labels.to_string()])
            }
        }
    });
    match wants.slices {
        SliceSelection::All => watches.spawn::<discovery::EndpointSlice>(all()),
        SliceSelection::Forwarded => {
            watches.spawn::<discovery::EndpointSlice>(labelled(&[&format!("!{HEADLESS_LABEL}")]));
        }
        SliceSelection::None => {}
    }
    match &wants.nodes {
        NodeSelection::None => {}
        NodeSelection::Named(name) => watches.spawn::<core::Node>(Selection {
            labels: None,
            fields: Some(format!("metadata.name={name}")),
        }),
        NodeSelection::All => watches.spawn::<core::Node>(all()),
    }
    if wants.namespaces {
        watches.spawn::<core::Namespace>(all());
    }
    if wants.pods {
        watches.spawn::<core::Pod>(selected());
    }
    if wants.imports {
        watches.spawn::<ServiceImport>(all());
    }
    if wants.service_cidrs {
        watches.spawn::<networking::ServiceCIDR>(all());
    }
    Ok(feed)
}

/// What fulfils every one of the selectors; an empty one asks for nothing.
fn labelled(selectors: &[&str]) -> Selection {
    let asked: Vec<&str> = selectors.iter().copied().filter(|text| !text.is_empty()).collect();
    Selection {
        labels: (!asked.is_empty()).then(|| asked.join(",")),
        fields: None,
    }
}

fn kinds_of(wants: &Wants) -> Vec<&'static str> {
    let kinds = [
        (core::Service::NAME, true),
        (discovery::EndpointSlice::NAME, wants.slices != SliceSelection::None),
        (core::Node::NAME, wants.nodes != NodeSelection::None),
        (core::Namespace::NAME, wants.namespaces),
        (core::Pod::NAME, wants.pods),
        (networking::ServiceCIDR::NAME, wants.service_cidrs),
        (ServiceImport::NAME, wants.imports),
    ];
    kinds
        .into_iter()
        .filter(|(_, wanted)| *wanted)
        .map(|(kind, _)| kind)
        .collect()
}

#[cfg(test)]
mod tests;
