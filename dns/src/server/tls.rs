//! Certificates for the listeners that encrypt. A renewed certificate is taken without a restart.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwap;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use thiserror::Error;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::tcp::READ;

/// How often the files are looked at, when someone connects.
const LOOK: Duration = Duration::from_secs(10);

/// The files that a listener proves its name with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The certificate and those above it, in PEM.
    pub certificate: PathBuf,
    /// The private key, in PEM.
    pub key: PathBuf,
    /// Certificates that clients must be able to show one of; `None` lets everybody in.
    pub client_ca: Option<PathBuf>,
}

/// Why a certificate cannot be used.
#[derive(Debug, Error)]
pub enum TlsError {
    /// A file cannot be read, or holds nothing of the kind.
    #[error("cannot read {what} from {}: {cause}", file.display())]
    File {
        /// What it should hold.
        what: &'static str,
        /// The file.
        file: PathBuf,
        /// What is wrong.
        cause: rustls::pki_types::pem::Error,
    },
    /// They do not belong together, or are of a kind that is not known.
    #[error("the certificate in {} cannot be used: {cause}", file.display())]
    Refused {
        /// The file.
        file: PathBuf,
        /// What rustls says.
        cause: rustls::Error,
    },
    /// The client certificates cannot be checked with these.
    #[error("the certificates in {} cannot be used to check clients: {cause}", file.display())]
    ClientCa {
        /// The file.
        file: PathBuf,
        /// What rustls says.
        cause: rustls::server::VerifierBuilderError,
    },
}

/// Makes TLS of connections.
#[derive(Clone)]
pub(super) struct Acceptor(TlsAcceptor);

// === impl Acceptor ===

impl Acceptor {
    pub(super) fn new(config: ServerConfig) -> Self {
        Self(TlsAcceptor::from(Arc::new(config)))
    }

    /// The connection below TLS; `None` when the client does not get that far.
    pub(super) async fn accept(&self, stream: TcpStream) -> Option<TlsStream<TcpStream>> {
        match timeout(READ, self.0.accept(stream)).await {
            Ok(Ok(stream)) => Some(stream),
            Ok(Err(error)) => {
                tracing::debug!(%error, "a TLS handshake failed");
                None
            }
            Err(_) => None,
        }
    }
}

/// The configuration of a listener that speaks one of `protocols` (ALPN).
///
/// # Errors
/// Names the file that cannot be used.
pub(super) fn server_config(files: &TlsFiles, protocols: &[&[u8]]) -> Result<ServerConfig, TlsError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let refused = |cause| TlsError::Refused {
        file: files.certificate.clone(),
        cause,
    };
    let resolver = Arc::new(Certificate::read(files.clone())?);
    let builder = ServerConfig::builder_with_provider(provider.clone());
    let builder = builder.with_safe_default_protocol_versions().map_err(refused)?;
    let builder = match &files.client_ca {
        None => builder.with_no_client_auth(),
        Some(file) => {
            let mut roots = rustls::RootCertStore::empty();
            for certificate in certificates(file)? {
                roots.add(certificate).map_err(refused)?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
            builder.with_client_cert_verifier(verifier.map_err(|cause| TlsError::ClientCa {
                file: file.clone(),
                cause,
            })?)
        }
    };
    let mut config = builder.with_cert_resolver(resolver);
    config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
    Ok(config)
}

/// A certificate that follows its files.
#[derive(Debug)]
struct Certificate {
    files: TlsFiles,
    current: ArcSwap<CertifiedKey>,
    /// When the files were looked at, and when they had been changed then.
    looked: Mutex<(Instant, Option<SystemTime>)>,
}

// === impl Certificate ===

impl Certificate {
    fn read(files: TlsFiles) -> Result<Self, TlsError> {
        let current = certified_key(&files)?;
        Ok(Self {
            looked: Mutex::new((Instant::now(), changed(&files))),
            current: ArcSwap::from_pointee(current),
            files,
        })
    }

    fn follow(&self) {
        let mut looked = self.looked.lock().unwrap_or_else(PoisonError::into_inner);
        if looked.0.elapsed() < LOOK {
            return;
        }
        looked.0 = Instant::now();
        let now = changed(&self.files);
        if now == looked.1 {
            return;
        }
        match certified_key(&self.files) {
            Ok(key) => {
                looked.1 = now;
                self.current.store(Arc::new(key));
                tracing::info!(file = %self.files.certificate.display(), "took a renewed certificate");
            }
            // Perhaps one file is new and the other is not yet: the next look will tell.
            Err(error) => tracing::warn!(%error, "keeping the certificate that is in use"),
        }
    }
}

impl ResolvesServerCert for Certificate {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.follow();
        Some(self.current.load_full())
    }
}

fn changed(files: &TlsFiles) -> Option<SystemTime> {
    let time = |file: &Path| file.metadata().and_then(|meta| meta.modified()).ok();
    time(&files.certificate).max(time(&files.key))
}

fn certified_key(files: &TlsFiles) -> Result<CertifiedKey, TlsError> {
    let key = PrivateKeyDer::from_pem_file(&files.key).map_err(|cause| TlsError::File {
        what: "a private key",
        file: files.key.clone(),
        cause,
    })?;
    let provider = rustls::crypto::ring::default_provider();
    CertifiedKey::from_der(certificates(&files.certificate)?, key, &provider).map_err(|cause| TlsError::Refused {
        file: files.certificate.clone(),
        cause,
    })
}

fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let failed = |cause| TlsError::File {
        what: "certificates",
        file: file.to_owned(),
        cause,
    };
    let read = CertificateDer::pem_file_iter(file).map_err(failed)?;
    let certificates: Vec<_> = read.collect::<Result<_, _>>().map_err(failed)?;
    match certificates.is_empty() {
        true => Err(failed(rustls::pki_types::pem::Error::NoItemsFound)),
        false => Ok(certificates),
    }
}
