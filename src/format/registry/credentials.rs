//! Credentials of a schema registry: user and password of HTTP's basic authentication.
//!
//! Invariant: neither is printed, by `Debug` or in an error.

use std::fmt;
use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use percent_encoding::percent_decode_str;

use crate::error::{Error, Result};

/// Origin of credentials.
#[derive(Clone, Default, PartialEq, Eq)]
pub(super) enum Credentials {
    /// None, or those of the URL.
    #[default]
    OfUrl,
    /// `USER:PASSWORD`.
    Given(String),
    /// A file that holds `USER:PASSWORD`.
    File(PathBuf),
    /// An environment variable that holds `USER:PASSWORD`.
    Variable(String),
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Credentials::OfUrl => f.write_str("OfUrl"),
            Credentials::Given(_) => f.write_str("Given(…)"),
            Credentials::File(path) => f.debug_tuple("File").field(path).finish(),
            Credentials::Variable(name) => f.debug_tuple("Variable").field(name).finish(),
        }
    }
}

/// Splits a URL into the URL without credentials, and its credentials.
pub(super) fn split_url(url: &str) -> (String, Option<String>) {
    let Some((scheme, rest)) = url.split_once("://") else { return (url.to_owned(), None) };
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let Some((user_info, host)) = rest[..end].rsplit_once('@') else { return (url.to_owned(), None) };
    let decoded = percent_decode_str(user_info).decode_utf8_lossy().into_owned();
    (format!("{scheme}://{host}{}", &rest[end..]), Some(decoded))
}

impl Credentials {
    /// Returns the value of the header `Authorization`; `None` if there are no credentials.
    ///
    /// # Errors
    /// Fails if the file or the variable is missing, or does not hold `USER:PASSWORD`.
    pub(super) fn header(&self, of_url: Option<String>) -> Result<Option<String>> {
        let failed = || Error::usage("the credentials of the schema registry cannot be read");
        let held = match self {
            Credentials::OfUrl => match of_url {
                None => return Ok(None),
                Some(held) => held,
            },
            Credentials::Given(held) => held.clone(),
            Credentials::File(path) => std::fs::read_to_string(path)
                .map_err(|why| failed().at(path.display()).caused_by(why).help("the file holds USER:PASSWORD"))?,
            Credentials::Variable(name) => std::env::var(name).map_err(|why| {
                let place = format!("environment variable {name}");
                failed().at(place).because(why).help("it holds USER:PASSWORD")
            })?,
        };
        let held = held.trim_end_matches(['\r', '\n']);
        if !held.contains(':') || held.chars().any(char::is_control) {
            return Err(failed().because("they are not USER:PASSWORD in one line"));
        }
        Ok(Some(format!("Basic {}", STANDARD.encode(held))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_of_a_url_are_taken_out_of_it() {
        for (url, bare, held) in [
            ("http://a:8081/x@y", "http://a:8081/x@y", None),
            ("https://me:p%40ss@a/b", "https://a/b", Some("me:p@ss")),
            ("https://me:p@ss@a?b", "https://a?b", Some("me:p@ss")),
            ("a:b@c", "a:b@c", None),
        ] {
            assert_eq!(split_url(url), (bare.into(), held.map(Into::into)));
        }
    }

    #[test]
    fn credentials_are_a_header_and_never_printed() {
        // The example of RFC 7617.
        let given = Credentials::Given("Aladdin:open sesame".into());
        assert_eq!(given.header(None).unwrap().as_deref(), Some("Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ=="));
        assert!(!format!("{given:?}").contains("sesame"));
        assert_eq!(Credentials::OfUrl.header(None).unwrap(), None);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("login");
        std::fs::write(&path, "Aladdin:open sesame\n").unwrap();
        assert_eq!(Credentials::File(path.clone()).header(None).unwrap(), given.header(None).unwrap());
        std::fs::write(&path, "secret").unwrap();
        let why = Credentials::File(path).header(None).unwrap_err().to_string();
        assert!(why.contains("USER:PASSWORD") && !why.contains("secret"), "{why}");
        let why = Credentials::Variable("TIDEGATE_NO_SUCH".into()).header(None).unwrap_err().to_string();
        assert!(why.contains("environment variable TIDEGATE_NO_SUCH"), "{why}");
    }
}
