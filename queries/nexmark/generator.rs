//! Generated events of an auction house, a function of a seed and the event's place in the stream.
//!
//! Proportions, hot keys, id ranges and sizes are the usual ones of the benchmark. Source: the Nexmark generators of
//! Apache Beam (`sdks/java/testing/nexmark`) and of nexmark-flink (`github.com/nexmark/nexmark`), after Tucker, Tufte,
//! Papadimos, Maier, "NEXMark: A Benchmark for Queries over Data Streams" (2002). The code and the values are our own, so
//! streams of other generators are alike, not equal.
//!
//! * Of 50 events the first is a person, the next three are auctions, and 46 are bids.
//! * Three of four auctions are of a **hot** seller and three of four bids of a hot bidder, half of the bids are in a hot
//!   auction: the first (of bidders, the second) of the last hundred. The other sellers and bidders are among the last
//!   thousand persons, the other auctions among the last hundred, and both may be a few ahead: of a person or an auction
//!   that only comes later.
//! * An auction is open for between a millisecond and twice the time in which a hundred auctions begin.
//! * Prices are spread over six powers of ten evenly in their logarithm.
//! * Half of the bids come from four large channels, the others from ten thousand small ones.
//!
//! Event number n happens at the start plus n / rate. Without `shuffle`, numbers grow with the place in the stream;
//! otherwise each run of `shuffle` places has its numbers in another order.

use tidegate::EventTime;

use crate::model::{Auction, Bid, Event, Person};

/// 2015-07-14T18:30:00Z, in milliseconds since 1970: at low rates a run sees an evening and midnight.
const START_MS: i64 = 1_436_898_600_000;
/// The least id of persons and auctions.
const FIRST_ID: u64 = 1_000;
/// The least category.
const FIRST_CATEGORY: u64 = 10;
const CATEGORIES: u64 = 5;

/// Events of a cycle: a person, three auctions, and bids.
const CYCLE: u64 = 50;
const AUCTIONS: u64 = 3;

/// Persons and auctions that share a hot one.
const HOT_RUN: u64 = 100;
/// Persons that sell and bid.
const ACTIVE_PERSONS: u64 = 1_000;
/// Auctions that are open at a time, on average.
const OPEN_AUCTIONS: u64 = 100;
/// Ids that a reference may be ahead.
const LEAD: u64 = 10;

/// Average sizes of events in bytes.
const PERSON_SIZE: usize = 200;
const AUCTION_SIZE: usize = 500;
const BID_SIZE: usize = 100;

const SMALL_CHANNELS: u64 = 10_000;
const LARGE_CHANNELS: [&str; 4] = ["Apple", "Google", "Facebook", "Baidu"];
const STATES: [&str; 6] = ["AZ", "CA", "ID", "OR", "WA", "WY"];
const CITIES: [&str; 10] =
    ["Tucson", "Oakland", "Fresno", "Nampa", "Eugene", "Salem", "Tacoma", "Spokane", "Casper", "Laramie"];
const FIRST_NAMES: [&str; 10] = ["Ada", "Ben", "Cleo", "Dan", "Eve", "Finn", "Gwen", "Hugo", "Iris", "Jon"];
const LAST_NAMES: [&str; 8] = ["Adams", "Brook", "Clark", "Doyle", "Evans", "Frost", "Grant", "Hayes"];

/// Letters from which filler is cut.
const FILLER: usize = 8_192;

/// The stream of events of a seed.
#[derive(Clone, Debug)]
pub(crate) struct Generator {
    seed: u64,
    rate: u64,
    shuffle: u64,
    filler: String,
}

impl Generator {
    /// Creates a stream with `rate` events per second of event time, at least one, and runs of `shuffle` places whose
    /// order is not that of event time; 1 for none.
    pub(crate) fn new(seed: u64, rate: u64, shuffle: u64) -> Self {
        let mut dice = Dice::new(seed, u64::MAX);
        let filler = (0..FILLER).map(|_| dice.letter()).collect();
        Generator { seed, rate: rate.max(1), shuffle: shuffle.max(1), filler }
    }

    /// Returns the number of events per second of event time.
    pub(crate) fn rate(&self) -> u64 {
        self.rate
    }

    /// Returns how many milliseconds an event may be behind an earlier one of its stream.
    pub(crate) fn disorder_ms(&self) -> u64 {
        if self.shuffle == 1 { 0 } else { self.shuffle.min(self.rate) * 1_000 / self.rate + 1 }
    }

    /// Describes the stream: equal texts stand for equal streams.
    pub(crate) fn describe(&self) -> String {
        format!("Nexmark events of seed {}, {} a second, in runs of {}", self.seed, self.rate, self.shuffle)
    }

    /// Returns the event at a place in the stream.
    pub(crate) fn at(&self, place: u64) -> Event {
        let number = self.number_at(place);
        let date_time = EventTime::from_millis(START_MS.saturating_add(self.millis(number)));
        let mut dice = Dice::new(self.seed, number);
        let (cycle, slot) = (number / CYCLE, number % CYCLE);
        match slot {
            0 => Event::Person(self.person(cycle, date_time, &mut dice)),
            1..=AUCTIONS => Event::Auction(self.auction(cycle, cycle * AUCTIONS + slot - 1, date_time, &mut dice)),
            _ => Event::Bid(self.bid(cycle, date_time, &mut dice)),
        }
    }

    /// Returns the number of the event at a place. Runs do not cross a second of event time, so that all events of a
    /// millisecond are in one second of places.
    fn number_at(&self, place: u64) -> u64 {
        let second = place / self.rate * self.rate;
        let run = second + (place - second) / self.shuffle * self.shuffle;
        let length = self.shuffle.min(second + self.rate - run);
        // A prime that does not divide the length permutes the places of the run.
        let prime = if length.is_multiple_of(953) { 967 } else { 953 };
        run + (place - run) * prime % length
    }

    fn millis(&self, number: u64) -> i64 {
        let millis = u128::from(number) * 1_000 / u128::from(self.rate);
        i64::try_from(millis).unwrap_or(i64::MAX)
    }

    fn person(&self, cycle: u64, date_time: EventTime, dice: &mut Dice) -> Person {
        let name = format!("{} {}", dice.one_of(&FIRST_NAMES), dice.one_of(&LAST_NAMES));
        let email_address = format!("{}@{}.com", dice.word(7), dice.word(5));
        let [a, b, c, d] = std::array::from_fn(|_| dice.below(10_000));
        let credit_card = format!("{a:04} {b:04} {c:04} {d:04}");
        let (city, state) = (dice.one_of(&CITIES).to_owned(), dice.one_of(&STATES).to_owned());
        let size = 8 + name.len() + email_address.len() + credit_card.len() + city.len() + state.len();
        let extra = self.extra(size, PERSON_SIZE, dice);
        Person { id: FIRST_ID + cycle, name, email_address, credit_card, city, state, date_time, extra }
    }

    fn auction(&self, cycle: u64, index: u64, date_time: EventTime, dice: &mut Dice) -> Auction {
        let seller = if dice.below(4) > 0 { cycle / HOT_RUN * HOT_RUN } else { person_near(cycle, dice) };
        let category = FIRST_CATEGORY + dice.below(CATEGORIES);
        let initial_bid = dice.price();
        let horizon = OPEN_AUCTIONS * CYCLE / AUCTIONS * 1_000 / self.rate;
        let open_ms = 1 + dice.below((horizon * 2).max(1)) as i64;
        let name_length = 3 + dice.below(17) as usize;
        let (item_name, description) = (dice.word(name_length), self.sentence(dice));
        let reserve = initial_bid + dice.price();
        let extra = self.extra(48 + item_name.len() + description.len(), AUCTION_SIZE, dice);
        let expires = EventTime::from_millis(date_time.millis().saturating_add(open_ms));
        let (id, seller) = (FIRST_ID + index, FIRST_ID + seller);
        Auction { id, item_name, description, initial_bid, reserve, date_time, expires, seller, category, extra }
    }

    fn bid(&self, cycle: u64, date_time: EventTime, dice: &mut Dice) -> Bid {
        let last = cycle * AUCTIONS + AUCTIONS - 1;
        let least = last.saturating_sub(OPEN_AUCTIONS);
        let auction =
            if dice.below(2) > 0 { last / HOT_RUN * HOT_RUN } else { least + dice.below(last - least + 1 + LEAD) };
        // The second of a run, so that hot bidders are no hot sellers.
        let bidder = if dice.below(4) > 0 { cycle / HOT_RUN * HOT_RUN + 1 } else { person_near(cycle, dice) };
        let price = dice.price();
        let (channel, url) = self.channel(dice);
        let extra = self.extra(32, BID_SIZE, dice);
        Bid { auction: FIRST_ID + auction, bidder: FIRST_ID + bidder, price, channel, url, date_time, extra }
    }

    /// Returns a channel with its address. Nine of ten small ones tell an id in it.
    fn channel(&self, dice: &mut Dice) -> (String, String) {
        let (large, small) = (dice.below(2) > 0, dice.below(SMALL_CHANNELS));
        let channel = if large { small % LARGE_CHANNELS.len() as u64 } else { small + LARGE_CHANNELS.len() as u64 };
        let mut own = Dice::new(!self.seed, channel);
        let mut url = format!("https://auctions.example/{}/{}/{}/item?query=1", own.word(5), own.word(5), own.word(5));
        if large {
            return (LARGE_CHANNELS[channel as usize].to_owned(), url);
        }
        if own.below(10) > 0 {
            url.push_str(&format!("&channel_id={}", own.roll() >> 33));
        }
        (format!("channel-{small}"), url)
    }

    /// Returns between a hundred letters and none, in words.
    fn sentence(&self, dice: &mut Dice) -> String {
        let (from, length) = (dice.below((FILLER - 100) as u64) as usize, dice.below(100) as usize);
        let mut text = self.filler[from..from + length].replace(['e', 'q'], " ");
        text.truncate(text.trim_end().len());
        text
    }

    /// Returns filler that makes an event of `size` bytes as large as is usual, more or less by a fifth.
    fn extra(&self, size: usize, usual: usize, dice: &mut Dice) -> String {
        let missing = usual.saturating_sub(size);
        let spread = missing / 5;
        let length = missing - spread + dice.below(2 * spread as u64 + 1) as usize;
        let from = dice.below((FILLER - length) as u64) as usize;
        self.filler[from..from + length].to_owned()
    }
}

/// Returns the index of a person who is active when the person of a cycle is the last one, or a little ahead.
fn person_near(cycle: u64, dice: &mut Dice) -> u64 {
    let active = (cycle + 1).min(ACTIVE_PERSONS);
    cycle + 1 - active + dice.below(active + LEAD)
}

/// Random numbers. Source: Steele, Lea, Flood, "Fast Splittable Pseudorandom Number Generators" (SplitMix64).
struct Dice(u64);

impl Dice {
    fn new(seed: u64, number: u64) -> Self {
        let mut dice = Dice(number);
        let mixed = dice.roll();
        Dice(seed ^ mixed)
    }

    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Returns a number below `limit`, which is not 0.
    fn below(&mut self, limit: u64) -> u64 {
        ((u128::from(self.roll()) * u128::from(limit)) >> 64) as u64
    }

    fn one_of(&mut self, texts: &[&'static str]) -> &'static str {
        texts[self.below(texts.len() as u64) as usize]
    }

    fn letter(&mut self) -> char {
        char::from(b'a' + self.below(26) as u8)
    }

    fn word(&mut self, length: usize) -> String {
        (0..length).map(|_| self.letter()).collect()
    }

    /// Returns a price between 100 and 100,000,000 cents, its logarithm evenly spread. The power is computed by additions
    /// and multiplications alone, which are equal on all machines.
    fn price(&mut self) -> i64 {
        let exponent = (self.roll() >> 11) as f64 / (1_u64 << 53) as f64 * 6.0 * std::f64::consts::LN_10 / 16.0;
        let (mut term, mut sum) = (1.0, 1.0);
        for n in 1..=16 {
            term *= exponent / f64::from(n);
            sum += term;
        }
        for _ in 0..4 {
            sum *= sum;
        }
        (sum * 100.0) as i64
    }
}
