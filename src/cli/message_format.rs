//! The flags that set the format of messages in topics, and the decoders and encoders that they name.

#[cfg(feature = "registry")]
use std::path::PathBuf;

use clap::{Args, ValueEnum};

use crate::error::Result;
use crate::record::Record;
use crate::sink::kafka::{Encode, encode};
use crate::source::kafka::{Decode, csv, json};
#[cfg(feature = "registry")]
use crate::{
    error::Error,
    kafka::{AvroEncoder, AvroSchema, SchemaRegistry, avro},
};

/// Namespace of the schemas that results are written with.
#[cfg(feature = "registry")]
const NAMESPACE: &str = "tidegate";

/// Format of the values of messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum MessageFormat {
    /// One JSON object a message.
    Json,
    /// One CSV row a message, without a header, with the fields of the record in their order.
    Csv,
    /// Avro behind the id of its schema, which is in a schema registry.
    #[cfg(feature = "registry")]
    Avro,
}

impl MessageFormat {
    /// Returns the decoder of messages of this format.
    ///
    /// # Errors
    /// Fails if the format needs a schema registry and none is named.
    #[cfg_attr(not(feature = "registry"), expect(unused_variables, reason = "for Avro"))]
    pub fn decoder<T: Record>(self, registry: &RegistryArgs) -> Result<Box<dyn Decode<T>>> {
        Ok(match self {
            MessageFormat::Json => Box::new(json()),
            MessageFormat::Csv => Box::new(csv()),
            #[cfg(feature = "registry")]
            MessageFormat::Avro => Box::new(avro(&registry.registry("--format")?)),
        })
    }

    /// Returns the encoder of rows that are written to a topic in this format. The registry gets the schema if it does
    /// not have it and `register` is `true`.
    ///
    /// # Errors
    /// Fails if the format needs a schema registry and none is named, or if the type of the rows has no schema.
    #[cfg_attr(not(feature = "registry"), expect(unused_variables, reason = "for Avro"))]
    pub fn encoder<D: Record>(
        self,
        registry: &RegistryArgs,
        topic: &str,
        register: bool,
    ) -> Result<Box<dyn Encode<D>>> {
        Ok(match self {
            MessageFormat::Json => Box::new(encode::json()),
            MessageFormat::Csv => Box::new(encode::csv()),
            #[cfg(feature = "registry")]
            MessageFormat::Avro => {
                let registry = registry.registry("the format")?;
                let encoder = AvroEncoder::new(&registry, topic, AvroSchema::of::<D>(NAMESPACE)?);
                Box::new(encoder.auto_register(register))
            }
        })
    }
}

/// The flags that name a schema registry.
#[derive(Clone, Debug, Default, Args)]
pub struct RegistryArgs {
    /// Schema registry of Avro messages
    #[cfg(feature = "registry")]
    #[arg(long, value_name = "URL")]
    pub registry: Option<String>,

    /// File with USER:PASSWORD for the schema registry
    #[cfg(feature = "registry")]
    #[arg(long, value_name = "FILE", requires = "registry")]
    pub registry_credentials_file: Option<PathBuf>,

    /// File with the certificates (PEM) that the schema registry's own is signed by [default: the system's]
    #[cfg(feature = "registry")]
    #[arg(long, value_name = "FILE", requires = "registry")]
    pub registry_ca_file: Option<PathBuf>,
}

impl RegistryArgs {
    #[cfg(feature = "registry")]
    fn registry(&self, what: &str) -> Result<SchemaRegistry> {
        let Some(url) = &self.registry else {
            let error = Error::usage(format!("{what} avro needs a schema registry"));
            return Err(error.help("add --registry URL"));
        };
        let registry = SchemaRegistry::new(url);
        let registry = self.registry_credentials_file.iter().fold(registry, SchemaRegistry::credentials_from_file);
        Ok(self.registry_ca_file.iter().fold(registry, SchemaRegistry::ca_file))
    }
}

/// The flags of the formats of messages that a query reads and writes.
#[derive(Clone, Debug, Args)]
pub struct MessageFormatArgs {
    /// Format of the messages of topics that are read
    #[arg(long, value_enum, value_name = "FORMAT", default_value_t = MessageFormat::Json)]
    pub format: MessageFormat,

    /// Format of the messages of topics that are written, but for dead letters; schemas are registered under TOPIC-value
    #[arg(long, value_enum, value_name = "FORMAT", default_value_t = MessageFormat::Json)]
    pub out_format: MessageFormat,

    /// Flags of the schema registry.
    #[command(flatten)]
    pub registry: RegistryArgs,

    /// Fail if the registry does not have the schema of the results yet, instead of registering it
    #[cfg(feature = "registry")]
    #[arg(long, requires = "registry")]
    pub no_auto_register: bool,
}

impl MessageFormatArgs {
    /// Returns the decoder of messages that are read.
    ///
    /// # Errors
    /// Fails as [`MessageFormat::decoder`] does.
    pub fn decoder<T: Record>(&self) -> Result<Box<dyn Decode<T>>> {
        self.format.decoder(&self.registry)
    }

    /// Returns the encoder of rows that are written to a topic.
    ///
    /// # Errors
    /// Fails as [`MessageFormat::encoder`] does.
    pub fn encoder<D: Record>(&self, topic: &str) -> Result<Box<dyn Encode<D>>> {
        #[cfg(feature = "registry")]
        let register = !self.no_auto_register;
        #[cfg(not(feature = "registry"))]
        let register = false;
        self.out_format.encoder(&self.registry, topic, register)
    }
}
