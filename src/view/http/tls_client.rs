//! Encryption of the client's connections: TLS by rustls.

use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::Arc;

use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned, crypto};

use super::tls::read_certificates;
use crate::error::{Error, Result};

/// Returns the settings of a client that trusts the certificates in a file, and those that rest upon them.
///
/// # Errors
/// Fails without a file, and if it cannot be read or used.
pub(super) fn trusting(ca_file: Option<&Path>) -> Result<Arc<ClientConfig>> {
    let Some(path) = ca_file else {
        let error = Error::usage("the job serves HTTPS, and nothing says which certificates to trust");
        return Err(error.help("add --ca-file FILE: its certificate, or the one that this rests upon"));
    };
    let wrong = |why| Error::usage("the certificates cannot be used").at(path.display()).because(why);
    let mut roots = RootCertStore::empty();
    for certificate in read_certificates(path)? {
        roots.add(certificate).map_err(wrong)?;
    }
    let builder = ClientConfig::builder_with_provider(Arc::new(crypto::ring::default_provider()));
    let config = builder.with_safe_default_protocol_versions().map_err(wrong)?;
    Ok(Arc::new(config.with_root_certificates(roots).with_no_client_auth()))
}

/// Encrypts a connection to the server of this name or address; it is verified with the first bytes that are sent.
///
/// # Errors
/// Fails if that is no name of a host.
pub(super) fn encrypted<S: Read + Write>(
    trust: &Arc<ClientConfig>,
    host: &str,
    stream: S,
) -> io::Result<StreamOwned<ClientConnection, S>> {
    let name = ServerName::try_from(host.trim_matches(['[', ']']).to_owned()).map_err(io::Error::other)?;
    let connection = ClientConnection::new(Arc::clone(trust), name).map_err(io::Error::other)?;
    Ok(StreamOwned::new(connection, stream))
}
