//! TLS to clients: a certificate and its key, read from files, and read again when they were renewed.

use std::path::{Path, PathBuf};
use std::sync::{Arc, RwLock};

use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::TlsAcceptor;

/// What is offered, the best first.
const PROTOCOLS: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// Why a certificate cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("cannot use {}: {reason}", path.display())]
pub struct Unusable {
    path: PathBuf,
    reason: String,
}

/// A certificate in use.
#[derive(Debug)]
pub struct Certificate {
    chain: PathBuf,
    key: PathBuf,
    // Held for a look-up, never across an await.
    current: RwLock<Arc<ServerConfig>>,
}

impl Certificate {
    /// Reads a chain of certificates and the key of the first one, PEM both.
    pub fn read(chain: &Path, key: &Path) -> Result<Self, Unusable> {
        Ok(Certificate {
            chain: chain.to_owned(),
            key: key.to_owned(),
            current: RwLock::new(config(chain, key)?),
        })
    }

    /// Reads the files again, for connections from now on. What cannot be used leaves the earlier one in use.
    pub fn reload(&self) -> Result<(), Unusable> {
        let new = config(&self.chain, &self.key)?;
        *self.current.write().expect("no panic while held") = new;
        Ok(())
    }

    /// For the next connection.
    pub fn acceptor(&self) -> TlsAcceptor {
        self.current
            .read()
            .expect("no panic while held")
            .clone()
            .into()
    }
}

fn config(chain: &Path, key: &Path) -> Result<Arc<ServerConfig>, Unusable> {
    let unusable = |path: &Path, reason: String| Unusable {
        path: path.to_owned(),
        reason,
    };
    let certificates: Vec<_> = CertificateDer::pem_file_iter(chain)
        .and_then(Iterator::collect)
        .map_err(|error| unusable(chain, error.to_string()))?;
    if certificates.is_empty() {
        return Err(unusable(chain, "no certificate in it".into()));
    }
    let private =
        PrivateKeyDer::from_pem_file(key).map_err(|error| unusable(key, error.to_string()))?;
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map(|builder| builder.with_no_client_auth())
        .and_then(|builder| builder.with_single_cert(certificates, private))
        .map_err(|error| unusable(chain, error.to_string()))?;
    config.alpn_protocols = PROTOCOLS.map(<[u8]>::to_vec).to_vec();
    Ok(Arc::new(config))
}
