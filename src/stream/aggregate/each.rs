//! The aggregates by name: the argument of the closure of `aggregate`.

use std::fmt;
use std::marker::PhantomData;

use crate::record::Record;
use crate::stream::aggregate::{
    Accumulator, Aggregate, ApproxCountDistinct, ArgMax, ArgMin, Bottom, Collect, Count, CountDistinct, CountIf,
    Distinct, Filter, FilterMap, First, IfAny, Last, Max, Mean, Merge, Min, Named, Quantile, Quantiles, SampleStdDev,
    SampleVariance, StdDev, Sum, Summable, Top, Variance,
};

/// Names the aggregates of a window of `D`s. A tuple of aggregates is an aggregate, whose value is the tuple of their
/// values.
///
/// ```
/// use std::time::Duration;
/// use tidegate::{Closed, CompactString, Real, Stream, Transaction, Window};
///
/// type Spread = (Vec<i64>, Option<Real>, (CompactString, Vec<i64>));
///
/// fn spread(transactions: Stream<'_, Transaction>) -> Stream<'_, Closed<CompactString, Spread>> {
///     transactions
///         .key_by(|t| t.account.clone())
///         .window(Window::tumbling(Duration::from_secs(60)))
///         .aggregate("spread", |each| {
///             let largest = each.arg_max(|t| t.amount_cents, |t| t.merchant.clone());
///             (
///                 each.quantiles([0.5, 0.99], |t| t.amount_cents),
///                 each.sample_std_dev(|t| t.amount_cents),
///                 (largest, each.top(3, |t| t.amount_cents)),
///             )
///         })
///         .on_close()
/// }
/// ```
pub struct Each<D>(PhantomData<fn(&D)>);

impl<D> Clone for Each<D> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<D> Copy for Each<D> {}

impl<D> fmt::Debug for Each<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Each")
    }
}

impl<D: Record> Each<D> {
    pub(crate) fn new() -> Self {
        Each(PhantomData)
    }

    /// Gives an aggregate of a tuple a name, by which a state finds it again: a changed query may have the aggregates in
    /// another order, and may have more or fewer of them. Of those that it still has, windows that are open go on as they
    /// were. One that is new begins with the records that come after the snapshot that the job goes on from, and is partial
    /// in windows that had begun; `count` alone has all of a window's records. So it needs a value of no records: `min`,
    /// `mean` and others that have none are put into [`if_any`](Each::if_any).
    ///
    /// All aggregates of a tuple have names, or none. A name stands for what the aggregate computes: another aggregate
    /// needs another name. Names of aggregates in `over` are refused, as these are found by their positions.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use tidegate::stream::Keyed;
    /// # use tidegate::{Closed, Stream, Transaction, Window};
    /// /// Count and sum; since a later version also the least amount.
    /// type Totals = (i64, i128, Option<i64>);
    ///
    /// fn totals(transactions: Keyed<'_, String, Transaction>) -> Stream<'_, Closed<String, Totals>> {
    ///     let minutes = transactions.window(Window::tumbling(Duration::from_secs(60)));
    ///     let totals = minutes.aggregate("totals", |each| {
    ///         (
    ///             each.named("count", each.count()),
    ///             each.named("cents", each.sum(|t| t.amount_cents)),
    ///             each.named("least", each.if_any(each.min(|t| t.amount_cents))),
    ///         )
    ///     });
    ///     totals.on_close()
    /// }
    /// ```
    pub fn named<A: Aggregate<D>>(self, name: &str, aggregate: A) -> Named<A> {
        Named { name: name.to_owned(), earlier: Vec::new(), aggregate }
    }

    /// An `Option` of an aggregate's value: `None` if it has got no record, as in windows that had begun when the aggregate
    /// was added to the query ([`named`](Each::named)).
    pub fn if_any<A: Aggregate<D>>(self, aggregate: A) -> IfAny<A> {
        IfAny(aggregate)
    }

    /// Counts the records, as an `i64`.
    pub fn count(self) -> Count {
        Count
    }

    /// Counts the records for which `passes` returns `true`, as an `i64`.
    pub fn count_if<P: Fn(&D) -> bool + 'static>(self, passes: P) -> CountIf<P> {
        CountIf(passes)
    }

    /// Aggregates the records for which `passes` returns `true`: an `Option` of the value, which is `None` if there are
    /// none. `build` names the aggregates of these records, one or a tuple of them; other aggregates beside this one
    /// still get all records. In SQL this is `FILTER (WHERE …)`.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use tidegate::stream::Keyed;
    /// # use tidegate::{Closed, Real, Stream, Transaction, Window};
    /// /// The number of transactions; the sum and the mean of those in dollars.
    /// type Dollars = (i64, Option<(i128, Real)>);
    ///
    /// fn dollars(transactions: Keyed<'_, String, Transaction>) -> Stream<'_, Closed<String, Dollars>> {
    ///     let minutes = transactions.window(Window::tumbling(Duration::from_secs(60)));
    ///     let dollars = minutes.aggregate("dollars", |each| {
    ///         let usd = each.filter(
    ///             |t| t.currency == "USD",
    ///             |each| (each.sum(|t| t.amount_cents), each.mean(|t| t.amount_cents)),
    ///         );
    ///         (each.count(), usd)
    ///     });
    ///     dollars.on_close()
    /// }
    /// ```
    pub fn filter<P, A>(self, passes: P, build: impl FnOnce(Each<D>) -> A) -> Filter<P, A>
    where
        P: Fn(&D) -> bool + 'static,
        A: Aggregate<D>,
    {
        Filter { passes, aggregate: build(self) }
    }

    /// Aggregates the values that `of` returns, and skips records for which it returns `None`: an `Option` of the value,
    /// which is `None` if all are skipped. `build` names the aggregates of the values. So aggregates of an optional
    /// field skip records without it, as in SQL:
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use serde::{Deserialize, Serialize};
    /// # use tidegate::stream::Keyed;
    /// # use tidegate::{Closed, Real, Stream, Window};
    /// #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
    /// struct Ride {
    ///     fare_cents: i64,
    ///     tip_cents: Option<i64>,
    /// }
    ///
    /// /// The sum of the fares; number, sum and mean of the tips that were given.
    /// type Tips = (i128, Option<(i64, i128, Real)>);
    ///
    /// fn tips(rides: Keyed<'_, String, Ride>) -> Stream<'_, Closed<String, Tips>> {
    ///     let hours = rides.window(Window::tumbling(Duration::from_secs(3600)));
    ///     let tips = hours.aggregate("tips", |each| {
    ///         let tips = each.filter_map(
    ///             |ride| ride.tip_cents,
    ///             |each| (each.count(), each.sum(|cents| *cents), each.mean(|cents| *cents)),
    ///         );
    ///         (each.sum(|ride| ride.fare_cents), tips)
    ///     });
    ///     tips.on_close()
    /// }
    /// ```
    pub fn filter_map<V, F, A>(self, of: F, build: impl FnOnce(Each<V>) -> A) -> FilterMap<F, A>
    where
        V: Record,
        F: Fn(&D) -> Option<V> + 'static,
        A: Aggregate<V>,
    {
        FilterMap { of, aggregate: build(Each::new()) }
    }

    /// Sums a number of each record exactly: `i128` for integers, [`Decimal`](crate::Decimal) for decimals. A sum
    /// that its type cannot hold fails the job.
    ///
    /// The sum of [`Real`](crate::Real)s is a `Real`: the exact sum of the floating-point numbers, rounded once, at the
    /// end. No `f64` is nearer to the exact sum, and the order of the numbers does not matter. If one of them is NaN, or
    /// there are infinities of both signs, it is NaN; with infinities of one sign it is that one. A sum of finite
    /// numbers that is too large for an `f64` is an infinity.
    pub fn sum<N: Summable, F: Fn(&D) -> N + 'static>(self, of: F) -> Sum<F> {
        Sum(of)
    }

    /// Averages a number of each record, as a [`Real`](crate::Real): the exact sum divided by the count and rounded
    /// once, at the end. No `f64` is nearer to the exact mean; of two that are equally near it is the one whose last
    /// bit is 0.
    pub fn mean<N: Summable, F: Fn(&D) -> N + 'static>(self, of: F) -> Mean<F> {
        Mean(of)
    }

    /// Returns the least of a value of each record.
    pub fn min<V: Record, F: Fn(&D) -> V + 'static>(self, of: F) -> Min<F> {
        Min(of)
    }

    /// Returns the greatest of a value of each record.
    pub fn max<V: Record, F: Fn(&D) -> V + 'static>(self, of: F) -> Max<F> {
        Max(of)
    }

    /// Returns a value of the record with the least event time; of several, of the first by source, partition and
    /// offset.
    pub fn first<V: Record, F: Fn(&D) -> V + 'static>(self, of: F) -> First<F> {
        First(of)
    }

    /// Returns a value of the record with the greatest event time; of several, of the last by source, partition and
    /// offset.
    pub fn last<V: Record, F: Fn(&D) -> V + 'static>(self, of: F) -> Last<F> {
        Last(of)
    }

    /// Returns a value of the record with the least `by`; of several, of the first by event time, then source,
    /// partition and offset.
    pub fn arg_min<B: Record, V: Record, G, F>(self, by: G, of: F) -> ArgMin<G, F>
    where
        G: Fn(&D) -> B + 'static,
        F: Fn(&D) -> V + 'static,
    {
        ArgMin { by, of }
    }

    /// Returns a value of the record with the greatest `by`; of several, of the first, as with
    /// [`arg_min`](Each::arg_min). For the last one, include its event time in `by`.
    pub fn arg_max<B: Record, V: Record, G, F>(self, by: G, of: F) -> ArgMax<G, F>
    where
        G: Fn(&D) -> B + 'static,
        F: Fn(&D) -> V + 'static,
    {
        ArgMax { by, of }
    }

    /// Returns the `most` greatest values, greatest first: a `Vec<V>`. A value that several records have occurs as
    /// often. To rank records by a number, use a tuple that begins with it as the value:
    /// `each.top(10, |t| (t.amount_cents, t.id))`.
    ///
    /// A limit of zero is refused when the query is built. Finding a new value's position is a binary search, and
    /// inserting it moves all values behind it: this is for hundreds of values, not for millions.
    pub fn top<V: Record, F: Fn(&D) -> V + 'static>(self, most: usize, of: F) -> Top<F> {
        Top { most, of }
    }

    /// Returns the `most` least values, least first: like [`top`](Each::top).
    pub fn bottom<V: Record, F: Fn(&D) -> V + 'static>(self, most: usize, of: F) -> Bottom<F> {
        Bottom { most, of }
    }

    /// Counts the distinct values, as an `i64`. All of them are kept, once each; for very many values,
    /// [`approx_count_distinct`](Each::approx_count_distinct) needs less space.
    pub fn count_distinct<V: Record, F: Fn(&D) -> V + 'static>(self, of: F) -> CountDistinct<F> {
        CountDistinct(of)
    }

    /// Returns the distinct values, each once, in order: a `Vec<V>`.
    pub fn distinct<V: Record, F: Fn(&D) -> V + 'static>(self, of: F) -> Distinct<F> {
        Distinct(of)
    }

    /// Estimates the number of distinct values, as an `i64`: up to 1024 exactly, and above that with a relative
    /// standard error of 0.81 % (so two of three estimates are that close, and 99.7 % within 2.4 %). It takes 8 bytes
    /// for each value, and never more than 16 KiB; values are not kept.
    ///
    /// The estimate is a function of the values alone, whatever their order. Values differ here if their
    /// *serializations* in the `postcard` format differ: equal decimals with another number of digits, 1.0 and 1.00,
    /// count as two, unless they are normalized (`Decimal::normalize`). A value that cannot be serialized fails the
    /// job.
    ///
    /// The header of `src/stream/aggregate/sketch.rs` explains the method: HyperLogLog of 2^14 registers, with the
    /// estimator of Ertl (2017).
    pub fn approx_count_distinct<V: Record, F: Fn(&D) -> V + 'static>(self, of: F) -> ApproxCountDistinct<F> {
        ApproxCountDistinct(of)
    }

    /// Computes a quantile of an integer of each record, as an `i64`: 0.5 is the median, 0 the least number, 1 the
    /// greatest. It is the number at rank q·n, rounded up, among the n numbers in ascending order; the median of two
    /// is the lesser.
    ///
    /// The result is off by less than 1/256 of the number; it is exact at both ends, and for numbers from −255 to
    /// 255. It is a function of the numbers alone, whatever their order. The accumulator is a log-linear histogram: a
    /// count for each range of numbers that occurs, with 128 ranges between a number and its double.
    ///
    /// The quantile is rounded to nine decimals. One that is not between 0 and 1 is refused when the query is built.
    /// Floating-point numbers have no such quantiles: scale them to integers, such as seconds to microseconds.
    pub fn quantile<N: Into<i64>, F: Fn(&D) -> N + 'static>(self, at: f64, of: F) -> Quantile<F> {
        Quantile { at, of }
    }

    /// Computes several quantiles of one number, in the given order, as a `Vec<i64>`: like
    /// [`quantile`](Each::quantile), with one histogram for all of them.
    pub fn quantiles<N: Into<i64>, F: Fn(&D) -> N + 'static>(self, at: impl Into<Vec<f64>>, of: F) -> Quantiles<F> {
        Quantiles { at: at.into(), of }
    }

    /// Computes the variance of an integer of each record, as a [`Real`](crate::Real): the mean square of the
    /// differences from the mean, with the records as the whole population. It is computed from exact sums and
    /// rounded once: no `f64` is nearer to the exact variance, whatever the numbers and their order.
    pub fn variance<N: Into<i64>, F: Fn(&D) -> N + 'static>(self, of: F) -> Variance<F> {
        Variance(of)
    }

    /// Estimates the variance of the population that the records are a sample of: like [`variance`](Each::variance),
    /// but the sum of the squares is divided by one less than the number of records. An `Option<Real>`; `None` for
    /// one record.
    pub fn sample_variance<N: Into<i64>, F: Fn(&D) -> N + 'static>(self, of: F) -> SampleVariance<F> {
        SampleVariance(of)
    }

    /// Computes the standard deviation of an integer of each record, as a [`Real`](crate::Real): the square root of
    /// the [`variance`](Each::variance), in the unit of the numbers. It is less than one unit in its last place from
    /// the exact one.
    pub fn std_dev<N: Into<i64>, F: Fn(&D) -> N + 'static>(self, of: F) -> StdDev<F> {
        StdDev(of)
    }

    /// Computes the square root of the [`sample_variance`](Each::sample_variance), as an `Option<Real>`.
    pub fn sample_std_dev<N: Into<i64>, F: Fn(&D) -> N + 'static>(self, of: F) -> SampleStdDev<F> {
        SampleStdDev(of)
    }

    /// Collects a value of every record, as a `Vec<V>`, in the order of the records: by event time, then source,
    /// partition and offset; several values made of one record are ordered by the value. All of them are kept in
    /// memory and in snapshots until the window closes: this is for windows of few records.
    pub fn collect<V: Record, F: Fn(&D) -> V + 'static>(self, of: F) -> Collect<F> {
        Collect(of)
    }

    /// Merges an accumulator of your own: `of` makes one of each record, and their [`Accumulator`] merges them.
    pub fn merge<A: Accumulator, F: Fn(&D) -> A + 'static>(self, of: F) -> Merge<F> {
        Merge(of)
    }
}
