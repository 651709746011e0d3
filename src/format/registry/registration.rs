//! The schema of an output: found in a registry, or registered, before anything is written.

use std::sync::OnceLock;

use super::{SchemaKind, SchemaRegistry, SubjectNaming};
use crate::error::{Error, ErrorKind, Result};

/// A schema that has to be in a registry.
#[derive(Clone, Debug)]
pub(crate) struct Registration {
    registry: SchemaRegistry,
    topic: String,
    /// Full name of the type that the schema describes.
    type_name: String,
    subject: String,
    kind: SchemaKind,
    text: String,
    /// `true` if it may be registered.
    pub(crate) auto_register: bool,
    id: OnceLock<u32>,
}

impl Registration {
    /// Names the schema of the values of a topic, whose subject is `TOPIC-value`.
    pub(crate) fn new(registry: &SchemaRegistry, topic: &str, type_name: &str, kind: SchemaKind, text: &str) -> Self {
        Registration {
            registry: registry.clone(),
            topic: topic.to_owned(),
            type_name: type_name.to_owned(),
            subject: SubjectNaming::Topic.subject(topic, type_name, false),
            kind,
            text: text.to_owned(),
            auto_register: false,
            id: OnceLock::new(),
        }
    }

    /// Sets how the subject is named.
    pub(crate) fn name_subject(&mut self, naming: SubjectNaming) {
        self.subject = naming.subject(&self.topic, &self.type_name, false);
    }

    /// Returns the id.
    ///
    /// # Errors
    /// Fails with the reason before [`Registration::prepare`].
    pub(crate) fn id(&self) -> std::result::Result<u32, String> {
        self.id.get().copied().ok_or_else(|| String::from("the schema is not prepared"))
    }

    /// Looks the schema up, and registers it if that is allowed. Does nothing if the id is known.
    ///
    /// # Errors
    /// Fails if the schema is missing and may not be registered, if it is incompatible with the newest version, or if
    /// the registry cannot be reached until retries are over, or refuses access.
    pub(crate) fn prepare(&self) -> Result<()> {
        if self.id.get().is_some() {
            return Ok(());
        }
        let Registration { registry, subject, kind, text, .. } = self;
        let id = match registry.look_up(subject, *kind, text)? {
            Some(id) => id,
            None if self.auto_register => {
                registry.check_compatible(subject, *kind, text)?;
                registry.register(subject, *kind, text)?
            }
            None => {
                let error = Error::of(ErrorKind::SchemaRefused, "the schema of an output is not registered");
                let place = format!("{}, subject {subject}", registry.url());
                return Err(error.at(place).help("register it, or let the job do so with `.auto_register(true)`"));
            }
        };
        // Another thread may have found the same one.
        let _ = self.id.set(id);
        Ok(())
    }
}
