//! The events as files, so that another engine answers the same questions of the same events.
//!
//! As CSV they are four tables: `person.csv`, `auction.csv`, `bid.csv` and, for query 13, `side_input.csv`. The column
//! `seq` of the first three is the event's place in the stream. As NDJSON they are one file, `events.ndjson`, in the order of
//! the stream, which `--ndjson` reads.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::Path;

use serde::Serialize;
use tidegate::error::{Error, ErrorKind, Result};

use crate::model::Event;
use crate::q13::side_input;
use crate::source::GeneratedEvents;

const PERSON: [&str; 9] = ["seq", "id", "name", "email_address", "credit_card", "city", "state", "date_time", "extra"];
const AUCTION: [&str; 11] = [
    "seq",
    "id",
    "item_name",
    "description",
    "initial_bid",
    "reserve",
    "date_time",
    "expires",
    "seller",
    "category",
    "extra",
];
const BID: [&str; 8] = ["seq", "auction", "bidder", "price", "channel", "url", "date_time", "extra"];

fn failed(path: &Path, why: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::of(ErrorKind::SinkFailed, "cannot write events").at(path.display()).caused_by(why)
}

/// A CSV file.
struct Table<'p> {
    path: &'p Path,
    writer: csv::Writer<File>,
}

impl<'p> Table<'p> {
    fn create(path: &'p Path, header: &[&str]) -> Result<Self> {
        let file = File::create(path).map_err(|why| failed(path, why))?;
        let writer = csv::WriterBuilder::new().has_headers(false).from_writer(file);
        let mut table = Table { path, writer };
        table.row(header)?;
        Ok(table)
    }

    fn row(&mut self, row: impl Serialize) -> Result<()> {
        self.writer.serialize(row).map_err(|why| failed(self.path, why))
    }

    fn finish(mut self) -> Result<()> {
        self.writer.flush().map_err(|why| failed(self.path, why))
    }
}

/// Creates the directory.
fn create(directory: &Path) -> Result<()> {
    fs::create_dir_all(directory).map_err(|why| failed(directory, why))
}

/// Writes the events and the side input as CSV tables into a directory.
///
/// # Errors
/// Fails if the files cannot be written.
pub(crate) fn write_csv(events: &GeneratedEvents, directory: &Path) -> Result<()> {
    create(directory)?;
    let [person, auction, bid, side] =
        ["person.csv", "auction.csv", "bid.csv", "side_input.csv"].map(|name| directory.join(name));
    let mut persons = Table::create(&person, &PERSON)?;
    let mut auctions = Table::create(&auction, &AUCTION)?;
    let mut bids = Table::create(&bid, &BID)?;
    for (seq, event) in (0_u64..).zip(events.in_order()) {
        match event {
            Event::Person(person) => persons.row((seq, person))?,
            Event::Auction(auction) => auctions.row((seq, auction))?,
            Event::Bid(bid) => bids.row((seq, bid))?,
        }
    }
    let mut sides = Table::create(&side, &["key", "value"])?;
    side_input().try_for_each(|row| sides.row(row))?;
    [persons, auctions, bids, sides].into_iter().try_for_each(Table::finish)
}

/// Writes the events as NDJSON into a directory.
///
/// # Errors
/// Fails if the file cannot be written.
pub(crate) fn write_ndjson(events: &GeneratedEvents, directory: &Path) -> Result<()> {
    create(directory)?;
    let path = directory.join("events.ndjson");
    let mut file = BufWriter::new(File::create(&path).map_err(|why| failed(&path, why))?);
    for event in events.in_order() {
        serde_json::to_writer(&mut file, &event).map_err(|why| failed(&path, why))?;
        file.write_all(b"\n").map_err(|why| failed(&path, why))?;
    }
    file.flush().map_err(|why| failed(&path, why))
}
