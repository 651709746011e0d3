//! The flags that set properties of the Kafka client.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::OnceLock;

use clap::Args;

use crate::error::Result;
use crate::source::kafka::ClientProperties;

/// The flags `--kafka-config` and `--kafka-config-file`.
#[derive(Clone, Debug, Default, Args)]
pub struct KafkaConfigArgs {
    /// Property of the Kafka client (TLS, SASL, …); can be given several times. In its value ${env:NAME} stands for an
    /// environment variable and ${file:PATH} for a file's text, so that no secret is on the command line. Topics are
    /// written with compression.type=lz4 unless it is set to none, gzip, snappy or zstd
    #[arg(long, value_name = "KEY=VALUE")]
    pub kafka_config: Vec<Property>,

    /// File of properties of the Kafka client, one KEY=VALUE a line; --kafka-config overrides it
    #[arg(long, value_name = "FILE")]
    pub kafka_config_file: Option<PathBuf>,

    /// The properties, once they were read: several sources and sinks have them.
    #[arg(skip)]
    resolved: OnceLock<ClientProperties>,
}

impl KafkaConfigArgs {
    /// Returns the properties, with everything that their values refer to.
    ///
    /// # Errors
    /// Fails if the file cannot be read or has lines of another form, or if what a value refers to is missing.
    pub fn properties(&self) -> Result<&ClientProperties> {
        if let Some(known) = self.resolved.get() {
            return Ok(known);
        }
        let properties = self.resolve()?;
        Ok(self.resolved.get_or_init(|| properties))
    }

    fn resolve(&self) -> Result<ClientProperties> {
        let mut properties = match &self.kafka_config_file {
            Some(path) => ClientProperties::from_file(path).map_err(|error| error.help("check --kafka-config-file"))?,
            None => ClientProperties::default(),
        };
        for Property(text) in &self.kafka_config {
            let (key, value) = ClientProperties::parse(text).map_err(|error| error.at("--kafka-config"))?;
            properties.set(&key, &value);
        }
        Ok(properties)
    }
}

/// A property of the Kafka client as it is given: `KEY=VALUE`. `Debug` output does not contain the value.
#[derive(Clone, PartialEq, Eq)]
pub struct Property(String);

impl fmt::Debug for Property {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}=…", ClientProperties::split(&self.0).map_or("", |(key, _)| key))
    }
}

impl FromStr for Property {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match ClientProperties::split(text) {
            Some(_) => Ok(Property(text.to_owned())),
            None => Err(String::from("it has to be KEY=VALUE, as in security.protocol=ssl")),
        }
    }
}
