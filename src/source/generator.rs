//! Generated card transactions, for demonstrations, tests and measurements.
//!
//! * A [`Generator`] makes a sequence of transactions. The n-th depends on the seed and n alone, so any part of the
//!   sequence can be made again, and equal seeds give equal sequences.
//! * [`GeneratorSource`] is a source over it: the offset of a record is its index in its partition.
//!
//! Accounts are skewed: a tenth of them have about half of the transactions. Event times grow with the sequence, but
//! most are a little behind, and a few by up to two seconds ([`DISORDER`]).

use std::ops::Range;
use std::time::Duration;

use compact_str::CompactString;
use serde::{Deserialize, Serialize};

use crate::durable::journal::PartitionProgress;
use crate::error::Result;
use crate::source::indexed::{self, IndexedReader, IndexedRecords};
use crate::source::{PartitionHandle, PartitionTracker, RawRecord, Reader, Source, TimeOf, WorkerContext, time_of};
use crate::time::Epoch;

/// Greatest disorder: the event time of a transaction is less than this behind the greatest one before it.
pub const DISORDER: Duration = Duration::from_secs(2);

/// 2025-01-01T00:00:00Z, in milliseconds since 1970.
const START_MS: i64 = 1_735_689_600_000;

const MERCHANTS: u64 = 50;

/// A payment by card, or a refund if the amount is negative.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Transaction {
    /// Number of the transaction.
    pub id: u64,
    /// Account of the payer.
    pub account: CompactString,
    /// Payee.
    pub merchant: CompactString,
    /// Amount in hundredths of the currency.
    pub amount_cents: i64,
    /// ISO 4217 code of the currency.
    pub currency: CompactString,
    /// Event time in milliseconds since 1970.
    pub at_ms: i64,
}

/// Generates transactions; as an iterator, an endless sequence of them.
#[derive(Clone, Debug)]
pub struct Generator {
    seed: u64,
    accounts: u64,
    start_ms: i64,
    first_id: u64,
    per_second: u64,
    next: u64,
}

impl Generator {
    /// Creates a generator with 10,000 accounts and 1,000 transactions per second of event time.
    pub fn new(seed: u64) -> Self {
        Generator { seed, accounts: 10_000, start_ms: START_MS, first_id: 0, per_second: 1_000, next: 0 }
    }

    /// Sets the number of accounts; 0 is taken as 1.
    #[must_use]
    pub fn accounts(mut self, accounts: u64) -> Self {
        self.accounts = accounts.max(1);
        self
    }

    /// Sets the event time at which the sequence begins, in milliseconds since 1970.
    #[must_use]
    pub fn start_ms(mut self, start_ms: i64) -> Self {
        self.start_ms = start_ms;
        self
    }

    /// Sets the id of the first transaction; the following ids count up.
    #[must_use]
    pub fn first_id(mut self, first_id: u64) -> Self {
        self.first_id = first_id;
        self
    }

    /// Sets the number of transactions per second of event time; 0 is taken as 1.
    #[must_use]
    pub fn per_second(mut self, per_second: u64) -> Self {
        self.per_second = per_second.max(1);
        self
    }

    /// Returns the `index`-th transaction of the sequence.
    pub fn at(&self, index: u64) -> Transaction {
        let elapsed = u128::from(index) * 1000 / u128::from(self.per_second);
        self.at_time(index, self.start_ms.saturating_add(i64::try_from(elapsed).unwrap_or(i64::MAX)))
    }

    /// Returns the `index`-th transaction of the sequence with an event time at, or a little before, `now_ms`.
    pub fn at_time(&self, index: u64, now_ms: i64) -> Transaction {
        let id = self.first_id.wrapping_add(index);
        let mut dice = SplitMix(mix(self.seed ^ mix(id)));
        let (who, what) = (dice.roll(), dice.roll());
        // The cube of an even chance prefers small numbers.
        let chance = (who >> 11) as f64 / (1u64 << 53) as f64;
        let account = ((chance * chance * chance * self.accounts as f64) as u64).min(self.accounts - 1);
        let (kind, amount) = (what % 100, ((what >> 8) % 20_000) as i64 + 1);
        let refund = kind < 3;
        let currency = match (what >> 32) % 10 {
            0..=5 => "EUR",
            6..=7 => "USD",
            8 => "GBP",
            _ => "CHF",
        };
        let late = dice.roll();
        let behind = match late % 100 {
            0..=4 => (late >> 8) % DISORDER.as_millis() as u64,
            5..=39 => 0,
            _ => (late >> 8) % 50,
        };
        Transaction {
            id,
            account: numbered("account-", account, 6),
            merchant: numbered("merchant-", (what >> 40) % MERCHANTS, 2),
            amount_cents: if refund { -amount } else { amount },
            currency: currency.into(),
            at_ms: now_ms.saturating_sub(behind as i64),
        }
    }
}

impl Iterator for Generator {
    type Item = Transaction;

    fn next(&mut self) -> Option<Transaction> {
        let transaction = self.at(self.next);
        self.next += 1;
        Some(transaction)
    }
}

/// Mixes a number over all 64 bits. Source: Steele, Lea, Flood, "Fast Splittable Pseudorandom Number Generators"
/// (SplitMix64), with Stafford's thirteenth mix.
fn mix(number: u64) -> u64 {
    let mut z = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

struct SplitMix(u64);

impl SplitMix {
    fn roll(&mut self) -> u64 {
        let rolled = mix(self.0);
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        rolled
    }
}

/// Returns a name followed by a number, zero-padded to at least `digits` digits.
fn numbered(name: &str, number: u64, digits: usize) -> CompactString {
    let (mut text, mut rest, mut at) = ([b'0'; 20], number, 20);
    while rest > 0 {
        at -= 1;
        text[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
    }
    let mut named = CompactString::with_capacity(name.len() + digits.max(20 - at));
    named.push_str(name);
    named.push_str(std::str::from_utf8(&text[at.min(20 - digits)..]).unwrap_or_default());
    named
}

/// A source of `count` generated transactions, spread over partitions.
///
/// Partition p of n has the transactions p, p + n, p + 2n, … of the sequence.
#[derive(Clone, Debug)]
pub struct GeneratorSource {
    generator: Generator,
    count: u64,
    partitions: u32,
}

impl GeneratorSource {
    /// Creates a source of the first `count` transactions of a sequence, in one partition.
    pub fn new(generator: Generator, count: u64) -> Self {
        GeneratorSource { generator, count, partitions: 1 }
    }

    /// Sets the number of partitions; 0 is taken as 1.
    #[must_use]
    pub fn partitions(mut self, partitions: u32) -> Self {
        self.partitions = partitions.max(1);
        self
    }
}

impl Source for GeneratorSource {
    type Item = Transaction;

    fn describe(&self) -> String {
        format!("{} made-up transactions", self.count)
    }

    fn event_time(&self) -> TimeOf<Transaction> {
        time_of(|transaction: &Transaction| transaction.at_ms)
    }

    fn out_of_order(&self) -> Option<Duration> {
        Some(DISORDER)
    }

    fn open(&self, at: &WorkerContext) -> Result<Box<dyn Reader<Transaction>>> {
        Ok(Box::new(IndexedReader::new(self.clone(), at)))
    }

    fn has_new_data(&self, _at: &WorkerContext, bounds: &[PartitionProgress]) -> Result<Option<String>> {
        Ok(indexed::new_data(self, bounds))
    }
}

impl IndexedRecords<Transaction> for GeneratorSource {
    fn partitions(&self) -> u32 {
        self.partitions
    }

    fn length(&self, partition: u32) -> u64 {
        if partition >= self.partitions {
            return 0;
        }
        (self.count + u64::from(self.partitions - 1 - partition)) / u64::from(self.partitions)
    }

    fn accept(
        &self,
        epoch: Epoch,
        (partition, slot): (u32, PartitionHandle),
        offsets: Range<u64>,
        intake: &mut PartitionTracker<Transaction>,
    ) -> Result<()> {
        for offset in offsets {
            let found = RawRecord::new(offset, &[]);
            let index = offset * u64::from(self.partitions) + u64::from(partition);
            intake.accept(epoch, slot, found, self.generator.at(index))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    #[test]
    fn equal_seeds_give_equal_sequences_and_any_part_of_them() {
        let generator = Generator::new(7).accounts(100).first_id(5);
        let sequence: Vec<_> = generator.clone().take(1000).collect();
        assert!(generator.clone().take(1000).eq(sequence.iter().cloned()));
        assert_eq!(generator.at(999), sequence[999]);
        assert_eq!(sequence.iter().map(|t| t.id).collect::<Vec<_>>(), (5..1005).collect::<Vec<_>>());
        assert_ne!(Generator::new(8).at(0).account, Generator::new(7).at(0).account);
        // Pinned: recorded data must not change.
        let first = serde_json::to_string(&Generator::new(1).at(0)).unwrap();
        assert_eq!(first, PINNED);
    }

    const PINNED: &str = concat!(
        r#"{"id":0,"account":"account-000194","merchant":"merchant-32","amount_cents":1195,"currency":"EUR","#,
        r#""at_ms":1735689599969}"#
    );

    #[test]
    fn the_sequence_looks_like_payments() {
        let mut greatest = 0;
        let mut by_account = HashMap::<CompactString, u32>::new();
        let (mut refunds, mut late) = (0, 0);
        for transaction in Generator::new(3).accounts(1000).take(100_000) {
            assert!(transaction.at_ms > greatest - DISORDER.as_millis() as i64);
            late += u32::from(transaction.at_ms < greatest - 100);
            greatest = greatest.max(transaction.at_ms);
            refunds += u32::from(transaction.amount_cents < 0);
            assert!(transaction.amount_cents != 0 && transaction.account.len() == "account-000123".len());
            *by_account.entry(transaction.account).or_default() += 1;
        }
        let mut counts: Vec<u32> = by_account.into_values().collect();
        counts.sort_unstable_by(|a, b| b.cmp(a));
        let top: u32 = counts.iter().take(100).sum();
        assert!((40_000..60_000).contains(&top), "a tenth of the accounts has {top}");
        assert!((2_000..4_000).contains(&refunds) && (3_000..7_000).contains(&late), "{refunds} {late}");
        assert!(counts.len() > 990);
    }

    #[test]
    fn partitions_deal_the_sequence_out() {
        let source = GeneratorSource::new(Generator::new(1), 10).partitions(4);
        assert_eq!((0..4).map(|id| source.length(id)).collect::<Vec<_>>(), [3, 3, 2, 2]);
        assert_eq!(numbered("x-", 1234567, 6), "x-1234567");
    }
}
