//! A client of a schema registry (the REST API of Confluent's Schema Registry, which others speak too).
//!
//! * A schema is found by its **id**, which never means another one. It may refer to others by subject and version.
//! * A **subject** is a list of versions of a schema: see [`SubjectNaming`].
//!
//! Invariants: what an id means is asked once a process and kept; a thread that has seen an id takes no lock to find it
//! again. An id that the registry does not know is told from a registry that does not answer: the former is kept too,
//! so that all messages of it have one fate. No credentials are printed.

mod answer;
mod credentials;
mod http;
mod registration;
mod subject;

use std::cell::Cell;
use std::collections::HashMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};
use std::time::{Duration, Instant};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Value, json};

use super::avro::AvroSchema;
use crate::error::{Error, ErrorKind, Result, shortened};
use answer::RegistryAnswer;
use credentials::Credentials;
use http::{HttpClient, HttpOptions, interruption};
pub(crate) use registration::Registration;
pub use subject::SubjectNaming;

/// Error codes of registries: no such subject, no such version, no such schema.
const MISSING: [u64; 3] = [40401, 40402, 40403];

/// Maximum number of schemas that a schema refers to, directly or not.
const MOST_REFERENCES: usize = 200;

/// Maximum number of ids that are kept; then all are asked for again.
const MOST_CACHED: usize = 10_000;

/// Unknown ids in a row that are asked for again after [`UNKNOWN_PAUSE`], because a follower of the registry may not
/// have what its leader has given out. Further ones, which a hostile producer may send, cost one request each.
const PATIENCE_WITH_UNKNOWN: u32 = 5;

/// Remedy for an answer of no registry.
const CHECK_URL: &str = "check the registry's URL and the path in it";

/// Remedy for an incompatible schema.
const CHANGE_SCHEMA: &str = "change the schema, or the subject's compatibility level";

/// Pause before an unknown id is asked for again.
const UNKNOWN_PAUSE: Duration = Duration::from_millis(500);

/// Characters of a subject that are escaped in a path.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// The language of a schema.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SchemaKind {
    /// Avro.
    Avro,
    /// Protocol Buffers.
    Protobuf,
    /// JSON Schema.
    Json,
    /// Another one.
    Other,
}

impl SchemaKind {
    fn of(name: Option<&str>) -> SchemaKind {
        match name {
            None | Some("AVRO") => SchemaKind::Avro,
            Some("PROTOBUF") => SchemaKind::Protobuf,
            Some("JSON") => SchemaKind::Json,
            Some(_) => SchemaKind::Other,
        }
    }

    fn name(self) -> &'static str {
        match self {
            SchemaKind::Avro => "AVRO",
            SchemaKind::Protobuf => "PROTOBUF",
            SchemaKind::Json => "JSON",
            SchemaKind::Other => "OTHER",
        }
    }
}

/// A schema of a registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegisteredSchema {
    /// The language.
    pub kind: SchemaKind,
    /// The text.
    pub text: String,
    /// Texts of the schemas that it refers to, each after those that it refers to itself.
    pub references: Vec<String>,
}

/// A schema registry: its URL, and how it is asked.
///
/// ```
/// use tidegate::kafka::SchemaRegistry;
///
/// let registry = SchemaRegistry::new("https://registry.example:8081").credentials_from_env("REGISTRY_LOGIN");
/// ```
#[derive(Clone)]
pub struct SchemaRegistry {
    url: String,
    options: HttpOptions,
    shared: Arc<SharedRegistry>,
}

/// State that clones of a [`SchemaRegistry`] share.
struct SharedRegistry {
    /// Number that no other registry of the process has.
    number: u64,
    client: OnceLock<Result<HttpClient>>,
    cached: RwLock<HashMap<u32, Arc<CachedSchema>>>,
    /// Held while an id is asked for. The last failure, with its time.
    asking: Mutex<Option<(Instant, Error)>>,
    /// Unknown ids since the last known one.
    unknown: AtomicU32,
}

/// A cached answer to the question for an id.
pub(crate) struct CachedSchema {
    /// `None` if the registry does not know the id.
    found: Option<RegisteredSchema>,
    avro: OnceLock<std::result::Result<AvroSchema, String>>,
}

impl CachedSchema {
    /// `true` if the registry knows the id.
    pub(crate) fn is_known(&self) -> bool {
        self.found.is_some()
    }

    /// Returns the schema if it is an Avro schema.
    ///
    /// # Errors
    /// Fails with the reason for rejecting messages of it.
    pub(crate) fn avro(&self) -> std::result::Result<&AvroSchema, String> {
        let parse = || {
            let found = self.of_kind(SchemaKind::Avro)?;
            let references: Vec<&str> = found.references.iter().map(String::as_str).collect();
            AvroSchema::parse_with(&found.text, &references).map_err(|why| format!("its schema cannot be used: {why}"))
        };
        self.avro.get_or_init(parse).as_ref().map_err(String::clone)
    }

    /// Returns the schema if it is of this kind.
    ///
    /// # Errors
    /// Fails with the reason for rejecting messages of it.
    pub(crate) fn of_kind(&self, kind: SchemaKind) -> std::result::Result<&RegisteredSchema, String> {
        match &self.found {
            None => Err("the registry does not know its schema".into()),
            Some(found) if found.kind == kind => Ok(found),
            Some(found) => Err(format!("its schema is {}, not {}", found.kind.name(), kind.name())),
        }
    }
}

thread_local! {
    /// Schemas that the thread has seen, by the number of the registry and the id; the last one is first.
    static SEEN: Cell<Vec<(u64, u32, Arc<CachedSchema>)>> = const { Cell::new(Vec::new()) };
}

/// Maximum number of schemas that a thread keeps for itself.
const MOST_SEEN: usize = 64;

impl SchemaRegistry {
    /// Names a registry by its URL, such as `https://HOST:8081` or `http://HOST/apis/ccompat/v7`. User and password may
    /// stand in it (`https://USER:PASSWORD@HOST`); they are never printed. Nothing is connected to yet.
    pub fn new(url: &str) -> SchemaRegistry {
        let options =
            HttpOptions { credentials: Credentials::OfUrl, ca_file: None, retry_for: Duration::from_secs(60) };
        SchemaRegistry { url: url.to_owned(), options, shared: Arc::default() }
    }

    fn with(mut self, set: impl FnOnce(&mut HttpOptions)) -> SchemaRegistry {
        set(&mut self.options);
        self.shared = Arc::default();
        self
    }

    /// Sets user and password of HTTP's basic authentication.
    #[must_use]
    pub fn basic_auth(self, user: &str, password: &str) -> SchemaRegistry {
        self.with(|options| options.credentials = Credentials::Given(format!("{user}:{password}")))
    }

    /// Takes `USER:PASSWORD` from an environment variable, when the job starts.
    #[must_use]
    pub fn credentials_from_env(self, variable: &str) -> SchemaRegistry {
        self.with(|options| options.credentials = Credentials::Variable(variable.to_owned()))
    }

    /// Takes `USER:PASSWORD` from a file, when the job starts.
    #[must_use]
    pub fn credentials_from_file(self, path: impl Into<PathBuf>) -> SchemaRegistry {
        self.with(|options| options.credentials = Credentials::File(path.into()))
    }

    /// Trusts the certificates of a PEM file instead of the system's.
    #[must_use]
    pub fn ca_file(self, path: impl Into<PathBuf>) -> SchemaRegistry {
        self.with(|options| options.ca_file = Some(path.into()))
    }

    /// Sets how long a registry that does not answer is asked again before the job fails: 60 s by default. A worker
    /// waits meanwhile. When the job is told to stop, the wait ends, and the message that needs the schema is left for
    /// the next start; of several processes each has to be told.
    #[must_use]
    pub fn retry_for(self, limit: Duration) -> SchemaRegistry {
        self.with(|options| options.retry_for = limit)
    }

    /// Returns the URL, without user and password.
    pub fn url(&self) -> String {
        credentials::split_url(&self.url).0
    }

    fn client(&self) -> Result<&HttpClient> {
        let client = self.shared.client.get_or_init(|| HttpClient::new(&self.url, &self.options));
        client.as_ref().map_err(Error::clone)
    }

    /// Checks URL, credentials and certificates, without connecting.
    ///
    /// # Errors
    /// Fails if one of them cannot be used.
    pub fn check(&self) -> Result<()> {
        self.client().map(drop)
    }

    /// Fetches a schema and those that it refers to; `None` if the registry does not know the id. Nothing is cached.
    ///
    /// # Errors
    /// Fails if the registry cannot be reached until retries are over, or refuses access.
    pub fn fetch(&self, id: u32) -> Result<Option<RegisteredSchema>> {
        // Registries count in signed integers, and some take a greater id for a wrong request.
        if i32::try_from(id).is_err() {
            return Ok(None);
        }
        let Some(answer) = self.found(&format!("/schemas/ids/{id}"))? else { return Ok(None) };
        let mut seen = Vec::new();
        let mut references = Vec::new();
        self.fetch_references(&answer, &mut seen, &mut references)?;
        let kind = SchemaKind::of(answer["schemaType"].as_str());
        Ok(Some(RegisteredSchema { kind, text: text_of(&answer, self)?, references }))
    }

    /// Returns the value at a path; `None` if the registry says that there is none.
    fn found(&self, path: &str) -> Result<Option<Value>> {
        match self.client()?.get(path)? {
            RegistryAnswer::Value(value) => Ok(Some(value)),
            RegistryAnswer::Refused { code, .. } if MISSING.contains(&code) => Ok(None),
            RegistryAnswer::Refused { code, message } => Err(self.refused(path, code, &message)),
        }
    }

    fn refused(&self, path: &str, code: u64, message: &str) -> Error {
        let (what, help) = match code {
            409 => ("the schema is incompatible with earlier versions", Some(CHANGE_SCHEMA)),
            422 | 42_201 => ("the schema registry refuses a request", Some("correct the schema, or its references")),
            _ => ("the schema registry refuses a request", None),
        };
        let refused = Error::of(ErrorKind::SchemaRefused, what).at(format_args!("{}{path}", self.url()));
        let refused = refused.because(format_args!("error {code}: {message}"));
        help.into_iter().fold(refused, Error::help)
    }

    /// Fetches the schemas that a schema refers to, each once, those first that others need.
    fn fetch_references(&self, of: &Value, seen: &mut Vec<(String, i64)>, texts: &mut Vec<String>) -> Result<()> {
        for reference in of["references"].as_array().into_iter().flatten() {
            let subject = reference["subject"].as_str().unwrap_or_default().to_owned();
            let version = reference["version"].as_i64().unwrap_or_default();
            if seen.iter().any(|(other, number)| (other, number) == (&subject, &version)) {
                continue;
            }
            let place = format!("{}, subject {subject}, version {version}", self.url());
            let failed = |why: &str| {
                let error = Error::of(ErrorKind::SchemaRefused, "a schema that another one refers to cannot be used");
                error.at(&place).because(why)
            };
            if seen.len() == MOST_REFERENCES {
                return Err(failed(&format!("there are more than {MOST_REFERENCES} references")));
            }
            seen.push((subject.clone(), version));
            let path = format!("/subjects/{}/versions/{version}", encoded(&subject));
            let found = self.found(&path)?.ok_or_else(|| failed("the registry does not know it"))?;
            self.fetch_references(&found, seen, texts)?;
            texts.push(text_of(&found, self)?);
        }
        Ok(())
    }

    /// Calls a function with the schema of this id, which is asked for once.
    ///
    /// # Errors
    /// Fails if the registry cannot be reached until retries are over, or refuses access.
    #[inline]
    pub(crate) fn with_schema<R>(&self, id: u32, use_it: impl FnOnce(&CachedSchema) -> R) -> Result<R> {
        let mut seen = SEEN.take();
        let number = self.shared.number;
        let at = match seen.iter().position(|(registry, other, _)| (*registry, *other) == (number, id)) {
            Some(at) => at,
            None => match self.cached(id) {
                Ok(schema) => {
                    seen.truncate(MOST_SEEN - 1);
                    seen.push((number, id, schema));
                    seen.len() - 1
                }
                Err(error) => {
                    SEEN.set(seen);
                    return Err(error);
                }
            },
        };
        seen.swap(0, at);
        let used = use_it(&seen[0].2);
        SEEN.set(seen);
        Ok(used)
    }

    /// Returns what an id means, from the cache of the process or from the registry.
    fn cached(&self, id: u32) -> Result<Arc<CachedSchema>> {
        let begun = Instant::now();
        let shared = &self.shared;
        let known = || shared.cached.read().unwrap_or_else(PoisonError::into_inner).get(&id).cloned();
        if let Some(known) = known() {
            return Ok(known);
        }
        let mut failed = shared.asking.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = known() {
            return Ok(known);
        }
        // Workers that have waited for one that asked in vain do not ask in vain one after the other.
        if let Some((_, error)) = failed.as_ref().filter(|(at, _)| *at > begun) {
            return Err(error.clone());
        }
        if let Some(ended) = interruption(begun, self.url()) {
            return Err(ended);
        }
        let found = self.fetch_patiently(id).inspect_err(|error| {
            // Another job may ask on.
            if !error.is_interruption() {
                *failed = Some((Instant::now(), error.clone()));
            }
        })?;
        if found.is_none() {
            tracing::warn!(registry = %self.url(), id, "the schema registry does not know this id: its messages are rejected");
        }
        let schema = Arc::new(CachedSchema { found, avro: OnceLock::new() });
        let mut cached = shared.cached.write().unwrap_or_else(PoisonError::into_inner);
        if cached.len() >= MOST_CACHED {
            cached.clear();
        }
        cached.insert(id, Arc::clone(&schema));
        Ok(schema)
    }

    /// Fetches a schema; one that is unknown is asked for again, unless many were.
    fn fetch_patiently(&self, id: u32) -> Result<Option<RegisteredSchema>> {
        let mut found = self.fetch(id)?;
        if found.is_none() && self.shared.unknown.fetch_add(1, Ordering::Relaxed) < PATIENCE_WITH_UNKNOWN {
            std::thread::sleep(UNKNOWN_PAUSE);
            found = self.fetch(id)?;
        }
        if found.is_some() {
            self.shared.unknown.store(0, Ordering::Relaxed);
        }
        Ok(found)
    }

    /// Returns the id of a schema that the subject has; `None` if it has not.
    ///
    /// # Errors
    /// Fails if the registry cannot be reached until retries are over, refuses access or refuses the schema.
    pub fn look_up(&self, subject: &str, kind: SchemaKind, text: &str) -> Result<Option<u32>> {
        let path = format!("/subjects/{}?normalize=true", encoded(subject));
        match self.client()?.post(&path, &body_of(kind, text))? {
            RegistryAnswer::Value(value) => self.id_in(&path, &value).map(Some),
            RegistryAnswer::Refused { code, .. } if MISSING.contains(&code) => Ok(None),
            RegistryAnswer::Refused { code, message } => Err(self.refused(&path, code, &message)),
        }
    }

    /// Adds a schema to a subject, if it is not there, and returns its id.
    ///
    /// A conflict may be one with this very schema: with a request that took effect though its answer was lost, or
    /// with another job that registers the same. So the schema is looked up before a conflict is a failure.
    ///
    /// # Errors
    /// Fails if the registry cannot be reached until retries are over, refuses access, or refuses the schema because it
    /// is incompatible with earlier versions.
    pub fn register(&self, subject: &str, kind: SchemaKind, text: &str) -> Result<u32> {
        let path = format!("/subjects/{}/versions?normalize=true", encoded(subject));
        match self.client()?.post(&path, &body_of(kind, text))? {
            RegistryAnswer::Value(value) => self.id_in(&path, &value),
            RegistryAnswer::Refused { code, message } => {
                // If that fails too, the refusal says more.
                let known = if code == 409 { self.look_up(subject, kind, text).ok().flatten() } else { None };
                known.ok_or_else(|| self.refused(&path, code, &message))
            }
        }
    }

    /// Checks that a schema may follow the newest version of a subject. A subject that is new allows any.
    ///
    /// # Errors
    /// Fails if it may not, with the registry's reasons; if the registry cannot be reached until retries are over, or
    /// refuses access.
    pub fn check_compatible(&self, subject: &str, kind: SchemaKind, text: &str) -> Result<()> {
        let path = format!("/compatibility/subjects/{}/versions/latest?verbose=true", encoded(subject));
        let answer = match self.client()?.post(&path, &body_of(kind, text))? {
            RegistryAnswer::Value(value) => value,
            RegistryAnswer::Refused { code, .. } if MISSING.contains(&code) => return Ok(()),
            RegistryAnswer::Refused { code, message } => return Err(self.refused(&path, code, &message)),
        };
        if answer["is_compatible"] == Value::Bool(true) {
            return Ok(());
        }
        let reasons = answer["messages"].as_array().into_iter().flatten();
        let reasons: Vec<_> = reasons.chain([&answer["reason"]]).filter_map(Value::as_str).collect();
        let reasons = if reasons.is_empty() { "the registry tells no reason".into() } else { reasons.join("; ") };
        let error = Error::of(ErrorKind::SchemaRefused, "the schema is incompatible with the newest version");
        let error = error.at(format_args!("{}, subject {subject}", self.url()));
        Err(error.because(shortened(&reasons, 500)).help(CHANGE_SCHEMA))
    }

    fn id_in(&self, path: &str, answer: &Value) -> Result<u32> {
        let id = answer["id"].as_u64().and_then(|id| u32::try_from(id).ok());
        id.ok_or_else(|| {
            let error = Error::of(ErrorKind::SourceUnreachable, "the schema registry answers without an id");
            error.at(format_args!("{}{path}", self.url())).because(shortened(&answer.to_string(), 200)).help(CHECK_URL)
        })
    }
}

impl fmt::Debug for SchemaRegistry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SchemaRegistry")
            .field("url", &self.url())
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

impl Default for SharedRegistry {
    fn default() -> Self {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        SharedRegistry {
            number: NUMBER.fetch_add(1, Ordering::Relaxed),
            client: OnceLock::new(),
            cached: RwLock::default(),
            asking: Mutex::default(),
            unknown: AtomicU32::new(0),
        }
    }
}

fn encoded(subject: &str) -> impl fmt::Display + '_ {
    utf8_percent_encode(subject, ESCAPED)
}

fn body_of(kind: SchemaKind, text: &str) -> Value {
    match kind {
        SchemaKind::Avro => json!({ "schema": text }),
        kind => json!({ "schema": text, "schemaType": kind.name() }),
    }
}

/// Returns the text of a schema in an answer.
fn text_of(answer: &Value, registry: &SchemaRegistry) -> Result<String> {
    let text = answer["schema"].as_str().map(str::to_owned);
    text.ok_or_else(|| {
        let error = Error::of(ErrorKind::SourceUnreachable, "the schema registry answers without a schema");
        error.at(registry.url()).help(CHECK_URL)
    })
}
