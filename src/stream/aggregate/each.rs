//! How a query names aggregates: what the closure of `aggregate` gets.

use std::fmt;
use std::marker::PhantomData;

use crate::record::Record;
use crate::stream::aggregate::{
    Accumulator, ApproxCountDistinct, ArgMax, ArgMin, Bottom, Collect, Count, CountDistinct, Distinct, First, Last,
    Max, Mean, Merge, Min, Quantile, Quantiles, SampleStdDev, SampleVariance, StdDev, Sum, Summable, Top, Variance,
};

/// Names the aggregates of a window of `D`s. Several in a tuple are one, whose value is the tuple of theirs.
///
/// ```
/// use std::time::Duration;
/// use tidegate::{Closed, Real, Stream, Transaction, Window};
///
/// type Spread = (Vec<i64>, Option<Real>, (String, Vec<i64>));
///
/// fn spread(transactions: Stream<'_, Transaction>) -> Stream<'_, Closed<String, Spread>> {
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

    /// How many records, an `i64`.
    pub fn count(self) -> Count {
        Count
    }

    /// The exact sum of a number of each record: `i128` for integers, [`Decimal`](crate::Decimal) for decimals. A sum that its type
    /// cannot hold ends the job.
    pub fn sum<N: Summable, F: Fn(&D) -> N + 'static>(self, of: F) -> Sum<F> {
        Sum(of)
    }

    /// The mean of a number of each record, a [`Real`](crate::Real): the exact sum divided by the count and rounded once, at
    /// the end. No `f64` is nearer to the exact mean; of two that are equally near it is the one whose last bit is 0.
    pub fn mean<N: Summable, F: Fn(&D) -> N + 'static>(self, of: F) -> Mean<F> {
        Mean(of)
    }

    /// The least of a value of each record.
    pub fn min<V: Record, F: Fn(&D) -> V + 'static>(self, of: F) -> Min<F> {
        Min(of)
    }

    /// The greatest of a value of each record.
    pub fn max<V: Record, F: Fn(&D) -> V + 'static>(self, of: F) -> Max<F> {
        Max(of)
    }

    /// A value of the record with the least event time; of several, the one that stood first by source, partition and
    /// offset.
    pub fn first<V: Record, F: Fn(&D) -> V + 'static>(self, of: F) -> First<F> {
        First(of)
    }

    /// A value of the record with the greatest event time; of several, the one that stood last by source, partition
    /// and offset.
    pub fn last<V: Record, F: Fn(&D) -> V + 'static>(self, of: F) -> Last<F> {
        Last(of)
    }

    /// A value of the record with the least `by`; of several, of the one that stood first: by event time, then source,
    /// partition and offset.
    pub fn arg_min<B: Record, V: Record, G, F>(self, by: G, of: F) -> ArgMin<G, F>
    where
        G: Fn(&D) -> B + 'static,
        F: Fn(&D) -> V + 'static,
    {
        ArgMin { by, of }
    }

    /// A value of the record with the greatest `by`; of several, of the one that stood first, as with
    /// [`arg_min`](Each::arg_min). To have the last one, put when it was into `by`.
    pub fn arg_max<B: Record, V: Record, G, F>(self, by: G, of: F) -> ArgMax<G, F>
    where
        G: Fn(&D) -> B + 'static,
        F: Fn(&D) -> V + 'static,
    {
        ArgMax { by, of }
    }

    /// The greatest values, so many of them at most, greatest first: a `Vec<V>`. A value that several records have is
    /// there as often. To rank records by a number, let the value be a tuple that begins with it:
    /// `each.top(10, |t| (t.amount_cents, t.id))`.
    ///
    /// Zero of them are refused when the query is built. To find a new value's place costs few steps, and to make room
    /// for it as many as there are values behind it: this is for hundreds, not for millions.
    pub fn top<V: Record, F: Fn(&D) -> V + 'static>(self, most: usize, of: F) -> Top<F> {
        Top { most, of }
    }

    /// The least values, least first: as [`top`](Each::top).
    pub fn bottom<V: Record, F: Fn(&D) -> V + 'static>(self, most: usize, of: F) -> Bottom<F> {
        Bottom { most, of }
    }

    /// How many different values there are, an `i64`. All of them are kept, once each; where they are very many,
    /// [`approx_count_distinct`](Each::approx_count_distinct) takes less.
    pub fn count_distinct<V: Record, F: Fn(&D) -> V + 'static>(self, of: F) -> CountDistinct<F> {
        CountDistinct(of)
    }

    /// The different values, each once, in order: a `Vec<V>`.
    pub fn distinct<V: Record, F: Fn(&D) -> V + 'static>(self, of: F) -> Distinct<F> {
        Distinct(of)
    }

    /// About how many different values there are, an `i64`: up to 1024 exactly, and above that with a relative standard
    /// error of 0.81 % (so two of three answers are that close, and 99.7 % within 2.4 %). It takes 8 bytes for each
    /// value, and never more than 16 KiB; values are not kept.
    ///
    /// The answer is a function of the values alone, whatever their order. Values differ here if they are *written*
    /// differently, in the `postcard` format of serde: equal decimals with another number of digits, 1.0 and 1.00, count
    /// as two, unless they are given in one form (`Decimal::normalize`). A value that cannot be written so ends the job.
    ///
    /// How it is done is told in the header of `src/stream/aggregate/sketch.rs`: HyperLogLog of 2^14 registers, with the
    /// estimator of Ertl (2017).
    pub fn approx_count_distinct<V: Record, F: Fn(&D) -> V + 'static>(self, of: F) -> ApproxCountDistinct<F> {
        ApproxCountDistinct(of)
    }

    /// A quantile of an integer of each record, an `i64`: 0.5 is the median, 0 the least number, 1 the greatest. It is a
    /// number with the rank q·n, rounded up, among the n numbers in ascending order; the median of two is the lesser.
    ///
    /// The answer is off by less than 1/256 of the number; it is exact at both ends, and for numbers from −255 to 255.
    /// It is a function of the numbers alone, whatever their order. What is kept is a count for each range of numbers
    /// that occurs, of which there are 128 between a number and its double (a log-linear histogram).
    ///
    /// The quantile is taken to nine decimals. One that is not between 0 and 1 is refused when the query is built.
    /// Floating-point numbers have no such quantiles: scale them to integers, as seconds to microseconds.
    pub fn quantile<N: Into<i64>, F: Fn(&D) -> N + 'static>(self, at: f64, of: F) -> Quantile<F> {
        Quantile { at, of }
    }

    /// Several quantiles of one number, in the order in which they are asked for, a `Vec<i64>`: as
    /// [`quantile`](Each::quantile), but what is kept is kept once.
    pub fn quantiles<N: Into<i64>, F: Fn(&D) -> N + 'static>(self, at: impl Into<Vec<f64>>, of: F) -> Quantiles<F> {
        Quantiles { at: at.into(), of }
    }

    /// The variance of an integer of each record, a [`Real`](crate::Real): the mean square of the differences from the
    /// mean, of these records as all there are. It is computed from exact sums and rounded once: no `f64` is nearer to the
    /// exact variance, whatever the numbers and their order.
    pub fn variance<N: Into<i64>, F: Fn(&D) -> N + 'static>(self, of: F) -> Variance<F> {
        Variance(of)
    }

    /// The variance of what the records are a sample of, estimated: as [`variance`](Each::variance), but the sum of the
    /// squares is divided by one less than the number of records. An `Option<Real>`: of one record it is `None`.
    pub fn sample_variance<N: Into<i64>, F: Fn(&D) -> N + 'static>(self, of: F) -> SampleVariance<F> {
        SampleVariance(of)
    }

    /// The standard deviation of an integer of each record, a [`Real`](crate::Real): the square root of the
    /// [`variance`](Each::variance), in the unit of the numbers. It is less than one unit in its last place from the exact one.
    pub fn std_dev<N: Into<i64>, F: Fn(&D) -> N + 'static>(self, of: F) -> StdDev<F> {
        StdDev(of)
    }

    /// The square root of the [`sample_variance`](Each::sample_variance), an `Option<Real>`.
    pub fn sample_std_dev<N: Into<i64>, F: Fn(&D) -> N + 'static>(self, of: F) -> SampleStdDev<F> {
        SampleStdDev(of)
    }

    /// A value of every record, a `Vec<V>`, in the order in which the records stood: by event time, then source,
    /// partition and offset; several values made of one record, by the value. All of them are kept, until the window
    /// closes, and in snapshots: this is for windows of few records.
    pub fn collect<V: Record, F: Fn(&D) -> V + 'static>(self, of: F) -> Collect<F> {
        Collect(of)
    }

    /// An aggregate of your own: what one record makes, merged by its [`Accumulator`].
    pub fn merge<A: Accumulator, F: Fn(&D) -> A + 'static>(self, of: F) -> Merge<F> {
        Merge(of)
    }
}
