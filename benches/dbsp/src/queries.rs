//! The queries. The questions are in the headers of `queries/nexmark/q0.rs` to `q8.rs`, in SQL.
//!
//! Bids and auctions are only ever added, so the highest of them is kept without those below it
//! (`Stream::chain_aggregate`), and what is too old to be joined leaves the traces (`accumulate_integrate_trace_retain_values`
//! and `_keys`).

use std::cmp::Ordering;
use std::marker::PhantomData;

use dbsp::algebra::UnimplementedSemigroup;
use dbsp::dynamic::DynData;
use dbsp::operator::{CmpFunc, Fold};
use dbsp::typed_batch::TypedBox;
use dbsp::utils::{Tup2, Tup3, Tup4, Tup5};
use dbsp::{DBData, OrdIndexedZSet, OrdZSet, RootCircuit, Stream};
use tidegate::EventTime;

use crate::RATE;
use crate::model::{Auction, Bid, Event, Person};
use crate::tables::Table;

/// Milliseconds of event time.
type Millis = i64;

/// Rows of a query's answer, as changes.
type Rows<R> = Stream<RootCircuit, OrdZSet<R>>;

/// A number of the stream's event time.
type Waterline = Stream<RootCircuit, TypedBox<Millis, DynData>>;

/// Milliseconds of event time that a transaction spans at most.
const LONGEST_STEP: Millis = 4_000;

/// Length of a tumbling window, and of a sliding one.
const WINDOW: Millis = 10_000;

/// Distance of sliding windows.
const SLIDE: Millis = 2_000;

/// A query of a circuit, with its tables.
pub(crate) trait Query: Sized + Send + 'static {
    /// Row of the answer.
    type Row: DBData;

    /// Number of events of a transaction, if the query prescribes it.
    const STEP: Option<u64> = None;

    /// Number of transactions after the last event.
    const EXTRA_STEPS: u64 = 0;

    /// `true` if the answer is the rows of the view after each transaction, not after the last one.
    const ANSWERS_EACH_STEP: bool = false;

    /// Adds the query to a circuit.
    fn build(circuit: &RootCircuit) -> (Self, Rows<Self::Row>);

    /// Adds an event to the tables.
    fn take(&mut self, event: Event);

    /// Lets event time pass, without an event.
    fn pass_time(&mut self) {}

    /// Hands the rows of the tables over to the next transaction.
    fn flush(&mut self);

    /// Returns the fields of a row, as Tidegate writes them.
    fn fields(row: &Self::Row) -> Vec<String>;
}

/// Returns an event time as Tidegate writes it.
fn time(millis: Millis) -> String {
    EventTime::from_millis(millis).to_string()
}

/// Returns the start of a window.
fn start(millis: Millis, length: Millis) -> Millis {
    millis - millis.rem_euclid(length)
}

/// Auction, bidder, price, time, filler.
type BidRow = Tup5<u64, u64, i64, Millis, String>;

fn bid_row(bid: Bid) -> BidRow {
    Tup5(bid.auction, bid.bidder, bid.price, bid.date_time.millis(), bid.extra)
}

fn bid_fields(Tup5(auction, bidder, price, date_time, extra): &BidRow) -> Vec<String> {
    vec![auction.to_string(), bidder.to_string(), price.to_string(), time(*date_time), extra.clone()]
}

/// A query over all bids whose rows are bids.
pub(crate) trait BidQuery: Send + 'static {
    /// Returns the answer.
    fn rows(bids: Rows<BidRow>) -> Rows<BidRow>;

    /// Returns the fields of a row, as Tidegate writes them.
    fn fields(row: &BidRow) -> Vec<String> {
        bid_fields(row)
    }
}

/// Such a query with its table.
pub(crate) struct OverBids<Q>(Table<BidRow>, PhantomData<Q>);

impl<Q: BidQuery> Query for OverBids<Q> {
    type Row = BidRow;

    fn build(circuit: &RootCircuit) -> (Self, Rows<BidRow>) {
        let (table, bids) = Table::create(circuit);
        (OverBids(table, PhantomData), Q::rows(bids))
    }

    fn take(&mut self, event: Event) {
        if let Event::Bid(bid) = event {
            self.0.insert(bid_row(bid));
        }
    }

    fn flush(&mut self) {
        self.0.flush();
    }

    fn fields(row: &BidRow) -> Vec<String> {
        Q::fields(row)
    }
}

/// Query 0: passing through.
pub(crate) struct PassThrough;

impl BidQuery for PassThrough {
    fn rows(bids: Rows<BidRow>) -> Rows<BidRow> {
        bids
    }
}

/// Query 1: currency conversion. The price is in thousandths of a cent.
pub(crate) struct Currency;

impl BidQuery for Currency {
    fn rows(bids: Rows<BidRow>) -> Rows<BidRow> {
        bids.map(|Tup5(auction, bidder, price, date_time, extra): &BidRow| {
            Tup5(*auction, *bidder, price * 908, *date_time, extra.clone())
        })
    }

    fn fields(row: &BidRow) -> Vec<String> {
        let mut fields = bid_fields(row);
        fields[2] = format!("{}.{:03}", row.2 / 1_000, row.2 % 1_000);
        fields
    }
}

/// Query 2: selection.
pub(crate) struct Selection(Table<Tup2<u64, i64>>);

impl Query for Selection {
    type Row = Tup2<u64, i64>;

    fn build(circuit: &RootCircuit) -> (Self, Rows<Self::Row>) {
        let (table, bids) = Table::<Tup2<u64, i64>>::create(circuit);
        (Selection(table), bids.filter(|Tup2(auction, _)| auction.is_multiple_of(123)))
    }

    fn take(&mut self, event: Event) {
        if let Event::Bid(bid) = event {
            self.0.insert(Tup2(bid.auction, bid.price));
        }
    }

    fn flush(&mut self) {
        self.0.flush();
    }

    fn fields(Tup2(auction, price): &Self::Row) -> Vec<String> {
        vec![auction.to_string(), price.to_string()]
    }
}

/// Query 3: local item suggestion.
pub(crate) struct LocalItems {
    /// Id, name, city, state.
    persons: Table<Tup4<u64, String, String, String>>,
    /// Id, seller, category.
    auctions: Table<Tup3<u64, u64, u64>>,
}

impl Query for LocalItems {
    type Row = Tup4<String, String, String, u64>;

    fn build(circuit: &RootCircuit) -> (Self, Rows<Self::Row>) {
        let (persons, all_persons) = Table::<Tup4<u64, String, String, String>>::create(circuit);
        let (auctions, all_auctions) = Table::<Tup3<u64, u64, u64>>::create(circuit);
        let sellers: Stream<_, OrdIndexedZSet<u64, Tup3<String, String, String>>> =
            all_persons.flat_map_index(|Tup4(id, name, city, state)| {
                let is_near = ["OR", "ID", "CA"].contains(&state.as_str());
                is_near.then(|| (*id, Tup3(name.clone(), city.clone(), state.clone())))
            });
        let offers: Stream<_, OrdIndexedZSet<u64, u64>> =
            all_auctions.flat_map_index(|Tup3(id, seller, category)| (*category == 10).then_some((*seller, *id)));
        let rows = offers
            .join(&sellers, |_, id, Tup3(name, city, state)| Tup4(name.clone(), city.clone(), state.clone(), *id));
        (LocalItems { persons, auctions }, rows)
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::Person(Person { id, name, city, state, .. }) => self.persons.insert(Tup4(id, name, city, state)),
            Event::Auction(Auction { id, seller, category, .. }) => self.auctions.insert(Tup3(id, seller, category)),
            Event::Bid(_) => {}
        }
    }

    fn flush(&mut self) {
        self.persons.flush();
        self.auctions.flush();
    }

    fn fields(Tup4(name, city, state, id): &Self::Row) -> Vec<String> {
        vec![name.clone(), city.clone(), state.clone(), id.to_string()]
    }
}

/// Tables of the queries about winning bids, and the bids that count.
struct Sales {
    /// Id, time, end, and seller or category.
    auctions: Table<Tup4<u64, Millis, Millis, u64>>,
    /// Auction, time, price.
    bids: Table<Tup3<u64, Millis, i64>>,
}

/// The winning bid of each auction and its seller or category: price, and the negated time, so that the earlier one of
/// equal prices is greater.
type Winning = Stream<RootCircuit, OrdIndexedZSet<Tup2<u64, u64>, Tup2<i64, Millis>>>;

impl Sales {
    fn create(circuit: &RootCircuit) -> (Self, Winning) {
        let (auctions, all_auctions) = Table::<Tup4<u64, Millis, Millis, u64>>::create(circuit);
        let (bids, all_bids) = Table::<Tup3<u64, Millis, i64>>::create(circuit);
        let now: Waterline = all_auctions.waterline(|| 0, |Tup4(_, opened, ..), ()| *opened, |a, b| *a.max(b));
        let opened =
            all_auctions.map_index(|Tup4(id, opened, expires, of)| (*id, Tup3(*opened, *expires, *of))).shard();
        let offered = all_bids.map_index(|Tup3(auction, at, price)| (*auction, Tup2(*at, *price))).shard();
        // A bid joins no auction that begins after it, and an auction no bid after its end.
        opened.accumulate_integrate_trace_retain_values(&now, |Tup3(_, expires, _), now: &Millis| {
            *expires >= now - LONGEST_STEP
        });
        offered.accumulate_integrate_trace_retain_values(&now, |Tup2(at, _), now: &Millis| *at >= now - LONGEST_STEP);
        let valid = opened.join_index(&offered, |id, Tup3(opened, expires, of), Tup2(at, price)| {
            (opened <= at && at <= expires).then_some((Tup2(*id, *of), Tup2(*price, -at)))
        });
        let winning = valid.chain_aggregate(|bid, _| *bid, |best: Tup2<i64, Millis>, bid, _| best.max(*bid));
        (Sales { auctions, bids }, winning)
    }

    fn take(&mut self, event: Event, of: impl FnOnce(&Auction) -> u64) {
        match event {
            Event::Person(_) => {}
            Event::Auction(auction) => {
                let (opened, expires) = (auction.date_time.millis(), auction.expires.millis());
                self.auctions.insert(Tup4(auction.id, opened, expires, of(&auction)));
            }
            Event::Bid(bid) => self.bids.insert(Tup3(bid.auction, bid.date_time.millis(), bid.price)),
        }
    }

    fn flush(&mut self) {
        self.auctions.flush();
        self.bids.flush();
    }
}

/// Query 4: average price of a category.
pub(crate) struct CategoryPrices(Sales);

impl Query for CategoryPrices {
    type Row = Tup2<u64, i64>;

    fn build(circuit: &RootCircuit) -> (Self, Rows<Self::Row>) {
        let (sales, winning) = Sales::create(circuit);
        let averages = winning
            .map_index(|(Tup2(_, category), Tup2(price, _))| (*category, *price))
            .average(|price: &i64| *price)
            .map(|(category, average)| Tup2(*category, *average));
        (CategoryPrices(sales), averages)
    }

    fn take(&mut self, event: Event) {
        self.0.take(event, |auction| auction.category);
    }

    fn flush(&mut self) {
        self.0.flush();
    }

    fn fields(Tup2(category, average): &Self::Row) -> Vec<String> {
        vec![category.to_string(), average.to_string()]
    }
}

/// Query 5: hot items. A transaction is a slide of the windows, after which the view has the answer of one window, as in the
/// benchmark of dbsp's authors; bids are counted by slide before they enter the window.
pub(crate) struct HotItems {
    /// Auction, time.
    bids: Table<Tup2<u64, Millis>>,
    /// Ends of slides.
    clock: Table<Millis>,
    end: Millis,
}

/// The order of counts of auctions, greatest first.
struct GreatestFirst;

impl CmpFunc<Tup2<i64, u64>> for GreatestFirst {
    fn cmp(left: &Tup2<i64, u64>, right: &Tup2<i64, u64>) -> Ordering {
        right.cmp(left)
    }
}

impl Query for HotItems {
    type Row = Tup2<u64, i64>;

    const STEP: Option<u64> = Some(RATE * SLIDE as u64 / 1_000);
    const EXTRA_STEPS: u64 = (WINDOW / SLIDE - 1) as u64;
    const ANSWERS_EACH_STEP: bool = true;

    fn build(circuit: &RootCircuit) -> (Self, Rows<Self::Row>) {
        let (bids, all_bids) = Table::<Tup2<u64, Millis>>::create(circuit);
        let (clock, ends) = Table::<Millis>::create(circuit);
        let now: Waterline = ends.waterline_monotonic(|| 0, |end| *end);
        let bounds = now
            .apply(|now| (TypedBox::<Millis, DynData>::new(**now - WINDOW), TypedBox::<Millis, DynData>::new(**now)));
        let by_slide: Stream<_, OrdIndexedZSet<Millis, u64>> =
            all_bids.map_index(|Tup2(auction, at)| (start(*at, SLIDE), *auction));
        let counts = by_slide.window((true, false), &bounds).map(|(_, auction)| *auction).weighted_count();
        let hottest = counts
            .map_index(|(auction, count)| ((), Tup2(*count, *auction)))
            .topk_rank_custom_order::<GreatestFirst, _, _, _>(1, |Tup2(a, _), Tup2(b, _)| a == b, |_, count| *count);
        (HotItems { bids, clock, end: 0 }, hottest.map(|(_, Tup2(count, auction))| Tup2(*auction, *count)))
    }

    fn take(&mut self, event: Event) {
        self.end = start(event.date_time().millis(), SLIDE) + SLIDE;
        if let Event::Bid(bid) = event {
            self.bids.insert(Tup2(bid.auction, bid.date_time.millis()));
        }
    }

    fn pass_time(&mut self) {
        self.end += SLIDE;
    }

    fn flush(&mut self) {
        self.clock.insert(self.end);
        self.clock.flush();
        self.bids.flush();
    }

    fn fields(Tup2(auction, count): &Self::Row) -> Vec<String> {
        vec![auction.to_string(), count.to_string()]
    }
}

/// Query 6: average selling price. A row is a seller, the number of the sale, and the average.
pub(crate) struct SellerPrices(Sales);

/// Sales that are averaged.
const SALES: usize = 11;

impl Query for SellerPrices {
    type Row = Tup2<u64, i64>;

    fn build(circuit: &RootCircuit) -> (Self, Rows<Self::Row>) {
        let (sales, winning) = Sales::create(circuit);
        let by_seller =
            winning.map_index(|(Tup2(auction, seller), Tup2(price, at))| (*seller, Tup3(-at, *auction, *price)));
        let averages = by_seller.aggregate(<Fold<_, _, UnimplementedSemigroup<_>, _, _>>::with_output(
            Vec::new(),
            |prices: &mut Vec<i64>, sale: &Tup3<Millis, u64, i64>, _| prices.push(sale.2),
            |prices: Vec<i64>| -> Vec<i64> {
                let frames = (1..=prices.len()).map(|end| &prices[end.saturating_sub(SALES)..end]);
                frames.map(|frame| frame.iter().sum::<i64>() / frame.len() as i64).collect()
            },
        ));
        let rows = averages.flat_map(|(seller, averages)| {
            let seller = *seller;
            averages.clone().into_iter().map(move |average| Tup2(seller, average))
        });
        (SellerPrices(sales), rows)
    }

    fn take(&mut self, event: Event) {
        self.0.take(event, |auction| auction.seller);
    }

    fn flush(&mut self) {
        self.0.flush();
    }

    fn fields(Tup2(seller, average): &Self::Row) -> Vec<String> {
        vec![seller.to_string(), average.to_string()]
    }
}

/// Query 7: highest bid.
pub(crate) struct HighestBids;

/// The highest price of a window, and the bids that have it: auction, bidder, time, filler.
type Highest = Tup2<i64, Vec<Tup4<u64, u64, Millis, String>>>;

/// A bid as a value: price, auction, bidder, time, filler.
type PricedBid = Tup5<i64, u64, u64, Millis, String>;

/// Adds a bid to the highest ones of its window, as often as it was made.
fn raise(mut highest: Highest, bid: &PricedBid, times: i64) -> Highest {
    let Tup5(price, auction, bidder, at, extra) = bid;
    if *price > highest.0 {
        highest = Tup2(*price, Vec::new());
    }
    if *price == highest.0 {
        let row = || Tup4(*auction, *bidder, *at, extra.clone());
        highest.1.extend((0..times).map(|_| row()));
    }
    highest
}

impl BidQuery for HighestBids {
    fn rows(bids: Rows<BidRow>) -> Rows<BidRow> {
        let by_window: Stream<_, OrdIndexedZSet<Millis, PricedBid>> =
            bids.map_index(|Tup5(auction, bidder, price, at, extra)| {
                (start(*at, WINDOW), Tup5(*price, *auction, *bidder, *at, extra.clone()))
            });
        let highest = by_window.chain_aggregate(
            |bid, times| raise(Tup2(i64::MIN, Vec::new()), bid, times),
            |highest: Highest, bid, times| raise(highest, bid, times),
        );
        highest.flat_map(|(_, Tup2(price, bids))| {
            let price = *price;
            bids.clone()
                .into_iter()
                .map(move |Tup4(auction, bidder, at, extra)| Tup5(auction, bidder, price, at, extra))
        })
    }
}

/// Query 8: new users.
pub(crate) struct NewUsers {
    /// Id, name, time.
    persons: Table<Tup3<u64, String, Millis>>,
    /// Seller, time.
    auctions: Table<Tup2<u64, Millis>>,
}

impl Query for NewUsers {
    type Row = Tup3<u64, String, Millis>;

    fn build(circuit: &RootCircuit) -> (Self, Rows<Self::Row>) {
        let (persons, all_persons) = Table::<Tup3<u64, String, Millis>>::create(circuit);
        let (auctions, all_auctions) = Table::<Tup2<u64, Millis>>::create(circuit);
        let now: Waterline = all_auctions.waterline(|| 0, |Tup2(_, at), ()| *at, |a, b| *a.max(b));
        let is_open = |Tup2(window, _): &Tup2<Millis, u64>, now: &Millis| *window + WINDOW >= now - LONGEST_STEP;
        let new_persons: Stream<_, OrdIndexedZSet<Tup2<Millis, u64>, String>> =
            all_persons.map_index(|Tup3(id, name, at)| (Tup2(start(*at, WINDOW), *id), name.clone())).shard();
        let sales: Stream<_, OrdIndexedZSet<Tup2<Millis, u64>, ()>> =
            all_auctions.map_index(|Tup2(seller, at)| (Tup2(start(*at, WINDOW), *seller), ())).shard();
        let sellers = sales.distinct();
        new_persons.accumulate_integrate_trace_retain_keys(&now, is_open);
        sales.accumulate_integrate_trace_retain_keys(&now, is_open);
        sellers.accumulate_integrate_trace_retain_keys(&now, is_open);
        let rows = new_persons.join(&sellers, |Tup2(window, id), name, ()| Tup3(*id, name.clone(), *window));
        (NewUsers { persons, auctions }, rows)
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::Person(Person { id, name, date_time, .. }) => {
                self.persons.insert(Tup3(id, name, date_time.millis()))
            }
            Event::Auction(auction) => self.auctions.insert(Tup2(auction.seller, auction.date_time.millis())),
            Event::Bid(_) => {}
        }
    }

    fn flush(&mut self) {
        self.persons.flush();
        self.auctions.flush();
    }

    fn fields(Tup3(id, name, window): &Self::Row) -> Vec<String> {
        vec![id.to_string(), name.clone(), time(*window)]
    }
}
