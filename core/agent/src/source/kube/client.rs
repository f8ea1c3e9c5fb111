//! client: where the API server is and who we are to it.

use std::time::Duration;

use ::kube::Config;
use ::kube::config::{KubeConfigOptions, Kubeconfig};
use axum::http::{HeaderValue, Uri, header::USER_AGENT};

use super::Options;
use crate::source::SourceError;

/// A connection attempt that takes longer has failed.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A watch on which nothing arrives for so long is dead: the server sends a bookmark every minute.
const READ_TIMEOUT: Duration = Duration::from_secs(150);

/// The kubeconfig, `--master`, or the pod's service account, in the way of kube-proxy.
pub(crate) async fn config(options: &Options) -> Result<Config, SourceError> {
    let master = match &options.master {
        Some(url) => Some(parse_master(url)?),
        None => None,
    };
    let mut config = match (&options.kubeconfig, master) {
        (Some(file), master) => {
            let failed = |cause| SourceError::Kubeconfig {
                file: file.clone(),
                cause: Box::new(cause),
            };
            let kubeconfig = Kubeconfig::read_from(file).map_err(failed)?;
            let current_context = KubeConfigOptions::default();
            let config = Config::from_custom_kubeconfig(kubeconfig, &current_context);
            let mut config = config.await.map_err(failed)?;
            if let Some(master) = master {
                config.cluster_url = master;
            }
            config
        }
        (None, master) => match (Config::incluster_env(), master) {
            (Ok(mut config), master) => {
                if let Some(master) = master {
                    config.cluster_url = master;
                }
                config
            }
            (Err(_), Some(master)) => Config::new(master),
            (Err(cause), None) => return Err(SourceError::NoSource(cause)),
        },
    };
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    config.read_timeout = Some(READ_TIMEOUT);
    config.reset_reader_on_write = true;
    // The watch has its own backoff, which also says what is wrong.
    config.default_retry = false;
    if let Ok(agent) = HeaderValue::from_str(&options.user_agent) {
        config.headers.push((USER_AGENT, agent));
    }
    Ok(config)
}

fn parse_master(url: &str) -> Result<Uri, SourceError> {
    let bad = || SourceError::Master { url: url.into() };
    // Go's flag takes a bare host:port for http, and so does this.
    let full = if url.contains("://") {
        url.to_string()
    } else {
        format!("http://{url}")
    };
    let uri: Uri = full.trim_end_matches('/').parse().map_err(|_| bad())?;
    let known = matches!(uri.scheme_str(), Some("http" | "https"));
    (known && uri.host().is_some_and(|host| !host.is_empty()))
        .then_some(uri)
        .ok_or_else(bad)
}
