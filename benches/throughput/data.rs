//! Data of the benchmarks: seeded records, files of transactions, and a topic of them.

use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use tidegate::Transaction;
use tidegate::sink::kafka::Publisher;

/// Number of partitions of the records in memory.
pub(crate) const PARTITIONS: usize = 2;
/// Maximum disorder within a partition, in milliseconds; no record is late.
pub(crate) const DISORDER: i64 = 2_000;
/// Length of a window, in milliseconds.
pub(crate) const WINDOW: i64 = 10_000;

/// A record: account, event time, amount.
pub(crate) type Small = (u32, i64, i64);

/// A stream of pseudo-random numbers (xorshift64).
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Self {
        Random(88_172_645_463_325_252 + seed * 7_919)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// Returns a random account: some are much busier than others.
    fn account(&mut self, accounts: u64) -> u64 {
        let number = self.next();
        let skewed = (number % 1000) as f64 / 1000.0;
        ((skewed.powi(3) * accounts as f64) as u64 + (number >> 40) % (accounts / 1000).max(1)).min(accounts - 1)
    }
}

/// Generates a partition's share of `records` records: a hundred thousand of them per second of event time.
pub(crate) fn small(partition: usize, records: u64, accounts: u64) -> Vec<Small> {
    let mut random = Random::new(partition as u64);
    (0..records / PARTITIONS as u64)
        .map(|index| {
            let account = random.account(accounts);
            let at = (index * PARTITIONS as u64 / 100) as i64 + DISORDER - (random.next() % DISORDER as u64) as i64;
            (account as u32, at, (random.next() % 20_000) as i64 - 2_000)
        })
        .collect()
}

/// Generates transactions, a hundred thousand of them per second of event time.
pub(crate) fn transactions(records: u64, accounts: u64) -> impl Iterator<Item = Transaction> {
    let mut random = Random::new(11);
    (0..records).map(move |id| {
        let account = random.account(accounts);
        let at = (id / 100) as i64 + DISORDER - (random.next() % DISORDER as u64) as i64;
        Transaction {
            id,
            account: format!("a{account:05}"),
            merchant: format!("m{:02}", random.next() % 100),
            amount_cents: (random.next() % 20_000) as i64 - 2_000,
            currency: String::from("EUR"),
            at_ms: 1_767_323_040_000 + at,
        }
    })
}

/// Returns the path of the file of transactions with this extension.
pub(crate) fn file(dir: &Path, ending: &str) -> PathBuf {
    dir.join(format!("transactions.{ending}"))
}

/// Writes the files of transactions.
pub(crate) fn write_files(dir: &Path, records: u64, accounts: u64) -> Result<(), String> {
    let write = || -> std::io::Result<()> {
        let mut csv = BufWriter::new(std::fs::File::create(file(dir, "csv"))?);
        let mut ndjson = BufWriter::new(std::fs::File::create(file(dir, "ndjson"))?);
        writeln!(csv, "id,account,merchant,amount_cents,currency,at_ms")?;
        for t in transactions(records, accounts) {
            writeln!(csv, "{},{},{},{},{},{}", t.id, t.account, t.merchant, t.amount_cents, t.currency, t.at_ms)?;
            serde_json::to_writer(&mut ndjson, &t)?;
            ndjson.write_all(b"\n")?;
        }
        csv.flush()?;
        ndjson.flush()
    };
    write().map_err(|why| format!("cannot write transactions into {}: {why}", dir.display()))
}

/// Fills the topic `transaction` of a broker, of four partitions.
pub(crate) fn fill_topic(brokers: &str, records: u64, accounts: u64) -> Result<(), String> {
    let fill = || -> tidegate::Result<()> {
        let mut publisher = Publisher::open(brokers, "transaction", [], Some(4))?;
        for transaction in transactions(records, accounts) {
            let message = serde_json::to_vec(&transaction)
                .map_err(|why| tidegate::Error::new("cannot write a transaction").because(why))?;
            publisher.send(Some(transaction.account.as_bytes()), &message, None)?;
        }
        publisher.flush()
    };
    fill().map_err(|error| error.to_string())
}
