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

/// The flags of the format of messages.
#[derive(Clone, Debug, Args)]
pub struct MessageFormatArgs {
    /// Format of the messages of topics that are read
    #[arg(long, value_enum, value_name = "FORMAT", default_value_t = MessageFormat::Json)]
    pub format: MessageFormat,

    /// Format of the messages of topics that are written, but for dead letters
    #[arg(long, value_enum, value_name = "FORMAT", default_value_t = MessageFormat::Json)]
    pub out_format: MessageFormat,

    /// Schema registry of Avro messages; schemas of results are registered under TOPIC-value
    #[cfg(feature = "registry")]
    #[arg(long, value_name = "URL")]
    pub registry: Option<String>,

    /// File with USER:PASSWORD for the schema registry
    #[cfg(feature = "registry")]
    #[arg(long, value_name = "FILE", requires = "registry")]
    pub registry_credentials_file: Option<PathBuf>,

    /// Fail if the registry does not have the schema of the results yet, instead of registering it
    #[cfg(feature = "registry")]
    #[arg(long, requires = "registry")]
    pub no_auto_register: bool,
}

impl MessageFormatArgs {
    /// Returns the decoder of messages that are read.
    ///
    /// # Errors
    /// Fails if the format needs a schema registry and none is named.
    pub fn decoder<T: Record>(&self) -> Result<Box<dyn Decode<T>>> {
        Ok(match self.format {
            MessageFormat::Json => Box::new(json()),
            MessageFormat::Csv => Box::new(csv()),
            #[cfg(feature = "registry")]
            MessageFormat::Avro => Box::new(avro(&self.registry("--format")?)),
        })
    }

    /// Returns the encoder of rows that are written to a topic.
    ///
    /// # Errors
    /// Fails if the format needs a schema registry and none is named, or if the type of the rows has no schema.
    #[cfg_attr(not(feature = "registry"), expect(clippy::unnecessary_wraps, reason = "Avro can fail"))]
    pub fn encoder<D: Record>(&self, topic: &str) -> Result<Box<dyn Encode<D>>> {
        Ok(match self.out_format {
            MessageFormat::Json => Box::new(encode::json()),
            MessageFormat::Csv => Box::new(encode::csv()),
            #[cfg(feature = "registry")]
            MessageFormat::Avro => {
                let registry = self.registry("--out-format")?;
                let encoder = AvroEncoder::new(&registry, topic, AvroSchema::of::<D>(NAMESPACE)?);
                Box::new(encoder.auto_register(!self.no_auto_register))
            }
        })
    }

    #[cfg(feature = "registry")]
    fn registry(&self, flag: &str) -> Result<SchemaRegistry> {
        let Some(url) = &self.registry else {
            let error = Error::usage(format!("{flag} avro needs a schema registry"));
            return Err(error.help("add --registry URL"));
        };
        let registry = SchemaRegistry::new(url);
        Ok(match &self.registry_credentials_file {
            Some(path) => registry.credentials_from_file(path),
            None => registry,
        })
    }
}
