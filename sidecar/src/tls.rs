//! TLS to the database, by libpq's rules: `prefer` and `require` encrypt and do not verify, `verify-ca` and
//! `verify-full` verify the certificate and the host's name, against `sslrootcert` or the system's roots.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio_postgres_rustls::MakeRustlsConnect;

/// How the server proves who it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verify {
    /// Not at all.
    No,
    /// By a certificate that the system trusts.
    SystemRoots,
    /// By a certificate that this file's authorities signed.
    RootsFrom(String),
}

/// tokio-postgres knows `sslmode` up to `require` and no `sslrootcert`: takes both out where they say more.
pub fn split_ssl(url: &str) -> (String, Verify) {
    let mut root = None;
    let mut full = false;
    let mut rest = Vec::new();
    let is_url = url.contains("://");
    let (front, options) = if is_url {
        url.split_once('?').unwrap_or((url, ""))
    } else {
        ("", url)
    };
    for option in options
        .split(if is_url { '&' } else { ' ' })
        .filter(|option| !option.is_empty())
    {
        match option.split_once('=') {
            Some(("sslrootcert", file)) => root = Some(file.to_owned()),
            Some(("sslmode", "verify-full" | "verify-ca")) => {
                full = true;
                rest.push("sslmode=require");
            }
            _ => rest.push(option),
        }
    }
    let verify = match root {
        Some(file) if file != "system" => Verify::RootsFrom(file),
        Some(_) => Verify::SystemRoots,
        None if full => Verify::SystemRoots,
        None => Verify::No,
    };
    let rest = rest.join(if is_url { "&" } else { " " });
    (
        if is_url && !rest.is_empty() {
            format!("{front}?{rest}")
        } else {
            format!("{front}{rest}")
        },
        verify,
    )
}
/// A connector that verifies as told.
pub fn connector(verify: &Verify) -> Result<MakeRustlsConnect, Box<dyn std::error::Error>> {
    Ok(MakeRustlsConnect::new(client(verify)?))
}

/// What a client that verifies as told is configured with.
pub fn client(verify: &Verify) -> Result<ClientConfig, Box<dyn std::error::Error>> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()?;
    Ok(match verify {
        Verify::No => builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Unverified(provider)))
            .with_no_client_auth(),
        verify => builder
            .with_root_certificates(roots(verify)?)
            .with_no_client_auth(),
    })
}

fn roots(verify: &Verify) -> Result<RootCertStore, Box<dyn std::error::Error>> {
    let mut store = RootCertStore::empty();
    match verify {
        Verify::RootsFrom(file) => {
            for certificate in CertificateDer::pem_file_iter(file)? {
                store.add(certificate?)?;
            }
        }
        _ => {
            store.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
    }
    Ok(store)
}

/// Takes any certificate, as libpq does for `require`; the handshake's signatures are still checked.
#[derive(Debug)]
struct Unverified(Arc<CryptoProvider>);

impl ServerCertVerifier for Unverified {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(
            message,
            certificate,
            signature,
            &self.0.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(
            message,
            certificate,
            signature,
            &self.0.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ssl_options() {
        let split = |url| split_ssl(url);
        let url = "postgres://u@h/d";
        assert_eq!(split(url), (url.into(), Verify::No));
        assert_eq!(
            split("postgres://u@h/d?sslmode=verify-full&sslrootcert=/ca"),
            (
                "postgres://u@h/d?sslmode=require".into(),
                Verify::RootsFrom("/ca".into())
            )
        );
        assert_eq!(
            split("host=h sslmode=verify-full user=u"),
            ("host=h sslmode=require user=u".into(), Verify::SystemRoots)
        );
        assert_eq!(split("host=h sslmode=require").1, Verify::No);
    }
}
