//! Encryption of a server's connections: TLS 1.2 and 1.3, by rustls.
//!
//! A connection is encrypted from its first byte on. Its handshake is a part of the connection, and runs beside all
//! others: a client that does not go on with it is cut off like one that does not complete its header.

use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;

use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::pki_types::pem::{self, PemObject};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{ServerConfig, crypto};

use super::socket::{ByteStream, TrackedStream};
use crate::error::{Error, Result};

/// The certificate and the key of a server.
#[derive(Clone)]
pub(crate) struct Encryption(TlsAcceptor);

impl Encryption {
    /// Reads the certificate and the key, which is at `path`.
    ///
    /// # Errors
    /// Fails if one of the files cannot be read or is not PEM, or if they do not belong together.
    pub(super) fn new(certificate: &Path, path: &Path) -> Result<Self> {
        let chain = read_certificates(certificate)?;
        let wrong = |why: &dyn fmt::Display| Error::usage("no private key can be read").at(path.display()).because(why);
        let key = PrivateKeyDer::from_pem_file(path).map_err(|why| wrong(&pem_fault(&why)))?;
        let builder = ServerConfig::builder_with_provider(Arc::new(crypto::ring::default_provider()));
        let config = builder.with_safe_default_protocol_versions();
        let config = config.and_then(|config| config.with_no_client_auth().with_single_cert(chain, key));
        let mut config = config.map_err(|why| {
            let error = Error::usage("the certificate and the key cannot be used").at(certificate.display());
            error
                .because(why)
                .help("name a certificate, those that it rests upon after it, and the key of the first one")
        })?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Encryption(TlsAcceptor::from(Arc::new(config))))
    }

    /// Completes the handshake of a connection.
    ///
    /// # Errors
    /// Fails if the client does not speak TLS, or none that the server knows.
    pub(super) async fn accept(&self, stream: TrackedStream) -> io::Result<Box<dyn ByteStream>> {
        Ok(Box::new(self.0.accept(stream).await?))
    }
}

/// Reads the certificates in a file.
///
/// # Errors
/// Fails if the file cannot be read or has none.
pub(super) fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let wrong = |why: &dyn fmt::Display| Error::usage("no certificate can be read").at(path.display()).because(why);
    let all = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<std::result::Result<Vec<_>, _>>);
    match all {
        Ok(all) if all.is_empty() => Err(wrong(&pem_fault(&pem::Error::NoItemsFound))),
        all => all.map_err(|why| wrong(&pem_fault(&why))),
    }
}

/// Describes a fault without anything of the file, which may be a key.
fn pem_fault(why: &pem::Error) -> String {
    match why {
        pem::Error::Io(why) => why.to_string(),
        pem::Error::NoItemsFound => String::from("the file has none in PEM"),
        _ => String::from("the file is not PEM"),
    }
}
