//! TLS to upstreams: who they must be, and who we are.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::exchange::ExchangeError;
use super::spec::{Options, Target};

/// What a configuration is made from.
type Key = (Option<PathBuf>, Option<(PathBuf, PathBuf)>, Vec<Vec<u8>>);

/// Configurations by what they are made from: reading the system's authorities takes tens of milliseconds.
static CONFIGS: Mutex<Option<HashMap<Key, Arc<ClientConfig>>>> = Mutex::new(None);

/// Opens TLS on a connection and checks the upstream's certificate.
///
/// # Errors
/// When files cannot be read, or the upstream is not who it should be.
pub async fn connect(
    target: &Target,
    options: &Options,
    protocols: &[&[u8]],
    stream: TcpStream,
) -> Result<TlsStream<TcpStream>, ExchangeError> {
    let failed = |cause: String| ExchangeError::Secure {
        upstream: target.to_string(),
        cause,
    };
    let config = config(options, protocols).map_err(failed)?;
    let name = match &target.server_name {
        Some(name) => ServerName::try_from(name.clone()).map_err(|e| failed(format!("{name:?}: {e}")))?,
        None => ServerName::from(target.address.ip()),
    };
    let connected = TlsConnector::from(config).connect(name, stream).await;
    connected.map_err(|error| failed(error.to_string()))
}

/// Reads the files again, so that a renewed certificate is used by new connections.
pub fn forget() {
    *CONFIGS.lock().unwrap_or_else(PoisonError::into_inner) = None;
}

fn config(options: &Options, protocols: &[&[u8]]) -> Result<Arc<ClientConfig>, String> {
    let protocols: Vec<Vec<u8>> = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    let key = (options.ca.clone(), options.client.clone(), protocols.clone());
    let mut configs = CONFIGS.lock().unwrap_or_else(PoisonError::into_inner);
    let configs = configs.get_or_insert_default();
    if let Some(known) = configs.get(&key) {
        return Ok(known.clone());
    }
    let roots = roots(options.ca.as_deref())?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots);
    let mut config = match &options.client {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => {
            let chain = certificates(certificate)?;
            let key = PrivateKeyDer::from_pem_file(key).map_err(|error| format!("{}: {error}", key.display()))?;
            builder
                .with_client_auth_cert(chain, key)
                .map_err(|error| error.to_string())?
        }
    };
    config.alpn_protocols = protocols;
    let config = Arc::new(config);
    configs.insert(key, config.clone());
    Ok(config)
}

fn roots(file: Option<&Path>) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    match file {
        Some(file) => {
            roots.add_parsable_certificates(certificates(file)?);
        }
        None => {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
    }
    if roots.is_empty() {
        return Err("there are no certificate authorities on this machine; name some with `tls CA`".to_owned());
    }
    Ok(roots)
}

fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let named = |error: rustls::pki_types::pem::Error| format!("{}: {error}", file.display());
    let found: Result<Vec<_>, _> = CertificateDer::pem_file_iter(file).map_err(named)?.collect();
    found.map_err(named)
}
