//! The flags that set the format of messages in topics, and the decoders and encoders that they name.

use std::path::PathBuf;
#[cfg(feature = "protobuf")]
use std::sync::Arc;

use clap::{Args, ValueEnum};

use super::DelimiterArgs;
use crate::error::{Error, Result};
#[cfg(feature = "protobuf")]
use crate::format::described::DescribedMessage;
#[cfg(feature = "registry")]
use crate::kafka::{AvroEncoder, AvroSchema, SchemaRegistry, avro};
use crate::record::Record;
use crate::sink::kafka::{Encode, encode};
use crate::source::csv::Delimiter;
use crate::source::kafka::{Decode, csv, json};
#[cfg(feature = "protobuf")]
use crate::source::kafka::{Message, value_of};

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
    /// Protocol Buffers, of the type that --message names in the file --descriptor, or transactions; behind the id of a
    /// schema or not.
    #[cfg_attr(not(feature = "protobuf"), value(help = "Protocol Buffers: not built in (cargo feature `protobuf`)"))]
    Protobuf,
    /// The bytes as they are, for produce and consume.
    Raw,
}

/// Refuses records without fields.
fn no_fields() -> Error {
    let error = Error::usage("messages in the format raw have no fields, which are needed here");
    error.help("name the format of their values, such as --format json")
}

/// Refuses a format that is not built in.
#[cfg(not(feature = "protobuf"))]
fn not_built_in() -> Error {
    let error = Error::usage("the format protobuf is not built in");
    error.help("build the program with the cargo feature `protobuf`")
}

impl MessageFormat {
    /// Returns the decoder of messages of this format; fields of CSV are between `delimiter`.
    ///
    /// # Errors
    /// Fails if the format needs a schema registry and none is named.
    #[cfg_attr(not(feature = "registry"), expect(unused_variables, reason = "for Avro"))]
    pub fn decoder<T: Record>(self, registry: &RegistryArgs, delimiter: Delimiter) -> Result<Box<dyn Decode<T>>> {
        Ok(match self {
            MessageFormat::Json => Box::new(json()),
            MessageFormat::Csv => Box::new(csv().delimiter(delimiter)),
            #[cfg(feature = "registry")]
            MessageFormat::Avro => Box::new(avro(&registry.registry("--format")?)),
            #[cfg(feature = "protobuf")]
            MessageFormat::Protobuf => {
                let described = registry.described()?;
                Box::new(move |message: &Message<'_>| Ok(Some(described.decode::<T>(value_of(message)?)?)))
            }
            #[cfg(not(feature = "protobuf"))]
            MessageFormat::Protobuf => return Err(not_built_in()),
            MessageFormat::Raw => return Err(no_fields()),
        })
    }

    /// Returns the encoder of rows that are written to a topic in this format. The registry gets the schema if it does
    /// not have it and `register` is `true`. Fields of CSV are between `delimiter`.
    ///
    /// # Errors
    /// Fails if the format needs a schema registry and none is named, or if the type of the rows has no schema.
    #[cfg_attr(not(feature = "registry"), expect(unused_variables, reason = "for Avro"))]
    pub fn encoder<D: Record>(
        self,
        registry: &RegistryArgs,
        topic: &str,
        register: bool,
        delimiter: Delimiter,
    ) -> Result<Box<dyn Encode<D>>> {
        Ok(match self {
            MessageFormat::Json => Box::new(encode::json()),
            MessageFormat::Csv => Box::new(encode::csv().delimiter(delimiter)),
            #[cfg(feature = "registry")]
            MessageFormat::Avro => {
                let registry = registry.registry("the format")?;
                let encoder = AvroEncoder::new(&registry, topic, AvroSchema::of::<D>(NAMESPACE)?);
                Box::new(encoder.auto_register(register))
            }
            #[cfg(feature = "protobuf")]
            MessageFormat::Protobuf => {
                let described = registry.described()?;
                Box::new(move |row: &D, value: &mut Vec<u8>| described.encode(row, value))
            }
            #[cfg(not(feature = "protobuf"))]
            MessageFormat::Protobuf => return Err(not_built_in()),
            MessageFormat::Raw => return Err(no_fields()),
        })
    }
}

/// The flags that name a schema registry, or a file that describes messages.
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

    /// Description of messages of Protocol Buffers, as protoc --include_imports --descriptor_set_out=FILE writes it
    /// [default: that of a transaction]
    #[arg(long, value_name = "FILE", hide = !cfg!(feature = "protobuf"))]
    pub descriptor: Option<PathBuf>,

    /// Full name of the messages' type in the description, such as acme.Payment
    #[arg(long, value_name = "TYPE", requires = "descriptor", hide = !cfg!(feature = "protobuf"))]
    pub message: Option<String>,
}

impl RegistryArgs {
    /// Returns the type of messages of Protocol Buffers.
    #[cfg(feature = "protobuf")]
    fn described(&self) -> Result<Arc<DescribedMessage>> {
        let described = match (&self.descriptor, &self.message) {
            (Some(file), Some(name)) => DescribedMessage::of_file(file, name)?,
            (Some(_), None) => {
                let error = Error::usage("--descriptor describes many types of messages");
                return Err(error.help("add --message TYPE, for results --out-message TYPE"));
            }
            (None, _) => DescribedMessage::transaction()?,
        };
        Ok(Arc::new(described))
    }

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

    /// Full name of the type of messages that are written, in the description that --descriptor names
    #[arg(long, value_name = "TYPE", requires = "descriptor", hide = !cfg!(feature = "protobuf"))]
    pub out_message: Option<String>,
}

impl MessageFormatArgs {
    /// Returns the decoder of messages that are read; fields of CSV are between the character that the flags name.
    ///
    /// # Errors
    /// Fails as [`MessageFormat::decoder`] does.
    pub fn decoder<T: Record>(&self, delimiters: &DelimiterArgs) -> Result<Box<dyn Decode<T>>> {
        let is_csv = self.format == MessageFormat::Csv;
        let delimiter = if is_csv { delimiters.for_reading() } else { Delimiter::default() };
        self.format.decoder(&self.registry, delimiter)
    }

    /// Returns the encoder of rows that are written to a topic; fields of CSV are between the character that the flags name.
    ///
    /// # Errors
    /// Fails as [`MessageFormat::encoder`] does.
    pub fn encoder<D: Record>(&self, topic: &str, delimiters: &DelimiterArgs) -> Result<Box<dyn Encode<D>>> {
        let is_csv = self.out_format == MessageFormat::Csv;
        let delimiter = if is_csv { delimiters.for_writing() } else { Delimiter::default() };
        #[cfg(feature = "registry")]
        let register = !self.no_auto_register;
        #[cfg(not(feature = "registry"))]
        let register = false;
        #[cfg(feature = "protobuf")]
        if self.out_format == MessageFormat::Protobuf {
            if self.out_message.is_none() {
                let error = Error::usage("--out-format protobuf needs the type of the results");
                return Err(error.help("add --descriptor FILE and --out-message TYPE"));
            }
            let registry = RegistryArgs { message: self.out_message.clone(), ..self.registry.clone() };
            return self.out_format.encoder(&registry, topic, register, delimiter);
        }
        self.out_format.encoder(&self.registry, topic, register, delimiter)
    }
}
