//! The schema of an output: found in a registry, or registered, before anything is written.

use std::sync::OnceLock;

use super::{SchemaKind, SchemaRegistry};
use crate::error::{Error, ErrorKind, Result};

/// A schema that has to be in a registry.
#[derive(Clone, Debug)]
pub(crate) struct Registration {
    pub(crate) registry: SchemaRegistry,
    pub(crate) subject: String,
    pub(crate) kind: SchemaKind,
    pub(crate) text: String,
    /// `true` if it may be registered.
    pub(crate) auto_register: bool,
    id: OnceLock<u32>,
}

impl Registration {
    pub(crate) fn new(registry: &SchemaRegistry, subject: String, kind: SchemaKind, text: String) -> Self {
        Registration { registry: registry.clone(), subject, kind, text, auto_register: false, id: OnceLock::new() }
    }

    /// Returns the id; `None` before [`Registration::prepare`].
    pub(crate) fn id(&self) -> Option<u32> {
        self.id.get().copied()
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
