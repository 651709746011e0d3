//! Properties of the client library that users set: given one by one or read from a file, with secrets taken from
//! environment variables and files.
//!
//! Invariant: the value of a secret property leaves this module only for the client's configuration. `Debug` and error
//! texts have [`HIDDEN`] in its place, and texts of the client library pass through [`ClientProperties::redact`].

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::error::{Error, Result};

/// Text that replaces secret values.
const HIDDEN: &str = "[hidden]";

/// Permission bits that let others than the owner read a file.
const OTHERS: u32 = 0o044;

/// Endings of the names of properties whose values are secret.
const SECRET_ENDINGS: &[&str] = &["password", "secret", "key.pem", "token", "jaas.config", "oauthbearer.config"];

/// Values that are shorter are not looked for in texts: they would occur by chance.
const SHORTEST_REDACTED: usize = 4;

/// Second names that the library has for properties that are set here, with the name that is used here. Of two names of
/// one property the library would take the one that it is told last, and a map has no last.
pub(super) const SECOND_NAMES: &[(&str, &str)] = &[
    ("metadata.broker.list", "bootstrap.servers"),
    ("request.required.acks", "acks"),
    ("auto.commit.enable", "enable.auto.commit"),
    ("compression.codec", "compression.type"),
    ("queue.buffering.max.ms", "linger.ms"),
    ("max.partition.fetch.bytes", "fetch.message.max.bytes"),
];

/// Returns the name that is used here for a property.
pub(super) fn name_of(key: &str) -> &str {
    SECOND_NAMES.iter().find(|(second, _)| *second == key).map_or(key, |(_, name)| name)
}

/// Properties of the client library librdkafka, by name.
///
/// A value that is read from a file or parsed by [`ClientProperties::parse`] may contain `${env:NAME}`, which stands for
/// an environment variable, and `${file:PATH}`, which stands for a file's text without white space at its end; so a
/// secret is neither in a configuration file nor on the command line. `Debug`
/// output does not contain the values of secret properties, such as `sasl.password`.
///
/// ```
/// # fn main() -> tidegate::Result<()> {
/// # let folder = std::env::temp_dir().join(format!("tidegate-doc-{}", std::process::id()));
/// # std::fs::create_dir_all(&folder).ok();
/// # let (path, secret) = (folder.join("client.properties"), folder.join("password"));
/// # std::fs::write(&secret, "correct horse\n").ok();
/// # std::fs::write(&path, format!("security.protocol = sasl_ssl\nsasl.password = ${{file:{}}}\n", secret.display())).ok();
/// use tidegate::kafka::{ClientProperties, Source};
///
/// let properties = ClientProperties::from_file(&path)?;
/// assert!(!format!("{properties:?}").contains("correct horse"));
/// let payments = Source::json("kafka:9094", "payment").event_time(|at_ms: &i64| *at_ms).configs(properties.iter());
/// # std::fs::remove_dir_all(&folder).ok();
/// # Ok(()) }
/// ```
#[derive(Clone, Default, PartialEq, Eq)]
pub struct ClientProperties(BTreeMap<String, String>);

impl ClientProperties {
    /// Reads a file of lines `KEY=VALUE`. Empty lines and lines that begin with `#` are ignored, and so is white space
    /// around keys and values. The last line of a key counts.
    ///
    /// # Errors
    /// Fails if the file cannot be read, if a line has another form, or if what a value refers to is missing.
    pub fn from_file(path: &Path) -> Result<Self> {
        let cannot = |why| Error::usage("cannot read the Kafka properties").at(path.display()).because(why);
        let text = fs::read_to_string(path).map_err(cannot)?;
        let mut properties = ClientProperties::default();
        for (number, line) in text.lines().enumerate() {
            let line = line.trim();
            if !line.is_empty() && !line.starts_with('#') {
                let place = || format!("{}, line {}", path.display(), number + 1);
                let (key, value) = ClientProperties::split(line).ok_or_else(|| malformed().at(place()))?;
                properties.set(key, &resolved(key, value.trim()).map_err(|error| error.at(place()))?);
            }
        }
        let has_secret = text.lines().filter_map(ClientProperties::split).any(|(key, value)| exposes(key, value));
        if has_secret && fs::metadata(path).map_err(cannot)?.permissions().mode() & OTHERS != 0 {
            tracing::warn!("{}: others than its owner may read the secrets in it: chmod 600", path.display());
        }
        Ok(properties)
    }

    /// Parses `KEY=VALUE`, and replaces what the value refers to.
    ///
    /// # Errors
    /// Fails if the text has another form, or if what the value refers to is missing. The error does not contain the
    /// value.
    pub fn parse(text: &str) -> Result<(String, String)> {
        let (key, value) = ClientProperties::split(text).ok_or_else(malformed)?;
        Ok((key.to_owned(), resolved(key, value)?))
    }

    /// Splits `KEY=VALUE`, without white space around the key; `None` if the text has another form.
    pub(crate) fn split(text: &str) -> Option<(&str, &str)> {
        let (key, value) = text.split_once('=')?;
        Some((key.trim(), value)).filter(|(key, _)| !key.is_empty())
    }

    /// Sets a property; its value is taken as it is.
    pub fn set(&mut self, key: &str, value: &str) {
        self.0.insert(key.to_owned(), value.to_owned());
    }

    /// Returns the properties, by name, with all values.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(key, value)| (key.as_str(), value.as_str()))
    }

    /// `true` if the property is set, by any of its names.
    pub(crate) fn contains(&self, name: &str) -> bool {
        self.0.keys().any(|key| name_of(key) == name)
    }

    /// Keeps the properties for whose names `keep` returns `true`.
    pub(crate) fn retain(&mut self, keep: impl Fn(&str) -> bool) {
        self.0.retain(|key, _| keep(key));
    }

    /// Replaces the values of secret properties in a text of the client library.
    pub(crate) fn redact(&self, text: &str) -> String {
        let secrets = self.0.iter().filter(|(key, value)| is_secret(key) && value.len() >= SHORTEST_REDACTED);
        secrets.fold(text.to_owned(), |text, (_, value)| text.replace(value.as_str(), HIDDEN))
    }
}

impl fmt::Debug for ClientProperties {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.0.iter().map(|(key, value)| (key, displayed(key, value)))).finish()
    }
}

/// `true` if the value of a property must not be printed.
fn is_secret(key: &str) -> bool {
    let key = key.trim().to_ascii_lowercase();
    SECRET_ENDINGS.iter().any(|ending| key.ends_with(ending))
}

/// `true` if a line of a file contains a secret itself, not only a reference to one.
fn exposes(key: &str, value: &str) -> bool {
    is_secret(key) && !value.contains("${")
}

/// Returns the value of a property, as it may be printed.
pub(crate) fn displayed<'a>(key: &str, value: &'a str) -> &'a str {
    if is_secret(key) { HIDDEN } else { value }
}

/// Returns the error for a text of another form. It does not contain the text, which may be a secret.
fn malformed() -> Error {
    Error::usage("a Kafka property has to be KEY=VALUE, as in security.protocol=ssl")
}

/// Returns a property's value with what it refers to.
fn resolved(key: &str, value: &str) -> Result<String> {
    let missing = |why| Error::usage(format!("the Kafka property {key} refers to what is missing")).because(why);
    resolve(value).map_err(missing)
}

/// Replaces references to environment variables and files; fails with the reason.
fn resolve(value: &str) -> std::result::Result<String, String> {
    let (mut resolved, mut rest) = (String::new(), value);
    while let Some((before, after)) = rest.split_once("${") {
        let reference = after.split_once('}').and_then(|(inner, rest)| Some((inner.split_once(':')?, rest)));
        resolved.push_str(before);
        match reference {
            Some((("env", name), left)) => {
                let found = std::env::var(name);
                resolved
                    .push_str(&found.map_err(|_| format!("there is no environment variable {name} of UTF-8 text"))?);
                rest = left;
            }
            Some((("file", path), left)) => {
                let text = fs::read_to_string(path).map_err(|why| format!("cannot read {path}: {why}"))?;
                resolved.push_str(text.trim_end());
                rest = left;
            }
            _ => {
                resolved.push_str("${");
                rest = after;
            }
        }
    }
    Ok(resolved + rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_gives_properties_with_what_they_refer_to() {
        let folder = tempfile::tempdir().unwrap();
        let (path, secret) = (folder.path().join("client.properties"), folder.path().join("secret"));
        fs::write(&secret, "pass=word \n\n").unwrap();
        let home = std::env::var("PATH").unwrap();
        let text = format!(
            "# comment\n\n security.protocol = sasl_ssl \nsasl.password=${{file:{}}}!\nclient.id=${{env:PATH}}\n\
             rack=${{other:x}} ${{\nrack.two=1\nrack.two=2\n",
            secret.display()
        );
        fs::write(&path, text).unwrap();
        let properties = ClientProperties::from_file(&path).unwrap();
        let expected = [
            ("client.id", &*home),
            ("rack", "${other:x} ${"),
            ("rack.two", "2"),
            ("sasl.password", "pass=word!"),
            ("security.protocol", "sasl_ssl"),
        ];
        assert_eq!(properties.iter().collect::<Vec<_>>(), expected);
    }

    #[test]
    fn what_is_wrong_is_told_with_its_place_and_without_values() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("client.properties");
        for (text, words) in [
            ("a=1\nswordfish", &["line 2", "KEY=VALUE"][..]),
            ("=swordfish", &["line 1", "KEY=VALUE"]),
            ("sasl.password=swordfish${env:TIDEGATE_NO_SUCH}", &["line 1", "sasl.password", "TIDEGATE_NO_SUCH"]),
            ("sasl.password=swordfish${file:/no/such}", &["line 1", "sasl.password", "/no/such"]),
        ] {
            fs::write(&path, text).unwrap();
            let error = ClientProperties::from_file(&path).unwrap_err();
            let said = error.to_string();
            assert!(words.iter().all(|word| said.contains(word)), "{said}");
            assert!(!said.contains("swordfish") && error.exit_code() == 2, "{said}");
        }
        assert!(ClientProperties::from_file(&folder.path().join("none")).unwrap_err().to_string().contains("none"));
    }

    #[test]
    fn secrets_are_neither_printed_nor_left_in_texts() {
        let mut properties = ClientProperties::default();
        let secret =
            ["sasl.password", "ssl.key.password", "SSL.KEY.PEM", "sasl.oauthbearer.client.secret", "sasl.jaas.config"];
        for key in secret {
            properties.set(key, "swordfish");
        }
        properties.set("sasl.username", "alice");
        let printed = format!("{properties:?}");
        assert!(!printed.contains("swordfish") && printed.contains("alice"), "{printed}");
        assert_eq!(properties.redact("alice:swordfish failed"), "alice:[hidden] failed");
        assert_eq!(properties.iter().filter(|(_, value)| *value == "swordfish").count(), secret.len());
    }
}
