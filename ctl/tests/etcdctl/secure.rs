//! TLS: who is trusted, and what is said when somebody is not.

use crate::fake::{Answer, Fake};
use crate::tools::{Run, Tool, run};
use api::etcdserverpb::PutResponse;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig, crypto::ring};

/// An authority, and files of what it signed.
struct Trust {
    authority: CertifiedIssuer<'static, KeyPair>,
    directory: tempfile::TempDir,
}

impl Trust {
    fn new() -> Trust {
        let mut params = CertificateParams::new(vec![]).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        let authority = CertifiedIssuer::self_signed(params, key).expect("an authority");
        let directory = tempfile::tempdir().expect("a directory");
        std::fs::write(directory.path().join("ca.pem"), authority.pem()).expect("write");
        Trust { authority, directory }
    }

    fn issue(&self, name: &str) -> (CertificateDer<'static>, PrivateKeyDer<'static>) {
        let key = KeyPair::generate().expect("a key");
        let params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).expect("an address");
        let certificate = params.signed_by(&key, &self.authority).expect("a certificate");
        std::fs::write(self.path(&format!("{name}.pem")), certificate.pem()).expect("write");
        std::fs::write(self.path(&format!("{name}.key")), key.serialize_pem()).expect("write");
        let key = PrivateKeyDer::try_from(key.serialize_der()).expect("a key in DER");
        (certificate.der().clone(), key)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A server that this authority vouches for and that asks clients for certificates of the same authority.
    fn server(&self) -> Fake {
        let provider = Arc::new(ring::default_provider());
        let mut roots = RootCertStore::empty();
        roots.add(self.authority.der().clone()).expect("our authority");
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone());
        let (certificate, key) = self.issue("server");
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_client_cert_verifier(verifier.build().expect("a verifier"))
            .with_single_cert(vec![certificate], key)
            .expect("our certificate");
        config.alpn_protocols = vec![b"h2".to_vec()];
        Fake::start_secure(config, [("Put", Answer::one(&PutResponse::default()))])
    }
}

fn put(endpoint: &str, flags: &[(&str, &Path)], switches: &[&str]) -> Run {
    let mut line: Vec<String> = ["put", "k", "v", "--dial-timeout=200ms"].map(str::to_owned).to_vec();
    line.extend(flags.iter().map(|(flag, path)| format!("{flag}={}", path.display())));
    line.extend(switches.iter().map(|switch| (*switch).to_owned()));
    run(Tool::Cairnctl, endpoint, &line.iter().map(String::as_str).collect::<Vec<_>>(), b"")
}

#[test]
fn certificates_decide_who_is_talked_to() {
    let (trust, stranger) = (Trust::new(), Trust::new());
    let server = trust.server();
    trust.issue("client");
    stranger.issue("client");
    let https = format!("https://{}", server.endpoint);
    let (ca, cert, key) = (trust.path("ca.pem"), trust.path("client.pem"), trust.path("client.key"));
    let pair = [("--cert", cert.as_path()), ("--key", key.as_path())];
    let all = [("--cacert", ca.as_path()), pair[0], pair[1]];

    assert_eq!(put(&https, &all, &[]).stdout, b"OK\n");
    assert_eq!(put(&server.endpoint, &all, &[]).stdout, b"OK\n", "certificates make a bare endpoint secure");
    assert_eq!(put(&https, &pair, &["--insecure-skip-tls-verify"]).stdout, b"OK\n");

    let strange = stranger.path("ca.pem");
    let untrusted = put(&https, &[("--cacert", strange.as_path()), pair[0], pair[1]], &[]);
    assert_eq!(untrusted.code, 2, "{}", untrusted.stderr);
    assert!(
        untrusted.stderr.contains("TLS handshake: invalid peer certificate")
            && untrusted.stderr.contains("--cacert"),
        "{}",
        untrusted.stderr
    );

    let (cert, key) = (stranger.path("client.pem"), stranger.path("client.key"));
    let unwelcome = put(&https, &[all[0], ("--cert", cert.as_path()), ("--key", key.as_path())], &[]);
    assert_eq!(unwelcome.code, 2, "{}", unwelcome.stderr);
    let anonymous = put(&https, &all[..1], &[]);
    assert_eq!(anonymous.code, 2, "{}", anonymous.stderr);
    let plain = put(&format!("http://{}", server.endpoint), &[], &[]);
    assert!(plain.code == 2 && plain.stderr.contains("write https://"), "{}", plain.stderr);
}

#[test]
fn files_that_are_no_certificates_are_named() {
    let trust = Trust::new();
    trust.issue("client");
    let (ca, cert, key, missing) =
        (trust.path("ca.pem"), trust.path("client.pem"), trust.path("client.key"), trust.path("missing"));
    for (flags, complaint) in [
        (vec![("--cacert", key.as_path())], "no certificate in this file"),
        (vec![("--cacert", missing.as_path())], "--cacert"),
        (vec![("--cacert", ca.as_path()), ("--cert", cert.as_path()), ("--key", missing.as_path())], "--key"),
        (vec![("--cert", cert.as_path())], "--cert and --key belong together"),
    ] {
        let run = put("https://127.0.0.1:1", &flags, &[]);
        assert!(run.code == 128 && run.stderr.contains(complaint), "{flags:?}: {} {}", run.code, run.stderr);
    }
}
