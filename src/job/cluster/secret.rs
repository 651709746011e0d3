//! The secret that all processes of a job share, and the proofs of a connection's ends that they know it.
//!
//! The secret is never sent. Each end computes HMAC-SHA-256, keyed with the secret, over the greeting and the
//! challenge, which hold a nonce of either end, and over the end that it is. So a proof is valid on no other
//! connection, for no other process and in no other direction. Proofs are compared in constant time.
//!
//! Nothing is encrypted: the secret does not protect against an attacker who can read or change the network traffic.

use std::fmt;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use crate::error::{Error, Result};

/// Size of a proof, in bytes.
pub(super) const PROOF: usize = 32;
/// Minimum size of a secret, in bytes, without white space at its ends.
const SHORTEST: usize = 16;
/// Permission bits that let others than the owner read or change a file.
const OTHERS: u32 = 0o077;

/// A secret shared by all processes of a job.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Secret(Arc<[u8]>);

/// Never prints the secret.
impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

/// An end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ConnectionEnd {
    /// The end that has connected.
    Dialer,
    /// The end that has listened.
    Acceptor,
}

impl Secret {
    /// Creates a secret of at least 16 bytes; white space at its ends is not part of it.
    pub(crate) fn new(bytes: &[u8]) -> Result<Self> {
        let bytes = bytes.trim_ascii();
        if bytes.len() < SHORTEST {
            let error = Error::usage("the secret of the processes is too short");
            let error = error.because(format!("it has {} bytes, and needs at least {SHORTEST}", bytes.len()));
            return Err(error.help("make one with: head -c 32 /dev/urandom | base64"));
        }
        Ok(Secret(bytes.into()))
    }

    pub(crate) fn from_file(path: &Path) -> Result<Self> {
        let cannot = |why| Error::usage("cannot read the secret of the processes").at(path.display()).because(why);
        let bytes = fs::read(path).map_err(cannot)?;
        let others = fs::metadata(path).map(|file| file.permissions().mode() & OTHERS).map_err(cannot)?;
        if others != 0 {
            tracing::warn!("{}: others than its owner may read the secret of the processes: chmod 600", path.display());
        }
        Secret::new(&bytes).map_err(|error| error.at(path.display()))
    }

    /// Returns a new random secret, as text.
    #[cfg(any(feature = "cli", test))]
    pub(crate) fn random() -> Result<String> {
        Ok(random::<32>()?.iter().map(|byte| format!("{byte:02x}")).collect())
    }
}

/// Returns cryptographically random bytes.
pub(super) fn random<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|why| Error::new("cannot draw random numbers").because(why))?;
    Ok(bytes)
}

fn keyed(secret: Option<&Secret>, end: ConnectionEnd, said: [&[u8]; 2]) -> Hmac<Sha256> {
    let key = secret.map_or(&[][..], |secret| &secret.0);
    // HMAC accepts keys of any length.
    let mut mac = Hmac::<Sha256>::new_from_slice(key).unwrap_or_else(|_| Hmac::new(&Default::default()));
    mac.update(match end {
        ConnectionEnd::Dialer => b"tidegate processes: dialer",
        ConnectionEnd::Acceptor => b"tidegate processes: acceptor",
    });
    for part in said {
        mac.update(&(part.len() as u64).to_le_bytes());
        mac.update(part);
    }
    mac
}

/// Returns the proof of one end, over greeting and challenge. Without a secret anybody can compute it.
pub(super) fn proof(secret: Option<&Secret>, end: ConnectionEnd, said: [&[u8]; 2]) -> [u8; PROOF] {
    keyed(secret, end, said).finalize().into_bytes().into()
}

/// `true` if the proof of the other end is valid.
pub(super) fn is_proof(secret: Option<&Secret>, end: ConnectionEnd, said: [&[u8]; 2], proof: &[u8; PROOF]) -> bool {
    keyed(secret, end, said).verify_slice(proof).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proof_is_of_one_secret_one_end_and_one_connection() {
        let secret = |text: &str| Secret::new(text.as_bytes()).unwrap();
        let (own, other) = (secret("0123456789abcdef"), secret("0123456789abcdeF"));
        let made = proof(Some(&own), ConnectionEnd::Dialer, [b"greeting", b"challenge"]);
        assert!(is_proof(Some(&own), ConnectionEnd::Dialer, [b"greeting", b"challenge"], &made));
        for (secret, end, said) in [
            (Some(&other), ConnectionEnd::Dialer, [&b"greeting"[..], b"challenge"]),
            (None, ConnectionEnd::Dialer, [b"greeting", b"challenge"]),
            (Some(&own), ConnectionEnd::Acceptor, [b"greeting", b"challenge"]),
            (Some(&own), ConnectionEnd::Dialer, [b"greeting", b"challengE"]),
            (Some(&own), ConnectionEnd::Dialer, [b"greetingc", b"hallenge"]),
        ] {
            assert!(!is_proof(secret, end, said, &made), "{secret:?} {end:?}");
        }
        // Computed with another HMAC implementation.
        let hex: String = made.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, "71e7e0367baeb5c76b8eb6104f5c25351f69d7f48f59265b40d6ef647f068a66");
    }

    #[test]
    fn a_secret_is_read_without_its_line_end_and_not_shown() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("secret");
        fs::write(&file, "  0123456789abcdef\n").unwrap();
        let secret = Secret::from_file(&file).unwrap();
        assert_eq!(secret, Secret::new(b"0123456789abcdef").unwrap());
        assert_eq!(format!("{secret:?}"), "Secret");
        fs::write(&file, "0123456789abcde\n").unwrap();
        let error = Secret::from_file(&file).unwrap_err();
        assert!(error.to_string().contains("it has 15 bytes, and needs at least 16"), "{error}");
        assert_eq!(error.exit_code(), 2);
        assert_eq!(Secret::from_file(&folder.path().join("none")).unwrap_err().exit_code(), 2);
        assert_ne!(Secret::random().unwrap(), Secret::random().unwrap());
    }
}
