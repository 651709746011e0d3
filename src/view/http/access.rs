//! Access to a server: the token that requests carry.
//!
//! A token is read from a file when the server starts, and again, at most once in [`TOKEN_INTERVAL`], when a request comes:
//! who writes another token into the file needs no restart. The server keeps only its keyed hash, and compares hashes in
//! constant time: the time of an answer tells nothing of the token, and no log line, error or answer can have it.
//!
//! Invariant: a server that asks for a token asks for one as long as it runs. A file that cannot be read any more, or has
//! no token, leaves the last one in force.

use std::fmt;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use super::limits::TOKEN_INTERVAL;
use crate::error::{Error, Result};

/// Minimum length of a token, in characters.
const SHORTEST: usize = 16;
/// Beginning of the header that has a token.
const SCHEME: &[u8] = b"Bearer ";
const MAKE: &str = "make one with: (umask 077; head -c 32 /dev/urandom | base64 > FILE)";

/// Reads the token in a file; white space at its ends is not part of it.
///
/// # Errors
/// Fails if the file cannot be read, or holds no token: 16 characters at least, of those that a header may carry.
pub(crate) fn read_token(path: &Path) -> Result<String> {
    let wrong = |why: &dyn fmt::Display| Error::usage("no token can be read").at(path.display()).because(why);
    let text = fs::read_to_string(path).map_err(|why| wrong(&why))?;
    let token = text.trim_ascii();
    if token.is_empty() {
        return Err(wrong(&"the file is empty").help(MAKE));
    }
    if token.len() < SHORTEST {
        let why = format!("the token has {} characters, and needs at least {SHORTEST}", token.len());
        return Err(wrong(&why).help(MAKE));
    }
    if !token.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._~+/=".contains(&byte)) {
        let why = "a token is one word of letters, digits and the characters - . _ ~ + / =";
        return Err(wrong(&why).help(MAKE));
    }
    Ok(token.to_owned())
}

/// A token, as a keyed hash.
struct BearerToken {
    key: [u8; 32],
    hash: [u8; 32],
}

impl BearerToken {
    /// Keeps a token as its hash under a random key.
    ///
    /// # Errors
    /// Fails if the system has no random numbers.
    fn new(token: &str) -> Result<Self> {
        let mut key = [0; 32];
        getrandom::fill(&mut key).map_err(|why| Error::new("cannot draw random numbers").because(why))?;
        let hash = keyed(&key, token.as_bytes()).finalize().into_bytes().into();
        Ok(BearerToken { key, hash })
    }

    /// `true` if this is the token.
    fn is(&self, token: &[u8]) -> bool {
        keyed(&self.key, token).verify_slice(&self.hash).is_ok()
    }

    /// `true` if the value of an `Authorization` header has the token.
    fn is_in(&self, header: &[u8]) -> bool {
        match header.split_at_checked(SCHEME.len()) {
            Some((scheme, given)) => scheme.eq_ignore_ascii_case(SCHEME) && self.is(given.trim_ascii()),
            None => false,
        }
    }
}

/// The token in a file, which may change while the server runs.
pub(super) struct TokenFile {
    path: PathBuf,
    /// `true` for a file that can be read again; a pipe cannot.
    is_regular: bool,
    current: Mutex<CurrentToken>,
}

struct CurrentToken {
    token: BearerToken,
    /// The time at which the file was last read.
    read_at: Instant,
    /// `true` while the file has no token, which was logged.
    is_missing: bool,
}

impl TokenFile {
    /// Reads the token in a file.
    ///
    /// # Errors
    /// Fails as [`read_token`] and [`BearerToken::new`] do.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let token = BearerToken::new(&read_token(path)?)?;
        let is_regular = fs::metadata(path).is_ok_and(|file| file.is_file());
        let current = CurrentToken { token, read_at: Instant::now(), is_missing: false };
        Ok(TokenFile { path: path.to_owned(), is_regular, current: Mutex::new(current) })
    }

    /// `true` if the value of an `Authorization` header has the token that is in the file, or was last in it.
    pub(super) fn is_in(&self, header: &[u8]) -> bool {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if self.is_regular && now.duration_since(current.read_at) >= TOKEN_INTERVAL {
            current.read_at = now;
            self.read_again(&mut current);
        }
        current.token.is_in(header)
    }

    /// Takes the token that is in the file now, if there is one.
    fn read_again(&self, current: &mut CurrentToken) {
        let known = |token: &str| current.token.is(token.as_bytes());
        let changed = read_token(&self.path).and_then(|token| match known(&token) {
            true => Ok(None),
            false => BearerToken::new(&token).map(Some),
        });
        match changed {
            Ok(changed) => {
                if let Some(token) = changed {
                    current.token = token;
                    tracing::info!("{}: HTTP asks for the new token", self.path.display());
                }
                current.is_missing = false;
            }
            Err(error) if !current.is_missing => {
                current.is_missing = true;
                tracing::warn!("{error}; until then HTTP asks for the token that was last there");
            }
            Err(_) => {}
        }
    }
}

fn keyed(key: &[u8], text: &[u8]) -> Hmac<Sha256> {
    // HMAC accepts keys of any length.
    let mut mac = Hmac::<Sha256>::new_from_slice(key).unwrap_or_else(|_| Hmac::new(&Default::default()));
    mac.update(text);
    mac
}

/// Returns the error of a build that cannot encrypt.
#[cfg(any(test, not(feature = "https")))]
pub(super) fn without_https(certificate: &Path) -> Error {
    let error = Error::usage("cannot serve HTTPS").at(certificate.display());
    let error = error.because("this program was built without it");
    error.help("build it with the cargo feature `https`, or start it without --http-cert and --http-key")
}

/// `true` if an address can be reached from other machines.
pub(super) fn is_beyond_loopback(place: &SocketAddr) -> bool {
    !place.ip().to_canonical().is_loopback()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_token_itself_is_the_token() {
        let token = BearerToken::new("0123456789abcdef").unwrap();
        for header in ["Bearer 0123456789abcdef", "bearer 0123456789abcdef", "BEARER  0123456789abcdef "] {
            assert!(token.is_in(header.as_bytes()), "{header}");
        }
        for header in [
            "",
            "Bearer",
            "Bearer ",
            "0123456789abcdef",
            "Basic 0123456789abcdef",
            "Bearer 0123456789abcde",
            "Bearer 0123456789abcdeF",
            "Bearer 0123456789abcdef0",
            "Bearer  0123456789abcdef 0",
            "Bearer 1123456789abcdef",
            "Bearer\t0123456789abcdef",
        ] {
            assert!(!token.is_in(header.as_bytes()), "{header}");
        }
    }

    #[test]
    fn a_file_without_a_token_is_refused_by_its_name_and_the_token_is_not_told() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("token");
        for (text, why) in [
            ("", "is empty"),
            (" \n", "is empty"),
            ("hush-hush\n", "9 characters"),
            ("hush hush hush hush", "one word"),
            ("hush-hush-hush-höh", "one word"),
            ("hush-hush-hush\nhush-hush-hush", "one word"),
        ] {
            fs::write(&file, text).unwrap();
            let error = read_token(&file).unwrap_err();
            let said = error.to_string();
            assert!(said.contains(why) && said.contains("token") && said.contains("umask 077"), "{said}");
            assert!(!said.contains("hush") && error.exit_code() == 2, "{said}");
        }
        assert_eq!(read_token(&folder.path().join("none")).unwrap_err().exit_code(), 2);
        fs::write(&file, "\n 0123456789-._~+/= \n").unwrap();
        assert_eq!(read_token(&file).unwrap(), "0123456789-._~+/=");
    }
}
