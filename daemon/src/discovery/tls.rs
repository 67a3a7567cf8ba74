//! TLS towards a discovery service: certificates from files, the system's authorities by default.

use std::{path::Path, sync::Arc};

use rustls::{
    ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject as _},
};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::settings::TlsFiles;
use crate::refusal::{Id, Refusal};

/// Reads the files; `protocol` is what the handshake must agree on.
pub fn connector(files: &TlsFiles, protocol: &[u8]) -> Result<TlsConnector, Refusal> {
    let mut config = config(files).map_err(|(setting, what)| {
        Refusal::new(Id::BadValue, format!("{setting} cannot be used for TLS"))
            .evidence(setting, what)
            .remedy(format!("name a readable PEM file: {setting}=<file>"))
    })?;
    config.alpn_protocols = vec![protocol.to_vec()];
    Ok(TlsConnector::from(Arc::new(config)))
}

/// The handshake; the error is one sentence.
pub async fn handshake(
    connector: &TlsConnector,
    host: &str,
    stream: TcpStream,
) -> Result<TlsStream<TcpStream>, String> {
    let name =
        ServerName::try_from(host.to_owned()).map_err(|_| format!("{host:?} cannot be in a certificate"))?;
    connector.connect(name, stream).await.map_err(|error| format!("TLS: {error}"))
}

type Wrong = (&'static str, String);

fn config(files: &TlsFiles) -> Result<ClientConfig, Wrong> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| ("--discovery-cacert", error.to_string()))?;
    let builder = if files.skip_verify {
        builder.dangerous().with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
    } else {
        builder.with_root_certificates(authorities(files.cacert.as_deref())?)
    };
    let (Some(cert), Some(key)) = (&files.cert, &files.key) else { return Ok(builder.with_no_client_auth()) };
    let chain = certificates("--discovery-cert", cert)?;
    let wrong = |error: &dyn std::fmt::Display| ("--discovery-key", format!("{}: {error}", key.display()));
    let private = PrivateKeyDer::from_pem_file(key).map_err(|error| wrong(&error))?;
    builder.with_client_auth_cert(chain, private).map_err(|error| wrong(&error))
}

fn authorities(file: Option<&Path>) -> Result<RootCertStore, Wrong> {
    let mut roots = RootCertStore::empty();
    let Some(file) = file else {
        // Unreadable system certificates are not the operator's mistake; a service that nobody vouches for is refused with a reason.
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        return Ok(roots);
    };
    for certificate in certificates("--discovery-cacert", file)? {
        let wrong = |error| ("--discovery-cacert", format!("{}: {error}", file.display()));
        roots.add(certificate).map_err(wrong)?;
    }
    Ok(roots)
}

fn certificates(setting: &'static str, file: &Path) -> Result<Vec<CertificateDer<'static>>, Wrong> {
    let wrong = |why: String| (setting, format!("{}: {why}", file.display()));
    let read = CertificateDer::pem_file_iter(file).map_err(|error| wrong(error.to_string()))?;
    let all: Vec<_> = read.collect::<Result<_, _>>().map_err(|error| wrong(error.to_string()))?;
    if all.is_empty() { Err(wrong("no certificate in this file".into())) } else { Ok(all) }
}

/// `--discovery-insecure-skip-tls-verify`: any certificate will do, though the handshake itself must be sound.
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
