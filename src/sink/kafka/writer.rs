//! The writer of a topic: sends the messages of epochs, at least once or in transactions.

use super::message::OutgoingMessage;
use super::publisher::Publisher;
use super::row_mapping::RowMapping;
use super::transactions::TransactionalWriter;
use crate::durable::journal::JournalEnds;
use crate::durable::{Incarnation, PublishedEpoch};
use crate::error::Result;
use crate::record::Record;
use crate::sink::{SinkRows, SinkWriter};
use crate::time::Epoch;

/// Delivery guarantee of the messages.
pub(super) enum Delivery {
    AtLeastOnce(Box<Publisher>),
    ExactlyOnce(Box<TransactionalWriter>),
}

impl Delivery {
    fn partitions(&self) -> usize {
        match self {
            Delivery::AtLeastOnce(publisher) => publisher.partitions().0,
            Delivery::ExactlyOnce(transactions) => transactions.partitions(),
        }
    }

    fn send(&mut self, message: &OutgoingMessage<'_>) -> Result<()> {
        match self {
            Delivery::AtLeastOnce(publisher) => publisher.post(message),
            Delivery::ExactlyOnce(transactions) => transactions.send(message),
        }
    }
}

/// Writes rows to a topic.
pub(super) struct KafkaWriter<D> {
    pub(super) delivery: Delivery,
    pub(super) rows: SinkRows,
    pub(super) mapping: RowMapping<D>,
    /// Description of the topic, for people.
    pub(super) place: String,
}

impl<D: Record> KafkaWriter<D> {
    fn send(&mut self, epoch: Epoch, rows: &[(D, isize)]) -> Result<()> {
        let KafkaWriter { delivery, rows: kind, mapping, place } = self;
        let mut unsent = None;
        let sent = mapping.each_message((epoch, *kind, delivery.partitions()), rows, |message| {
            delivery.send(message).inspect_err(|error| unsent = Some(error.clone()))
        });
        // Errors of delivery name their place.
        sent.map_err(|error| unsent.unwrap_or_else(|| error.at(place)))
    }
}

impl<D: Record> SinkWriter<D> for KafkaWriter<D> {
    fn published(&mut self) -> Result<Option<PublishedEpoch>> {
        match &mut self.delivery {
            Delivery::AtLeastOnce(_) => Ok(None),
            Delivery::ExactlyOnce(transactions) => transactions.shown(),
        }
    }

    fn begin(&mut self, life: &Incarnation) -> Result<()> {
        match &mut self.delivery {
            Delivery::AtLeastOnce(_) => Ok(()),
            Delivery::ExactlyOnce(transactions) => transactions.begin(life),
        }
    }

    fn write(&mut self, epoch: Epoch, rows: &[(D, isize)]) -> Result<()> {
        if let Delivery::ExactlyOnce(transactions) = &mut self.delivery {
            transactions.begin_epoch(epoch)?;
        }
        let sent = self.send(epoch, rows);
        match &mut self.delivery {
            Delivery::ExactlyOnce(transactions) => sent.map_err(|error| transactions.fail(error)),
            Delivery::AtLeastOnce(_) => sent,
        }
    }

    fn publish(&mut self, ends: &JournalEnds) -> Result<()> {
        match &mut self.delivery {
            Delivery::AtLeastOnce(publisher) => publisher.flush(),
            Delivery::ExactlyOnce(transactions) => transactions.show(ends),
        }
    }

    fn finish(&mut self) -> Result<()> {
        match &mut self.delivery {
            Delivery::AtLeastOnce(publisher) => publisher.flush(),
            Delivery::ExactlyOnce(transactions) => transactions.finish(),
        }
    }

    fn is_blocking(&self) -> bool {
        true
    }
}
