//! TLS to a member: certificates from files, the system's authorities by default, HTTP/2 agreed on in the handshake.

use crate::settings::TlsSettings;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use std::sync::Arc;

/// What the handshake offers; the server must pick it, gRPC knows nothing else.
const PROTOCOL: &[u8] = b"h2";

/// Reads the files that `settings` names. An error is one sentence naming the setting and the file.
pub fn client_config(settings: &TlsSettings) -> Result<ClientConfig, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?;
    let builder = if settings.skip_verify {
        builder.dangerous().with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
    } else {
        builder.with_root_certificates(authorities(&settings.cacert)?)
    };
    let mut config = if settings.cert.is_empty() {
        builder.with_no_client_auth()
    } else {
        let key = PrivateKeyDer::from_pem_file(&settings.key)
            .map_err(|error| format!("--key {}: {error}", settings.key))?;
        builder
            .with_client_auth_cert(certificates("cert", &settings.cert)?, key)
            .map_err(|error| format!("--cert {} with --key {}: {error}", settings.cert, settings.key))?
    };
    config.alpn_protocols = vec![PROTOCOL.to_vec()];
    Ok(config)
}

fn authorities(cacert: &str) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    if cacert.is_empty() {
        // Unreadable system certificates are not our user's mistake; a server nobody vouches for is refused later, with a reason.
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        return Ok(roots);
    }
    for certificate in certificates("cacert", cacert)? {
        roots.add(certificate).map_err(|error| format!("--cacert {cacert}: {error}"))?;
    }
    Ok(roots)
}

fn certificates(flag: &str, path: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    let certificates: Result<Vec<_>, _> =
        CertificateDer::pem_file_iter(path).map_err(|error| format!("--{flag} {path}: {error}"))?.collect();
    let certificates = certificates.map_err(|error| format!("--{flag} {path}: {error}"))?;
    if certificates.is_empty() {
        Err(format!("--{flag} {path}: no certificate in this file"))
    } else {
        Ok(certificates)
    }
}

/// `--insecure-skip-tls-verify`: any certificate will do, though the handshake itself must still be sound.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
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
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, signed, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
