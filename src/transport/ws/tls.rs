//! Certificates: the server's own, renewed while it runs, and those that a client trusts.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls;
use tracing::{info, warn};

use rustls::crypto::CryptoProvider;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, RootCertStore, ServerConfig};

/// How often files are looked at.
pub(super) const RELOAD_INTERVAL: Duration = Duration::from_secs(2);

/// Where a server's certificate is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// PEM with the server's certificate, and after it those up to (and without) the root: `fullchain.pem`.
    pub cert: PathBuf,
    /// PEM with the certificate's private key: `privkey.pem`.
    pub key: PathBuf,
}

/// Why there is no TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file is missing, not readable, or no PEM.
    #[error("cannot read the {what} in {}: {why}", path.display())]
    File {
        /// What should be in it.
        what: &'static str,
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The files are readable, and of no use.
    #[error(
        "the certificate in {} and the key in {} cannot be used: {why}; give a key and the certificate made for it",
        files.cert.display(),
        files.key.display()
    )]
    Unusable {
        /// The files.
        files: TlsFiles,
        /// What is wrong with them.
        why: String,
    },
    /// TLS itself.
    #[error("cannot set up TLS: {0}")]
    Setup(String),
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let error = |why: String| TlsError::File {
        what: "certificates",
        path: path.to_owned(),
        why,
    };
    let certificates: Vec<_> = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect)
        .map_err(|source| error(source.to_string()))?;
    if certificates.is_empty() {
        return Err(error("it has no `BEGIN CERTIFICATE`".into()));
    }
    Ok(certificates)
}

fn load(files: &TlsFiles) -> Result<CertifiedKey, TlsError> {
    let certificates = read_certificates(&files.cert)?;
    let key = PrivateKeyDer::from_pem_file(&files.key).map_err(|source| TlsError::File {
        what: "private key",
        path: files.key.clone(),
        why: source.to_string(),
    })?;
    CertifiedKey::from_der(certificates, key, &provider()).map_err(|source| TlsError::Unusable {
        files: files.clone(),
        why: source.to_string(),
    })
}

/// A server's certificate, which is read again when its files change.
#[derive(Debug)]
pub(super) struct Certificate {
    files: TlsFiles,
    /// Of the files, before they were first read.
    loaded: Changed,
    current: RwLock<Arc<CertifiedKey>>,
}

/// When each file was last changed; `None` while there is none, as in the middle of a renewal.
type Changed = [Option<SystemTime>; 2];

fn changed(files: &TlsFiles) -> Changed {
    [&files.cert, &files.key].map(|path| std::fs::metadata(path).ok()?.modified().ok())
}

impl Certificate {
    /// # Errors
    /// If the files do not hold a certificate and its key.
    pub fn load(files: TlsFiles) -> Result<Arc<Self>, TlsError> {
        let loaded = changed(&files);
        let current = RwLock::new(Arc::new(load(&files)?));
        Ok(Arc::new(Self {
            files,
            loaded,
            current,
        }))
    }

    /// How to accept connections with it.
    pub fn server_config(self: &Arc<Self>) -> Result<ServerConfig, TlsError> {
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(|error| TlsError::Setup(error.to_string()))?
            .with_no_client_auth()
            .with_cert_resolver(self.clone());
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(config)
    }

    /// Reads the files again. What cannot be used leaves what is in use.
    fn reload(&self) {
        match load(&self.files) {
            Ok(new) => {
                *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(new);
                info!("new certificate from {}", self.files.cert.display());
            }
            Err(error) => warn!("the old certificate stays in use: {error}"),
        }
    }

    /// Reloads whenever a file has changed.
    pub async fn keep_fresh(self: Arc<Self>, every: Duration) {
        let mut seen = self.loaded;
        loop {
            tokio::time::sleep(every).await;
            let certificate = self.clone();
            // Files can be slow.
            let looked = tokio::task::spawn_blocking(move || {
                let changed = changed(&certificate.files);
                // Two files are not written at once; with one missing, more is to come.
                if changed != seen && changed.iter().all(Option::is_some) {
                    certificate.reload();
                    return changed;
                }
                seen
            });
            if let Ok(changed) = looked.await {
                seen = changed;
            }
        }
    }
}

impl ResolvesServerCert for Certificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
        Some(current.clone())
    }
}

/// How a client connects: it trusts what browsers trust, and the certificates in `ca`.
///
/// # Errors
/// If `ca` cannot be read.
pub(super) fn client_config(ca: Option<&Path>) -> Result<Arc<ClientConfig>, TlsError> {
    let mut roots = RootCertStore::from_iter(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    if let Some(path) = ca {
        for certificate in read_certificates(path)? {
            roots.add(certificate).map_err(|error| TlsError::File {
                what: "certificates",
                path: path.to_owned(),
                why: error.to_string(),
            })?;
        }
    }
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| TlsError::Setup(error.to_string()))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}
